"""Every example of the README is run; its diagram and its two lines are what the project has."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

import pgnotifyq.aio
from pgnotifyq.cli.app import app
from pgnotifyq.model.states import as_mermaid
from tests.pages import as_url

README = Path(__file__).parent.parent / "README.md"


def example(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_program_runs_as_it_is_printed(dsn: str, tmp_path: Path) -> None:
    """Copied into files and run with an address, it prints what it promises."""
    (tmp_path / "jobs.py").write_text(example("jobs"))
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    command = [sys.executable, "-c", example("program")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "completed {'thumbnail': 'a.png@64'}"


def test_the_worker_runs_what_was_enqueued_with_its_rows(dsn: str, tmp_path: Path) -> None:
    """A picture and its job are there, or neither; and the worker that is printed runs it."""
    (tmp_path / "jobs.py").write_text(example("jobs"))

    class Base(orm.DeclarativeBase):
        pass

    class Picture(Base):
        __tablename__ = "pictures"
        path: orm.Mapped[str] = orm.mapped_column(primary_key=True)

    names: dict[str, Any] = {"pgnotifyq": pgnotifyq, "AsyncSession": AsyncSession, "Picture": Picture}
    exec(example("jobs"), names)
    exec(example("enqueue"), names)

    async def main() -> None:
        engine = create_async_engine(as_url(dsn).replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with pgnotifyq.aio.open_client(dsn) as queue:
            await names["add_picture"](queue, AsyncSession(engine), "a.png")
            with pytest.raises(IntegrityError):
                await names["add_picture"](queue, AsyncSession(engine), "a.png")
            [job] = await queue.jobs()
            assert (await queue.wait(job.id, timeout_seconds=60)).result == {"thumbnail": "a.png@64"}
            assert len(await queue.jobs()) == 1

    export, migrate, work = example("worker").strip().splitlines()
    assert export.startswith("export PGNOTIFYQ_DSN=")
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    subprocess.run([sys.executable, *migrate.split()[1:]], env=environment, check=True, cwd=tmp_path)
    with subprocess.Popen([sys.executable, *work.split()[1:]], env=environment, cwd=tmp_path) as worker:
        try:
            asyncio.run(main())
        finally:
            worker.terminate()


def test_the_sql_runs_as_it_is_printed(dsn: str) -> None:
    """The function enqueues, the update cancels."""
    with psycopg.connect(dsn, autocommit=True) as session:
        enqueue, cancel = example("sql").strip().split("\n\n")
        session.execute(enqueue)
        session.execute(cancel)
        assert session.execute("select status from pgnotifyq.jobs").fetchall() == [("cancelled",)]


def test_the_diagram_is_drawn_from_the_table() -> None:
    """The state diagram cannot lag behind model/states.py."""
    assert f"```mermaid\n{as_mermaid()}\n```" in README.read_text(encoding="utf-8")


def test_the_ci_runs_the_test_line() -> None:
    """What newcomers copy is what CI runs."""
    ci = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    line = next(line for line in README.read_text(encoding="utf-8").splitlines() if "-m pytest" in line)
    install, test = line.split(" && ")
    assert install.removeprefix("python -m pip install ") in ci
    assert test in ci


def test_every_command_is_named() -> None:
    """And no other."""
    named = re.search(r"`python -m pgnotifyq` with (.*?)\. Each", README.read_text(encoding="utf-8"), re.DOTALL)
    assert named is not None
    words = {word.split()[0] for word in re.findall(r"`([^`]+)`", named[1])}
    assert words == {name for name in app if not name.startswith("-")}
