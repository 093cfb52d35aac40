"""`stack ID` and `explain ID --stack`: where a handler of a worker process stands, in lines of printable text."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import open_floor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP = """
import trio, pgnotifyq
registry = pgnotifyq.JobRegistry()
@registry.handler()
async def wait(payload: dict[str, object]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name="red \\x1b[31m")
"""


def test_running_handler(run: Callable[..., Any], dsn: str, tmp_path: Path) -> None:
    """Its tasks, call by call; the same as JSON; and beside an explanation."""
    (tmp_path / "shop.py").write_text(APP)
    with open_floor(dsn, tmp_path) as floor:
        floor.start("shop")
        job_id = floor.enqueue("wait")
        floor.until("count(*) = 1 from pgnotifyq.jobs where is_held")
        ran = run("stack", str(job_id))
        assert ran.code == 0, ran
        lines = ran.out.splitlines()
        assert lines[0] == "shop:wait is running, in trio"
        assert f"  {tmp_path / 'shop.py'}:6 in wait" in lines and "    async with trio.open_nursery() as nursery:" in lines
        assert "  trio red \\x1b[31m" in lines and all(line.isprintable() for line in lines)
        data = run("stack", str(job_id), "--json").data
        assert (data["id"], data["state"], [task["depth"] for task in data["tasks"]]) == (str(job_id), "running", [0, 1])
        both = run("explain", str(job_id), "--stack").out
        assert "It has been running for" in both and "shop.py:6 in wait" in both
        assert run("explain", str(job_id), "--stack", "--json").data["stack"]["state"] == "running"


def test_nothing_to_tell(run: Callable[..., Any]) -> None:
    """A job that nobody holds is told as that, with exit code 1; it is explained all the same."""
    job_id = run("enqueue", "x").out.strip()
    ran = run("stack", job_id)
    assert (ran.code, ran.out.strip()) == (1, "Its handler is ended: no worker holds the job")
    explained = run("explain", job_id, "--stack", "--json")
    assert explained.code == 0 and "stack" not in explained.data


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((str(uuid.uuid4()),), 1), (("nonsense",), 2), ((str(uuid.uuid4()), "--timeout-seconds", "nan"), 2)],
    ids=["unknown", "nonsense", "no time"],
)
def test_what_is_refused(run: Callable[..., Any], arguments: tuple[str, ...], code: int) -> None:
    """One line, and an exit code that says whether it was found or was wrong."""
    ran = run("stack", *arguments)
    assert (ran.code, len(ran.err.splitlines())) == (code, 1)
