"""Thumbnails in processes, with Pillow: what computes is killed when nobody wants it any more.

A picture is made small in a process beside the worker, so that its loop and its other jobs go on.
One picture is a trap that takes for ever. Its job is cancelled, and the process is killed.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import attrs
import trio
from PIL import Image, ImageFilter

import pgnotifyq

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class Picture:
    """What to make small."""

    path: str
    width: int
    blurs: int = 0  # how often; more than once is a waste


@registry.handler("thumbnail", queue="images", runs_in="process", timeout_seconds=600.0)
def thumbnail(picture: Picture, ctx: pgnotifyq.JobContext) -> dict[str, object]:
    """Make a picture small. It is a plain function, and knows nothing of processes."""
    path = Path(picture.path)
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((picture.width, picture.width))
        for done in range(picture.blurs):
            ctx.progress(done / picture.blurs, "blurring")
            small = small.filter(ImageFilter.GaussianBlur(5))
        # Whole or not at all: a process may be killed at any time.
        unfinished = path.with_suffix(".part")
        small.save(unfinished, "JPEG")
        unfinished.rename(path.with_suffix(".jpg"))
    return {"file": path.with_suffix(".jpg").name, "size": list(small.size)}


async def main() -> None:
    """Make three thumbnails, and cancel one that takes for ever."""
    dsn = os.environ["PGNOTIFYQ_DSN"]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a", "b", "c", "trap"):
            Image.radial_gradient("L").resize((1200, 900)).save(Path(folder) / f"{name}.png")
        async with pgnotifyq.open_client(dsn) as client, trio.open_nursery() as nursery:
            worker = await nursery.start(functools.partial(pgnotifyq.run_worker, registry, dsn, queues=["images"]))

            trap = await client.enqueue(thumbnail, Picture(f"{folder}/trap.png", 64, blurs=1_000_000_000))
            jobs = await client.enqueue_many([thumbnail.job(Picture(f"{folder}/{name}.png", 64)) for name in "abc"])
            while (await client.get(trap)).progress is None:
                await trio.sleep(0.01)
            print("trap:", await client.cancel(trap, wait_seconds=10, why="nobody wants it"))
            for job_id in jobs:
                job = await client.wait(job_id)
                print(job.status.value, job.result)

            worker.drain()


# The guard is needed: each process imports this file to find `thumbnail`.
if __name__ == "__main__":
    trio.run(main)
