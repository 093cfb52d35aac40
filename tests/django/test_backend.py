"""The backend, as a project uses it: enqueue, look, retries, settings of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import psycopg

    from tests.django.conftest import Project


def jobs(database: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return database.execute(
        "select job_type, queue_name, priority, max_attempts, payload from pgnotifyq.jobs order by id"
    ).fetchall()


def test_capabilities(project: Project) -> None:
    """A backend can do all four things that Django knows of."""
    assert project.run("""
        each = default_task_backend
        tell([each.supports_defer, each.supports_async_task, each.supports_get_result, each.supports_priority])
    """) == [True, True, True, True]


def test_enqueue_in_a_transaction_that_is_rolled_back(project: Project, database: psycopg.Connection[Any]) -> None:
    """No job is left, nor a result; a savepoint that is rolled back takes its job along, and leaves the others."""
    assert project.run("""
        seen = []
        try:
            with transaction.atomic():
                lost = tasks.add.enqueue(1, 2)
                seen.append(tasks.add.get_result(lost.id).status)
                raise KeyError
        except KeyError:
            pass
        try:
            tasks.add.get_result(lost.id)
        except Exception as error:
            seen.append(type(error).__name__)
        with transaction.atomic():
            tasks.add.enqueue(3, 4)
            try:
                with transaction.atomic():
                    tasks.add.enqueue(5, 6)
                    raise KeyError
            except KeyError:
                pass
        tell(seen)
    """) == ["READY", "TaskResultDoesNotExist"]
    assert [payload["args"] for *_, payload in jobs(database)] == [[3, 4]]


def test_enqueue_inside_and_outside_of_atomic(project: Project, database: psycopg.Connection[Any]) -> None:
    """Within `atomic` nobody else sees a job before the commit; outside it is there at once."""
    assert project.run("""
        def seen():
            import psycopg
            from pgnotifyq.django.connections import address_of
            with psycopg.connect(address_of("default")) as other:
                return other.execute("select count(*) from pgnotifyq.jobs").fetchone()[0]
        found = []
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            found.append(seen())
        found.append(seen())
        tasks.add.enqueue(1, 2)
        found.append(seen())
        tell(found)
    """) == [0, 1, 2]


def test_refused_task_leaves_the_transaction_usable(project: Project, database: psycopg.Connection[Any]) -> None:
    """What cannot be enqueued is refused before anything is sent."""
    assert project.run("""
        import datetime
        said = []
        with transaction.atomic():
            for refuse in (
                lambda: tasks.echo.enqueue(datetime.datetime.now()),
                lambda: tasks.echo.enqueue(float("nan")),
                lambda: tasks.add.enqueue(1),
                lambda: tasks.add.enqueue(1, 2, 3),
                lambda: tasks.add.enqueue(1, second=2, third=3),
                lambda: tasks.fail.enqueue("one too many, for it takes its context"),
                lambda: tasks.echo.enqueue("NUL \\x00"),
                lambda: tasks.echo.enqueue("x" * 2_000_000),
                lambda: tasks.echo.using(queue_name="unknown"),
                lambda: tasks.echo.using(priority=101),
                lambda: tasks.echo.using(max_attempts=0),
                lambda: tasks.echo.using(timeout_seconds=-1),
                lambda: tasks.echo.using(retry_on=("OSError",)),
                lambda: tasks.echo.using(org_id=" me "),
            ):
                try:
                    refuse()
                except Exception as error:
                    said.append(type(error).__name__.removesuffix("Error"))
            tasks.echo.enqueue("kept")
        tell(said)
    """) == [*["Type"] * 6, "InvalidPayload", "PayloadTooLarge", *["InvalidTask"] * 6]
    assert len(jobs(database)) == 1


def test_arguments_that_a_decorator_adds(project: Project, database: psycopg.Connection[Any]) -> None:
    """What counts is what the decorated function takes: another decorator may have given it an argument."""
    project.append(
        "shop/tasks.py",
        """
        import functools

        def with_rate(function):
            @functools.wraps(function)
            def call(*args, **kwargs):
                return function(2, *args, **kwargs)
            return call

        @task
        @with_rate
        def convert(rate, amount):
            return rate * amount
        """,
    )
    project.run("tasks.convert.enqueue(21)")
    assert [payload["args"] for *_, payload in jobs(database)] == [[21]]


def test_enqueue_in_a_transaction_that_was_aborted(project: Project, database: psycopg.Connection[Any]) -> None:
    """It is told as what it is; after the rollback to a savepoint the transaction is usable again."""
    assert project.run("""
        said = []
        with transaction.atomic():
            try:
                with transaction.atomic():
                    try:
                        with connection.cursor() as cursor:
                            cursor.execute("select 1/0")
                    except Exception as error:
                        said.append(type(error).__name__)
                    tasks.add.enqueue(1, 2)
            except Exception as error:
                said.append(type(error).__name__)
            tasks.add.enqueue(3, 4)
        tell(said)
    """) == ["DataError", "TransactionAborted"]
    assert [payload["args"] for *_, payload in jobs(database)] == [[3, 4]]


def test_task_that_is_not_where_its_path_says(project: Project, database: psycopg.Connection[Any]) -> None:
    """A task under another name than its function's could never be found by a worker: it is refused when it is enqueued."""
    project.append("shop/tasks.py", "\nrenamed = task(not_a_task)\n")
    assert "is not a task" in project.run("""
        try:
            tasks.renamed.enqueue()
        except Exception as error:
            tell(str(error))
    """)
    assert jobs(database) == []


