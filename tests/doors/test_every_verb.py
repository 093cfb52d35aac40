"""A verb is a value: asked on trio, on a blocking connection, or read from an answer in text, it says the same.

So a new door costs one file. It asks what the ledger says, and the ledger knows nothing of it.
"""

from __future__ import annotations

import inspect
import math
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import attrs
import psycopg
from psycopg import pq

from pgnotifyq.ledger import (
    bulk,
    changes,
    claim,
    demo,
    doctor,
    end,
    enqueue,
    explaining,
    fences,
    glance,
    lease,
    look,
    organisation,
    pauses,
    retention,
    roles,
    schedules,
    schema,
    sessions,
    stacks,
    watching,
    workers,
)
from pgnotifyq.ledger.ask import Ask, Plan
from pgnotifyq.ledger.claimed import ClaimedJob
from pgnotifyq.ledger.statements import files
from pgnotifyq.model import stack
from pgnotifyq.model.credentials import SealedCredential
from pgnotifyq.model.errors import JobNotFound, MissingRights, PgnotifyqError
from pgnotifyq.model.job import NIL_ORG, ExecutionId, JobId, Lease, OrgId, WorkerId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.payload import encode
from pgnotifyq.model.schedule import Move, NewSchedule
from pgnotifyq.model.unique import Unique
from pgnotifyq.model.watching import JobEvent, JobEventKind
from pgnotifyq.wire import asking
from pgnotifyq.wire.asking import ask, ask_blocking
from tests.ledger.conftest import TABLES
from tests.ledger.support import ANN, BOB, ENDINGS, SCHEMA

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import pytest

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.wire.connection import Connection

    Story = Generator[Verb[Any], Any, None]

MODULES = (
    bulk, changes, claim, demo, doctor, end, enqueue, explaining, fences, glance, lease, look, organisation, pauses, retention, roles,
    schedules, schema, sessions, stacks, watching, workers,
)  # fmt: skip
NOBODY = Lease(JobId(UUID(int=1)), ExecutionId(UUID(int=2)))
HOSTILE = {"text": 'tab\t "quoted" \\ {a,b} é 🙂', "list": [1, 2.5, None, True], "empty": {}}
CLAIM: dict[str, Any] = {"worker_id": ANN, "queues": ["default", "other"], "lease_seconds": 60.0}
MOVING = {"snapshot_xmin", "dead_rows", "dead_row_share", "counted"}  # what a server counts for itself
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
TELL_TRANSACTIONS = {
    fences.fence_nothing().statement,
    fences.fence_own(SCHEMA, NOBODY).statement,
}


