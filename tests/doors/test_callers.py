"""A connection of the caller's own, of each kind, from the real library."""

from __future__ import annotations

import functools
import queue
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

import pgnotifyq
from pgnotifyq.ledger import bulk, enqueue
from pgnotifyq.model.errors import InvalidName, InvalidPayload, PayloadTooLarge, TransactionAborted
from pgnotifyq.model.events import EventName
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.wire.words import sqlstate_of
from tests.doors.callers_support import KINDS, Theirs, Undo, drive, theirs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

SCHEMA = "pgnotifyq"
PATIENCE_SECONDS = 60
MANY = 2 * enqueue.ONE_STATEMENT_JOBS_MAX + 1  # in several statements

every_kind = pytest.mark.parametrize("kind", KINDS)


def one(**fields: Any) -> Any:
    return enqueue.enqueue(SCHEMA, NewJob(job_type="noop", **fields))


def ids_in(dsn: str) -> set[UUID]:
    """Return the jobs that others can see."""
    with psycopg.connect(dsn, autocommit=True) as session:
        return {job_id for (job_id,) in session.execute("select id from pgnotifyq.jobs")}


async def enqueue_some(mine: Theirs) -> list[UUID]:
    """Enqueue alone, with a unique key, together, and in several statements."""
    ids = [await mine.ask(one(payload={"text": 'a "b", {c} \\ % é 🙂'})), await mine.ask(one(unique_key="k"))]
    ids += await mine.ask(bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop"), NewJob(job_type="noop", unique_key="l")]))
    ids += await mine.ask(
        bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop", unique_key=None if n % 2 else f"m{n}") for n in range(MANY)])
    )
    assert len(set(ids)) == len(ids)
    return ids


@every_kind
def test_rolled_back(kind: str, dsn: str) -> None:
    """No job is left, however it was enqueued."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine:
            with suppress(Undo):
                async with mine.transaction():
                    ids = await enqueue_some(mine)
                    assert await mine.ask(one(unique_key="k")) == ids[1]
                    raise Undo
            assert ids_in(dsn) == set()

    drive(kind, story)


@every_kind
def test_committed(kind: str, dsn: str) -> None:
    """The jobs exist, but not before; and a worker that sleeps is woken."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine:
            async with mine.transaction():
                ids = await enqueue_some(mine)
                assert ids_in(dsn) == set()
            assert ids_in(dsn) == set(ids)
            async with mine.transaction():
                await mine.execute("delete from pgnotifyq.jobs")
            with worker(dsn) as ran:
                async with mine.transaction():
                    await mine.ask(one(payload={"n": 1}))
                assert ran.get(timeout=PATIENCE_SECONDS) == {"n": 1}

    drive(kind, story)


@contextmanager
def worker(dsn: str) -> Iterator[queue.Queue[Any]]:
    """Run a worker in a thread, with no look that no notification asked for; yield the payloads of what it ran."""
    registry = JobRegistry()
    ran: queue.Queue[Any] = queue.Queue()
    hears = threading.Event()
    handles: list[pgnotifyq.WorkerHandle] = []

    @registry.handler("noop")
    async def noop(payload: dict[str, Any]) -> None:
        ran.put(payload)

    def note(event: pgnotifyq.Event) -> None:
        if event.name is EventName.LISTENER_CONNECTED:
            hears.set()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            run = functools.partial(pgnotifyq.run_worker, registry, dsn, backstop_seconds=3600.0, on_event=note)
            handles.append(await nursery.start(run))
            token.append(trio.lowlevel.current_trio_token())

    token: list[trio.lowlevel.TrioToken] = []
    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert hears.wait(PATIENCE_SECONDS)
        yield ran
    finally:
        token[0].run_sync_soon(handles[0].drain)
        thread.join(PATIENCE_SECONDS)


@every_kind
def test_savepoint_rolled_back(kind: str, dsn: str) -> None:
    """It takes its jobs along, and no others."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine:
            async with mine.transaction():
                kept = [await mine.ask(one())]
                with suppress(Undo):
                    async with mine.savepoint():
                        await enqueue_some(mine)
                        raise Undo
                kept.append(await mine.ask(one()))
            assert ids_in(dsn) == set(kept)

    drive(kind, story)


REFUSED: list[tuple[type[Exception], dict[str, Any]]] = [
    (InvalidPayload, {"payload": "\0"}),
    (PayloadTooLarge, {"payload": "x" * 2**20}),
    (InvalidName, {"queue_name": "no queue"}),
]


@every_kind
def test_refused(kind: str, dsn: str) -> None:
    """A job that is refused, alone or among many, leaves the transaction usable, and nothing of it or its batch is enqueued."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine:
            async with mine.transaction():
                kept = [await mine.ask(one())]
                for error, fields in REFUSED:
                    with pytest.raises(error):
                        await mine.ask(one(**fields))
                    for count in (1, MANY):
                        with pytest.raises(error):
                            await mine.ask(
                                bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * count + [NewJob(job_type="noop", **fields)])
                            )
                kept.append(await mine.ask(one()))
            assert ids_in(dsn) == set(kept)

    drive(kind, story)


