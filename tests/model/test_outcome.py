"""What follows from how an execution ended."""

from __future__ import annotations

import copy
import os
import pickle
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq.model.outcome import (
    ERROR_CHARS_MAX,
    Discard,
    Ended,
    Interrupt,
    InterruptKind,
    Outcome,
    Raised,
    Retry,
    Returned,
    SettleKind,
    Snooze,
    Stopped,
    bounded,
    decide,
    ended_by,
    holds_ctrl_c,
)
from pgnotifyq.model.retry import RetryPolicy

if TYPE_CHECKING:
    from builtins import int as OnlyForTypeCheckers  # noqa: N812  # not there at run time, as cattrs will find
    from collections.abc import Callable

values = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.builds(Snooze, st.floats(0, 1000)),
    st.builds(Retry, st.one_of(st.none(), st.floats(0, 1000)), st.text()),
    st.builds(Discard, st.text()),
    st.just(object()),
    st.just(float("nan")),
)
endings: st.SearchStrategy[Ended] = st.one_of(
    st.builds(Returned, values),
    st.builds(Raised, error=st.text(), undecodable=st.booleans(), unknown_type=st.booleans()),
    st.just(Stopped()),
)
interrupts = st.one_of(st.none(), st.builds(Interrupt, kind=st.sampled_from(InterruptKind)))


def settle(ended: Ended, interrupt: Interrupt | None = None, attempt: int = 1, max_attempts: int = 3) -> Outcome | None:
    return decide(ended, interrupt, attempt=attempt, max_attempts=max_attempts, retry=RetryPolicy(), random=lambda: 0.5)


@given(endings, interrupts, st.integers(1, 5), st.integers(1, 5))
def test_every_ending_has_one_answer_and_a_lost_lease_writes_nothing(
    ended: Ended, interrupt: Interrupt | None, attempt: int, max_attempts: int
) -> None:
    """Nothing is written exactly when the lease is lost; retry never follows the last attempt; a bury has its reason."""
    settlement = settle(ended, interrupt, attempt, max_attempts)
    if interrupt is not None and interrupt.kind is InterruptKind.LEASE_LOST:
        assert settlement is None
        return
    assert settlement is not None
    if settlement.kind is SettleKind.RETRY:
        assert attempt < max_attempts
    assert (settlement.kind is SettleKind.BURY) == (settlement.reason is not None)
    assert "\x00" not in (settlement.error_message or "")
    assert len(settlement.error_message or "") <= ERROR_CHARS_MAX
    assert settlement.delay_seconds >= 0


@given(endings)
def test_a_shutdown_never_charges_an_attempt(ended: Ended) -> None:
    """A handler cut off by a shutdown is released; one that finished all the same is settled as it finished."""
    settlement = settle(ended, Interrupt(kind=InterruptKind.SHUTDOWN))
    assert settlement is not None
    assert isinstance(ended, Returned) or settlement.kind is SettleKind.RELEASE


@given(st.one_of(st.just(Stopped()), st.builds(Raised, error=st.text())))
def test_a_cancelled_handler_is_never_retried(ended: Ended) -> None:
    """However it ended, short of returning, a cancelled execution is closed as cancelled."""
    settlement = settle(ended, Interrupt(kind=InterruptKind.CANCELLED))
    assert settlement is not None
    assert settlement.kind is SettleKind.CANCEL


def test_a_timeout_is_a_failure_that_is_retried_then_buried() -> None:
    """Two attempts: the first is retried, the second sends the job to the dead letters."""
    timed_out = Interrupt(kind=InterruptKind.TIMED_OUT, why="timed out after 3 s")
    first = settle(Stopped(), timed_out, 1, 2)
    second = settle(Stopped(), timed_out, 2, 2)
    assert first is not None and (first.kind, first.name, first.error_message) == (
        SettleKind.RETRY,
        "timed_out",
        "timed out after 3 s",
    )
    assert second is not None and (second.kind, second.reason) == (SettleKind.BURY, "exhausted")


def test_a_payload_that_does_not_fit_is_buried_at_once() -> None:
    """Trying again would not make it fit."""
    settlement = settle(Raised(error="no", undecodable=True))
    assert settlement is not None
    assert (settlement.kind, settlement.reason) == (SettleKind.BURY, "undecodable")


