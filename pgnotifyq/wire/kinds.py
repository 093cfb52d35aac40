"""Which kinds of connection a caller may have, and of which kind a given one is.

What the caller has may be a connection of a driver (psycopg's two, asyncpg's, psycopg2's), or an
object of a library that holds such a connection (SQLAlchemy's connections and sessions, Django's
`connection`). Nothing is imported to tell the kind: an object of a library exists only if the
library was imported.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Any, Protocol, TypeAlias


class ClosableConnection(Protocol):
    """A connection or session as its library types it: all have a `close`. Nobody here calls it."""

    @property
    def close(self) -> Any:
        """What closes it."""


class ProxiedConnection(Protocol):
    """What stands for a connection and hands on what it is asked: Django's, asyncpg's pool's."""

    def __getattr__(self, name: str, /) -> Any:
        """Return what the connection has by this name."""


# What `connection=` takes, for a type checker. It needs none of the libraries, and refuses an
# address. `kind_of` knows which are meant.
CallersConnection: TypeAlias = ClosableConnection | ProxiedConnection


class Kind(StrEnum):
    """What a caller has, by the library's own name for it."""

    TRIO = "pgnotifyq.Connection"
    PSYCOPG = "psycopg.Connection"
    PSYCOPG_ASYNC = "psycopg.AsyncConnection"
    PSYCOPG2 = "psycopg2's connection"
    ASYNCPG = "asyncpg's connection"
    SQLALCHEMY_CONNECTION = "SQLAlchemy's Connection"
    SQLALCHEMY_SESSION = "SQLAlchemy's Session"
    SQLALCHEMY_ASYNC_CONNECTION = "SQLAlchemy's AsyncConnection"
    SQLALCHEMY_ASYNC_SESSION = "SQLAlchemy's AsyncSession"
    DJANGO = "django.db.connection"

    @property
    def is_blocking(self) -> bool:
        """Whether it waits by holding up its thread."""
        return self in _BLOCKING


_BLOCKING = frozenset({Kind.PSYCOPG, Kind.PSYCOPG2, Kind.SQLALCHEMY_CONNECTION, Kind.SQLALCHEMY_SESSION, Kind.DJANGO})
# By module and name, as the libraries show them. If the module was not imported, there is no such
# object.
_SHOWN: dict[tuple[str, str], Kind] = {
    ("pgnotifyq.wire.connection", "Connection"): Kind.TRIO,  # before its base class
    ("psycopg", "Connection"): Kind.PSYCOPG,
    ("psycopg", "AsyncConnection"): Kind.PSYCOPG_ASYNC,
    ("asyncpg.connection", "Connection"): Kind.ASYNCPG,
    ("asyncpg.pool", "PoolConnectionProxy"): Kind.ASYNCPG,
    ("psycopg2.extensions", "connection"): Kind.PSYCOPG2,
    ("sqlalchemy.engine", "Connection"): Kind.SQLALCHEMY_CONNECTION,
    ("sqlalchemy.orm", "Session"): Kind.SQLALCHEMY_SESSION,
    ("sqlalchemy.orm", "scoped_session"): Kind.SQLALCHEMY_SESSION,
    ("sqlalchemy.ext.asyncio", "AsyncConnection"): Kind.SQLALCHEMY_ASYNC_CONNECTION,
    ("sqlalchemy.ext.asyncio", "AsyncSession"): Kind.SQLALCHEMY_ASYNC_SESSION,
    ("sqlalchemy.ext.asyncio", "async_scoped_session"): Kind.SQLALCHEMY_ASYNC_SESSION,
    ("django.db.backends.base.base", "BaseDatabaseWrapper"): Kind.DJANGO,
    ("django.utils.connection", "ConnectionProxy"): Kind.DJANGO,
}


def kind_of(connection: object) -> Kind:
    """Tell what the caller has.

    Raises:
        TypeError: `connection` is of no kind that is taken; the message names the kinds.
    """
    for (module, name), kind in _SHOWN.items():
        shown = getattr(sys.modules.get(module), name, None)
        if shown is not None and isinstance(connection, shown):
            if kind is Kind.DJANGO:
                _check_django(connection)
            return kind
    name = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise TypeError(f"connection is a {name}: pass one of {', '.join(Kind)}")


def _check_django(connection: Any) -> None:
    # Django's caches have a ConnectionProxy, too.
    if (vendor := getattr(connection, "vendor", None)) != "postgresql":
        message = "no database" if vendor is None else f"of {vendor}"
        raise TypeError(f"connection is Django's, and {message}: pass that of a PostgreSQL database, as connections['alias']")
