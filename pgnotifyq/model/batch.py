"""One job of several that a handler is given at once (`batch_size`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from typing_extensions import TypeVar  # with defaults, which typing has from Python 3.13 on

    Payload = TypeVar("Payload", default=Any)
else:
    from typing import TypeVar

    Payload = TypeVar("Payload")

BATCH_SIZE_MAX = 1000  # each job of a batch holds a slot of its worker


class BatchItem(Generic[Payload]):
    """A job of a batch: its payload, its context, and its own end.

    `with item:` is the part of the handler's work that is for this job alone. If the block raises,
    this job ends by that error. On trio, a cancel of this job cancels this block and nothing else.
    """

    def __init__(self, payload: Payload, ctx: Any, end: Callable[[BatchItem[Any], object], None], scope: Any = None) -> None:
        self.payload = payload
        self.ctx = ctx  # its JobContext
        self.is_settled = False  # True: how the job ends is known, and nothing changes that
        self._end = end
        self._scope = scope  # a cancel scope of trio's, in a handler on trio

    def settle(self, value: object = None) -> None:
        """End this job now, as if a handler of this job alone had returned or raised the value.

        The outcome is written while the other jobs of the batch go on.

        Args:
            value: the job's result; or a Retry, a Snooze, a Discard; or an exception, which is a
                failure.

        Raises:
            ValueError: the job is settled already.
        """
        if self.is_settled:
            raise ValueError(f"job {self.ctx.job.id} is settled already: how it ends cannot be said twice")
        self.is_settled = True
        self._end(self, value)

    def __enter__(self) -> Self:
        if self._scope is not None:
            self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if self._scope is not None:
            try:
                if self._scope.__exit__(kind, error, traceback):
                    if not self.is_settled:
                        self.is_settled = True
                        self._end(self, STOPPED)
                    return True
            except Exception as left:  # noqa: BLE001  # errors of a group that this scope left
                error = left
        if self.is_settled or not isinstance(error, Exception):
            return False
        self.settle(error)
        return True


STOPPED = object()  # the job's own cancel ended its block
