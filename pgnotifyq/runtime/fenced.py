"""Fenced transactions through a library of the handler's: an ORM, or a driver's connection.

`ctx.transaction()` gives a connection of the worker's. A program's models in SQLAlchemy or Django
cannot be used there. Here the library begins its transaction and commits it, in its own block, and
the fence goes through the library's connection. The first statement binds the transaction to the
execution. The last one asks whether the execution still holds the job, and writes the completion.

Rules:

- The commit itself asks whether the execution still holds the job (migration 0010). So it does not
  matter which code says `commit`, or how.
- The fence has to be first. A connection that is in a transaction already is refused, and so is
  one that commits each statement by itself.
- After a commit by hand nothing is fenced, so the next statement is refused.
- The worker's loop is trio's. A connection that blocks belongs in a thread, and one that asyncio
  drives in a loop of asyncio's. Elsewhere it is refused, before anything is sent.
- A library that is not installed is not imported.
"""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import attrs
import trio.lowlevel

from pgnotifyq.ledger import fences
from pgnotifyq.model.errors import TransactionRefused
from pgnotifyq.runtime.asyncio_loop import LoopThread
from pgnotifyq.runtime.transactions import block_of, noted, refusal, told
from pgnotifyq.wire.callers import ask_on, ask_on_blocking, driver_of, is_in_transaction
from pgnotifyq.wire.guards import guarded
from pgnotifyq.wire.kinds import Kind, kind_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from pgnotifyq.ledger.ask import Ask, Verb
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.model.outcome import Outcome
    from pgnotifyq.runtime.running import Running

T = TypeVar("T")


class Fence(Protocol):
    """A transaction's first and last statement, and what holds around it."""

    @property
    def running(self) -> Running:
        """The execution."""

    @property
    def commits(self) -> bool:
        """Whether the block's end is to be a commit. In a program's test it need not be one."""

    @property
    def calls_here(self) -> bool:
        """Whether blocking code is called where trio runs: in the thread of a program's test."""

    def first(self) -> Verb[str]:
        """Bind the transaction to the execution; return the transaction's id."""

    def last(self, begun_in: str) -> Verb[str]:
        """Tell whether the transaction may commit, `held`; if so, write the outcome."""

    def around(self) -> AbstractContextManager[None]:
        """Return a block for around the whole; it ends without an error once all is committed."""


@attrs.frozen(eq=False, kw_only=True)
class WorkerFence:
    """The fence of an execution that a worker runs."""

    running: Running
    schema: str
    worker_id: WorkerId
    outcome: Outcome | None
    commits: bool = True
    calls_here: bool = False

    def first(self) -> Verb[str]:
        """Bind the transaction to the execution; return the transaction's id."""
        return fences.fence_own(self.schema, self.running.lease)

    def last(self, begun_in: str) -> Verb[str]:
        """Tell whether the transaction may commit, `held`; if so, write the outcome."""
        return fences.meet_own_fence(
            self.schema, self.running.lease, begun_in=begun_in, worker_id=self.worker_id, outcome=self.outcome, save=self.save()
        )

    def save(self) -> Ask[bool] | None:
        """Return what keeps a state that the handler has saved in the block."""
        block = block_of(self.running)
        return None if block is None else block.saves(self.schema)

    @contextmanager
    def around(self) -> Iterator[None]:
        """Refuse a block within a block; report a refused commit; note that the job is settled."""
        completes = self.outcome is not None
        with noted(self.running, completes=completes), told(self.running):
            yield
            if completes:
                self.running.is_settled = True


class FencedBlock(Generic[T]):
    """The block of a fenced transaction, for `with` or for `async with`.

    A session or a connection that blocks takes `with`, and one that is awaited takes `async with`.
    The other form is refused.
    """

    def __init__(
        self,
        blocking: Callable[[], AbstractContextManager[T]],
        awaited: Callable[[], AbstractAsyncContextManager[T]],
    ) -> None:
        self._blocking = blocking
        self._awaited = awaited
        self._entered: Any = None

    def __enter__(self) -> T:
        self._entered = block = self._blocking()
        return block.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._entered.__exit__(kind, error, traceback)

    async def __aenter__(self) -> T:
        self._entered = block = self._awaited()
        return await block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._entered.__aexit__(kind, error, traceback)


# SQLAlchemy


def session_block(fence: Fence, factory: Callable[[], T]) -> FencedBlock[T]:
    """Return the block of a session of SQLAlchemy's that `factory` makes."""
    return FencedBlock(lambda: _session(fence, factory), lambda: _session_awaited(fence, factory))


