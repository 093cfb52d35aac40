"""Trust: how long a worker may believe that it holds what it holds.

The worker judges that, and so do the other workers, each by a clock of its own. Here they agree.

The judges. Every worker watches the others (reclaimer.py, sql/functions/worker/watch.sql). If a
worker's session is gone, and nothing was heard from the worker for a grace, the others give the
worker up, and its jobs run elsewhere: a second or two after `kill -9`, and not when the lease ends.
The worker itself goes by its own clock. The naive worker trusts its leases alone. Its session may
be lost and nobody tells it, because the server ended the session while the cable was cut. Then its
job starts elsewhere after a second, and its handler is told after a minute.

The rules, for a grace G that is the worker's own and stands in its row:

1. Others give a worker up only if its session was found gone at least G ago, and no sign of life
   has come since then. The judgement is committed in the worker's row before anything is taken from
   the worker. A job that the worker claimed less than G ago is not taken, either.
2. While a worker holds jobs that it claimed longer than a step ago (STEPS of them make G), it asks
   for a proof of life each step. Shorter jobs cost nothing, and an idle worker asks nothing. Each
   of these is a proof, and counts from when it was sent:
   - the worker's session answers: the session was there, so it had not been found gone for good;
   - a beat by another connection counts (beat.sql): it is sent at once when the session is known to
     be gone, and also when the session does not answer within a step;
   - the server is certainly away (wire/postmaster.py): then nobody judges now. Nobody judges in the
     first grace after the server has come back, either, for no worker judges in the first grace of
     its own session.
3. An execution is trusted for G less a margin (one step) from the last proof, or from when its
   claim was sent, whichever is later. It is never trusted beyond the end of its lease less a
   margin. When the trust ends, its handler is stopped, before anybody else may start its job.
4. A worker that was given up learns of it from its next sign of life, stops what it does not trust,
   and registers anew.

Why it is enough. A proof that was sent at s took place at some t >= s. A session that answered at t
was there at t, so it can be found gone only after t. A beat at t clears what was found before.
Either way others give the worker up at t + G at the earliest, by the database's clock. The worker
has stopped by s + G less the margin, by its own clock. The two clocks are never compared: both
count from t or before.

A job that was stopped for want of a proof may still be this worker's: the server may never have
missed the worker. When the job's handler has ended, the job is released, uncharged. If the job is
not this worker's any more, the fence sees to it that nothing happens.

A process may stand still, because a handler holds its loop or its machine is stopped. Then it did
not ask for proofs, so a missing proof says nothing. The process is given one grace from when it
goes on. If its session was lost meanwhile, its handlers may run on for that long beside others. Of
a process that is frozen nobody can promise anything.

Without a session, as behind a pooler in transaction mode, others judge by leases alone, and so does
the worker.
"""

from __future__ import annotations

import math
import os
import socket
from typing import TYPE_CHECKING

import attrs
import trio
from trio_util import RepeatedEvent

from pgnotifyq._version import __version__
from pgnotifyq.ledger import workers
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model.outcome import Interrupt, InterruptKind, Outcome, SettleKind
from pgnotifyq.runtime.bell import Bell
from pgnotifyq.runtime.cancels import interrupt, lose
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Ask
    from pgnotifyq.runtime.executions import Executions
    from pgnotifyq.runtime.identity import Identity
    from pgnotifyq.runtime.link import Link
    from pgnotifyq.runtime.running import Running
    from pgnotifyq.runtime.settler import Settler
    from pgnotifyq.runtime.wakeups import Push
    from pgnotifyq.wire.connection import Connection
    from pgnotifyq.wire.postmaster import Postmaster

# A proof is asked for each step. The session has a step to answer, and beats have two. The last
# step is the margin.
STEPS = 5
# Below this the steps are shorter than the time that a busy machine takes to answer.
GRACE_SECONDS_MIN = 0.5
# The connection for beats is kept for so long after the last beat.
KEEP_SECONDS = 10.0
# So often a worker registers, if others give it up again and again meanwhile.
REGISTERED_MAX = 3

GIVEN_BACK = Outcome(
    kind=SettleKind.RELEASE, name="released", error_message="the worker heard nothing from the database, and stopped it"
)


