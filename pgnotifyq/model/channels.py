"""What a notification says: one grammar for all channels, written and read here.

| channel | says |
|---|---|
| `<schema>_w_<worker id>`, that worker's | `work <queue>`, `work <queue> <job>` |
| the same | `cancel <job> <execution>`, `nonce <text>`, `stack <request>` |
| `<schema>_work`, every worker's | `<queue>`, `+company`, `+config`, `+schedules` |
| `<schema>_finished`, waiting clients' | `<job>`, `<request>` |
| `<schema>_f_<follower id>`, that client's | lines of events: model/watching.py reads them |

A message of one word is the name of a queue, whatever the name: a queue may be called `nonce`,
`cancel` or `work`. Every other message begins with a verb and a blank, or with a plus. No queue's
name has a blank in it, and none begins with a plus.

Any role can LISTEN and NOTIFY. So a message is only a hint, and it may have any length. No message
makes `read` raise.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

import attrs

from pgnotifyq.model.job import ExecutionId, JobId, WorkerId, uuid_of
from pgnotifyq.model.names import is_queue_name

if TYPE_CHECKING:
    from uuid import UUID

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_NONCE = re.compile(r"[0-9a-zA-Z]{1,64}", re.ASCII)


@attrs.frozen
class Work:
    """A queue has a job that is due. If `job_id` is given, that job is due."""

    queue: str
    job_id: JobId | None = None


@attrs.frozen
class Cancel:
    """A job was cancelled while this execution of it ran."""

    job_id: JobId
    execution_id: ExecutionId


@attrs.frozen
class StackAsked:
    """A client asks where a handler stands."""

    request_id: UUID


@attrs.frozen
class Nonce:
    """A listener has this sent to itself, to prove that notifications arrive."""

    text: str


@attrs.frozen
class Company:
    """A worker has registered."""


@attrs.frozen
class ConfigChanged:
    """Settings or credentials of a tenant have changed. The message does not name the tenant."""


@attrs.frozen
class SchedulesChanged:
    """A schedule has changed, or a job has ended for which a schedule's next run waits."""


@attrs.frozen
class Finished:
    """A job has ended for which a client waits, or a request with this id was answered."""

    job_id: JobId


News = Work | Cancel | StackAsked | Nonce | Company | ConfigChanged | SchedulesChanged


def of_worker(schema: str, worker_id: WorkerId) -> str:
    """Return the channel of one worker, as the SQL function `worker_channel` does."""
    return f"{schema}_w_{worker_id.hex}"


def of_all_workers(schema: str) -> str:
    """Return the channel that every worker hears."""
    return f"{schema}_work"


def of_follower(schema: str, follower_id: UUID) -> str:
    """Return the channel of a client that follows many jobs, as SQL's `follower_channel` does."""
    return f"{schema}_f_{follower_id.hex}"


def write(news: News | Finished) -> str:
    """Return the text of a message to send."""
    match news:
        case Work(queue=queue, job_id=None):
            return f"work {queue}"
        case Work(queue=queue, job_id=job_id):
            return f"work {queue} {job_id}"
        case Cancel(job_id=job_id, execution_id=execution_id):
            return f"cancel {job_id} {execution_id}"
        case StackAsked(request_id=request_id):
            return f"stack {request_id}"
        case Nonce(text=text):
            return f"nonce {text}"
        case Company():
            return "+company"
        case ConfigChanged():
            return "+config"
        case SchedulesChanged():
            return "+schedules"
        case Finished(job_id=job_id):
            return str(job_id)


def read(payload: str) -> News | None:
    """Return what a worker was told; None for a message that no code of ours would send.

    If the job's id is not written as this code writes it, the message still says that the queue has
    work. A newer release may have sent it, or a forger.
    """
    match payload.split(" "):
        case ["+company"]:
            return Company()
        case ["+config"]:
            return ConfigChanged()
        case ["+schedules"]:
            return SchedulesChanged()
        case [queue] | ["work", queue] if is_queue_name(queue):
            return Work(queue)
        case ["work", queue, named] if is_queue_name(queue):
            return Work(queue, JobId(uuid_of(int(named.replace("-", ""), 16))) if _ID.fullmatch(named) else None)
        case ["cancel", job, execution] if _ID.fullmatch(job) and _ID.fullmatch(execution):
            job_id, execution_id = (uuid_of(int(part.replace("-", ""), 16)) for part in (job, execution))
            return Cancel(JobId(job_id), ExecutionId(execution_id))
        case ["stack", request] if _ID.fullmatch(request):
            return StackAsked(uuid_of(int(request.replace("-", ""), 16)))
        case ["nonce", text] if _NONCE.fullmatch(text):
            return Nonce(text)
    return None


def read_finished(payload: str) -> Finished | None:
    """Return what a waiting client was told; None for a message that no code of ours would send."""
    return Finished(JobId(uuid_of(int(payload.replace("-", ""), 16)))) if _ID.fullmatch(payload) else None
