"""Whoever locks several jobs locks them in id order, so that two batches never wait for each other."""

from __future__ import annotations

from typing import Any

import pytest

from pgnotifyq.ledger import end
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import ANN, BLOCKED, ENDINGS, SCHEMA, at_once, claim, enqueue, fetch, lease, until

Link = Connection[Any]


@pytest.mark.parametrize("verb", [*ENDINGS, "heartbeat"])
@pytest.mark.parametrize("shuffled", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]], ids=str)
def test_batch_that_meets_a_locked_job(connection: Link, other: Link, dsn: str, verb: str, shuffled: list[int]) -> None:
    """A batch that waits at its third job holds the two with lower ids, and not the one with a higher."""
    ids = [enqueue(connection) for _ in range(4)]
    jobs = claim(connection, 4)
    assert [job.id for job in jobs] == ids == sorted(ids)
    batch = [jobs[place] for place in shuffled]

    def act() -> None:
        if verb == "heartbeat":
            ask_blocking(
                other, lease_verbs.heartbeat(SCHEMA, worker_id=ANN, leases=[lease(job) for job in batch], lease_seconds=60.0)
            )
        else:
            ask_blocking(other, end.settle(SCHEMA, worker_id=ANN, settlements=[(lease(job), ENDINGS[verb]) for job in batch]))

    with at_once() as start, connection.transaction():
        connection.execute("select from pgnotifyq.jobs where id = %s for no key update", (ids[2],))
        start(act)
        until(dsn, BLOCKED, "other")
        with connect(dsn) as probe:
            free = fetch(probe, "select id from pgnotifyq.jobs order by id for no key update skip locked")
        assert [job_id for (job_id,) in free] == [ids[3]]
