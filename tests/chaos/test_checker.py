"""The checker, seen red: each promise broken once on paper, beside a run in which nothing is wrong."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from tests.chaos.checker import check, forgotten, recovered
from tests.chaos.evidence import Begun, Book, Evidence, Execution, Job

if TYPE_CHECKING:
    from collections.abc import Callable

IDS = {name: uuid.UUID(int=number) for number, name in enumerate(("done", "dead", "stopped", "doubtful", "stranger"), 1)}
E1, E2, E3, E4, E5 = (uuid.UUID(int=100 + number) for number in range(5))


def a_job(name: str, status: str, attempts: int, **fields: Any) -> Job:
    return Job(id=IDS[name], token=name, job_type="inside", status=status, attempts=attempts, max_attempts=2, **fields)


def ran(execution_id: uuid.UUID, name: str, attempt: int, outcome: str, at: float) -> Execution:
    return Execution(id=execution_id, job_id=IDS[name], attempt=attempt, outcome=outcome, claimed_at=at, ended_at=at + 1)


def began(execution_id: uuid.UUID, name: str, at: float) -> Begun:
    return Begun(token=name, job_id=IDS[name], execution_id=execution_id, scheduled_at=0.0, started_at=at)


def sound() -> Evidence:
    """Return what a run leaves in which a worker was killed twice, a job cancelled, and an enqueue's answer lost."""
    acknowledged = {name: IDS[name] for name in ("done", "dead", "stopped")}
    book = Book(
        attempted={*acknowledged, "doubtful", "rolled back", "never arrived"},
        acknowledged=acknowledged,
        rolled_back={"rolled back"},
        ordered={"done", "never arrived"},
        cancelling={IDS["stopped"]},
        cancelled={IDS["stopped"]},
    )
    jobs = [
        a_job("done", "completed", 2),
        a_job("dead", "dead", 2, reason="lost"),
        a_job("stopped", "cancelled", 1),
        a_job("doubtful", "cancelled", 0),
    ]
    book.cancelling.add(IDS["doubtful"])
    executions = [
        ran(E1, "done", 1, "lost", 10.0),
        ran(E2, "done", 2, "completed", 12.0),
        ran(E3, "dead", 1, "lost", 10.0),
        ran(E4, "dead", 2, "lost", 12.0),
        ran(E5, "stopped", 1, "cancelled", 10.0),
    ]
    begun = [began(E1, "done", 10.0), began(E2, "done", 12.0), began(E3, "dead", 10.0), began(E4, "dead", 12.0)]
    return Evidence(
        book=book, jobs=jobs, executions=executions, effects=[(IDS["done"], E2)], begun=begun, orders=["done"], left_behind=[]
    )


def invariants(evidence: Evidence) -> set[str]:
    return {finding.invariant for finding in check(evidence)}


def test_nothing_wrong() -> None:
    """Losses that are recorded, and a commit in doubt that turns out either way, are no findings."""
    assert check(sound()) == []
    assert recovered(sound()) == {"doubtful"}


def without(name: str) -> Callable[[Evidence], Evidence]:
    return lambda evidence: attrs.evolve(evidence, jobs=[job for job in evidence.jobs if job.token != name])


def changed(name: str, **fields: Any) -> Callable[[Evidence], Evidence]:
    return lambda evidence: attrs.evolve(
        evidence, jobs=[attrs.evolve(job, **fields) if job.token == name else job for job in evidence.jobs]
    )


def reran(execution_id: uuid.UUID, **fields: Any) -> Callable[[Evidence], Evidence]:
    return lambda evidence: attrs.evolve(
        evidence,
        executions=[attrs.evolve(one, **fields) if one.id == execution_id else one for one in evidence.executions],
    )


def more(**lists: list[Any]) -> Callable[[Evidence], Evidence]:
    return lambda evidence: attrs.evolve(evidence, **{name: getattr(evidence, name) + added for name, added in lists.items()})


def noted(**sets: set[Any]) -> Callable[[Evidence], Evidence]:
    return lambda evidence: attrs.evolve(
        evidence, book=attrs.evolve(evidence.book, **{name: getattr(evidence.book, name) | added for name, added in sets.items()})
    )


STRANGER = Job(id=IDS["stranger"], token="stranger", job_type="outside", status="completed", attempts=0, max_attempts=2)
TWICE = attrs.evolve(STRANGER, token="done")


