"""`enqueue -`: many jobs from standard input, one a line.

Rules:

- All lines are one transaction. With `--batch`, so many lines each are one. If a line is no job,
  its transaction is rolled back, and standard error says which lines are enqueued. With
  `--continue` such lines are reported and passed over.
- An id is printed after the commit, so each id that is printed is of a job that exists. Until then
  ids wait in a temporary file.
- The memory that this needs does not grow with the number of lines. Lines are read, checked and
  sent a chunk at a time.
- A thread reads, so that Ctrl-C and a lost server are noticed while no line comes.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import psycopg
import trio

from pgnotifyq.cli.parameters import seconds_of, time_of
from pgnotifyq.ledger import bulk
from pgnotifyq.model.errors import InvalidJob, PgnotifyqError, Refused
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.payload import encode
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

CHUNK_LINES_MAX = 2_000  # one COPY, or so many statements of a hundred; 30 ms
CHUNK_BYTES_MAX = 8 * 1024 * 1024
# A payload of 1 MiB, with each byte escaped as in \u00e4, and the other fields of its job.
LINE_BYTES_MAX = 7 * 1024 * 1024
TOLD_LINES_MAX = 100  # of those that are no jobs; the rest are counted
IDS_BYTES_MAX = 1024 * 1024  # beyond it, they wait on the disk

# The keys that a line may have, and the field of a job that each stands for. A key may be the name
# of an option, or a name that `jobs --json` prints.
_KEYS = {
    "job_type": "job_type",
    "payload": "payload",
    "queue": "queue_name",
    "queue_name": "queue_name",
    "priority": "priority",
    "delay_seconds": "delay_seconds",
    "in": "delay_seconds",
    "at": "scheduled_at",
    "scheduled_at": "scheduled_at",
    "max_attempts": "max_attempts",
    "org": "org_id",
    "org_id": "org_id",
    "unique_key": "unique_key",
    "headers": "headers",
}
_TIMES = {"scheduled_at", "delay_seconds"}


class Lines:
    """Standard input as jobs. It blocks; a thread reads it.

    Args:
        source: what is read.
        defaults: fields of NewJob, for lines that do not say them.
        job_type: if given, each line is a payload of this type.
        goes_on: pass over lines that are no jobs, and tell them on standard error.
    """

    def __init__(self, source: BinaryIO, *, defaults: Mapping[str, Any], job_type: str | None, goes_on: bool) -> None:
        self._source = source
        self._defaults = {name: value for name, value in defaults.items() if value is not None}
        self._job_type = job_type
        self._goes_on = goes_on
        self.number = 0  # of the last line that was read
        self.bad = 0  # lines that were passed over
        self._is_read = False

    def take(self, lines_max: int) -> list[tuple[int, NewJob]]:
        """Return the next jobs with the numbers of their lines. An empty list: no lines are left.

        Raises:
            Refused: a line is no job.
        """
        taken: list[tuple[int, NewJob]] = []
        size = 0
        while not self._is_read and len(taken) < lines_max and (size < CHUNK_BYTES_MAX or not taken):
            line = self._source.readline(LINE_BYTES_MAX + 1)
            if not line:
                self._is_read = True  # otherwise a terminal would be read again
                break
            self.number += 1
            size += len(line)
            try:
                if len(line) > LINE_BYTES_MAX:
                    self._pass_over_rest(line)
                    raise InvalidJob(f"it is longer than {LINE_BYTES_MAX} bytes: no payload that fits is so long")
                if line.strip():
                    taken.append((self.number, self._job_of(line)))
            except Refused as error:
                if not self._goes_on:
                    raise InvalidJob(f"line {self.number} is no job: {error}") from error
                self._tell(error)
        return taken

    def _pass_over_rest(self, line: bytes) -> None:
        while line and not line.endswith(b"\n"):
            line = self._source.readline(LINE_BYTES_MAX)

    def _tell(self, error: Refused) -> None:
        self.bad += 1
        if self.bad <= TOLD_LINES_MAX:
            print(f"pgnotifyq: line {self.number} is passed over: {' '.join(str(error).split())}", file=sys.stderr)

    def _job_of(self, line: bytes) -> NewJob:
        try:
            said = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InvalidJob(f"it is not JSON ({error})") from None
        if self._job_type is not None:
            said = {"job_type": self._job_type, "payload": said}
        if not isinstance(said, dict):
            raise InvalidJob("it is no JSON object; if each line is a payload, name the type with --type")
        fields = self._fields_of(said)
        if not isinstance(fields.get("job_type"), str):
            raise InvalidJob("it has no job_type; if each line is a payload, name the type with --type")
        job = NewJob(**fields)
        encode(job.payload)  # checked here, where the line's number is known
        return job

    def _fields_of(self, said: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(said.keys() - _KEYS.keys()):
            raise InvalidJob(f"there is no {unknown[0]!r:.80} of a job: use {', '.join(_KEYS)}")
        fields: dict[str, Any] = {}
        for key, value in said.items():
            if value is None and key != "payload":
                continue  # not said
            field = _KEYS[key]
            if field in fields:
                raise InvalidJob(f"{key!r} is said twice, in other words: say it once")
            if key == "in" or field == "scheduled_at":
                if not isinstance(value, str):
                    raise InvalidJob(f"{key} {value!r:.80} is no text")
                value = (seconds_of if key == "in" else time_of)(key, value)  # noqa: PLW2901
            fields[field] = value
        # A job's time is said in one of two ways. If the line says one, no default for the other
        # counts.
        passed_over = _TIMES if fields.keys() & _TIMES else set()
        return {"payload": {}} | {name: value for name, value in self._defaults.items() if name not in passed_over} | fields


async def enqueue_lines(connection: Connection[TupleRow], *, schema: str, lines: Lines, batch: int | None, as_json: bool) -> int:
    """Enqueue the jobs of lines, and print their ids in the order of the lines.

    Args:
        connection: to the ledger, in autocommit.
        schema: where the queue lives.
        lines: what is read.
        batch: how many lines are one transaction; None: all.
        as_json: print an object a line, with the line's number and the job's id.

    Returns: the exit code: 1 if lines were passed over.

    Raises:
        Refused: a line is no job. Standard error has which lines are enqueued.
    """
    if batch is not None and batch < 1:
        raise InvalidJob(f"--batch {batch} is out of range: use 1 or more")
    enqueued = kept = 0  # how many jobs; the last line that was committed
    is_committing = False
    with tempfile.SpooledTemporaryFile(max_size=IDS_BYTES_MAX, mode="w+", encoding="ascii") as ids:
        try:
            # The first lines are awaited outside of a transaction.
            while jobs := await _take(lines, batch, 0):
                taken = 0
                async with connection.transaction():
                    is_committing = False
                    while jobs:
                        made = await ask(connection, bulk.enqueue_many(schema, [job for _, job in jobs]))
                        taken += len(made)
                        for (number, _), job_id in zip(jobs, made, strict=True):
                            ids.write(f'{{"line": {number}, "id": "{job_id}"}}\n' if as_json else f"{job_id}\n")
                        jobs = await _take(lines, batch, taken)
                    is_committing = True
                enqueued, kept = enqueued + taken, lines.number
                ids.seek(0)
                shutil.copyfileobj(ids, sys.stdout)
                sys.stdout.flush()
                ids.seek(0)
                ids.truncate()
        except (PgnotifyqError, psycopg.Error) as error:
            if is_committing and isinstance(error, psycopg.OperationalError):
                stand = (
                    f"whether lines {kept + 1} to {lines.number} are enqueued is not known: the connection broke at their commit"
                )
            else:
                stand = f"the lines up to {kept} are enqueued, and no later one" if kept else "nothing was enqueued"
            print(f"pgnotifyq: {stand}", file=sys.stderr)
            raise
    if lines.bad:
        print(f"pgnotifyq: {lines.bad} lines were passed over, {enqueued} jobs enqueued", file=sys.stderr)
    return 1 if lines.bad else 0


async def _take(lines: Lines, batch: int | None, taken: int) -> list[tuple[int, NewJob]]:
    """Return the next chunk of a transaction that has `taken` jobs already. Empty: it is whole."""
    room = CHUNK_LINES_MAX if batch is None else min(CHUNK_LINES_MAX, batch - taken)
    if room == 0:
        return []
    return await trio.to_thread.run_sync(partial(lines.take, room), abandon_on_cancel=True)


def standard_input() -> BinaryIO:
    """Return standard input as bytes.

    The stream has a buffer of its own. If a thread held the lock of `sys.stdin`'s buffer at the end
    of the process, Python would abort.
    """
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)  # as long as the process lives
    except (OSError, ValueError):  # a stream of text stands in for it
        return io.BytesIO(sys.stdin.read().encode())
