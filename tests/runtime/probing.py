"""Probes and scrapes as others make them, in threads, so that they also come while the loop is held."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

import attrs
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runtime.support import Worker

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def told(self) -> dict[str, Any]:
        """The body of a probe."""
        told: dict[str, Any] = json.loads(self.body)
        return told

    @property
    def failed(self) -> dict[str, str]:
        """The checks that failed, and what they say."""
        return {name: check["says"] for name, check in self.told["checks"].items() if not check["ok"]}


def get(address: str, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask, from a thread of its own or the test's."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read().decode())
    finally:
        connection.close()


def refused(address: str, path: str) -> Answer | None:
    """Ask, from a thread, until a probe fails; None: it never did, and the worker has ended."""
    try:
        while (answer := get(address, path)).status == 200:
            time.sleep(0.02)
    except OSError:
        return None
    return answer


async def ask(worker: Worker, path: str, **headers: str) -> Answer:
    """Ask a worker of the test's own loop."""
    assert worker.handle.http is not None
    return await trio.to_thread.run_sync(lambda: get(str(worker.handle.http), path, **headers))


async def until(worker: Worker, path: str, holds: Callable[[Answer], bool]) -> Answer:
    """Ask until what is said is what must come."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while True:
            answer = await ask(worker, path)
            if holds(answer):
                return answer
            await trio.sleep(0.02)
    raise AssertionError(f"{path} still answers {answer}")


def parsed(text: str) -> Samples:
    """Return samples by name and labels, as prometheus_client's own parser reads them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return samples[name, frozenset(labels.items())]
