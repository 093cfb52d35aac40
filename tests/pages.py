"""Runs the pages of docs/ as their readers do: files are written, commands are typed, what is printed is compared.

Each fence of a page has a mark in the line before it:

    <!-- file: NAME -->         the block is the file NAME
    <!-- run -->                the block is typed into a shell, and must end well
    <!-- prints -->             the block is what the last `run` has printed; `...` stands for anything
    <!-- serve -->              the block is a command that goes on until the page's end; with --port, it answers when the next block is run
    <!-- install -->            the block is `pip install`: what it names is what the extra `test` has
    <!-- test: NAME -->         another test runs the block; it names the page
    <!-- peer: NAME -->         the code of another queue, which is not installed
    <!-- not run: REASON -->    nobody can, or need

A page is walked in a folder of its own, with a database of its own in PGNOTIFYQ_DSN. The port 8000 is replaced by a free one.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs
from psycopg.conninfo import conninfo_to_dict

from pgnotifyq.embedded import _free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"file", "peer", "run", "prints", "serve", "install", "test", "not run"}
PATIENCE_SECONDS = 60.0


@attrs.frozen
class Block:
    """A fence of a page, and its mark."""

    kind: str  # one of KINDS; empty without a mark
    name: str  # what stands behind the mark's colon
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return a page's fences, in order."""
    found = []
    for mark, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        kind, _, name = mark.partition(":")
        found.append(Block(kind.strip(), name.strip(), language, text))
    return found


def named(page: Path) -> dict[str, str]:
    """Return the blocks that another test runs, by name."""
    return {block.name: block.text for block in blocks(page) if block.kind == "test"}


def as_url(dsn: str) -> str:
    """Return an address as people write it, and as SQLAlchemy reads it."""
    parts = conninfo_to_dict(dsn)
    user = quote(str(parts.get("user") or "postgres"), safe="")
    password = f":{quote(str(parts['password']), safe='')}" if parts.get("password") else ""
    host, port = str(parts.get("host") or "localhost"), parts.get("port") or 5432
    if host.startswith("/"):
        return f"postgresql://{user}{password}@/{parts['dbname']}?host={quote(host, safe='')}&port={port}"
    return f"postgresql://{user}{password}@{host}:{port}/{parts['dbname']}"


def walk(page: Path, folder: Path, dsn: str, *, environment: dict[str, str] | None = None) -> None:
    """Do what a page says, from its first block to its last."""
    port = str(_free_port())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PGNOTIFYQ_DSN": as_url(dsn),
        "PYTHONPATH": str(folder),
        "PYTHONUNBUFFERED": "1",
        **(environment or {}),
    }
    printed = ""
    with ExitStack() as stack:
        for block in blocks(page):
            text = block.text.replace("8000", port)
            if block.kind == "file":
                (folder / block.name).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.name).write_text(text)
            elif block.kind == "run":
                ran = subprocess.run(
                    ["sh", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True, check=False,
                    timeout=PATIENCE_SECONDS,
                )  # fmt: skip
                assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}\n{_said(folder)}"
                printed = ran.stdout
            elif block.kind == "prints":
                pattern = ".*".join(re.escape(part) for part in text.strip().split("..."))
                told = f"promised:\n{text}\nprinted:\n{printed}\n{_said(folder)}"
                assert re.fullmatch(pattern, printed.strip(), re.DOTALL), told
            elif block.kind == "serve":
                stack.enter_context(serving(text, folder, environment, port))


@contextmanager
def serving(
    command: str, folder: Path, environment: dict[str, str], port: str, *, log_folder: Path | None = None
) -> Iterator[None]:
    """Run a command in the background for the length of a block; at its end, ask it to end as by Ctrl-C.

    If the command names the port, the block begins when the port answers.
    """
    logs = log_folder or folder
    with (logs / f"said-{time.monotonic_ns()}").open("wb") as log:
        process = subprocess.Popen(["sh", "-ec", f"exec {command.strip()}"], cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while port in command and not _answers(int(port)):
                assert process.poll() is None and time.monotonic() < deadline, _said(logs)
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()
                process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _said(folder: Path) -> str:
    return "\n".join(_logs(folder))


def _logs(folder: Path) -> Iterator[str]:
    for log in sorted(folder.glob("said-*")):
        yield log.read_text(errors="replace")[-3000:]
