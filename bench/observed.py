"""What does it cost a worker to be seen? CPU of the worker process a job, in a drain of no-op jobs.

In turn: as it comes; with metrics, scraped every second; with traces whose spans are dropped by the sampler; with spans that are made.
CPU and not the clock, for other work on the machine disturbs it less. The server's share is not in it.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

import trio

from bench.drain import LOOK_SECONDS, _is_dry
from bench.support import noop_registry, open_database, open_server, options, preload, report
from pgnotifyq.cli.worker import spare_the_collector
from pgnotifyq.runtime.worker import run_worker

WAYS = ("plain", "metrics", "dropped", "traced")


def main() -> None:
    """Ask the question."""
    question = "CPU of a worker a job, seen and not"
    asked = options(question, jobs=40_000, concurrency=100, runs=5)
    jobs, runs = (asked.jobs // 10, 2) if asked.quick else (asked.jobs, asked.runs)
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    with open_server() as server_dsn:
        for _ in range(runs):
            for way in WAYS:
                with open_database(server_dsn) as dsn:
                    preload(dsn, jobs)
                    code = "from bench.observed import work; import sys; work(*sys.argv[1:])"
                    command = [sys.executable, "-c", code, dsn, str(asked.concurrency), way]
                    ran = subprocess.run(command, check=True, capture_output=True, text=True)
                    spent[way].append(json.loads(ran.stdout) / jobs * 1e6)
    medians = {way: statistics.median(each) for way, each in spent.items()}
    figures: dict[str, Any] = {
        "microseconds_a_job": {way: round(median, 1) for way, median in medians.items()},
        "runs": {way: [round(one, 1) for one in each] for way, each in spent.items()},
        "jobs": jobs,
        "concurrency": asked.concurrency,
    }
    line = ", ".join(f"{way} {median:.1f} µs" for way, median in medians.items())
    report(question, f"observed: {line} of CPU a job (medians of {runs}, in turn)", figures, asked.out)


def work(dsn: str, concurrency: str, way: str) -> None:
    """Be one worker process: run until nothing is due, and print the CPU that it took, in seconds."""
    settings: dict[str, Any] = {"concurrency": int(concurrency)}
    if way == "metrics":
        settings["http"] = "127.0.0.1:0"
    if way in {"dropped", "traced"}:
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

        import pgnotifyq.otel

        provider = TracerProvider(sampler=sampling.ALWAYS_ON if way == "traced" else sampling.ALWAYS_OFF)
        provider.add_span_processor(SimpleSpanProcessor(SpanExporter()))
        pgnotifyq.otel.instrument(tracer_provider=provider)

    async def drain() -> None:
        async with trio.open_nursery() as nursery:
            handle = await nursery.start(functools.partial(run_worker, noop_registry(), dsn, **settings))
            scraped_at = 0.0
            while not await trio.to_thread.run_sync(_is_dry, dsn):
                if way == "metrics" and time.monotonic() > scraped_at + 1:
                    scraped_at = time.monotonic()
                    await trio.to_thread.run_sync(_scrape, handle.http)
                await trio.sleep(LOOK_SECONDS)
            handle.drain()

    spare_the_collector()
    began = time.process_time()
    trio.run(drain)
    print(json.dumps(time.process_time() - began))


def _scrape(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        answer.read()


if __name__ == "__main__":
    main()
