"""Identity: who a worker is. Nothing here changes while the worker lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.model.job import WorkerId
    from pgnotifyq.model.registry import JobRegistry
    from pgnotifyq.runtime.meter import Meter
    from pgnotifyq.runtime.served import Served
    from pgnotifyq.runtime.telling import Telling


@attrs.frozen(eq=False, kw_only=True)
class Identity:
    """One worker, as all of its tasks know it."""

    worker_id: WorkerId
    registry: JobRegistry
    served: Served  # what the database knows of the registry
    config: WorkerConfig
    emit: Telling
    # Whether anybody listens to the events that every job makes. Two such events for each job cost
    # a tenth of the throughput.
    tells_routine: bool
    meter: Meter | None = None  # counts what the worker does, if anybody reads the counts
    random: random.Random  # for jitter
    # Copied from `config`, because they are asked for at each job.
    schema: str = attrs.field(init=False)
    queues: Sequence[str] = attrs.field(init=False)  # in order of preference
    lease_seconds: float = attrs.field(init=False)

    @schema.default
    def _schema(self) -> str:
        return self.config.schema

    @queues.default
    def _queues(self) -> Sequence[str]:
        return self.config.queues

    @lease_seconds.default
    def _lease_seconds(self) -> float:
        return self.config.lease_seconds
