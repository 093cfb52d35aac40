"""What goes before its row, dead letters that are kept for a while, and the history that goes with whatever it is of."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import trio

from pgnotifyq.ledger import changes, end, retention
from pgnotifyq.ledger.look import list_troubles
from pgnotifyq.model.errors import IllegalTransition
from pgnotifyq.wire.asking import ask
from pgnotifyq.wire.connection import Connection
from tests.ledger.support import (
    BLOCKED,
    ENDINGS,
    SCHEMA,
    claim_one,
    dead_letter,
    enqueue,
    everything,
    existing,
    fetch,
    pass_time,
    reclaim,
    settle,
    value,
)
from tests.ledger.test_retention import DAY, finish, left, prune
from tests.proxy import until

Link = Connection[Any]
ORPHANS = (
    "select count(*) from pgnotifyq.job_executions as e where not exists (select from pgnotifyq.jobs as j where j.id = e.job_id)"
    " and not exists (select from pgnotifyq.dead_letter_jobs as d where d.id = e.job_id)"
)


async def say(connection: Link, queue: str, keep_seconds: float | None = None, **said: Any) -> None:
    """Say how long something is kept."""
    await ask(connection, retention.set_retention(SCHEMA, queue, keep_seconds, **said))


async def blank(connection: Link) -> int:
    """Make a pass of blanking; return how many jobs were blanked."""
    blanked, after_id = await ask(connection, retention.blank(SCHEMA, after_id=None, jobs_max=100))
    assert after_id is None
    return blanked


async def prune_letters(connection: Link) -> tuple[int, int]:
    """Make a pass over the dead letters; return how many were deleted and blanked."""
    deleted, blanked, after_id = await ask(connection, retention.prune_letters(SCHEMA, after_id=None, jobs_max=100))
    assert after_id is None
    return deleted, blanked


async def bury(connection: Link, *, days_ago: float = 0, **fields: Any) -> Any:
    """Make a dead letter that died some days ago, with two attempts behind it."""
    job_id = await enqueue(connection, **{"payload": '{"user": 17}', "headers": '{"h": 1}', **fields})
    await settle(connection, await claim_one(connection), ENDINGS["release"])
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    await connection.execute(
        "update pgnotifyq.dead_letter_jobs set died_at = clock_timestamp() - make_interval(secs => %s) where id = %s",
        (days_ago * DAY, job_id),
    )
    return job_id


async def give_contents(connection: Link, job_id: Any) -> None:
    """Give a finished job what it may have been given, and have returned."""
    await connection.execute(
        "update pgnotifyq.jobs set payload = '{\"user\": 17}', headers = '{\"h\": 1}', result = '[1]', progress_message = 'done'"
        " where id = %s",
        (job_id,),
    )


async def contents(connection: Link, job_id: Any) -> tuple[Any, ...]:
    """Return the payload, the headers, the result and the message of a job."""
    row = await existing(connection, job_id)
    return row["payload"], row["headers"], row["result"], row["progress_message"]


WHOLE = ({"user": 17}, {"h": 1}, [1], "done")


async def test_a_row_for_every_queue(connection: Link) -> None:
    """It counts where a queue's own row says nothing, column by column, and before what workers are set to."""
    await say(connection, "*", DAY, payload_seconds=5.0)
    await say(connection, "long", 100 * DAY, ending="completed")
    await say(connection, "short", ending="completed", result_seconds=1.0)
    goes = {queue: await finish(connection, queue, days_ago=2) for queue in ("other", "long", "short")}
    rows = {queue: await ask(connection, retention.kept(SCHEMA, job_id)) for queue, job_id in goes.items()}
    assert {queue: row.goes_in_seconds < 0 for queue, row in rows.items() if row and row.goes_in_seconds is not None} == {
        "other": True,
        "long": False,
        "short": True,
    }
    assert await prune(connection, "other", "long", "short", days=1000) == 2
    assert await left(connection) == [goes["long"]]
    assert await blank(connection) == 1, "of the queue whose row says nothing of payloads"


