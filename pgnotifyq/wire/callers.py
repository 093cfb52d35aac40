"""A connection of the caller's own: a verb of the ledger, asked in a transaction that is not ours.

What the caller has may be a connection of a driver (psycopg's two, asyncpg's, psycopg2's), or
what a library holds one in (SQLAlchemy's connections and sessions, Django's `connection`).
`kind_of` tells which. Nothing is imported to tell it: an object of a library exists only where
that was imported.

The rules of this file:

- What holds a connection is asked for it in the way in which it would begin its own transaction.
  Then the driver is asked. So the statement is in the transaction that the library will commit.
- Nothing of the caller's is committed, rolled back, or changed: no codec, no row factory, no
  adapter, no setting. asyncpg keeps the statement in its cache, as any other.
- A job is checked before anything is sent, so one that is refused costs the transaction nothing.
  Only a database in another encoding than UTF-8 can lack a character of it; there a savepoint goes
  around. Elsewhere it would cost two round trips a job, and subtransactions are no good thing to
  have by the hundred.
- Errors of other drivers are put into psycopg's words for the verb to judge. If the verb has
  nothing to say of it, the driver's own error is raised.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager, suppress
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, assert_never
from uuid import UUID

import attrs
import psycopg
from psycopg import errors, pq

from pgnotifyq.ledger.ask import Aside, Ask, Copy, Plan, Script, array
from pgnotifyq.model.errors import TransactionAborted
from pgnotifyq.wire.asking import ask, ask_blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgnotifyq.ledger.ask import Answer, Step, Steps, Verb

T = TypeVar("T")


class ClosableConnection(Protocol):
    """A connection or session as its library types it: all have a `close`. Nobody here calls it."""

    @property
    def close(self) -> Any:
        """What closes it."""


class ProxiedConnection(Protocol):
    """What stands for a connection and hands on what it is asked: Django's, asyncpg's pool's."""

    def __getattr__(self, name: str, /) -> Any:
        """Return what the connection has by this name."""


# What `connection=` takes, for a type checker. It needs none of the libraries, and refuses an
# address. `kind_of` knows which are meant.
CallersConnection: TypeAlias = ClosableConnection | ProxiedConnection


class Kind(StrEnum):
    """What a caller has, by the library's own name for it."""

    TRIO = "pgnotifyq.Connection"
    PSYCOPG = "psycopg.Connection"
    PSYCOPG_ASYNC = "psycopg.AsyncConnection"
    PSYCOPG2 = "psycopg2's connection"
    ASYNCPG = "asyncpg's connection"
    SQLALCHEMY_CONNECTION = "SQLAlchemy's Connection"
    SQLALCHEMY_SESSION = "SQLAlchemy's Session"
    SQLALCHEMY_ASYNC_CONNECTION = "SQLAlchemy's AsyncConnection"
    SQLALCHEMY_ASYNC_SESSION = "SQLAlchemy's AsyncSession"
    DJANGO = "django.db.connection"

    @property
    def is_blocking(self) -> bool:
        """Whether it waits by holding up its thread."""
        return self in _BLOCKING


_BLOCKING = frozenset({Kind.PSYCOPG, Kind.PSYCOPG2, Kind.SQLALCHEMY_CONNECTION, Kind.SQLALCHEMY_SESSION, Kind.DJANGO})
# Where a library shows each of them. Where its module is not imported there is no such object.
_SHOWN: dict[tuple[str, str], Kind] = {
    ("pgnotifyq.wire.connection", "Connection"): Kind.TRIO,  # before the one that it is made of
    ("psycopg", "Connection"): Kind.PSYCOPG,
    ("psycopg", "AsyncConnection"): Kind.PSYCOPG_ASYNC,
    ("asyncpg.connection", "Connection"): Kind.ASYNCPG,
    ("asyncpg.pool", "PoolConnectionProxy"): Kind.ASYNCPG,
    ("psycopg2.extensions", "connection"): Kind.PSYCOPG2,
    ("sqlalchemy.engine", "Connection"): Kind.SQLALCHEMY_CONNECTION,
    ("sqlalchemy.orm", "Session"): Kind.SQLALCHEMY_SESSION,
    ("sqlalchemy.orm", "scoped_session"): Kind.SQLALCHEMY_SESSION,
    ("sqlalchemy.ext.asyncio", "AsyncConnection"): Kind.SQLALCHEMY_ASYNC_CONNECTION,
    ("sqlalchemy.ext.asyncio", "AsyncSession"): Kind.SQLALCHEMY_ASYNC_SESSION,
    ("sqlalchemy.ext.asyncio", "async_scoped_session"): Kind.SQLALCHEMY_ASYNC_SESSION,
    ("django.db.backends.base.base", "BaseDatabaseWrapper"): Kind.DJANGO,
    ("django.utils.connection", "ConnectionProxy"): Kind.DJANGO,
}
_IN_FAILED_TRANSACTION = "25P02"


