"""The queue for programs that block: threads, scripts, WSGI servers, processes that fork.

    with pgnotifyq.sync.open_client(dsn) as client:
        job_id = client.enqueue("greet", {"name": "Ann"})
        job = client.wait(job_id)

The methods, their arguments and their errors are those of `pgnotifyq.Client`. Any number of threads
may share a client. A thread that runs an event loop may use it, too; the loop then stands still
during each call. A client that was opened before a fork works in parent and child: each child opens
connections of its own. Workers run on trio, in processes of their own.
"""

from __future__ import annotations

from pgnotifyq.doors.sync import Client, open_client
from pgnotifyq.wire.blocking import Connection, connect

__all__ = ["Client", "Connection", "connect", "open_client"]