def test_arguments_make_a_round_trip_through_json(project: Project, database: psycopg.Connection[Any]) -> None:
    """Tuples become lists and keys become text, in the result that enqueue returns as in the one that is looked up."""
    told = project.run("""
        result = tasks.echo.enqueue((1, "zwei"), {1: None}, named={"ünï": [True, 1.5]})
        again = tasks.echo.get_result(result.id)
        tell([result.args, result.kwargs, result == again])
    """)
    assert told == [[[1, "zwei"], {"1": None}], {"named": {"ünï": [True, 1.5]}}, True]


def test_settings_of_a_job(project: Project, database: psycopg.Connection[Any]) -> None:
    """Priority, queue, run_after, attempts and tenant are the row's; what it has no column for travels in the payload."""
    project.append("mysite/settings.py", 'TASKS["default"]["QUEUES"] = ["default", "mail"]')
    org = "11111111-1111-1111-1111-111111111111"
    told = project.run(f"""
        from datetime import datetime, timezone
        at = datetime(2040, 1, 2, tzinfo=timezone.utc)
        changed = tasks.add.using(priority=-100, queue_name="mail", run_after=at, max_attempts=7, org_id="{org}",
                                  timeout_seconds=9.5, retry_on=(OSError, KeyError))
        result = changed.enqueue(1, 2)
        again = default_task_backend.get_result(result.id)
        tell([again.task == changed, again == result, again.task.retry_on == (OSError, KeyError), again.task.run_after])
    """)
    assert told == [True, True, True, "2040-01-02 00:00:00+00:00"]
    ((row),) = database.execute(
        "select queue_name, priority, max_attempts, org_id::text, scheduled_at at time zone 'utc', payload from pgnotifyq.jobs"
    ).fetchall()
    assert [str(value) for value in row[:5]] == ["mail", "-100", "7", org, "2040-01-02 00:00:00"]
    assert row[5] == {
        "args": [1, 2],
        "kwargs": {},
        "options": {
            "run_after": "2040-01-02T00:00:00+00:00",
            "max_attempts": 7,
            "timeout_seconds": 9.5,
            "retry_on": ["builtins.OSError", "builtins.KeyError"],
        },
    }


def test_task_on_a_backend_of_djangos_own(project: Project) -> None:
    """Where tests have Django's immediate backend, a task with settings of ours runs there as any other."""
    project.append("mysite/settings.py", 'TASKS = {"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}}')
    assert project.run(
        "tell([type(tasks.fail).__name__, tasks.add.enqueue(1, 2).return_value, tasks.fail.enqueue().status])"
    ) == [
        "Task",
        3,
        "FAILED",
    ]


