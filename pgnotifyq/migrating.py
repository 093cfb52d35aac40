"""Migrate a schema, and check it, on a connection of pgnotifyq's.

The statements are in ledger/schema.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger import schema as ledger
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from pgnotifyq.ledger.schema import Step
    from pgnotifyq.wire.connection import Connection


async def migrate(connection: Connection[Any], schema: str = "pgnotifyq", *, dry_run: bool = False) -> list[Step]:
    """Apply the steps that are missing, and return them. With `dry_run`, only return them.

    Cancellation, errors: as for `ledger.schema.migrate`.
    """
    return await ask(connection, ledger.migrate(schema, dry_run=dry_run))


async def check_schema(connection: Connection[Any], schema: str = "pgnotifyq") -> int:
    """Return the schema's version if this code can work with it.

    Errors: as for `ledger.schema.check_schema`.
    """
    return await ask(connection, ledger.check_schema(schema))
