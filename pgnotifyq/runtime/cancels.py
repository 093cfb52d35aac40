"""Cancels: how an execution is stopped, with a reason, and what is told when it does not stop.

A user's cancel, a lost lease, a deadline that has passed, and the shutdown all come here. A
notification of a cancel is a hint, because anybody can send one. So the worker reads the job's row
again before it stops anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pgnotifyq.ledger import lease
from pgnotifyq.model.events import Event, EventName
from pgnotifyq.model.outcome import Interrupt, InterruptKind
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgnotifyq.model.channels import Cancel
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.wire.connection import Connection

READ_AT_ONCE_MAX = 500  # bounds one statement, whose cost grows a little faster than its size


async def check_cancels(
    me: Identity, executions: Executions, news: Sequence[Cancel], connection: Connection, deadline_seconds: float
) -> None:
    """Stop the executions that notifications named, if their jobs were really cancelled.

    The connection that heard the notifications reads the rows: its session has just been awake.

    Raises:
        trio.TooSlowError, psycopg.Error: as for `shortcuts.answer`. The listener begins anew, beats
            for all executions, and learns of the cancels.
    """
    found = [executions.find(cancel.job_id, cancel.execution_id) for cancel in news]
    told = [running for running in found if running is not None]
    for start in range(0, len(told), READ_AT_ONCE_MAX):
        some = told[start : start + READ_AT_ONCE_MAX]
        with trio.fail_after(deadline_seconds):
            surprises = await ask(connection, lease.cancelled(me.schema, [running.lease for running in some]))
        why = {surprise.job_id: surprise.why for surprise in surprises}
        for running in some:
            if running.job.id in why:
                interrupt_cancelled(me, executions, running, why[running.job.id])


def interrupt_cancelled(me: Identity, executions: Executions, running: Running, why: str | None) -> None:
    """Stop an execution whose job a user has cancelled, with the message that the user left."""
    interrupt(me, executions, running, Interrupt(kind=InterruptKind.CANCELLED, by="status update", why=why))


def interrupt(me: Identity, executions: Executions, running: Running, reason: Interrupt) -> None:
    """Stop one execution, with a reason, and tell."""
    if not executions.stop(running, reason):
        return
    if running.interrupted_at is None:
        running.interrupted_at = trio.current_time()
    fields: dict[str, object] = {
        "job_id": running.job.id,
        "job_type": running.job.job_type,
        "reason": reason.kind.value,
    }
    if reason.why:
        fields["why"] = reason.why
    me.emit(Event(name=EventName.JOB_INTERRUPTED, fields=fields))


def lose(me: Identity, executions: Executions, running: Running) -> None:
    """Let go of an execution whose lease is lost, and tell; once."""
    if not running.is_gone:
        executions.let_go([running])
        me.emit(Event(name=EventName.LEASE_LOST, fields=running.names()))


async def count_grace_for_ever(me: Identity, executions: Executions) -> None:
    """Follow interrupted executions until their grace is over.

    An execution that still runs then is reported as unresponsive. Before that, a cooperative
    handler is cancelled, and a handler on asyncio is cancelled once more. After that the worker
    leaves the execution alone: it holds its slot until it ends.
    """
    async with trio.open_nursery() as nursery:
        while True:
            await executions.stopped_bell.wait()
            await trio.lowlevel.checkpoint()  # let the handlers run first
            stopped, executions.stopped = executions.stopped, []
            for running in stopped:
                nursery.start_soon(_count_grace, me, executions, running)


async def _count_grace(me: Identity, executions: Executions, running: Running) -> None:
    grace_seconds = me.config.grace_seconds
    await trio.sleep(grace_seconds)
    if executions.find(*running.lease) is not running or running.scope is None:
        return
    if running.is_cooperative:
        running.cancel_scope()
    if running.cancel_again is not None:
        running.cancel_again()
    fields = {
        "job_id": running.job.id,
        "job_type": running.job.job_type,
        "why": f"still running {grace_seconds:g} s after it was interrupted",
    }
    me.emit(Event(name=EventName.JOB_UNRESPONSIVE, fields=fields))