def kind_of(connection: object) -> Kind:
    """Tell what the caller has.

    Raises:
        TypeError: none of them; the message names them.
    """
    for (module, name), kind in _SHOWN.items():
        shown = getattr(sys.modules.get(module), name, None)
        if shown is not None and isinstance(connection, shown):
            if kind is Kind.DJANGO:
                _check_django(connection)
            return kind
    name = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise TypeError(f"connection is a {name}: pass one of {', '.join(Kind)}")


def _check_django(connection: Any) -> None:
    # Django's caches have a ConnectionProxy, too.
    if (vendor := getattr(connection, "vendor", None)) != "postgresql":
        message = "no database" if vendor is None else f"of {vendor}"
        raise TypeError(f"connection is Django's, and {message}: pass that of a PostgreSQL database, as connections['alias']")


async def ask_on(connection: CallersConnection, verb: Verb[T]) -> T:
    """Ask a verb on a connection of the caller's, within its open transaction if there is one.

    A blocking connection holds up the event loop for as long as the verb's round trips take.

    Cancellation: as the driver has it. In a transaction, roll back: PostgreSQL has aborted it.

    Raises:
        TypeError: `connection` is of no kind that is taken, or belongs to another door; the message
            says which.
        TransactionAborted: the caller's transaction was aborted before; nothing was asked.
        PgnotifyqError: what the verb makes of an error.
    """
    kind = kind_of(connection)
    if kind.is_blocking:
        return ask_on_blocking(connection, verb)
    given: Any = connection
    _check_loop(kind)
    with _aborted_is_told():
        match kind:
            case Kind.TRIO | Kind.PSYCOPG_ASYNC:
                return await ask(given, _usable_after(verb, _encoding_of(given)))
            case Kind.ASYNCPG:
                return await _ask(_Asyncpg(given), verb)
            case Kind.SQLALCHEMY_ASYNC_SESSION:
                return await _ask_driver(await (await given.connection()).run_sync(_begun), verb)
            case Kind.SQLALCHEMY_ASYNC_CONNECTION:
                return await _ask_driver(await given.run_sync(_begun), verb)
    raise AssertionError(kind)


def ask_on_blocking(connection: CallersConnection, verb: Verb[T]) -> T:
    """Do what `ask_on` does, on a blocking connection.

    Within SQLAlchemy's `run_sync` the session or connection that it hands over is taken, too.

    Raises: as `ask_on`.
    """
    kind = kind_of(connection)
    given: Any = connection
    with _aborted_is_told():
        match kind:
            case Kind.PSYCOPG:
                return ask_blocking(given, _usable_after(verb, _encoding_of(given)))
            case Kind.PSYCOPG2:
                return _ask_blocking(_Psycopg2(given), verb)
            case Kind.SQLALCHEMY_SESSION:
                return _ask_driver_blocking(_begun(given.connection()), verb)
            case Kind.SQLALCHEMY_CONNECTION:
                return _ask_driver_blocking(_begun(given), verb)
            case Kind.DJANGO:
                with given.wrap_database_errors:
                    return _ask_driver_blocking(_django_driver(given), verb)
            case Kind.TRIO:
                door = "pgnotifyq.open_client, on trio"
            case Kind.PSYCOPG_ASYNC | Kind.ASYNCPG | Kind.SQLALCHEMY_ASYNC_CONNECTION | Kind.SQLALCHEMY_ASYNC_SESSION:
                door = "pgnotifyq.aio.open_client, on asyncio"
            case _:
                assert_never(kind)
    raise TypeError(f"{kind.value} cannot be waited for here: pass it to a client of {door}")