async def test_what_goes_before_the_row(connection: Link) -> None:
    """The payload with the headers, the result with the message, each at its time. The row stays, with its history."""
    await say(connection, "default", payload_seconds=2 * DAY, result_seconds=DAY)
    young, result_only, both = [await finish(connection, "default", days_ago=days) for days in (0.5, 1.5, 3)]
    for job_id in (young, result_only, both):
        await give_contents(connection, job_id)
    assert await blank(connection) == 2
    assert await contents(connection, young) == WHOLE
    assert await contents(connection, result_only) == (*WHOLE[:2], None, None)
    assert await contents(connection, both) == (None, None, None, None)
    assert await left(connection) == [young, result_only, both]
    before = await everything(connection)
    assert await blank(connection) == 0
    assert await everything(connection) == before, "what is blank is not written again"


@pytest.mark.parametrize("payload", ["true", "0", '""', "[]", "{}", '{"a": "%s"}' % ("x" * 100_000)])
async def test_any_payload_is_blanked_once(connection: Link, payload: str) -> None:
    """However short it is, or long."""
    await say(connection, "default", payload_seconds=DAY)
    job_id = await finish(connection, "default", days_ago=2)
    await connection.execute("update pgnotifyq.jobs set payload = %s where id = %s", (payload, job_id))
    assert [await blank(connection), await blank(connection)] == [1, 0]
    assert (await contents(connection, job_id))[0] is None


async def test_blanking_is_heap_only(connection: Link) -> None:
    """No index is written: it costs a page what a completion does."""
    await say(connection, "default", payload_seconds=DAY, result_seconds=DAY)
    job_id = await finish(connection, "default", days_ago=2)
    await give_contents(connection, job_id)
    table = "'pgnotifyq.jobs'::regclass"
    counted = f"select pg_stat_get_xact_tuples_updated({table}), pg_stat_get_xact_tuples_hot_updated({table})"
    async with connection.transaction():
        ((updated, heap_only),) = await fetch(connection, counted)
        assert await blank(connection) == 1
        assert await fetch(connection, counted) == [(updated + 1, heap_only + 1)]


async def test_what_has_not_ended(connection: Link) -> None:
    """Is not blanked: neither what waits or runs, nor what was cancelled and whose handler is stopping."""
    await say(connection, "*", 0.0, payload_seconds=0.0, result_seconds=0.0)
    for _ in range(2):
        await enqueue(connection, payload='{"user": 17}')
    stopping = await claim_one(connection)
    await connection.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (stopping.id,))
    await claim_one(connection)
    await enqueue(connection, payload='{"user": 17}')
    await pass_time(connection, 10)
    before = await everything(connection)
    assert await blank(connection) == 0
    assert await everything(connection) == before


async def test_blanking_goes_on_where_the_last_batch_ended(connection: Link) -> None:
    """Batch after batch, each job once."""
    await say(connection, "default", result_seconds=0.0, payload_seconds=0.0)
    jobs = [await finish(connection, "default", days_ago=1) for _ in range(5)]
    done, after_id, batches = 0, None, 0
    while True:
        blanked, after_id = await ask(connection, retention.blank(SCHEMA, after_id=after_id, jobs_max=2))
        done, batches = done + blanked, batches + 1
        if after_id is None:
            break
        assert after_id == jobs[2 * batches - 1]
    assert (done, batches) == (5, 3)


async def test_nothing_said_nothing_read(connection: Link) -> None:
    """A pass is one look at an empty table."""
    await finish(connection, "default", days_ago=100)
    await bury(connection, days_ago=100)
    before = await everything(connection)
    reads = "select pg_stat_get_xact_numscans('pgnotifyq.{}'::regclass)".format
    async with connection.transaction():
        counted = [await value(connection, reads(table)) for table in ("jobs", "dead_letter_jobs")]
        assert await blank(connection) == 0
        assert await prune_letters(connection) == (0, 0)
        assert [await value(connection, reads(table)) for table in ("jobs", "dead_letter_jobs")] == counted
    assert await everything(connection) == before


