"""How much one claim asks for, in rows and in bytes.

It asks for less after a claim that failed or was late, and for more after each that succeeded.

A claim has a deadline. A claim may be late because the payloads are large, or because the network
or the disk is slow. It is then rolled back, or lost with its connection, and the same claim again
would end the same way, for ever. So each claim that fails divides what the next one asks for by
SMALLER, down to a single job. Each claim that succeeds doubles it, up to what it was. A server that
is merely away costs a few small claims afterwards. If a claim of a single job fails, the next claim
is made apart (sql/functions/claim/claim_apart.sql). There a job is put aside if its own row is at
fault.

Pure: no clock, and no randomness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from pgnotifyq.ledger.claim import CLAIM_BYTES_MAX
from pgnotifyq.model.config import CONCURRENCY_MAX

if TYPE_CHECKING:
    from types import TracebackType

# A claim of one job is not bounded by bytes, so less than this changes nothing for small payloads.
CLAIM_BYTES_MIN = 64 << 10


SMALLER = 8  # after three deadlines, a thousand jobs are a single one


class Asked(Protocol):
    """What a claim asks for."""

    rows: int
    bytes_max: int


@attrs.define
class ClaimSize:
    """What the next claim of one worker asks for, at the most.

    A claim is made within `with size.of(free) as asked`.
    """

    rows_max: int = CONCURRENCY_MAX
    bytes_max: int = CLAIM_BYTES_MAX
    is_stuck: bool = False  # the last claim was of a single job, and failed

    def of(self, free: int) -> Try:
        """Return what to ask for when `free` slots are free."""
        return Try(self, min(free, self.rows_max), self.bytes_max)

    def failed(self, rows: int) -> None:
        """Note that a claim of so many rows failed, or was late."""
        self.is_stuck = rows == 1
        self.rows_max = max(min(rows, self.rows_max) // SMALLER, 1)
        self.bytes_max = max(self.bytes_max // SMALLER, CLAIM_BYTES_MIN)

    def succeeded(self) -> None:
        """Note that a claim was answered."""
        self.is_stuck = False
        self.rows_max = min(self.rows_max * 2, CONCURRENCY_MAX)
        self.bytes_max = min(self.bytes_max * 2, CLAIM_BYTES_MAX)


@attrs.define
class Try:
    """One claim.

    It has failed if an exception leaves its block; a cancel at its deadline is one, too.
    """

    _size: ClaimSize
    rows: int
    bytes_max: int

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if kind is None:
            self._size.succeeded()
        else:
            self._size.failed(self.rows)
