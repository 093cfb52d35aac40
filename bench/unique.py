"""What do unique keys cost? Bulks of 10,000 without keys, with keys, and with half of the keys taken, for each policy; and one by one."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import trio

from bench.support import open_database, open_server, options, report
from pgnotifyq.doors.client import open_client
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.unique import Unique

if TYPE_CHECKING:
    from pgnotifyq.model.unique import OnConflict

# How the key of job n is made, and what follows on conflict.
BULKS: dict[str, tuple[str | None, OnConflict]] = {
    "without keys": (None, "keep"),
    "keys, all new": ("new {n}", "keep"),
    "half duplicates of the batch, keep": ("{half}", "keep"),
    "half duplicates of the batch, replace": ("{half}", "replace"),
    "half duplicates of the batch, supersede": ("{half}", "supersede"),
    "half held before, keep": ("{held} {n}", "keep"),
    "half held before, replace": ("{held} {n}", "replace"),
    "by a field, all new": ("by", "keep"),
}
ONES: dict[str, tuple[str | None, OnConflict]] = {
    "one, without a key": (None, "keep"),
    "one, new": ("{n}", "keep"),
    "one, kept": ("k", "keep"),
    "one, replaced": ("k", "replace"),
    "one, superseding": ("k", "supersede"),
}


def unique(key: str | None, on_conflict: OnConflict, n: int, size: int) -> Unique | None:
    """Make what job n is unique by."""
    if key is None:
        return None
    if key == "by":
        return Unique(by=("n",), on_conflict=on_conflict)
    return Unique(key=key.format(n=n, half=n % (size // 2), held="held" if n % 2 else "new"), on_conflict=on_conflict)


async def bulk(dsn: str, key: str | None, on_conflict: OnConflict, size: int) -> float:
    """Return jobs a second of one bulk; those that are held before are there before."""
    async with open_client(dsn) as client:
        jobs = [NewJob(job_type="noop", payload={"n": n}, unique=unique(key, on_conflict, n, size)) for n in range(size)]
        held = [job for job in jobs if job.unique_key is not None and job.unique_key.startswith("held")]
        if held:
            await client.enqueue_many(held)
        began = time.monotonic()
        await client.enqueue_many(jobs)
        return size / (time.monotonic() - began)


async def one_by_one(dsn: str, key: str | None, on_conflict: OnConflict, count: int) -> float:
    """Return microseconds an enqueue."""
    async with open_client(dsn) as client:
        await client.enqueue("noop", {}, unique=unique(key, on_conflict, -1, count))
        began = time.monotonic()
        for n in range(count):
            await client.enqueue("noop", {"n": n}, unique=unique(key, on_conflict, n, count))
        return (time.monotonic() - began) / count * 1e6


def main() -> None:
    """Ask the question."""
    question = "unique keys: bulk, jobs/s, and one by one, microseconds"
    asked = options(question, runs=5, size=10_000, count=2000)
    runs, size, count = (1, 2000, 200) if asked.quick else (asked.runs, asked.size, asked.count)
    taken: dict[str, list[float]] = {}
    with open_server() as server_dsn:
        for _ in range(runs):  # interleaved: the machine drifts
            for name, (key, on_conflict) in BULKS.items():
                with open_database(server_dsn) as dsn:
                    taken.setdefault(name, []).append(trio.run(bulk, dsn, key, on_conflict, size))
            for name, (key, on_conflict) in ONES.items():
                with open_database(server_dsn) as dsn:
                    taken.setdefault(name, []).append(trio.run(one_by_one, dsn, key, on_conflict, count))
    medians = {name: round(statistics.median(values)) for name, values in taken.items()}
    base = medians["without keys"]
    ratios = {name: round(medians[name] / base, 2) for name in BULKS}
    line = "; ".join(f"{name} {value:,}" for name, value in medians.items())
    report(question, line, {"medians": medians, "of bulk without keys": ratios}, asked.out)


if __name__ == "__main__":
    main()
