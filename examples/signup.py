"""Enqueue in your own transaction: an account and its welcome mail commit together, or not at all.

A web back end does this in a request. It needs no event loop, and no client of ours. A function of
the database enqueues the job, in the transaction that is open anyway.
"""

from __future__ import annotations

import os

import psycopg
from psycopg.types.json import Jsonb

ENQUEUE = "select pgnotifyq.enqueue(job_type => 'send_welcome', payload => %s, queue_name => 'mail')"


def sign_up(connection: psycopg.Connection, address: str) -> None:
    """Make an account, and enqueue its welcome mail."""
    with connection.transaction():
        connection.execute("insert into accounts (address) values (%s)", (address,))
        connection.execute(ENQUEUE, (Jsonb({"address": address}),))


def main() -> None:
    """Sign up two people, one of them twice."""
    with psycopg.connect(os.environ["PGNOTIFYQ_DSN"], autocommit=True) as connection:
        connection.execute("create temporary table accounts (address text primary key)")
        for address in ("ada@example.org", "grace@example.org", "ada@example.org"):
            try:
                sign_up(connection, address)
            except psycopg.errors.UniqueViolation:
                print(f"{address} has an account already: nothing was enqueued")
            else:
                print(f"{address} has an account, and a mail is on its way")
        row = connection.execute("select count(*) from pgnotifyq.jobs where queue_name = 'mail'").fetchone()
        assert row is not None
        print(f"{row[0]} mails to send")


if __name__ == "__main__":
    main()
