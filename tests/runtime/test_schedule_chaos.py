"""Schedules under kill -9 and a restart of the server, for some seconds. For minutes: `python -m tests.schedule_chaos`."""

from __future__ import annotations

import psycopg

from tests import schedule_chaos


def test_each_tick_once() -> None:
    """Whoever is killed, and when: no tick is missing, and none is there twice."""
    verdict = schedule_chaos.run(minutes=0.12, workers=3, schedules=10, seed=1, restart_seconds=4.0)
    assert verdict.is_green, verdict
    assert verdict.restarts > 0


def test_verdict_of_a_run_that_went_wrong(dsn: str) -> None:
    """A job that is missing and one that is there twice are counted."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(
            "insert into pgnotifyq.schedules (name, rule, job_type, created_at, last_at) values"
            " ('s', 'every 1s', 'tick', '2026-05-01 12:00:00.5+00', '2026-05-01 12:00:04+00')"
        )
        for second in (1, 2, 2, 4):
            session.execute(
                "insert into pgnotifyq.jobs (job_type, headers) values ('tick', jsonb_build_object('pgnotifyq_schedule',"
                " jsonb_build_object('name', 's', 'tick', %s::text)))",
                (f"2026-05-01T12:00:0{second}.000000+00:00",),
            )
    verdict = schedule_chaos.judge(dsn, kills=1, restarts=1)
    assert (verdict.ticks, verdict.jobs, verdict.missing, verdict.twice, verdict.is_green) == (4, 4, 1, 1, False)
