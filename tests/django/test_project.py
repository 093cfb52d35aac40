"""Checks, migrations and the admin, in a project of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.conninfo import conninfo_to_dict

from pgnotifyq.ledger.schema import code_version

if TYPE_CHECKING:
    import psycopg

    from tests.django.conftest import Project


def test_checks_of_good_settings(project: Project) -> None:
    """Nothing is said of a project that is set up and migrated."""
    assert "no issues" in project.manage("check", "--database", "default")
    assert "No changes detected" in project.manage("makemigrations", "--check", "--dry-run")


def test_checks_of_bad_settings(blank_project: Project) -> None:
    """Each mistake is named, and `check` fails."""
    blank_project.append(
        "mysite/settings.py",
        """
        BACKEND = "pgnotifyq.django.PgnotifyqBackend"
        DATABASES["lite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": "lite.sqlite3"}
        TASKS = {
            "default": {"BACKEND": BACKEND, "OPTIONS": {"databse": "default", "max_attempts": 0}},
            "lite": {"BACKEND": BACKEND, "OPTIONS": {"database": "lite"}},
            "gone": {"BACKEND": BACKEND, "OPTIONS": {"database": "gone"}},
            "odd": {"BACKEND": BACKEND, "OPTIONS": {"schema": "Not Good"}, "QUEUES": ["a queue"]},
        }
        """,
    )
    said = blank_project.manage("check", code=1)
    for number in (1, 2, 3, 5, 6, 7):
        assert f"pgnotifyq.E00{number}" in said, said


def test_address_for_a_worker(project: Project) -> None:
    """A worker's own connections go where Django's go, as the role that Django takes on; what only Django knows is left out."""
    project.append(
        "mysite/settings.py",
        """
        DATABASES["default"].update(PASSWORD="it's secret", CONN_MAX_AGE=60)
        DATABASES["default"]["OPTIONS"].update(connect_timeout=7, assume_role="a role", server_side_binding=True, options="-c jit=off")
        """,
    )
    told = project.run("""
        from psycopg.conninfo import conninfo_to_dict
        from pgnotifyq.django.connections import address_of
        tell(conninfo_to_dict(address_of("default")))
    """)
    assert told["dbname"] == conninfo_to_dict(project.dsn)["dbname"]
    assert (told["password"], told["connect_timeout"]) == ("it's secret", "7")
    assert told["options"] == "-c jit=off -c role=a\\ role"
    assert not told.keys() & {"client_encoding", "assume_role", "server_side_binding"}


def test_schema_that_is_missing_is_a_warning(blank_project: Project) -> None:
    """`check --database` says so; `migrate`, which checks first, goes on and mends it."""
    assert "pgnotifyq.W001" in blank_project.manage("check", "--database", "default")
    blank_project.manage("migrate")
    assert "no issues" in blank_project.manage("check", "--database", "default")


def test_each_version_of_the_schema_has_a_migration_of_django(project: Project) -> None:
    """A release that needs a newer schema brings it by `manage.py migrate`: the last migration is of the code's version."""
    names = [line.split()[-1] for line in project.manage("showmigrations", "pgnotifyq").splitlines() if "[X]" in line]
    assert names[-1].endswith(f"_schema_{code_version()}"), f"add a migration to pgnotifyq/django/migrations, as {names[-1]} is"


def test_migration_backwards(project: Project, database: psycopg.Connection[Any]) -> None:
    """It drops the schema, but not jobs that are not done; forwards again it is made anew."""
    job = project.run("tell(tasks.add.enqueue(1, 2).id)")
    assert "1 in default" in project.manage("migrate", "pgnotifyq", "zero", code=1)
    project.run(f"default_task_backend.cancel('{job}')")
    project.manage("migrate", "pgnotifyq", "zero")
    assert database.execute("select to_regnamespace('pgnotifyq')").fetchone() == (None,)
    project.manage("migrate")
    assert project.run("tell(tasks.add.enqueue(1, 2).status)") == "READY"


def test_djangos_test_runner_has_a_queue(project: Project) -> None:
    """A test database has the schema; a TestCase's jobs are rolled back with it."""
    project.write(
        "shop/tests.py",
        """
        from django.test import TestCase
        from pgnotifyq.django.models import QueuedJob
        from shop import tasks

        class Tests(TestCase):
            def test_one(self):
                tasks.add.enqueue(1, 2)
                self.assertEqual(QueuedJob.objects.count(), 1)

            def test_two(self):
                self.assertEqual(tasks.add.enqueue(1, 2).status, "READY")
                self.assertEqual(QueuedJob.objects.get().payload, {"args": [1, 2], "kwargs": {}})
        """,
    )
    assert "Ran 2 tests" in project.manage("test", "--noinput")


def test_admin(project: Project, database: psycopg.Connection[Any]) -> None:
    """Staff who may change sees jobs and dead letters, cancels and requeues; who may only view has no action; nobody edits."""
    told = project.run("""
        import functools, trio
        from django.contrib.auth.models import Permission, User
        from django.test import Client
        from django.conf import settings
        from pgnotifyq.django.connections import address_of
        from pgnotifyq.django.models import DeadJob, QueuedJob
        from pgnotifyq.django.registry import registry
        from pgnotifyq.testing import work_until_idle
        settings.ALLOWED_HOSTS = ["testserver"]
        tasks.fail_for_good.enqueue()
        trio.run(functools.partial(work_until_idle, registry, address_of("default")))
        waiting = tasks.add.enqueue(1, 2).id
        (dead,) = [str(each.id) for each in DeadJob.objects.all()]

        def client(*permissions):
            user = User.objects.create_user(f"user{User.objects.count()}", is_staff=True)
            user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
            made = Client()
            made.force_login(user)
            return made

        viewer = client("view_queuedjob", "view_deadjob")
        keeper = client("change_queuedjob", "change_deadjob")
        jobs, letters = "/admin/pgnotifyq/queuedjob/", "/admin/pgnotifyq/deadjob/"
        cancel = {"action": "cancel", "_selected_action": [waiting]}
        requeue = {"action": "requeue", "_selected_action": [dead]}
        said = []
        said.append([client().get(jobs).status_code, viewer.get(jobs).status_code, keeper.get(letters).status_code])
        said.append([waiting in viewer.get(jobs).content.decode(), "KeyError" in keeper.get(letters).content.decode()])
        said.append([viewer.get(f"{jobs}{waiting}/change/").status_code, viewer.get(f"{jobs}?q=shop.tasks.a").status_code,
                     viewer.get(f"{jobs}?q={waiting}").content.decode().count("1 job")])
        viewer.post(jobs, cancel)
        said.append(QueuedJob.objects.get(id=waiting).status)
        said.append(keeper.post(f"{jobs}{waiting}/change/", {"priority": "9"}).status_code)
        keeper.post(jobs, cancel)
        said.append([QueuedJob.objects.get(id=waiting).status, QueuedJob.objects.get(id=waiting).error_message])
        keeper.post(letters, requeue)
        said.append([DeadJob.objects.count(), QueuedJob.objects.get(id=dead).status])
        tell(said)
    """)
    assert told == [
        [403, 200, 200],
        [True, True],
        [200, 200, 1],
        "pending",
        403,
        ["cancelled", "by user1 in the admin"],
        [0, "pending"],
    ]
