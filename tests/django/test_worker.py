"""`manage.py pgnotifyq worker`, as a process: connections, cancels, reloading, tasks that it was not told of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from tests.django.conftest import ENDED_SECONDS_MAX, Worker, environment

if TYPE_CHECKING:
    from pathlib import Path

    import psycopg

    from tests.django.conftest import Project


def enqueue(database: psycopg.Connection[Any], path: str, args: str = "[]") -> str:
    """Enqueue by SQL, which needs no process of Django's."""
    query = "select pgnotifyq.enqueue(%s, jsonb_build_object('args', %s::jsonb))::text"
    return str(database.execute(query, (path, args)).fetchone()[0])  # type: ignore[index]


def result(database: psycopg.Connection[Any], job_id: str) -> Any:
    return database.execute("select result from pgnotifyq.jobs where id = %s", (job_id,)).fetchone()[0]  # type: ignore[index]


def test_blocking_and_async_tasks_use_the_database(project: Project, database: psycopg.Connection[Any]) -> None:
    """The ORM works in both, with `atomic` and by its async names."""
    with project.worker() as worker:
        jobs = [enqueue(database, "shop.tasks.make_group", '["a"]'), enqueue(database, "shop.tasks.count_groups")]
        ended = {worker.wait_for("job.completed")["job_id"] for _ in jobs}
        assert ended == set(jobs)
    assert database.execute("select count(*) from auth_group").fetchone() == (2,)


def test_connections_are_closed_after_each_task(project: Project, database: psycopg.Connection[Any]) -> None:
    """With CONN_MAX_AGE as Django has it, a session does not outlive the task that opened it."""
    with project.worker("--concurrency", "1") as worker:
        job = enqueue(database, "shop.tasks.backend_pid")
        worker.wait_for("job.completed", job_id=job)
        pid = result(database, job)
        assert isinstance(pid, int)
        wait_until_gone(database, pid)


def wait_until_gone(database: psycopg.Connection[Any], pid: int) -> None:
    async def wait() -> None:
        with trio.fail_after(ENDED_SECONDS_MAX):
            while database.execute("select from pg_stat_activity where pid = %s", (pid,)).fetchone() is not None:
                await trio.sleep(0.02)

    trio.run(wait)


def test_connection_that_was_broken_by_a_task(project: Project, database: psycopg.Connection[Any]) -> None:
    """A session that is gone is not handed to the next task, also where connections are kept for ever."""
    project.append("mysite/settings.py", 'DATABASES["default"]["CONN_MAX_AGE"] = None')
    with project.worker("--concurrency", "1") as worker:
        pids = []
        for path in ("backend_pid", "backend_pid", "break_connection", "backend_pid"):
            job = enqueue(database, f"shop.tasks.{path}")
            if path == "break_connection":
                worker.wait_for("job.retried", job_id=job)
                database.execute("delete from pgnotifyq.jobs where id = %s", (job,))
            else:
                worker.wait_for("job.completed", job_id=job)
                pids.append(result(database, job))
        assert pids[0] == pids[1] != pids[2]


def test_cancel_of_an_async_task(project: Project, database: psycopg.Connection[Any], tmp_path: Path) -> None:
    """It is cancelled at its await, cleans up, and its job is cancelled and not stopping any more."""
    with project.worker() as worker:
        job = enqueue(database, "shop.tasks.wait_for_cancel", f'["{tmp_path}/left"]')
        worker.wait_for("job.claimed", job_id=job)
        assert project.run(f"tell(default_task_backend.cancel('{job}', 'enough'))") in {"stopping", "cancelled"}
        worker.wait_for("job.cancelled", job_id=job)
    if (tmp_path / "left").exists():  # not where the cancel came before the task had begun
        assert (tmp_path / "left").read_text() == "cleaned up"
    told = project.run(
        f"each = default_task_backend.get_result('{job}'); tell([each.status, each.errors[0].exception_class_path])"
    )
    assert told == ["FAILED", "pgnotifyq.JobCancelled"]


