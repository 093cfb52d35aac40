"""`python -m tests.chaos --seed S --minutes M`: a run, its story, and its verdict.

Green: every invariant held, and every kind of fault landed in a moment when it could do harm. Red: something did not hold; the jobs
are named, with their history. Void: nothing was wrong, but some kind of fault missed, so nothing is proved of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from tests.chaos.checker import check, forgotten, history, recovered
from tests.chaos.nemesis import Struck, strike
from tests.chaos.producers import produce
from tests.chaos.schedule import LONG, SHORT, Planned, plan, scaled
from tests.chaos.stage import close_down, drain, open_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.chaos.checker import Finding
    from tests.chaos.evidence import Evidence
    from tests.chaos.schedule import Fault
    from tests.chaos.stage import Stage

GREEN, RED, VOID = 0, 1, 2
# Of the minutes asked for, what start, drain and check take.
ASIDE_SECONDS = 30.0
JOBS_A_SECOND = 22.0
FINDINGS_SHOWN_MAX = 20


@attrs.define
class Story:
    """What happened, for the account at the end."""

    planned: list[Planned]
    struck: list[tuple[Planned, Struck]] = attrs.field(factory=list)
    drain_seconds: float = 0.0


def main() -> int:
    """Run once; return 0 for green, 1 for red, 2 for void."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same schedule")
    parser.add_argument("--minutes", type=float, default=None, help="default 2; 22 with --long")
    parser.add_argument("--long", action="store_true", help="the long run: hundreds of faults, 21,000 jobs and more")
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    parser.add_argument("--schedule", action="store_true", help="print the schedule and do nothing")
    options = parser.parse_args()
    minutes = options.minutes or (22.0 if options.long else 2.0)
    seconds = max(minutes * 60 - ASIDE_SECONDS, 20.0)
    counts: Mapping[Fault, int] = LONG if options.long else scaled(SHORT, minutes / 2)
    story = Story(plan(options.seed, seconds, counts))
    print(f"seed {options.seed}: {len(story.planned)} faults in {seconds:g} s")
    for planned in story.planned:
        print(f"  {planned}")
    if options.schedule:
        return GREEN
    with tempfile.TemporaryDirectory(prefix="pgnotifyq-chaos-") as folder:
        evidence = trio.run(run, story, options.seed, seconds, Path(folder))
        return conclude(story, evidence, seed=options.seed, out=options.out)


async def run(story: Story, seed: int, seconds: float, folder: Path) -> Evidence:
    """Let producers, workers and nemesis loose for so many seconds, then let the queue drain; return the evidence."""
    async with open_stage(folder) as stage:
        print("the workers have started")
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            jobs = round(seconds * JOBS_A_SECOND)

            async def enqueue() -> None:
                await produce(stage.producers_cable.dsn, stage.book, seed=seed, jobs=jobs, seconds=seconds)

            nursery.start_soon(enqueue)
            for planned in story.planned:
                nursery.start_soon(_strike, stage, story, planned, began_at)
        story.drain_seconds = await drain(stage)
        return await close_down(stage)


async def _strike(stage: Stage, story: Story, planned: Planned, began_at: float) -> None:
    await trio.sleep_until(began_at + planned.at)
    struck = await strike(stage, planned)
    story.struck.append((planned, struck))
    mark = "" if struck.landed else "MISSED "
    at = trio.current_time() - began_at
    print(f"  {at:7.1f}  {planned.fault.value}, target {planned.target}: {mark}{struck.told}", flush=True)


def conclude(story: Story, evidence: Evidence, *, seed: int, out: Path | None) -> int:
    """Print the account and the verdict; return the exit code."""
    findings = check(evidence)
    faults = {
        fault.value: {"planned": sum(one.fault is fault for one in story.planned), "landed": landed}
        for fault, landed in _landed(story).items()
    }
    missed = [name for name, count in faults.items() if not count["landed"]]
    verdict = RED if findings else VOID if missed else GREEN
    figures = {
        "seed": seed,
        "verdict": ("green", "red", "void")[verdict],
        "faults": faults,
        **_count(evidence),
        **_measured(story),
        "drain seconds": round(story.drain_seconds, 1),
    }
    for name, count in faults.items():
        print(f"{name:<36} {count['landed']:>3} of {count['planned']} landed")
    for name, figure in figures.items():
        if name not in {"seed", "verdict", "faults"}:
            print(f"{name:<36} {figure}")
    if findings:
        _name(findings, evidence)
    if missed:
        print(f"did not land, so nothing is proved of it: {', '.join(missed)}")
    print(f"seed {seed}: {figures['verdict']}")
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return verdict


def _landed(story: Story) -> dict[Fault, int]:
    counts = dict.fromkeys((planned.fault for planned in story.planned), 0)
    for planned, struck in story.struck:
        counts[planned.fault] += struck.landed
    return counts


def _count(evidence: Evidence) -> dict[str, object]:
    book = evidence.book
    again = Counter(begun.job_id for begun in evidence.begun)
    return {
        "jobs attempted": len(book.attempted),
        "acknowledged": len(book.acknowledged),
        "rolled back": len(book.rolled_back),
        "recovered (commit in doubt)": len(recovered(evidence)),
        "ended as": dict(Counter(job.status for job in evidence.jobs).most_common()),
        "executions": len(evidence.executions),
        "executions ended as": dict(Counter(execution.outcome for execution in evidence.executions).most_common()),
        "begun under a claim that a crash undid": len(forgotten(evidence)),
        "jobs begun more than once, explained": sum(count > 1 for count in again.values()),
        "effects in the jobs' transactions": len(evidence.effects),
        "cancels accepted": len(book.cancelled),
    }


def _measured(story: Story) -> dict[str, object]:
    samples: defaultdict[str, list[float]] = defaultdict(list)
    for _, struck in story.struck:
        for name, value in struck.figures.items():
            samples[name].append(value)
    return {
        name: f"median {statistics.median(values):.2f}, longest {max(values):.2f}, {len(values)} times"
        for name, values in samples.items()
    }


def _name(findings: list[Finding], evidence: Evidence) -> None:
    """Say what is wrong, and of each job named, all that is known."""
    histories = history(evidence)
    for finding in sorted(findings)[:FINDINGS_SHOWN_MAX]:
        print(f"RED {finding}")
        for job in evidence.jobs:
            if job.id == finding.job_id:
                print(f"    {job}")
        for execution in histories.get(finding.job_id, []) if finding.job_id else []:
            print(f"    {execution}")
        for begun in evidence.begun:
            if begun.job_id == finding.job_id:
                print(f"    {begun}")
    if len(findings) > FINDINGS_SHOWN_MAX:
        print(f"RED and {len(findings) - FINDINGS_SHOWN_MAX} more")


if __name__ == "__main__":
    sys.exit(main())
