"""What the demo's workers run: real work on real files."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import attrs
import trio

from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.context import JobContext

registry = JobRegistry()

QUEUE = "demo"

CHUNK_BYTES = 1 << 16


@attrs.frozen
class File:
    """A file to digest."""

    path: str


@attrs.frozen
class Tree:
    """A folder to digest over and over, until cancelled."""

    folder: str
    report: str  # a file where the handler notes when it stopped


@registry.handler(queue=QUEUE)
def digest(payload: File) -> dict[str, object]:
    """Compute the SHA-256 and the line count of one file.

    It runs in a thread, because reading a file blocks.
    """
    return digest_file(Path(payload.path))


@registry.handler(queue=QUEUE)
async def digest_for_ever(payload: Tree, ctx: JobContext) -> None:
    """Digest a folder again and again: the long job that the demo cancels."""
    rounds = 0
    try:
        while True:
            for path in sorted(await trio.Path(payload.folder).glob("*.py")):
                hashlib.sha256(await path.read_bytes())
            rounds += 1
            await ctx.progress(None, f"round {rounds}")
    finally:
        # All processes of a machine share the monotonic clock.
        Path(payload.report).write_text(str(time.monotonic()), encoding="utf-8")  # noqa: ASYNC240  # a few bytes, while stopping


@registry.handler(queue=QUEUE)
async def ping(payload: None) -> float:  # noqa: ARG001  # handlers take a payload and may be async
    """Return the time at which the handler started."""
    return time.monotonic()


def digest_file(path: Path) -> dict[str, object]:
    """Return the SHA-256, the number of lines and of bytes of a file."""
    sha256 = hashlib.sha256()
    lines = size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
            lines += chunk.count(b"\n")
            size += len(chunk)
    return {"sha256": sha256.hexdigest(), "lines": lines, "bytes": size}