def test_settings_that_are_misspelt(project: Project) -> None:
    """A task is not declared with a setting that nobody knows, nor with a time."""
    assert project.run("""
        said = []
        for settings in ({"max_attemps": 3}, {"run_after": 1}, {"max_attempts": 0}):
            try:
                tasks.task(**settings)(tasks.not_a_task)
            except Exception as error:
                said.append(str(error).partition(":")[0])
        tell(said)
    """) == ["@task takes no max_attemps", "@task takes no run_after", "max_attempts 0 is out of range"]


def test_attempts_that_nobody_says(project: Project, database: psycopg.Connection[Any]) -> None:
    """The backend's OPTIONS say how often a task is tried that does not say so itself."""
    project.append("mysite/settings.py", 'TASKS["default"]["OPTIONS"] = {"max_attempts": 9}')
    project.run("tasks.add.enqueue(1, 2); tasks.fail.enqueue()")
    assert [attempts for _, _, _, attempts, _ in jobs(database)] == [9, 2]


def test_another_schema_and_another_database(project: Project, blank_dsn: str) -> None:
    """A backend lives where its OPTIONS say; `manage.py migrate --database` makes its schema there."""
    from tests.django.conftest import database_of

    project.append(
        "mysite/settings.py",
        f"""
        DATABASES["jobs"] = {database_of(blank_dsn)!r}
        TASKS["other"] = {{"BACKEND": "pgnotifyq.django.PgnotifyqBackend", "OPTIONS": {{"database": "jobs", "schema": "queue"}}}}
        """,
    )
    assert "no schema 'queue'" in project.manage("check", "--database", "jobs")
    project.manage("migrate", "--database", "jobs")
    project.run("""
        with transaction.atomic():  # of another database: no part of it
            tasks.add.using(backend="other").enqueue(1, 2)
            transaction.set_rollback(True)
    """)
    assert json.loads(project.manage("pgnotifyq", "jobs", "--json", "--backend", "other"))[0]["job_type"] == "shop.tasks.add"
    assert project.manage("pgnotifyq", "jobs", "--json").strip() == "[]"
    with project.worker("--backend", "other") as worker:
        worker.wait_for("job.completed", job_type="shop.tasks.add")


def test_async_doors(project: Project) -> None:
    """aenqueue, aget_result, arefresh, acancel and arequeue do what their twins do."""
    assert project.run("""
        import asyncio
        async def main():
            result = await tasks.add.aenqueue(1, 2)
            is_same = await tasks.add.aget_result(result.id) == result
            outcome = await default_task_backend.acancel(result.id, "why not")
            await result.arefresh()
            try:
                await default_task_backend.arequeue(result.id)
            except Exception as error:
                said = type(error).__name__
            return [is_same, outcome, result.status, result.errors[0].exception_class_path, said]
        tell(asyncio.run(main()))
    """) == [True, "cancelled", "FAILED", "pgnotifyq.JobCancelled", "TaskResultDoesNotExist"]


def test_result_of_what_succeeds(project: Project) -> None:
    """A blocking and an async task give their results, and say when and by whom they were run."""
    project.run("tasks.add.enqueue(1, 2); tasks.count_groups.enqueue(); tasks.echo.enqueue()")
    project.work_until_idle()
    told = project.run("""
        from pgnotifyq.django.models import QueuedJob
        found = [default_task_backend.get_result(str(job.id)) for job in QueuedJob.objects.order_by("id")]
        tell([[each.status, each.return_value, each.attempts, len(each.errors), each.worker_ids[0] == found[0].worker_ids[0],
               each.enqueued_at <= each.started_at == each.last_attempted_at <= each.finished_at] for each in found])
    """)
    assert told == [
        ["SUCCESSFUL", 3, 1, 0, True, True],
        ["SUCCESSFUL", 1, 1, 0, True, True],
        ["SUCCESSFUL", [[], {}], 1, 0, True, True],
    ]


