"""Backends that stand where Django's own test cases name Django's own backends: see `own_cases.py`."""

from __future__ import annotations

import functools
from typing import Any

import trio

from pgnotifyq.django import PgnotifyqBackend
from pgnotifyq.django.connections import address_of
from pgnotifyq.django.registry import registry
from pgnotifyq.testing import work_until_idle


class DummyBackend(PgnotifyqBackend):
    """In the place of Django's dummy: nothing runs; what was enqueued can be listed, and cleared."""

    @property
    def results(self) -> list[Any]:
        """What was enqueued."""
        from pgnotifyq.django.models import QueuedJob

        return [self.get_result(str(job.id)) for job in QueuedJob.objects.order_by("id")]

    def clear(self) -> None:
        """Forget it."""
        from pgnotifyq.django.models import QueuedJob

        QueuedJob.objects.all().delete()


class ImmediateBackend(PgnotifyqBackend):
    """In the place of Django's immediate one: a real worker has run the task when its enqueue returns. It tries once."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.max_attempts = 1

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Enqueue, work, and look."""
        from django.db import connections

        result = super().enqueue(task, args, kwargs)
        if not connections[self.database].in_atomic_block:
            registry.alias = self.alias
            trio.run(functools.partial(work_until_idle, registry, address_of(self.database), queues=[task.queue_name]))
            result.refresh()
        return result
