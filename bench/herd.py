"""Sixteen idle workers, one job: how many claims are made for it?"""

from __future__ import annotations

import functools
import statistics
from typing import TYPE_CHECKING, Any

import trio

from bench.support import noop_registry, open_database, open_server, options, report
from pgnotifyq.ledger import claim
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.wire.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_SECONDS = 0.5  # for whatever else a job sets in motion


async def ask(dsn: str, workers: int, samples: int) -> list[int]:
    """Return how many claims were made for each of some jobs. The workers are tasks of this process, so it counts them."""
    made = 0

    def counted(claim: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            return claim(*arguments, **named)

        return count

    for name in ("claim", "claim_named"):
        setattr(claim, name, counted(getattr(claim, name)))
    per_job = []
    async with open_connection(dsn) as connection, trio.open_nursery() as nursery:
        for _ in range(workers):
            await nursery.start(functools.partial(run_worker, noop_registry(), dsn, concurrency=10))
        asleep = "select count(*) = %s from pgnotifyq.sleepers"
        while await (await connection.execute(asleep, (workers,))).fetchone() != (True,):  # noqa: ASYNC110
            await trio.sleep(0.05)
        await trio.sleep(QUIET_SECONDS)
        for _ in range(samples):
            made = 0
            # From outside: a client of this program would hand the job to a worker without any claim.
            await connection.execute("select pgnotifyq.enqueue('noop')")
            await trio.sleep(QUIET_SECONDS)
            per_job.append(made)
        nursery.cancel_scope.cancel()
    return per_job


def main() -> None:
    """Ask the question."""
    question = "claims made for one job by idle workers"
    asked = options(question, workers=16, samples=10)
    with open_server() as server_dsn, open_database(server_dsn) as dsn:
        per_job = trio.run(ask, dsn, asked.workers, 3 if asked.quick else asked.samples)
    figures = {"claims_per_job": per_job, "workers": asked.workers}
    report(
        question,
        f"herd: {asked.workers} idle workers made {statistics.median(per_job):g} claims for a job (median)",
        figures,
        asked.out,
    )


if __name__ == "__main__":
    main()