def _check_loop(kind: Kind) -> None:
    trio = sys.modules.get("trio")
    is_trio = trio is not None and trio.lowlevel.in_trio_run()
    if is_trio and kind is not Kind.TRIO:
        raise TypeError(f"{kind.value} is driven by asyncio, and this is trio: pass it to a client of pgnotifyq.aio.open_client")
    if not is_trio and kind is Kind.TRIO:
        raise TypeError(f"{kind.value} is driven by trio, and this is not: pass it to a client of pgnotifyq.open_client")


# What holds a connection


def _begun(connection: Any) -> Any:
    """Begin the transaction of SQLAlchemy's Connection, unless it has begun; return the driver's.

    SQLAlchemy must know of the transaction, or its `commit` would do nothing. On asyncpg it begins
    one only when the first statement comes through it; so one does.
    """
    if not connection.in_transaction():
        connection.begin()
    driver = connection.connection.driver_connection
    if kind_of_driver(driver, connection.dialect.driver) is Kind.ASYNCPG and not driver.is_in_transaction():
        connection.exec_driver_sql("select 1")
    return driver


def kind_of_driver(driver: object, name: str) -> Kind:
    """Tell what a library's connection is driven by.

    Raises:
        TypeError: by none that is taken.
    """
    try:
        kind = kind_of(driver)
    except TypeError:
        kind = None
    if kind not in {Kind.PSYCOPG, Kind.PSYCOPG_ASYNC, Kind.PSYCOPG2, Kind.ASYNCPG}:
        raise TypeError(f"the connection is driven by {name}: use psycopg, psycopg2 or asyncpg")
    return kind


def driver_of(connection: Any) -> Any:
    """Return the driver's connection in one of SQLAlchemy's or Django's, which is open."""
    match kind_of(connection):
        case Kind.SQLALCHEMY_CONNECTION:
            return connection.connection.driver_connection
        case Kind.DJANGO:
            return connection.connection
    return connection


def is_in_transaction(driver: Any) -> bool:
    """Tell whether a driver's connection has a transaction open, aborted ones included."""
    match kind_of(driver):
        case Kind.ASYNCPG:
            is_open: bool = driver.is_in_transaction()
            return is_open
        case Kind.PSYCOPG2:
            return bool(driver.get_transaction_status() != pq.TransactionStatus.IDLE)
    return bool(driver.pgconn.transaction_status != pq.TransactionStatus.IDLE)


def _django_driver(connection: Any) -> Any:
    connection.validate_thread_sharing()
    connection.validate_no_broken_transaction()
    connection.ensure_connection()
    return connection.connection


async def _ask_driver(driver: Any, verb: Verb[T]) -> T:
    if kind_of(driver) is Kind.ASYNCPG:
        return await _ask(_Asyncpg(driver), verb)
    return await ask(driver, _usable_after(verb, _encoding_of(driver)))


def _ask_driver_blocking(driver: Any, verb: Verb[T]) -> T:
    match kind_of(driver):
        case Kind.PSYCOPG:
            return ask_blocking(driver, _usable_after(verb, _encoding_of(driver)))
        case Kind.PSYCOPG2:
            return _ask_blocking(_Psycopg2(driver), verb)
    from sqlalchemy.util import await_only

    answer: T = await_only(_ask_driver(driver, verb))
    return answer


# Asking


class _Link(Protocol):
    """What every driver's connection can tell of itself."""

    @property
    def is_alone(self) -> bool:
        """Whether the next statement will be a transaction of its own."""

    @property
    def commits(self) -> bool:
        """Whether it is in autocommit."""

    @property
    def server_version(self) -> int:
        """As PostgreSQL counts versions."""

    @property
    def server_encoding(self) -> str | None:
        """The encoding of the database."""


class _AsyncLink(_Link, Protocol):
    async def run(self, statement: bytes, parameters: Sequence[str | None]) -> tuple[Answer, str]:
        """Run a statement; return its answer and the encoding of that."""

    async def say(self, text: bytes) -> None:
        """Run a statement without values."""


class _BlockingLink(_Link, Protocol):
    def run(self, statement: bytes, parameters: Sequence[str | None]) -> tuple[Answer, str]:
        """Run a statement; return its answer and the encoding of that."""

    def say(self, text: bytes) -> None:
        """Run a statement without values."""


