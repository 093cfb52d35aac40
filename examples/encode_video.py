"""A worker and a client in one trio program.

A long job reports its progress. It is cancelled in mid-flight, and cleans up.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import attrs
import trio

import pgnotifyq

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class Video:
    """What to encode."""

    title: str
    frames: int
    folder: str  # where the result goes


@registry.handler("encode", queue="video", timeout_seconds=3600.0)
async def encode(video: Video, ctx: pgnotifyq.JobContext) -> dict[str, str]:
    """Encode a video frame by frame; leave nothing half-done behind."""
    unfinished = trio.Path(video.folder) / f"{video.title}.part"
    try:
        await unfinished.write_text("")
        for frame in range(video.frames):
            await trio.sleep(0.001)  # the work: any await is a place where a cancel can land
            if frame % 100 == 0:
                await ctx.progress(frame / video.frames, f"frame {frame}")
        await unfinished.rename(unfinished.with_suffix(".mp4"))
    finally:
        # A cancel lands here too. The clean-up has a few seconds, and is shielded from the cancel.
        with trio.CancelScope(shield=True):
            await unfinished.unlink(missing_ok=True)
    return {"file": f"{video.title}.mp4"}


async def main() -> None:
    """Encode a short video, and cancel a long one."""
    dsn = os.environ["PGNOTIFYQ_DSN"]
    with tempfile.TemporaryDirectory() as folder:
        async with pgnotifyq.open_client(dsn) as client, trio.open_nursery() as nursery:
            worker = await nursery.start(functools.partial(pgnotifyq.run_worker, registry, dsn, queues=["video"]))

            short_id = await client.enqueue(encode, Video("short", 200, folder))
            short = await client.wait(short_id)
            print("short:", short.status, short.result["file"])

            long_id = await client.enqueue(encode, Video("long", 1_000_000, folder))
            while (await client.get(long_id)).progress is None:
                await trio.sleep(0.01)
            outcome = await client.cancel(long_id, wait_seconds=10, why="nobody watches it")
            print("long:", outcome)

            worker.drain()
        print("left:", sorted(file.name for file in Path(folder).iterdir()))


if __name__ == "__main__":
    trio.run(main)
