"""Every program in examples/ is run as a newcomer runs it, and does what it is there to show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTED = {
    "signup.py": """\
ada@example.org has an account, and a mail is on its way
grace@example.org has an account, and a mail is on its way
ada@example.org has an account already: nothing was enqueued
2 mails to send
""",
    "encode_video.py": """\
short: completed short.mp4
long: cancelled
left: ['short.mp4']
""",
}


@pytest.mark.parametrize("name", sorted(PRINTED))
def test_program_prints_what_it_promises(name: str, dsn: str) -> None:
    """Run with an address and nothing else, it ends well and prints this."""
    environment = {**os.environ, "PGNOTIFYQ_DSN": dsn}
    command = [sys.executable, str(EXAMPLES / name)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=EXAMPLES.parent)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == PRINTED[name]


def test_every_program_is_run_and_listed() -> None:
    """None is forgotten, here or in the list."""
    programs = {file.name for file in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert programs == set(PRINTED)
    assert all(f"[{name}]({name})" in listed for name in programs)
