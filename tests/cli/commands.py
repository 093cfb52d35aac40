"""Runs `python -m pgnotifyq`: a process for each command, forked from one that has imported the package.

The import takes most of a second, and a command takes some milliseconds. All else of a process is as ever: its environment, its
streams, its folder, its exit code. `test_commands.py` compares it with a process that begins with Python.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ENDED_SECONDS_MAX = 90  # bounds a test that fails
# Python has read these before it runs any code.
READ_AT_START = ("PYTHON", "LC_", "LANG", "TZ")


@contextmanager
def open_commands() -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Give a function that runs a command, with arguments, a standard input and an environment, in the folder of the caller.

    It returns the exit code, and what was written to standard output and error.
    """
    ours, theirs = socket.socketpair()
    # Its streams are pipes, as those of its children are not terminals.
    with (
        ours,
        subprocess.Popen(
            [sys.executable, "-m", "tests.cli.commands", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) as parent,
    ):  # fmt: skip
        theirs.close()
        ours.settimeout(ENDED_SECONDS_MAX)

        def run(arguments: Sequence[str], stdin: str, environment: Mapping[str, str]) -> tuple[int, str, str]:
            with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                given.write(stdin.encode())
                given.seek(0)
                asked = json.dumps({"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd())})
                socket.send_fds(ours, [len(asked.encode()).to_bytes(4)], [file.fileno() for file in (given, out, err)])
                ours.sendall(asked.encode())
                code = int.from_bytes(ours.recv(4), signed=True)
                out.seek(0)
                err.seek(0)
                return code, out.read().decode(), err.read().decode()

        try:
            yield run
        finally:
            os.killpg(parent.pid, signal.SIGKILL)  # and a command that has not ended


def serve(asked: socket.socket) -> None:
    """Run each command that is asked for, in a child, and tell how it has ended."""
    for name in ("pgnotifyq.cli.app", "cyclopts.help", "rich.markdown"):  # the last two are wanted for help
        importlib.import_module(name)
    gc.freeze()  # a child collects and copies nothing of it
    while True:
        size, files, _, _ = socket.recv_fds(asked, 4, 3)
        if not size:
            return
        wanted = json.loads(asked.recv(int.from_bytes(size), socket.MSG_WAITALL))
        child = os.fork()
        if child == 0:
            asked.close()
            become(wanted, files)
            return
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        asked.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))


def become(wanted: dict[str, Any], files: Sequence[int]) -> None:
    """Do in this process what `python -m pgnotifyq` does in one of its own."""
    from pgnotifyq.__main__ import main

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    sys.argv[1:] = wanted["arguments"]
    sys.path[0] = wanted["folder"]
    main()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked_for:
        serve(asked_for)