@pytest.mark.parametrize(
    ("broken", "invariant"),
    [
        pytest.param(without("done"), "I1", id="lost"),
        pytest.param(changed("done", id=IDS["stranger"]), "I1", id="another job in its place"),
        pytest.param(more(orders=["never arrived"]), "I1", id="a business row without its job"),
        pytest.param(more(jobs=[STRANGER]), "I2", id="unexpected"),
        pytest.param(noted(rolled_back={"done"}), "I2", id="rolled back and there"),
        pytest.param(more(jobs=[TWICE]), "I2", id="enqueued once and there twice"),
        pytest.param(more(begun=[began(E1, "stranger", 10.0)]), "I2", id="ran and was not enqueued"),
        pytest.param(reran(E2, claimed_at=10.5), "I3", id="two live executions"),
        pytest.param(reran(E2, attempt=1), "I3", id="attempt not charged"),
        pytest.param(changed("done", attempts=1), "I3", id="attempts and history disagree"),
        pytest.param(more(effects=[(IDS["done"], E1)]), "I4", id="a stale execution wrote"),
        pytest.param(reran(E2, outcome="failed"), "I5", id="completed without a completion"),
        pytest.param(reran(E1, outcome="completed"), "I5", id="completed twice"),
        pytest.param(changed("stopped", is_held=True), "I6", id="held after its end"),
        pytest.param(changed("dead", max_attempts=1), "I7", id="more attempts than allowed"),
        pytest.param(changed("dead", max_attempts=3), "I7", id="dead before its time"),
        pytest.param(more(effects=[(IDS["done"], E2)]), "I8", id="effect twice"),
        pytest.param(lambda evidence: attrs.evolve(evidence, effects=[]), "I8", id="effect never"),
        pytest.param(more(begun=[began(E2, "done", 12.0)]), "I9", id="one execution ran twice"),
        pytest.param(more(begun=[began(uuid.uuid4(), "done", 14.0)]), "I9", id="unexplained duplicate"),
        pytest.param(changed("stopped", status="dead", reason="discarded"), "I10", id="cancel accepted, not cancelled"),
        pytest.param(noted(cancelled={IDS["done"]}), "I10", id="cancel accepted, completed"),
        pytest.param(more(begun=[attrs.evolve(began(E5, "stopped", 10.0), scheduled_at=11.0)]), "I12", id="before its time"),
        pytest.param(more(executions=[ran(uuid.uuid4(), "stranger", 1, "completed", 1.0)]), "I14", id="executions of no job"),
        pytest.param(changed("done", status="pending"), "liveness", id="not drained"),
        pytest.param(more(left_behind=["session 1"]), "liveness", id="left behind"),
        pytest.param(lambda evidence: attrs.evolve(evidence, book=attrs.evolve(evidence.book, findings=["x"])), "run", id="told"),
    ],
)
def test_something_wrong(broken: Callable[[Evidence], Evidence], invariant: str) -> None:
    """Each promise that is broken is found, under its own name."""
    assert invariant in invariants(broken(sound()))


def test_suspect() -> None:
    """An attempt that was given back in doubt, and charged when the job was lost again, is counted once."""
    suspected = "the worker died again; not charged, to be run apart from what ran beside it"
    evidence = reran(E3, why=suspected)(reran(E4, attempt=1, why="the worker died")(sound()))
    assert check(evidence) == []
    cancelled = changed("dead", status="cancelled", attempts=2, reason=None)(noted(cancelling={IDS["dead"]})(evidence))
    assert check(cancelled) == []
    assert "I3" in invariants(reran(E4, why="the worker died")(reran(E3, why=suspected)(sound())))
    assert "I3" in invariants(reran(E4, attempt=1, why="the lease ran out")(reran(E3, why=suspected)(sound())))


def test_claim_that_a_crash_undid() -> None:
    """An execution without a row is explained by a crash that came soon after its claim, and by nothing else."""
    execution_id = uuid.uuid4()
    evidence = more(begun=[began(execution_id, "done", 9.0)])(sound())
    assert invariants(evidence) == {"I9"}
    for crash, explained in (((9.5, 9.6), True), ((8.0, 8.5), False), ((12.0, 12.1), False)):
        crashed = attrs.evolve(evidence, book=attrs.evolve(evidence.book, crashes=[crash]))
        assert (invariants(crashed) == set()) is explained
        assert [begun.execution_id for begun in forgotten(crashed)] == ([execution_id] if explained else [])
