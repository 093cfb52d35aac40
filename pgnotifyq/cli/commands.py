"""The commands that look and change: each opens a connection, says one verb of the ledger, and shows the answer."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import trio

from pgnotifyq.cli.output import as_data, print_json, print_rows, shown, shown_whole
from pgnotifyq.cli.reach import answered
from pgnotifyq.embedded import resolve_dsn, stop_embedded
from pgnotifyq.ledger import jobs as ledger
from pgnotifyq.ledger.schema import Step, as_script
from pgnotifyq.migrating import check_schema, migrate
from pgnotifyq.model.errors import ConfigError, InvalidJob, InvalidPayload, JobNotFound
from pgnotifyq.model.job import Job, JobId, NewJob
from pgnotifyq.model.states import Status
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.sessions import For

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from psycopg.rows import TupleRow

    from pgnotifyq.embedded import Database
    from pgnotifyq.model.job import DeadLetter
    from pgnotifyq.wire.connection import Connection

REQUEUE_BATCH_MAX = 1000  # dead letters in one transaction: it holds their locks
LABELS = [*Status, "scheduled", "retrying", "stopping"]


async def find_database(dsn: str | None) -> Database:
    """Return the database to use, and say so when it is the embedded one."""
    database = await trio.to_thread.run_sync(resolve_dsn, dsn)
    if database.is_embedded:
        print(f"pgnotifyq: {database.source}", file=sys.stderr)
    return database


@asynccontextmanager
async def open_ledger(database: Database, schema: str) -> AsyncIterator[Connection[TupleRow]]:
    """Open a connection to a database whose schema fits this code; the embedded one is migrated first."""
    async with open_connection(database.dsn, application_name="pgnotifyq command", used_for=For.CALLER) as connection:
        if database.is_embedded:
            await connection.execute("set client_min_messages = warning")
            await migrate(connection, schema)
        await check_schema(connection, schema)
        yield connection


def run_with(dsn: str | None, schema: str, act: Callable[[Connection[TupleRow]], Awaitable[int]]) -> int:
    """Run one act on a connection to the ledger and return its exit code."""

    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> int:
            async with open_ledger(database, schema) as connection:
                return await act(connection)

        return await answered(database.dsn, on_ledger)

    return trio.run(main)


def run_demo(folder: Path | None, dsn: str | None) -> int:
    """Run the demo; an embedded server that it had to start is stopped again."""
    from pgnotifyq.cli.demo import demo

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"demo {str(folder)!r}: there is no such folder")

    async def main() -> int:
        database = await find_database(dsn)
        try:
            return await _unless_told_to_end(partial(answered, database.dsn, partial(demo, folder, dsn=database.dsn)))
        finally:
            if database.is_embedded and database.source.startswith("started"):
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(stop_embedded)

    return trio.run(main)


async def _unless_told_to_end(act: Callable[[], Awaitable[int]]) -> int:
    """Do something that has to be tidied up after; cancel it at a signal, and return what a shell calls that."""
    heard: list[int] = []
    code = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def heed() -> None:
                async for number in signals:
                    heard.append(number)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(heed)
            code = await act()
            nursery.cancel_scope.cancel()
    return 128 + heard[0] if heard else code


def run_migrate(dsn: str | None, schema: str, *, dry_run: bool) -> int:
    """Migrate, or print what would be run."""

    async def main() -> int:
        database = await find_database(dsn)

        async def on_database() -> list[Step]:
            async with open_connection(database.dsn, application_name="pgnotifyq migrate", used_for=For.CALLER) as connection:
                connection.add_notice_handler(lambda notice: _tell_notice(notice.message_primary or ""))
                return await migrate(connection, schema, dry_run=dry_run)

        done = await answered(database.dsn, on_database)
        if dry_run:
            print(as_script(done, schema) if done else f"-- schema {schema}: already up to date")
            return 0
        names = ", ".join(step.name for step in done)
        print(f"schema {schema}: {f'applied {names}' if done else 'already up to date'}")
        return 0

    return trio.run(main)


def run_enqueue(
    dsn: str | None,
    schema: str,
    fields: dict[str, Any],
    *,
    payload: str,
    at: str | None,
    org: str | None,
    as_json: bool,
) -> int:
    """Enqueue one job and print its id."""
    text = sys.stdin.read() if payload == "-" else payload
    try:
        fields["payload"] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is not JSON ({error}): quote it for the shell, as in '{{\"a\": 1}}'") from None
    if at is not None:
        try:
            fields["scheduled_at"] = datetime.fromisoformat(at)
        except ValueError:
            raise InvalidJob(f"--at {at!r} is not a time: use 2030-01-31T12:00:00+00:00") from None
    if org is not None:
        fields["org_id"] = org
    job = NewJob(**fields)

    async def act(connection: Connection[TupleRow]) -> int:
        job_id = await ask(connection, ledger.enqueue(schema, job))
        if as_json:
            print_json({"id": job_id})
        else:
            print(job_id)
        return 0

    return run_with(dsn, schema, act)


def run_jobs(
    dsn: str | None, schema: str, *, status: str | None, queue: str | None, job_type: str | None, limit: int, as_json: bool
) -> int:
    """List jobs."""
    if status is not None and status not in LABELS:
        raise InvalidJob(f"--status {status!r} is not one: use {', '.join(LABELS)}")

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, ledger.list_jobs(schema, status=status, queue=queue, job_type=job_type, limit=limit))
        columns = [
            "id",
            "queue_name",
            "job_type",
            "status",
            "priority",
            "attempts",
            "scheduled_at",
            "completed_at",
            "error_message",
        ]
        rows = [_shown_job(job) for job in found]
        in_terminal = None
        if not as_json:
            rows = [{**row, "when": row["completed_at"] or row["scheduled_at"]} for row in rows]
            in_terminal = ["id", "queue_name", "job_type", "status", "when", "attempts", "priority", "error_message"]
        print_rows(rows, columns, as_json=as_json, nothing="no jobs", in_terminal=in_terminal)
        return 0

    return run_with(dsn, schema, act)


def run_show(dsn: str | None, schema: str, job_id: str, *, as_json: bool) -> int:
    """Show one job or dead letter with its attempts."""
    key = _job_id(job_id)

    async def act(connection: Connection[TupleRow]) -> int:
        job: Job | DeadLetter | None = await ask(connection, ledger.get_job(schema, key))
        if job is None:
            job = await ask(connection, ledger.get_dead(schema, key))
        if job is None:
            raise JobNotFound(f"there is no job {key}: it never was, or was pruned after its retention")
        attempts = await ask(connection, ledger.history(schema, key))
        data = {**_shown_job(job), "history": [as_data(attempt) for attempt in attempts]}
        if as_json:
            print_json(data)
            return 0
        for name, value in data.items():
            if name != "history" and value is not None:
                print(f"{name:<22}{shown_whole(value, indent=22) if sys.stdout.isatty() else shown(value)}")
        print()
        print_rows(
            attempts, ["attempt", "outcome", "started_at", "ended_at", "error_message"], as_json=False, nothing="no attempts"
        )
        return 0

    return run_with(dsn, schema, act)


def run_cancel(dsn: str | None, schema: str, job_id: str, *, why: str | None, wait_seconds: float | None, as_json: bool) -> int:
    """Cancel a job, and wait for its handler if asked to."""
    from pgnotifyq.client import CancelOutcome, open_client

    key = _job_id(job_id)

    async def main() -> int:
        database = await find_database(dsn)

        async def on_ledger() -> CancelOutcome:
            async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
                return await client.cancel(key, wait_seconds=wait_seconds, why=why)

        outcome = await answered(database.dsn, on_ledger)
        if as_json:
            print_json({"id": key, "outcome": outcome})
        else:
            print(outcome)
        return 0 if outcome in {CancelOutcome.CANCELLED, CancelOutcome.STOPPING} else 1

    return trio.run(main)


def run_dead(
    dsn: str | None,
    schema: str,
    *,
    queue: str | None,
    job_type: str | None,
    limit: int,
    purge: str | None,
    older_than_seconds: float | None,
    as_json: bool,
) -> int:
    """List or purge dead letters."""
    key = None if purge is None else _job_id(purge)

    async def act(connection: Connection[TupleRow]) -> int:
        if key is not None or older_than_seconds is not None:
            purged = await ask(connection, ledger.purge_dead(schema, job_id=key, older_than_seconds=older_than_seconds))
            print_json({"purged": purged}) if as_json else print(f"purged {purged}")
            return 0 if purged or key is None else 1
        found = await ask(connection, ledger.list_dead(schema, queue=queue, job_type=job_type, limit=limit))
        columns = ["id", "queue_name", "job_type", "reason", "attempts", "died_at", "error_message"]
        in_terminal = ["id", "queue_name", "job_type", "reason", "died_at", "attempts", "error_message"]
        print_rows(found, columns, as_json=as_json, nothing="no dead letters", in_terminal=in_terminal)
        return 0

    return run_with(dsn, schema, act)


def run_requeue(
    dsn: str | None,
    schema: str,
    job_id: str | None,
    *,
    everything: bool,
    queue: str | None,
    job_type: str | None,
    as_json: bool,
) -> int:
    """Requeue one dead letter, or all of some kind."""
    if (job_id is None) == (not everything):
        raise InvalidJob("name one dead letter, or say --all: `python -m pgnotifyq requeue ID`")
    key = None if job_id is None else _job_id(job_id)

    async def act(connection: Connection[TupleRow]) -> int:
        if key is not None:
            if not await ask(connection, ledger.requeue(schema, key)):
                raise JobNotFound(f"{key} was not requeued: there is no such dead letter; list them with `dead`")
            done, left = 1, 0
        else:
            done, left = await _requeue_all(connection, schema, queue=queue, job_type=job_type)
        print_json({"requeued": done, "left": left}) if as_json else print(f"requeued {done}")
        if left:
            print(f"pgnotifyq: {left} stay dead letters: unfinished jobs hold their unique keys", file=sys.stderr)
        return 1 if left else 0

    return run_with(dsn, schema, act)


async def _requeue_all(
    connection: Connection[TupleRow], schema: str, *, queue: str | None, job_type: str | None
) -> tuple[int, int]:
    """Requeue the dead letters that there are now, batch after batch; return how many were, and how many were left.

    Bounded by their number, for some may die again meanwhile.
    """
    before = await ask(connection, ledger.count_dead(schema, queue=queue, job_type=job_type))
    done = 0
    while done < before:
        limit = min(before - done, REQUEUE_BATCH_MAX)
        restored = await ask(connection, ledger.requeue_all(schema, queue=queue, job_type=job_type, limit=limit))
        done += restored
        if restored < limit:
            break
    return done, before - done


def run_workers(dsn: str | None, schema: str, *, as_json: bool) -> int:
    """List workers."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, ledger.list_workers(schema))
        columns = ["worker_id", "host", "pid", "queues", "slots", "running", "state", "listening", "started_at", "last_beat_at"]
        print_rows(found, columns, as_json=as_json, nothing="no workers", in_terminal=columns[1:])  # no command takes the id
        return 0

    return run_with(dsn, schema, act)


def run_stats(dsn: str | None, schema: str, *, as_json: bool) -> int:
    """Count jobs by queue."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, ledger.stats(schema))
        columns = [
            "queue_name", "pending", "scheduled", "retrying", "running", "stopping", "completed", "cancelled", "dead",
            "oldest_due_seconds",
        ]  # fmt: skip
        print_rows(found, columns, as_json=as_json, nothing="no jobs")
        return 0

    return run_with(dsn, schema, act)


def _shown_job(job: Job | DeadLetter) -> dict[str, Any]:
    """Return a job as commands show it: its status is the label that the database gave it, by its own clock."""
    data: dict[str, Any] = as_data(job)
    data["status"] = data.pop("label") if isinstance(job, Job) else "dead"
    return data


def _job_id(text: str) -> JobId:
    try:
        return JobId(UUID(text))
    except ValueError:
        raise InvalidJob(f"{text!r} is not a job id: ids are uuids, as `python -m pgnotifyq jobs` prints them") from None


def _tell_notice(message: str) -> None:
    if "tenants are confined" in message:
        print(f"pgnotifyq: {message}", file=sys.stderr)
