"""What the tasks of one worker share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import trio
import trio.lowlevel

from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.claim_size import ClaimSize
from pgnotifyq.runtime.deadlines import Deadlines
from pgnotifyq.runtime.executions import Executions
from pgnotifyq.runtime.listener import Push
from pgnotifyq.runtime.served import Served
from pgnotifyq.runtime.settler import Settler
from pgnotifyq.runtime.trust import Trust

if TYPE_CHECKING:
    import random

    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.telling import Telling
    from pgnotifyq.runtime.tenants import Databases


@attrs.define(eq=False, kw_only=True)
class Parts:
    """The state of one worker that outlives a step of one of its tasks."""

    worker_id: WorkerId
    registry: JobRegistry
    config: WorkerConfig
    emit: Telling
    random: random.Random
    # Claims, heartbeats, sleep, watch: short statements whose commits do not wait for the disk.
    quick: Link
    # Outcomes, reclaim, prune: durable.
    durable: Link
    # Signs of life, when the listener's session gives none (trust.py).
    beats: Link
    # Where LISTEN works: the same database, past any pooler.
    listen_dsn: str
    # Connections for handlers.
    databases: Databases
    trust: Trust
    executions: Executions
    threads: trio.CapacityLimiter
    # The way from a handler's thread into the loop.
    token: trio.lowlevel.TrioToken = attrs.field(factory=trio.lowlevel.current_trio_token, init=False)
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    settler: Settler = attrs.field(init=False)
    # What it has handlers for.
    served: Served = attrs.field(init=False)
    # What a claim asks for, at the most.
    claim_size: ClaimSize = attrs.field(factory=ClaimSize)
    push: Push = attrs.field(factory=Push)
    # Rung when there may be work.
    bell: Bell = attrs.field(factory=Bell)
    # Rung when other workers should be looked at at once.
    company: Bell = attrs.field(factory=Bell)
    # The last claim found less than it asked for, and nothing due was left behind: what is enqueued now is first.
    saw_queues_empty: bool = False
    # When a wake-up was last heard, on trio's clock.
    woken_at: float = -math.inf
    # Whether anybody listens to the events that every job makes; two a job cost a tenth of the throughput.
    tells_routine: bool = True

    def __attrs_post_init__(self) -> None:
        self.settler = Settler(self)
        self.served = Served(self.registry)
