"""A wake-up that names its job: an idle worker takes that job by its key.

Looking at the queues is what a worker does that does not know what there is: it finds the highest priority, what is left of it, and
when the next job falls due. An idle worker knows that its queues were empty, and the insert of a single job says which job is
new. To take that one costs the server two thirds of a look (bench/README.md).

Rules:

- By the connection that heard it, the listener's: its session has just been awake, and one that has slept takes 0.06 ms longer.
- Only after a lull, and when nothing else has rung: wake-ups that come one upon the other are the claimer's, which takes many jobs at
  once and finds out when the worker is no sleeper any more.
- The permit is taken first, as for any job that the claimer does not bring (runtime/handover.py).
- A job that was not taken, and not by anybody else either, rings for the claimer: as if the wake-up had named nothing. So whatever
  hinders it here loses no job, and what sleep.py says of wake-ups holds as it stands.
- A name is a hint, and anybody can send one. It can bring nothing but a job of the worker's own queues that is due anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pgnotifyq.ledger import claim
from pgnotifyq.runtime.running import Running
from pgnotifyq.runtime.settler import RELEASED
from pgnotifyq.runtime.sleep import LULL_SECONDS
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.parts import Parts
    from pgnotifyq.wire.connection import Connection


async def answer(parts: Parts, named: JobId | None, connection: Connection) -> None:
    """Answer a wake-up: take the job that it names, when the worker is idle, else ring for the claimer.

    Args:
        parts: the worker's.
        named: the job, if the wake-up named one; anybody can send one.
        connection: by which it was heard.

    Raises:
        trio.TooSlowError, psycopg.Error: no answer, or none that can be used; whoever listens anew rings for the claimer.
    """
    now = trio.current_time()
    is_lulled = now - parts.woken_at > LULL_SECONDS
    parts.woken_at = now
    is_idle = is_lulled and parts.saw_queues_empty and not parts.bell.is_ringing and not parts.executions.is_draining
    if named is None or not is_idle or parts.executions.is_backed_up or not parts.executions.reserve(1):
        parts.bell.ring()
        return
    try:
        with trio.fail_after(parts.quick.deadline_seconds, shield=True):
            found = await ask(
                connection,
                claim.claim_named(
                    parts.config.schema,
                    worker_id=parts.worker_id,
                    queues=parts.config.queues,
                    job_id=named.hex,
                    lease_seconds=parts.config.lease_seconds,
                    only=parts.served.wanted,
                ),
            )
    except BaseException:
        parts.executions.take_up((), 1)
        raise
    if found.job is None:
        parts.executions.take_up((), 1)
        if found.is_still_there:
            parts.bell.ring()
        return
    running = Running(job=found.job, renewed_at=now)
    if parts.executions.is_closed:
        # The worker drained meanwhile, and nobody of it starts anything.
        parts.executions.hold(running)
        parts.settler.add(running, RELEASED)
        return
    parts.executions.take_up([running], 1)
