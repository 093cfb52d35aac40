"""Django's connection, as the ledger sees it: to ask on it, and to open one like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from django.db import connections
from psycopg import pq
from psycopg.conninfo import make_conninfo

from pgnotifyq.wire.callers import ask_on_blocking

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Verb

T = TypeVar("T")


def ask_on_database(alias: str, verb: Verb[T]) -> T:
    """Ask a verb of the ledger on Django's own connection of this thread, in its open transaction.

    Args:
        alias: of the database, as in DATABASES.
        verb: what is asked.

    Raises:
        PgnotifyqError: what the verb makes of an answer.
        TransactionAborted: the transaction was aborted by an error before.
        django.db.Error: any other, as Django's cursors would.
    """
    connection = connections[alias]
    # A cursor opens the connection if it is not open. And a test of Django's that is to have no
    # database forbids cursors.
    with connection.cursor():
        return ask_on_blocking(connection, verb)


def address_of(alias: str) -> str:
    """Return the address of a database of DATABASES, for a worker's own connections."""
    wrapper = connections[alias]
    given = wrapper.get_connection_params()
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - {"client_encoding"}
    found = {name: value for name, value in given.items() if name in known and value is not None}
    # Django says `set role` in each new connection. A worker's connections do the same.
    role = wrapper.settings_dict.get("OPTIONS", {}).get("assume_role")
    if role:
        escaped = str(role).replace("\\", "\\\\").replace(" ", "\\ ")
        found["options"] = f"{found.get('options', '')} -c role={escaped}".strip()
    return make_conninfo(**found)