def verbs() -> set[str]:
    """Return the names of all verbs of the ledger."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and re.match(r"(Ask|Plan|Verb)\[", str(function.__annotations__.get("return")))
    }


def story() -> Story:
    """Say every verb, most of them where there is something to tell."""
    yield sessions.hush()
    yield sessions.bound(60.0)
    yield sessions.server()
    yield demo.strike("pgnotifyq_elsewhere")
    yield demo.strike_role("pgnotifyq_elsewhere")
    yield demo.take_stage(SCHEMA)
    yield demo.leave_stage(SCHEMA)
    yield schema.check_schema(SCHEMA)
    yield schema.migrate(SCHEMA)
    for worker in (ANN, BOB):
        yield workers.register(
            SCHEMA, worker_id=worker, host="here, {there}", pid=7, queues=["default", 'o"ther'], slots=4, version="1",
            has_session=worker is BOB, lease_seconds=60.0, grace_seconds=None if worker is ANN else 1.5,
        )  # fmt: skip
    yield workers.hold_session(SCHEMA, ANN)
    yield workers.beat(SCHEMA, ANN)
    yield workers.beat(SCHEMA, WorkerId(UUID(int=99)))
    yield workers.worker_channel(SCHEMA, ANN)
    yield workers.publish_handlers(SCHEMA, ANN, [("noop", None, 5), ("other", "other", None)])
    yield workers.publish_hooks(SCHEMA, ["noop"], [("noop", "dead", "on_dead.tell")])
    yield workers.publish_hooks(SCHEMA, ["noop"], [])
    yield workers.fall_asleep(SCHEMA, ANN, ["default"], "{noop}")
    yield workers.wake_up(SCHEMA, ANN, ["default"])
    yield workers.set_state(SCHEMA, ANN, "draining")
    yield workers.show_life(SCHEMA)
    yield workers.notify(SCHEMA, "somewhere", "é")
    yield workers.prove(SCHEMA, "somewhere", "é")
    yield lease.release_all(SCHEMA, WorkerId(UUID(int=99)))
    yield look.tenant_role(SCHEMA)
    yield look.powers(SCHEMA)
    yield look.idle_backends(SCHEMA, [0])
    yield workers.watch(SCHEMA, ANN, 1.5, math.inf)
    yield look.list_workers(SCHEMA)

    yield look.is_idle(SCHEMA, ["default"])
    keyed = NewJob(job_type="noop", payload=HOSTILE, unique_key="k", priority=-3, queue_name="default")
    first = yield enqueue.enqueue(SCHEMA, keyed)
    yield enqueue.enqueue(SCHEMA, keyed)
    yield enqueue.enqueue(SCHEMA, NewJob(job_type="noop", payload=HOSTILE, delay_seconds=600.0))
    yield enqueue.enqueue_one(SCHEMA, NewJob(job_type="other", queue_name="third"), "{}", is_alone=True)
    yield enqueue.insert(SCHEMA, [NewJob(job_type="noop")] * 2, ["[]", encode(HOSTILE)])
    yield enqueue.enqueue_together(SCHEMA, [NewJob(job_type="noop", unique_key="a")] * 2, ["{}", "{}"])
    unique = NewJob(job_type="noop", payload=HOSTILE, unique=Unique(by=("text",), on_conflict="replace", for_seconds=0.001))
    yield enqueue.enqueue_told(SCHEMA, unique)
    yield enqueue.enqueue_together_told(SCHEMA, [unique, NewJob(job_type="noop")], [encode(HOSTILE), "{}"])
    yield bulk.enqueue_many_told(SCHEMA, [unique, NewJob(job_type="noop")])
    many = yield bulk.enqueue_many(SCHEMA, [NewJob(job_type="copied", payload=HOSTILE, queue_name="third")] * 101)
    assert len(set(many)) == 101
    yield bulk.enqueue_many(SCHEMA, [NewJob(job_type="copied", unique_key=str(n % 90), queue_name="third") for n in range(102)])
    yield enqueue.enqueue(SCHEMA, NewJob(job_type="noop", max_attempts=3))
    made, execution = JobId(UUID(int=3)), ExecutionId(UUID(int=4))
    yield enqueue.enqueue_claimed(
        SCHEMA, NewJob(job_type="noop"), "{}", job_id=made, execution_id=execution, worker_id=BOB, lease_seconds=60.0,
        queue_name="fourth", max_attempts=2,
    )  # fmt: skip

    yield look.get_job(SCHEMA, first)
    yield look.get_job(SCHEMA, NOBODY.job_id)
    yield look.list_jobs(SCHEMA, status="scheduled", queue="default", job_type="noop", org_id=keyed.org_id)
    yield explaining.explain(SCHEMA, first)
    yield look.stats(SCHEMA)
    yield end.await_job(SCHEMA, first)

    found = yield claim.claim(SCHEMA, jobs_max=3, only=claim.wanted({"noop": 1}), **CLAIM)
    held = [Lease(job.id, job.current_execution_id) for job in found.jobs]
    named = yield claim.claim_named(SCHEMA, job_id=first.hex, **CLAIM)
    held.append(Lease(named.job.id, named.job.current_execution_id))
    yield claim.claim_named(SCHEMA, job_id="no id", **CLAIM)
    yield claim.claim(SCHEMA, jobs_max=3, is_asleep=True, after=named.job, **CLAIM)
    yield claim.claim_surely(SCHEMA, jobs_max=3, **CLAIM)
    yield claim.claim_apart(SCHEMA, jobs_max=3, **CLAIM)
    yield lease.heartbeat(SCHEMA, worker_id=ANN, leases=[*held, NOBODY], lease_seconds=60.0)
    yield lease.still_holds(SCHEMA, held[0])
    yield lease.report_progress(SCHEMA, held[0], fraction=0.3, message="é")
    yield lease.save(SCHEMA, held[0], '{"é": 1}')
    yield lease.save(SCHEMA, NOBODY, None)
    yield end.cancel(SCHEMA, held[0].job_id, "why not")
    yield end.cancel(SCHEMA, NOBODY.job_id)
    yield lease.cancelled(SCHEMA, held)
    yield from story_of_stacks(held[1])
    yield look.list_jobs(SCHEMA, limit=3)
    yield look.history(SCHEMA, held[0].job_id)
    yield fences.meet_fence(SCHEMA, held[1], begun_in="1")
    yield fences.seal_tenant(SCHEMA, NIL_ORG, key=b"k" * 32, says=b"")
    yield fences.fence_nothing()
    yield fences.fence_own(SCHEMA, held[1])
    yield fences.meet_own_fence(SCHEMA, NOBODY, begun_in="1", worker_id=BOB, outcome=ENDINGS["complete"])

    yield end.settle(SCHEMA, worker_id=ANN, settlements=[])
    endings = [ENDINGS["complete plainly"], ENDINGS["bury"], ENDINGS["retry"], ENDINGS["bury"]]
    yield end.settle(SCHEMA, worker_id=ANN, settlements=list(zip(held[:3], endings, strict=False)))
    yield end.settle_surely(SCHEMA, worker_id=ANN, settlements=[(held[3], endings[3]), (NOBODY, endings[0])])
    yield end.settle_apart(SCHEMA, worker_id=ANN, settlements=[(NOBODY, ENDINGS["complete"])])
    yield lease.lost(SCHEMA, [NOBODY, *held])
    yield fences.note_afterthought(SCHEMA, held[1], "too late")
    yield look.history(SCHEMA, held[1].job_id)

    yield demo.progress(SCHEMA, "noop")
    yield demo.held(SCHEMA, 7, "noop")
    yield demo.recovered(SCHEMA)
    yield demo.results(SCHEMA, "noop")
    yield demo.cancel(SCHEMA, held[2].job_id)
    yield doctor.facts(SCHEMA)
    yield doctor.tenant(SCHEMA)
    yield doctor.tenant_logins(SCHEMA)
    yield doctor.strangers(SCHEMA)
    yield doctor.due_queues(SCHEMA)
    yield doctor.unserved(SCHEMA)
    yield doctor.old_snapshots(SCHEMA)

    yield look.list_dead(SCHEMA)
    yield look.get_dead(SCHEMA, first)
    yield look.get_dead(SCHEMA, NOBODY.job_id)
    only = look.DeadFilter(
        queue="default", job_type="noop", org_id=keyed.org_id, error="O", died_after=datetime(2020, 1, 1, tzinfo=UTC)
    )
    yield look.list_dead(SCHEMA, only)
    yield look.list_dead_groups(SCHEMA, only)
    yield look.count_dead(SCHEMA, only)
    yield look.find_job(SCHEMA, first)
    yield look.find_job(SCHEMA, NOBODY.job_id)
    yield enqueue.enqueue(SCHEMA, keyed)
    yield end.requeue(SCHEMA, first)
    yield end.requeue(SCHEMA, NOBODY.job_id)
    yield end.requeue_all(SCHEMA, look.DeadFilter(fingerprint="none"), limit=1)
    yield end.requeue_all(SCHEMA, limit=1, per_second=2.0, delay_seconds=60.0)
    yield end.purge_dead(SCHEMA, older_than_seconds=0.0)
    yield retention.set_retention(SCHEMA, "default", 5.0, ending="completed")
    yield retention.set_retention(SCHEMA, "*", ending="dead", payload_seconds=1e9)
    yield retention.set_retention(SCHEMA, "default", -5.0)
    yield retention.list_retention(SCHEMA)
    yield retention.kept(SCHEMA, first)
    yield retention.kept(SCHEMA, NOBODY.job_id)
    yield retention.blank(SCHEMA, after_id=None, jobs_max=1)
    yield retention.prune_letters(SCHEMA, after_id=first, jobs_max=1)
    erased = retention.EraseFilter(org_id=UUID(int=77), unique_key="k", payload=HOSTILE, queue="third", job_type="noop")
    yield retention.count_erasable(SCHEMA, erased)
    yield retention.erase_batch(SCHEMA, erased, erasure_id=UUID(int=78), why="é", who="Ann", limit=1)
    yield retention.erase(SCHEMA, retention.EraseFilter(unique_key="none"), why="é", who="Ann")
    yield retention.erase(SCHEMA, retention.EraseFilter(org_id=UUID(int=77)), why="é", who="Ann")
    change = changes.Edit(queue="third", priority=5, delay_seconds=3.0, payload=HOSTILE)
    yield changes.edit(SCHEMA, first, change)
    yield organisation.edit(SCHEMA, keyed.org_id, first, changes.Edit(priority=4))
    yield changes.edit(SCHEMA, NOBODY.job_id, changes.Edit(scheduled_at=datetime(2030, 1, 1, tzinfo=UTC)))
    copied = changes.JobFilter(queue="third", job_type="copied", org_id=keyed.org_id, status="pending", created_after=EPOCH)
    yield changes.count_jobs(SCHEMA, copied)
    yield changes.change_all(SCHEMA, "edit", copied, change=change, limit=2)
    yield changes.change_all(SCHEMA, "cancel", copied, why="é", limit=1)
    yield changes.change_all(SCHEMA, "delete", changes.JobFilter(error="none"), after_id=first)
    yield pauses.pause(SCHEMA, pauses.Scope(queue="default"), why="é", who="ann")
    yield pauses.pause(SCHEMA, pauses.Scope(queue="default"))
    yield pauses.pause(SCHEMA, pauses.Scope())
    yield pauses.pause(SCHEMA, pauses.Scope(job_type="no such thing"))
    yield pauses.pause(SCHEMA, pauses.Scope(everything=True), who="ann")
    yield pauses.list_pauses(SCHEMA)
    yield explaining.explain(SCHEMA, first)
    yield pauses.await_claims(SCHEMA)
    yield pauses.first_held(SCHEMA, pauses.Scope(everything=True))
    yield pauses.let_go(SCHEMA, made)
    yield pauses.let_go(SCHEMA, first)
    yield pauses.resume(SCHEMA, pauses.Scope(queue="default"))
    yield pauses.resume(SCHEMA, pauses.Scope(queue="default"))
    yield pauses.resume(SCHEMA, pauses.Scope(everything=True))
    yield from story_of_schedules()
    yield look.list_troubles(SCHEMA, job_ids=[first], within_seconds=5.0)
    yield look.count_troubles(SCHEMA)
    yield end.prune(SCHEMA, older_than_seconds=0.0, after_id=None, jobs_max=10, queues=["default"])
    yield from story_of_watching()
    yield from story_of_a_tenant()
    yield from story_of_roles()
    yield lease.reclaim(SCHEMA, worker_id=BOB, jobs_max=10, dead=[ANN])
    yield workers.unregister(SCHEMA, ANN)
    yield look.get_job("elsewhere", first)


def story_of_schedules() -> Story:
    """Say every verb about schedules."""
    new = NewSchedule(
        name="hourly", rule="0 * * * *", overlap="queue", job=NewJob(job_type="noop", payload=HOSTILE), owner="shop"
    )
    yield schedules.schedule(SCHEMA, new)
    yield schedules.schedule(SCHEMA, new)
    yield schedules.schedule(SCHEMA, attrs.evolve(new, owner="accounts"))
    yield schedules.schedule(SCHEMA, attrs.evolve(new, name="other", overlap="allow", window_seconds=5.0, exclude="2026-12-25"))
    coming = yield schedules.due_schedules(SCHEMA, limit=10)
    moves = [Move(of=each, ticks=[datetime(2020, 1, 1, n, tzinfo=UTC) for n in (1, 2)], next_at=None) for each in coming.pending]
    for move in (*moves, moves[0]):
        yield schedules.fire_schedules(SCHEMA, [move])
    yield schedules.fire_schedules(SCHEMA, [attrs.evolve(moves[0], error_message="é")])
    waiting = yield schedules.waiting_schedules(SCHEMA, limit=10)
    yield schedules.start_waiting(SCHEMA, waiting[0])
    yield schedules.backfill_schedule(SCHEMA, "hourly", NIL_ORG, [datetime(2020, 1, 2, tzinfo=UTC)])
    yield schedules.backfill_schedule(SCHEMA, "none", NIL_ORG, [])
    yield schedules.run_schedule(SCHEMA, "hourly", NIL_ORG)
    yield schedules.run_schedule(SCHEMA, "none", NIL_ORG)
    yield schedules.pause_schedule(SCHEMA, "hourly", NIL_ORG, why="é", who="ann")
    yield schedules.unlist_schedules(SCHEMA, "shop", ["other"])
    yield schedules.list_schedules(SCHEMA)
    yield schedules.list_schedules(SCHEMA, org_id=OrgId(UUID(int=98)), name="hourly")
    yield schedules.resume_schedule(SCHEMA, "hourly", NIL_ORG)
    yield schedules.unschedule(SCHEMA, "hourly", NIL_ORG)
    yield schedules.unschedule(SCHEMA, "hourly", NIL_ORG)


def story_of_watching() -> Story:
    """Say every verb by which jobs are followed, and their logs."""
    me = UUID(int=77)
    job_id = yield enqueue.enqueue(SCHEMA, NewJob(job_type="noop", payload=HOSTILE, queue_name="sixth"))
    yield watching.follow(SCHEMA, me, job_id)
    yield watching.follow_events(SCHEMA, UUID(int=78), queue="sixth")
    yield watching.change_of(SCHEMA, me, job_id, None, JobNotFound)
    yield watching.change_of(SCHEMA, me, JobId(UUID(int=99)), None, JobNotFound)
    claimed = yield claim.claim(SCHEMA, **{**CLAIM, "queues": ["sixth"]}, jobs_max=1)
    lease = Lease(job_id, claimed.jobs[0].current_execution_id)
    yield watching.report_all(SCHEMA, [watching.Report(lease=lease, fraction=0.5, message='é "')])
    yield watching.keep_logs(SCHEMA, [watching.Log(lease=lease, attempt=1, head='[[1, "info", "é"]]', tail=None, left_out=2)])
    yield watching.logs(SCHEMA, job_id)
    yield watching.lines_of(SCHEMA, me, job_id, 0, JobNotFound)
    yield watching.lines_of(SCHEMA, me, JobId(UUID(int=99)), 0, JobNotFound)
    yield watching.look_at(
        SCHEMA, [JobEvent(kind=JobEventKind.STARTED, at=None, job_id=each) for each in (job_id, JobId(UUID(int=99)))]
    )
    yield watching.unfollow(SCHEMA, me)
    yield watching.forget_followers(SCHEMA)


def story_of_stacks(held: Lease) -> Story:
    """Say every verb about where handlers stand, and look at a glance."""
    asked = yield stacks.ask_stack(SCHEMA, held.job_id)
    yield stacks.ask_stack(SCHEMA, NOBODY.job_id)
    yield stacks.stack_of(SCHEMA, held.job_id, asked)
    yield stacks.stacks_asked(SCHEMA, asked.worker_id, [asked.request_id])
    yield stacks.stacks_asked(SCHEMA, asked.worker_id)
    answer = stack.written(stack.Stack(job_id=held.job_id, execution_id=held.execution_id, state=stack.StackState.RUNNING))
    yield stacks.answer_stack(SCHEMA, asked.worker_id, asked.request_id, answer)
    yield stacks.answer_stack(SCHEMA, asked.worker_id, asked.request_id, answer)
    yield stacks.stack_of(SCHEMA, held.job_id, asked)
    yield glance.top(SCHEMA)
    yield explaining.explain(SCHEMA, held.job_id)
    yield explaining.explain(SCHEMA, NOBODY.job_id)


def story_of_a_tenant() -> Story:
    """Say every verb about one tenant."""
    tenant = yield organisation.name_org(SCHEMA, "acme")
    job_id = yield enqueue.enqueue(SCHEMA, NewJob(job_type="noop", payload=HOSTILE, org_id=tenant, queue_name="fifth"))
    for whose in (tenant, OrgId(UUID(int=98))):
        yield organisation.own(SCHEMA, whose, job_id)
        yield organisation.get_job(SCHEMA, whose, job_id)
        yield organisation.get_dead(SCHEMA, whose, job_id)
        yield organisation.history(SCHEMA, whose, job_id)
        yield organisation.explain(SCHEMA, whose, job_id)
        yield organisation.count_jobs(SCHEMA, whose, status="pending")
        yield organisation.count_dead(SCHEMA, whose)
        yield organisation.requeue(SCHEMA, whose, job_id)
    yield organisation.cancel(SCHEMA, OrgId(UUID(int=98)), job_id)
    yield organisation.cancel(SCHEMA, tenant, job_id, "why not")
    yield organisation.fence_own(SCHEMA, NOBODY, tenant)
    yield organisation.meet_own_fence(SCHEMA, NOBODY, begun_in="1", worker_id=BOB, outcome=ENDINGS["complete"])
    yield organisation.set_config(SCHEMA, tenant, "limits", HOSTILE)
    yield organisation.set_config(SCHEMA, tenant, "no name", 1)
    yield organisation.config(SCHEMA, tenant)
    yield organisation.list_config(SCHEMA, tenant, name="limits")
    yield organisation.unset_config(SCHEMA, tenant, "limits")
    for value in ("one", "two"):
        sealed = SealedCredential(org_id=tenant, name="stripe", key_id="k", sealed=value)
        yield organisation.set_credential(SCHEMA, sealed)
    yield organisation.list_credentials(SCHEMA)
    yield organisation.stale_credentials(SCHEMA, "other")
    yield organisation.stale_credentials(SCHEMA, "other", after=sealed)
    yield organisation.reseal_credential(SCHEMA, sealed, attrs.evolve(sealed, key_id="other", sealed="three"))
    yield organisation.sealed(SCHEMA, tenant)
    yield organisation.delete_credential(SCHEMA, tenant, "stripe")
    yield organisation.audit(SCHEMA, "nobody's")
    yield organisation.audit_for(SCHEMA, tenant, "done", HOSTILE, job_id=job_id)
    yield organisation.list_audit(SCHEMA, tenant, action="done", job_id=job_id)
    yield organisation.prune_audit(SCHEMA, 0.0)
    yield organisation.protect(SCHEMA, "nothing", "org_id")
    yield organisation.unprotect(SCHEMA, "nothing")
    yield organisation.protected(SCHEMA)


def story_of_roles() -> Story:
    """Say every verb about roles."""
    yield roles.act_as("nobody_at_all")
    yield roles.grant(SCHEMA, roles.RoleKind.PRODUCER, "nobody_at_all")
    yield roles.make_tenant_login(SCHEMA)
    yield roles.keep(SCHEMA)
    yield roles.tenant_login(SCHEMA)
    yield roles.tenant_key(SCHEMA)
    yield roles.faults(SCHEMA)
    yield roles.faults(SCHEMA, "pg_monitor", roles.RoleKind.WORKER)


class Plainly:
    """Makes answers of different runs comparable: ids by order of appearance, times and measures by their kind."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def put(self, value: Any) -> Any:
        """Return a value as plain data."""
        match value:
            case ClaimedJob():
                return self.put(value.whole)
            case UUID():
                return self._ids.setdefault(str(value), f"id {len(self._ids)}")
            case roles.TenantLogin():
                return value.role_name, type(value.password)  # a new one each time
            case datetime():
                return "before the era of PostgreSQL" if value < EPOCH else "time"
            case float():
                return "measure"
            case str():
                return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lambda found: self.put(UUID(found.group())), value)
            case dict():
                return {self.put(key): self.put(item) for key, item in value.items() if key not in MOVING}
            case list() | tuple():
                return [self.put(item) for item in value]
            case set():
                return sorted(self.put(item) for item in value)
        if attrs.has(type(value)):
            return self.put({field.name: getattr(value, field.name) for field in attrs.fields(type(value))})
        return value

    def raised(self, error: Exception) -> Any:
        """Return an error as plain data. Not every driver's text has PostgreSQL's context."""
        return [type(error).__name__, self.put(str(error).partition("\nCONTEXT:")[0])]