def test_result_of_what_fails(project: Project, database: psycopg.Connection[Any]) -> None:
    """Between attempts it is ready; after the last it has failed, with an error an attempt; requeued it is ready again."""
    assert project.run("result = tasks.fail.enqueue(); tell(result.status)") == "READY"
    project.work_until_idle()
    look = """
        from pgnotifyq.django.models import QueuedJob, DeadJob
        (job,) = [*QueuedJob.objects.all(), *DeadJob.objects.all()]
        each = default_task_backend.get_result(str(job.id))
        tell([each.status, each.attempts, [error.exception_class.__name__ for error in each.errors],
              [error.traceback.splitlines()[0::999999] + [error.traceback.splitlines()[-1]] for error in each.errors]])
    """
    first = ["Traceback (most recent call last):", "ValueError: attempt 1"]
    assert project.run(look) == ["READY", 1, ["ValueError"], [first]]
    database.execute("update pgnotifyq.jobs set scheduled_at = now()")
    project.work_until_idle()
    second = ["Traceback (most recent call last):", "ValueError: attempt 2"]
    assert project.run(look) == ["FAILED", 2, ["ValueError", "ValueError"], [first, second]]
    project.run("""
        from pgnotifyq.django.models import DeadJob
        default_task_backend.requeue(str(DeadJob.objects.get().id))
    """)
    assert project.run(look)[0] == "READY"


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("fail_for_good", "KeyError"),
        ("sleep_late", "TimeoutError"),
        ("poll_late", "TimeoutError"),
        ("return_nonsense", "TypeError"),
    ],
)
def test_failures_that_are_final(project: Project, task: str, error: str) -> None:
    """What `retry_on` does not name, a result that is not JSON, and the last attempt's timeout end a task."""
    told = project.run(f"""
        import functools, trio
        from pgnotifyq.django.connections import address_of
        from pgnotifyq.django.registry import registry
        from pgnotifyq.testing import work_until_idle
        result = tasks.{task}.enqueue()
        trio.run(functools.partial(work_until_idle, registry, address_of("default")))
        result.refresh()
        tell([result.status, result.attempts, result.errors[0].exception_class.__name__])
    """)
    assert told == ["FAILED", 1, error]


def test_snooze_raised_by_a_task(project: Project) -> None:
    """The queue's own words work in a task: it comes again, uncharged."""
    told = project.run("""
        import functools, trio
        from pgnotifyq.django.connections import address_of
        from pgnotifyq.django.registry import registry
        from pgnotifyq.testing import work_until_idle
        result = tasks.snooze_once.enqueue()
        trio.run(functools.partial(work_until_idle, registry, address_of("default")))
        result.refresh()
        tell([result.status, result.return_value, result.attempts, len(result.errors)])
    """)
    assert told == ["SUCCESSFUL", "slept", 1, 0]


def test_signals(project: Project) -> None:
    """Who listens hears of the enqueue, of each start, and of the end once: not of a failure that is tried again."""
    told = project.run("""
        import functools, trio
        from django.tasks.signals import task_enqueued, task_finished, task_started
        from pgnotifyq.django.connections import address_of
        from pgnotifyq.django.registry import registry
        from pgnotifyq.testing import work_until_idle
        heard = []
        def listen(signal, name):
            signal.connect(lambda sender, task_result, **_: heard.append(
                [name, task_result.task.name, task_result.status, task_result.attempts, len(task_result.errors)]), weak=False)
        for signal, name in ((task_enqueued, "enqueued"), (task_started, "started"), (task_finished, "finished")):
            listen(signal, name)
        def raises(**_): raise OSError("a listener fails")
        task_finished.connect(raises)
        work = functools.partial(work_until_idle, registry, address_of("default"))
        tasks.add.enqueue(1, 2)
        trio.run(work)
        tasks.fail.enqueue()
        trio.run(work)
        with connection.cursor() as cursor:
            cursor.execute("update pgnotifyq.jobs set scheduled_at = now() where status = 'pending'")
        trio.run(work)
        tell(heard)
    """)
    assert told == [
        ["enqueued", "add", "READY", 0, 0],
        ["started", "add", "RUNNING", 1, 0],
        ["finished", "add", "SUCCESSFUL", 1, 0],
        ["enqueued", "fail", "READY", 0, 0],
        ["started", "fail", "RUNNING", 1, 0],
        ["started", "fail", "RUNNING", 2, 1],
        ["finished", "fail", "FAILED", 2, 2],
    ]