def test_cancel_of_a_blocking_task_that_asks(project: Project, database: psycopg.Connection[Any]) -> None:
    """It reports progress through its context, sees the cancel there, and returns."""
    with project.worker() as worker:
        job = project.run("tell(tasks.poll_for_cancel.enqueue().id)")
        worker.wait_for("job.claimed", job_id=job)

        async def progressed() -> None:
            with trio.fail_after(ENDED_SECONDS_MAX):
                while database.execute("select progress from pgnotifyq.jobs where id = %s", (job,)).fetchone() != (0.5,):
                    await trio.sleep(0.02)

        trio.run(progressed)
        database.execute("update pgnotifyq.jobs set status = 'cancelled' where id = %s", (job,))
        worker.wait_for("job.cancelled", job_id=job)


def test_shutdown_gives_an_async_task_back(project: Project, database: psycopg.Connection[Any], tmp_path: Path) -> None:
    """A task cut off by the worker's shutdown is ready again, uncharged."""
    with project.worker("--shutdown-seconds", "0") as worker:
        job = enqueue(database, "shop.tasks.wait_for_cancel", f'["{tmp_path}/left"]')
        worker.wait_for("job.claimed", job_id=job)
    assert worker.process.returncode == 4  # some jobs were interrupted
    assert database.execute("select status, attempts from pgnotifyq.jobs").fetchone() == ("pending", 0)
    told = project.run(f"each = default_task_backend.get_result('{job}'); tell([each.status, each.attempts, each.errors])")
    assert told == ["READY", 0, []]


def test_task_in_a_module_that_nothing_imports(project: Project, database: psycopg.Connection[Any]) -> None:
    """It waits in the queue when the worker starts: the worker imports it by its path, and runs it."""
    project.write("elsewhere/hidden.py", "from django.tasks import task\n\n@task\ndef found():\n    return 'found'\n")
    job = enqueue(database, "elsewhere.hidden.found")
    with project.worker() as worker:
        worker.wait_for("job.completed", job_id=job)
    assert result(database, job) == "found"


def test_schedules(project: Project, database: psycopg.Connection[Any]) -> None:
    """A worker publishes those of its backend's tasks, in the project's time zone, and runs the task at each tick."""
    project.append("mysite/settings.py", """
        TIME_ZONE = "Europe/Berlin"
        TASKS["other"] = {"BACKEND": "pgnotifyq.django.PgnotifyqBackend"}
        TASKS["dummy"] = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
    """)  # fmt: skip
    project.append("shop/tasks.py", """
        from pgnotifyq.django import every

        @every("every 1s", args=[1], kwargs={"second": 2}, overlap="allow")
        @every("0 3 * * *", name="nightly", args=[3, 4])
        @task(max_attempts=2, priority=7)
        def ticks(first, second):
            return first + second

        @every("every 1s")
        @task(backend="other")
        def of_another_backend(): ...

        @every("every 1s")
        @task(backend="dummy")
        def of_no_queue(): ...
    """)  # fmt: skip
    with project.worker() as worker:
        worker.wait_for("job.completed", job_type="shop.tasks.ticks")
    row = database.execute(
        "select status, result, max_attempts, priority from pgnotifyq.jobs where status = 'completed'"
    ).fetchone()
    assert row == ("completed", 3, 2, 7)
    found = database.execute("select name, rule, tz, owner, payload from pgnotifyq.schedules order by name").fetchall()
    assert found == [
        ("nightly", "0 3 * * *", "Europe/Berlin", "shop", {"args": [3, 4], "kwargs": {}, "options": {"max_attempts": 2}}),
        ("shop.tasks.ticks", "every 1s", "Europe/Berlin", "shop",
         {"args": [1], "kwargs": {"second": 2}, "options": {"max_attempts": 2}}),
    ]  # fmt: skip


