"""Statements that a server refused as a whole, so that they may be sent again."""

from __future__ import annotations

from typing import Protocol

from psycopg import errors, pq
from psycopg.pq.abc import PGconn

UNDONE = (errors.SerializationFailure, errors.DeadlockDetected)
"""The server has undone a transaction for the sake of another. It may be tried again."""

TRIES_MAX = 5
"""How often an undone statement is tried. Each time, another transaction got on: few tries do."""


class Repeats(Protocol):
    """What `may_repeat` looks at."""

    repeats: bool
    pgconn: PGconn


def is_stale_plan(error: errors.FeatureNotSupported) -> bool:
    """Tell whether the server says "cached plan must not change result type".

    Its words may be in any language.
    """
    return error.diag.source_function == "RevalidateCachedQuery"


def may_repeat(connection: Repeats, tries: int) -> bool:
    """Tell whether to send a statement again that the server has undone, after so many tries."""
    return connection.repeats and tries < TRIES_MAX and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
