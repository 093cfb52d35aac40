"""Addresses of probes: read as they are written, refused with what to write."""

from __future__ import annotations

import pytest

from pgnotifyq import ConfigError, WorkerConfig
from pgnotifyq.model.http_address import HttpAddress


@pytest.mark.parametrize("text", ["127.0.0.1:9100", "[::1]:9100", "worker-3.internal:80", "0.0.0.0:0", "[::]:65535"])
def test_read_as_written(text: str) -> None:
    """What is read is written the same, and is a setting of a worker."""
    assert str(HttpAddress.read(text)) == text
    assert WorkerConfig(http=text).http == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "9100", ":9100", "localhost", "localhost:", "localhost:http", "localhost:-1", "localhost:65536", "::1:9100",
     "[::1]", "http://localhost:9100", "localhost:9100/", "local host:9100", "localhost:９１００", "löcalhost:1", 9100, None, b"localhost:1"],
    ids=repr,
)  # fmt: skip
def test_refused(text: object) -> None:
    """A port alone, a name alone, a URL, and what is no text."""
    with pytest.raises(ConfigError, match=r"http .*(write HOST:PORT|in brackets)"):
        HttpAddress.read(text)


def test_port_that_is_very_long() -> None:
    """It is refused as any other that there is not, also where Python reads no number of so many digits."""
    with pytest.raises(ConfigError, match="names no port"):
        HttpAddress.read("localhost:" + "9" * 5000)


def test_refused_as_a_setting() -> None:
    """When the worker is configured, not when it starts."""
    with pytest.raises(ConfigError, match="9100"):
        WorkerConfig(http="9100")


def test_processes_have_ports_that_follow_each_other() -> None:
    """Of several processes; a free port is free for each."""
    first = HttpAddress.read("127.0.0.1:9100")
    assert [str(first.nth(index)) for index in range(3)] == ["127.0.0.1:9100", "127.0.0.1:9101", "127.0.0.1:9102"]
    assert HttpAddress.read("[::1]:0").nth(5).port == 0
    with pytest.raises(ConfigError, match="65536"):
        HttpAddress.read("127.0.0.1:65535").nth(1)
