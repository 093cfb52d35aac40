"""Migrate a schema, and check it, by a connection of pgnotifyq's.

What is asked is in ledger/schema.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger import schema as ledger
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from pgnotifyq.ledger.schema import Step
    from pgnotifyq.wire.connection import Connection


async def migrate(connection: Connection[Any], schema: str = "pgnotifyq", *, dry_run: bool = False) -> list[Step]:
    """Apply what is missing, and return the steps applied (or, with `dry_run`, those that would be).

    Cancellation, errors: as for `ledger.schema.migrate`.
    """
    return await ask(connection, ledger.migrate(schema, dry_run=dry_run))


async def check_schema(connection: Connection[Any], schema: str = "pgnotifyq") -> int:
    """Return the schema's version when this code can work with it.

    Errors: as for `ledger.schema.check_schema`.
    """
    return await ask(connection, ledger.check_schema(schema))
