"""What a session of ours must be like, whatever its role, its database and its server say.

A role's settings are people's: some keep a web application's statements short, some keep everybody read-only. A queue's statements
depend on a few of them. Three measures, in this order:

- Statements do without. Rows are read in binary, so that DateStyle, IntervalStyle, extra_float_digits and bytea_output do not count.
- `client_encoding` is said when the connection is opened, as the one setting that every pooler passes on for each client.
- The rest is set once the session is open, by the same round trip that asks whether it can write. It is set only where the session is
  ours alone. A pooler lends a session to others, who would find our settings in it. There its role has to have them; see `For`.

`default_transaction_read_only` is never overruled. Whoever sets it means it: an operator in the middle of a failover, or a provider
whose disk is full. Such a session is refused like one on a standby, and asked for again, unless the address has its own
`target_session_attrs`.
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
    """Whom a session is for, which decides what is set in it."""

    ANYBODY = "anybody"  # who asked for a plain connection: nothing but the encoding
    HANDLER = "handler"  # users' statements, and our fence around them
    CALLER = "caller"  # a client's or command's own statements
    WORKER = "worker"  # statements that have deadlines of their own, at the client


# Each is set where the server has it and says otherwise.
_HANDLER = {
    # With `off`, which is for dumps, a statement that row security binds fails; the fence would.
    "row_security": "on",
    # With `off`, null in an array is a word of four letters.
    "array_nulls": "on",
}
_CALLER = _HANDLER | {
    # Transactions of one statement, which lock what they decide by. At a higher level they would fail at each other.
    "default_transaction_isolation": "read committed",
    # For what is read in text after all. It is asked for in binary.
    "DateStyle": "ISO",
}
_WORKER = _CALLER | {
    # A worker's statements are bounded by its deadlines, and its sessions rest for as long as there is no work.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    # Statements of a millisecond, hundreds of times a second: a role that has everything compiled pays for each.
    "jit": "off",
}
_WANTED = {For.HANDLER: _HANDLER, For.CALLER: _CALLER, For.WORKER: _WORKER}

_ENTER = session("enter")


def enter(pgconn: PGconn, wanted_for: For, encoding: str) -> PQGen[tuple[bool, bool]]:
    """Set what a session needs, in one round trip; return whether it can write, and whether anything had to be set.

    Raises:
        psycopg.Error: the server refuses; the session is in order all the same.
    """
    settings = _WANTED.get(wanted_for, {})
    is_ours = wanted_for in {For.CALLER, For.WORKER}
    values = (str(pgconn.backend_pid), json.dumps(settings), str(is_ours))
    pgconn.send_query_params(_ENTER, [value.encode() for value in values])
    result = (yield from generators.execute(pgconn))[-1]
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise errors.error_from_result(result, encoding)
    return bool(result.get_value(0, 0) == b"off"), result.get_value(0, 1) != b"0"
