"""Completion of words: in a shell as people have it, after its script was read."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STARTS = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}


def typed(shell: str, folder: Path, lines: list[str], words: list[str]) -> str:
    """Type into a shell in a terminal, each line when the word before has been shown; return all that was shown."""
    parent, child = pty.openpty()
    environment = {**os.environ, "HOME": str(folder), "TERM": "dumb", "PS1": "$ ", "INPUTRC": "/dev/null", "COLUMNS": "200"}
    process = subprocess.Popen(
        [shell, *STARTS[shell]], stdin=child, stdout=child, stderr=child, cwd=folder, env=environment, start_new_session=True
    )
    os.close(child)
    shown = ""
    try:
        for line, word in zip(lines, words, strict=True):
            os.write(parent, line.encode())
            begin, deadline = len(shown), time.monotonic() + PATIENCE_SECONDS
            while word not in shown[begin:]:
                assert time.monotonic() < deadline, shown
                if select.select([parent], [], [], 1)[0]:
                    shown += os.read(parent, 4096).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    return shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_in_bash(run: Callable[..., Any], tmp_path: Path) -> None:
    """A command's beginning is completed, an option's, and that of a command of a group."""
    (tmp_path / "script").write_text(run("completion", "bash").out)
    # What is completed is echoed with the rest of the line; `true` in its place would print nothing.
    (tmp_path / "pgnotifyq").write_text('#!/bin/sh\necho "told: $*"\n')
    (tmp_path / "pgnotifyq").chmod(0o755)
    shown = typed(
        "bash",
        tmp_path,
        [
            "PATH=$PWD:$PATH; . ./script && echo re''ady\n",
            "pgnotifyq enq\t --prio\tk\n",
            "pgnotifyq db ps\t\n",
            "pgnotifyq completion f\t\n",
        ],
        ["ready", "told: enqueue --priority k", "told: db psql", "told: completion fish"],
    )
    assert "command not found" not in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_read_by_its_shell(run: Callable[..., Any], shell: str, tmp_path: Path) -> None:
    """Without a complaint; and it names the commands."""
    script = run("completion", shell).out
    assert all(name in script for name in ("enqueue", "doctor", "psql"))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    checked = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_installing_it(tmp_path: Path) -> None:
    """It is written below the home, once, however often it is said; and it is said where."""
    environment = {**os.environ, "HOME": str(tmp_path)}
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-m", "pgnotifyq", "completion", "bash", "--install"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0
        written = tmp_path / ".local/share/bash-completion/completions/pgnotifyq"
        assert (ran.stdout, str(written) in ran.stderr) == ("", True)
        assert "complete -F _pgnotifyq pgnotifyq" in written.read_text()
        assert (tmp_path / ".bashrc").read_text().count(f'. "{written}"') == 1


def test_shell_that_is_not_known(run: Callable[..., Any]) -> None:
    """Those that are, are named."""
    ran = run("completion", "tcsh")
    assert ran.code == 2
    assert "fish" in ran.err
