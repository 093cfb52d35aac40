"""`python -m pgnotifyq doctor`: look at what a queue depends on, and say what to do."""

from __future__ import annotations

import itertools
import uuid
from typing import TYPE_CHECKING

import attrs
import psycopg
import trio

from pgnotifyq.cli.act import find_database, open_ledger
from pgnotifyq.cli.org_protected import judge_protected
from pgnotifyq.cli.output import is_coloured, print_json, shown
from pgnotifyq.cli.parameters import AsJson, Dsn, Schema
from pgnotifyq.cli.reach import answered
from pgnotifyq.cli.schedules import judge_schedules
from pgnotifyq.ledger import doctor as asked
from pgnotifyq.ledger import organisation, roles, schedules, workers
from pgnotifyq.ledger.look import TroubleRow, list_troubles
from pgnotifyq.ledger.roles import RoleKind
from pgnotifyq.ledger.schema import code_version
from pgnotifyq.runtime.tenants import AGAINST_INTENT, AGAINST_MISTAKES
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.notifications import listen, unlisten, wait_notifications

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.ledger.doctor import Facts
    from pgnotifyq.ledger.roles import RoleFault
    from pgnotifyq.wire.connection import Connection

LISTEN_SECONDS = 3.0  # for a notification to ourselves
SNAPSHOT_SECONDS_MAX = 60.0  # an older transaction keeps too many dead rows from vacuum
QUEUE_USAGE_MAX = 0.1  # of the 8 GiB that notifications may pile up to
QUEUE_USAGE_FULL = 0.9  # from here on, our functions send no notifications (sql/functions/worker/notify.sql)
WAITING_SECONDS_MAX = 60.0
DEAD_SHARE_MAX, DEAD_ROWS_MIN = 0.5, 10_000
UNSERVED_SHOWN_MAX = 10
TROUBLES_SHOWN_MAX = 5  # jobs; one cause has often put many aside
WHAT_CHARS_MAX = 400


@attrs.frozen
class Finding:
    """One thing looked at."""

    verdict: str  # ok, warn, fail
    what: str
    hint: str = ""


