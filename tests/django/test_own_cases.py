"""Django's own test cases for task backends, from its source distribution, against this backend."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.django.conftest import ENDED_SECONDS_MAX, environment

django = pytest.importorskip("django", reason="Django is not installed")
if django.VERSION < (6, 0):
    pytest.skip("Django's own cases for tasks begin with 6.0; the back-port's distribution has none", allow_module_level=True)

CASES_MIN = 60  # of Django 6.0's 70


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `tests` of the source distribution of the Django that is installed, with the cases for tasks in it."""
    folder = tmp_path_factory.mktemp("django")
    version = django.get_version()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", f"django=={version}"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        pytest.skip(f"the source distribution of Django {version} cannot be had: {ended.stderr.strip().splitlines()[-1]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [member for member in tar if "/tests/tasks/" in member.name], filter="data")
    (tests,) = folder.glob("*/tests")
    return tests


@pytest.mark.timeout(10 * ENDED_SECONDS_MAX)
def test_djangos_own_cases(cases: Path, blank_dsn: str) -> None:
    """Each of them passes, but for those that `own_cases.py` leaves out, with the reason."""
    command = [sys.executable, "-m", "tests.django.own_cases", str(cases)]
    variables = {**environment(), "PGNOTIFYQ_DJANGO_DSN": blank_dsn}
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout.splitlines()[-1])
    assert {name: said for name, said in outcomes.items() if said != "passed"} == {}
    assert len(outcomes) >= CASES_MIN
