"""Floods of forged notifications: `python -m tests.attacks.flood [--seconds 10]`.

A role that may connect, and nothing else, notifies as fast as two sessions can, on the channel that all workers hear. Meanwhile
jobs are enqueued, one at a time, for a worker that sleeps. Prints how long each takes to start, with the flood and without.
Exit code 1 if the slowest start under the flood is more than a second behind the slowest without it.
"""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import time
from typing import Any

import psycopg
import trio
from psycopg.conninfo import make_conninfo

import pgnotifyq
from pgnotifyq.embedded import open_temporary_server

DELAY_SECONDS_MAX = 1.0
PAUSE_SECONDS = 0.1
FORGED = (
    ("pgnotifyq_work", "default"),
    ("pgnotifyq_work", "work default 00000000-0000-7000-8000-000000000001"),
    ("pgnotifyq_work", "cancel 00000000-0000-7000-8000-000000000001 00000000-0000-7000-8000-000000000002"),
    ("pgnotifyq_work", "+company"),
    ("pgnotifyq_finished", "00000000-0000-7000-8000-000000000001"),
)


def _flood(dsn: str, over: threading.Event, sent: list[int]) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        turn = 0
        while not over.is_set():
            session.execute("select pg_notify(%s, %s)", FORGED[turn % len(FORGED)])
            turn += 1
        sent.append(turn)


async def _starts(dsn: str, seconds: float) -> list[float]:
    """Return how long each job took from the call of enqueue to the handler's start, in seconds."""
    registry, took = pgnotifyq.JobRegistry(), list[float]()

    @registry.handler("work")
    async def work(payload: dict[str, Any]) -> None:
        took.append(time.monotonic() - payload["at"])

    async with trio.open_nursery() as nursery, pgnotifyq.open_client(dsn) as client:
        worker = await nursery.start(functools.partial(pgnotifyq.run_worker, registry, dsn, on_event=lambda _: None))
        await trio.sleep(1)
        ends_at = trio.current_time() + seconds
        while trio.current_time() < ends_at:
            await client.wait(await client.enqueue("work", {"at": time.monotonic()}), timeout_seconds=60)
            await trio.sleep(PAUSE_SECONDS)
        worker.drain()
    return sorted(took)


def main() -> int:
    """Measure, and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    with open_temporary_server(settings={"fsync": "off"}) as server:
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("create role plain login")

        async def make() -> None:
            async with await pgnotifyq.connect(server.dsn) as connection:
                await pgnotifyq.migrate(connection)

        trio.run(make)
        calm = trio.run(_starts, server.dsn, seconds)
        over, sent = threading.Event(), list[int]()
        plain = make_conninfo(server.dsn, user="plain")
        threads = [threading.Thread(target=_flood, args=(plain, over, sent)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            flooded = trio.run(_starts, server.dsn, seconds)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    for name, took in (("calm", calm), ("flooded", flooded)):
        print(f"{name}: {len(took)} jobs, start after p50 {took[len(took) // 2] * 1000:.1f} ms, at most {took[-1] * 1000:.1f} ms")
    print(f"{sum(sent)} forged notifications")
    return 1 if flooded[-1] - calm[-1] > DELAY_SECONDS_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
