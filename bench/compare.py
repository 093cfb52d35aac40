"""Ours and the peers side by side: every question asked of us and of a peer in turn, so that what drifts hits both.

`--only drain,pickup --peers pgqueuer,graphile` asks less; `--write` keeps what was found, draws the charts and rewrites the
tables; `--render` does the latter alone. README.md says what each number means.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from bench import results
from bench.peers import measure
from bench.peers.catalogue import OURS, PEERS, Peer
from bench.peers.environment import ROOT, CannotInstallError
from bench.support import machine, open_server
from pgnotifyq._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.measure import Program
    from bench.results import Figures, Row


@attrs.frozen(kw_only=True)
class Scale:
    """How much is done."""

    jobs_share: float  # of each queue's own number of jobs
    jobs_max: int
    samples_share: float
    enqueue_seconds: float
    producers: tuple[int, ...]
    backlogs: tuple[int, ...]
    idle_seconds: float
    runs: int
    ours_once: bool = False  # a look: ours is asked once a question, not beside each peer

    def jobs(self, peer: Peer) -> int:
        """Return how many jobs a drain of this queue has."""
        return min(self.jobs_max, max(1000, round(peer.drain_jobs * self.jobs_share)))

    def samples(self, peer: Peer) -> int:
        """Return how many latencies are taken of this queue."""
        return max(15, round(peer.latency_samples * self.samples_share))


FULL = Scale(
    jobs_share=1, jobs_max=1_000_000, samples_share=1, enqueue_seconds=2, producers=(1, 8, 32),
    backlogs=(10_000, 100_000, 1_000_000), idle_seconds=30, runs=3,
)  # fmt: skip
QUICK = Scale(
    jobs_share=0.2,
    jobs_max=20_000,
    samples_share=0.1,
    enqueue_seconds=1,
    producers=(8,),
    backlogs=(10_000,),
    idle_seconds=5,
    runs=1,
)


def drain(program: Program, server: str, scale: Scale) -> Figures:
    """How many no-op jobs a second does a worker process finish?"""
    return measure.drain(program, server, scale.jobs(program.peer))


def processes(program: Program, server: str, scale: Scale) -> Figures:
    """And two processes, and four?"""
    return {
        "by_processes": {
            str(count): measure.drain(program, server, scale.jobs(program.peer), processes=count)["jobs_per_second"]
            for count in (1, 2, 4)
        }
    }


def pickup(program: Program, server: str, scale: Scale) -> Figures:
    """How soon does an idle worker start a job?"""
    return measure.pickup(program, server, scale.samples(program.peer))


def cancel(program: Program, server: str, scale: Scale) -> Figures:
    """How soon does a running handler stop?"""
    # Each takes one to two seconds where the queue looks for cancels once a second.
    samples = min(scale.samples(program.peer) // 3, 15 if program.peer.name == "saq" else 100)
    return measure.cancel(program, server, max(samples, 5))


def enqueue(program: Program, server: str, scale: Scale) -> Figures:
    """How many jobs a second can be enqueued, one by one and in bulk?"""
    by_producers = {
        str(count): measure.enqueue(program, server, count, 1, scale.enqueue_seconds, served=True) for count in scale.producers
    }
    return {"by_producers": by_producers, "bulk": measure.enqueue(program, server, 1, 1000, scale.enqueue_seconds, served=False)}


def backlog(program: Program, server: str, scale: Scale) -> Figures:
    """Does it get slower as more jobs wait?"""
    started = min(10_000, max(1000, program.peer.drain_jobs // 4))
    sizes = [size for size in scale.backlogs if size <= program.peer.backlog_max]
    return {"by_backlog": {str(size): measure.backlog(program, server, size, min(started, size)) for size in sizes}}


def snapshot(program: Program, server: str, scale: Scale) -> Figures:
    """Does a snapshot that somebody else holds open slow it down?"""
    return measure.drain(program, server, scale.jobs(program.peer) * 3, snapshot=True, seconds_max=150)


def idle(program: Program, server: str, scale: Scale) -> Figures:
    """What does an idle worker cost?"""
    return measure.idle(program, server, scale.idle_seconds)


QUESTIONS: dict[str, Callable[[Program, str, Scale], Figures]] = {
    "drain": drain,
    "pickup": pickup,
    "cancel": cancel,
    "enqueue": enqueue,
    "backlog": backlog,
    "snapshot": snapshot,
    "idle": idle,
    "processes": processes,
}
ONCE = frozenset({"idle", "snapshot", "backlog", "processes"})  # long: one run, unless --runs says more
QUICK_QUESTIONS = ("drain", "pickup", "cancel", "enqueue")


def row(question: str, peer: Peer, server: str, scale: Scale, runs: int, before: Sequence[Figures] = ()) -> Row:
    """Ask us and a peer in turn, and return both sides; a peer that does not install or run is told of with the reason.

    With `before`, ours is not asked again: those figures stand for it.
    """
    about = {"version": peer.version, "setting": peer.setting, "keeps": peer.keeps}
    if question == "cancel" and peer.cancel is None:
        return {**about, "error": "cannot cancel a running job"}
    about["ours_version"] = _commit()
    ours: list[Figures] = []
    theirs: list[Figures] = []
    try:
        program, own = measure.open_program(peer), measure.open_program(OURS)
        for run in range(runs):
            ours.append(before[run] if run < len(before) else QUESTIONS[question](own, server, scale))
            theirs.append(QUESTIONS[question](program, server, scale))
    except CannotInstallError as error:
        return {**about, "error": f"did not install: {error}"}
    except Exception as error:  # noqa: BLE001  # whatever a peer does, the others are measured
        failed = OURS.name if len(ours) == len(theirs) else peer.name
        return {**about, "error": f"{failed} did not run: {error}", "ours": ours, "peer": theirs}
    return {**about, "ours": ours, "peer": theirs}


def _commit() -> str:
    """Return the commit of ours, with a plus if files of the package differ from it; its version where there is no repository."""
    git = ["git", "-C", str(ROOT)]
    told = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if told.returncode:
        return __version__
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "pgnotifyq", "sql"], check=False).returncode
    return told.stdout.strip() + ("+" if changed else "")


def tell_readme(found: dict[str, dict[str, Any]]) -> str:
    """Return what the README says between its markers."""
    return f"""{results.table(found)}

