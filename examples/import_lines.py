"""A long import that goes on after its worker was killed, and has each line once.

The lines and the place where the import is (`ctx.save`) are written in one commit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import attrs
import trio

import pgnotifyq

DSN = os.environ["PGNOTIFYQ_DSN"]
LINES = 2000
AT_ONCE = 50

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class At:
    """Where the import is."""

    line: int


@registry.handler("import", queue="imports", saved_type=At)
async def import_lines(payload: dict[str, int], ctx: pgnotifyq.JobContext) -> dict[str, int]:
    """Import so many lines, some at once."""
    began = ctx.saved.line if ctx.saved is not None else 0
    for line in range(began, payload["lines"], AT_ONCE):
        async with ctx.transaction() as connection:
            await connection.execute(
                "insert into imported_lines select n from generate_series(%s::int, %s) as n", (line, line + AT_ONCE - 1)
            )
            await ctx.save(At(line + AT_ONCE))
        await trio.sleep(0.02)  # the file comes over a slow network
    return {"attempt": ctx.attempt, "began_at": began}


def start_worker() -> subprocess.Popen[bytes]:
    """Start a worker in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "worker"])  # noqa: S603  # this very program


async def main() -> None:
    """Start the import, kill its worker half way, and have another one end it."""
    connection = await pgnotifyq.connect(DSN)
    await connection.execute("create table if not exists imported_lines (line integer)")
    await connection.execute("truncate imported_lines")
    async with pgnotifyq.open_client(DSN) as client:
        first = start_worker()
        job_id = await client.enqueue(import_lines, {"lines": LINES})
        while (saved := (await client.get(job_id)).saved) is None or saved["line"] < LINES // 4:
            await trio.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        first.wait()
        print("the first worker was killed")

        second = start_worker()
        job = await client.wait(job_id)
        print(job.status, "by attempt", job.result["attempt"])
        print("it began at the start:", job.result["began_at"] == 0)
        second.terminate()
        second.wait()
    cursor = await connection.execute("select count(*), count(distinct line) from imported_lines")
    print("lines, and different ones:", await cursor.fetchone())
    await connection.execute("drop table imported_lines")
    await connection.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        trio.run(lambda: pgnotifyq.run_worker(registry, DSN, queues=["imports"]))
    else:
        trio.run(main)
