"""Every door behind one face: `door.do("enqueue", "resize", {...})` from a thread that blocks, whatever the door runs on.

A door that cannot do a verb says `Lacks`: psql has no words for what is only looked at by a client,
and a connection of the caller's serves enqueues alone.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from anyio.from_thread import BlockingPortal, start_blocking_portal

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq.model.errors import InvalidJob, InvalidName, InvalidPayload, JobNotFound, PayloadTooLarge
from pgnotifyq.wire.connection import connect
from tests.doors.callers_support import KINDS, theirs

Do = Callable[..., Any]


class Lacks(Exception):  # a test's
    """The door has no such verb."""


class Door:
    """A way in, and how to ask by it."""

    def __init__(self, do: Do) -> None:
        self._do = do

    def do(self, verb: str, *arguments: Any, **named: Any) -> Any:
        """Ask a verb."""
        return self._do(verb, *arguments, **named)


@contextmanager
def open_awaited(backend: str, dsn: str, **options: Any) -> Iterator[Door]:
    """Open the client of an event loop, which runs in a thread of the test's."""
    open_client: Any = {"trio": pgnotifyq.open_client, "asyncio": pgnotifyq.aio.open_client}[backend]
    with (
        start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(open_client(dsn, **options)) as client,
    ):
        yield Door(lambda verb, *arguments, **named: portal.call(partial(getattr(client, verb), *arguments, **named)))


@contextmanager
def open_sync(dsn: str, **options: Any) -> Iterator[Door]:
    """Open the blocking client."""
    with pgnotifyq.sync.open_client(dsn, **options) as client:
        yield Door(lambda verb, *arguments, **named: getattr(client, verb)(*arguments, **named))


# psql: what README and sql/README.md show to those who have no client

REFUSED = "PNQ02"


class Psql:
    """The documented SQL, said by a plain user."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def do(self, verb: str, *arguments: Any, **named: Any) -> Any:
        """Say a verb in SQL; turn what the server says into what a client's caller is told."""
        say = getattr(self, f"_{verb}", None)
        if say is None or named.get("wait_seconds") is not None:
            raise Lacks(verb)
        try:
            return say(*arguments, **named)
        except psycopg.Error as error:
            if error.sqlstate == REFUSED:
                raise InvalidJob(str(error)) from error
            if error.sqlstate in {"22P02", "22P05"}:
                raise InvalidPayload(str(error)) from error
            raise

    def _value(self, statement: str, **named: Any) -> Any:
        row = self._connection.execute(statement.encode(), named).fetchone()
        return None if row is None else row[0]

    def _enqueue(
        self, job_type: str, payload: Any = None, *, queue: str | None = None, delay_seconds: float | None = None, **fields: Any
    ) -> Any:
        fields |= {"job_type": job_type} | ({} if queue is None else {"queue_name": queue})
        fields |= {} if payload is None else {"payload": json.dumps(payload)}
        said = [f"{name} => %({name})s" for name in fields]
        if delay_seconds is not None:
            said.append("scheduled_at => now() + make_interval(secs => %(delay_seconds)s)")
        return self._value(f"select pgnotifyq.enqueue({', '.join(said)})", delay_seconds=delay_seconds, **fields)

    def _enqueue_many(self, jobs: list[dict[str, Any]]) -> list[Any]:
        with self._connection.transaction():
            return [self._enqueue(**job) for job in jobs]

    def _cancel(self, job_id: Any, *, why: str | None = None, wait_seconds: None = None) -> Any:
        told = self._value("select pgnotifyq.cancel(job_id => %(job_id)s, why => %(why)s)", job_id=job_id, why=why)
        if told == "unknown":
            raise JobNotFound(str(job_id))
        return told

    def _requeue(self, job_id: Any) -> None:
        if not self._value("select pgnotifyq.requeue(%(job_id)s)", job_id=job_id):
            raise JobNotFound(str(job_id))

    def _requeue_all(self) -> Any:
        return self._value("select pgnotifyq.requeue_all(null, null, 1000)")

    def _purge_dead(self, *, job_id: Any) -> Any:
        self._connection.execute("delete from pgnotifyq.job_executions where job_id = %s", (job_id,))
        return self._connection.execute("delete from pgnotifyq.dead_letter_jobs where id = %s", (job_id,)).rowcount

    def _set_retention(self, queue: str, keep_seconds: float | None, *, ending: str | None = None) -> None:
        self._value(
            "select pgnotifyq.set_retention(%(queue)s, %(keep)s, %(ending)s)", queue=queue, keep=keep_seconds, ending=ending
        )


