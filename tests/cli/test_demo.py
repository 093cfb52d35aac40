"""The demo on a small folder of real files: it ends by itself, every check holds, and it leaves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_the_demo_cancels_kills_recovers_and_checks(run: Callable[..., Any], dsn: str, tmp_path: Path) -> None:
    """Exit code 0 means that every hash equals one computed directly; its schema is gone afterwards."""
    for number in range(1500):
        (tmp_path / f"{number}.txt").write_text(f"line {number}\n" * (number % 50 + 1))
    ran = run("demo", str(tmp_path))
    assert ran.code == 0, ran.out + ran.err
    assert "1500 of 1500" in ran.out
    assert "SIGKILL" in ran.out
    with psycopg.connect(dsn) as session:
        assert session.execute("select count(*) from pg_namespace where nspname = 'pgnotifyq_demo'").fetchone() == (0,)
        # The demo's own session is gone too.
        found = session.execute("select count(*) from pg_stat_activity where application_name like 'pgnotifyq%'").fetchone()
        assert found == (0,)


def test_an_empty_folder_is_told(run: Callable[..., Any], tmp_path: Path) -> None:
    """With exit code 1."""
    ran = run("demo", str(tmp_path))
    assert ran.code == 1
    assert "no files" in ran.out
