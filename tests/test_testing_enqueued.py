"""What users' tests say of what is enqueued, and what they are told when it is not."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import attrs
import psycopg
import pytest

import pgnotifyq
from pgnotifyq.sync import Client, open_client
from pgnotifyq.testing import assert_enqueued, drain, refute_enqueued

if TYPE_CHECKING:
    from collections.abc import Iterator

registry = pgnotifyq.JobRegistry()
ORG = pgnotifyq.OrgId(uuid.UUID(int=7))


@attrs.frozen
class Resize:
    path: str
    width: int = 64
    tags: dict[str, Any] = attrs.field(factory=dict)


@dataclasses.dataclass
class Mail:
    to: str


@registry.handler("resize", queue="images")
def resize(payload: Resize) -> None: ...


@registry.handler
def send_mail(payload: Mail) -> None: ...


@registry.handler
def anything(payload: dict[str, Any]) -> None: ...


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with open_client(dsn) as client:
        yield client


@pytest.fixture
def plain(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as plain:
        yield plain


def test_a_part_of_the_payload(client: Client, plain: Any) -> None:
    """Fields by keyword, a mapping, or the payload itself; what is deeper may have more; lists are whole."""
    job_id = client.enqueue(resize, Resize("a.png", tags={"by": "Ann", "when": ["now", "later"]}))
    (job,) = assert_enqueued(resize, path="a.png", connection=plain)
    assert job.id == job_id
    assert_enqueued("resize", connection=plain)
    assert_enqueued(resize, path="a.png", width=64, connection=plain)
    assert_enqueued(resize, payload={"tags": {"by": "Ann"}}, path=ANY, connection=plain)
    assert_enqueued(resize, payload=Resize("a.png", tags={"by": "Ann"}), connection=plain)
    assert_enqueued(resize, tags={"when": ["now", "later"]}, connection=plain)
    for wrong in ({"path": "b.png"}, {"width": 65}, {"tags": {"by": "Bob"}}, {"tags": {"when": ["now"]}}, {"width": True}):
        refute_enqueued(resize, **wrong, connection=plain)
        with pytest.raises(AssertionError):
            assert_enqueued(resize, **wrong, connection=plain)
    with pytest.raises(AssertionError, match=r"1 enqueued, expected none: resize with .*a\.png"):
        refute_enqueued(resize, path="a.png", connection=plain)


def test_what_json_makes_of_a_value(client: Client, plain: Any) -> None:
    """A UUID, a time, an enum: compared as they are stored."""
    key, when = uuid.uuid4(), datetime(2030, 1, 1, tzinfo=UTC)
    client.enqueue(anything, {"key": str(key), "when": when.isoformat(), "status": "pending"})
    assert_enqueued(anything, key=key, when=when, status=pgnotifyq.Status.PENDING, connection=plain)


def test_settings_of_the_job(client: Client, plain: Any) -> None:
    """Queue, tenant, priority, key, and when it is due."""
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    client.enqueue(resize, Resize("a"), org_id=ORG, priority=3, unique_key="k", scheduled_at=later)
    right: dict[str, Any] = {"queue": "images", "org_id": ORG, "priority": 3, "unique_key": "k"}
    for scheduled in (True, later, later.isoformat(), later.replace(tzinfo=None)):
        assert_enqueued(resize, **right, scheduled=scheduled, connection=plain)
    wrong = {"queue": "default", "org_id": pgnotifyq.NIL_ORG, "priority": 0, "unique_key": "l", "scheduled": False}
    for name, value in wrong.items():
        refute_enqueued(resize, **(right | {name: value}), connection=plain)
    client.enqueue(resize, Resize("b"))
    assert_enqueued(resize, path="b", scheduled=False, connection=plain)


def test_how_many(client: Client, plain: Any) -> None:
    """Exactly so many; what has ended does not wait."""
    for path in "ab":
        client.enqueue(resize, Resize(path))
    assert [job.payload["path"] for job in assert_enqueued(resize, count=2, connection=plain)] == ["a", "b"]
    with pytest.raises(AssertionError, match="2 enqueued, expected 1: resize"):
        assert_enqueued(resize, count=1, connection=plain)
    assert_enqueued(send_mail, count=0, connection=plain)
    client.cancel(client.enqueue(resize, Resize("c")))
    assert_enqueued(resize, count=2, connection=plain)


def test_what_is_enqueued_instead(client: Client, plain: Any, dsn: str) -> None:
    """The nearest job first, with what of it differs; then what has ended, and what is of other types."""
    client.enqueue(resize, Resize("done"))
    drain(registry, dsn)
    client.enqueue(resize, Resize("far", width=1), queue="slow")
    client.enqueue(resize, Resize("b.png"))
    client.enqueue(send_mail, Mail("ann"))
    with pytest.raises(AssertionError) as told:
        assert_enqueued(resize, path="a.png", width=64, queue="images", connection=plain)
    assert str(told.value).splitlines() == [
        "not enqueued: resize with {'path': 'a.png', 'width': 64}, queue=images",
        "enqueued of this type: 2",
        "  resize {'path': 'b.png', 'tags': {}, 'width': 64} on images, due now",
        "    - path: 'b.png', expected 'a.png'",
        "  resize {'path': 'far', 'tags': {}, 'width': 1} on slow, due now",
        "    - queue: 'slow', expected 'images'",
        "    - path: 'far', expected 'a.png'",
        "    - width: 1, expected 64",
        "of this type, and not waiting: 1 completed",
        "enqueued of other types: 1 send_mail",
    ]
    plain.execute("delete from pgnotifyq.jobs")
    with pytest.raises(AssertionError, match="nothing is enqueued"):
        assert_enqueued(resize, connection=plain)


def test_a_field_that_no_payload_has(plain: Any) -> None:
    """A misspelt one would refute whatever is enqueued, so it is refused."""
    with pytest.raises(TypeError, match=r"Resize, .*, has no field 'pth': path, tags, width"):
        refute_enqueued(resize, pth="a", connection=plain)
    with pytest.raises(TypeError, match=r"Mail, .* has no field"):
        refute_enqueued(send_mail, too="a", connection=plain)
    with pytest.raises(TypeError, match="is not a handler"):
        refute_enqueued(len, connection=plain)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no fields"):
        refute_enqueued(anything, payload=[1], a=1, connection=plain)
