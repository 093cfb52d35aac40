"""A worker makes itself known: registered, alive, asleep, awake, watched by the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

from pgnotifyq.ledger.ask import Ask, Plan, array, nothing, text
from pgnotifyq.ledger.columns import number, rows, truth, word
from pgnotifyq.ledger.statements import call, query
from pgnotifyq.model.job import WorkerId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgnotifyq.ledger.ask import Answer, Steps


@attrs.frozen(kw_only=True)
class Watch:
    """What a look at the other workers' sessions told."""

    others: int  # workers other than this one that seem alive
    dead: list[WorkerId]  # gone for longer than the grace
    suspected: bool  # some session is gone, but not for long enough


def register(
    schema: str,
    *,
    worker_id: WorkerId,
    host: str,
    pid: int,
    queues: Sequence[str],
    slots: int,
    version: str,
    has_session: bool,
    lease_seconds: float,
    grace_seconds: float | None = None,
) -> Ask[None]:
    """Publish a worker. If it has come back, it holds nothing of what it held.

    Source: sql/functions/worker/register_worker.sql
    """
    statement = call("register_worker", "uuid text integer text[] integer text boolean float8 float8", schema)
    values = (
        worker_id.hex, host, str(pid), array(queues), str(slots), version, str(has_session), str(lease_seconds), text(grace_seconds),
    )  # fmt: skip
    return Ask(statement, values, nothing)


def unregister(schema: str, worker_id: WorkerId) -> Ask[None]:
    """Forget a worker that has ended, and wake others for the jobs that it was woken for."""
    return Ask(call("unregister_worker", "uuid", schema), (worker_id.hex,), nothing)


def set_state(schema: str, worker_id: WorkerId, state: str) -> Ask[None]:
    """Show a worker as running or draining. Source: sql/queries/set_state.sql."""
    return Ask(query("set_state", schema), (state, worker_id.hex), nothing)


def hold_session(schema: str, worker_id: WorkerId) -> Ask[bool]:
    """Have a connection tell others that this worker is alive, for as long as its session lasts.

    Returns: whether it does; False: others have given the worker up, or it is not registered.

    Source: sql/functions/worker/hold_session.sql
    """
    return Ask(call("hold_session", "uuid", schema), (worker_id.hex,), truth)


def beat(schema: str, worker_id: WorkerId) -> Ask[bool]:
    """Give a sign of life; False: others have given the worker up, or it is not registered.

    Source: sql/functions/worker/beat.sql
    """
    return Ask(call("beat", "uuid", schema), (worker_id.hex,), truth, is_durable=False)


def worker_channel(schema: str, worker_id: WorkerId) -> Ask[str]:
    """Return the channel on which this worker, and no other, is told of work and of cancels."""
    return Ask(call("worker_channel", "uuid", schema), (worker_id.hex,), word)


def publish_handlers(schema: str, worker_id: WorkerId, handlers: Sequence[tuple[str, str | None, int | None]]) -> Ask[None]:
    """Publish what a worker has handlers for.

    Each handler is a job type, queue and max_attempts; None where the handler says nothing.

    Jobs that wait for their handler's queue are moved to it. A worker that is not registered
    publishes nothing.

    Source: sql/functions/worker/handlers.sql
    """
    columns = [array([text(each[place]) for each in handlers]) for place in range(3)]
    return Ask(call("publish_handlers", "uuid text[] text[] integer[]", schema), (worker_id.hex, *columns), nothing)


def publish_hooks(schema: str, job_types: Iterable[str], hooks: Sequence[tuple[str, str, str]]) -> Ask[None]:
    """Publish which jobs are enqueued when others end.

    Each hook is three texts: the job type of the job that ends, the ending, and the job type that
    is then enqueued.

    Source: sql/functions/end/hooks.sql
    """
    columns = [array([each[place] for each in hooks]) for place in range(3)]
    return Ask(call("publish_hooks", "text[] text[] text[] text[]", schema), (array(list(job_types)), *columns), nothing)


def fall_asleep(schema: str, worker_id: WorkerId, queues: Sequence[str], for_types: str | None = None) -> Plan[int]:
    """Publish that the worker sleeps on its queues, then take a transaction id and return it.

    The id is taken after the publication was visible.

    `for_types` is an array as the server reads it: the job types that the worker can be woken for.
    None: all that the queues have.

    Source: sql/functions/worker/sleep.sql, sql/queries/transaction_id.sql, runtime/sleep.py
    """

    def steps() -> Steps[int]:
        values = (worker_id.hex, array(queues), for_types)
        yield Ask(call("fall_asleep", "uuid text[] text[]", schema), values, nothing, is_durable=False)
        # A statement of its own, and so a transaction of its own. It begins after the publication
        # was visible.
        taken: int = yield Ask(query("transaction_id", schema), (), number)
        return taken

    return Plan(steps, is_durable=False)


def show_life(schema: str) -> Ask[None]:
    """Have the session answer, and nothing else. Source: sql/queries/answer.sql."""
    return Ask(query("answer", schema), (), nothing)


def prove(schema: str, channel: str, nonce: str) -> Ask[bool]:
    """Send a proof that a listener hears, unless the server's queue of notifications is full.

    Returns: whether the queue had room.

    Source: sql/queries/prove.sql, sql/functions/worker/notify.sql
    """
    return Ask(query("prove", schema), (channel, nonce), truth)


def notify(schema: str, channel: str, payload: str) -> Ask[None]:
    """Send a notification. Source: sql/queries/notify.sql."""
    return Ask(query("notify", schema), (channel, payload), nothing)


def wake_up(schema: str, worker_id: WorkerId, hand_on: Sequence[str] = ()) -> Ask[None]:
    """Publish that the worker does not sleep.

    For each queue in `hand_on` that has due work, another worker is woken.
    """
    return Ask(call("wake_up", "uuid text[]", schema), (worker_id.hex, array(hand_on)), nothing)


def watch(schema: str, worker_id: WorkerId, grace_seconds: float, session_seconds: float = math.inf) -> Ask[Watch]:
    """Look whether the other workers are alive, and give up those that are not.

    Args:
        schema: the queue's.
        worker_id: the worker that looks.
        grace_seconds: the grace of workers of an older release, which do not publish their own.
        session_seconds: for how long this connection has been open, at the least. A worker judges
            no other worker in the first grace of its own session.

    Source: sql/functions/worker/watch.sql
    """
    values = (worker_id.hex, str(grace_seconds), str(session_seconds))
    return Ask(call("watch", "uuid float8 float8", schema), values, _watch)


def _watch(answer: Answer, encoding: str) -> Watch:
    ((others, dead, suspected),) = rows(answer, encoding)
    return Watch(others=others, dead=dead, suspected=suspected)
