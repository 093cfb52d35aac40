"""Commands that follow a job: `watch`, and what `show --logs` prints."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger
from pgnotifyq.cli.output import as_data, print_json_line, shown
from pgnotifyq.cli.parameters import AsJson, Dsn, OfJob, Schema, job_id_of
from pgnotifyq.cli.reach import answered
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.states import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pgnotifyq.doors.client import Client
    from pgnotifyq.model.job import Job, JobId
    from pgnotifyq.model.watching import LogLine

# These come on top of the exit codes of all commands (app.py).
EXIT_CANCELLED, EXIT_DEAD = 4, 5
_EXITS = {Status.COMPLETED: 0, Status.CANCELLED: EXIT_CANCELLED, Status.DEAD: EXIT_DEAD}


def watch(
    job_id: OfJob,
    /,
    *,
    timeout_seconds: Annotated[float | None, Parameter(help="Follow at most so long; then the exit code is 1.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Follow a job until it has ended: a bar in a terminal, else a line for each change.

    Exit code 0 if it is completed, 4 if it was cancelled, 5 if it is dead. With --json each change
    is a line of JSON.
    """
    key = job_id_of(job_id)

    async def act(client: Client) -> int:
        job: Job | None = None
        with _teller(as_json=as_json) as tell:
            async with client.watch(key, timeout_seconds=timeout_seconds) as changes:
                async for job in changes:
                    tell(job)
        assert job is not None
        if not as_json and job.error_message and job.status is not Status.COMPLETED:
            print(shown(job.error_message))
        return _EXITS[job.status]

    return _run(dsn, schema, act)


def _run(dsn: str | None, schema: str, act: Callable[[Client], Awaitable[int]]) -> int:
    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> int:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                return await act(client)

        return await answered(database.dsn, on_ledger)

    return trio.run(main)


@contextmanager
def _teller(*, as_json: bool) -> Iterator[Callable[[Job], None]]:
    """Give a function that tells a change of a job."""
    if as_json:
        yield lambda job: print_json_line(_as_plain(job))
    elif not sys.stdout.isatty():
        yield lambda job: print(_line(job), flush=True)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}", markup=False),
        )
        with Progress(*columns, console=Console(), refresh_per_second=8) as progress:
            bar = progress.add_task("...", total=None, said="")

            def tell(job: Job) -> None:
                done = 1.0 if job.status is Status.COMPLETED else job.progress
                progress.update(
                    bar,
                    description=f"{job.job_type} {_state(job)}",
                    total=None if done is None else 1.0,
                    completed=done or 0.0,
                    said=shown(job.progress_message or ""),
                )

            yield tell


def _state(job: Job) -> str:
    return str(job.label or job.status)


def _line(job: Job) -> str:
    share = None if job.progress is None else f"{job.progress:.0%}"
    words = (_state(job), f"attempt {job.attempts}" if job.attempts else None, share, job.progress_message)
    return shown(" ".join(word for word in words if word))


def _as_plain(job: Job) -> dict[str, Any]:
    data: dict[str, Any] = as_data(job)
    data["status"] = data.pop("label")
    return data


def print_logs(lines: list[LogLine], *, as_json: bool = False) -> None:
    """Print lines of logs."""
    for line in lines:
        if as_json:
            print_json_line(as_data(line))
            continue
        at = "" if line.at is None else f"{line.at.astimezone():%H:%M:%S}.{line.at.microsecond // 1000:03d} "
        first, *rest = line.text.split("\n")
        print(f"{at}#{line.attempt} {line.level:<8} {shown(first)}".rstrip(), flush=True)
        for each in rest:
            print(f"    {shown(each)}", flush=True)


def follow_logs(job_id: JobId, dsn: str | None, schema: str, *, as_json: bool) -> int:
    """Print the lines of a job's logs as they come, until it has ended."""

    async def act(client: Client) -> int:
        async with client.follow_logs(job_id) as lines:
            async for line in lines:
                print_logs([line], as_json=as_json)
        return 0

    return _run(dsn, schema, act)
