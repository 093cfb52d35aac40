"""A Django project of the test's own: made by `startproject` and `startapp`, on a database that `manage.py migrate` has filled.

Django's settings belong to a process, so each piece of a test runs in one of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.conftest import _database, _name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

django = pytest.importorskip("django", reason="Django is not installed: python -m pip install 'pgnotifyq[django]'")

# Since Django 6.0 the task framework is its own.
TASKS_MODULE = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
ENDED_SECONDS_MAX = 60  # bounds a test that fails

SETTINGS = """
INSTALLED_APPS += {apps!r}
DATABASES = {{"default": {database!r}}}
TASKS = {{"default": {{"BACKEND": "pgnotifyq.django.PgnotifyqBackend"}}}}
USE_TZ = True
"""
PREAMBLE = f"""
import os, json, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
import django
django.setup()
from django.db import connection, connections, transaction
from {TASKS_MODULE} import TaskResultStatus, default_task_backend, task_backends
from shop import tasks
def tell(value): print("TOLD " + json.dumps(value, default=str))
"""


@attrs.frozen
class Project:
    """A project in a folder, and its database."""

    folder: Path
    dsn: str

    def write(self, name: str, text: str) -> None:
        """Write a file of the project; `django.tasks` becomes the back-port's name where that is installed."""
        text = textwrap.dedent(text).replace("django.tasks", TASKS_MODULE)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def append(self, name: str, text: str) -> None:
        """Write behind what a file has."""
        before = (self.folder / name).read_text(encoding="utf-8")
        self.write(name, before + "\n" + textwrap.dedent(text))

    def run(self, code: str) -> Any:
        """Run Python with the project set up, and return what it `tell`s."""
        ended = self.python("-c", PREAMBLE + textwrap.dedent(code).replace("django.tasks", TASKS_MODULE))
        assert ended.returncode == 0, ended.stderr
        told = [line.removeprefix("TOLD ") for line in ended.stdout.splitlines() if line.startswith("TOLD ")]
        return json.loads(told[-1]) if told else None

    def manage(self, *arguments: str, code: int = 0) -> str:
        """Run manage.py, and return what it prints."""
        ended = self.python("manage.py", *arguments)
        assert ended.returncode == code, (ended.stdout, ended.stderr)
        return ended.stdout + ended.stderr

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the folder."""
        command = [sys.executable, *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=ENDED_SECONDS_MAX,
        )

    @contextmanager
    def worker(self, *arguments: str, by: Sequence[str] = ("manage.py", "pgnotifyq")) -> Iterator[Worker]:
        """Have a worker process while the block lasts; it drains at the end."""
        command = [sys.executable, *by, "worker", "--log-format", "json", *arguments]
        with subprocess.Popen(
            command, cwd=self.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        ) as process:
            worker = Worker(process)
            try:
                worker.wait_for("worker.started")
                yield worker
            finally:
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=ENDED_SECONDS_MAX)
                worker.lines += out.splitlines()
                worker.errors.append(err)

    def work_until_idle(self) -> None:
        """Run what is due, in a process, as `pgnotifyq.testing` does."""
        self.run("""
            import trio, functools
            from pgnotifyq.django.connections import address_of
            from pgnotifyq.django.registry import registry
            from pgnotifyq.testing import work_until_idle
            trio.run(functools.partial(work_until_idle, registry, address_of("default"), queues=default_task_backend.queue_names))
        """)


@attrs.define
class Worker:
    """A worker process."""

    process: subprocess.Popen[str]
    lines: list[str] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)

    def wait_for(self, name: str, **fields: str) -> dict[str, Any]:
        """Return the next event of a name, which has these fields."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name and fields.items() <= event.items():
                return event
        assert self.process.stderr is not None
        raise AssertionError(f"the worker ended without {name}: {self.lines} {self.process.stderr.read()}")


def environment() -> dict[str, str]:
    """Return the environment of a process, without what a test runner has put there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "PGNOTIFYQ_DSN"))}
    root = str(Path(__file__).parents[2])
    return {**kept, "PYTHONPATH": root, "PYTHONWARNINGS": "default"}


def database_of(dsn: str) -> dict[str, Any]:
    """Return an address as Django's DATABASES has it."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    known = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    options = {name: value for name, value in parts.items() if name not in known}
    given = {known[name]: value for name, value in parts.items() if name in known}
    return {"ENGINE": "django.db.backends.postgresql", **given, "OPTIONS": options}


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `startproject` and `startapp` leave it."""
    folder = tmp_path_factory.mktemp("started")
    for arguments in (["startproject", "mysite", "."], ["startapp", "shop"]):
        subprocess.run([sys.executable, "-m", "django", *arguments], cwd=folder, env=environment(), check=True)
    return folder


@pytest.fixture(scope="session")
def migrated(server_dsn: str, started: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database on which `manage.py migrate` has run."""
    with _database(server_dsn) as dsn:
        _project(started, tmp_path_factory.mktemp("migrated") / "project", dsn).manage("migrate")
        yield _name(dsn)


@pytest.fixture
def project(server_dsn: str, started: Path, migrated: str, tmp_path: Path) -> Iterator[Project]:
    """A project whose database is migrated, with tasks in `shop/tasks.py`."""
    with _database(server_dsn, migrated) as dsn:
        made = _project(started, tmp_path / "project", dsn)
        made.write("shop/tasks.py", (Path(__file__).parent / "shop_tasks.py").read_text(encoding="utf-8"))
        yield made


@pytest.fixture
def blank_project(blank_dsn: str, started: Path, tmp_path: Path) -> Project:
    """A project on an empty database, as `startproject` leaves it but for its settings."""
    return _project(started, tmp_path / "project", blank_dsn)


@pytest.fixture
def database(project: Project) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the project's database, in autocommit."""
    with psycopg.connect(project.dsn, autocommit=True) as connection:
        yield connection


def _project(started: Path, folder: Path, dsn: str) -> Project:
    shutil.copytree(started, folder)
    project = Project(folder, dsn)
    apps = ["pgnotifyq.django", "shop"] + ([] if TASKS_MODULE == "django.tasks" else ["django_tasks"])
    project.append("mysite/settings.py", SETTINGS.format(apps=apps, database=database_of(dsn)))
    return project