RAISED = (PgnotifyqError, psycopg.Error)


def name_of(verb: Verb[Any]) -> str:
    """Return the statement of a verb, or the name of the function that made its plan."""
    if isinstance(verb, Ask):
        return re.sub(r"--.*\n", "", verb.statement.decode())[:60]
    return verb.steps.__qualname__


async def tell_on_trio(connection: Connection[Any]) -> list[Any]:
    """Ask all on trio, first of all doors."""
    for once in (roles.make_tenant_login(SCHEMA), roles.keep(SCHEMA)):  # the second time there is nothing to make
        with suppress(MissingRights):
            await ask(connection, once)
    told, plainly, answer, each = [], Plainly(), None, story()
    while (verb := _next(each, answer)) is not None:
        try:
            answer = await ask(connection, verb)
        except RAISED as error:
            answer = None
            told.append((name_of(verb), plainly.raised(error)))
        else:
            told.append((name_of(verb), _plain(verb, answer, plainly)))
    return told


def tell_blocking(connection: psycopg.Connection[Any]) -> list[Any]:
    """Ask all on a blocking connection."""
    told, plainly, answer, each = [], Plainly(), None, story()
    while (verb := _next(each, answer)) is not None:
        try:
            answer = ask_blocking(connection, verb)
        except RAISED as error:
            answer = None
            told.append((name_of(verb), plainly.raised(error)))
        else:
            told.append((name_of(verb), _plain(verb, answer, plainly)))
    return told


