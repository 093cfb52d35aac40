"""Handlers for processes of their own: what computes, crashes, hangs and eats memory."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import psycopg

from pgnotifyq import Discard, JobContext, JobRegistry, PgnotifyqError, Retry, Snooze
from pgnotifyq.sync import open_client

registry = JobRegistry()
TENANT = ContextVar("TENANT", default="nobody")
imported_in: list[str] = sys.argv[:]


@attrs.frozen
class Order:
    number: int
    at: datetime


@attrs.frozen
class Place:
    line: int


class OutOfStock(Exception):
    pass


class SoldOut(OutOfStock):
    pass


async def answer() -> int:
    return 42


def note(file: str, text: str) -> None:
    """Add a line to a file that the test reads."""
    with Path(file).open("a", encoding="utf-8") as lines:
        lines.write(f"{text}\n")


@registry.handler("who", runs_in="process", timeout_seconds=600)
def who(payload: dict[str, Any]) -> dict[str, Any]:
    set_before = TENANT.get()
    TENANT.set("acme")
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgrp(),
        "is_main": threading.current_thread() is threading.main_thread(),
        "tenant": set_before,
        "payload": payload,
    }


@registry.handler("noop", runs_in="process")
def noop(payload: dict[str, Any]) -> None:
    pass


@registry.handler("typed", runs_in="process")
def typed(order: Order, ctx: JobContext) -> dict[str, Any]:
    assert ctx.job.job_type == "typed"
    assert ctx.cancel_reason is None
    return {
        "next": order.number + 1,
        "year": order.at.year,
        "attempt": ctx.attempt,
        "org": str(ctx.org.id),
        "id": str(ctx.job.id),
    }


@registry.handler("report", runs_in="process")
def report(payload: dict[str, Any], ctx: JobContext) -> None:
    ctx.progress(0.25, "a quarter")
    ctx.log.info("half of %s", payload["of"], extra={"colour": "green"})
    logging.getLogger("shop").warning("by a log of the program's own")
    logging.getLogger("shop").debug("nobody wants this")
    try:
        ctx.progress(2.0)
    except ValueError as error:
        logging.getLogger("shop").exception("refused: %s", error)  # noqa: TRY401
    ctx.progress(0.75, "three quarters")


@registry.handler("ends", runs_in="process", retry_on=(OutOfStock,), discard_on=(SoldOut,))
def ends(payload: dict[str, Any]) -> Any:  # noqa: PLR0912  # one way each
    match payload["how"]:
        case "raise":
            raise OutOfStock(payload["text"])
        case "raise a subclass":
            raise SoldOut(payload["text"])
        case "raise another":
            raise ZeroDivisionError
        case "raise a group":
            raise ExceptionGroup("both", [OutOfStock("one"), SoldOut("two")])
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "snooze":
            return Snooze(60)
        case "raise snooze":
            raise Snooze(60)
        case "retry":
            return Retry(7, reason="later")
        case "discard":
            raise Discard("no such order")
        case "class":
            return Snooze
        case "no json":
            return {1, object()}
        case "nan":
            return float("nan")
        case "generator":
            return (n for n in range(3))
        case "coroutine":
            return answer()
        case how:
            return how


@registry.handler("dies", runs_in="process")
def dies(payload: dict[str, Any]) -> None:
    match payload["how"]:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "deaf":
            os.closerange(3, 100)


@registry.handler("hangs", runs_in="process")
def hangs(payload: dict[str, Any]) -> None:
    """Ignore everything that can be ignored, and have a child that does so, too."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "3600"])
    note(payload["file"], f"{os.getpid()} {child.pid}")
    try:
        while True:
            time.sleep(3600)
    finally:
        note(payload["file"], "cleaned up")


@registry.handler("hangs_briefly", runs_in="process", timeout_seconds=0.3)
def hangs_briefly(payload: dict[str, Any]) -> None:
    note(payload["file"], str(os.getpid()))
    while True:
        pass


@registry.handler("looks", runs_in="process", cooperative=True)
def looks(payload: dict[str, Any], ctx: JobContext) -> str:
    note(payload["file"], str(os.getpid()))
    while not ctx.is_cancelled():
        time.sleep(0.001)
    assert ctx.cancel_reason is not None
    note(payload["file"], f"{ctx.cancel_reason.kind.value} {ctx.cancel_reason.why}")
    return "cleaned up"


@registry.handler("deaf", runs_in="process", cooperative=True)
def deaf(payload: dict[str, Any], ctx: JobContext) -> None:
    note(payload["file"], str(os.getpid()))
    while True:
        time.sleep(3600)


@registry.handler("waits", runs_in="process")
def waits(payload: dict[str, Any]) -> int:
    """Run until a file is there."""
    note(payload["file"], str(os.getpid()))
    while not Path(payload["until"]).exists():
        time.sleep(0.005)
    return os.getpid()


@registry.handler("eats", runs_in="process")
def eats(payload: dict[str, Any]) -> int:
    eaten = [bytearray(2**20) for _ in range(payload["mib"])]
    if payload.get("keeps"):
        _kept.append(eaten)
    return os.getpid()


_kept: list[Any] = []


@registry.handler("forks", runs_in="process")
def forks(payload: dict[str, Any], ctx: JobContext) -> int:
    """Fork, and forget in the child that it is one."""
    pid = os.fork()
    if pid == 0:
        ctx.log.warning("said by a fork")
        return 1
    os.waitpid(pid, 0)
    return 2


@registry.handler("writes", runs_in="process")
def writes(payload: dict[str, Any], ctx: JobContext) -> None:
    with (
        psycopg.connect(payload["dsn"]) as own,
        ctx.connection(own, complete=payload["complete"], result="written") as connection,
    ):
        connection.execute("insert into effects (what) values ('done')")
        if "until" in payload:
            note(payload["file"], str(os.getpid()))
            while not Path(payload["until"]).exists():
                time.sleep(0.005)
    if payload.get("dies"):
        os._exit(1)


@registry.handler("transacts", runs_in="process")
def transacts(payload: dict[str, Any], ctx: JobContext) -> None:
    with ctx.transaction():  # type: ignore[attr-defined]
        pass


@registry.handler("parent", runs_in="process")
def parent(payload: dict[str, Any], ctx: JobContext) -> str:
    return str(ctx.enqueue_blocking("who", payload, delay_seconds=3600.0, priority=3))


@registry.handler("parent_by_client", runs_in="process")
def parent_by_client(payload: dict[str, Any]) -> list[str]:
    with open_client(payload["dsn"]) as client:
        return [str(client.enqueue("child", {})), str(client.enqueue("child", {}, headers={"other": 1}))]


@registry.handler("refuses", runs_in="process")
def refuses(_: object, ctx: JobContext) -> list[str]:
    told = []
    for wrong in (lambda: ctx.enqueue_blocking("no name", {}), lambda: ctx.enqueue("who", {}), lambda: ctx.resources[dict]):
        try:
            answer: Any = wrong()
            answer.send(None)
        except (PgnotifyqError, LookupError) as error:
            told.append(type(error).__name__)
    return told


@registry.handler("walk_in_process", runs_in="process", saved_type=Place)
def walk_in_process(payload: dict[str, Any], ctx: JobContext) -> list[Any]:
    """Go one line further with each attempt, and return where the third began and where it has come to."""
    at: Place | None = ctx.saved
    ctx.save(Place(1 if at is None else at.line + 1))
    if at is None or at.line < 2:
        raise Retry(0.0)
    with psycopg.connect(payload["dsn"]) as theirs, ctx.connection(theirs):
        ctx.save(Place(10))
    return [at.line, ctx.saved.line]