async def test_job_that_a_trigger_keeps_whole(connection: Link) -> None:
    """It is put aside and told of; the others are blanked."""
    await say(connection, "default", payload_seconds=0.0)
    kept, other = [await finish(connection, "default", days_ago=1) for _ in range(2)]
    async with connection.transaction(force_rollback=True):
        await connection.execute(
            "create function pgnotifyq.test_keep() returns trigger language plpgsql as"
            f" $$ begin if old.id = '{kept}' then raise 'kept'; end if; return new; end $$;"
            " create trigger test_keep before update on pgnotifyq.jobs for each row execute function pgnotifyq.test_keep()".encode()
        )
        assert await blank(connection) == 1
        assert (await contents(connection, other))[0] is None
        (trouble,) = await ask(connection, list_troubles(SCHEMA, verb="prune"))
        assert (trouble.job_id, trouble.error_message) == (kept, "kept")
        assert await blank(connection) == 0


async def test_dead_letters(connection: Link) -> None:
    """They go with their history when the database says so, after it says so, and by no worker's setting."""
    old, young = await bury(connection, days_ago=5), await bury(connection, days_ago=1)
    assert await prune(connection, "default", days=0) == 0
    assert await prune_letters(connection) == (0, 0)
    await say(connection, "default", 0.0)
    assert await prune_letters(connection) == (0, 0), "completed and cancelled alone were meant"
    await say(connection, "default", 2 * DAY, ending="dead")
    assert await prune_letters(connection) == (1, 0)
    assert await dead_letter(connection, old) is None
    assert {job_id for (job_id,) in await fetch(connection, "select job_id from pgnotifyq.job_executions")} == {young}


async def test_letter_whose_payload_was_blanked(connection: Link) -> None:
    """It stays, with its error and its history, and cannot be requeued: nobody is given what nobody enqueued."""
    await say(connection, "*", ending="dead", payload_seconds=DAY)
    blanked, whole = await bury(connection, days_ago=2), await bury(connection)
    assert [await prune_letters(connection), await prune_letters(connection)] == [(0, 1), (0, 0)]
    letter = await dead_letter(connection, blanked)
    assert letter is not None
    assert (letter["payload"], letter["headers"], letter["error_message"]) == (None, None, "hopeless")
    assert len(letter["history"]) == 2
    with pytest.raises(IllegalTransition, match="blanked"):
        await ask(connection, end.requeue(SCHEMA, blanked))
    assert await ask(connection, end.requeue_all(SCHEMA)) == 1
    assert await dead_letter(connection, blanked) is not None
    assert await dead_letter(connection, whole) is None
    assert await value(connection, ORPHANS) == 0


@pytest.mark.parametrize("kind", ["admin", "worker"])
async def test_who_may(connection: Link, kind: str) -> None:
    """An admin and a worker, with the rights that `migrate` gives, bring letters back, delete them and blank them."""
    for _ in range(3):
        await bury(connection, days_ago=2)
    async with connection.transaction(force_rollback=True):
        await connection.execute("create role pgnotifyq_test_keeps")
        await connection.execute("select pgnotifyq.grant_role(%s, 'pgnotifyq_test_keeps')", (kind,))
        await connection.execute("select pgnotifyq.keep_roles()")
        await say(connection, "default", ending="dead", payload_seconds=DAY)
        await connection.execute("set local role pgnotifyq_test_keeps")
        assert await ask(connection, end.requeue_all(SCHEMA, limit=1)) == 1
        assert await prune_letters(connection) == (0, 2)
        await connection.execute("reset role")
        await say(connection, "default", DAY, ending="dead")
        await connection.execute("set local role pgnotifyq_test_keeps")
        assert await prune_letters(connection) == (2, 0)
        assert await blank(connection) == 0


