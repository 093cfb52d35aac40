"""A client, and the registry of its jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from pgnotifyq.doors import ends
from pgnotifyq.doors.client import Client, open_client
from pgnotifyq.model.registry import JobRegistry
from tests.doors.support import Resize


@pytest.fixture
def registry() -> JobRegistry:
    registry = JobRegistry()

    @registry.handler("resize", max_attempts=7, queue="images")
    async def resize(payload: Resize) -> None: ...

    @registry.handler("plain")
    async def plain(payload: dict[str, Any]) -> object:
        return payload

    return registry


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with open_client(dsn) as client:
        yield client


@pytest.fixture
def no_backstop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the backstop out of reach, so that what is told is told by a notification."""
    monkeypatch.setattr(ends, "LOOK_SECONDS", 10_000.0)
