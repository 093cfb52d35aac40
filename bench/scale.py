"""Do two worker processes drain as fast as one, and is little lost to contention at four?"""

from __future__ import annotations

import statistics

from bench.drain import drain
from bench.support import open_server, options, report

PROCESSES = (1, 2, 4)


def main() -> None:
    """Ask the question."""
    question = "jobs/s of a drain by number of worker processes"
    asked = options(question, jobs=100_000, concurrency=500, runs=3)
    jobs, runs = (asked.jobs // 10, 1) if asked.quick else (asked.jobs, asked.runs)
    taken: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    with open_server() as server_dsn:
        for _ in range(runs):  # interleaved: the machine drifts
            for processes, rates in taken.items():
                rates.append(drain(server_dsn, jobs, asked.concurrency, processes))
    # Ratios within a round: what drifts slowly falls out.
    ratios = {
        processes: statistics.median(many / one for many, one in zip(rates, taken[1], strict=True))
        for processes, rates in taken.items()
    }
    medians = {processes: round(statistics.median(rates)) for processes, rates in taken.items()}
    told = ", ".join(f"{medians[processes]:,} with {processes} ({ratios[processes]:.2f} x)" for processes in PROCESSES)
    figures = {"jobs_per_second": medians, "ratio_to_one": {processes: round(ratio, 3) for processes, ratio in ratios.items()}}
    report(question, f"scale: jobs/s {told}", {**figures, "jobs": jobs}, asked.out)


if __name__ == "__main__":
    main()