async def test_letter_that_a_trigger_keeps(connection: Link) -> None:
    """It stays, and the others go."""
    await say(connection, "*", 0.0, ending="dead")
    kept, other = [await bury(connection, days_ago=1) for _ in range(2)]
    async with connection.transaction(force_rollback=True):
        await connection.execute(
            "create function pgnotifyq.test_keep() returns trigger language plpgsql as"
            f" $$ begin if old.id = '{kept}' then raise 'kept'; end if; return old; end $$;"
            " create trigger test_keep before delete on pgnotifyq.dead_letter_jobs"
            " for each row execute function pgnotifyq.test_keep()".encode()
        )
        assert await prune_letters(connection) == (1, 0)
        assert await dead_letter(connection, kept) is not None
        assert await dead_letter(connection, other) is None


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
async def test_what_is_refused(connection: Link, wrong: str) -> None:
    """A queue that cannot be, a time out of range, and the result of a dead letter."""
    with pytest.raises(psycopg.Error) as caught:
        await connection.execute(f"select pgnotifyq.set_retention({wrong})".encode())
    assert caught.value.sqlstate == "PNQ02"
    assert await ask(connection, retention.list_retention(SCHEMA)) == []


async def test_saying_nothing_any_more(connection: Link) -> None:
    """Takes the row away, of one ending or of all."""
    for ending in (None, "dead"):
        await say(connection, "a", 1.0, ending=ending)
    await say(connection, "*", 1.0, ending="dead")
    await say(connection, "a", ending="completed")
    rows = [(row.queue_name, row.ending) for row in await ask(connection, retention.list_retention(SCHEMA))]
    assert rows == [("*", "dead"), ("a", "cancelled"), ("a", "dead")]
    await say(connection, "a")
    assert [row.queue_name for row in await ask(connection, retention.list_retention(SCHEMA))] == ["*"]


async def test_when_a_job_goes(connection: Link) -> None:
    """By the database's clock, of a job and of a dead letter; what has gone is told no more."""
    await connection.execute("set pgnotifyq.clock = '2030-01-01'")
    await say(connection, "*", 10.0, payload_seconds=5.0)
    await say(connection, "*", 20.0, ending="dead", payload_seconds=7.0)
    waits = await enqueue(connection)
    kept = await ask(connection, retention.kept(SCHEMA, waits))
    assert kept == retention.Kept(
        queue_name="default", ending=None, goes_in_seconds=None, payload_goes_in_seconds=None, result_goes_in_seconds=None
    )
    await settle(connection, await claim_one(connection), ENDINGS["complete"])
    letter = await enqueue(connection)
    await settle(connection, await claim_one(connection), ENDINGS["bury"])
    await connection.execute("set pgnotifyq.clock = '2030-01-01 00:00:06'")
    kept, of_letter = [await ask(connection, retention.kept(SCHEMA, job_id)) for job_id in (waits, letter)]
    assert kept is not None and of_letter is not None
    assert (kept.ending, kept.goes_in_seconds, kept.payload_goes_in_seconds) == ("completed", 4.0, -1.0)
    assert (of_letter.ending, of_letter.goes_in_seconds, of_letter.payload_goes_in_seconds) == ("dead", 14.0, 1.0)
    await blank(connection)
    kept = await ask(connection, retention.kept(SCHEMA, waits))
    assert kept is not None and kept.payload_goes_in_seconds is None


# History goes with what it is of


@pytest.mark.parametrize("how", ["in bulk", "by a cascade", "with what was in its way"])
async def test_history_of_a_job_that_is_deleted(connection: Link, how: str) -> None:
    """It goes, and nothing else does."""
    gone, stays = [await finish(connection, "default", days_ago=1) for _ in range(2)]
    async with connection.transaction(force_rollback=True):
        if how == "in bulk":
            await connection.execute("update pgnotifyq.jobs set queue_name = 'other' where id = %s", (gone,))
            done = await ask(connection, changes.change_all(SCHEMA, "delete", changes.JobFilter(queue="other")))
            assert (done.done, done.refused) == (1, 0)
        elif how == "by a cascade":
            await connection.execute(
                "create table public.orders (id uuid primary key);"
                " alter table pgnotifyq.jobs add column order_id uuid references public.orders (id) on delete cascade"
            )
            await connection.execute("insert into public.orders values (%s)", (gone,))
            await connection.execute("update pgnotifyq.jobs set order_id = id where id = %s", (gone,))
            await connection.execute("delete from public.orders")
        else:
            await connection.execute(
                "select pgnotifyq.note_trouble(org_id, id, 'prune', '23503', 'somebody needs it') from pgnotifyq.jobs where id = %s",
                (gone,),
            )
            await connection.execute("delete from pgnotifyq.jobs where id = %s", (gone,))
            assert await ask(connection, list_troubles(SCHEMA)) == []
        assert await left(connection) == [stays]


