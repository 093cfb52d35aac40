"""The queue's schema, made and dropped on Django's connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import connections
from django.db.migrations.exceptions import IrreversibleError

from pgnotifyq.django.connections import ask_on_database
from pgnotifyq.ledger import look, schema
from pgnotifyq.ledger.demo import strike
from pgnotifyq.ledger.errors import SCHEMA_DEFAULT
from pgnotifyq.model.errors import SchemaMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgnotifyq.ledger.look import QueueRow


def schemas_in(database: str) -> Iterator[str]:
    """Yield the schemas that TASKS has in a database, each once.

    If TASKS has no backend of ours, the default database has the default schema. A database that is
    not PostgreSQL, as a test's may be, has none: `manage.py check` tells of it.
    """
    from pgnotifyq.django.backend import backends

    if connections[database].vendor != "postgresql":
        return
    ours = backends()
    found = [backend.schema for backend in ours if backend.database == database]
    if not ours and database == "default":
        found = [SCHEMA_DEFAULT]
    yield from dict.fromkeys(found)


def migrate(database: str) -> None:
    """Bring the schemas of a database up to this code's version, in Django's transaction."""
    for name in schemas_in(database):
        ask_on_database(database, schema.migrate(name))


def drop(database: str) -> None:
    """Take the schemas of a database away, if they hold neither unfinished jobs nor dead letters.

    Raises:
        IrreversibleError: a schema holds unfinished jobs or dead letters.
    """
    for name in schemas_in(database):
        try:
            held = {row.queue_name: _count(row) for row in ask_on_database(database, look.stats(name))}
        except SchemaMissing:
            continue
        if any(held.values()):
            queues = ", ".join(f"{count} in {queue}" for queue, count in held.items() if count)
            raise IrreversibleError(
                f"the schema {name!r} holds jobs that are not done, or dead letters ({queues}): finish, cancel or purge them first, "
                f"or `drop schema {name} cascade` by hand"
            )
        ask_on_database(database, strike(name))


def _count(row: QueueRow) -> int:
    return row.pending + row.scheduled + row.retrying + row.running + row.stopping + row.dead
