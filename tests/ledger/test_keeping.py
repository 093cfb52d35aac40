"""What goes before its row, dead letters that are kept for a while, and the history that goes with whatever it is of."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import changes, end, retention
from pgnotifyq.ledger.look import list_troubles
from pgnotifyq.model.errors import IllegalTransition
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import (
    BLOCKED,
    ENDINGS,
    PATIENCE_SECONDS,
    SCHEMA,
    at_once,
    claim_one,
    dead_letter,
    enqueue,
    everything,
    existing,
    fetch,
    pass_time,
    reclaim,
    settle,
    until,
    value,
)
from tests.ledger.test_retention import DAY, finish, left, prune

Link = Connection[Any]
ORPHANS = (
    "select count(*) from pgnotifyq.job_executions as e where not exists (select from pgnotifyq.jobs as j where j.id = e.job_id)"
    " and not exists (select from pgnotifyq.dead_letter_jobs as d where d.id = e.job_id)"
)


def say(connection: Link, queue: str, keep_seconds: float | None = None, **said: Any) -> None:
    """Say how long something is kept."""
    ask_blocking(connection, retention.set_retention(SCHEMA, queue, keep_seconds, **said))


def blank(connection: Link) -> int:
    """Make a pass of blanking; return how many jobs were blanked."""
    blanked, after_id = ask_blocking(connection, retention.blank(SCHEMA, after_id=None, jobs_max=100))
    assert after_id is None
    return blanked


def prune_letters(connection: Link) -> tuple[int, int]:
    """Make a pass over the dead letters; return how many were deleted and blanked."""
    deleted, blanked, after_id = ask_blocking(connection, retention.prune_letters(SCHEMA, after_id=None, jobs_max=100))
    assert after_id is None
    return deleted, blanked


def bury(connection: Link, *, days_ago: float = 0, **fields: Any) -> Any:
    """Make a dead letter that died some days ago, with two attempts behind it."""
    job_id = enqueue(connection, **{"payload": '{"user": 17}', "headers": '{"h": 1}', **fields})
    settle(connection, claim_one(connection), ENDINGS["release"])
    settle(connection, claim_one(connection), ENDINGS["bury"])
    connection.execute(
        "update pgnotifyq.dead_letter_jobs set died_at = clock_timestamp() - make_interval(secs => %s) where id = %s",
        (days_ago * DAY, job_id),
    )
    return job_id


def give_contents(connection: Link, job_id: Any) -> None:
    """Give a finished job what it may have been given, and have returned."""
    connection.execute(
        "update pgnotifyq.jobs set payload = '{\"user\": 17}', headers = '{\"h\": 1}', result = '[1]', progress_message = 'done'"
        " where id = %s",
        (job_id,),
    )


def contents(connection: Link, job_id: Any) -> tuple[Any, ...]:
    """Return the payload, the headers, the result and the message of a job."""
    row = existing(connection, job_id)
    return row["payload"], row["headers"], row["result"], row["progress_message"]


WHOLE = ({"user": 17}, {"h": 1}, [1], "done")


def test_a_row_for_every_queue(connection: Link) -> None:
    """It counts where a queue's own row says nothing, column by column, and before what workers are set to."""
    say(connection, "*", DAY, payload_seconds=5.0)
    say(connection, "long", 100 * DAY, ending="completed")
    say(connection, "short", ending="completed", result_seconds=1.0)
    goes = {queue: finish(connection, queue, days_ago=2) for queue in ("other", "long", "short")}
    rows = {queue: ask_blocking(connection, retention.kept(SCHEMA, job_id)) for queue, job_id in goes.items()}
    assert {queue: row.goes_in_seconds < 0 for queue, row in rows.items() if row and row.goes_in_seconds is not None} == {
        "other": True,
        "long": False,
        "short": True,
    }
    assert prune(connection, "other", "long", "short", days=1000) == 2
    assert left(connection) == [goes["long"]]
    assert blank(connection) == 1, "of the queue whose row says nothing of payloads"