def _next(each: Story, answer: Any) -> Verb[Any] | None:
    try:
        return each.send(answer)
    except StopIteration:
        return None


def _plain(verb: Verb[Any], answer: Any, plainly: Plainly) -> Any:
    # What falling asleep returns, and what a fence begins with, is a transaction's id. It grows.
    if name_of(verb).startswith(("fall_asleep", "fence_own")) or (isinstance(verb, Ask) and verb.statement in TELL_TRANSACTIONS):
        return type(answer), int(answer) > 0
    return plainly.put(answer)


def empty(dsn: str) -> None:
    """Empty the tables."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"truncate {', '.join(f'pgnotifyq.{table}' for table in TABLES)}".encode())


async def test_every_door_says_the_same(dsn: str, connection: Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every verb: on trio, on a blocking connection, and where answers come as text."""
    on_trio = await tell_on_trio(connection)
    with psycopg.connect(dsn, autocommit=True) as other:
        empty(dsn)
        assert tell_blocking(other) == on_trio
        empty(dsn)
        monkeypatch.setattr(asking, "_BINARY", pq.Format.TEXT)
        assert tell_blocking(other) == on_trio


def test_every_verb_is_asked() -> None:
    """None of the ledger's verbs is left out of the story."""
    stories = (story, story_of_watching, story_of_stacks, story_of_a_tenant, story_of_roles, story_of_schedules)
    told = "".join(inspect.getsource(each) for each in stories)
    assert {name for name in verbs() if f"{name}(" not in told} == set()