@contextmanager
def _session(fence: Fence, factory: Callable[[], Any]) -> Iterator[Any]:
    with fence.around():
        made = _make(factory)
        _check_waits(fence, _kind_of_session(made), blocking=True)
        with made as session:
            _check_session_is_free(fence, session)
            with session.begin():
                begun_in = ask_on_blocking(session, fence.first())
                with _watched(fence, session, session.connection()) as watch:
                    yield session
                    watch()
                    session.flush()
                _check_held(fence, ask_on_blocking(session, fence.last(begun_in)))


@asynccontextmanager
async def _session_awaited(fence: Fence, factory: Callable[[], Any]) -> AsyncIterator[Any]:
    with fence.around():
        made = _make(factory)
        _check_waits(fence, _kind_of_session(made), blocking=False)
        async with made as session:
            _check_session_is_free(fence, session.sync_session)
            async with session.begin():
                begun_in = await ask_on(session, fence.first())
                with _watched(fence, session.sync_session, (await session.connection()).sync_connection) as watch:
                    yield session
                    watch()
                    await session.flush()
                _check_held(fence, await ask_on(session, fence.last(begun_in)))


def _name_of(given: object) -> str:
    return f"{type(given).__module__}.{type(given).__qualname__}"


def _make(factory: Any) -> Any:
    if not callable(factory):
        raise TypeError(
            f"ctx.session() takes what makes a session of SQLAlchemy's, as sessionmaker(engine) does, and this is a {_name_of(factory)}"
        )
    return factory()


def _kind_of_session(made: object) -> Kind:
    kind = kind_of(made)
    if kind not in {Kind.SQLALCHEMY_SESSION, Kind.SQLALCHEMY_ASYNC_SESSION}:
        raise TypeError(
            f"ctx.session() takes what makes a session of SQLAlchemy's, and this made {kind.value}: see ctx.connection()"
        )
    return kind


def _check_session_is_free(fence: Fence, session: Any) -> None:
    in_transaction = getattr(session.bind, "in_transaction", None)  # of a connection; engines have none
    if fence.commits and (session.in_transaction() or (in_transaction is not None and in_transaction())):
        raise TransactionRefused(_NOT_FIRST.format("the session"))


@contextmanager
def _watched(fence: Fence, session: Any, connection: Any) -> Iterator[Callable[[], None]]:
    """Let nothing be sent through a session once the transaction that was begun is over.

    Yields a function that checks whether the transaction is over.
    """
    from sqlalchemy import event
    from sqlalchemy.exc import InvalidRequestError

    begun, driver = session.get_transaction(), driver_of(connection)
    _check_began(driver)

    def check(*_: object) -> None:
        if session.get_transaction() is not begun or not is_in_transaction(driver):
            raise refusal(fence.running, "left")

    event.listen(connection, "before_cursor_execute", check)
    try:
        yield check
    except InvalidRequestError as error:
        if session.get_transaction() is begun:
            raise
        raise refusal(fence.running, "left") from error  # SQLAlchemy has refused a statement after a commit by hand
    finally:
        event.remove(connection, "before_cursor_execute", check)


# Django


@contextmanager
def django_block(fence: Fence, alias: str) -> Iterator[Any]:
    """Open a transaction of Django's, on its connection of this alias."""
    from django.db import connections, transaction

    with fence.around():
        connection = connections[alias]
        _check_waits(fence, kind_of(connection), blocking=True)
        # As Django does around each request: drop a connection that has died, or is older than
        # CONN_MAX_AGE. Not in an open transaction, as in a test: Django would drop that connection,
        # too.
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        try:
            if fence.commits and not connection.in_atomic_block and not connection.get_autocommit():
                raise TransactionRefused(
                    f"Django's connection {alias!r} has its autocommit off, so `atomic` does not commit: turn it on"
                )
            with ExitStack() as stack:
                try:
                    stack.enter_context(transaction.atomic(using=alias, durable=fence.commits))
                except RuntimeError as error:
                    raise TransactionRefused(_NOT_FIRST.format(f"Django's connection {alias!r}")) from error
                begun_in = ask_on_blocking(connection, fence.first())
                driver = driver_of(connection)

                def check(execute: Any, *arguments: Any) -> Any:
                    _check_not_left(fence, driver)
                    return execute(*arguments)

                with connection.execute_wrapper(check):
                    yield connection
                _check_not_left(fence, driver)
                _check_held(fence, ask_on_blocking(connection, fence.last(begun_in)))
        finally:
            if not connection.in_atomic_block:
                connection.close_if_unusable_or_obsolete()


# A driver's connection


def connection_block(fence: Fence, given: Any) -> FencedBlock[Any]:
    """Return the block of a driver's connection, or of one that its pool lends."""
    return FencedBlock(lambda: _connection(fence, given), lambda: _connection_awaited(fence, given))