def test_an_unknown_type_is_retried_before_it_is_buried() -> None:
    """A worker of the next release may know it; when none does, the job waits in the dead letters, not nowhere."""
    retried, buried = (settle(Raised(error="no", unknown_type=True), None, attempt, 2) for attempt in (1, 2))
    assert retried is not None and retried.kind is SettleKind.RETRY
    assert buried is not None and (buried.kind, buried.reason) == (SettleKind.BURY, "unknown_job_type")


def test_a_result_that_is_not_json_completes_and_says_so() -> None:
    """The work is done; it is not done again for the sake of its result."""
    settlement = settle(Returned(object()))
    assert settlement is not None
    assert settlement.kind is SettleKind.COMPLETE
    assert "was not stored" in str(settlement.error_message)


@given(st.text(alphabet=st.characters(), max_size=10_000))
def test_stored_errors_are_text_without_control_characters(text: str) -> None:
    """Whatever an exception says can be stored, shown and logged."""
    safe = bounded(text)
    assert len(safe) <= ERROR_CHARS_MAX
    safe.encode()
    assert all(c in "\n\t" or c.isprintable() for c in safe)


class Speechless(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unbound:
    """A lazy proxy outside of what it stands for."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("unbound")

    @__class__.setter
    def __class__(self, value: object) -> None: ...


@attrs.frozen
class Half:
    a: int


@attrs.frozen
class Annotated:
    at: OnlyForTypeCheckers


@pytest.mark.parametrize(
    "make",
    [lambda: Half.__new__(Half), lambda: Annotated(1), Unbound, lambda: [Unbound()], lambda: Half],
    ids=["half made", "annotation for type checkers", "unbound proxy", "unbound proxy in a list", "class"],
)
def test_a_result_that_cannot_be_looked_into_completes_and_says_so(make: Callable[[], object]) -> None:
    """`decide` runs outside of the handler: what it raised would end the worker and every job in it."""
    settlement = settle(Returned(make()))
    assert settlement is not None
    assert (settlement.kind, settlement.result_json) == (SettleKind.COMPLETE, None)
    assert "was not stored" in str(settlement.error_message)


def test_an_error_without_a_text_is_an_error_like_any_other() -> None:
    """The job is retried, and its error names the type."""
    settlement = settle(Raised.from_exception(Speechless()))
    assert settlement is not None
    assert settlement.kind is SettleKind.RETRY
    assert str(settlement.error_message).startswith("Speechless: ")


@pytest.mark.parametrize(("reason", "text"), [(ValueError("gone"), "gone"), (404, "404"), (Speechless(), "RuntimeError")])
def test_a_reason_may_be_the_error_itself(reason: Any, text: str) -> None:
    """`return Retry(reason=error)` is what people write."""
    for wish in (Retry(reason=reason), Discard(reason=reason)):
        settlement = settle(Returned(wish))
        assert settlement is not None
        assert text in str(settlement.error_message)


def test_an_error_of_many_megabytes_is_cut_before_it_is_escaped() -> None:
    """It keeps its beginning and its end; the middle is not walked, which would hold the loop for seconds."""

    class Counted(str):
        __slots__ = ()

        def __iter__(self) -> Any:
            raise AssertionError("walked whole")

    safe = bounded(Counted("a" * 5_000_000 + "z" * 5_000_000))
    assert len(safe) <= ERROR_CHARS_MAX
    assert (safe[0], safe[-1]) == ("a", "z")


WISHES = [Snooze(5), Snooze(seconds=5), Retry(), Retry(seconds=1.5, reason="busy"), Discard(reason="gone")]


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("depth", [0, 1, 2_000])
def test_a_wish_raised_is_the_wish_returned(wish: Any, depth: int) -> None:
    """Also out of a nursery of the handler's own, which makes a group of one; the frames are let go of."""
    raised: BaseException
    try:
        raise wish  # noqa: TRY301  # as a handler does
    except Exception as error:  # noqa: BLE001  # it is what a handler raises
        raised = error
    for _ in range(depth):
        raised = BaseExceptionGroup("nursery", [raised])
    assert ended_by(raised) == Returned(wish)
    assert settle(ended_by(raised)) == settle(Returned(wish))
    assert wish.__traceback__ is None


def test_a_wish_among_other_errors_is_a_failure_like_any() -> None:
    """Nobody can tell which of them counts."""
    for group in (ExceptionGroup("", [Snooze(5), ValueError("x")]), ExceptionGroup("", [Snooze(5), Discard("x")])):
        ended = ended_by(group)
        assert isinstance(ended, Raised)
        assert "ExceptionGroup" in ended.error


CHOOSY = RetryPolicy(retry_on=OSError, discard_on=FileNotFoundError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionResetError("x"), SettleKind.RETRY),
        (FileNotFoundError("x"), SettleKind.BURY),
        (ValueError("x"), SettleKind.BURY),
        (ExceptionGroup("nursery", [ExceptionGroup("nursery", [TimeoutError("x")])]), SettleKind.RETRY),
        (ExceptionGroup("nursery", [TimeoutError("x"), FileNotFoundError("x")]), SettleKind.BURY),
        (Retry(reason="asked for"), SettleKind.RETRY),
    ],
    ids=repr,
)
def test_errors_that_a_handler_says_are_tried_again(error: BaseException, kind: SettleKind) -> None:
    """Others end in a dead letter at the first attempt, with what was raised; a wish is taken at its word."""
    settlement = decide(ended_by(error), None, attempt=1, max_attempts=3, retry=CHOOSY, random=lambda: 0.5)
    assert settlement is not None
    assert settlement.kind is kind
    if kind is SettleKind.BURY:
        assert (settlement.name, settlement.reason) == ("discarded", "discarded")
        assert type(error).__name__ in (settlement.error_message or "")


