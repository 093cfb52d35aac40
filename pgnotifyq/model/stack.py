"""Where a running handler stands: its tasks and threads, call by call. Pure: a value, and its JSON.

It holds names, files, lines and lines of source. It holds no values of variables: they may be a
customer's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import attrs

from pgnotifyq.model.job import ExecutionId, JobId

# Of the JSON with which a worker answers. The database refuses more.
BYTES_MAX = 65_536
TASKS_MAX = 200
# How many calls of one task are kept at each end: how the handler came there, and where it stands.
FRAMES_KEPT = 15
TEXT_CHARS_MAX = 300  # of a name, a file or a line of source


class StackState(StrEnum):
    """What can be said of a job's handler."""

    RUNNING = "running"  # `tasks` say where it stands
    WAITING = "waiting"  # its worker holds the job, and the handler has not begun: it waits for a slot or a process
    ENDED = "ended"  # no worker holds the job
    # The worker did not answer in time. As a rule, a handler holds the worker's event loop. The
    # worker's log names that handler.
    UNRESPONSIVE = "unresponsive"


@attrs.frozen
class Frame:
    """One call."""

    function: str
    file: str
    line: int
    source: str  # that line, without its indentation; empty where the file is not at hand


@attrs.frozen(kw_only=True)
class StackTask:
    """One task or thread of a handler."""

    name: str
    # In the tree: the handler's own task has 0, a task that it started has 1, and so on. Each task
    # follows its parent.
    depth: int
    kind: str  # trio, asyncio, thread or process
    frames: tuple[Frame, ...]  # the outermost first, the one that waits or runs last


@attrs.frozen(kw_only=True)
class Stack:
    """Where the handler of a job stands, as its worker said when it was asked."""

    job_id: JobId
    execution_id: ExecutionId | None  # None: no worker holds the job
    state: StackState
    handler: str | None = None  # module:qualname
    runs_in: str | None = None  # trio, asyncio, thread or process
    tasks: tuple[StackTask, ...] = ()
    is_cut: bool = False  # there was more than is told
    why: str | None = None  # for people: why there are no tasks, or whose they are

    @property
    def lines(self) -> list[str]:
        """The tree as lines of text."""
        head = f"{self.handler or 'Its handler'} is {self.state}" + (f", in {self.runs_in}" if self.runs_in else "")
        lines = [head + (f": {self.why}" if self.why else "")]
        for task in self.tasks:
            indent = "  " * task.depth
            lines.append(f"{indent}{task.kind} {task.name}")
            for frame in task.frames:
                lines.append(f"{indent}  {frame.file}:{frame.line} in {frame.function}")
                if frame.source:
                    lines.append(f"{indent}    {frame.source}")
        if self.is_cut:
            lines.append("There is more, which was cut.")
        return lines


def bounded_frames(frames: Sequence[Frame]) -> tuple[tuple[Frame, ...], bool]:
    """Return the frames at both ends, and whether any were left out in between."""
    if len(frames) <= 2 * FRAMES_KEPT:
        return tuple(frames), False
    return (*frames[:FRAMES_KEPT], *frames[-FRAMES_KEPT:]), True


def written(stack: Stack) -> str:
    """Return what a worker answers with: JSON of at most `BYTES_MAX` bytes."""
    tasks = list(stack.tasks)
    while True:
        text = json.dumps(
            {
                "state": stack.state.value,
                "handler": stack.handler,
                "runs_in": stack.runs_in,
                "tasks": plain(tasks),
                "is_cut": stack.is_cut or len(tasks) < len(stack.tasks),
                "why": stack.why,
            }
        )  # in ASCII, so that characters are bytes
        if len(text) <= BYTES_MAX or not tasks:
            return text
        del tasks[len(tasks) // 2 :]


def plain(tasks: Sequence[StackTask]) -> list[dict[str, Any]]:
    """Return tasks as JSON has them."""
    return [
        {
            "name": _cut(task.name),
            "depth": task.depth,
            "kind": task.kind,
            "frames": [[_cut(each.function), _cut(each.file), each.line, _cut(each.source)] for each in task.frames],
        }
        for task in tasks
    ]


def tasks_in(told: Sequence[dict[str, Any]]) -> tuple[StackTask, ...]:
    """Return the tasks that `plain` wrote."""
    return tuple(
        StackTask(name=one["name"], depth=one["depth"], kind=one["kind"], frames=tuple(Frame(*each) for each in one["frames"]))
        for one in told
    )


def read(text: str, job_id: JobId, execution_id: ExecutionId) -> Stack:
    """Return the stack that `written` wrote."""
    told = json.loads(text)
    return Stack(
        job_id=job_id,
        execution_id=execution_id,
        state=StackState(told["state"]),
        handler=told["handler"],
        runs_in=told["runs_in"],
        tasks=tasks_in(told["tasks"]),
        is_cut=told["is_cut"],
        why=told["why"],
    )


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_MAX else text[: TEXT_CHARS_MAX - 1] + "…"
