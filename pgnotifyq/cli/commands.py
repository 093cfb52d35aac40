"""The commands that look and change: each opens a connection, says one verb of the ledger, and shows the answer."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import trio

from pgnotifyq.cli.output import as_data, print_json, print_rows, shown
from pgnotifyq.embedded import resolve_dsn, stop_embedded
from pgnotifyq.ledger import jobs as ledger
from pgnotifyq.ledger.migrate import check_schema, migrate
from pgnotifyq.model.errors import InvalidJob, InvalidPayload, JobNotFound
from pgnotifyq.model.job import Job, JobId, NewJob
from pgnotifyq.model.states import Status, label
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from psycopg.rows import TupleRow

    from pgnotifyq.embedded import Database
    from pgnotifyq.model.job import DeadLetter
    from pgnotifyq.wire.connection import Connection

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
    async with open_connection(database.dsn, application_name="pgnotifyq command") as connection:
        if database.is_embedded:
            await connection.execute("set client_min_messages = warning")
            await migrate(connection, schema)
        await check_schema(connection, schema)
        yield connection


def run_with(dsn: str | None, schema: str, act: Callable[[Connection[TupleRow]], Awaitable[int]]) -> int:
    """Run one act on a connection to the ledger and return its exit code."""

    async def main() -> int:
        async with open_ledger(await find_database(dsn), schema) as connection:
            return await act(connection)

    return trio.run(main)


def run_demo(folder: Path | None, dsn: str | None) -> int:
    """Run the demo; an embedded server that it had to start is stopped again."""
    from pgnotifyq.cli.demo import demo

    async def main() -> int:
        database = await find_database(dsn)
        try:
            return await demo(folder, dsn=database.dsn)
        finally:
            if database.is_embedded and database.source.startswith("started"):
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(stop_embedded)

    return trio.run(main)


def run_migrate(dsn: str | None, schema: str, *, dry_run: bool) -> int:
    """Migrate, or print what would be run."""

    async def main() -> int:
        database = await find_database(dsn)
        async with open_connection(database.dsn, application_name="pgnotifyq migrate") as connection:
            connection.add_notice_handler(lambda notice: _tell_notice(notice.message_primary or ""))
            done = await migrate(connection, schema, dry_run=dry_run)
        if dry_run:
            for step in done:
                print(f"-- {step.name}\n{step.text.decode()}")
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
        job_id = await ledger.enqueue(connection, schema, job)
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
        found = await ledger.list_jobs(connection, schema, status=status, queue=queue, job_type=job_type, limit=limit)
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
        rows = [{**as_data(job), "status": _label(job)} for job in found]
        print_rows(rows, columns, as_json=as_json, nothing="no jobs")
        return 0

    return run_with(dsn, schema, act)


def run_show(dsn: str | None, schema: str, job_id: str, *, as_json: bool) -> int:
    """Show one job or dead letter with its attempts."""
    key = _job_id(job_id)

    async def act(connection: Connection[TupleRow]) -> int:
        job: Job | DeadLetter | None = await ledger.get_job(connection, schema, key)
        if job is None:
            job = await ledger.get_dead(connection, schema, key)
        if job is None:
            raise JobNotFound(f"there is no job {key}: it never was, or was pruned after its retention")
        attempts = await ledger.history(connection, schema, key)
        data = {**as_data(job), "history": [as_data(attempt) for attempt in attempts]}
        data["status"] = _label(job)
        if as_json:
            print_json(data)
            return 0
        for name, value in data.items():
            if name != "history" and value is not None:
                print(f"{name:<22}{shown(value)}")
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
        async with open_ledger(database, schema), open_client(database.dsn, schema=schema) as client:
            outcome = await client.cancel(key, wait_seconds=wait_seconds, why=why)
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
            purged = await ledger.purge_dead(connection, schema, job_id=key, older_than_seconds=older_than_seconds)
            print_json({"purged": purged}) if as_json else print(f"purged {purged}")
            return 0 if purged or key is None else 1
        found = await ledger.list_dead(connection, schema, queue=queue, job_type=job_type, limit=limit)
        columns = ["id", "queue_name", "job_type", "reason", "attempts", "died_at", "error_message"]
        print_rows(found, columns, as_json=as_json, nothing="no dead letters")
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
        letters = [key] if key is not None else []
        if everything:
            found = await ledger.list_dead(connection, schema, queue=queue, job_type=job_type, limit=2**31 - 1)
            letters = [letter.id for letter in found]
        done = []
        for letter in letters:
            try:
                if await ledger.requeue(connection, schema, letter):
                    done.append(letter)
            except psycopg.errors.UniqueViolation:
                print(f"pgnotifyq: {letter} stays: an unfinished job holds its unique key", file=sys.stderr)
        if key is not None and not done:
            raise JobNotFound(f"{key} was not requeued: there is no such dead letter, or its unique key is taken")
        print_json({"requeued": done}) if as_json else print(f"requeued {len(done)}")
        return 0 if len(done) == len(letters) else 1

    return run_with(dsn, schema, act)


def run_workers(dsn: str | None, schema: str, *, as_json: bool) -> int:
    """List workers."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ledger.list_workers(connection, schema)
        columns = ["worker_id", "host", "pid", "queues", "slots", "running", "state", "listening", "started_at", "last_beat_at"]
        print_rows(found, columns, as_json=as_json, nothing="no workers")
        return 0

    return run_with(dsn, schema, act)


def run_stats(dsn: str | None, schema: str, *, as_json: bool) -> int:
    """Count jobs by queue."""

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ledger.stats(connection, schema)
        columns = [
            "queue_name", "pending", "scheduled", "retrying", "running", "stopping", "completed", "cancelled", "dead",
            "oldest_due_seconds",
        ]  # fmt: skip
        print_rows(found, columns, as_json=as_json, nothing="no jobs")
        return 0

    return run_with(dsn, schema, act)


def _label(job: Job | DeadLetter) -> str:
    if not isinstance(job, Job):
        return "dead"
    is_due = job.scheduled_at <= datetime.now(UTC)
    return label(job.status, is_held=job.current_execution_id is not None, attempts=job.attempts, is_due=is_due)


def _job_id(text: str) -> JobId:
    try:
        return JobId(UUID(text))
    except ValueError:
        raise InvalidJob(f"{text!r} is not a job id: ids are uuids, as `python -m pgnotifyq jobs` prints them") from None


def _tell_notice(message: str) -> None:
    if "tenants are confined" in message:
        print(f"pgnotifyq: {message}", file=sys.stderr)