@given(interrupts)
def test_an_error_of_a_handler_that_was_stopped(interrupt: Interrupt | None) -> None:
    """A shutdown or a cancel makes handlers raise what they would not else: their job is not discarded for it."""
    settlement = decide(ended_by(ValueError("x")), interrupt, attempt=1, max_attempts=3, retry=CHOOSY, random=lambda: 0.5)
    assert (settlement is not None and settlement.kind is SettleKind.BURY) == (interrupt is None)


@pytest.mark.parametrize("policy", [CHOOSY, RetryPolicy(retry_on=())], ids=["choosy", "nothing"])
@pytest.mark.parametrize(
    "ended", [Stopped(), Raised(error="no handler", unknown_type=True)], ids=["its own scope", "unknown type"]
)
def test_what_no_handler_raised_is_tried_again(ended: Ended, policy: RetryPolicy) -> None:
    """The handler said nothing of it."""
    settlement = decide(ended, None, attempt=1, max_attempts=3, retry=policy, random=lambda: 0.5)
    assert settlement is not None
    assert settlement.kind is SettleKind.RETRY


@pytest.mark.parametrize("wish", [Snooze, Retry, Discard])
def test_a_wish_without_parentheses_is_a_failure(wish: type) -> None:
    """Its job was completed, the wish being a result that could not be stored."""
    settlement = settle(Returned(wish))
    assert settlement is not None
    assert (settlement.kind, settlement.name) == (SettleKind.RETRY, "failed")
    assert f"return {wish.__name__}(...)" in str(settlement.error_message)


def test_wishes_are_values() -> None:
    """Equal when they say the same, frozen, copied and pickled as what they are."""
    for wish in WISHES:
        assert copy.deepcopy(wish) == wish == pickle.loads(pickle.dumps(wish))
        assert hash(copy.copy(wish)) == hash(wish)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            wish.seconds = 6  # type: ignore[attr-defined]
    assert Snooze(5) != Snooze(6)
    assert Snooze(5) != Retry(5)  # type: ignore[comparison-overlap]
    assert repr(Retry(seconds=1.5, reason="busy")) == "Retry(seconds=1.5, reason='busy')"


def nested(levels: int, leaf: BaseException) -> BaseException:
    """Return a group in a group in a group."""
    for _ in range(levels):
        leaf = BaseExceptionGroup("deep", [leaf])
    return leaf


