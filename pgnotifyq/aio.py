"""The queue for programs that run on asyncio.

    async with pgnotifyq.aio.open_client(dsn) as client:
        job_id = await client.enqueue("greet", {"name": "Ann"})
        job = await client.wait(job_id)

The methods, their arguments and their errors are those of `pgnotifyq.Client`. Neither trio nor a
thread runs here. Workers run on trio: in processes of their own, or in a thread of this process.
"""

from __future__ import annotations

from pgnotifyq.doors.aio import Client, open_client
from pgnotifyq.wire.aio import Connection, connect

__all__ = ["Client", "Connection", "connect", "open_client"]