@contextmanager
def open_psql(dsn: str) -> Iterator[Psql]:
    """Open a bare connection."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Psql(connection)


# The caller's own connection, one a kind and a door that takes it


@contextmanager
def open_on_blocking(client: Callable[[str], Any], dsn: str) -> Iterator[Door]:
    """Enqueue on a psycopg connection, by some client, and commit."""
    with client(dsn) as door, psycopg.connect(dsn) as theirs:

        def do(verb: str, *arguments: Any, **named: Any) -> Any:
            if not verb.startswith("enqueue"):
                return door.do(verb, *arguments, **named)
            with theirs.transaction():
                return door.do(verb, *arguments, connection=theirs, **named)

        yield Door(do)


@contextmanager
def open_on_awaited(backend: str, dsn: str) -> Iterator[Door]:
    """Enqueue on a connection for the client's event loop: one of pgnotifyq's on trio, one of psycopg's on asyncio."""
    open_client: Any = {"trio": pgnotifyq.open_client, "asyncio": pgnotifyq.aio.open_client}[backend]
    connect_theirs: Any = {"trio": connect, "asyncio": psycopg.AsyncConnection.connect}[backend]

    async def do(client: Any, theirs: Any, verb: str, arguments: Any, named: Any) -> Any:
        if not verb.startswith("enqueue"):
            return await getattr(client, verb)(*arguments, **named)
        async with theirs.transaction():
            return await getattr(client, verb)(*arguments, connection=theirs, **named)

    with start_blocking_portal(backend) as portal, contextlib.ExitStack() as stack:
        client = stack.enter_context(portal.wrap_async_context_manager(open_client(dsn)))
        theirs = portal.call(partial(connect_theirs, dsn, autocommit=True))
        stack.callback(partial(_close, portal, theirs))
        yield Door(lambda verb, *arguments, **named: portal.call(do, client, theirs, verb, arguments, named))


def _close(portal: BlockingPortal, connection: Any) -> None:
    portal.call(connection.close)


@contextmanager
def open_on_callers(kind: str, dsn: str) -> Iterator[Door]:
    """Enqueue on a connection of a kind that some library has, by the client for it, and commit."""
    is_awaited = "async" in kind
    with start_blocking_portal("asyncio" if is_awaited else "trio") as portal, contextlib.ExitStack() as stack:
        mine = stack.enter_context(portal.wrap_async_context_manager(theirs(kind, dsn)))
        opened = pgnotifyq.aio.open_client(dsn) if is_awaited else None
        client: Any = stack.enter_context(
            pgnotifyq.sync.open_client(dsn) if opened is None else portal.wrap_async_context_manager(opened)
        )

        async def do(verb: str, arguments: Any, named: Any) -> Any:
            if not verb.startswith("enqueue"):
                return await _answer(getattr(client, verb)(*arguments, **named))
            async with mine.transaction():
                return await _answer(getattr(client, verb)(*arguments, connection=mine.connection, **named))

        yield Door(lambda verb, *arguments, **named: portal.call(do, verb, arguments, named))


async def _answer(told: Any) -> Any:
    return await told if inspect.isawaitable(told) else told


CLIENTS: dict[str, Callable[..., Any]] = {
    "trio": partial(open_awaited, "trio"),
    "asyncio": partial(open_awaited, "asyncio"),
    "sync": open_sync,
}
# What is a line already, and what is of one task alone, while each call here comes in a task of its own.
OTHERWISE = {"trio", "psycopg", "psycopg async", *(kind for kind in KINDS if "run_sync" in kind or "async scoped" in kind)}
# Each kind of connection that `connection=` takes (doors/callers.py) has its line here.
CALLERS: dict[str, Callable[..., Any]] = {
    "trio, in one of ours": partial(open_on_awaited, "trio"),
    "asyncio, in psycopg's": partial(open_on_awaited, "asyncio"),
    **{f"{name}, in a blocking psycopg's": partial(open_on_blocking, client) for name, client in CLIENTS.items()},
    **{f"on {kind}": partial(open_on_callers, kind) for kind in KINDS if kind not in OTHERWISE},
}
DOORS = {**CLIENTS, "psql": open_psql, **CALLERS}

# A plain user of SQL is told one thing where callers of a client are told what it is of.
COARSE: dict[type, type] = {InvalidName: InvalidJob, InvalidPayload: InvalidJob, PayloadTooLarge: InvalidJob}