class Rude(Exception):
    """An error that answers every question with an error that is no Exception."""

    def __str__(self) -> str:
        raise KeyboardInterrupt("asked")

    __repr__ = __str__

    @property
    def __cause__(self) -> Any:
        raise SystemExit

    @__cause__.setter
    def __cause__(self, value: object) -> None: ...

    @property
    def __traceback__(self) -> Any:
        raise GeneratorExit

    @__traceback__.setter
    def __traceback__(self, value: object) -> None: ...

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit


class RudeGroup(ExceptionGroup[Exception]):
    """A group that does not show what it holds."""

    @property
    def exceptions(self) -> Any:
        raise SystemExit


class Nameless(type):
    """A type that has no name."""

    @property
    def __name__(cls) -> Any:  # type: ignore[override]
        raise SystemExit


def circle() -> BaseException:
    """Return two errors that caused each other."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def noted() -> BaseException:
    """Return an error with notes of many lines."""
    error = ValueError("x")
    error.add_note("\n" * 50_000_000)
    return error


def long_chain() -> BaseException:
    """Return an error at the end of a chain of many."""
    error: BaseException = ValueError("first")
    for _ in range(3000):
        after = ValueError("after")
        after.__context__ = error
        error = after
    return error


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "group in a group": (lambda: nested(1500, ValueError("leaf")), "ValueError: leaf"),
    "group of very many": (lambda: ExceptionGroup("wide", [ValueError("leaf")] * 300_000), "ValueError: leaf"),
    "rude": (Rude, "Rude: (its text cannot be had: __str__ raised KeyboardInterrupt)"),
    "rude inside": (lambda: nested(3, Rude()), "ExceptionGroup: deep"),
    "group that hides": (lambda: RudeGroup("hidden", [ValueError("leaf")]), "ValueError: leaf"),
    "nameless": (lambda: Nameless("Nameless", (Exception,), {})("x"), "Nameless: x"),
    "circle": (circle, "after ValueError: second"),
    "notes": (noted, "ValueError: x"),
    "chain": (long_chain, "after ValueError: after"),
    "50 MB": (lambda: ValueError("\u20ac" * 50_000_000), "ValueError: \u20ac"),
}


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_is_raised_is_described(kind: str) -> None:
    """An error is described whatever it answers, however deep, long or round it is, within a bound."""
    make, expected = RAISED[kind]
    raised = Raised.from_exception(make())
    assert expected in raised.error
    assert len(raised.error) < 500_000
    settlement = settle(raised)
    assert settlement is not None
    assert len(str(settlement.error_message)) <= ERROR_CHARS_MAX


def test_an_error_tells_its_cause_and_where_it_was_raised() -> None:
    """The stored text has the error, what caused it, its notes and the last lines of its traceback."""
    try:
        try:
            os.environ["NO SUCH VARIABLE"]
        except KeyError as cause:
            raise ValueError("what") from cause
    except ValueError as error:
        error.add_note("look there")
        lines = Raised.from_exception(error).error.splitlines()
    assert lines[:4] == [
        "ValueError: what",
        "look there",
        "after KeyError: 'NO SUCH VARIABLE'",
        "Traceback (most recent call last):",
    ]
    assert 'raise ValueError("what") from cause' in "".join(lines[4:])


def test_ctrl_c_is_found_in_groups_however_deep() -> None:
    """And is not found where there is none."""
    assert holds_ctrl_c(KeyboardInterrupt())
    assert holds_ctrl_c(nested(1500, KeyboardInterrupt()))
    assert not holds_ctrl_c(nested(1500, SystemExit()))
    assert not holds_ctrl_c(RudeGroup("hidden", [ValueError()]))


class Interrupting(dict[str, Any]):
    """A value that raises when it is looked into, and no Exception."""

    def values(self) -> Any:
        raise self["kind"]

    __iter__ = items = keys = values


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_result_that_raises_no_exception_when_looked_into(kind: type[BaseException]) -> None:
    """The job is completed, and says that its result was not stored."""
    settlement = settle(Returned(Interrupting(kind=kind)))
    assert settlement is not None
    assert settlement.kind is SettleKind.COMPLETE
    assert "was not stored" in str(settlement.error_message)
