"""A verb is a value: what is asked, apart from how somebody waits for the answer.

Each verb of this floor returns an `Ask`, or a `Plan` if it takes several statements. An asker is a
function that has a connection and asks the verb on it. wire/asking.py has two askers: one for
psycopg's awaited connections, one for its blocking connections. wire/callers.py has the askers for
a caller's own connection. A door for another kind of connection is one more asker. This floor does
not know of it: there is no event loop here, no connection and no driver.

The rules of an asker:

- The asker sends `Ask.statement` with `Ask.parameters`, whose placeholders are `$1`, `$2`, ..., and
  hands the answer to `Ask.read`. Answers may be in binary or in text: columns.py reads both.
- If the verb has an `on_error`, the asker hands an exception to it. `on_error` raises what the
  exception means, or returns an answer.
- The asker takes the steps of a plan one after the other. It sends the answer to a step into the
  generator. If the step raises, the asker throws the exception into the generator.
- If a plan `is_whole` and fails, it is undone as a whole: the asker puts it into a transaction, or
  into a savepoint of the open transaction.
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
    # Reads the columns of the answer. It is given the client's encoding, by Python's name.
    read: Callable[[Answer, str], T_co]
    # Says what an exception means: raises an error of ours, or returns an answer in its place.
    # None: the exception is raised as it comes.
    on_error: Callable[[Exception], T_co] | None = None
    may_repeat: bool = True  # whether it may be asked again when its answer was lost
    # Whether what it writes must survive a crash of the server, once the server has answered.
    is_durable: bool = True


@attrs.frozen(eq=False)
class Copy:
    """A COPY into a table, in the text format. Its answer is None."""

    statement: bytes
    pieces: Iterable[str]  # each is made while those before it are on their way
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
    # All or none: it goes into a transaction of its own, or into a savepoint of the open one.
    is_whole: bool = False
    may_repeat: bool = True
    is_durable: bool = True


Verb: TypeAlias = Ask[T] | Plan[T]
Step: TypeAlias = Ask[Any] | Plan[Any] | Copy | Script | Aside
Steps: TypeAlias = Generator[Step, Any, T]


def nothing(_: Answer, __: str) -> None:
    """Read an answer that says nothing."""


def array(values: Iterable[str | None]) -> str:
    """Write a one-dimensional array as the server reads it.

    All values are joined by a character that no text of PostgreSQL can have, and are escaped
    together. That takes a third of the time of escaping one after the other.

    >>> array(["a", "b, c", None])
    '{"a","b, c",NULL}'
    """
    values = list(values)
    try:
        whole = "\0".join(values)  # type: ignore[arg-type]  # the error is what tells
    except TypeError:
        return _array_one_by_one(values)
    if whole.count("\0") != len(values) - 1:
        # There is no value; or a value has a NUL, which the asker refuses.
        return _array_one_by_one(values)
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
