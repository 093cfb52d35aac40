"""Run a command on a machine that stands still: `python -m tests.stutter python -m pytest tests/runtime`.

Every few seconds all of its processes are stopped for about a second, as a busy host does to a virtual machine. Whatever a test waits
for must bear that, and a lease that has to hold must be longer. Processes that a test has stopped itself stay stopped. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def is_running(pid: int) -> bool:
    """Tell whether a process is there and nobody has stopped it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "TtZX"


def stand_still(pid: int, seconds: float) -> None:
    """Stop a process and its descendants for a while."""
    stopped = []
    for one in family(pid):
        if is_running(one):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
                stopped.append(one)
    time.sleep(seconds)
    for one in stopped:
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGCONT)


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.stutter", description=__doc__.partition(":")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between pauses, on average")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds of a pause, on average")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if not asked.command:
        parser.error("name a command to run")
    chance = random.Random(asked.seed)
    with subprocess.Popen(asked.command, start_new_session=True) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(asked.every * chance.uniform(0.4, 1.6))
                stand_still(process.pid, asked.pause * chance.uniform(0.7, 1.3))
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            return process.wait()


if __name__ == "__main__":
    sys.exit(main())