@every_kind
def test_aborted(kind: str, dsn: str) -> None:
    """A transaction that an error has aborted is told as that, and can be gone on with once it was rolled back."""

    async def story() -> None:
        async with theirs(kind, dsn) as mine:
            with suppress(Undo):
                async with mine.transaction():
                    await mine.ask(one())
                    with pytest.raises(Exception) as failed:  # each library's own
                        await mine.execute("select 1 / 0")
                    assert sqlstate_of(failed.value) == "22012"
                    for verb in (one(), one(unique_key="k"), bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY)):
                        with pytest.raises(TransactionAborted, match="roll it back"):
                            await mine.ask(verb)
                    raise Undo
            async with mine.transaction():
                kept = await mine.ask(one())
            assert ids_in(dsn) == {kept}

    drive(kind, story)


@every_kind
def test_refused_by_the_database_in_a_savepoint(kind: str, dsn: str) -> None:
    """The transaction goes on with what else it has; without the savepoint it is aborted. A job that is taken stays."""

    async def story() -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute(REFUSING)
        last = NewJob(job_type="last")
        refused = [enqueue.enqueue(SCHEMA, last), bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY + [last])]
        async with theirs(kind, dsn) as mine:
            kept = []
            async with mine.transaction():
                for verb in refused:
                    with pytest.raises(Exception, match="not this one") as said:
                        await mine.ask(verb, savepoint=True)
                    assert sqlstate_of(said.value) == "P0001"
                    kept.append(await mine.ask(one(), savepoint=True))
            assert ids_in(dsn) == set(kept)
            with suppress(Undo):
                async with mine.transaction():
                    kept_not = await mine.ask(one(), savepoint=True)
                    assert kept_not not in kept
                    with pytest.raises(Exception, match="not this one"):
                        await mine.ask(refused[0])
                    with pytest.raises(TransactionAborted):
                        await mine.ask(one(), savepoint=True)
                    raise Undo
            assert ids_in(dsn) == set(kept)
        async with theirs(kind, dsn, autocommit=True) as mine:
            kept.append(await mine.ask(one(), savepoint=True))
            assert ids_in(dsn) == set(kept)

    drive(kind, story)


REFUSING = """
    create function refuse() returns trigger language plpgsql as $$begin raise 'not this one'; end$$;
    create trigger refuse before insert on pgnotifyq.jobs for each row when (new.job_type = 'last') execute function refuse()
"""


@every_kind
def test_without_a_transaction(kind: str, dsn: str) -> None:
    """In autocommit the jobs exist at once, and a batch is whole."""

    async def story() -> None:
        async with theirs(kind, dsn, autocommit=True) as mine:
            ids = await enqueue_some(mine)
            assert ids_in(dsn) == set(ids)
            with psycopg.connect(dsn, autocommit=True) as session:
                session.execute(REFUSING)
            with pytest.raises(Exception, match="not this one"):
                await mine.ask(bulk.enqueue_many(SCHEMA, [NewJob(job_type="noop")] * MANY + [NewJob(job_type="last")]))
            assert ids_in(dsn) == set(ids)
            ids.append(await mine.ask(one()))
            assert ids_in(dsn) == set(ids)

    drive(kind, story)