def test_what_goes_before_the_row(connection: Link) -> None:
    """The payload with the headers, the result with the message, each at its time. The row stays, with its history."""
    say(connection, "default", payload_seconds=2 * DAY, result_seconds=DAY)
    young, result_only, both = [finish(connection, "default", days_ago=days) for days in (0.5, 1.5, 3)]
    for job_id in (young, result_only, both):
        give_contents(connection, job_id)
    assert blank(connection) == 2
    assert contents(connection, young) == WHOLE
    assert contents(connection, result_only) == (*WHOLE[:2], None, None)
    assert contents(connection, both) == (None, None, None, None)
    assert left(connection) == [young, result_only, both]
    before = everything(connection)
    assert blank(connection) == 0
    assert everything(connection) == before, "what is blank is not written again"


@pytest.mark.parametrize("payload", ["true", "0", '""', "[]", "{}", '{"a": "%s"}' % ("x" * 100_000)])
def test_any_payload_is_blanked_once(connection: Link, payload: str) -> None:
    """However short it is, or long."""
    say(connection, "default", payload_seconds=DAY)
    job_id = finish(connection, "default", days_ago=2)
    connection.execute("update pgnotifyq.jobs set payload = %s where id = %s", (payload, job_id))
    assert [blank(connection), blank(connection)] == [1, 0]
    assert (contents(connection, job_id))[0] is None


def test_blanking_is_heap_only(connection: Link) -> None:
    """No index is written: it costs a page what a completion does."""
    say(connection, "default", payload_seconds=DAY, result_seconds=DAY)
    job_id = finish(connection, "default", days_ago=2)
    give_contents(connection, job_id)
    table = "'pgnotifyq.jobs'::regclass"
    counted = f"select pg_stat_get_xact_tuples_updated({table}), pg_stat_get_xact_tuples_hot_updated({table})"
    with connection.transaction():
        ((updated, heap_only),) = fetch(connection, counted)
        assert blank(connection) == 1
        assert fetch(connection, counted) == [(updated + 1, heap_only + 1)]


def test_what_has_not_ended(connection: Link) -> None:
    """Is not blanked: neither what waits or runs, nor what was cancelled and whose handler is stopping."""
    say(connection, "*", 0.0, payload_seconds=0.0, result_seconds=0.0)
    for _ in range(2):
        enqueue(connection, payload='{"user": 17}')
    stopping = claim_one(connection)
    connection.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (stopping.id,))
    claim_one(connection)
    enqueue(connection, payload='{"user": 17}')
    pass_time(connection, 10)
    before = everything(connection)
    assert blank(connection) == 0
    assert everything(connection) == before


def test_blanking_goes_on_where_the_last_batch_ended(connection: Link) -> None:
    """Batch after batch, each job once."""
    say(connection, "default", result_seconds=0.0, payload_seconds=0.0)
    jobs = [finish(connection, "default", days_ago=1) for _ in range(5)]
    done, after_id, batches = 0, None, 0
    while True:
        blanked, after_id = ask_blocking(connection, retention.blank(SCHEMA, after_id=after_id, jobs_max=2))
        done, batches = done + blanked, batches + 1
        if after_id is None:
            break
        assert after_id == jobs[2 * batches - 1]
    assert (done, batches) == (5, 3)


def test_nothing_said_nothing_read(connection: Link) -> None:
    """A pass is one look at an empty table."""
    finish(connection, "default", days_ago=100)
    bury(connection, days_ago=100)
    before = everything(connection)
    reads = "select pg_stat_get_xact_numscans('pgnotifyq.{}'::regclass)".format
    with connection.transaction():
        counted = [value(connection, reads(table)) for table in ("jobs", "dead_letter_jobs")]
        assert blank(connection) == 0
        assert prune_letters(connection) == (0, 0)
        assert [value(connection, reads(table)) for table in ("jobs", "dead_letter_jobs")] == counted
    assert everything(connection) == before


