"""docs/testing.md: its blocks are a program and a suite, and they are run as one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugin.test_plugin import run, suite, suite_with_server

__all__ = ["suite", "suite_with_server"]

pytest_plugins = ["pytester"]
PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"<!-- file: ([\w.]+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
OUTPUTS = dict(re.findall(r"<!-- output: ([\w.]+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
# What the reader of the page has: a Django project, whose test database has the schema.
CONFTEST = """
import django
import pytest
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict


@pytest.fixture(scope="session", autouse=True)
def django_database(pgnotifyq_databases):
    parts = conninfo_to_dict(pgnotifyq_databases.take())
    settings.configure(USE_TZ=True, DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
        "HOST": parts["host"], "PORT": parts.get("port", ""), "PASSWORD": parts.get("password", ""),
    }})
    django.setup()
    yield
    from django.db import connection

    connection.close()
"""


def test_every_block_is_run(suite_with_server: pytest.Pytester) -> None:
    """All tests of the page pass, and say what the page says that they say."""
    assert len(FILES) + len(OUTPUTS) + 1 == PAGE.count("```") / 2  # but the line that installs
    for name, text in {**FILES, "conftest.py": CONFTEST}.items():
        (suite_with_server.path / name).write_text(text, encoding="utf-8")
    told = run(suite_with_server, "-s")
    told.assert_outcomes(passed=sum(text.count("def test_") for text in FILES.values()))
    for said in OUTPUTS.values():
        assert said in told.stdout.str()
