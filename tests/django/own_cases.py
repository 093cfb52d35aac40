"""Runs Django's own test cases of its task backends against this one.

    python -m tests.django.own_cases FOLDER

FOLDER is `tests` of Django's source distribution. The cases are Django's, unchanged but for one
thing: where they name Django's dummy or immediate backend, they are given `own_backends.py`. They run
on a test database that Django makes, whose schema comes from our migration.

The address of the server is in PGNOTIFYQ_DJANGO_DSN. The last line of output is JSON: the outcome of
each case.
"""

from __future__ import annotations

import json
import os
import sys
import unittest
from pathlib import Path
from typing import Any

# Of one capability that Django's backends lack and this one has, or of their insides.
LEFT_OUT = {
    "test_cannot_get_result": "it can",
    "test_cannot_refresh_result": "it can",
    "test_cannot_pass_run_after": "it can",
    "test_throws_keyboard_interrupt": "Ctrl-C in the process that enqueues; a worker is another process",
    "DummyBackendTestCase.test_refresh_result": "it changes a result in the dummy's own list",
    "DummyBackendTestCase.test_refresh_result_async": "the same",
    "ImmediateBackendTransactionTestCase.test_doesnt_wait_until_transaction_commit_by_default": "a worker sees what has committed",
}
MODULES = ("test_tasks", "test_dummy_backend", "test_immediate_backend")
NAMES = {
    "django.tasks.backends.dummy": "tests.django.own_backends",
    "django.tasks.backends.immediate": "tests.django.own_backends",
}


def main(folder: Path) -> None:
    """Run the cases."""
    for path in (folder / "tasks").glob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for theirs, ours in NAMES.items():
            text = text.replace(theirs, ours)
        path.write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))

    # Some call blocking doors in a loop, for the backends that they are written for ask no database.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    import django
    from django.conf import settings

    from tests.django.conftest import database_of

    settings.configure(
        INSTALLED_APPS=["pgnotifyq.django"], DATABASES={"default": database_of(os.environ["PGNOTIFYQ_DJANGO_DSN"])}, USE_TZ=True
    )
    django.setup()
    outcomes = run()
    print(json.dumps(outcomes))


def run() -> dict[str, str]:
    """Run the cases, and return what became of each."""
    from django.db import connection
    from django.test import SimpleTestCase
    from django.test.runner import DiscoverRunner

    SimpleTestCase.databases = {"default"}  # the backends that they are written for have none
    suite = unittest.TestSuite(
        test
        for test in _flat(unittest.defaultTestLoader.loadTestsFromNames([f"tasks.{name}" for name in MODULES]))
        if _why_left_out(test) is None
    )
    runner = DiscoverRunner(interactive=False, verbosity=0)
    runner.setup_test_environment()
    databases = runner.setup_databases()
    result = _Outcomes()
    suite.run(result)
    # Threads of asgiref's keep theirs, and a database that is in use is not dropped.
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        )
    runner.teardown_databases(databases)
    return result.outcomes


class _Outcomes(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: Any) -> None:  # noqa: N802  # unittest's name
        super().startTest(test)
        self.outcomes[test.id()] = "passed"

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.outcomes[test.id()] = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self.outcomes[test.id()] = self.errors[-1][1]

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self.outcomes[test.id()] = self.failures[-1][1]


def _flat(suite: Any) -> Any:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from _flat(each)
        else:
            yield each


def _why_left_out(test: Any) -> str | None:
    name = test._testMethodName
    return LEFT_OUT.get(name) or LEFT_OUT.get(f"{type(test).__name__}.{name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
