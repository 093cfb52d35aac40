"""Who is alive, as the database sees it: signs of life that only a worker's own role can give, and judgements that commit first."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgnotifyq.ledger import workers
from pgnotifyq.model.job import WorkerId
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection, connect
from tests.ledger.support import ANN, BOB, SCHEMA, claim, enqueue, existing, fetch, pass_time, reclaim, until, value

Link = Connection[Any]
GRACE_SECONDS = 5.0


def enlist(connection: Link, worker: WorkerId = ANN) -> None:
    """Register a worker as this release does."""
    ask_blocking(connection, workers.register( SCHEMA, worker_id=worker, host="here", pid=1, queues=["default"], slots=1, version="0",
        has_session=False, lease_seconds=600.0, grace_seconds=GRACE_SECONDS,
    ))  # fmt: skip


def watch(connection: Link, session_seconds: float = 1e6) -> tuple[int, list[WorkerId], bool]:
    """Look as BOB does, whose own grace is another."""
    found = ask_blocking(connection, workers.watch(SCHEMA, BOB, 1000.0, session_seconds))
    return found.others, found.dead, found.suspected


def is_alive(connection: Link) -> bool:
    return bool(value(connection, "select pgnotifyq.is_alive(%s)", ANN))


def gone(dsn: str, pid: int) -> None:
    until(dsn, "not exists (select from pg_stat_activity where pid = %s)", pid)


def lose_session(connection: Link, dsn: str) -> None:
    """Have ANN's session speak for it, and end."""
    enlist(connection)
    with connect(dsn) as session:
        assert ask_blocking(session, workers.hold_session(SCHEMA, ANN))
        pid = session.info.backend_pid
    gone(dsn, pid)


def test_session_that_is_lost(connection: Link, dsn: str) -> None:
    """A worker is given up its own grace after its session was found gone, and not the grace of whoever looks."""
    enlist(connection)
    with connect(dsn) as session:
        assert ask_blocking(session, workers.hold_session(SCHEMA, ANN))
        pass_time(connection, 3600)
        assert (watch(connection), is_alive(connection)) == ((1, [], False), True)
        pid = session.info.backend_pid
    gone(dsn, pid)
    assert (watch(connection), is_alive(connection)) == ((0, [], True), False)
    pass_time(connection, 3600 + GRACE_SECONDS - 1)
    assert watch(connection) == (0, [], True)
    pass_time(connection, 3600 + GRACE_SECONDS + 1)
    assert watch(connection) == (0, [ANN], False)
    assert watch(connection) == (0, [ANN], False)


def test_beat_before_the_judgement(connection: Link, dsn: str) -> None:
    """A beat counts from when it is given: the grace begins anew, and who was told dead by an older look is not."""
    lose_session(connection, dsn)
    enqueue(connection)
    (job,) = claim(connection, lease_seconds=86_000)
    watch(connection)
    pass_time(connection, GRACE_SECONDS + 1)
    assert ask_blocking(connection, workers.beat(SCHEMA, ANN))
    assert is_alive(connection)
    assert watch(connection) == (0, [], True)
    assert reclaim(connection, dead=[ANN]) == {}
    assert existing(connection, job.id)["status"] == "running"


def test_sign_of_life_after_the_judgement(connection: Link, dsn: str) -> None:
    """Whoever was given up is told so, by a beat and by a session that is to speak for it, until it registers anew."""
    lose_session(connection, dsn)
    watch(connection)
    pass_time(connection, GRACE_SECONDS + 1)
    assert watch(connection) == (0, [ANN], False)
    assert not ask_blocking(connection, workers.beat(SCHEMA, ANN))
    assert not ask_blocking(connection, workers.hold_session(SCHEMA, ANN))
    assert watch(connection) == (0, [ANN], False)
    enlist(connection)
    assert ask_blocking(connection, workers.beat(SCHEMA, ANN))
    assert ask_blocking(connection, workers.hold_session(SCHEMA, ANN))
    assert reclaim(connection, dead=[ANN]) == {}
    assert not ask_blocking(connection, workers.beat(SCHEMA, BOB))  # nobody


@pytest.mark.parametrize("sign", ["beat", "session"])
def test_sign_of_life_while_jobs_are_taken(connection: Link, other: Link, dsn: str, sign: str) -> None:
    """A sign of life that comes while the jobs of a dead worker are being taken is too late, and is told so."""
    lose_session(connection, dsn)
    enqueue(connection)
    claim(connection, lease_seconds=86_000)
    watch(connection)
    pass_time(connection, 2 * GRACE_SECONDS)
    assert watch(connection) == (0, [ANN], False)
    with connection.transaction():
        assert len(reclaim(connection, dead=[ANN])) == 1
        assert not ask_blocking(other, (workers.beat if sign == "beat" else workers.hold_session)(SCHEMA, ANN))


def test_watcher_whose_own_session_is_young(connection: Link, dsn: str) -> None:
    """After a restart of the server everybody has lost everybody: nobody notes, and nobody judges, in its own first grace."""
    lose_session(connection, dsn)
    assert watch(connection, session_seconds=GRACE_SECONDS - 1) == (0, [], True)
    assert value(connection, "select session_lost_at from pgnotifyq.worker_heartbeats") is None
    watch(connection)
    pass_time(connection, 3600)
    assert watch(connection, session_seconds=GRACE_SECONDS - 1) == (0, [], True)
    assert watch(connection) == (0, [ANN], False)


def test_watcher_that_does_not_say_how_young_it_is(connection: Link, dsn: str) -> None:
    """A worker of an older release does not say since when it has its session: the server knows."""
    lose_session(connection, dsn)
    found = fetch(connection, "select * from pgnotifyq.watch(%s, 1000.0)", BOB)
    assert found == [(0, [], True)]
    assert value(connection, "select session_lost_at from pgnotifyq.worker_heartbeats") is None


