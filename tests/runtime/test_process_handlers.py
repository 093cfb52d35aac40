"""Handlers in processes: what they are given, how they end, and that a death of one is its own job's affair."""

from __future__ import annotations

import errno
import logging
import math
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trio
from psycopg.types.json import Jsonb

from pgnotifyq import ConfigError, EventName, HandlerProcessDied, JobContext, JobRegistry, RaisedInProcess
from pgnotifyq.model.job import JobId
from pgnotifyq.model.new_job import NewJob
from pgnotifyq.model.unique import Unique
from pgnotifyq.runtime import processes, processes_messages
from pgnotifyq.testing import run_job
from tests.runtime.apps import in_processes
from tests.runtime.probing import parsed, until, value
from tests.runtime.support import PATIENCE_SECONDS, ROOT, Worker, Workplace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Payload = dict[str, Any]


def registry() -> JobRegistry:
    """Give handlers of each kind: those of in_processes, and one on trio to see that others are well."""
    made = JobRegistry()
    made.include(in_processes.registry)

    @made.handler("on_trio")
    async def on_trio(payload: Payload) -> str:
        await trio.lowlevel.checkpoint()
        return "well"

    return made


async def enqueue(place: Workplace, job_type: str, payload: Any = None, **settings: Any) -> JobId:
    return await place.enqueue(job_type, payload=Jsonb(payload or {}), **settings)


