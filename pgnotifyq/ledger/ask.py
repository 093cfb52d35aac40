"""A verb is a value: what is asked, apart from how somebody waits for the answer.

Each verb of this floor returns an `Ask`, or a `Plan` if it takes several statements. A function
that has a connection asks it: wire/asking.py has two, for psycopg's awaited connections and for its
blocking ones, and wire/callers.py has those for what a caller has. A door for another kind of
connection is one more function like those two, and nothing of this floor knows of it: there is no
event loop here, no connection and no driver.

The rules of an asker:

- The asker sends `Ask.statement` with `Ask.parameters`, whose placeholders are `$1`, `$2`, ..., and
  hands the answer to `Ask.read`. Answers may be in binary or in text: columns.py reads both.
- An exception goes to `Ask.on_error`, where there is one. That function raises what the exception
  means, or returns an answer.
- The asker takes the steps of a plan one after the other. It sends the answer to each into the
  generator, and throws an exception into it.
- A plan that `is_whole` is undone as a whole when it fails: the asker puts it into a transaction,
  or into a savepoint of the one that is open.
- A plan may ask about the connection, and may let other tasks run: see `Aside`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import attrs

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Answer(Protocol):
    """The rows that came, as libpq holds them."""

    @property
    def ntuples(self) -> int:
        """How many rows."""

    @property
    def nfields(self) -> int:
        """How many columns."""

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        """Return the bytes of one column of one row."""

    def ftype(self, column_number: int) -> int:
        """Return the type of a column, as PostgreSQL numbers types."""

    def fformat(self, column_number: int) -> int:
        """Return the form of a column: 0 is text, 1 is binary."""

    def fname(self, column_number: int) -> bytes | None:
        """Return the name of a column."""


@attrs.frozen(eq=False)
class Ask(Generic[T_co]):
    """One statement to be asked, and what its answer means."""

    statement: bytes  # composed for a schema; its placeholders are $1, $2, ...
    parameters: Sequence[str | None]  # in the text that the server reads; None is null
    read: Callable[[Answer, str], T_co]  # columns of the answer, given the client's encoding by Python's name
    # What an exception means: raises an error of ours, or returns an answer in its place. None: it
    # is raised as it comes.
    on_error: Callable[[Exception], T_co] | None = None
    may_repeat: bool = True  # whether it may be asked again when its answer was lost
    is_durable: bool = True  # whether what it writes must survive a crash of the server once it is answered


@attrs.frozen(eq=False)
class Copy:
    """A COPY into a table, in the text format. Its answer is None."""

    statement: bytes
    pieces: Iterable[str]  # made while those before them are under way
    on_error: Callable[[Exception], None] | None = None


@attrs.frozen(eq=False)
class Script:
    """Statements without values, which go together: a migration. Its answer is None."""

    text: bytes
    on_error: Callable[[Exception], None] | None = None


class Aside(Enum):
    """What a plan may want besides statements."""

    IS_ALONE = "whether the next statement will be a transaction of its own"
    COMMITS = "whether the connection is in autocommit, and so not about to be in a transaction"
    COPIES = "whether a COPY may be among the next statements"
    SERVER_VERSION = "the server's version as a number, 150_004 for 15.4"
    PAUSE = "that other tasks may run, where there are any; some milliseconds lie between two pauses"


@attrs.frozen(eq=False)
class Plan(Generic[T_co]):
    """Several statements, each decided by the answers to those before."""

    steps: Callable[[], Steps[T_co]]  # begins anew at each call
    is_whole: bool = False  # all or none: it goes into a transaction of its own, or a savepoint of the one that is open
    may_repeat: bool = True
    is_durable: bool = True


Verb: TypeAlias = Ask[T] | Plan[T]
Step: TypeAlias = Ask[Any] | Plan[Any] | Copy | Script | Aside
Steps: TypeAlias = Generator[Step, Any, T]


def nothing(_: Answer, __: str) -> None:
    """Read an answer that says nothing."""


def array(values: Iterable[str | None]) -> str:
    """Write a one-dimensional array as the server reads it.

    All values are joined by a character that no text of PostgreSQL can have, and escaped together:
    a third of the time that it takes to escape one after the other.

    >>> array(["a", "b, c", None])
    '{"a","b, c",NULL}'
    """
    values = list(values)
    try:
        whole = "\0".join(values)  # type: ignore[arg-type]  # the error is what tells
    except TypeError:
        return _array_one_by_one(values)
    if whole.count("\0") != len(values) - 1:
        return _array_one_by_one(values)  # none at all; or a value has a NUL, which the asker refuses
    return '{"' + _escaped(whole).replace("\0", '","') + '"}'


def _array_one_by_one(values: Iterable[str | None]) -> str:
    return "{" + ",".join(["NULL" if value is None else f'"{_escaped(value)}"' for value in values]) + "}"


def _escaped(value: str) -> str:
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    if '"' in value:
        value = value.replace('"', '\\"')
    return value


def text(value: object) -> str | None:
    """Write a number, an id, a boolean or a text as the server reads it; None is null.

    >>> text(1.5), text(None), text(True)
    ('1.5', None, 'True')
    """
    return None if value is None else str(value)
