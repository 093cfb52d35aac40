"""Events: each has the shape that the model gives for its name. conftest.py looks at those of every test of this folder."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trio

import pgnotifyq
from pgnotifyq import Event, EventName, JobRegistry
from pgnotifyq.model.events import SHAPES
from tests.runtime.shapes import fields_of, misfit

if TYPE_CHECKING:
    from pgnotifyq import JobContext
    from tests.runtime.support import Workplace

EXECUTION = {"job_id": uuid.UUID(int=1), "job_type": "resize", "queue": "images", "attempt": 1}


def test_every_event_has_a_shape() -> None:
    """No name without its fields, and every field of a known type."""
    assert list(SHAPES) == list(EventName)
    for name in EventName:
        assert all(kinds for kinds, _ in fields_of(name).values())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (EXECUTION, None),
        ({**EXECUTION, "seconds": 0.25, "why": "late"}, None),
        ({**EXECUTION, "seconds": 1}, None),
        ({**EXECUTION, "second": 0.25}, "unknown {'second'}"),
        ({"job_id": uuid.UUID(int=1), "job_type": "resize", "queue": "images"}, "missing {'attempt'}"),
        ({**EXECUTION, "job_id": "1"}, "of a wrong type {'job_id': '1'}"),
        ({**EXECUTION, "attempt": True}, "of a wrong type {'attempt': True}"),
        ({**EXECUTION, "why": None}, "of a wrong type {'why': None}"),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], words: str | None) -> None:
    """A field too many, one too few and one of a wrong type are each seen."""
    told = misfit(Event(name=EventName.JOB_COMPLETED, fields=fields))
    assert told is None if words is None else words in str(told)


async def test_events_of_a_worker(place: Workplace) -> None:
    """A worker tells of all that becomes of jobs, each event with its fields."""
    registry = JobRegistry()
    started = trio.Event()

    @registry.handler("ends")
    async def ends(payload: dict[str, str], ctx: JobContext) -> object:
        wishes: dict[str, object] = {
            "snooze": pgnotifyq.Snooze(60),
            "retry": pgnotifyq.Retry(60, reason="later"),
            "discard": pgnotifyq.Discard(reason="never"),
        }
        return wishes.get(payload["how"])

    @registry.handler("waits")
    async def waits(payload: object) -> None:
        started.set()
        await trio.sleep_forever()

    @registry.handler("is_late", timeout_seconds=0.01, max_attempts=1)
    async def is_late(payload: object) -> None:
        await trio.sleep_forever()

    worker = await place.start(registry, shutdown_seconds=0)
    for how in ("complete", "snooze", "retry", "discard"):
        await place.enqueue("ends", payload=json.dumps({"how": how}))
    await place.enqueue("is_late")
    first = await place.enqueue("waits")
    await started.wait()
    await place.cancel(first)
    await worker.log.wait(EventName.JOB_CANCELLED)
    started = trio.Event()
    await place.enqueue("waits")
    await started.wait()
    await worker.log.wait(EventName.JOB_DEAD, count=2)
    worker.handle.drain()
    await worker.ended.wait()
    assert {name for name, _ in worker.log.told} == {
        EventName.WORKER_STARTED,
        EventName.LISTENER_CONNECTED,
        EventName.JOB_CLAIMED,
        EventName.JOB_COMPLETED,
        EventName.JOB_SNOOZED,
        EventName.JOB_RETRIED,
        EventName.JOB_DEAD,
        EventName.JOB_CANCELLED,
        EventName.JOB_INTERRUPTED,
        EventName.JOB_RELEASED,
        EventName.WORKER_STOPPING,
        EventName.WORKER_STOPPED,
    }
