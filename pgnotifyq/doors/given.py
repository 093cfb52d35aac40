"""`connection=`: a verb on a connection of the caller's, in the caller's transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import psycopg

from pgnotifyq.model.job import JobSettings
from pgnotifyq.wire.asking import ask, ask_blocking
from pgnotifyq.wire.ours import Loop, Ours

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Verb

T = TypeVar("T")
Given: TypeAlias = psycopg.AsyncConnection[Any] | psycopg.Connection[Any]


class EnqueueSettings(JobSettings, total=False):
    """What `enqueue` takes besides a type and a payload."""

    connection: Given | None


async def ask_given(connection: Given, verb: Verb[T], loop: Loop) -> T:
    """Ask a verb on a connection of the caller's, from this kind of event loop.

    Raises:
        TypeError: it is none of psycopg's, or one for another kind of event loop.
    """
    if isinstance(connection, psycopg.Connection):
        return ask_blocking(connection, verb)
    if not isinstance(connection, psycopg.AsyncConnection) or _loop_of(connection) != loop:
        raise TypeError(_refused(connection, f"one opened by pgnotifyq for {loop}" if loop is Loop.TRIO else "psycopg's"))
    return await ask(connection, verb)


def ask_given_blocking(connection: Given, verb: Verb[T]) -> T:
    """Ask a verb on a blocking connection of the caller's.

    Raises:
        TypeError: it is no `psycopg.Connection`.
    """
    if not isinstance(connection, psycopg.Connection):
        raise TypeError(_refused(connection, "a blocking one"))
    return ask_blocking(connection, verb)


def _loop_of(connection: psycopg.AsyncConnection[Any]) -> str:
    return connection.loop if isinstance(connection, Ours) else Loop.ASYNCIO


def _refused(connection: object, wanted: str) -> str:
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    return f"connection is a {kind}: pass {wanted}, or a blocking psycopg.Connection"
