"""`examples/django_shop` does what its README says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.django import conftest
from tests.django.conftest import Project

SHOP = Path(__file__).parents[2] / "examples" / "django_shop"

GET = """
import os, json, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
import django
django.setup()
from django.test import Client
answer = Client().get(sys.argv[1])
print(json.dumps([answer.status_code, answer.json() if answer.status_code == 200 else None]))
"""


def test_shop(blank_dsn: str, tmp_path: Path, monkeypatch: Any) -> None:
    """An order has its receipt; one that is refused leaves neither order nor task."""
    real = conftest.environment
    monkeypatch.setattr(conftest, "environment", lambda: {**real(), "PGNOTIFYQ_DSN": blank_dsn})
    shutil.copytree(SHOP, tmp_path / "shop")
    shop = Project(tmp_path / "shop", blank_dsn)
    assert "No changes" in shop.manage("makemigrations", "--check", "--dry-run")
    shop.manage("migrate")
    assert "no issues" in shop.manage("check", "--database", "default")

    status, made = get(shop, "/order?email=ada@example.org&cents=1200")
    assert status == 200
    assert get(shop, "/order?email=ada@example.org&cents=99999999") == [403, None]
    assert len(json.loads(shop.manage("pgnotifyq", "jobs", "--json"))) == 1

    with shop.worker() as worker:
        worker.wait_for("job.completed", job_id=made["result"])
    receipt = {"status": "SUCCESSFUL", "receipt": "Dear ada@example.org, you have paid 12.00.", "attempts": 1}
    assert get(shop, f"/receipt/{made['result']}") == [200, receipt]


def get(shop: Project, url: str) -> Any:
    """Return what the shop answers: the status, and the JSON of what went well."""
    ended = shop.python("-c", GET, url)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
