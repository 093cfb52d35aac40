"""What handlers raise and wish for, noted job by job: a worker's events have no exceptions."""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from pgnotifyq.model.outcome import Discard, Retry, Snooze
from pgnotifyq.model.registry import JobRegistry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pgnotifyq.model.batch import BatchItem
    from pgnotifyq.model.handler import Handler
    from pgnotifyq.model.job import JobId
    from pgnotifyq.runtime.context import JobContext

_WISHES = (Snooze, Retry, Discard)


@attrs.frozen(eq=False)
class Wishes:
    """What the handlers of a drain have raised and wished for."""

    raised: dict[JobId, BaseException] = attrs.field(factory=dict)
    wished: set[JobId] = attrs.field(factory=set)

    @contextmanager
    def noted(self, job_id: JobId) -> Iterator[None]:
        """Note what is raised in a block."""
        self.raised.pop(job_id, None)
        self.wished.discard(job_id)
        try:
            yield
        except _WISHES:
            self.wished.add(job_id)
            raise
        except (Exception, SystemExit) as error:
            self.raised[job_id] = error
            raise

    def note_value(self, job_id: JobId, value: object) -> Any:
        """Note what a handler has returned, and return it."""
        if isinstance(value, _WISHES):
            if value.__cause__ is None:
                self.wished.add(job_id)
            else:  # a wish that was made of the failure of a Django task
                self.raised[job_id] = value.__cause__
        return value


def noting(registry: JobRegistry, wishes: Wishes) -> JobRegistry:
    """Return a registry of the same handlers, whose endings are noted."""
    return registry.mapped(lambda handler: _noting(handler, wishes))


def _noting(handler: Handler, wishes: Wishes) -> Handler:
    call = handler.call
    if handler.batch_size is not None:
        return attrs.evolve(handler, call=_noting_batches(call, wishes))

    # Both functions are always given the context, because it knows the job.

    @functools.wraps(call)
    async def awaited(payload: object, ctx: JobContext) -> object:
        with wishes.noted(ctx.job.id):
            value = await (call(payload, ctx) if handler.takes_context else call(payload))
            return wishes.note_value(ctx.job.id, value)

    @functools.wraps(call)
    def called(payload: object, ctx: JobContext) -> object:
        with wishes.noted(ctx.job.id):
            value = call(payload, ctx) if handler.takes_context else call(payload)
        if inspect.isawaitable(value):
            return finish(value, ctx.job.id)
        return wishes.note_value(ctx.job.id, value)

    async def finish(value: Awaitable[object], job_id: JobId) -> object:
        with wishes.noted(job_id):
            return wishes.note_value(job_id, await value)

    return attrs.evolve(handler, call=awaited if handler.is_async else called, takes_context=True)


def _noting_batches(call: Any, wishes: Wishes) -> Any:
    """Note for each job of a batch what the batch raises, or what the job is settled with."""

    def watch(items: list[BatchItem[Any]]) -> None:
        for item in items:
            wishes.raised.pop(item.ctx.job.id, None)
            wishes.wished.discard(item.ctx.job.id)
            item._end = functools.partial(_note_end, wishes, item._end)  # noqa: SLF001  # a test's look inside

    def note(items: list[BatchItem[Any]], value: object) -> Any:
        values = value if isinstance(value, (list, tuple)) and len(value) == len(items) else [value] * len(items)
        for item, each in zip(items, values, strict=True):
            if not item.is_settled:
                _note_one(wishes, item, each)
        return value

    @functools.wraps(call)
    async def awaited(items: list[BatchItem[Any]]) -> object:
        watch(items)
        try:
            return note(items, await call(items))
        except (Exception, SystemExit) as error:
            note(items, error)
            raise

    @functools.wraps(call)
    def called(items: list[BatchItem[Any]]) -> object:
        watch(items)
        try:
            return note(items, call(items))
        except (Exception, SystemExit) as error:
            note(items, error)
            raise

    return awaited if inspect.iscoroutinefunction(call) else called


def _note_end(wishes: Wishes, end: Callable[[BatchItem[Any], object], None], item: BatchItem[Any], value: object) -> None:
    _note_one(wishes, item, value)
    end(item, value)


def _note_one(wishes: Wishes, item: BatchItem[Any], value: object) -> None:
    if isinstance(value, _WISHES):
        wishes.wished.add(item.ctx.job.id)
    elif isinstance(value, BaseException):
        wishes.raised[item.ctx.job.id] = value