def test_job_that_a_trigger_keeps_whole(connection: Link) -> None:
    """It is put aside and told of; the others are blanked."""
    say(connection, "default", payload_seconds=0.0)
    kept, other = [finish(connection, "default", days_ago=1) for _ in range(2)]
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create function pgnotifyq.test_keep() returns trigger language plpgsql as"
            f" $$ begin if old.id = '{kept}' then raise 'kept'; end if; return new; end $$;"
            " create trigger test_keep before update on pgnotifyq.jobs for each row execute function pgnotifyq.test_keep()".encode()
        )
        assert blank(connection) == 1
        assert (contents(connection, other))[0] is None
        (trouble,) = ask_blocking(connection, list_troubles(SCHEMA, verb="prune"))
        assert (trouble.job_id, trouble.error_message) == (kept, "kept")
        assert blank(connection) == 0


def test_dead_letters(connection: Link) -> None:
    """They go with their history when the database says so, after it says so, and by no worker's setting."""
    old, young = bury(connection, days_ago=5), bury(connection, days_ago=1)
    assert prune(connection, "default", days=0) == 0
    assert prune_letters(connection) == (0, 0)
    say(connection, "default", 0.0)
    assert prune_letters(connection) == (0, 0), "completed and cancelled alone were meant"
    say(connection, "default", 2 * DAY, ending="dead")
    assert prune_letters(connection) == (1, 0)
    assert dead_letter(connection, old) is None
    assert {job_id for (job_id,) in fetch(connection, "select job_id from pgnotifyq.job_executions")} == {young}


def test_letter_whose_payload_was_blanked(connection: Link) -> None:
    """It stays, with its error and its history, and cannot be requeued: nobody is given what nobody enqueued."""
    say(connection, "*", ending="dead", payload_seconds=DAY)
    blanked, whole = bury(connection, days_ago=2), bury(connection)
    assert [prune_letters(connection), prune_letters(connection)] == [(0, 1), (0, 0)]
    letter = dead_letter(connection, blanked)
    assert letter is not None
    assert (letter["payload"], letter["headers"], letter["error_message"]) == (None, None, "hopeless")
    assert len(letter["history"]) == 2
    with pytest.raises(IllegalTransition, match="blanked"):
        ask_blocking(connection, end.requeue(SCHEMA, blanked))
    assert ask_blocking(connection, end.requeue_all(SCHEMA)) == 1
    assert dead_letter(connection, blanked) is not None
    assert dead_letter(connection, whole) is None
    assert value(connection, ORPHANS) == 0


@pytest.mark.parametrize("kind", ["admin", "worker"])
def test_who_may(connection: Link, kind: str) -> None:
    """An admin and a worker, with the rights that `migrate` gives, bring letters back, delete them and blank them."""
    for _ in range(3):
        bury(connection, days_ago=2)
    with connection.transaction(force_rollback=True):
        connection.execute("create role pgnotifyq_test_keeps")
        connection.execute("select pgnotifyq.grant_role(%s, 'pgnotifyq_test_keeps')", (kind,))
        connection.execute("select pgnotifyq.keep_roles()")
        say(connection, "default", ending="dead", payload_seconds=DAY)
        connection.execute("set local role pgnotifyq_test_keeps")
        assert ask_blocking(connection, end.requeue_all(SCHEMA, limit=1)) == 1
        assert prune_letters(connection) == (0, 2)
        connection.execute("reset role")
        say(connection, "default", DAY, ending="dead")
        connection.execute("set local role pgnotifyq_test_keeps")
        assert prune_letters(connection) == (2, 0)
        assert blank(connection) == 0


def test_letter_that_a_trigger_keeps(connection: Link) -> None:
    """It stays, and the others go."""
    say(connection, "*", 0.0, ending="dead")
    kept, other = [bury(connection, days_ago=1) for _ in range(2)]
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create function pgnotifyq.test_keep() returns trigger language plpgsql as"
            f" $$ begin if old.id = '{kept}' then raise 'kept'; end if; return old; end $$;"
            " create trigger test_keep before delete on pgnotifyq.dead_letter_jobs"
            " for each row execute function pgnotifyq.test_keep()".encode()
        )
        assert prune_letters(connection) == (1, 0)
        assert dead_letter(connection, kept) is not None
        assert dead_letter(connection, other) is None