def doctor(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Examine the database and say what is wrong, and what to do. Exit code 1 if anything fails."""

    async def main() -> list[Finding]:
        database = await find_database(dsn)

        async def on_ledger() -> list[Finding]:
            # Two sessions: a session hears its own notifications even behind a pooler in
            # transaction mode.
            async with open_ledger(database, schema) as connection, open_connection(database.dsn) as other:
                return await examine(connection, other, schema)

        return await answered(database.dsn, on_ledger)

    findings = trio.run(main)
    if as_json:
        print_json([attrs.asdict(finding) for finding in findings])
    else:
        _print(findings)
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


async def examine(connection: Connection[TupleRow], other: Connection[TupleRow], schema: str) -> list[Finding]:
    """Return what is found. There are two sessions: the second notifies the first."""
    # The looks are in no transaction: another doctor could take an open transaction for an old one.
    (facts,) = await ask(connection, asked.facts(schema))
    tenants = await ask(connection, asked.tenant(schema))
    findings = [
        Finding("ok", f"PostgreSQL {facts['server_version']}, schema {schema} at version {code_version()}"),
        *_judge_role(facts),
        _judge_tenants(tenants[0] if tenants else None, await ask(connection, asked.tenant_logins(schema)), facts["role_name"]),
        *_judge_roles(await ask(connection, roles.faults(schema))),
        *_judge_tables(facts, await ask(connection, asked.strangers(schema)), schema),
        *(Finding(*each) for each in judge_protected(await ask(connection, organisation.protected(schema)))),
        *_judge_work(facts, await ask(connection, asked.due_queues(schema))),
        *_judge_unserved(await ask(connection, asked.unserved(schema))),
        *(Finding(*each) for each in judge_schedules(await ask(connection, schedules.list_schedules(schema)))),
        *_judge_troubles(await ask(connection, list_troubles(schema, limit=TROUBLES_SHOWN_MAX + 1))),
        # A standby takes no LISTEN.
        *([] if facts["is_standby"] else [await _hear(connection, notified_by=other)]),
    ]
    return findings + _judge_snapshots(facts, await ask(connection, asked.old_snapshots(schema)))


def _either(holds: bool, good: str, bad: str, hint: str, verdict: str = "warn") -> Finding:
    return Finding("ok", good) if holds else Finding(verdict, bad, hint)


def _judge_role(facts: Facts) -> list[Finding]:
    """Judge what the connected role may do."""
    role, owner = facts["role_name"], facts["owner_name"]
    if facts["is_standby"]:
        writes = Finding("fail", "the server is a standby, nothing can be written", "connect to the primary")
    elif facts["is_read_only"]:
        hint = f"see default_transaction_read_only: alter role {role} reset it, or the database, or the server"
        writes = Finding("fail", f"transactions of role {role} are read-only, it cannot write", hint)
    elif facts["rights_missing"] or facts["functions_refused"]:
        lacks = facts["rights_missing"] or f"execute on {facts['functions_refused']} function(s)"
        hint = "a worker needs them all; a role that only enqueues needs usage on the schema, and select and insert on jobs"
        writes = Finding("fail", f"role {role} cannot write as a worker must: it lacks {lacks}", hint)
    else:
        writes = Finding("ok", f"role {role} can write")
    return [
        writes,
        _either(
            not (facts["is_superuser"] or facts["bypasses_row_security"]),
            f"role {role} obeys row security",
            f"role {role} is exempt from row security",
            "tenants' transactions are confined all the same; for the rest use a lesser role",
        ),
        Finding("ok", f"a dump as {owner}, the tables' owner, is whole")
        if facts["is_owner_exempt"]
        else Finding(
            "ok",
            f"row security binds {owner}, the tables' owner, too",
            f"pg_dump as {owner} needs --enable-row-security; or dump as a superuser, or as a role with bypassrls",
        ),
    ]


def _judge_tenants(tenant: Facts | None, logins: list[str], role: str) -> Finding:
    """Judge what confines tenants: which of the two grades, and by what."""
    to_intent = "as a role that may make roles: migrate --tenant-login; or have a login made, and see docs/rights.md"
    if logins:
        return Finding("ok", f"tenants are {AGAINST_INTENT}: by sessions of {', '.join(logins)}")
    if tenant is None:
        return Finding("warn", f"tenants are {AGAINST_MISTAKES}: by a setting only, for there is no role of theirs", to_intent)
    name = tenant["name"]
    if not tenant["may_be_set"]:
        hint = f"as a role that may: grant {name} to {role} (since PostgreSQL 16: with set true, inherit false), or {to_intent}"
        return Finding("warn", f"tenants are {AGAINST_MISTAKES}: by a setting only, for role {role} may not take on {name}", hint)
    if not tenant["has_rights"]:
        hint = "migrate again as the owner of the schema, which grants them"
        return Finding("warn", f"tenants are {AGAINST_MISTAKES}: by a setting only, for role {name} has no rights", hint)
    if not tenant["is_bound"]:
        return Finding(
            "fail", f"role {name} is exempt from row security: nothing confines tenants", f"alter role {name} nobypassrls"
        )
    return Finding("ok", f"tenants are {AGAINST_MISTAKES}: by role {name}", to_intent)


def _judge_roles(faults: list[RoleFault]) -> list[Finding]:
    """Judge the rights of the roles that `migrate` knows: what is missing, and what is too much."""
    found = []
    by_role = itertools.groupby(faults, key=lambda each: (each.role_name, each.kind, each.fault))
    for (name, kind, fault), group in by_role:
        each = list(group)
        what = ", ".join(one.what for one in each)
        if fault == "missing":
            hint = "migrate again, as the owner of the schema"
            found.append(Finding("fail", f"role {name}, {kind}, lacks {what}"[:WHAT_CHARS_MAX], hint))
        else:
            hint = "; ".join(one.remedy for one in each if one.remedy) or "use another role"
            verdict = "fail" if kind is RoleKind.TENANT else "warn"
            found.append(Finding(verdict, f"role {name}, {kind}, has too much: {what}"[:WHAT_CHARS_MAX], hint[:WHAT_CHARS_MAX]))
    return found or [Finding("ok", "the roles that migrate knows have their rights, and no more")]


def _judge_tables(facts: Facts, strangers: list[Facts], schema: str) -> list[Finding]:
    """Judge the tables: what others put on them, what was switched off, how vacuum keeps up."""
    found = [_judge_stranger(each, schema) for each in strangers]
    kinds = {each["kind"] for each in strangers}
    if not kinds & {"foreign_key", "trigger", "rule", "policy"}:
        found.append(Finding("ok", "nobody has put foreign keys, triggers, rules or policies on the tables"))
    if "trigger_off" not in kinds:
        found.append(Finding("ok", "the tables' own triggers are on"))
    if not kinds & {"row_security_off", "policy_gone"}:
        found.append(Finding("ok", "row security is on and forced"))
    is_on = facts["has_autovacuum"] and "autovacuum_off" not in kinds
    if is_on:
        found.append(Finding("ok", "autovacuum is on"))
    elif not facts["has_autovacuum"]:
        found.append(Finding("fail", "autovacuum is off", "set autovacuum = on"))
    return [
        *found,
        _either(
            facts["notification_queue_usage"] < QUEUE_USAGE_MAX,
            f"notification queue {facts['notification_queue_usage']:.1%} full",
            f"notification queue {facts['notification_queue_usage']:.1%} full",
            "a session that listens sits in a transaction: find it in pg_stat_activity and end it; from 90% on workers poll",
            "fail" if facts["notification_queue_usage"] >= QUEUE_USAGE_FULL else "warn",
        ),
        _either(
            (facts["dead_row_share"] or 0) < DEAD_SHARE_MAX or (facts["dead_rows"] or 0) < DEAD_ROWS_MIN,
            f"{facts['dead_rows'] or 0} dead rows in jobs",
            f"{facts['dead_rows']} dead rows in jobs, {facts['dead_row_share'] or 0:.0%}",
            f"an old transaction or a busy autovacuum; now: vacuum {schema}.jobs",
        ),
    ]


def _judge_stranger(each: Facts, schema: str) -> Finding:
    table, name = f"{schema}.{each['table_name']}", each["name"]
    match each["kind"]:
        case "foreign_key":
            does = {
                "restrict": "a job that is referred to can be neither pruned nor buried: it is put aside; refer without a constraint",
                "cascade": f"pruning or burying a job deletes the rows of {each['of_table']} that refer to it",
            }.get(
                each["does"], f"pruning or burying a job changes the rows of {each['of_table']} that refer to it ({each['does']})"
            )
            return Finding("warn", f"foreign key {name} of {each['of_table']} refers to {table}", does)
        case "trigger":
            does = (
                "what it raises is an error of the job, which is put aside, and what it costs slows every worker: keep it small"
            )
            return Finding("warn", f"trigger {name} on {table} calls {each['of_table']}", does)
        case "trigger_off":
            does = "wake-ups, cancels or legal transitions depend on it: alter table ... enable trigger"
            return Finding("fail", f"trigger {name} on {table} is disabled", does)
        case "rule":
            return Finding(
                "warn", f"rule {name} on {table}", "it rewrites our statements, which may then do something else: drop it"
            )
        case "policy":
            does = "a restrictive one hides jobs from workers, a permissive one shows a tenant's rows to others"
            return Finding("warn", f"policy {name} on {table}, {each['does']}", does)
        case "row_security_off":
            does = f"tenants see each other's rows: alter table {table} enable row level security, force row level security"
            return Finding("fail", f"row security of {table} is off, or not forced", does)
        case "policy_gone":
            does = "with row security on nobody but its exempt sees a row; without, tenants see each other's: restore the policy"
            return Finding("fail", f"policy {name} of {table} is gone", does)
        case _:
            does = f"dead rows pile up and claims slow down: alter table {table} reset (autovacuum_enabled)"
            return Finding("fail", f"autovacuum of {table} is off", does)


def _judge_work(facts: Facts, queues: list[Facts]) -> list[Finding]:
    """Judge whether what is due is being worked on."""
    start = "start one: python -m pgnotifyq worker --app package.module:registry"
    found = []
    for each in queues:
        if each["waiting_seconds"] < WAITING_SECONDS_MAX:
            continue
        what = f"queue {each['queue_name']}: {each['jobs']} due job(s), the oldest has been waiting for {each['waiting_seconds']:.0f} s"
        if each["workers"] == 0:
            found.append(Finding("fail", f"{what}, and no live worker takes it", f"{start} --queue {each['queue_name']}"))
        else:
            hint = "are its workers at capacity, and do they have a handler for its jobs? see `explain ID`, `stats` and `workers`"
            found.append(Finding("warn", what, hint))
    if not found:
        found.append(Finding("ok", "no due job has been waiting for long"))
    gone = f"; rows of workers that are gone: {facts['workers_gone']}" if facts["workers_gone"] else ""
    return [
        *found,
        _either(facts["workers"] > 0, f"live workers: {facts['workers']}{gone}", f"no worker is alive{gone}", start),
        _either(
            facts["leases_overdue"] == 0 or facts["workers"] > 0,
            f"jobs whose lease has run out: {facts['leases_overdue']}",
            f"jobs whose lease has run out, and no worker to take them back: {facts['leases_overdue']}",
            start,
            "fail",
        ),
        _either(
            facts["polling_workers"] == 0,
            "all workers are told of work",
            f"workers that poll: {facts['polling_workers']}",
            "they cannot LISTEN, as behind a pooler in transaction mode: give them a direct address with --listen-dsn",
        ),
        _either(
            facts["dead_letters"] == 0,
            "no dead letters",
            f"{facts['dead_letters']} dead letter(s)",
            "see `dead` and `show`, then `requeue` or `dead --purge`",
        ),
    ]


def _judge_unserved(waiting: list[Facts]) -> list[Finding]:
    """Tell of job types that are due and that no live worker has a handler for."""
    if not waiting:
        return [Finding("ok", "every due job type has a live worker with a handler for it")]
    hint = "they wait, uncharged: start a worker whose registry has the handler; was it renamed, or not deployed yet?"
    found = [
        Finding(
            "warn",
            f"queue {each['queue_name']}: no live worker has a handler for {each['job_type']}, {each['jobs']} job(s) wait",
            hint,
        )
        for each in waiting[:UNSERVED_SHOWN_MAX]
    ]
    if len(waiting) > UNSERVED_SHOWN_MAX:
        found.append(Finding("warn", f"{len(waiting) - UNSERVED_SHOWN_MAX} more job types have no live worker", hint))
    return found


def _judge_troubles(troubles: list[TroubleRow]) -> list[Finding]:
    """Tell of the jobs that were put aside."""
    if not troubles:
        return [Finding("ok", "no job was put aside")]
    found = [
        Finding(
            "warn",
            f"job {each.job_id} was put aside: {each.verb} failed {each.tries} time(s): {shown(each.error_message)}"[
                :WHAT_CHARS_MAX
            ],
            f"mend what it says; the next look is at {each.look_at.isoformat(timespec='seconds')}; see `explain {each.job_id}`",
        )
        for each in troubles[:TROUBLES_SHOWN_MAX]
    ]
    if len(troubles) > TROUBLES_SHOWN_MAX:
        found.append(Finding("warn", "more jobs were put aside", "select * from job_troubles in the schema"))
    return found


def _judge_snapshots(facts: Facts, snapshots: list[Facts]) -> list[Finding]:
    """Tell who keeps vacuum from removing dead rows."""
    found = []
    for each in snapshots:
        seconds, name = each["seconds"], each["name"]
        if seconds is None or seconds <= SNAPSHOT_SECONDS_MAX:
            continue
        if each["kind"] == "prepared":
            found.append(
                Finding(
                    "warn",
                    f"prepared transaction {name!r} of role {each['role_name']} is {seconds:.0f} s old",
                    "it holds its locks and dead rows until it is ended: commit prepared, or rollback prepared",
                )
            )
            continue
        who = f"{each['application_name'] or 'no name'}, {each['role_name']}, {each['state']}"
        hint = f"dead rows cannot be removed meanwhile and claims slow down; end it, or: select pg_terminate_backend({name})"
        found.append(Finding("warn", f"pid {name} ({who}) has had a transaction open for {seconds:.0f} s", hint))
    if found:
        return found
    if facts["sees_all_sessions"]:
        return [Finding("ok", f"no transaction is older than {SNAPSHOT_SECONDS_MAX:g} s")]
    role = facts["role_name"]
    what = f"no transaction that role {role} may see is older than {SNAPSHOT_SECONDS_MAX:g} s"
    return [Finding("ok", what, f"those of other roles are hidden: grant pg_read_all_stats to {role}")]


async def _hear(connection: Connection[TupleRow], *, notified_by: Connection[TupleRow]) -> Finding:
    """Have this process notify itself.

    Behind a pooler in transaction mode LISTEN seems to work, but nothing arrives.
    """
    channel = f"pgnotifyq_doctor_{uuid.uuid4().hex[:16]}"
    try:
        with trio.move_on_after(LISTEN_SECONDS):
            await listen(connection, channel)
            await ask(notified_by, workers.notify("pgnotifyq", channel, "nonce"))
            while not any(note.channel == channel for note in await wait_notifications(connection)):
                pass
            await unlisten(connection)
            return Finding("ok", "a notification to ourselves arrived")
    except psycopg.Error as error:
        hint = "enqueues, cancels and wake-ups fail while this lasts: see the notification queue and the role's rights"
        return Finding("fail", f"a notification to ourselves was refused: {error.diag.message_primary or error}", hint)
    hint = "workers will poll; give them a direct address with --listen-dsn"
    return Finding("warn", f"a notification to ourselves did not arrive within {LISTEN_SECONDS:g} s: a pooler?", hint)


def _print(findings: list[Finding]) -> None:
    colours = {"ok": "32", "warn": "33", "fail": "31"}
    for finding in findings:
        word = f"{finding.verdict:<5}"
        if is_coloured():
            word = f"\x1b[{colours[finding.verdict]}m{word}\x1b[0m"
        print(f"{word}{finding.what}")
        if finding.hint:
            print(f"     -> {finding.hint}")
