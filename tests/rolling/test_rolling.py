"""Old and new releases side by side on one schema. Ten times, and longer: `python -m tests.rolling`."""

from __future__ import annotations

import signal
import zipfile
from typing import TYPE_CHECKING

import pytest

from pgnotifyq.ledger.schema import code_version
from tests.rolling.stage import PATIENCE_SECONDS, WHEEL, open_deploy, roll

if TYPE_CHECKING:
    from pathlib import Path


def test_wheel_is_of_an_older_schema() -> None:
    """Or nothing here would be proved of two releases."""
    with zipfile.ZipFile(WHEEL) as wheel:
        versions = [int(name.rsplit("/", 1)[1][:4]) for name in wheel.namelist() if "_sql/migrations/0" in name]
    assert max(versions) < code_version()


def test_old_processes_run_the_old_release(blank_dsn: str, tmp_path: Path) -> None:
    """And new ones the new."""
    with open_deploy(blank_dsn, tmp_path) as deploy:
        for release in ("old", "new"):
            found = deploy.run(release, "-c", "import pgnotifyq; print(pgnotifyq.__file__)")
            assert found.startswith(str(deploy.old)) == (release == "old")


@pytest.mark.timeout(3 * PATIENCE_SECONDS)  # so that a wait that is in vain says what it waited for
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_rolling_deploy(blank_dsn: str, tmp_path: Path, number: signal.Signals) -> None:
    """There, back and there again, under load: nothing is lost, charged wrongly, dead, or done twice.

    What only the new release knows waits, uncharged, while only the old one runs. The roll-back leaves the schema as it is.
    """
    told = roll(blank_dsn, tmp_path, number, workers=2)
    assert told.is_well, told
    assert not told.is_void, told
    assert set(told.outcomes) == {"completed", "released" if number == signal.SIGTERM else "lost"}, told
