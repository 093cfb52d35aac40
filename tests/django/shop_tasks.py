"""The tasks of the tests' project: copied into it as `shop/tasks.py`."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import trio
from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.tasks import TaskContext

import pgnotifyq
from pgnotifyq.django import task


@task
def add(first: Any, second: Any) -> Any:
    return first + second


@task
def echo(*args: Any, **kwargs: Any) -> Any:
    return [args, kwargs]


@task
async def count_groups() -> int:
    await Group.objects.acreate(name=f"group of {os.getpid()}")
    return int(await Group.objects.acount())


@task(takes_context=True, max_attempts=2)
def fail(context: TaskContext) -> None:
    raise ValueError(f"attempt {context.attempt}")


@task(max_attempts=5, retry_on=(OSError,))
def fail_for_good() -> None:
    raise KeyError("nothing helps")


@task(timeout_seconds=0.2, max_attempts=1)
async def sleep_late() -> None:
    await asyncio.sleep(3600)


@task(timeout_seconds=0.2, max_attempts=1)
def poll_late() -> None:
    while True:
        time.sleep(0.01)
        trio.from_thread.check_cancelled()


@task
def make_group(name: str) -> int:
    with transaction.atomic():
        return int(Group.objects.create(name=name).pk)


@task
async def wait_for_cancel(path: str) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        with open(path, "w") as file:  # noqa: ASYNC230, PTH123
            file.write("cleaned up")
        raise


@task(takes_context=True)
def poll_for_cancel(context: Any) -> None:
    context.job.progress(0.5, "polling")
    while not context.job.is_cancelled():
        time.sleep(0.01)


@task
def backend_pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return int(cursor.fetchone()[0])


@task
def break_connection() -> None:
    with connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(pg_backend_pid())")


@task(takes_context=True)
def snooze_once(context: TaskContext) -> str:
    if not Group.objects.filter(name="snoozed").exists():
        Group.objects.create(name="snoozed")
        raise pgnotifyq.Snooze(0)
    return "slept"


@task
def return_nonsense() -> Any:
    return lambda: True


def not_a_task() -> None:
    raise AssertionError("a job made a worker run an arbitrary function")
