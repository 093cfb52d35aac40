"""`docs/django.md` is what a newcomer does: every block is run, in a project made anew, in order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tests.django.conftest import TASKS_MODULE

if TYPE_CHECKING:
    from tests.django.conftest import Project

PAGE = Path(__file__).parents[2] / "docs" / "django.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

MODELS = """
from django.db import models

class Order(models.Model):
    email = models.EmailField()
"""
URLS = """
from django.urls import path
from shop import views

urlpatterns += [path("order", views.order)]
"""


def test_every_block(blank_project: Project) -> None:
    """Blocks of Python go into the files that their first lines name, commands are run; then a view's order has its receipt."""
    project = blank_project
    project.append("shop/models.py", MODELS)
    project.append("mysite/urls.py", URLS)
    settings = project.folder / "mysite/settings.py"
    # What the page says to add is not there yet.
    before = settings.read_text(encoding="utf-8").replace('"pgnotifyq.django", ', "").replace("'pgnotifyq.django', ", "")
    settings.write_text(re.sub(r"\nTASKS = .*", "", before), encoding="utf-8")
    commands, begun = [], {"mysite/settings.py"}
    for language, text in BLOCKS:
        if language == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            (project.append if name in begun else project.write)(name, text)
            begun.add(name)
        else:
            commands += text.strip().splitlines()
    assert commands.pop(0).startswith("python -m pip install")
    project.manage("makemigrations", "shop")
    workers = ["python -m pgnotifyq.django worker", "python manage.py pgnotifyq worker"]
    assert [command for command in commands if command.endswith("worker")] == workers
    assert commands.index(workers[0]) == 1
    run(project, commands[0])

    with project.worker(by=shlex.split(workers[0])[1:-1]) as running:
        told = project.run("""
            from django.test import Client
            from django.conf import settings
            settings.ALLOWED_HOSTS = ["testserver"]
            settings.MIDDLEWARE = []
            order = Client().get("/order", {"email": "ada@example.org"}).json()
            from shop.tasks import count
            tell([order["result"], count.enqueue(1_000_000).id])
        """)
        running.wait_for("job.completed", job_id=told[0])
        cancelled = project.run(f"""
            from shop.results import receipt
            from shop.stopping import stop
            tell([receipt({told[0]!r}), stop({told[1]!r})])
        """)
        assert cancelled[0] == "receipt for ada@example.org"
        assert cancelled[1] in {"stopping", "cancelled"}
        running.wait_for("job.cancelled", job_id=told[1])

    for command in commands:
        if command not in workers:
            run(project, command)
    assert len(json.loads(project.manage("pgnotifyq", "jobs", "--json"))) == 2
    told = project.run(
        "from shop.tasks import fetch_rates, urgent; tell([fetch_rates.max_attempts, urgent.max_attempts, urgent.retry_on])"
    )
    assert told == [5, 1, ["<class 'OSError'>"]]


def run(project: Project, command: str) -> None:
    ended = project.python(*shlex.split(command)[1:])
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)


def test_page_names_both_frameworks() -> None:
    """The page is for Django's own framework; of the back-port it says what differs."""
    assert TASKS_MODULE in PAGE.read_text(encoding="utf-8")
