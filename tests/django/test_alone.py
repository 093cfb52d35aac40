"""A project that changes `TASKS` only: `pgnotifyq.django` is not in INSTALLED_APPS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from tests.django.conftest import Project

BY_MODULE = ("-m", "pgnotifyq.django")


@pytest.fixture
def alone(blank_project: Project) -> Project:
    """A project on an empty database, whose one setting of ours is TASKS."""
    tasks = (Path(__file__).parent / "shop_tasks.py").read_text(encoding="utf-8")
    blank_project.append("mysite/settings.py", "INSTALLED_APPS = [app for app in INSTALLED_APPS if app != 'pgnotifyq.django']")
    blank_project.write("shop/tasks.py", tasks)
    blank_project.append("mysite/urls.py", "import shop.tasks")
    return blank_project


def test_tasks_alone_are_enough(alone: Project) -> None:
    """`migrate` brings the schema, once; a task is enqueued, worked and read; `check` says what is missing, and no more."""
    assert "The queue's schema 'pgnotifyq' is at version" in alone.manage("migrate")
    assert "The queue's schema" not in alone.manage("migrate")
    said = alone.run("""
        from django.core.checks import run_checks
        tell([issue.id for issue in run_checks()])
    """)
    assert said == ["pgnotifyq.W003"]
    job = alone.run("tell(tasks.make_group.enqueue('a').id)")
    with alone.worker(by=BY_MODULE) as worker:
        worker.wait_for("job.completed", job_id=job)
    assert "".join(worker.errors).count("state=SUCCESSFUL") == 1  # Django's log, with DEBUG, is the worker's
    assert alone.run(f"tell(default_task_backend.get_result({job!r}).status)") == "SUCCESSFUL"
    with psycopg.connect(alone.dsn) as connection:
        assert connection.execute("select count(*) from auth_group").fetchone() == (1,)
    other = alone.python(*BY_MODULE, "jobs", "--json")
    assert (other.returncode, job in other.stdout) == (0, True), other.stderr


def test_application_that_comes_later(alone: Project) -> None:
    """Who adds the application migrates once more, and loses nothing."""
    alone.manage("migrate")
    job = alone.run("tell(tasks.add.enqueue(1, 2).id)")
    alone.append("mysite/settings.py", "INSTALLED_APPS += ['pgnotifyq.django']")
    alone.manage("migrate")
    assert "no issues" in alone.manage("check", "--database", "default")
    assert job in alone.manage("pgnotifyq", "jobs", "--json")


def test_test_database_has_a_queue(alone: Project) -> None:
    """Django's test runner finds it, also in a TransactionTestCase, after which Django empties the tables."""
    alone.write(
        "shop/tests.py",
        """
        from django.test import TestCase, TransactionTestCase
        from shop import tasks

        class Tests(TestCase):
            def test_one(self):
                self.assertEqual(tasks.add.enqueue(1, 2).status, "READY")

        class OtherTests(TransactionTestCase):
            def test_one(self):
                self.assertEqual(tasks.add.enqueue(1, 2).status, "READY")

            def test_two(self):
                self.assertEqual(tasks.add.enqueue(1, 2).status, "READY")
        """,
    )
    assert "Ran 3 tests" in alone.manage("test", "--noinput")


def test_settings_that_nobody_names(alone: Project) -> None:
    """Outside of the project's folder it says what is missing; `--settings` names them."""
    (alone.folder / "manage.py").unlink()
    ended = alone.python(*BY_MODULE, "jobs")
    assert ended.returncode == 1
    assert "--settings mysite.settings" in ended.stderr
    ended = alone.python(*BY_MODULE, "doctor", "--settings", "mysite.settings")
    assert "no schema" in ended.stdout + ended.stderr
    assert "usage: python -m pgnotifyq.django" in alone.python(*BY_MODULE, "--settings", "mysite.settings").stdout
