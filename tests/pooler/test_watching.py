"""Watching by way of a pooler in transaction mode: by looking, or past it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.doors.test_watching import EVENTS, SECONDS, Hand, meanwhile, open_door

if TYPE_CHECKING:
    from tests.pooler.support import Pooler


@pytest.mark.parametrize("name", ["trio", "asyncio", "sync"])
def test_a_job_behind_a_pooler(dsn: str, pooler: Pooler, name: str) -> None:
    """Each change is found by a look, once a second, and the iterator ends with the job."""
    with psycopg.connect(dsn, autocommit=True) as session, open_door(name, pooler.dsn) as door:
        hand = Hand(session)
        job_id = hand.enqueue()
        watch = door.follow("watch", job_id, timeout_seconds=SECONDS)
        assert watch.step().status == "pending"
        lease = hand.claim()
        assert watch.step().status == "running"
        hand.end(lease)
        assert [job.status for job in watch.rest()] == ["completed"]


@pytest.mark.parametrize("name", ["trio", "asyncio", "sync"])
def test_events_past_the_pooler(dsn: str, pooler: Pooler, name: str) -> None:
    """With a direct address for LISTEN they are heard."""
    options: dict[str, Any] = {"listen_dsn": dsn}
    with psycopg.connect(dsn, autocommit=True) as session, open_door(name, pooler.dsn, **options) as door:
        hand = Hand(session)
        events = door.follow("events", timeout_seconds=SECONDS)
        with meanwhile(dsn, hand.enqueue, EVENTS):
            assert events.step().kind == "enqueued"
        events.close()