@contextmanager
def _connection(fence: Fence, given: Any) -> Iterator[Any]:
    _check_waits(fence, _kind_of_driver(given), blocking=True)
    with fence.around(), given.connection() if _is_pool(given) else nullcontext(given) as connection:
        _check_connection_is_free(fence, connection)
        with connection.transaction():
            begun_in = ask_on_blocking(connection, fence.first())
            with _guarded(fence, connection):
                yield connection
            _check_held(fence, ask_on_blocking(connection, fence.last(begun_in)))


@asynccontextmanager
async def _connection_awaited(fence: Fence, given: Any) -> AsyncIterator[Any]:
    kind = _kind_of_driver(given)
    _check_waits(fence, kind, blocking=False)
    lend = nullcontext(given) if not _is_pool(given) else given.acquire() if kind is Kind.ASYNCPG else given.connection()
    with fence.around():
        async with lend as connection:
            _check_connection_is_free(fence, connection)
            async with connection.transaction():
                begun_in = await ask_on(connection, fence.first())
                with _guarded(fence, connection):
                    yield connection
                _check_held(fence, await ask_on(connection, fence.last(begun_in)))


# Where a library shows its pools, and which kind of connection each pool lends.
_POOLS = {
    ("psycopg_pool", "ConnectionPool"): Kind.PSYCOPG,
    ("psycopg_pool", "AsyncConnectionPool"): Kind.PSYCOPG_ASYNC,
    ("asyncpg.pool", "Pool"): Kind.ASYNCPG,
}
_DRIVERS = frozenset({Kind.TRIO, Kind.PSYCOPG, Kind.PSYCOPG_ASYNC, Kind.ASYNCPG})


def _is_pool(given: object) -> bool:
    return _kind_of_pool(given) is not None


def _kind_of_pool(given: object) -> Kind | None:
    for (module, name), kind in _POOLS.items():
        shown = getattr(sys.modules.get(module), name, None)
        if shown is not None and isinstance(given, shown):
            return kind
    return None


def _kind_of_driver(given: object) -> Kind:
    if (kind := _kind_of_pool(given)) is not None:
        return kind
    try:
        kind = kind_of(given)
    except TypeError:
        name = _name_of(given)
    else:
        if kind in _DRIVERS:
            return kind
        name = kind.value
    raise TypeError(
        f"ctx.connection() takes a connection or a pool of psycopg's or asyncpg's, and this is a {name}: there are ctx.session(factory)"
        " for SQLAlchemy and ctx.django() for Django"
    )


def _check_connection_is_free(fence: Fence, connection: Any) -> None:
    if fence.commits and is_in_transaction(connection):
        raise TransactionRefused(_NOT_FIRST.format("the connection"))


@contextmanager
def _guarded(fence: Fence, connection: Any) -> Iterator[None]:
    """Let nothing be sent once the transaction that was begun is over."""

    def check() -> None:
        _check_not_left(fence, connection)

    with guarded(connection, check):
        yield
        check()


# For all


_NOT_FIRST = "{} is in a transaction already, and a job's transaction begins with its fence: commit or roll back first, or give one that is free"


def _check_waits(fence: Fence, kind: Kind, *, blocking: bool) -> None:
    """Refuse a session or a connection that cannot be waited for here.

    Raises:
        TypeError: the message says what to use.
    """
    on_trio = trio.lowlevel.in_trio_run()
    if kind.is_blocking is not blocking:
        how = "is not awaited: use `with`" if kind.is_blocking else "is awaited: use `async with`"
        raise TypeError(f"{kind.value} {how}")
    if kind is Kind.TRIO:
        if not on_trio:
            raise TypeError(f"{kind.value} is driven by trio, and this is not: use it in a handler that is an async function")
    elif on_trio and not (blocking and fence.calls_here):
        why = "would hold up the worker" if blocking else "is driven by asyncio, and an async handler by trio"
        raise TypeError(
            f"{kind.value} {why}: use ctx.transaction(), or write the handler as a plain function, which runs in a thread"
            + ("" if blocking else ', with the blocking sort of it, or run the handler on asyncio, runs_in="asyncio"')
        )
    elif blocking and not fence.calls_here and isinstance(threading.current_thread(), LoopThread):
        raise TypeError(
            f"{kind.value} would hold up the loop that all handlers on asyncio share: use `async with` and the async sort of it, or write"
            " the handler as a plain function, which runs in a thread"
        )


def _check_began(driver: Any) -> None:
    if not is_in_transaction(driver):
        raise TransactionRefused("the connection commits each statement by itself (AUTOCOMMIT): give one that has transactions")


def _check_not_left(fence: Fence, driver: Any) -> None:
    if not is_in_transaction(driver):
        raise refusal(fence.running, "left")


def _check_held(fence: Fence, held: str) -> None:
    if held != "held":
        raise refusal(fence.running, held)