def test_job_that_was_claimed_a_moment_ago(connection: Link, dsn: str) -> None:
    """A claim is a sign of life for the job that it brought: that one is not taken before the grace has passed."""
    lose_session(connection, dsn)
    enqueue(connection)
    (old,) = claim(connection, lease_seconds=86_000)
    watch(connection)
    pass_time(connection, GRACE_SECONDS + 1)
    watch(connection)
    enqueue(connection)
    (new,) = claim(connection, lease_seconds=86_000)
    assert reclaim(connection, dead=[ANN]) == {old.id: "pending"}
    pass_time(connection, 2 * GRACE_SECONDS + 2)
    assert watch(connection) == (0, [ANN], False)
    assert reclaim(connection, dead=[ANN]) == {new.id: "pending"}
    assert fetch(connection, "select from pgnotifyq.worker_heartbeats") == []


def test_row_that_somebody_holds(connection: Link, other: Link, dsn: str) -> None:
    """Whoever looks does not wait for a worker's row: who holds it gives a sign of life, or judges."""
    lose_session(connection, dsn)
    with other.transaction():
        other.execute("select from pgnotifyq.worker_heartbeats for update")
        connection.execute("set lock_timeout = '1ms'")
        assert watch(connection) == (0, [], True)
    watch(connection)
    pass_time(connection, GRACE_SECONDS + 1)
    with other.transaction():
        other.execute("select from pgnotifyq.worker_heartbeats for update")
        assert watch(connection) == (0, [], True)


def test_ghost_of_its_own_session(connection: Link, other: Link, dsn: str) -> None:
    """A worker whose former session the server has not missed does not wait for it: it is ended, and the new one speaks."""
    enlist(connection)
    with connect(dsn, application_name="ghost") as ghost:
        assert ask_blocking(ghost, workers.hold_session(SCHEMA, ANN))
        other.execute("set lock_timeout = '1ms'; set statement_timeout = '2s'")
        assert ask_blocking(other, workers.hold_session(SCHEMA, ANN))
        until(dsn, "not exists (select from pg_stat_activity where application_name = 'ghost')")
    pass_time(connection, 3600)
    assert (watch(connection), is_alive(connection)) == ((1, [], False), True)


def test_lock_that_a_stranger_holds(connection: Link, dsn: str) -> None:
    """Whoever may connect can hold the lock named after a worker: a live one is not thought dead for it, nor a dead one alive."""
    enlist(connection)
    with stranger(dsn) as evil:
        evil.execute("select pg_advisory_lock(pgnotifyq_key) from given")
        with connect(dsn) as session:
            assert ask_blocking(session, workers.hold_session(SCHEMA, ANN))
            pass_time(connection, 3600)
            assert (watch(connection), is_alive(connection)) == ((1, [], False), True)
            pid = session.info.backend_pid
            # It sees the key that the worker has taken instead, and stands in line for it.
            ((key,),) = fetch(connection, "select session_lock from pgnotifyq.worker_heartbeats")
        gone(dsn, pid)
        evil.execute("select pg_advisory_lock(%s)", (key,))
        assert (watch(connection), is_alive(connection)) == ((0, [], True), False)


class stranger:  # noqa: N801  # reads as a function
    """A connection of a role that may do nothing but connect."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def __enter__(self) -> psycopg.Connection[Any]:
        with psycopg.connect(self._dsn, autocommit=True) as owner:
            owner.execute("create role stranger login")
            owner.execute("create table public.given as select pgnotifyq.session_key(%s) as pgnotifyq_key", (ANN,))
            owner.execute("grant select on public.given to stranger")
        self._connection = psycopg.connect(make_conninfo(self._dsn, user="stranger"), autocommit=True)
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        with psycopg.connect(self._dsn, autocommit=True) as owner:
            owner.execute("drop table public.given")
            owner.execute("drop role stranger")


@pytest.mark.parametrize("what", ["number", "start", "role"])
def test_backend_that_was_given_the_number_of_another(connection: Link, dsn: str, what: str) -> None:
    """Number, start and role of the session are looked at: another that has the lock, and one of them, is not the worker's."""
    enlist(connection)
    with connect(dsn) as session:
        assert ask_blocking(session, workers.hold_session(SCHEMA, ANN))
        column, other_value = {
            "number": ("session_pid", "pg_backend_pid()"),
            "start": ("session_started_at", "session_started_at - interval '1 h'"),
            "role": ("session_role", "0"),
        }[what]
        connection.execute(sql.SQL("update pgnotifyq.worker_heartbeats set {} = " + other_value).format(sql.Identifier(column)))
        pass_time(connection, 3600)
        assert (watch(connection), is_alive(connection)) == ((0, [], True), False)


def test_worker_of_an_older_release(connection: Link, other: Link, dsn: str) -> None:
    """One that runs on while the schema is brought up to date registers, holds its lock and is missed as before."""
    other.execute("select pg_advisory_lock(pgnotifyq.session_key(%s))", (ANN,))
    other.execute("select pgnotifyq.register_worker(%s, 'here', 1, '{default}', 1, '0', true, 60)", (ANN,))
    pass_time(connection, 3600)
    assert (watch(connection), is_alive(connection)) == ((1, [], False), True)
    other.close()
    until(dsn, "not exists (select from pg_locks where locktype = 'advisory')")
    assert watch(connection) == (0, [], True)
    pass_time(connection, 3600 + 1001)
    assert watch(connection) == (0, [ANN], False)
    connection.execute("select pgnotifyq.heartbeat(%s, '{}', '{}', 60)", (ANN,))
    assert reclaim(connection, dead=[ANN]) == {}