async def test_history_of_a_letter_that_is_deleted_by_hand(connection: Link) -> None:
    """It goes; that of a letter which is requeued is its job's again."""
    gone, back = await bury(connection), await bury(connection)
    await connection.execute("delete from pgnotifyq.dead_letter_jobs where id = %s", (gone,))
    await ask(connection, end.requeue(SCHEMA, back))
    assert await fetch(connection, "select distinct job_id from pgnotifyq.job_executions") == [(back,)]


async def test_role_that_may_delete_no_history(connection: Link) -> None:
    """It deletes jobs all the same, if it may look at the history or not."""
    async with connection.transaction(force_rollback=True):
        await connection.execute(
            "create role pgnotifyq_test_deletes bypassrls; grant usage on schema pgnotifyq to pgnotifyq_test_deletes;"
            " grant select, delete on pgnotifyq.jobs, pgnotifyq.dead_letter_jobs to pgnotifyq_test_deletes"
        )
        for right in (b"", b"grant select on pgnotifyq.job_executions to pgnotifyq_test_deletes"):
            await finish(connection, "default", days_ago=1)
            await bury(connection)
            if right:
                await connection.execute(right)
            await connection.execute("set role pgnotifyq_test_deletes")
            await connection.execute("delete from pgnotifyq.jobs")
            await connection.execute("delete from pgnotifyq.dead_letter_jobs")
            await connection.execute("reset role")
            assert await value(connection, ORPHANS) > 0


WRITES = ["complete", "retry", "bury", "cancel", "reclaim"]


@pytest.mark.parametrize("which_first", ["delete", "write"])
@pytest.mark.parametrize("write", WRITES)
async def test_delete_that_meets_an_ending(connection: Link, other: Link, dsn: str, write: str, which_first: str) -> None:
    """Whichever comes first: no attempt is left of a job that is gone, and none is lost of one that stays."""
    job_id = await enqueue(connection, max_attempts=3)
    job = await claim_one(connection)
    if write == "cancel":
        await connection.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (job_id,))
    if write == "reclaim":
        await connection.execute("update pgnotifyq.jobs set lease_expires_at = '2020-01-01'")

    async def end_it(link: Link) -> None:
        if write == "reclaim":
            await reclaim(link)
        else:
            await settle(link, job, ENDINGS[write])

    async def delete_it(link: Link) -> None:
        await link.execute("delete from pgnotifyq.jobs where id = %s", (job_id,))

    first, second = (delete_it, end_it) if which_first == "delete" else (end_it, delete_it)
    begun = trio.Event()

    async def come_second() -> None:
        begun.set()
        await second(other)

    async with trio.open_nursery() as nursery, connection.transaction():
        await first(connection)
        nursery.start_soon(come_second)
        await begun.wait()
        if not (which_first == "delete" and write == "reclaim"):  # a reclaim passes over what is locked
            await until(dsn, BLOCKED, "other")
    assert await value(connection, ORPHANS) == 0
    stays = await value(connection, "select count(*) from pgnotifyq.dead_letter_jobs")
    assert stays == (1 if (which_first, write) == ("write", "bury") else 0)
    assert await value(connection, "select count(*) from pgnotifyq.jobs") == 0
    assert await value(connection, "select count(*) from pgnotifyq.job_executions") == stays


async def test_delete_that_meets_a_claim(connection: Link, other: Link) -> None:
    """A claim passes over a job that is being deleted, and goes on with the next."""
    first, second = await enqueue(connection), await enqueue(connection)
    async with connection.transaction():
        await connection.execute("delete from pgnotifyq.jobs where id = %s", (first,))
        assert (await claim_one(other)).id == second
    assert await value(connection, "select array_agg(id) from pgnotifyq.jobs") == [second]