@pytest.mark.parametrize(
    "wrong",
    [
        "'no spaces', 1",
        "'**', 1",
        "'a', payload_seconds => -1",
        "'a', result_seconds => 'nan'",
        "'a', 1, 'dead', result_seconds => 1",
    ],
)
def test_what_is_refused(connection: Link, wrong: str) -> None:
    """A queue that cannot be, a time out of range, and the result of a dead letter."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(f"select pgnotifyq.set_retention({wrong})".encode())
    assert caught.value.sqlstate == "PNQ02"
    assert ask_blocking(connection, retention.list_retention(SCHEMA)) == []


def test_saying_nothing_any_more(connection: Link) -> None:
    """Takes the row away, of one ending or of all."""
    for ending in (None, "dead"):
        say(connection, "a", 1.0, ending=ending)
    say(connection, "*", 1.0, ending="dead")
    say(connection, "a", ending="completed")
    rows = [(row.queue_name, row.ending) for row in ask_blocking(connection, retention.list_retention(SCHEMA))]
    assert rows == [("*", "dead"), ("a", "cancelled"), ("a", "dead")]
    say(connection, "a")
    assert [row.queue_name for row in ask_blocking(connection, retention.list_retention(SCHEMA))] == ["*"]


def test_when_a_job_goes(connection: Link) -> None:
    """By the database's clock, of a job and of a dead letter; what has gone is told no more."""
    connection.execute("set pgnotifyq.clock = '2030-01-01'")
    say(connection, "*", 10.0, payload_seconds=5.0)
    say(connection, "*", 20.0, ending="dead", payload_seconds=7.0)
    waits = enqueue(connection)
    kept = ask_blocking(connection, retention.kept(SCHEMA, waits))
    assert kept == retention.Kept(
        queue_name="default", ending=None, goes_in_seconds=None, payload_goes_in_seconds=None, result_goes_in_seconds=None
    )
    settle(connection, claim_one(connection), ENDINGS["complete"])
    letter = enqueue(connection)
    settle(connection, claim_one(connection), ENDINGS["bury"])
    connection.execute("set pgnotifyq.clock = '2030-01-01 00:00:06'")
    kept, of_letter = [ask_blocking(connection, retention.kept(SCHEMA, job_id)) for job_id in (waits, letter)]
    assert kept is not None and of_letter is not None
    assert (kept.ending, kept.goes_in_seconds, kept.payload_goes_in_seconds) == ("completed", 4.0, -1.0)
    assert (of_letter.ending, of_letter.goes_in_seconds, of_letter.payload_goes_in_seconds) == ("dead", 14.0, 1.0)
    blank(connection)
    kept = ask_blocking(connection, retention.kept(SCHEMA, waits))
    assert kept is not None and kept.payload_goes_in_seconds is None


# History goes with what it is of


@pytest.mark.parametrize("how", ["in bulk", "by a cascade", "with what was in its way"])
def test_history_of_a_job_that_is_deleted(connection: Link, how: str) -> None:
    """It goes, and nothing else does."""
    gone, stays = [finish(connection, "default", days_ago=1) for _ in range(2)]
    with connection.transaction(force_rollback=True):
        if how == "in bulk":
            connection.execute("update pgnotifyq.jobs set queue_name = 'other' where id = %s", (gone,))
            done = ask_blocking(connection, changes.change_all(SCHEMA, "delete", changes.JobFilter(queue="other")))
            assert (done.done, done.refused) == (1, 0)
        elif how == "by a cascade":
            connection.execute(
                "create table public.orders (id uuid primary key);"
                " alter table pgnotifyq.jobs add column order_id uuid references public.orders (id) on delete cascade"
            )
            connection.execute("insert into public.orders values (%s)", (gone,))
            connection.execute("update pgnotifyq.jobs set order_id = id where id = %s", (gone,))
            connection.execute("delete from public.orders")
        else:
            connection.execute(
                "select pgnotifyq.note_trouble(org_id, id, 'prune', '23503', 'somebody needs it') from pgnotifyq.jobs where id = %s",
                (gone,),
            )
            connection.execute("delete from pgnotifyq.jobs where id = %s", (gone,))
            assert ask_blocking(connection, list_troubles(SCHEMA)) == []
        assert left(connection) == [stays]


