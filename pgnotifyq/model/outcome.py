"""How an execution ended, and what follows from it: one pure function, `decide`."""

from __future__ import annotations

import itertools
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never, cast

import attrs

from pgnotifyq.model.errors import ConfigError, InvalidPayload, name_of, text_of
from pgnotifyq.model.payload import encode_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from cattrs import Converter

    from pgnotifyq.model.retry import RetryPolicy

ERROR_CHARS_MAX = 4000  # of a stored error: enough for a traceback's end
RESULT_BYTES_MAX = 1_048_576
# Bounds of what is told of one exception: how many errors in a group are looked at; how many
# errors, causes and notes are shown; how many frames are shown.
ERRORS_IN_GROUP_MAX = 100_000
ERRORS_SHOWN_MAX = 8
FRAMES_SHOWN_MAX = 5
_DELAY_SECONDS_MAX = 10 * 366 * 86_400.0


def _check_seconds(_: object, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and not 0 <= value <= _DELAY_SECONDS_MAX:
        raise ConfigError(f"{attribute.name} {value!r} is out of range: use 0 to {_DELAY_SECONDS_MAX:.0f}")


def _to_text(reason: object) -> str:
    # People write `Retry(reason=error)`. An error as reason would fail in `decide`, outside of the
    # handler.
    if reason is None:
        return ""
    return text_of(reason) if isinstance(reason, BaseException) else str(reason)


class _Wish(Exception):
    """What a handler returns, or raises, to say how its attempt ends.

    Wishes are values: two that say the same are equal.
    """

    def __reduce__(self) -> tuple[type[_Wish], tuple[object, ...]]:
        # pickle would make the exception again from its positional arguments only.
        return type(self), attrs.astuple(self, recurse=False)  # type: ignore[arg-type]  # subclasses are attrs classes


@attrs.frozen(auto_exc=False, slots=False)
class Snooze(_Wish):
    """Returned or raised by a handler: run me again later; this attempt does not count."""

    seconds: float = attrs.field(validator=_check_seconds)


@attrs.frozen(auto_exc=False, slots=False)
class Retry(_Wish):
    """Returned or raised by a handler: this attempt failed, try again.

    The next attempt comes after `seconds`; None: when the policy says.
    """

    seconds: float | None = attrs.field(default=None, validator=_check_seconds)
    reason: str = attrs.field(default="", converter=_to_text)


@attrs.frozen(auto_exc=False, slots=False)
class Discard(_Wish):
    """Returned or raised by a handler: this job cannot succeed, send it to the dead letters.

    `quietly=True`: nobody need look at it. The job ends as cancelled, with its reason. Then it is
    pruned like other finished jobs.
    """

    reason: str = attrs.field(default="", converter=_to_text)
    quietly: bool = False


class InterruptKind(StrEnum):
    """Why a running handler is stopped."""

    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"


@attrs.frozen(kw_only=True)
class Interrupt:
    """Why a handler is to stop, as the handler is told."""

    kind: InterruptKind
    by: str | None = None
    why: str | None = None


@attrs.frozen
class Returned:
    """The handler returned."""

    value: object


@attrs.frozen(kw_only=True)
class Raised:
    """The handler raised, or could not be called."""

    error: str
    undecodable: bool = False  # the payload does not fit the handler
    unknown_type: bool = False  # there is no handler
    kinds: frozenset[type[BaseException]] = attrs.field(
        default=frozenset(), eq=False
    )  # the class of what it raised; for a group, the classes of the errors in it
    # No fault of the job's: the worker had no connection or no process for it, or the payload is of
    # a later version than the worker's code.
    waited: bool = False

    @classmethod
    def from_exception(cls, error: BaseException) -> Raised:
        """Describe what a handler raised.

        The description begins with the error's type and message. The errors in it, its causes and
        the last lines of the traceback follow. The description is bounded: a user's error may be a
        hundred thousand errors deep, or 50 MB long. Never raises.
        """
        return cls(error=_described(error), kinds=_kinds_of(error))


@attrs.frozen
class Stopped:
    """The handler's scope was cancelled, or the handler was never started."""


@attrs.frozen(kw_only=True)
class Written:
    """What a handler returned in a process of its own, as JSON that was made there."""

    text: str | None  # None: nothing
    refused: str | None = None  # why it cannot be stored


Ended = Returned | Raised | Stopped


def is_wish(kind: type) -> bool:
    """Tell whether a class is Snooze, Retry or Discard."""
    return issubclass(kind, _Wish)


def innermost(error: BaseException) -> BaseException:
    """Return the one error in a group of one, however deep; if it is no such group, the error."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def ended_by(error: BaseException) -> Returned | Raised:
    """Return how a handler that raised has ended.

    A wish that is raised counts as a wish that is returned, even if the handler's own nursery has
    wrapped it in a group.
    """
    cause = innermost(error)
    if isinstance(cause, _Wish):
        return Returned(cause.with_traceback(None))  # its frames hold what the handler held
    return Raised.from_exception(error)


class SettleKind(StrEnum):
    """How an execution is settled: each word is a way of sql/functions/end."""

    COMPLETE = "complete"
    RETRY = "retry"
    SNOOZE = "snooze"
    RELEASE = "release"
    CANCEL = "cancel"
    BURY = "bury"


@attrs.frozen(kw_only=True)
class Outcome:
    """How an execution ended: what is to be written of it."""

    kind: SettleKind
    name: str  # as the history calls it: completed, failed, timed_out, ...
    delay_seconds: float = 0.0
    error_message: str | None = None
    result_json: str | None = None
    # Of a dead letter: exhausted, discarded, undecodable, unknown_job_type.
    reason: str | None = None


def holds_ctrl_c(error: BaseException, raised_by: CodeType | None = None) -> bool:
    """Tell whether an exception is a KeyboardInterrupt, or a group with one in it.

    It does not recurse: a user's groups may be deep.

    Args:
        error: what was raised.
        raised_by: the code of the signal handler that turns Ctrl-C into a KeyboardInterrupt. If
            other code raised the interrupt, it is the program's own and does not count. None: the
            signal handler is not known, and every KeyboardInterrupt counts.
    """
    interrupts = (inner for inner in _unfold(error) if isinstance(inner, KeyboardInterrupt))
    return any(raised_by is None or _raiser(inner) is raised_by for inner in interrupts)


def _raiser(error: BaseException) -> CodeType | None:
    """Return the code that raised an exception: the innermost call of its traceback."""
    traceback_left, code = error.__traceback__, None
    while traceback_left is not None:
        code = traceback_left.tb_frame.f_code
        traceback_left = traceback_left.tb_next
    return code


# A subclass may answer `group.exceptions` itself. This reads what the interpreter keeps.
_exceptions_of = BaseExceptionGroup.__dict__["exceptions"].__get__


def _unfold(error: BaseException) -> Iterator[BaseException]:
    """Go through the errors in a group and in its inner groups, in order.

    It stops after ERRORS_IN_GROUP_MAX of them.
    """
    waiting = [error]
    for _ in range(ERRORS_IN_GROUP_MAX):
        if not waiting:
            return
        inner = waiting.pop()
        if isinstance(inner, BaseExceptionGroup):
            waiting.extend(reversed(_exceptions_of(inner)))
        else:
            yield inner


def _described(error: BaseException) -> str:
    lines = [_said(error)]
    try:
        if isinstance(error, BaseExceptionGroup):
            lines += [f"  {_said(inner)}" for inner in itertools.islice(_unfold(error), ERRORS_SHOWN_MAX)]
        notes = error.__dict__.get("__notes__", ())
        if isinstance(notes, list):
            lines += [_cut(note) for note in notes[:ERRORS_SHOWN_MAX] if type(note) is str]
        cause: BaseException | None = error
        for _ in range(ERRORS_SHOWN_MAX):
            cause = _cause_of(cause) or (None if _is_quiet(cause) else _context_of(cause))
            if cause is None or cause is error:
                break
            lines.append(f"after {_said(cause)}")
        lines.append("Traceback (most recent call last):")
        lines += [line.rstrip("\n") for line in traceback.format_tb(_traceback_of(error), limit=-FRAMES_SHOWN_MAX)]
    # traceback reads lines of source through the loaders of users' modules, which may raise
    # anything.
    except BaseException as second:  # noqa: BLE001
        lines.append(f"(the rest cannot be told: {name_of(second)})")
    return "\n".join(lines)


# These read what the interpreter keeps. A property of the user's class cannot answer in its place.
_cause_of = BaseException.__dict__["__cause__"].__get__
_context_of = BaseException.__dict__["__context__"].__get__
_is_quiet = BaseException.__dict__["__suppress_context__"].__get__
_traceback_of = BaseException.__dict__["__traceback__"].__get__


def _kinds_of(error: BaseException) -> frozenset[type[BaseException]]:
    """Return the class of what was raised; for a group, of the errors in it. Never raises."""
    try:
        return frozenset(map(type, _unfold(error)))
    except BaseException:  # noqa: BLE001  # an error of the user's may lie about its class, and raise when it is asked
        return frozenset({type(error)})


def _said(error: BaseException) -> str:
    return f"{name_of(error)}: {_cut(text_of(error))}"


def _cut(text: str) -> str:
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[: ERROR_CHARS_MAX // 2]}[...]{text[-ERROR_CHARS_MAX // 2 :]}"


def decide(
    ended: Ended,
    interrupt: Interrupt | None,
    *,
    attempt: int,
    max_attempts: int,
    retry: RetryPolicy,
    random: Callable[[], float],
    converter: Converter | None = None,
) -> Outcome | None:
    """Return what to write at the end of an execution; None if nothing may be written.

    Args:
        ended: how the handler ended.
        interrupt: why the handler was stopped, if it was.
        attempt: which attempt this was; 1 is the first.
        max_attempts: how many there may be.
        retry: the handler's policy.
        random: draws from 0 to 1, for the jitter.
        converter: the handler's own, which writes its result.

    If a handler was told to stop and returned nevertheless, it has done its work. Its job is
    completed, unless the lease is lost. If a cancel committed before that, the database refuses the
    completion.
    """

    def failed(error: str, name: str, reason: str, delay_seconds: float | None = None) -> Outcome:
        message = bounded(error)
        if attempt >= max_attempts:
            return Outcome(kind=SettleKind.BURY, name=name, error_message=message, reason=reason)
        delay = retry.delay_seconds(attempt, random()) if delay_seconds is None else delay_seconds
        return Outcome(kind=SettleKind.RETRY, name=name, error_message=message, delay_seconds=delay)

    if interrupt is not None and interrupt.kind is InterruptKind.LEASE_LOST:
        return None
    if isinstance(ended, Returned) and ended.value is None:
        return PLAIN_COMPLETION
    if isinstance(ended, Returned):
        return _settle_value(ended.value, failed, converter)
    if interrupt is not None:
        match interrupt.kind:
            case InterruptKind.CANCELLED:
                why = None if isinstance(ended, Stopped) else bounded(ended.error)
                return Outcome(kind=SettleKind.CANCEL, name="cancelled", error_message=why)
            case InterruptKind.TIMED_OUT:
                return failed(interrupt.why or "timed out", "timed_out", "exhausted")
            case InterruptKind.SHUTDOWN:
                return Outcome(kind=SettleKind.RELEASE, name="released", error_message=interrupt.why)
            case InterruptKind.LEASE_LOST:
                return None
            case _:
                assert_never(interrupt.kind)
    if isinstance(ended, Stopped):
        # The handler cancelled its own scope. That is a failure like any other.
        return failed("the handler cancelled its own scope", "failed", "exhausted")
    if ended.undecodable:
        return Outcome(kind=SettleKind.BURY, name="undecodable", error_message=bounded(ended.error), reason="undecodable")
    return _settle_error(ended, retry, failed)


def encode_result(value: object, converter: Converter | None = None) -> str | None:
    """Return what a handler returned as JSON text; None for None.

    Raises:
        InvalidPayload: it is not JSON that PostgreSQL can store.
    """
    return None if value is None else encode_value(value, bytes_max=RESULT_BYTES_MAX, what="result", converter=converter)


def bounded(text: str) -> str:
    """Return an error that can be stored and shown.

    Control characters are escaped. A long text is cut in the middle.
    """
    if len(text) > 2 * ERROR_CHARS_MAX:
        # Cut first. To escape an error of 50 MB, character by character, holds the event loop for
        # seconds.
        text = text[:ERROR_CHARS_MAX] + text[-ERROR_CHARS_MAX:]
    safe = "".join(c if c in "\n\t" or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF) else ascii(c)[1:-1] for c in text)
    if len(safe) <= ERROR_CHARS_MAX:
        return safe
    half = ERROR_CHARS_MAX // 2 - 10
    return f"{safe[:half]}\n[...]\n{safe[-half:]}"


def _settle_value(value: object, failed: _Failed, converter: Converter | None) -> Outcome:
    # isinstance would ask the value for its __class__, and a lazy proxy may raise there.
    if issubclass(type(value), _Wish):
        return _settle_wish(cast("Snooze | Retry | Discard", value), failed)
    if type(value) is type and issubclass(value, _Wish):
        # The handler forgot the parentheses. If the class counted as a result, it could not be
        # stored, and the job would be completed.
        return failed(f"the handler returned the class {value.__name__}: return {value.__name__}(...)", "failed", "exhausted")
    if type(value) is Written:
        message = None if value.refused is None else bounded(_NOT_STORED.format(value.refused))
        return Outcome(kind=SettleKind.COMPLETE, name="completed", result_json=value.text, error_message=message)
    try:
        return Outcome(kind=SettleKind.COMPLETE, name="completed", result_json=encode_result(value, converter))
    # A user's value may raise anything when it is looked into. This code runs outside of the
    # handler's own scope. The work is done. To do it again would not make its result any better.
    except BaseException as error:  # noqa: BLE001
        message = bounded(_NOT_STORED.format(why_not_stored(error)))
        return Outcome(kind=SettleKind.COMPLETE, name="completed", error_message=message)


_NOT_STORED = "completed, but its result was not stored: {}"


def why_not_stored(error: BaseException) -> str:
    """Return what to say of an error that `encode_result` raised."""
    return str(error) if isinstance(error, InvalidPayload) else f"{name_of(error)}: {text_of(error)}"


def _settle_error(raised: Raised, retry: RetryPolicy, failed: _Failed) -> Outcome:
    if raised.kinds and not retry.tries_again(raised.kinds):
        return Outcome(kind=SettleKind.BURY, name="discarded", error_message=bounded(raised.error), reason="discarded")
    return failed(raised.error, "failed", "unknown_job_type" if raised.unknown_type else "exhausted")


def _settle_wish(wish: Snooze | Retry | Discard, failed: _Failed) -> Outcome:
    match wish:
        case Snooze(seconds=seconds):
            return Outcome(kind=SettleKind.SNOOZE, name="snoozed", delay_seconds=seconds)
        case Retry(seconds=seconds, reason=reason):
            return failed(reason or "the handler asked for a retry", "failed", "exhausted", seconds)
        case Discard(reason=reason, quietly=quietly):
            message = bounded(reason) or "the handler discarded the job"
            if quietly:
                return Outcome(kind=SettleKind.CANCEL, name="cancelled", error_message=message)
            return Outcome(kind=SettleKind.BURY, name="discarded", error_message=message, reason="discarded")
        case _:
            assert_never(wish)


# The outcome of a handler that returned nothing: one value, so that others can compare by `is`.
PLAIN_COMPLETION = Outcome(kind=SettleKind.COMPLETE, name="completed")

if TYPE_CHECKING:
    from typing import Protocol

    class _Failed(Protocol):
        def __call__(self, error: str, name: str, reason: str, delay_seconds: float | None = None) -> Outcome: ...
