"""What a server refuses whole, so that the same statement may be said again."""

from __future__ import annotations

from typing import Protocol

from psycopg import errors, pq
from psycopg.pq.abc import PGconn

UNDONE = (errors.SerializationFailure, errors.DeadlockDetected)
"""How the server says that it has undone a transaction for the sake of another, and that it may be tried again."""

TRIES_MAX = 5
"""Of a statement that is undone: each time another transaction got on, so a few are many."""


class Repeats(Protocol):
    """What `may_repeat` looks at."""

    repeats: bool
    pgconn: PGconn


def is_stale_plan(error: errors.FeatureNotSupported) -> bool:
    """Tell whether the server says that "cached plan must not change result type". Its words may be in any language."""
    return error.diag.source_function == "RevalidateCachedQuery"


def may_repeat(connection: Repeats, tries: int) -> bool:
    """Tell whether a statement that the server has undone is to be said again, after `tries` of them."""
    return connection.repeats and tries < TRIES_MAX and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
