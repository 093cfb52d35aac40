"""The annotation of `connection=` takes what the libraries' own types say, and no address.

mypy checks this file as any other: each mistake is marked, and a mark without a mistake is an error. pyright, where it is installed, is
asked to do the same.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncpg
    import asyncpg.pool
    import psycopg
    import sqlalchemy
    from django.utils.connection import ConnectionProxy
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    import pgnotifyq


async def taken(
    client: pgnotifyq.Client,
    ours: pgnotifyq.Connection[Any],
    psycopgs: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
    asyncpgs: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy,
    sqlalchemys: sqlalchemy.Connection | Session | scoped_session[Session],
    awaited: AsyncConnection | AsyncSession | async_scoped_session[AsyncSession],
    djangos: ConnectionProxy,
) -> None:
    """Give a client each; this is not run."""
    for connection in (ours, psycopgs, asyncpgs, sqlalchemys, awaited, djangos, None):
        await client.enqueue("resize", connection=connection)
    await client.enqueue_many([], connection=sqlalchemys)


async def refused(client: pgnotifyq.Client) -> None:
    """Give a client what is no connection; this is not run."""
    await client.enqueue("resize", connection="postgresql://localhost/app")  # type: ignore[call-overload]
    await client.enqueue("resize", connection=5432)  # type: ignore[call-overload]
    await client.enqueue_many([], connection={"host": "localhost"})  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright(tmp_path: Path) -> None:
    """It finds the three mistakes, and no others. Of a call with overloads it may say two things."""
    program = tmp_path / "program.py"
    text = Path(__file__).read_text(encoding="utf-8")
    program.write_text(re.sub(r"  # type: ignore\[.*\]", "  # wrong", text), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(program)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    wrong = [place for place, line in enumerate(program.read_text(encoding="utf-8").splitlines(), 1) if line.endswith("# wrong")]
    found = sorted({int(line.split(":")[1]) for line in ran.stdout.splitlines() if " - error: " in line})
    assert found == wrong, ran.stdout