async def _ask(link: _AsyncLink, verb: Verb[T]) -> T:
    steps = _flat(_usable_after(verb, link.server_encoding))
    told: Any = None
    failed: BaseException | None = None
    while True:
        try:
            step = steps.send(told) if failed is None else steps.throw(failed)
        except StopIteration as end:
            answer: T = end.value
            return answer
        told = failed = None
        try:
            if isinstance(step, Aside):
                told = _tell(link, step)
            elif isinstance(step, Ask):
                told = step.read(*await link.run(step.statement, step.parameters))
            else:
                await link.say(_text_of(step))
        except Exception as error:  # noqa: BLE001  # the verb's to judge
            told, failed = _judged(step, error)
        except BaseException as error:  # noqa: BLE001  # a cancel: the block is undone, and the cancel goes on
            failed = error


def _ask_blocking(link: _BlockingLink, verb: Verb[T]) -> T:
    steps = _flat(_usable_after(verb, link.server_encoding))
    told: Any = None
    failed: BaseException | None = None
    while True:
        try:
            step = steps.send(told) if failed is None else steps.throw(failed)
        except StopIteration as end:
            answer: T = end.value
            return answer
        told = failed = None
        try:
            if isinstance(step, Aside):
                told = _tell(link, step)
            elif isinstance(step, Ask):
                told = step.read(*link.run(step.statement, step.parameters))
            else:
                link.say(_text_of(step))
        except Exception as error:  # noqa: BLE001  # the verb's to judge
            told, failed = _judged(step, error)
        except BaseException as error:  # noqa: BLE001  # an interrupt: the block is undone, and the interrupt goes on
            failed = error


def _flat(verb: Verb[T]) -> Steps[T]:
    """Say the steps of a verb one after the other, those of the plans within it, too.

    A whole plan goes into a transaction.
    """
    if isinstance(verb, Ask):
        asked: T = yield verb
        return asked
    if not verb.is_whole:
        return (yield from _walk(verb))
    begin, end, undo = _TRANSACTION if (yield Aside.IS_ALONE) else _SAVEPOINT
    return (yield from _within(begin, end, undo, _walk(verb)))


_TRANSACTION = (b"begin", b"commit", (b"rollback",))
_SAVEPOINT = (
    b"savepoint pgnotifyq_verb",
    b"release savepoint pgnotifyq_verb",
    (b"rollback to savepoint pgnotifyq_verb", b"release savepoint pgnotifyq_verb"),
)


def _within(begin: bytes, end: bytes, undo: tuple[bytes, ...], block: Steps[T]) -> Steps[T]:
    yield Script(begin)
    try:
        answer = yield from block
    except BaseException:
        with suppress(Exception):  # what went wrong first is what is told
            for text in undo:
                yield Script(text)
        raise
    yield Script(end)
    return answer


def _walk(plan: Plan[T]) -> Steps[T]:
    steps = plan.steps()
    told: Any = None
    failed: Exception | None = None
    while True:
        try:
            step = steps.send(told) if failed is None else steps.throw(failed)
        except StopIteration as end:
            answer: T = end.value
            return answer
        told = failed = None
        try:
            if isinstance(step, (Ask, Plan)):
                told = yield from _flat(step)
            else:
                told = yield step
        except Exception as error:  # noqa: BLE001  # the plan's to judge
            failed = error


def _usable_after(verb: Verb[T], server_encoding: str | None) -> Verb[T]:
    """Return a verb that leaves the transaction usable if the database lacks a character of it."""
    if server_encoding in {"UTF8", "SQL_ASCII", None}:  # which lack none
        return verb

    def steps() -> Steps[T]:
        if (yield Aside.IS_ALONE):
            return (yield from _said(verb))
        return (yield from _within(*_SAVEPOINT, _said(verb)))

    return Plan(steps, may_repeat=verb.may_repeat)


def _said(verb: Verb[T]) -> Steps[T]:
    told: T = yield verb
    return told


