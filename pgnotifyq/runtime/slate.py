"""Whether a slot's task is as new after a handler.

What is looked at: its context variables, decimal context, cancel scopes and nurseries.

A new task for each job would be as new without a look. But it takes 15 to 19 microseconds a job,
and 26 with a nursery of its own around it. To look whether a job left its task unchanged takes 0.1.
What can be done depends on what was left behind:

- Context variables: from its next step on, the task runs in a copy of the context that the worker
  was started in. That costs a step of the scheduler, and only if a handler did set a variable.
  Contexts are compared by what they hold. Two contexts that share all of it are found equal at
  once.
- The decimal context is an object that a context variable holds, so a copy of the context would
  share it. Most programs have one that an import has made, with its defaults. Then tasks are given
  none, and decimal makes one when it is needed. If the program has changed its decimal context,
  each task is lent a copy of that, and the copy is compared.
- Cancel scopes and nurseries: only the code that opened them can close them, so the task is spent.
  It ends, and the next job has another task.

Not looked at is what belongs to the whole process: environment, working folder, locale, signal
handlers, `sys.settrace`, and what a handler keeps in a module, in a thread-local of one of trio's
worker threads, or in a system task.
"""

from __future__ import annotations

import decimal
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

import attrs
import trio
import trio.lowlevel

if TYPE_CHECKING:
    from trio._core._run import CancelStatus  # named in tests/runtime/test_leftovers.py


@attrs.frozen
class Start:
    """The context variables that each job starts with.

    They are those that the program had when it started the worker.
    """

    context: Context  # without a decimal context
    # Each task is lent a copy of this. None: it is lent none, and decimal makes one with its
    # defaults.
    decimals: decimal.Context | None

    @classmethod
    def of_now(cls) -> Start:
        """Take those of the running task."""
        now = copy_context()
        shared: decimal.Context | None = next((now[variable] for variable in now if variable.name == "decimal_context"), None)
        if shared is None:
            return cls(now, None)
        context = Context()
        for variable, value in now.items():
            if value is not shared:
                context.run(variable.set, value)
        decimals = shared.copy()
        decimals.clear_flags()
        return cls(context, None if _is_same(decimals, decimal.DefaultContext) else decimals)


class Slate:
    """What a slot's task shall be like when a job begins."""

    def __init__(self, task: trio.lowlevel.Task, start: Start) -> None:
        self._task = task
        self._base, self._pristine = start.context, start.decimals
        self._found = copy_context()
        self._status: CancelStatus | None = None

    async def begin(self) -> None:
        """Be ready for a first job, in a task that was started within `Start.context`."""
        if self._pristine is not None:
            await self.renew_context()

    def note_scope(self) -> None:
        """Note the innermost scope: each job shall leave the task in this scope."""
        self._status = self._task._cancel_status  # noqa: SLF001  # trio has no public way to ask

    def is_cancelled(self) -> bool:
        """Tell whether no job may begin in this scope.

        Then it was cancelled, or a scope around it was: the slot's or the worker's.
        """
        return self._status is None or self._status.effectively_cancelled

    def is_as_new(self) -> bool:
        """Tell whether nothing at all was left behind."""
        task = self._task
        return (
            task._cancel_status is self._status  # noqa: SLF001  # see above
            and not task._child_nurseries  # noqa: SLF001  # the public one makes a list
            and len(task._parent_nursery._children) == 1  # type: ignore[union-attr]  # noqa: SLF001  # the same
            and self.is_context_as_new()
        )

    def is_context_as_new(self) -> bool:
        """Tell whether no context variable was set."""
        return copy_context() == self._found and (self._pristine is None or _is_same(decimal.getcontext(), self._pristine))

    def what_is_open(self) -> str | None:
        """Return what was left open in the task; None when it can go on."""
        if self._task.child_nurseries:
            return "a nursery"
        if self._task._cancel_status is not self._status:  # noqa: SLF001  # see above
            return "a cancel scope"
        if self._task.parent_nursery is not None and len(self._task.parent_nursery.child_tasks) > 1:
            return "a task"
        return None

    async def renew_context(self) -> None:
        """Go on in a context that no job has seen.

        Cancellation: none.
        """
        context = self._base.copy()
        if self._pristine is not None:
            context.run(decimal.setcontext, self._pristine.copy())
        self._task.context = context
        # The scheduler enters the new context with the next step.
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._found = copy_context()


def _is_same(one: decimal.Context, other: decimal.Context) -> bool:
    return (
        one.prec == other.prec
        and one.rounding == other.rounding
        and one.traps == other.traps
        and one.flags == other.flags
        and (one.Emin, one.Emax, one.capitals, one.clamp) == (other.Emin, other.Emax, other.capitals, other.clamp)
    )