def test_job_whose_path_leads_to_no_task(project: Project, database: psycopg.Connection[Any]) -> None:
    """A stored job makes no worker run what is not a Task: nobody takes it, and its result does not exist."""
    database.execute("select pgnotifyq.enqueue('shop.tasks.not_a_task', '{}'), pgnotifyq.enqueue('os.getcwd', '{}')")
    told = project.run("""
        from pgnotifyq.django.models import QueuedJob
        from pgnotifyq.django.waiting import import_waiting
        refused = import_waiting(default_task_backend)
        said = []
        for job in QueuedJob.objects.all():
            try:
                default_task_backend.get_result(str(job.id))
            except Exception as error:
                said.append(type(error).__name__)
        tell([sorted(refused.items()), said])
    """)
    assert [path for path, _ in told[0]] == ["os.getcwd", "shop.tasks.not_a_task"]
    assert all("is not a task" in why for _, why in told[0])
    assert told[1] == ["TaskResultDoesNotExist"] * 2


def test_payloads_that_came_by_sql(project: Project, database: psycopg.Connection[Any]) -> None:
    """SQL may leave out what a call does not need; what is no call at all fails for good, and is still a result."""
    database.execute("""
        select pgnotifyq.enqueue('shop.tasks.add', '{"args": [20, 3]}'), pgnotifyq.enqueue('shop.tasks.add', '[1]'),
            pgnotifyq.enqueue('shop.tasks.echo', '{}')
    """)
    project.work_until_idle()
    told = project.run("""
        from pgnotifyq.django.models import DeadJob, QueuedJob
        found = [default_task_backend.get_result(str(job.id)) for job in (*QueuedJob.objects.order_by("id"), *DeadJob.objects.all())]
        tell([[each.status, each._return_value, [error.traceback for error in each.errors]] for each in found])
    """)
    assert told[:2] == [["SUCCESSFUL", 23, []], ["SUCCESSFUL", [[], {}], []]]
    assert told[2][0] == "FAILED"
    assert "no call of a task" in told[2][2][0]


def test_schema_that_is_missing(blank_project: Project) -> None:
    """Enqueue says what to do, and leaves the transaction's error to Django."""
    blank_project.write("shop/tasks.py", "from django.tasks import task\n\n@task\ndef noop():\n    pass\n")
    assert "migrate" in blank_project.run("""
        try:
            tasks.noop.enqueue()
        except Exception as error:
            tell(str(error))
    """)


def test_trace_goes_along(project: Project, database: psycopg.Connection[Any]) -> None:
    """With OpenTelemetry a task's headers have the context of the request that enqueued it."""
    trace_id = project.run("""
        import pgnotifyq.otel
        from opentelemetry.sdk.trace import TracerProvider
        provider = TracerProvider()
        pgnotifyq.otel.instrument(tracer_provider=provider)
        with provider.get_tracer("test").start_as_current_span("request") as span:
            tasks.add.enqueue(1, 2)
        tell(format(span.get_span_context().trace_id, "032x"))
    """)
    ((headers,),) = database.execute("select headers from pgnotifyq.jobs").fetchall()
    assert headers["traceparent"].split("-")[1] == trace_id


def test_unique(project: Project, database: psycopg.Connection[Any]) -> None:
    """A task that is unique is enqueued once; what follows is what it says; what is no `Unique` is refused."""
    told = project.run("""
        from pgnotifyq import Unique
        once = tasks.add.using(unique=Unique(by=("args",)))
        first = once.enqueue(1, 2)
        seen = [once.enqueue(1, 2).id == first.id, once.enqueue(1, 3).id == first.id]
        last = tasks.add.using(unique=Unique(by=("args",), on_conflict="replace"), priority=7).enqueue(1, 2)
        seen.append(last.id == first.id)
        for unique in (Unique(by=("args",), on_conflict="refuse"), "k"):
            try:
                tasks.add.using(unique=unique).enqueue(1, 2)
            except Exception as error:
                seen.append(type(error).__name__)
        tell(seen)
    """)
    assert told[:4] == [True, False, True, "UniqueKeyHeld"]
    assert told[4].startswith("InvalidTask")
    assert [priority for _, _, priority, *_ in jobs(database)] == [7, 0]