def _at_least(grace_seconds: float) -> float:
    return max(grace_seconds, GRACE_SECONDS_MIN)


@attrs.define(eq=False, kw_only=True)
class Trust:
    """What one worker knows of its own life. Times are trio's, in seconds."""

    grace_seconds: float = attrs.field(converter=_at_least)  # as published
    postmaster: Postmaster | None = None  # None: nothing can prove that the server is away
    # Whether the worker's row may say that a session speaks for it; while it does not, leases alone
    # count.
    by_session: bool = False
    heard_at: float = -math.inf  # when the last answered proof was sent
    # Until then no proof is needed: the process stood still, and had no time to hear.
    patient_until: float = -math.inf
    holds: int = 0  # how often a session was asked to speak for the worker
    news: RepeatedEvent = attrs.field(factory=RepeatedEvent)  # set at each proof
    bell: Bell = attrs.field(factory=Bell)  # rung for a beat

    @property
    def step_seconds(self) -> float:
        """How often to ask, how long to wait for the session's answer, and the margin."""
        return self.grace_seconds / STEPS

    @property
    def trusted_seconds(self) -> float:
        """How long a proof is good for."""
        return self.grace_seconds - self.step_seconds

    def hear(self, sent_at: float) -> None:
        """Note a proof that was sent at `sent_at`."""
        self.heard_at = max(self.heard_at, sent_at)
        self.news.set()

    def is_shaken(self, now: float) -> bool:
        """Whether the last proof is good no more."""
        return self.by_session and now >= self.heard_at + self.trusted_seconds

    def note_pause(self, late_seconds: float, now: float) -> None:
        """Note that this process woke up late."""
        if late_seconds > self.step_seconds:
            self.patient_until = now + self.grace_seconds


async def distrust_for_ever(me: Identity, trust: Trust, executions: Executions) -> None:
    """Stop every handler whose lease this worker may not trust any more."""
    trusted_seconds = me.lease_seconds - me.config.margin_seconds
    while True:
        oldest = executions.oldest()
        if oldest is None:
            await executions.taken_up.wait()
            await trio.lowlevel.checkpoint()  # the job has its turn first
            # Entries whose lease is lost already may linger while their handlers stop.
            if executions.oldest() is None:
                await trio.sleep(me.config.margin_seconds)
            continue
        now = trio.current_time()
        ends_at = trust.heard_at + trust.trusted_seconds
        if ends_at <= now or not trust.by_session:
            ends_at = now + trust.step_seconds / 4
        look_at = max(min(oldest.renewed_at + trusted_seconds, now + trust.step_seconds, ends_at), now)
        await trio.sleep_until(look_at)
        now = trio.current_time()
        trust.note_pause(now - look_at, now)
        why = f"no heartbeat was answered for {trusted_seconds:g} s"
        for running in executions.renewed_before(now - trusted_seconds):
            _distrust(me, executions, running, why)
        if now >= trust.patient_until:
            _stop_shaken(me, trust, executions)


def _stop_shaken(me: Identity, trust: Trust, executions: Executions) -> None:
    """Stop each execution for which neither a proof nor its own claim speaks any more."""
    now = trio.current_time()
    if not trust.is_shaken(now):
        return
    why = f"nothing was heard from the database for {trust.trusted_seconds:g} s: others may take this worker for dead"
    for running in executions:
        if not running.is_lost and running.claimed_at <= now - trust.trusted_seconds:
            # If its handler has ended, the settler has the outcome, and writes it late if the fence
            # holds.
            running.is_given_up = not running.has_ended
            _distrust(me, executions, running, why)


def _distrust(me: Identity, executions: Executions, running: Running, why: str) -> None:
    """Stop an execution; let go of it if it has ended.

    If it has ended, its outcome could not be written while the lease was trusted. The outcome may
    still be written, if the fence holds. Nobody waits for that.
    """
    interrupt(me, executions, running, Interrupt(kind=InterruptKind.LEASE_LOST, why=why))
    if running.has_ended:
        lose(me, executions, running)


async def give_back_for_ever(executions: Executions, settler: Settler) -> None:
    """Release what was stopped for want of a proof, when its handler has ended."""
    while True:
        await executions.given_up_bell.wait()
        given_up, executions.given_up = executions.given_up, []
        for running in given_up:
            if not running.is_settled:
                settler.add(running, GIVEN_BACK)