def test_schedules_that_are_refused(project: Project) -> None:
    """The module of the task cannot be imported, and says why; the same once more, as by a reload, is nothing."""
    told = project.run("""
        from pgnotifyq.django import every

        def why(*when, **said):
            try:
                every(*when, **said)(tasks.add)
            except Exception as error:
                return type(error).__name__ + " " + str(error)

        tell([
            why("nonsense", args=[1, 2]), why("every 1s"), why("every 1s", args=[1, 2], name="no name"),
            why("every 1s", args=[1, 2]), why("every 1s", args=[1, 2]), why("every 2s", args=[1, 2]),
        ])
    """)
    assert told[3:5] == [None, None]
    assert [each.split()[0].removesuffix("Error") for each in (*told[:3], told[5])] == [
        "InvalidTask",
        "Type",
        "InvalidTask",
        "InvalidTask",
    ]
    assert all(each.split()[1] == "shop.tasks.add:" for each in (*told[:3], told[5])) and "nonsense" in told[0]


def test_task_that_no_code_has(project: Project, database: psycopg.Connection[Any]) -> None:
    """A job of a newer release's task waits for a worker that has it, uncharged; the worker says so, and goes on."""
    enqueue(database, "shop.tasks.of_tomorrow")
    with project.worker() as worker:
        job = enqueue(database, "shop.tasks.add", "[1, 2]")
        worker.wait_for("job.completed", job_id=job)
    assert "shop.tasks.of_tomorrow" in worker.errors[0]
    assert database.execute("select status, attempts from pgnotifyq.jobs where job_type like '%tomorrow'").fetchone() == (
        "pending",
        0,
    )


def test_queues_of_the_backend(project: Project, database: psycopg.Connection[Any]) -> None:
    """A worker that is not told otherwise takes the queues of QUEUES, in that order."""
    project.append("mysite/settings.py", 'TASKS["default"]["QUEUES"] = ["urgent", "default"]')
    with project.worker() as worker:
        started = next(line for line in worker.lines if "worker.started" in line)
        assert '"urgent,default"' in started


def test_reload(project: Project, database: psycopg.Connection[Any]) -> None:
    """With --reload, a worker drains when a file changes, its successor runs the new code, and SIGTERM drains that."""
    command = [sys.executable, "manage.py", "pgnotifyq", "worker", "--reload", "--log-format", "json"]
    # A process group of its own: the worker is a child of the one that watches.
    with subprocess.Popen(
        command, cwd=project.folder, env=environment(), stdout=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
    ) as process:
        worker = Worker(process)
        has_stopped = threading.Event()

        def touch() -> None:
            # Django compares times of files: what changed before its first look it cannot see.
            while not has_stopped.wait(0.5):
                (project.folder / "shop/tasks.py").touch()

        try:
            worker.wait_for("worker.started")
            project.append("shop/tasks.py", "\n@task\ndef brand_new():\n    return 'new'\n")
            second = enqueue(database, "shop.tasks.brand_new")
            touching = threading.Thread(target=touch)
            touching.start()
            worker.wait_for("worker.stopped")
            has_stopped.set()
            touching.join()
            worker.wait_for("job.completed", job_id=second)
            process.send_signal(signal.SIGTERM)  # to the one that watches, as a service manager does
            worker.wait_for("worker.stopped")
            assert process.wait(ENDED_SECONDS_MAX) == 0
        finally:
            has_stopped.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=ENDED_SECONDS_MAX)
    assert result(database, second) == "new"


def test_commands_use_the_projects_database(project: Project) -> None:
    """Every command of the queue is one of manage.py's, without an address."""
    job = project.run("tell(tasks.add.enqueue(1, 2).id)")
    assert job in project.manage("pgnotifyq", "jobs")
    assert "already up to date" in project.manage("pgnotifyq", "migrate")
    assert "schema pgnotifyq at version" in project.manage("pgnotifyq", "doctor")
    assert "cancelled" in project.manage("pgnotifyq", "cancel", job)
    assert "no job" in project.manage("pgnotifyq", "show", "11111111-1111-1111-1111-111111111111", code=1)
    assert "--concurrency" in project.manage("pgnotifyq", "worker", "--help")
    assert "worker" in project.manage("pgnotifyq")
    assert "nobody" in project.manage("pgnotifyq", "jobs", "--backend", "nobody", code=1)
