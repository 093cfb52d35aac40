"""Each client, by way of a pooler in transaction mode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pgnotifyq.doors import ends
from tests.doors.every_door import CLIENTS
from tests.doors.test_every_client import complete, until

if TYPE_CHECKING:
    from tests.pooler.support import Pooler


@pytest.mark.parametrize("name", CLIENTS)
def test_verbs_behind_a_pooler(dsn: str, pooler: Pooler, name: str) -> None:
    """Statements that the pooler loses are said again, by many at once; the end of a job is found by looking."""
    with CLIENTS[name](pooler.dsn) as door, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(door.do, "enqueue", "noop", {"n": n}) for n in range(100)]
        ids = {one.result() for one in asked}
        assert len(ids) == 100
        assert {job.id for job in door.do("jobs", limit=1000)} == ids
        assert len(door.do("enqueue_many", [{"job_type": "noop", "queue": "q"}] * 2_000)) == 2_000  # by COPY
        wait = threads.submit(door.do, "wait", min(ids), 30.0)
        until(dsn, "exists (select from pgnotifyq.jobs where awaited)")
        complete(dsn, 100)
        assert wait.result().status == "completed"


@pytest.mark.parametrize("name", CLIENTS)
def test_wait_past_the_pooler(dsn: str, pooler: Pooler, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a direct address for LISTEN the end of a job is heard: nobody looks within the hour."""
    for seconds in ("LOOK_SECONDS", "LISTEN_RETRY_SECONDS"):
        monkeypatch.setattr(ends, seconds, 10_000.0)
    options: dict[str, Any] = {"listen_dsn": dsn}
    with CLIENTS[name](pooler.dsn, **options) as door, ThreadPoolExecutor(1) as threads:
        wait = threads.submit(door.do, "wait", door.do("enqueue", "noop"), 30.0)
        until(dsn, "exists (select from pgnotifyq.jobs where awaited)")
        complete(dsn)
        assert wait.result().status == "completed"