async def prove_for_ever(trust: Trust, executions: Executions, push: Push) -> None:
    """Ask for a proof of life each step, while a job is held that is older than a step."""
    while True:
        if not len(executions):
            await executions.taken_up.wait()
        older_than = trio.current_time() - trust.step_seconds
        if trust.by_session and trust.heard_at <= older_than and _is_held(executions, older_than):
            await _ask(trust, push)
        else:
            await trio.sleep(min(max(trust.heard_at - older_than, trust.step_seconds / 2), trust.step_seconds))


def _is_held(executions: Executions, claimed_before: float) -> bool:
    """Tell whether a job is held that was claimed before a time.

    The executions that were renewed longest ago come first, so this mostly looks at one.
    """
    return any(running.claimed_at <= claimed_before for running in executions)


async def _ask(trust: Trust, push: Push) -> None:
    """Ask the session for a proof. If it does not answer within a step, ask for a beat."""
    if push.has_session:
        push.ask()
        with trio.move_on_after(trust.step_seconds):
            await trust.news.wait()
            return
    trust.bell.ring()
    with trio.move_on_after(trust.step_seconds):
        await trust.news.wait()


async def beat_when_asked(me: Identity, trust: Trust, executions: Executions, beats: Link) -> None:
    """Give signs of life by a connection of their own, when the bell is rung.

    It is not the claimer's connection: a beat must not wait behind a claim, or behind a heartbeat
    that waits for somebody's lock.
    """
    while True:
        if await trust.bell.wait(KEEP_SECONDS):
            await _beat(me, trust, executions, beats)
        else:
            await beats.close()


async def _beat(me: Identity, trust: Trust, executions: Executions, beats: Link) -> None:
    sent_at = math.nan

    def sign() -> Ask[bool]:
        nonlocal sent_at
        sent_at = trio.current_time()
        return workers.beat(me.schema, me.worker_id)

    try:
        if await beats.ask_once(sign):
            trust.hear(sent_at)
        else:
            await _come_back(me, trust, executions, beats)
    except Exception as error:
        if not (is_passing(error) or isinstance(error, trio.TooSlowError)):
            raise
        asked_at = trio.current_time()
        if trust.postmaster is not None and await trust.postmaster.is_away(trust.step_seconds):
            trust.hear(asked_at)


async def _come_back(me: Identity, trust: Trust, executions: Executions, beats: Link) -> None:
    """Register a worker that others have given up, or forgotten.

    It has no session then: its listener brings one back.

    Raises:
        trio.TooSlowError, psycopg.Error: as for Link.attempt.
    """
    _stop_shaken(me, trust, executions)
    holds = trust.holds
    await beats.attempt(lambda connection: register(me, trust, executions, connection))
    if trust.holds == holds:
        trust.by_session = False


async def speak_by(me: Identity, trust: Trust, executions: Executions, connection: Connection) -> bool:
    """Have a session speak for the worker's life; False when others gave the worker up each time.

    Raises:
        psycopg.Error: as they come.
    """
    for _ in range(REGISTERED_MAX):
        sent_at = trio.current_time()
        if not trust.by_session:
            # From when this is sent, and not before, others may judge by the session, whether this
            # is answered or not.
            trust.by_session, trust.heard_at = True, max(trust.heard_at, sent_at)
        trust.holds += 1
        if await ask(connection, workers.hold_session(me.schema, me.worker_id)):
            trust.hear(sent_at)
            return True
        _stop_shaken(me, trust, executions)
        await register(me, trust, executions, connection)
    return False


async def register(me: Identity, trust: Trust, executions: Executions, connection: Connection) -> None:
    """Publish this worker and its handlers; no session speaks for it yet."""
    await ask(
        connection,
        workers.register(
            me.schema,
            worker_id=me.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=me.queues,
            slots=me.config.concurrency,
            version=__version__,
            has_session=False,
            lease_seconds=me.lease_seconds,
            grace_seconds=trust.grace_seconds,
        ),
    )
    await me.served.publish(connection)
    if executions.is_draining:
        await ask(connection, workers.set_state(me.schema, me.worker_id, "draining"))
