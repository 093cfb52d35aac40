"""Producers: they enqueue singly, in bulk, with a business row, and in transactions that they roll back; and note down what they did.

What is about to be enqueued is noted before, what was acknowledged after. Between the two a commit is in doubt: neither is wrong.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import trio

from pgnotifyq import open_client
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.errors import PgnotifyqError

if TYPE_CHECKING:
    from pgnotifyq.doors.client import Client
    from tests.chaos.evidence import Book

PRODUCERS = 3
PATIENCE_SECONDS = 5.0  # of one try: a cable may be frozen
PAUSE_SECONDS = 0.2  # after a failure
BULK = 12

# Job types, with their share and how long their handlers work, in seconds.
KINDS: list[tuple[str, float, float]] = [
    ("inside", 0.32, 0.05),
    ("stubborn", 0.06, 1.2),
    ("outside", 0.25, 0.05),
    ("inside", 0.06, 2.5),  # these outlive heartbeats, and are there to be lost
    ("outside", 0.04, 2.5),
    ("inside", 0.01, 8.0),  # longer than a lease
    ("threaded", 0.06, 0.1),
    ("flaky", 0.08, 0.02),
    ("hasty", 0.04, 0.05),
    ("snoozing", 0.06, 0.02),
    ("hopeless", 0.02, 0.0),
]
# So many that a job is lost with its worker now and then and is done in the end; hopeless ones die soon.
MAX_ATTEMPTS = 40
MAX_ATTEMPTS_HOPELESS = 2


async def produce(dsn: str, book: Book, *, seed: int, jobs: int, seconds: float) -> None:
    """Enqueue about so many jobs, evenly over so many seconds, whatever fails meanwhile."""
    began_at = trio.current_time()
    chosen = random.Random(seed)

    async def one(number: int) -> None:
        async with open_client(dsn) as client:
            while trio.current_time() < began_at + seconds:
                owed = jobs * (trio.current_time() - began_at) / seconds
                if len(book.attempted) >= owed:
                    await trio.sleep(0.02)
                    continue
                try:
                    with trio.fail_after(PATIENCE_SECONDS):
                        await _enqueue_some(client, book, chosen)
                except (Exception, trio.TooSlowError) as error:
                    if not isinstance(error, (trio.TooSlowError, PgnotifyqError)) and not is_passing(error):
                        raise
                    await trio.sleep(PAUSE_SECONDS)

    async with trio.open_nursery() as nursery:
        for number in range(PRODUCERS):
            nursery.start_soon(one, number)


async def _enqueue_some(client: Client, book: Book, chosen: random.Random) -> None:
    way = chosen.random()
    if way < 0.55:
        job = _new_job(book, chosen)
        book.acknowledged[job["payload"]["token"]] = await client.enqueue(**job)
    elif way < 0.75:
        jobs = [_new_job(book, chosen) for _ in range(chosen.randint(2, BULK))]
        ids = await client.enqueue_many(jobs)
        book.acknowledged.update(zip((job["payload"]["token"] for job in jobs), ids, strict=True))
    elif way < 0.9:
        job = _new_job(book, chosen)
        token = job["payload"]["token"]
        book.ordered.add(token)
        async with client._pool.connection() as connection, connection.transaction():
            await connection.execute("insert into orders values (%s)", (token,))
            job_id = await client.enqueue(**job, connection=connection)
        book.acknowledged[token] = job_id
    else:
        job = _new_job(book, chosen)
        book.rolled_back.add(job["payload"]["token"])
        async with client._pool.connection() as connection, connection.transaction(force_rollback=True):
            await client.enqueue(**job, connection=connection)


def _new_job(book: Book, chosen: random.Random) -> dict[str, Any]:
    """Make a job and note it as attempted."""
    (kind,) = chosen.choices(KINDS, weights=[share for _, share, _ in KINDS])
    job_type, _, seconds = kind
    token = f"{job_type}-{len(book.attempted)}"
    book.attempted.add(token)
    return {
        "job_type": job_type,
        "payload": {"token": token, "seconds": seconds * chosen.uniform(0.5, 1.5)},
        "priority": chosen.choice((0, 0, 0, 5)),
        "delay_seconds": chosen.choice((None, None, None, chosen.uniform(0, 5))),
        "max_attempts": MAX_ATTEMPTS_HOPELESS if job_type == "hopeless" else MAX_ATTEMPTS,
    }
