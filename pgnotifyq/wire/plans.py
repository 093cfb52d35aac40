"""How the steps of a verb are taken, one after the other, on whatever connection.

A plan says its steps (ledger/ask.py). A link is what a driver's connection can do: asking.py has
psycopg's, drivers.py those of others. `follow` is the same on trio and on asyncio;
`follow_blocking` is its blocking twin.

What a step raises goes into the plan. So does a cancel: what the plan has begun is undone, and the
cancel goes on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pgnotifyq.ledger.ask import Aside, Ask, Plan, Script

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from pgnotifyq.ledger.ask import Copy, Step, Steps, Verb

T = TypeVar("T")


class Link(Protocol):
    """What every driver's connection can tell of itself."""

    @property
    def server_encoding(self) -> str | None:
        """The encoding of the database."""

    @property
    def in_pipeline(self) -> bool:
        """Whether a statement is sent before the statements before it are answered."""

    def tell(self, aside: Aside) -> Any:
        """Answer what a plan wants to know. A pause is nothing here."""


class AwaitedLink(Link, Protocol):
    """A connection that an event loop waits for."""

    async def ask(self, verb: Ask[T]) -> T:
        """Ask one statement, and return what its answer means, or what its error means."""

    async def say(self, step: Script | Copy) -> None:
        """Send what has no answer."""

    def transaction(self) -> AbstractAsyncContextManager[object]:
        """Open a transaction, or a savepoint of the one that is open."""


class BlockingLink(Link, Protocol):
    """A connection that holds up its thread."""

    def ask(self, verb: Ask[T]) -> T:
        """Ask one statement, and return what its answer means, or what its error means."""

    def say(self, step: Script | Copy) -> None:
        """Send what has no answer."""

    def transaction(self) -> AbstractContextManager[object]:
        """Open a transaction, or a savepoint of the one that is open."""


async def follow(link: AwaitedLink, verb: Verb[T]) -> T:
    """Ask a verb on a link, and return its answer."""
    if isinstance(verb, Ask):
        return await link.ask(verb)
    if not verb.is_whole:
        return await _walk(link, verb.steps())
    async with link.transaction():
        return await _walk(link, verb.steps())


async def _walk(link: AwaitedLink, steps: Steps[T]) -> T:
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
            told = await _take(link, step)
        except BaseException as error:  # noqa: BLE001  # the plan's to judge; it lets a cancel go on
            failed = error


async def _take(link: AwaitedLink, step: Step) -> Any:
    """Take one step of a plan."""
    if isinstance(step, (Ask, Plan)):
        return await follow(link, step)
    if step is Aside.PAUSE:
        return await pause()
    if isinstance(step, Aside):
        return link.tell(step)
    return await link.say(step)


def follow_blocking(link: BlockingLink, verb: Verb[T]) -> T:
    """Do what `follow` does on a link that blocks."""
    if isinstance(verb, Ask):
        return link.ask(verb)
    if not verb.is_whole:
        return _walk_blocking(link, verb.steps())
    with link.transaction():
        return _walk_blocking(link, verb.steps())


def _walk_blocking(link: BlockingLink, steps: Steps[T]) -> T:
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
            told = _take_blocking(link, step)
        except BaseException as error:  # noqa: BLE001  # the plan's to judge; it lets an interrupt go on
            failed = error


def _take_blocking(link: BlockingLink, step: Step) -> Any:
    if isinstance(step, (Ask, Plan)):
        return follow_blocking(link, step)
    if isinstance(step, Aside):
        return link.tell(step)
    return link.say(step)


async def pause() -> None:
    """Let other tasks of this loop run. A cancel is met here."""
    # anyio, because the loop may be trio's. A verb that never pauses does without the import.
    from anyio.lowlevel import checkpoint

    await checkpoint()


TRANSACTION = (b"begin", b"commit", (b"rollback",))
SAVEPOINT = (
    b"savepoint pgnotifyq_verb",
    b"release savepoint pgnotifyq_verb",
    (b"rollback to savepoint pgnotifyq_verb", b"release savepoint pgnotifyq_verb"),
)


def in_savepoint(verb: Verb[T]) -> Plan[T]:
    """Return a verb that leaves the transaction around it usable if the database refuses it.

    A verb that is alone needs no savepoint. Unlike a whole plan, this begins no transaction that it
    would have to commit.
    """
    begin, end, undo = SAVEPOINT

    def steps() -> Steps[T]:
        if (yield Aside.IS_ALONE):
            told: T = yield verb
            return told
        yield Script(begin)
        try:
            told = yield verb
        except GeneratorExit:
            raise  # the asker is gone, and takes no further step
        except BaseException:
            with suppress(Exception):  # the first error is the one that is raised
                for text in undo:
                    yield Script(text)
            raise
        yield Script(end)
        return told

    return Plan(steps, may_repeat=verb.may_repeat, is_durable=verb.is_durable)