def test_history_of_a_letter_that_is_deleted_by_hand(connection: Link) -> None:
    """It goes; that of a letter which is requeued is its job's again."""
    gone, back = bury(connection), bury(connection)
    connection.execute("delete from pgnotifyq.dead_letter_jobs where id = %s", (gone,))
    ask_blocking(connection, end.requeue(SCHEMA, back))
    assert fetch(connection, "select distinct job_id from pgnotifyq.job_executions") == [(back,)]


def test_role_that_may_delete_no_history(connection: Link) -> None:
    """It deletes jobs all the same, if it may look at the history or not."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            "create role pgnotifyq_test_deletes bypassrls; grant usage on schema pgnotifyq to pgnotifyq_test_deletes;"
            " grant select, delete on pgnotifyq.jobs, pgnotifyq.dead_letter_jobs to pgnotifyq_test_deletes"
        )
        for right in (b"", b"grant select on pgnotifyq.job_executions to pgnotifyq_test_deletes"):
            finish(connection, "default", days_ago=1)
            bury(connection)
            if right:
                connection.execute(right)
            connection.execute("set role pgnotifyq_test_deletes")
            connection.execute("delete from pgnotifyq.jobs")
            connection.execute("delete from pgnotifyq.dead_letter_jobs")
            connection.execute("reset role")
            assert value(connection, ORPHANS) > 0


WRITES = ["complete", "retry", "bury", "cancel", "reclaim"]


@pytest.mark.parametrize("which_first", ["delete", "write"])
@pytest.mark.parametrize("write", WRITES)
def test_delete_that_meets_an_ending(connection: Link, other: Link, dsn: str, write: str, which_first: str) -> None:
    """Whichever comes first: no attempt is left of a job that is gone, and none is lost of one that stays."""
    job_id = enqueue(connection, max_attempts=3)
    job = claim_one(connection)
    if write == "cancel":
        connection.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (job_id,))
    if write == "reclaim":
        connection.execute("update pgnotifyq.jobs set lease_expires_at = '2020-01-01'")

    def end_it(link: Link) -> None:
        if write == "reclaim":
            reclaim(link)
        else:
            settle(link, job, ENDINGS[write])

    def delete_it(link: Link) -> None:
        link.execute("delete from pgnotifyq.jobs where id = %s", (job_id,))

    first, second = (delete_it, end_it) if which_first == "delete" else (end_it, delete_it)
    begun = threading.Event()

    def come_second() -> None:
        begun.set()
        second(other)

    with at_once() as start, connection.transaction():
        first(connection)
        start(come_second)
        assert begun.wait(PATIENCE_SECONDS)
        if not (which_first == "delete" and write == "reclaim"):  # a reclaim passes over what is locked
            until(dsn, BLOCKED, "other")
    assert value(connection, ORPHANS) == 0
    stays = value(connection, "select count(*) from pgnotifyq.dead_letter_jobs")
    assert stays == (1 if (which_first, write) == ("write", "bury") else 0)
    assert value(connection, "select count(*) from pgnotifyq.jobs") == 0
    assert value(connection, "select count(*) from pgnotifyq.job_executions") == stays


def test_delete_that_meets_a_claim(connection: Link, other: Link) -> None:
    """A claim passes over a job that is being deleted, and goes on with the next."""
    first, second = enqueue(connection), enqueue(connection)
    with connection.transaction():
        connection.execute("delete from pgnotifyq.jobs where id = %s", (first,))
        assert claim_one(other).id == second
    assert value(connection, "select array_agg(id) from pgnotifyq.jobs") == [second]
