"""The links (plans.py) for asyncpg's and psycopg2's connections.

Nothing of the caller's is changed: no codec, no adapter, no cursor's factory. An error is put into
psycopg's words, so that the verb can judge it. If the verb has nothing to say of the error, the
driver's own error is raised.
"""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, assert_never
from uuid import UUID

import attrs
from psycopg import pq

from pgnotifyq.ledger.ask import Aside, Script, array
from pgnotifyq.wire.plans import SAVEPOINT, TRANSACTION
from pgnotifyq.wire.words import in_psycopgs_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from pgnotifyq.ledger.ask import Answer, Ask, Copy

T = TypeVar("T")


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
    """A statement in the form for asyncpg, and what asyncpg's rows do not say."""

    text: str  # every value goes as a text, and the server reads it, as it does on psycopg
    columns: list[tuple[str, int]]  # name and type


# By the statement. The server is asked once, because the answer is the same on every connection.
_learned: dict[bytes, _Learned] = {}


@attrs.frozen(eq=False)
class Asyncpg:
    """The link for asyncpg's connection, its own or a pool's.

    asyncpg's codecs make a value of a column, and so do the caller's. The value is written as text
    again.
    """

    connection: Any

    @property
    def in_pipeline(self) -> bool:
        """The driver has no pipelines."""
        return False

    @property
    def server_encoding(self) -> str | None:
        """The encoding of the database."""
        encoding: str | None = getattr(self.connection.get_settings(), "server_encoding", None)
        return encoding

    def tell(self, aside: Aside) -> Any:
        """Answer what a plan wants to know."""
        match aside:
            case Aside.IS_ALONE:
                return not self.connection.is_in_transaction()
            case Aside.COMMITS:
                return True  # a transaction begins where its owner says so
            case Aside.COPIES:
                # Drivers differ in how they copy. Statements of a hundred jobs take a fifth longer.
                return False
            case Aside.SERVER_VERSION:
                version = self.connection.get_server_version()
                return int(version.major) * 10_000 + int(version.minor)
            case Aside.PAUSE:
                return None
        assert_never(aside)

    async def ask(self, verb: Ask[T]) -> T:
        """Ask one statement."""
        try:
            answer = await self._run(verb.statement, verb.parameters)
        except Exception as error:  # noqa: BLE001  # the verb's to judge
            meant: T = _meant(verb.on_error, error)
            return meant
        return verb.read(*answer)

    async def say(self, step: Script | Copy) -> None:
        """Send what has no answer."""
        try:
            await self.connection.execute(_text_of(step))
        except Exception as error:  # noqa: BLE001  # the same
            _meant(step.on_error, error)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Open a transaction, or a savepoint of the one that is open."""
        begin, end, undo = TRANSACTION if self.tell(Aside.IS_ALONE) else SAVEPOINT
        await self.say(Script(begin))
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the first error is the one that is raised
                for text in undo:
                    await self.say(Script(text))
            raise
        await self.say(Script(end))

    async def _run(self, statement: bytes, parameters: Sequence[str | None]) -> tuple[Answer, str]:
        learned = _learned.get(statement) or await self._learn(statement)
        found = await self.connection.fetch(learned.text, *parameters)
        if not found:
            return _Written([], []), "utf-8"
        if [name for name, _ in learned.columns] != list(found[0].keys()):
            # The schema was migrated.
            learned = await self._learn(statement)
        return _Written(learned.columns, [[_written(value) for value in row.values()] for row in found]), "utf-8"

    async def _learn(self, statement: bytes) -> _Learned:
        prepared = await self.connection.prepare(statement.decode())
        types = [f"{one.schema}.{one.name}" for one in prepared.get_parameters()]
        text = _placed(statement, lambda number: f"${number}::text::{types[int(number) - 1]}")
        columns = [(one.name, one.type.oid) for one in prepared.get_attributes()]
        learned = _learned[statement] = _Learned(text, columns)
        return learned


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
class Psycopg2:
    """The link for psycopg2's connection.

    psycopg2 quotes the values. Columns come as the server writes them.
    """

    connection: Any

    @property
    def in_pipeline(self) -> bool:
        """The driver has no pipelines."""
        return False

    @property
    def server_encoding(self) -> str | None:
        """The encoding of the database."""
        encoding: str | None = self.connection.get_parameter_status("server_encoding")
        return encoding

    def tell(self, aside: Aside) -> Any:
        """Answer what a plan wants to know."""
        match aside:
            case Aside.IS_ALONE:
                is_idle = self.connection.get_transaction_status() == pq.TransactionStatus.IDLE
                return bool(self.connection.autocommit) and is_idle
            case Aside.COMMITS:
                return bool(self.connection.autocommit)
            case Aside.COPIES:
                return False  # as on asyncpg
            case Aside.SERVER_VERSION:
                return int(self.connection.server_version)
            case Aside.PAUSE:
                return None
        assert_never(aside)

    def ask(self, verb: Ask[T]) -> T:
        """Ask one statement."""
        try:
            answer = self._run(verb.statement, verb.parameters)
        except Exception as error:  # noqa: BLE001  # the verb's to judge
            meant: T = _meant(verb.on_error, error)
            return meant
        return verb.read(*answer)

    def say(self, step: Script | Copy) -> None:
        """Send what has no answer."""
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(_text_of(step))
        except Exception as error:  # noqa: BLE001  # the same
            _meant(step.on_error, error)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction, or a savepoint of the one that is open."""
        begin, end, undo = TRANSACTION if self.tell(Aside.IS_ALONE) else SAVEPOINT
        self.say(Script(begin))
        try:
            yield
        except BaseException:
            with suppress(Exception):  # the first error is the one that is raised
                for text in undo:
                    self.say(Script(text))
            raise
        self.say(Script(end))

    def _run(self, statement: bytes, parameters: Sequence[str | None]) -> tuple[Answer, str]:
        from psycopg2 import extensions

        text = _placed(statement.replace(b"%", b"%%"), lambda number: f"%(_{number})s")
        with self.connection.cursor(cursor_factory=extensions.cursor) as cursor:
            # For this cursor alone: a type that psycopg2 would convert comes as the server writes
            # it. All other types do so anyway.
            known = (*extensions.string_types, *self.connection.string_types)
            extensions.register_type(extensions.new_type(known, "pgnotifyq", _as_it_comes), cursor)
            cursor.execute(text, {f"_{place}": value for place, value in enumerate(parameters, 1)})
            if cursor.description is None:
                return _Written([], []), "utf-8"
            columns = [(column.name, column.type_code) for column in cursor.description]
            rows = [[None if value is None else value.encode() for value in row] for row in cursor.fetchall()]
            return _Written(columns, rows), "utf-8"


def _as_it_comes(value: str | None, _: object) -> str | None:
    return value


def _text_of(step: Script | Copy) -> str:
    if isinstance(step, Script):
        return step.text.decode()
    raise AssertionError("no plan copies where it was told that it cannot")


def _meant(on_error: Callable[[Exception], Any] | None, error: Exception) -> Any:
    """Return what a verb makes of a driver's error; or raise another error, or the same one."""
    if on_error is None:
        raise error
    said = in_psycopgs_words(error)
    try:
        return on_error(said)
    except Exception as raised:  # noqa: BLE001  # handed on
        told = raised
    raise error if told is said else told
