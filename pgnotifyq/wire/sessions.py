"""What a session of ours must be like, whatever its role, its database and its server say.

People give settings to roles. Some keep a web application's statements short, others make everybody
read-only. A queue's statements depend on a few of these settings. We take three measures, in this
order:

- Statements do without a setting. Rows are read in binary, so DateStyle, IntervalStyle,
  extra_float_digits and bytea_output do not count.
- `client_encoding` is set as the connection is opened. It is the one setting that every pooler
  passes on for each client.
- The rest is set after that, in the round trip that asks whether the session can write. It is set
  only if the session is ours alone. A pooler lends its sessions to others, and they would find our
  settings. Behind a pooler, the role must have them; see `For`.

`default_transaction_read_only` is never overruled. A person who sets it means it: an operator in
the middle of a failover, or a provider whose disk is full. Such a session is refused as one on a
standby is, and asked for again, unless the address has its own `target_session_attrs`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING

from psycopg import errors, generators, pq

from pgnotifyq.ledger.statements import session

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn


class For(StrEnum):
    """Whom a session is for. It decides what is set in the session."""

    ANYBODY = "anybody"  # a plain connection was asked for: nothing is set but the encoding
    HANDLER = "handler"  # users' statements, and our fence around them
    CALLER = "caller"  # a client's or command's own statements
    WORKER = "worker"  # statements that have deadlines of their own, at the client


# Each is set if the server has it and it has another value there.
_HANDLER = {
    # `off` is for dumps. With `off`, each statement that row security binds fails: so the fence.
    "row_security": "on",
    # With `off`, null in an array is read as a word of four letters.
    "array_nulls": "on",
}
_CALLER = _HANDLER | {
    # For transactions of one statement, which lock the rows that they decide by. At a higher level
    # they would make each other fail.
    "default_transaction_isolation": "read committed",
    # For a time that is read as text after all. Rows are asked for in binary.
    "DateStyle": "ISO",
}
_WORKER = _CALLER | {
    # A worker bounds its statements by deadlines of its own. Its sessions rest while there is no
    # work.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    # A worker runs statements of a millisecond, hundreds a second. With jit for all, each would be
    # compiled.
    "jit": "off",
}
_WANTED = {For.HANDLER: _HANDLER, For.CALLER: _CALLER, For.WORKER: _WORKER}

_ENTER = session("enter")


def enter(pgconn: PGconn, wanted_for: For, encoding: str) -> PQGen[tuple[bool, bool]]:
    """Set what a session needs, in one round trip.

    Returns: whether the session can write, and whether anything had to be set.

    Raises:
        psycopg.Error: the server refuses. The session is in order nevertheless.
    """
    settings = _WANTED.get(wanted_for, {})
    is_ours = wanted_for in {For.CALLER, For.WORKER}
    values = (str(pgconn.backend_pid), json.dumps(settings), str(is_ours))
    pgconn.send_query_params(_ENTER, [value.encode() for value in values])
    result = (yield from generators.execute(pgconn))[-1]
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise errors.error_from_result(result, encoding)
    return bool(result.get_value(0, 0) == b"off"), result.get_value(0, 1) != b"0"
