"""A queue at a glance: what it says, and that its cost, and that of an explanation, does not grow with what waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger.glance import top
from pgnotifyq.wire.asking import ask_blocking
from tests.ledger.support import ANN, SCHEMA, claim, fetch, value
from tests.ledger.test_plans import fill, pages

if TYPE_CHECKING:
    from pgnotifyq.wire.blocking import Connection

MANY = 20_000


def test_what_it_says(connection: Connection[Any]) -> None:
    """Each queue that holds or could hold anything; the oldest of whatever priority; what runs; what waits longest."""
    connection.execute("select pgnotifyq.register_worker(%s, 'here', 7, '{default,idle}', 3, '1', false, 60)", (ANN,))
    fill(connection, 1, queue_name="default", priority=9)
    claim(connection, 1)
    fill(connection, 3, queue_name="default", priority=5, due="now() - interval '1 min'")
    fill(connection, 2, queue_name="default", priority=-5, due="now() - interval '3 hours'")
    fill(connection, 4, queue_name="mail", due="now() + interval '1 hour'")
    connection.execute("select pgnotifyq.pause('elsewhere')")
    found = ask_blocking(connection, top(SCHEMA, rows_max=4))
    queues = {row["queue_name"]: row for row in found.queues}
    told = {name: (row["due"], row["later"], row["running"], row["is_paused"], row["is_more"]) for name, row in queues.items()}
    assert told == {
        "default": (5, 0, 1, False, False),
        "elsewhere": (0, 0, 0, True, False),
        "idle": (0, 0, 0, False, False),
        "mail": (0, 4, 0, False, False),
    }
    assert round(queues["default"]["oldest_due_seconds"] / 60) == 180 and queues["mail"]["oldest_due_seconds"] is None
    assert [(row["queue_name"], row["host"] is not None) for row in found.running] == [("default", True)]
    assert [row["priority"] for row in found.waiting] == [-5, -5, 5, 5]
    assert found.running_all == 1 and found.dead == []


def test_many_priorities(connection: Connection[Any]) -> None:
    """Each priority is one look; a thousand of them are not all walked, and nothing fails."""
    connection.execute(
        "insert into pgnotifyq.jobs (job_type, queue_name, priority) select 'x', 'q', n from generate_series(1, 1000) as n"
    )
    found = ask_blocking(connection, top(SCHEMA))
    assert [row["due"] for row in found.queues] == [1000]


def test_cost_beside_a_backlog(connection: Connection[Any]) -> None:
    """Five times as many jobs that wait, and as many that have ended, cost a look and an explanation no page more."""
    statements = ["select pgnotifyq.top()", "select * from pgnotifyq.explain({first})", "select * from pgnotifyq.explain({last})"]
    costs = []
    for jobs in (MANY, 4 * MANY):
        for queue in ("default", "mail"):
            fill(connection, jobs // 2, queue_name=queue)
        fill(connection, jobs, status="completed", completed_at="2100-01-01")
        first, last = [
            value(connection, f"select id from pgnotifyq.jobs where is_claimable order by scheduled_at {way}, id {way} limit 1")
            for way in ("asc", "desc")
        ]
        texts = [each.format(first=f"'{first}'", last=f"'{last}'") for each in statements]
        for text in texts:
            pages(connection, text)
        costs.append([pages(connection, text) for text in texts])
    assert [late for early, late in zip(*costs, strict=True) if late > early * 1.2 + 200] == [], costs
    ((due, is_more),) = fetch(
        connection, "select q->>'due', q->>'is_more' from jsonb_array_elements(pgnotifyq.top()->'queues') as q limit 1"
    )
    assert (due, is_more) == ("2000", "true")