Taken {results.taken(found)}, on two shared cores, PostgreSQL 18 with its defaults (fsync on), one worker process each, each
queue at its best setting; medians of interleaved runs, ratios of pairs. {results.disturbed(found)}Settings, and what each queue keeps
and checks: [bench/README.md](bench/README.md).

{results.pictures(("drain", "pickup", "producers"), "bench/charts")}"""


def tell_bench_readme(_: dict[str, dict[str, Any]]) -> str:
    """Return what bench/README.md says between its markers."""
    return "\n\n".join([results.settings_table(), results.pictures(("cancel", "backlog", "snapshot"), "charts")])


def render() -> None:
    """Draw charts and rewrite tables from what is kept."""
    readmes = [(ROOT / "README.md", tell_readme), (ROOT / "bench" / "README.md", tell_bench_readme)]
    results.write(list(QUESTIONS), readmes)


def print_row(question: str, peer: Peer, found: Row) -> None:
    """Print one line for people: both sides of every figure, and the ratio."""
    if "error" in found:
        print(f"{question:9} {peer.name:13} {found['error']}", flush=True)
        return
    parts = []
    for path in _paths(found["peer"][0]):
        ours, theirs, ratio = (
            results.median_of(found["ours"], path),
            results.median_of(found["peer"], path),
            results.ratio_of(found, path),
        )
        if ours is not None and theirs is not None:
            parts.append(f"{path} {ours:,.4g} : {theirs:,.4g}" + ("" if ratio is None else f" ({ratio:.2f} x)"))
    print(f"{question:9} ours : {peer.name:13} " + "; ".join(parts), flush=True)


def _paths(figures: Figures, before: str = "") -> list[str]:
    found = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += _paths(value, f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "samples":
            found.append(f"{before}{name}")
    return found


def _chosen(names: str, known: Sequence[str], option: str) -> list[str]:
    chosen = [name for name in names.split(",") if name]
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"{option}: unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    return chosen or list(known)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"questions, of {','.join(QUESTIONS)}; default all")
    parser.add_argument("--peers", default="", help=f"peers, of {','.join(peer.name for peer in PEERS)}; default all")
    parser.add_argument("--runs", type=int, default=0, help="pairs of runs; default 3, and 1 for the long questions")
    parser.add_argument("--dsn", help="a server, whose role may create databases; default PGNOTIFYQ_DSN, else an embedded one")
    parser.add_argument("--quick", action="store_true", help="a look: four questions, less of each, one run")
    parser.add_argument("--write", action="store_true", help="keep the results, draw the charts, rewrite the tables")
    parser.add_argument("--render", action="store_true", help="measure nothing: draw and rewrite from what is kept")
    asked = parser.parse_args()
    if asked.render:
        render()
        return
    scale = QUICK if asked.quick else FULL
    questions = _chosen(asked.only or (",".join(QUICK_QUESTIONS) if asked.quick else ""), list(QUESTIONS), "--only")
    peers = [peer for peer in PEERS if peer.name in _chosen(asked.peers, [peer.name for peer in PEERS], "--peers")]
    command = " ".join(["python -m bench compare", *(word for word in sys.argv[1:] if word != "--write")])
    taken = {"date": dt.datetime.now(tz=dt.UTC).date().isoformat(), "command": command, "quick": asked.quick}
    # Before the first of them: what comes later is the load that they make themselves.
    load = round(os.getloadavg()[0], 1)
    began = time.monotonic()
    with nullcontext(asked.dsn) if asked.dsn else open_server(settings={}) as server:
        for question in questions:
            runs = asked.runs or (1 if question in ONCE else scale.runs)
            before: Sequence[Figures] = ()
            for peer in peers:
                found = {"load_before": load, **row(question, peer, server, scale, runs, before)}
                if scale.ours_once:
                    before = found.get("ours", ()) or before
                print_row(question, peer, found)
                if asked.write:
                    results.store(question, {peer.name: {**taken, **found}}, machine())
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    if asked.write:
        render()


if __name__ == "__main__":
    main()
