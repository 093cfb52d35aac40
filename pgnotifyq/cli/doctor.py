"""`python -m pgnotifyq doctor`: look at what a queue depends on, and say what is wrong and what to do."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any

import attrs
import trio

from pgnotifyq.cli.commands import find_database, open_ledger
from pgnotifyq.cli.output import print_json
from pgnotifyq.cli.reach import answered
from pgnotifyq.ledger.migrate import code_version
from pgnotifyq.ledger.statements import query
from pgnotifyq.wire.connection import open_connection
from pgnotifyq.wire.notifications import listen, wait_notifications

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

LISTEN_SECONDS = 3.0  # for a notification to ourselves
SNAPSHOT_SECONDS_MAX = 60.0  # an older transaction holds dead rows for longer than a queue likes
QUEUE_USAGE_MAX = 0.1  # of the 8 GiB that notifications may pile up to
WAITING_SECONDS_MAX = 60.0
DEAD_SHARE_MAX, DEAD_ROWS_MIN = 0.5, 10_000


@attrs.frozen
class Finding:
    """One thing looked at."""

    verdict: str  # ok, warn, fail
    what: str
    hint: str = ""


def run(dsn: str | None, schema: str, *, as_json: bool) -> int:
    """Examine the database; 1 when anything fails."""

    async def main() -> list[Finding]:
        database = await find_database(dsn)

        async def on_ledger() -> list[Finding]:
            # Two: what a session notifies itself it hears even behind a pooler in transaction mode.
            async with open_ledger(database, schema) as connection, open_connection(database.dsn) as other:
                return await _examine(connection, other, schema)

        return await answered(database.dsn, on_ledger)

    findings = trio.run(main)
    if as_json:
        print_json([attrs.asdict(finding) for finding in findings])
    else:
        _print(findings)
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0


async def _examine(connection: Connection[TupleRow], other: Connection[TupleRow], schema: str) -> list[Finding]:
    # The one look outside of a transaction that others could mistake for an old one.
    cursor = await connection.execute(query("doctor", schema))
    row = await cursor.fetchone()
    facts = dict(zip([column.name for column in cursor.description or ()], row or (), strict=True))
    findings = [
        Finding("ok", f"PostgreSQL {facts['server_version']}, schema {schema} at version {code_version()}"),
        *_judge(facts, schema),
        *([] if facts["is_standby"] else [await _hear(connection, notified_by=other)]),  # it takes no LISTEN
    ]
    cursor = await connection.execute(query("old_snapshots", schema))
    old = [other for other in await cursor.fetchall() if other[4] and other[4] > SNAPSHOT_SECONDS_MAX]
    if not old:
        findings.append(Finding("ok", f"no transaction is older than {SNAPSHOT_SECONDS_MAX:g} s"))
    for pid, name, role, state, seconds in old:
        findings.append(
            Finding(
                "warn",
                f"pid {pid} ({name or 'no name'}, {role}, {state}) has had a transaction open for {seconds:.0f} s",
                f"dead rows cannot be removed meanwhile and claims slow down; end it, or: select pg_terminate_backend({pid})",
            )
        )
    return findings


def _judge(facts: dict[str, Any], schema: str) -> list[Finding]:
    role, due = facts["role_name"], facts["oldest_due_seconds"]

    def either(holds: bool, good: str, bad: str, hint: str, verdict: str = "warn") -> Finding:
        return Finding("ok", good) if holds else Finding(verdict, bad, hint)

    return [
        either(
            bool(facts["can_write"]) and not facts["is_standby"],
            f"role {role} can write",
            f"role {role} cannot write" if not facts["is_standby"] else "the server is a standby",
            "grant insert, update, delete on the tables of the schema, or connect to the primary",
            "fail",
        ),
        either(
            not (facts["is_superuser"] or facts["bypasses_row_security"]),
            f"role {role} obeys row security",
            f"role {role} is exempt from row security",
            "tenant transactions take on the tenant role and are confined all the same; for the rest use a lesser role",
        ),
        either(
            bool(facts["has_tenant_role"]),
            f"role {schema}_tenant confines tenant transactions",
            f"role {schema}_tenant does not exist: tenants are confined by a setting only",
            f"as a role that may: create role {schema}_tenant nologin; grant it to {role}; then migrate again",
        ),
        either(bool(facts["has_autovacuum"]), "autovacuum is on", "autovacuum is off", "set autovacuum = on", "fail"),
        either(
            facts["notification_queue_usage"] < QUEUE_USAGE_MAX,
            f"notification queue {facts['notification_queue_usage']:.1%} full",
            f"notification queue {facts['notification_queue_usage']:.1%} full",
            "a session that listens sits in a transaction: find it in pg_stat_activity and end it",
        ),
        either(
            facts["workers"] > 0,
            f"workers: {facts['workers']}",
            "no worker is registered",
            "start one: python -m pgnotifyq worker --app package.module:registry",
        ),
        either(
            facts["polling_workers"] == 0,
            "all workers are told of work",
            f"workers that poll: {facts['polling_workers']}",
            "they cannot LISTEN, as behind a pooler in transaction mode: give them a direct address with --listen-dsn",
        ),
        either(
            due is None or due < WAITING_SECONDS_MAX,
            "no due job has been waiting for long",
            f"the oldest due job has been waiting for {due or 0:.0f} s",
            "is a worker serving its queue, and is it at capacity? see `stats` and `workers`",
        ),
        either(
            (facts["dead_row_share"] or 0) < DEAD_SHARE_MAX or (facts["dead_rows"] or 0) < DEAD_ROWS_MIN,
            f"{facts['dead_rows'] or 0} dead rows in jobs",
            f"{facts['dead_rows']} dead rows in jobs, {facts['dead_row_share'] or 0:.0%}",
            f"an old transaction or a busy autovacuum; now: vacuum {schema}.jobs",
        ),
        either(
            facts["dead_letters"] == 0,
            "no dead letters",
            f"{facts['dead_letters']} dead letter(s)",
            "see `dead` and `show`, then `requeue` or `dead --purge`",
        ),
    ]


async def _hear(connection: Connection[TupleRow], *, notified_by: Connection[TupleRow]) -> Finding:
    """Have ourselves notified: behind a pooler in transaction mode LISTEN seems to work, and nothing arrives."""
    channel = f"pgnotifyq_doctor_{uuid.uuid4().hex[:16]}"
    with trio.move_on_after(LISTEN_SECONDS):
        await listen(connection, channel)
        await notified_by.execute("select pg_notify(%s, 'nonce')", (channel,))
        while not any(note.channel == channel for note in await wait_notifications(connection)):
            pass
        return Finding("ok", "a notification to ourselves arrived")
    hint = "workers will poll; give them a direct address with --listen-dsn"
    return Finding("warn", f"a notification to ourselves did not arrive within {LISTEN_SECONDS:g} s: a pooler?", hint)


def _print(findings: list[Finding]) -> None:
    colours = {"ok": "32", "warn": "33", "fail": "31"}
    for finding in findings:
        word = f"{finding.verdict:<5}"
        if sys.stdout.isatty():
            word = f"\x1b[{colours[finding.verdict]}m{word}\x1b[0m"
        print(f"{word}{finding.what}")
        if finding.hint:
            print(f"     -> {finding.hint}")
