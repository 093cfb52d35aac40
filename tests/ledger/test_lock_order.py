"""Whoever locks several jobs locks them in id order, so that two batches never wait for each other."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from pgnotifyq.ledger import end
from pgnotifyq.ledger import lease as lease_verbs
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection, open_connection
from tests.ledger.support import ANN, BLOCKED, ENDINGS, SCHEMA, claim, enqueue, fetch, lease
from tests.proxy import until

Link = Connection[Any]


@pytest.mark.parametrize("verb", [*ENDINGS, "heartbeat"])
@pytest.mark.parametrize("shuffled", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]], ids=str)
async def test_batch_that_meets_a_locked_job(connection: Link, other: Link, dsn: str, verb: str, shuffled: list[int]) -> None:
    """A batch that waits at its third job holds the two with lower ids, and not the one with a higher."""
    ids = [await enqueue(connection) for _ in range(4)]
    jobs = await claim(connection, 4)
    assert [job.id for job in jobs] == ids == sorted(ids)
    batch = [jobs[place] for place in shuffled]

    async def act() -> None:
        if verb == "heartbeat":
            await ask(
                other, lease_verbs.heartbeat(SCHEMA, worker_id=ANN, leases=[lease(job) for job in batch], lease_seconds=60.0)
            )
        else:
            await ask(other, end.settle(SCHEMA, worker_id=ANN, settlements=[(lease(job), ENDINGS[verb]) for job in batch]))

    async with trio.open_nursery() as nursery, connection.transaction():
        await connection.execute("select from pgnotifyq.jobs where id = %s for no key update", (ids[2],))
        nursery.start_soon(act)
        await until(dsn, BLOCKED, "other")
        async with open_connection(dsn) as probe:
            free = await fetch(probe, "select id from pgnotifyq.jobs order by id for no key update skip locked")
        assert [job_id for (job_id,) in free] == [ids[3]]
