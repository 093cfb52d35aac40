"""What users do to our tables that makes one row impossible to write: keys, constraints, triggers and rules of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId
    from pgnotifyq.wire.blocking import Connection

# A trigger on {table}, {when} and for {event}, for the victim only.
_TRIGGER = """
create function public.users() returns trigger language plpgsql as $$ begin {body} end $$;
create trigger users_own {when} {event} on pgnotifyq.{table} for each row when ({row}.{key} = '{victim}') execute function public.users();
"""
_DEFERRED = """
create function public.users() returns trigger language plpgsql as $$ begin {body} end $$;
create constraint trigger users_own after {event} on pgnotifyq.{table} deferrable initially deferred
for each row when ({row}.{key} = '{victim}') execute function public.users();
"""


def _on_jobs(body: str, event: str = "update or delete", when: str = "before") -> str:
    return _TRIGGER.format(body=body, event=event, when=when, table="jobs", row="old", key="id", victim="{victim}")


ALWAYS = {
    "raises": _on_jobs("raise exception 'not this one';"),
    "raises after": _on_jobs("raise exception 'not this one';", when="after"),
    "misses a table": _on_jobs("perform from public.no_such_table; return new;"),
    "lacks a right": _on_jobs("raise insufficient_privilege using message = 'no right';"),
    "asserts": _on_jobs("assert false, 'never this one'; return new;"),
    "divides by zero": _on_jobs("perform 1 / 0; return new;"),
    "returns null": _on_jobs("return null;"),
    "asks for a repetition": _on_jobs("raise exception using errcode = '40001', message = 'again';"),
    "finds something locked": _on_jobs("raise exception using errcode = '55P03', message = 'locked';"),
    "goes too deep": _on_jobs("raise exception using errcode = '54001', message = 'stack depth limit exceeded';"),
    "breaks inside": _on_jobs("raise exception using errcode = 'XX000', message = 'invalid memory alloc request size';"),
    "raises at commit": _DEFERRED.format(
        body="raise exception 'not this one';", event="update or delete", table="jobs", row="old", key="id", victim="{victim}"
    ),
    "refuses its history": _TRIGGER.format(
        body="raise exception 'no history';", when="before", event="insert", table="job_executions", row="new", key="job_id",
        victim="{victim}",
    ),
    "refuses its history at commit": _DEFERRED.format(
        body="raise exception 'no history';", event="insert", table="job_executions", row="new", key="job_id", victim="{victim}",
    ),
    "its history has a key of the user's": (
        "alter table pgnotifyq.job_executions add constraint users_own check (job_id <> '{victim}') not valid"
    ),
}  # fmt: skip
# This one makes whatever writes the row late, for ever. A deadline ends it, and nothing else.
STANDS_STILL = _on_jobs("perform pg_sleep(3600); return coalesce(new, old);")
# The same, for what makes or leaves the job running only.
STANDS_STILL_RUNNING = _on_jobs("perform pg_sleep(3600); return new;", event="update").replace(
    "when (", "when (new.status = 'running' and "
)
# Those that stand in the way of a job that dies, or is deleted, only.
AT_DEATH = {
    "foreign key": """
        create table public.orders (job_id uuid references pgnotifyq.jobs (id));
        insert into public.orders values ('{victim}');
        """,
    "foreign key, deferred": """
        create table public.orders (job_id uuid references pgnotifyq.jobs (id) deferrable initially deferred);
        insert into public.orders values ('{victim}');
        """,
    "delete returns null": _on_jobs("return null;", event="delete"),
    "delete raises": _on_jobs("raise exception 'not this one';", event="delete"),
}
# Of the letter itself.
AT_BURIAL = {
    "letter has a constraint": "alter table pgnotifyq.dead_letter_jobs add constraint users_own check (id <> '{victim}') not valid",
    "letter has a column": "alter table pgnotifyq.dead_letter_jobs add column users_own text not null",
}
CLEAR = b"""
drop function if exists public.users() cascade;
drop table if exists public.orders;
alter table pgnotifyq.job_executions drop constraint if exists users_own;
alter table pgnotifyq.dead_letter_jobs drop constraint if exists users_own;
alter table pgnotifyq.dead_letter_jobs drop column if exists users_own;
"""


def obstruct(connection: Connection[Any], statement: str, victim: JobId) -> None:
    """Put an obstacle in the way of one job."""
    connection.execute(statement.format(victim=victim).encode())


def clear(connection: Connection[Any]) -> None:
    """Take all obstacles away."""
    connection.execute(CLEAR)
