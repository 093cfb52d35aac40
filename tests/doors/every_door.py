"""Every door behind one face: `door.do("enqueue", "resize", {...})` from a thread that blocks, whatever the door runs on.

A door that cannot do a verb says `Lacks`: psql has no words for what is only looked at by a client,
and a connection of the caller's serves enqueues alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import psycopg
from anyio.from_thread import start_blocking_portal

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq.model.errors import InvalidJob, InvalidName, InvalidPayload, JobNotFound, PayloadTooLarge
from tests.doors.callers_support import KINDS

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
        fields |= {} if "headers" not in fields else {"headers": json.dumps(fields["headers"])}
        if (unique := fields.pop("unique", None)) is not None:
            words = attrs.asdict(unique, filter=lambda _, value: value is not None)
            names = {"key": "unique_key", "while_": "unique_while"}
            fields |= {
                names.get(name, f"unique_{name}"): list(value) if isinstance(value, tuple) else value
                for name, value in words.items()
            }
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

    def _edit(self, job_id: Any, *, payload: Any = None, queue: str | None = None, **fields: Any) -> Any:
        fields |= {} if payload is None else {"payload": json.dumps(payload)}
        fields |= {} if queue is None else {"queue_name": queue}
        said = [f"{name} => %({name})s" for name in fields]
        told = self._value(f"select pgnotifyq.edit(%(job_id)s, {', '.join(said)})", job_id=job_id, **fields)
        if told == "unknown":
            raise JobNotFound(str(job_id))
        return told == "edited"

    def _requeue(self, job_id: Any) -> None:
        if not self._value("select pgnotifyq.requeue(%(job_id)s)", job_id=job_id):
            raise JobNotFound(str(job_id))

    def _requeue_all(self) -> Any:
        return self._value("select pgnotifyq.requeue_all(null, null, 1000)")

    def _purge_dead(self, *, job_id: Any) -> Any:
        self._connection.execute("delete from pgnotifyq.job_executions where job_id = %s", (job_id,))
        return self._connection.execute("delete from pgnotifyq.dead_letter_jobs where id = %s", (job_id,)).rowcount

    def _set_retention(
        self, queue: str, keep_seconds: float | None = None, *, ending: str | None = None,
        payload_seconds: float | None = None, result_seconds: float | None = None,
    ) -> None:  # fmt: skip
        self._value(
            "select pgnotifyq.set_retention(%(queue)s, %(keep)s, %(ending)s, %(payload)s, %(result)s)",
            queue=queue, keep=keep_seconds, ending=ending, payload=payload_seconds, result=result_seconds,
        )  # fmt: skip

    def _pause(
        self, queue: str | None = None, *, job_type: str | None = None, everything: bool = False,
        why: str | None = None, who: str | None = None,
    ) -> Any:  # fmt: skip
        return self._value(
            "select pgnotifyq.pause(%(queue)s, job_type => %(type)s, everything => %(all)s, why => %(why)s, who => %(who)s)",
            queue=queue, type=job_type, all=everything, why=why, who=who,
        )  # fmt: skip

    def _resume(self, queue: str | None = None, *, job_type: str | None = None, everything: bool = False) -> Any:
        statement = "select pgnotifyq.resume(%(queue)s, job_type => %(type)s, everything => %(all)s)"
        return self._value(statement, queue=queue, type=job_type, all=everything)


@contextmanager
def open_psql(dsn: str) -> Iterator[Psql]:
    """Open a bare connection."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield Psql(connection)


# The caller's own connection, of each kind that `connection=` takes


@contextmanager
def open_on(kind: str, client_name: str, dsn: str) -> Iterator[Door]:
    """Enqueue in transactions of a caller's connection, through some client, and commit them."""
    backend = "asyncio" if "async" in kind else "trio"
    open_client: Any = {"trio": pgnotifyq.open_client, "asyncio": pgnotifyq.aio.open_client}[backend]

    async def do(client: Any, theirs: Any, verb: str, arguments: Any, named: Any) -> Any:
        if not verb.startswith("enqueue"):
            answer = getattr(client, verb)(*arguments, **named)
            return await answer if hasattr(answer, "__await__") else answer
        async with theirs.transaction():
            answer = getattr(client, verb)(*arguments, connection=theirs.connection, **named)
            return await answer if hasattr(answer, "__await__") else answer

    with start_blocking_portal(backend) as portal, contextlib.ExitStack() as stack:
        if client_name == "sync":
            client = stack.enter_context(pgnotifyq.sync.open_client(dsn))
        else:
            client = stack.enter_context(portal.wrap_async_context_manager(open_client(dsn)))
        theirs = stack.enter_context(portal.wrap_async_context_manager(KINDS[kind](dsn, autocommit=False)))
        yield Door(lambda verb, *arguments, **named: portal.call(do, client, theirs, verb, arguments, named))


CLIENTS: dict[str, Callable[..., Any]] = {
    "trio": partial(open_awaited, "trio"),
    "asyncio": partial(open_awaited, "asyncio"),
    "sync": open_sync,
}
# Scoped sessions are a task's, and each call here is a task of its own; `run_sync` has no client in it.
_AWAITED = [kind for kind in KINDS if "async" in kind and "scoped" not in kind and "run_sync" not in kind]
_BLOCKING = [kind for kind in KINDS if "async" not in kind and kind != "trio"]
CALLERS: dict[str, Callable[..., Any]] = {
    "trio, by trio": partial(open_on, "trio", "trio"),
    **{f"{kind}, by asyncio": partial(open_on, kind, "asyncio") for kind in _AWAITED},
    **{f"{kind}, by {client}": partial(open_on, kind, client) for kind in _BLOCKING for client in ("trio", "sync")},
}
DOORS = {**CLIENTS, "psql": open_psql, **CALLERS}

# A plain user of SQL is told one thing where callers of a client are told what it is of.
COARSE: dict[type, type] = {InvalidName: InvalidJob, InvalidPayload: InvalidJob, PayloadTooLarge: InvalidJob}