def _encoding_of(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str | None:
    return connection.info.parameter_status("server_encoding")


def _tell(link: _Link, aside: Aside) -> Any:
    match aside:
        case Aside.IS_ALONE:
            return link.is_alone
        case Aside.COMMITS:
            return link.commits
        case Aside.COPIES:
            return False  # drivers differ in how they copy; statements of a hundred jobs take a fifth longer
        case Aside.SERVER_VERSION:
            return link.server_version
        case Aside.PAUSE:
            return None
    assert_never(aside)


def _text_of(step: Step) -> bytes:
    if isinstance(step, Script):
        return step.text
    raise AssertionError(f"{step} is not a step for a connection of a caller's")


def _judged(step: Step, error: Exception) -> tuple[Any, Exception | None]:
    """Return what a verb says of an error of a driver's: an answer, another error, or the same."""
    on_error = step.on_error if isinstance(step, (Ask, Copy, Script)) else None
    if on_error is None:
        return None, error
    said = in_psycopgs_words(error)
    try:
        return on_error(said), None
    except Exception as told:  # noqa: BLE001  # handed on
        if told is not said:
            return None, told
        return None, error


# Errors


def in_psycopgs_words(error: Exception) -> Exception:
    """Return psycopg's error for what PostgreSQL said by any driver; others as they are."""
    for cause in _causes(error):
        if isinstance(cause, psycopg.Error):
            return cause
        if (state := _state_of(cause)) is not None:
            message, detail, hint = (_text_in(cause, name) for name in ("message", "detail", "hint"))
            fields: dict[int, bytes | None] = {
                pq.DiagnosticField.SQLSTATE: state.encode(),
                pq.DiagnosticField.MESSAGE_PRIMARY: str(message or cause).encode(),
                pq.DiagnosticField.MESSAGE_DETAIL: None if detail is None else str(detail).encode(),
                pq.DiagnosticField.MESSAGE_HINT: None if hint is None else str(hint).encode(),
            }
            said = _class_of(state)(str(cause), info=fields)
            said.__cause__ = error
            return said
    return error


def _text_in(error: BaseException, name: str) -> str | None:
    """Return one of the texts of an error: psycopg2's are in `diag`, asyncpg's its own.

    What SQLAlchemy puts around asyncpg's, in its version 2.0, has not all of them.
    """
    for cause in _causes(error):
        diag = getattr(cause, "diag", None)
        found = (
            getattr(cause, name, None)
            if diag is None
            else getattr(diag, "message_primary" if name == "message" else f"message_{name}")
        )
        if found is not None:
            return str(found)
    return None


def _class_of(state: str) -> type[psycopg.Error]:
    try:
        return errors.lookup(state)
    except KeyError:  # ours, and those of the user's triggers
        return psycopg.DatabaseError


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error, whatever wraps it."""
    states = (cause.sqlstate if isinstance(cause, psycopg.Error) else _state_of(cause) for cause in _causes(error))
    return next((state for state in states if state is not None), None)


def _state_of(error: BaseException) -> str | None:
    for name in ("sqlstate", "pgcode"):  # asyncpg's, psycopg2's
        if isinstance(state := getattr(error, name, None), str):
            return state
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it wraps: SQLAlchemy's `orig`, anybody's `__cause__`."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        original = getattr(here, "orig", None)
        here = original if isinstance(original, BaseException) else here.__cause__


@contextmanager
def _aborted_is_told() -> Iterator[None]:
    """Tell a transaction that was aborted before by one error, whichever library found it."""
    try:
        yield
    except TransactionAborted:
        raise
    except Exception as error:
        if sqlstate_of(error) != _IN_FAILED_TRANSACTION and type(error).__name__ not in _TOLD_BY_LIBRARIES:
            raise
        message = "the connection's transaction was aborted by an error before: roll it back, or to a savepoint, first"
        raise TransactionAborted(message) from error


# SQLAlchemy's, of a session whose flush has failed; Django's, of an `atomic` block.
_TOLD_BY_LIBRARIES = frozenset({"PendingRollbackError", "TransactionManagementError"})


# The drivers


@attrs.frozen(eq=False)
class _Written:
    """An answer in text, in UTF-8."""

    columns: Sequence[tuple[str, int]]  # name and type
    rows: Sequence[Sequence[bytes | None]]

    @property
    def ntuples(self) -> int:
        return len(self.rows)

    @property
    def nfields(self) -> int:
        return len(self.columns)

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        return self.rows[row_number][column_number]

    def ftype(self, column_number: int) -> int:
        return self.columns[column_number][1]

    def fformat(self, column_number: int) -> int:  # noqa: ARG002  # one form for all
        return 0

    def fname(self, column_number: int) -> bytes | None:
        return self.columns[column_number][0].encode()


def _placed(statement: bytes, write: Callable[[str], str]) -> str:
    """Write a statement's placeholders in a driver's way, given their numbers; drop comments."""
    return re.sub(r"\$(\d+)", lambda found: write(found[1]), re.sub(r"--.*", "", statement.decode()))


@attrs.frozen
class _Learned:
    """A statement as asyncpg is to be asked it, and what its rows do not say."""

    text: str  # every value goes as a text, and the server reads it, as it does on psycopg
    columns: list[tuple[str, int]]  # name and type


# By the statement; asked of the server once, for they are the same on every connection.
_learned: dict[bytes, _Learned] = {}


@attrs.frozen(eq=False)
class _Asyncpg:
    """asyncpg's connection, its own or a pool's.

    What its codecs make of a column, the caller's too, is written as text again.
    """

    connection: Any

    @property
    def is_alone(self) -> bool:
        return not self.connection.is_in_transaction()

    commits = True  # a transaction begins where its owner says so

    @property
    def server_version(self) -> int:
        version = self.connection.get_server_version()
        return int(version.major) * 10_000 + int(version.minor)

    @property
    def server_encoding(self) -> str | None:
        encoding: str | None = getattr(self.connection.get_settings(), "server_encoding", None)
        return encoding

    async def run(self, statement: bytes, parameters: Sequence[str | None]) -> tuple[Answer, str]:
        learned = _learned.get(statement) or await self._learn(statement)
        found = await self.connection.fetch(learned.text, *parameters)
        if not found:
            return _Written([], []), "utf-8"
        if [name for name, _ in learned.columns] != list(found[0].keys()):  # the schema was migrated
            learned = await self._learn(statement)
        return _Written(learned.columns, [[_written(value) for value in row.values()] for row in found]), "utf-8"

    async def _learn(self, statement: bytes) -> _Learned:
        prepared = await self.connection.prepare(statement.decode())
        types = [f"{one.schema}.{one.name}" for one in prepared.get_parameters()]
        text = _placed(statement, lambda number: f"${number}::text::{types[int(number) - 1]}")
        columns = [(one.name, one.type.oid) for one in prepared.get_attributes()]
        learned = _learned[statement] = _Learned(text, columns)
        return learned

    async def say(self, text: bytes) -> None:
        await self.connection.execute(text.decode())


def _written(value: Any) -> bytes | None:
    match value:
        case None:
            return None
        case bool():
            return b"t" if value else b"f"
        case bytes():
            return value
        case datetime():
            return value.isoformat().encode()
        case list() | tuple() if all(isinstance(item, str | int | UUID | None) for item in value):
            texts = [_written(item) for item in value]
            return array([None if text is None else text.decode() for text in texts]).encode()
        case dict() | list():
            return json.dumps(value).encode()
    return str(value).encode()


@attrs.frozen(eq=False)
class _Psycopg2:
    """psycopg2's connection. It quotes the values; columns come as the server writes them."""

    connection: Any

    @property
    def is_alone(self) -> bool:
        return self.commits and self.connection.get_transaction_status() == pq.TransactionStatus.IDLE

    @property
    def commits(self) -> bool:
        return bool(self.connection.autocommit)

    @property
    def server_version(self) -> int:
        return int(self.connection.server_version)

    @property
    def server_encoding(self) -> str | None:
        encoding: str | None = self.connection.get_parameter_status("server_encoding")
        return encoding

    def run(self, statement: bytes, parameters: Sequence[str | None]) -> tuple[Answer, str]:
        from psycopg2 import extensions

        text = _placed(statement.replace(b"%", b"%%"), lambda number: f"%(_{number})s")
        with self.connection.cursor(cursor_factory=extensions.cursor) as cursor:
            # For this cursor alone: what has a form of its own in Python comes as the server writes
            # it. The rest comes so anyway.
            known = (*extensions.string_types, *self.connection.string_types)
            extensions.register_type(extensions.new_type(known, "pgnotifyq", _as_it_comes), cursor)
            cursor.execute(text, {f"_{place}": value for place, value in enumerate(parameters, 1)})
            if cursor.description is None:
                return _Written([], []), "utf-8"
            columns = [(column.name, column.type_code) for column in cursor.description]
            rows = [[None if value is None else value.encode() for value in row] for row in cursor.fetchall()]
            return _Written(columns, rows), "utf-8"

    def say(self, text: bytes) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(text)


def _as_it_comes(value: str | None, _: object) -> str | None:
    return value