async def completed(place: Workplace, worker: Worker, job_type: str, payload: Any = None) -> Any:
    job_id = await enqueue(place, job_type, payload, max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    return (await place.job(job_id))["result"]


async def dead(place: Workplace, worker: Worker, job_type: str, payload: Any = None) -> dict[str, Any]:
    job_id = await enqueue(place, job_type, payload, max_attempts=1)
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    return await place.dead_letter(job_id)


async def lines(file: Path, count: int = 1) -> list[str]:
    """Wait until a handler has noted so many lines."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while len(noted := _noted(file)) < count:
            await trio.sleep(0.005)
        return noted
    raise AssertionError(f"{file} has not {count} lines")


def _noted(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


async def until_gone(pid: int) -> None:
    """Wait until a process is gone; a zombie is."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await trio.sleep(0.005)
        return
    raise AssertionError(f"process {pid} lives")


async def test_runs_in_a_process_that_is_reused(place: Workplace) -> None:
    """The handler runs in another process's main thread, which serves the next job too, with context variables as new."""
    worker = await place.start(registry())
    first = await completed(place, worker, "who", {"n": 1})
    assert first["pid"] != os.getpid() and first["parent"] == os.getpid()
    assert first["group"] == first["pid"], "a signal to the worker's group does not reach it"
    assert first["is_main"] and first["payload"] == {"n": 1}
    second = await completed(place, worker, "who", {"n": 2})
    assert (second["pid"], second["tenant"]) == (first["pid"], "nobody")
    await worker.leave()
    await until_gone(first["pid"])


async def test_payload_is_structured_there(place: Workplace) -> None:
    """The handler's own type is made in the child, of JSON; what does not fit is undecodable, and a job is whole."""
    worker = await place.start(registry())
    job_id = await enqueue(place, "typed", {"number": 1, "at": "2026-01-02T03:04:05+00:00"})
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    result = (await place.job(job_id))["result"]
    org = "00000000-0000-0000-0000-000000000000"
    assert result == {"next": 2, "year": 2026, "attempt": 1, "org": org, "id": str(job_id)}
    letter = await dead(place, worker, "typed", {"number": "one"})
    assert letter["reason"] == "undecodable" and "number" in letter["error_message"]


async def test_progress_and_log(place: Workplace, caplog: pytest.LogCaptureFixture) -> None:
    """Progress is in the row; what is logged there is logged by the worker, as records of the job, if anybody wants it."""
    worker = await place.start(registry())
    job_id = await enqueue(place, "report", {"of": "it"})
    with caplog.at_level(logging.INFO, "pgnotifyq.job"):
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    row = await place.job(job_id)
    assert (row["progress"], row["progress_message"]) == (0.75, "three quarters")
    told = {record.getMessage(): record for record in caplog.records if record.name in {"pgnotifyq.job", "shop"}}
    assert set(told) == {
        "half of it",
        "by a log of the program's own",
        "refused: progress 2.0 is not between 0 and 1",
    }
    half: Any = told["half of it"]
    assert (half.job_id, half.colour, half.funcName) == (str(job_id), "green", "report")
    assert "ValueError" in (told["refused: progress 2.0 is not between 0 and 1"].exc_text or "")


async def test_children(place: Workplace) -> None:
    """A child is enqueued by the worker: with the tenant and the headers of the parent, and what was said of it."""
    worker = await place.start(registry())
    org_id = uuid.uuid4()
    job_id = await enqueue(place, "parent", {"n": 1}, org_id=org_id, headers=Jsonb({"locale": "de"}))
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    child = await place.job(JobId(uuid.UUID((await place.job(job_id))["result"])))
    wanted = ("who", {"n": 1}, str(org_id), {"locale": "de"}, 3)
    assert tuple(child[name] for name in ("job_type", "payload", "org_id", "headers", "priority")) == wanted
    assert datetime.fromisoformat(child["scheduled_at"]) > datetime.now(UTC) + timedelta(minutes=50)
    told = await completed(place, worker, "refuses")
    assert told == ["InvalidName", "TransactionRefused", "LookupError"]


@pytest.mark.parametrize(
    "unique",
    [Unique(key="k", for_seconds=1.5), Unique(by=True), Unique(by=("a", "b"), on_conflict="replace", replace=("payload",))],
    ids=["key", "all", "fields"],
)
def test_child_that_is_unique(unique: Unique) -> None:
    """What a handler in a process says of its child arrives as it was said."""
    said = processes_messages.Enqueue(job=NewJob(job_type="who", unique=unique), payload="{}", is_traced=False)
    assert processes_messages.read(processes_messages.written(said)) == said


async def test_children_by_a_client(place: Workplace) -> None:
    """What a client enqueues in a process has the headers of the handler's job, as in a thread; the next job's are its own."""
    worker = await place.start(registry(), handler_processes_max=1)
    for headers in ({"locale": "de"}, {}):
        job_id = await enqueue(place, "parent_by_client", {"dsn": place.dsn}, headers=Jsonb(headers))
        await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
        children = [await place.job(JobId(uuid.UUID(each))) for each in (await place.job(job_id))["result"]]
        assert [child["headers"] or {} for child in children] == [headers, {"other": 1}]


async def test_middleware_is_in_the_worker(place: Workplace) -> None:
    """Middleware goes around a handler in a process, in the worker; it sees the result, the error, and the death.

    `retry_on` and `discard_on` go by what the handler raised, also if a nursery has wrapped it.
    """
    seen: list[object] = []
    around = registry()

    @around.middleware
    async def note(context: JobContext) -> AsyncIterator[None]:
        seen.append(os.getpid())
        try:
            async with trio.open_nursery():
                yield
        except* (RaisedInProcess, HandlerProcessDied) as group:
            (error,) = group.exceptions
            seen.append((type(error), str(error).splitlines()[0]))
            if context.job.job_type != "ends" or context.job.payload["how"] != "raise another":
                raise
        else:
            seen.append(context.returned)

    worker = await place.start(around)
    told = await completed(place, worker, "typed", {"number": 1, "at": "2026-01-02T03:04:05+00:00"})
    assert seen == [os.getpid(), told]
    seen.clear()
    job_id = await enqueue(place, "ends", {"how": "raise a subclass", "text": "no more"})
    await worker.log.wait(EventName.JOB_DEAD, job_id=job_id)
    assert (await place.dead_letter(job_id))["error_message"].startswith("SoldOut: no more\nTraceback")
    assert seen == [os.getpid(), (RaisedInProcess, "SoldOut: no more")]
    seen.clear()
    await dead(place, worker, "dies", {"how": "exit"})
    assert seen == [
        os.getpid(),
        (HandlerProcessDied, "the process of the handler ended with exit code 3, and the handler had not returned"),
    ]
    assert await completed(place, worker, "ends", {"how": "raise another"}) is None  # the middleware swallows it


ENDS = {
    "raise": ("failed", "OutOfStock: no more"),
    "raise a subclass": ("discarded", "SoldOut: no more"),
    "raise another": ("discarded", "ZeroDivisionError: "),
    "raise a group": ("discarded", "ExceptionGroup: both"),
    "exit": ("discarded", "SystemExit: 3"),
    "interrupt": ("discarded", "KeyboardInterrupt: "),
    "snooze": ("snoozed", None),
    "raise snooze": ("snoozed", None),
    "retry": ("failed", "later"),
    "discard": ("discarded", "no such order"),
    "class": ("failed", "the handler returned the class Snooze: return Snooze(...)"),
    "no json": ("completed", "completed, but its result was not stored: the result is not JSON"),
    "nan": ("completed", "completed, but its result was not stored: the result holds nan"),
    "generator": ("discarded", "TypeError: tests.runtime.apps.in_processes:ends returned a generator"),
    "coroutine": ("discarded", "TypeError: tests.runtime.apps.in_processes:ends returned a coroutine"),
    "it": ("completed", None),
}


async def test_ends_as_in_a_thread(place: Workplace) -> None:
    """How a handler ends, and what is told of it, is the same in a process and in a thread, but for who awaits a coroutine."""
    worker = await place.start(registry(), handler_processes_max=1)
    for how, (outcome, error) in ENDS.items():
        payload = {"how": how, "text": "no more"}
        job_id = await enqueue(place, "ends", payload, max_attempts=2)
        await place.until("exists (select from pgnotifyq.job_executions where job_id = %s and ended_at is not null)", job_id)
        row = await (
            await place.connection.execute(
                "select outcome, coalesce(error_message, '') from pgnotifyq.job_executions where job_id = %s", (job_id,)
            )
        ).fetchone()
        assert row is not None
        told = str(row[1])
        assert row[0] == outcome, how
        assert error is None or told.startswith(error)
        here = await run_job(in_processes.registry, "ends", payload)
        if how != "coroutine":
            assert here.outcome == outcome, how
            assert error is None or told.partition("\n")[0] == (here.error_message or "").partition("\n")[0]
        if how == "raise":
            assert 'in_processes.py", line' in told, "with its traceback"
    await worker.leave()


async def test_crash_is_a_failed_attempt_of_that_job(place: Workplace, tmp_path: Path) -> None:
    """A job in another process, and one in the worker, go on; the crashed job is tried again; the next job has a process."""
    worker = await place.start(registry(), handler_processes_max=2)
    beside = await enqueue(place, "waits", {"file": str(tmp_path / "pid"), "until": str(tmp_path / "go")}, max_attempts=1)
    (pid,) = await lines(tmp_path / "pid")
    for how, told in (("exit", "exit code 3"), ("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("deaf", "SIGKILL")):
        crashed = await enqueue(place, "dies", {"how": how}, max_attempts=2)
        why = await worker.log.wait(EventName.JOB_RETRIED, job_id=crashed)
        assert why["why"].startswith("HandlerProcessDied: the process of the handler") and told in why["why"]
        assert await place.history(crashed) == [(1, "failed")]
    assert await completed(place, worker, "on_trio") == "well"
    assert (await completed(place, worker, "who"))["pid"] != int(pid)
    (tmp_path / "go").touch()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=beside)
    assert (await place.job(beside))["result"] == int(pid)
    assert await place.history(beside) == [(1, "completed")]


async def test_process_that_dies_between_jobs(place: Workplace) -> None:
    """An idle process that is killed takes no job with it: the next one runs, and is charged once."""
    worker = await place.start(registry(), handler_processes_max=1)
    first = await completed(place, worker, "who")
    psutil.Process(first["pid"]).kill()
    job_id = await enqueue(place, "who", max_attempts=1)
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert (await place.job(job_id))["result"]["pid"] != first["pid"]
    assert await place.history(job_id) == [(1, "completed")]


async def test_process_that_dies_before_it_has_the_job(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job was sent already, and goes to another process: it is charged once, and counted once in the metrics.

    Its time does not count while that process starts.
    """
    deadlines: list[float] = []
    load = processes._load

    async def loaded(*of: Any) -> str | None:
        deadlines.append(trio.current_effective_deadline())
        return await load(*of)

    monkeypatch.setattr(processes, "_load", loaded)
    worker = await place.start(registry(), handler_processes_max=1, http="127.0.0.1:0")
    active = partial(value, name="worker_active_jobs", worker_id=str(worker.handle.worker_id))
    first = await completed(place, worker, "who")
    process = psutil.Process(first["pid"])
    process.suspend()
    job_id = await enqueue(place, "who", max_attempts=1)
    await until(worker, "/metrics", lambda answer: active(parsed(answer.body)) == 1)
    process.kill()
    await worker.log.wait(EventName.JOB_COMPLETED, job_id=job_id)
    assert await place.history(job_id) == [(1, "completed")]
    assert deadlines == [math.inf] * 3
    answer = await until(worker, "/metrics", lambda answer: active(parsed(answer.body)) == 0)
    assert value(parsed(answer.body), "job_duration_seconds_count", job_type="who") == 2


async def test_no_file_is_free_to_watch_a_process_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pidfd_open is refused, handlers run, and a crash is a failed attempt: nothing else ends."""

    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    ran = await run_job(in_processes.registry, "who", {}, in_process=True)
    assert ran.result["parent"] == os.getpid()
    await until_gone(ran.result["pid"])
    ran = await run_job(in_processes.registry, "dies", {"how": "exit"}, in_process=True)
    assert "exit code 3" in (ran.error_message or "")


@pytest.mark.parametrize("kind", ["cancelled", "lease_lost", "shutdown"])
async def test_killed_by_what_interrupts_it(place: Workplace, tmp_path: Path, kind: str) -> None:
    """A handler that ignores every signal is killed, and the program that it started with it; nothing of it runs on.

    Heartbeats are frequent, for a lost lease is told by the next one.
    """
    worker = await place.start(registry(), shutdown_seconds=0, heartbeat_seconds=0.2)
    file = tmp_path / "pids"
    job_id = await enqueue(place, "hangs", {"file": str(file)}, max_attempts=3)
    pid, grandchild = map(int, (await lines(file))[0].split())
    psutil.Process(pid).terminate()
    if kind == "cancelled":
        await place.cancel(job_id)
        await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
        assert not psutil.pid_exists(pid), "it has ended before its end is told"
    elif kind == "lease_lost":
        await place.take_away(job_id)
        await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    else:
        worker.handle.drain()
        await worker.ended.wait()
        assert (await place.job(job_id))["attempts"] == 0, "released, uncharged"
    await until_gone(pid)
    await until_gone(grandchild)
    assert file.read_text(encoding="utf-8") == f"{pid} {grandchild}\n", "nothing was cleaned up: it was killed"


async def test_killed_by_its_timeout(place: Workplace, tmp_path: Path) -> None:
    """A handler that computes for ever ends at its timeout, as timed out."""
    worker = await place.start(registry())
    letter = await dead(place, worker, "hangs_briefly", {"file": str(tmp_path / "pid")})
    assert letter["error_message"] == "timed out after 0.3 s"
    (pid,) = await lines(tmp_path / "pid")
    assert not psutil.pid_exists(int(pid))


async def test_time_to_wait_for_a_process_is_not_the_jobs(place: Workplace, tmp_path: Path) -> None:
    """A job waits for the one process longer than its timeout; it keeps its lease, and has its whole time when it begins.

    A short lease, so that it has to be renewed while the job waits.
    """
    worker = await place.start(registry(), handler_processes_max=1, lease_seconds=1.5, heartbeat_seconds=0.25, margin_seconds=0.5)
    first = await enqueue(place, "waits", {"file": str(tmp_path / "first"), "until": str(tmp_path / "go")})
    await lines(tmp_path / "first")
    second = await enqueue(place, "hangs_briefly", {"file": str(tmp_path / "second")}, max_attempts=1)
    lease = (await place.job(first))["lease_expires_at"]
    await place.until("status = 'running' and lease_expires_at > %s::timestamptz + interval '2 s' from pgnotifyq.jobs where id = %s", lease, second)  # fmt: skip
    assert not (tmp_path / "second").exists()
    (tmp_path / "go").touch()
    await worker.log.wait(EventName.JOB_DEAD, job_id=second)
    assert (tmp_path / "second").exists()
    assert await place.history(second) == [(1, "timed_out")]


async def test_cooperative_handler_is_told(place: Workplace, tmp_path: Path) -> None:
    """A cooperative handler sees a cancel by ctx.is_cancelled(), with its reason, cleans up, and its process lives on."""
    worker = await place.start(registry(), handler_processes_max=1)
    file = tmp_path / "noted"
    job_id = await enqueue(place, "looks", {"file": str(file)})
    (pid,) = await lines(file)
    await place.cancel(job_id)
    assert (await lines(file, 2))[1] == "cancelled None"
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert (await completed(place, worker, "who"))["pid"] == int(pid)


async def test_cooperative_handler_is_told_before_it_begins(tmp_path: Path) -> None:
    """A cancel that comes right behind the job is told, too: the process may not have taken up the job by then."""
    file = tmp_path / "noted"
    ran = await run_job(in_processes.registry, "looks", {"file": str(file)}, in_process=True, cancel_after=0)
    assert ran.outcome == "cancelled"
    assert _noted(file)[1:] == ["cancelled None"], "it was told, and not killed when its grace was over"


async def test_cooperative_handler_that_does_not_look(place: Workplace, tmp_path: Path) -> None:
    """It is killed after the grace. The grace is short here, for the test waits for its end."""
    worker = await place.start(registry(), grace_seconds=0.1)
    job_id = await enqueue(place, "deaf", {"file": str(tmp_path / "pid")})
    (pid,) = await lines(tmp_path / "pid")
    await place.cancel(job_id)
    await worker.log.wait(EventName.JOB_CANCELLED, job_id=job_id)
    assert not psutil.pid_exists(int(pid))


async def test_memory(place: Workplace) -> None:
    """More than the limit is MemoryError, a failed attempt; what is left behind has the process replaced; others go on."""
    worker = await place.start(registry(), handler_processes_max=1, handler_process_memory_bytes_max=256 * 2**20)
    first = await completed(place, worker, "who")
    letter = await dead(place, worker, "eats", {"mib": 400})
    assert letter["error_message"].startswith("MemoryError: ")
    second = await completed(place, worker, "who")
    assert second["pid"] != first["pid"], "a process that was short of memory is not used again"
    assert await completed(place, worker, "eats", {"mib": 20}) == second["pid"]
    assert await completed(place, worker, "eats", {"mib": 160, "keeps": True}) == second["pid"]
    assert (await completed(place, worker, "who"))["pid"] != second["pid"]


async def test_recycled_after_so_many_jobs(place: Workplace) -> None:
    """With a limit of two jobs the third one has a new process, and the old one ends."""
    worker = await place.start(registry(), handler_processes_max=1, handler_process_jobs_max=2)
    pids = [(await completed(place, worker, "who"))["pid"] for _ in range(3)]
    assert pids[0] == pids[1] != pids[2]
    await until_gone(pids[0])


async def test_fork_of_a_handler(place: Workplace, capfd: pytest.CaptureFixture[str]) -> None:
    """A fork that a handler forgot does not speak for the job, and ends where the handler returns in it."""
    worker = await place.start(registry())
    assert await completed(place, worker, "forks") == 2
    assert "is a fork of a job's process, and ends here" in capfd.readouterr().err


async def test_no_process_outlives_a_killed_worker(place: Workplace, tmp_path: Path) -> None:
    """The worker is killed; the process that runs a job and the one that idles end by themselves."""
    app = "tests.runtime.apps.in_processes:registry"
    command = [sys.executable, "-m", "pgnotifyq", "worker", "--dsn", place.dsn, "--app", app, "--concurrency", "4"]
    worker = await trio.lowlevel.open_process(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        busy, idle = tmp_path / "busy", tmp_path / "idle"
        await enqueue(place, "waits", {"file": str(busy), "until": str(tmp_path / "never")})
        await enqueue(place, "waits", {"file": str(idle), "until": str(ROOT)})
        pids = [int((await lines(file))[0]) for file in (busy, idle)]
        await place.until("exists (select from pgnotifyq.jobs where status = 'completed')")
        assert all(psutil.pid_exists(pid) for pid in pids)
    finally:
        worker.kill()
        await worker.wait()
    for pid in pids:
        await until_gone(pid)


@pytest.mark.parametrize("is_killed_by_kernel", [True, False], ids=["kernel", "socket"])
async def test_ends_with_its_worker(tmp_path: Path, is_killed_by_kernel: bool) -> None:
    """Either of the two ways is enough: the kernel's signal, and the end of the socket, where there is no such signal."""
    off = (
        "import os; os.killpg = lambda *_: None\n"
        if is_killed_by_kernel
        else "from pgnotifyq.runtime import processes_child; processes_child._die_with = lambda _: None\n"
    )
    program = f"""\
import functools, sys, trio
from pgnotifyq.runtime import processes_messages
from pgnotifyq.model.job import JobId
from pgnotifyq.testing import run_job
from tests.runtime.apps.in_processes import registry
boot = processes_messages.BOOT.replace("main(int", {off!r} + "main(int")
processes_messages.BOOT = boot
trio.run(functools.partial(run_job, registry, "hangs", {{"file": sys.argv[1]}}, in_process=True))
"""
    file = tmp_path / "pids"
    worker = await trio.lowlevel.open_process([sys.executable, "-c", program, str(file)], cwd=ROOT)
    pid, grandchild = map(int, (await lines(file))[0].split())
    worker.kill()
    await worker.wait()
    try:
        await until_gone(pid)
        if not is_killed_by_kernel:  # the kernel kills the process alone
            await until_gone(grandchild)
    finally:
        for each in (pid, grandchild):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(each).kill()


async def test_signals_to_the_whole_group_leave_jobs_to_the_worker(place: Workplace, tmp_path: Path) -> None:
    """SIGTERM to every process of the service drains the worker; a job in a process ends as it would."""
    worker = await place.start(registry())
    job_id = await enqueue(place, "waits", {"file": str(tmp_path / "pid"), "until": str(tmp_path / "go")}, max_attempts=1)
    (pid,) = await lines(tmp_path / "pid")
    psutil.Process(int(pid)).terminate()
    psutil.Process(int(pid)).send_signal(2)
    worker.handle.drain()
    await worker.log.wait(EventName.WORKER_STOPPING)
    (tmp_path / "go").touch()
    await worker.ended.wait()
    assert (await place.job(job_id))["result"] == int(pid)


@pytest.fixture
async def effects(place: Workplace) -> AsyncIterator[None]:
    """A table that handlers write to."""
    await place.connection.execute("create table effects (what text)")
    yield
    await place.connection.execute("drop table effects")


@pytest.mark.parametrize("complete", [True, False])
async def test_own_transaction(effects: None, place: Workplace, complete: bool) -> None:
    """A transaction on a connection that the handler opens there is fenced, and can complete the job."""
    worker = await place.start(registry())
    job_id = await enqueue(place, "writes", {"dsn": place.dsn, "complete": complete}, max_attempts=1)
    await place.until("status = 'completed' from pgnotifyq.jobs where id = %s", job_id)
    assert (await place.job(job_id))["result"] == ("written" if complete else None)
    await worker.leave()


async def test_own_transaction_that_has_lost_its_lease(effects: None, place: Workplace, tmp_path: Path) -> None:
    """What a process writes after its lease was lost is not there: it is killed, and its commit would be refused."""
    worker = await place.start(registry(), heartbeat_seconds=0.2)  # a lost lease is told by the next one
    payload = {"dsn": place.dsn, "complete": True, "file": str(tmp_path / "pid"), "until": str(tmp_path / "go")}
    job_id = await enqueue(place, "writes", payload)
    await lines(tmp_path / "pid")
    await place.take_away(job_id)
    await worker.log.wait(EventName.LEASE_LOST, job_id=job_id)
    (tmp_path / "go").touch()
    assert await (await place.connection.execute("select count(*) from effects")).fetchone() == (0,)


async def test_death_after_the_job_was_completed_in_its_own_transaction(effects: None, place: Workplace) -> None:
    """The job is completed, and the death is kept with it."""
    worker = await place.start(registry())
    job_id = await enqueue(place, "writes", {"dsn": place.dsn, "complete": True, "dies": True}, max_attempts=1)
    await place.until("error_message like 'HandlerProcessDied%%' from pgnotifyq.job_executions where job_id = %s", job_id)
    assert (await place.job(job_id))["status"] == "completed"
    await worker.leave()


async def test_worker_transaction_is_refused(place: Workplace) -> None:
    """ctx.transaction() says what there is instead."""
    worker = await place.start(registry())
    letter = await dead(place, worker, "transacts")
    assert letter["error_message"].startswith("TransactionRefused: ctx.transaction() gives a connection that trio drives")
    assert "ctx.connection(...)" in letter["error_message"]


def at_module_level(payload: Payload) -> None: ...


class Callable:
    def __call__(self, payload: Payload) -> None: ...


class Handles:
    job_type = "handles"
    runs_in = "process"

    def handle(self, job: object, ctx: JobContext) -> None: ...


def test_what_another_process_would_not_find_is_refused_at_registration() -> None:
    """A lambda, a closure, an object, a method, an async function, a module that is none: each error says what to do."""
    made = JobRegistry()

    def closure(payload: Payload) -> None: ...

    async def awaited(payload: Payload) -> None: ...

    names: dict[str, Any] = {"__name__": "no_such_module"}
    exec("def stray(payload): ...", names)
    for function in (lambda payload: None, closure, Callable(), names["stray"]):
        with pytest.raises(ConfigError, match="cannot run in a process, which imports it by its name: "):
            made.handler("work", runs_in="process")(function)
    with pytest.raises(ConfigError, match="is an async function, and cannot run in a process"):
        made.handler("work", runs_in="process")(awaited)
    with pytest.raises(ConfigError, match="it is no plain function at the top of a module"):
        made.register(Handles())
    assert made.job_types == frozenset()
    made.handler("work", runs_in="process")(at_module_level)


async def test_name_that_finds_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the function's name leads to another object, the job fails and says so, for another process would run that."""
    made = JobRegistry()
    made.handler("work", runs_in="process")(at_module_level)
    assert (await run_job(made, "work", {}, in_process=True)).outcome == "completed"
    monkeypatch.setattr(sys.modules[__name__], "at_module_level", len)
    ran = await run_job(made, "work", {}, in_process=True)
    assert "by this name it finds <built-in function len>" in (ran.error_message or "")


PROGRAM = """\
import sys
import trio
import pgnotifyq
from pgnotifyq.model.job import JobId
from pgnotifyq.testing import run_job

registry = pgnotifyq.JobRegistry()

class Mine(Exception): ...

@registry.handler("work", runs_in="process", discard_on=(Mine,))
def work(payload: dict):
    if payload: raise Mine
    return __name__

async def main():
    ran = await run_job(registry, "work", {}, in_process=True)
    print(ran.outcome, ran.result, ran.error_message)
    ran = await run_job(registry, "work", {"raise": 1}, in_process=True)
    print(ran.outcome)

"""


@pytest.mark.parametrize("how", ["file", "module", "stdin", "unguarded"])
async def test_handlers_of_the_main_module(tmp_path: Path, how: str) -> None:
    """A program that is one file may have handlers in processes, if it guards its start; where it is no file, it is told."""
    guard = "" if how == "unguarded" else "if __name__ == '__main__':\n    "
    start = (
        "trio.run(pgnotifyq.run_worker, registry, '') if __name__ != '__main__' else trio.run(main)"
        if not guard
        else "trio.run(main)"
    )
    text = f"{PROGRAM}{guard}{start}\n"
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    command = {"module": ["-m", "program"], "stdin": ["-"]}.get(how, ["program.py"])
    ran = await trio.run_process(
        [sys.executable, *command], cwd=tmp_path, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
    )
    if how == "stdin":
        assert b"its main module is no file" in ran.stderr
    elif how == "unguarded":
        assert b'start it below `if __name__ == "__main__":`' in ran.stdout
    else:
        assert ran.stdout.decode().splitlines() == ["completed __mp_main__ None", "discarded"], ran.stderr.decode()


async def test_import_that_fails_in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the module cannot be imported there, the job fails with what the import raised."""
    text = (
        "import os\nimport pgnotifyq\nif os.getpid() != {}: raise RuntimeError('not here')\nregistry = pgnotifyq.JobRegistry()\n"
    )
    handler = "@registry.handler('work', runs_in='process')\ndef work(payload): ...\n"
    (tmp_path / "only_here.py").write_text(text.format(os.getpid()) + handler, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_here  # type: ignore[import-not-found]

    ran = await run_job(only_here.registry, "work", {}, in_process=True)
    assert (ran.error_message or "").startswith("only_here:work cannot be imported in a process: RuntimeError: not here")


async def test_in_a_test_it_runs_in_a_thread() -> None:
    """run_job runs it in the test's own process, unless it is told to."""
    assert (await run_job(in_processes.registry, "who", {})).result["pid"] == os.getpid()
    assert (await run_job(in_processes.registry, "who", {}, in_process=True)).result["parent"] == os.getpid()
    ran = await run_job(in_processes.registry, "report", {"of": "it"}, in_process=True)
    assert ran.progress == ((0.25, "a quarter"), (0.75, "three quarters"))
    ran = await run_job(in_processes.registry, "deaf", {"file": os.devnull}, in_process=True, lose_lease_after=0)
    assert ran.outcome == "lease_lost"