def test_durable_is_what_sql_says() -> None:
    """A verb says that it need not survive a crash exactly where its function commits asynchronously."""
    asynchronous = {
        name.rpartition("/")[2] for name, text in files("functions") if "set_config('synchronous_commit', 'off'" in text
    }
    made = dict(_by_function())
    assert {name for name in asynchronous if name in made} == {name for name, verb in made.items() if not verb.is_durable}


def _by_function() -> Iterator[tuple[str, Verb[Any]]]:
    yield "claim", claim.claim(SCHEMA, jobs_max=1, **CLAIM)
    yield "claim", claim.claim_surely(SCHEMA, jobs_max=1, **CLAIM)
    yield "claim_apart", claim.claim_apart(SCHEMA, jobs_max=1, **CLAIM)
    yield "claim_named", claim.claim_named(SCHEMA, job_id="", **CLAIM)
    yield "heartbeat", lease.heartbeat(SCHEMA, worker_id=ANN, leases=[NOBODY], lease_seconds=1.0)
    yield "report_progress", lease.report_progress(SCHEMA, NOBODY, fraction=None, message=None)
    yield "save", lease.save(SCHEMA, NOBODY, "[]")
    yield "beat", workers.beat(SCHEMA, ANN)
    yield "sleep", workers.fall_asleep(SCHEMA, ANN, [])
    for ending, name in (("complete", "complete"), ("retry", "give_back"), ("cancel", "stop"), ("bury", "bury")):
        yield name, end.settle(SCHEMA, worker_id=ANN, settlements=[(NOBODY, ENDINGS[ending])])
    yield "settle_apart", end.settle_apart(SCHEMA, worker_id=ANN, settlements=[])
    yield "cancel", end.cancel(SCHEMA, NOBODY.job_id)
    yield "enqueue_many", enqueue.enqueue_together(SCHEMA, [], [])
    yield "reclaim", lease.reclaim(SCHEMA, worker_id=ANN, jobs_max=1)
    yield "prune", end.prune(SCHEMA, older_than_seconds=1.0, after_id=None, jobs_max=1)
    yield "requeue", end.requeue(SCHEMA, NOBODY.job_id)
    yield "register_worker", workers.unregister(SCHEMA, ANN)


def test_asking_again_says_the_same() -> None:
    """A plan begins anew at each asking."""
    plan = workers.fall_asleep(SCHEMA, ANN, ["default"])
    assert isinstance(plan, Plan)
    for _ in range(2):
        first = next(plan.steps())
        assert isinstance(first, Ask) and first.parameters[1] == '{"default"}'
