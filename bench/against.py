"""Is this checkout as fast as another one? Scripts of both run in turn, and the ratio is that of the pairs.

    python -m bench against ../before --python ../before/.venv/bin/python --pairs 5

Each checkout runs its own scripts under its own interpreter, so that each measures its own code. Of two runs that follow each
other closely the machine makes less of a difference than of two sittings, and the order changes from pair to pair: what drifts
slowly, drifts out of the ratio. Figures that only one of the two has are left out.

The ratio is that of speeds: above 1 this checkout is faster, whether the figure is a rate or a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.support import report

HERE = Path(__file__).resolve().parent.parent
# What each question is asked with: enough for one figure, for the pairs do the repeating.
QUESTIONS = {
    "drain": "--jobs 60000 --runs 1",
    "pickup": "--samples 200",
    "cancel": "--samples 150",
    "enqueue": "--seconds 1.5 --runs 1 --jobs 50000",
}
RATE = "jobs_per_second"
TIME = "p50_ms"
CPU = "cpu_us"
INSTRUCTIONS = "instructions"


def figures_of(answer: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, float]:
    """Return the rates, median times, CPU times and instructions of a script's JSON, by where they are in it."""
    found: dict[str, float] = {}
    for name, value in answer.items():
        where = (*path, name)
        if isinstance(value, dict):
            found |= figures_of(value, where)
        elif isinstance(value, (int, float)) and (RATE in where or CPU in where or name in {TIME, INSTRUCTIONS}):
            found[", ".join(where)] = float(value)
    return found


def ratio(name: str, here: float, there: float) -> float:
    """Return how many times as fast this checkout is by one figure."""
    return there / here if name.endswith((TIME, INSTRUCTIONS)) or CPU in name else here / there


def asked(question: str, options: str, folder: Path, python: Path) -> dict[str, float]:
    """Ask one checkout a question."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [str(python), "-m", "bench", question, *shlex.split(options)]
    told = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"{shlex.join(command)} in {folder} failed:\n{told.stderr}")
    return figures_of(json.loads(told.stdout))


def pairs_of(question: str, options: str, other: tuple[Path, Path], pairs: int) -> list[dict[str, tuple[float, float]]]:
    """Ask both checkouts in turn; return each pair's figures, this checkout's first."""
    this = (HERE, Path(sys.executable))
    taken = []
    for number in range(pairs):
        order = [this, other] if number % 2 == 0 else [other, this]
        answers = {checkout: asked(question, options, *checkout) for checkout in order}
        taken.append({name: (answers[this][name], answers[other][name]) for name in answers[this] if name in answers[other]})
        for name, (here, there) in taken[-1].items():
            print(f"  {question}, {name}: {here:,.6g} against {there:,.6g}, {ratio(name, here, there):.3f} x", file=sys.stderr)
    return taken


def summary(pairs: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """Return, of each figure, both medians, the median of the ratios, and all ratios."""
    found: dict[str, dict[str, Any]] = {}
    for name in pairs[0]:
        both = [pair[name] for pair in pairs if name in pair]
        ratios = [round(ratio(name, *pair), 3) for pair in both]
        here, there = (statistics.median(side) for side in zip(*both, strict=True))
        found[name] = {"here": here, "there": there, "ratio": statistics.median(ratios), "ratios": ratios}
    return found


def main() -> None:
    """Ask the questions."""
    question = "how many times as fast as another checkout"
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("other", type=Path, help="the other checkout's folder")
    parser.add_argument("--python", type=Path, help="its interpreter; default .venv/bin/python in that folder")
    parser.add_argument("--only", default=",".join(QUESTIONS), help="questions; default %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="default 5")
    parser.add_argument("--options", help="of the questions' scripts, in place of ours")
    parser.add_argument("--quick", action="store_true", help="one pair, each question --quick")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    wanted = parser.parse_args()
    other = wanted.other.resolve()
    # Not resolved: an environment's interpreter is a link, and by the link it knows its environment.
    python = Path(wanted.python or other / ".venv/bin/python").absolute()
    told: dict[str, Any] = {}
    for name in wanted.only.split(","):
        options = "--quick" if wanted.quick else QUESTIONS.get(name, "") if wanted.options is None else wanted.options
        told[name] = summary(pairs_of(name, options, (other, python), 1 if wanted.quick else wanted.pairs))
    lines = [
        f"{name}, {figure}: {found['ratio']:.3f} x ({found['here']:,.6g} against {found['there']:,.6g})"
        for name, all_found in told.items()
        for figure, found in all_found.items()
    ]
    report(question, "\n".join(lines), {"questions": told}, wanted.out)


if __name__ == "__main__":
    main()
