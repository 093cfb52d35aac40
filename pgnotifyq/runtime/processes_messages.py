"""What a worker and a process of its handlers say to each other: one message a line, as JSON.

Never pickle: anybody who can enqueue chooses what a payload holds. The child itself structures the
payload into the handler's type.

| who | says | when |
|---|---|---|
| worker | `Hello` | once, first |
| worker | `Load`, answered by `Loaded` | before the first job of a handler in this process |
| worker | `Run` | for each job |
| child | `Began` | the job has arrived: from now on a death of the process is this job's |
| child | `Reported`, answered by `Heard` | the handler reports its progress, and waits |
| child | `Save`, answered by `Heard` | the handler saves its state, and waits |
| child | `Enqueue`, answered by `Heard` | the handler enqueues a child of its job, and waits |
| child | `Noted` | the handler has come so far, and does not wait |
| child | `Line` | a line that the handler logs by `ctx.log`, to be kept |
| child | `Logged` | a record of the handler's log |
| worker | `Stop` | a cooperative handler shall stop; others are killed |
| worker | `Look`, answered by `Stood` | somebody asks where the handler stands |
| child | `Settled` | the handler's own transaction has completed the job |
| child | `Done` | the handler has ended |
"""

from __future__ import annotations

import functools
import json
from typing import Any

import attrs
from cattrs.strategies import configure_tagged_union

from pgnotifyq.model.converting import make_converter
from pgnotifyq.model.job import Job
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.outcome import InterruptKind
from pgnotifyq.model.unique import Unique

# The child runs this before it imports anything. Its arguments are the socket's number, the
# worker's process id, and where modules are found.
BOOT = """\
import json, signal, sys
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(each, lambda *_: None)
sys.path[:] = json.loads(sys.argv[3])
from pgnotifyq.runtime.processes_child import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""

# The longest line from the child. A result has at most 1 MiB, and JSON within JSON may take six
# times as much.
LINE_BYTES_MAX = 16_777_216

# In a child: the handlers that it is about to import. If a worker is started meanwhile, the
# program's main module starts it without asking for its own `__name__`.
loading: set[str] = set()


@attrs.frozen(kw_only=True)
class Hello:
    """What the child is to be like."""

    argv: list[str]  # the worker's, for the program's modules
    main_name: str | None  # the program's main module, if it was started by `python -m`
    main_path: str | None  # the same, if it was started as a file
    level: int  # the least level of a log record that anybody would see
    memory_bytes_max: int | None  # of a handler's data, while it runs
    schema: str | None  # of the queue; None: there is no database
    worker_id: str | None


@attrs.frozen(kw_only=True)
class Load:
    """Import a handler."""

    name: str  # module:qualname
    job_type: str


@attrs.frozen(kw_only=True)
class Loaded:
    """A handler was imported, or what its module raised."""

    error: str | None = None


@attrs.frozen(kw_only=True)
class Run:
    """Run a job."""

    job: Job[Any]
    payload: str  # JSON; the job's own is left out


@attrs.frozen(kw_only=True)
class Began:
    """The job has arrived."""


@attrs.frozen(kw_only=True)
class Reported:
    """How far the handler has come."""

    fraction: float | None
    message: str | None


@attrs.frozen(kw_only=True)
class Save:
    """What the handler saves of its work."""

    saved: str | None  # JSON


@attrs.frozen(kw_only=True)
class Noted:
    """How far the handler has come, to be published soon."""

    fraction: float | None
    message: str | None


@attrs.frozen(kw_only=True)
class Line:
    """A line of a log that is kept."""

    at: float  # seconds since 1970
    level: str
    text: str


@attrs.frozen(kw_only=True)
class Enqueue:
    """A child of the job, to be enqueued while the execution still owns the job."""

    job: NewJob  # without its payload
    payload: str  # JSON
    is_traced: bool  # the child has made its span


@attrs.frozen(kw_only=True)
class Heard:
    """What became of a report, of a state, or of a child."""

    is_ours: bool = True  # False: the execution no longer owns the job
    error: str | None = None  # why it could not be written
    job_id: str | None = None  # of the child


@attrs.frozen(kw_only=True)
class Logged:
    """A record of a log."""

    logger: str
    level: int
    message: str
    created: float  # seconds since 1970
    path: str
    line: int
    function: str | None
    thread: str | None
    exception: str | None
    extra: dict[str, Any]
    is_astray: bool  # said by a thread that an earlier job has left behind


@attrs.frozen(kw_only=True)
class Stop:
    """The handler shall stop, and why."""

    kind: InterruptKind
    by: str | None
    why: str | None


@attrs.frozen(kw_only=True)
class Look:
    """Say where the handler stands."""


@attrs.frozen(kw_only=True)
class Stood:
    """Where the handler stands, in the words of `model/stack.py`."""

    tasks: list[dict[str, Any]]


@attrs.frozen(kw_only=True)
class Settled:
    """The job is completed, by a transaction of the handler's."""


@attrs.frozen(kw_only=True)
class Done:
    """How a handler ended: by one of result, refused, wish and error."""

    result: str | None = None  # JSON
    refused: str | None = None  # why the result cannot be stored
    wish: str | None = None  # Snooze, Retry or Discard
    wish_fields: dict[str, Any] | None = None  # None: the class itself was returned
    error: str | None = None  # what it raised, told as for other handlers
    # The classes of what it raised, and their bases, as module:qualname.
    kinds: list[str] = attrs.field(factory=list)
    is_undecodable: bool = False
    is_too_new: bool = False
    is_spent: bool = False  # the process shall not have another job


FromWorker = Hello | Load | Run | Heard | Stop | Look
FromChild = Loaded | Began | Reported | Noted | Line | Save | Enqueue | Logged | Stood | Settled | Done
Message = FromWorker | FromChild


def _unique_of(said: dict[str, Any], _: object) -> Unique:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return Unique(**fields)


@functools.cache
def _converter() -> Any:
    converter = make_converter()
    configure_tagged_union(Message, converter, tag_name="is")
    converter.register_unstructure_hook(Unique, attrs.asdict)
    converter.register_structure_hook(Unique, _unique_of)
    return converter


# In ASCII: half a surrogate pair comes through.
_to_text = json.JSONEncoder(separators=(",", ":")).encode


def written(message: Message) -> bytes:
    """Return a message as a line."""
    return _to_text(_converter().unstructure(message, unstructure_as=Message)).encode("ascii") + b"\n"


def read(line: bytes) -> Message:
    """Return the message of a line.

    Raises:
        Exception: the line is no message.
    """
    message: Message = _converter().structure(json.loads(line), Message)
    return message


class Lines:
    """Bytes as they come, in lines."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._looked = 0  # bytes that are known to hold no end of a line

    def add(self, data: bytes) -> None:
        """Take what has come.

        Raises:
            ValueError: a line has no end.
        """
        self._waiting += data
        if len(self._waiting) > LINE_BYTES_MAX + len(data):
            raise ValueError(f"a line of more than {LINE_BYTES_MAX} bytes")

    def take(self) -> bytes | None:
        """Return the next line, None if it has not come whole."""
        end = self._waiting.find(b"\n", self._looked)
        if end < 0:
            self._looked = len(self._waiting)
            return None
        line = bytes(self._waiting[:end])
        del self._waiting[: end + 1]
        self._looked = 0
        return line
