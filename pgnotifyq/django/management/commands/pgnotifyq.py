"""`manage.py pgnotifyq`: the queue's own commands, on the database that TASKS names."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import autoreload

from pgnotifyq.django.backend import backend_of
from pgnotifyq.django.connections import address_of
from pgnotifyq.django.options import own_options
from pgnotifyq.django.registry import registry
from pgnotifyq.django.waiting import Waiting, import_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgnotifyq.django.backend import PgnotifyqBackend

APP = "pgnotifyq.django.registry:registry"
EXIT_RELOAD = 3  # if a process ends with it, Django's autoreload starts it anew
OF_OTHERS = frozenset({"db", "demo"})  # commands that ask no database of DATABASES
HELP = """\
The queue's commands, on the database that TASKS names: worker, migrate, enqueue, jobs, show, explain, stack, cancel, dead, requeue,
workers, stats, top, doctor. `manage.py pgnotifyq COMMAND --help` says what each takes. Two options are Django's: --backend ALIAS (of TASKS; default:
the first of pgnotifyq.django.PgnotifyqBackend) and, of worker, --reload (start anew when the code changes).
"""


class Command(BaseCommand):
    """Hands on to `python -m pgnotifyq`, with the project's address, schema and tasks."""

    help = HELP
    called_as = ("manage.py", "pgnotifyq")
    requires_system_checks: Sequence[str] = ()  # worker asks for them itself

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take everything: the commands read their own options."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="A command, and what it takes.")

    def handle(self, *_: Any, arguments: list[str], **__: Any) -> None:
        """Run one command; the process ends with its exit code."""
        given, rest = own_options().parse_known_args(arguments)
        if not rest:
            self.print_help(*self.called_as)
            return
        code = self._run(rest[0], rest[1:], given)
        if code:
            sys.exit(code)

    def _run(self, command: str, rest: list[str], given: argparse.Namespace) -> int:
        from pgnotifyq.cli.app import run

        if command in OF_OTHERS or command.startswith("-") or {"--help", "-h"} & set(rest):
            return run([command, *rest])
        backend = backend_of(given.backend)
        arguments = [command, *rest]
        if not _says(rest, "--dsn"):
            arguments += ["--dsn", address_of(backend.database)]
        if not _says(rest, "--schema"):
            arguments += ["--schema", backend.schema]
        if command != "worker":
            return run(arguments)
        if not _says(rest, "--queue"):
            for name in backend.queue_names or ["default"]:
                arguments += ["--queue", name]
        if not _says(rest, "--app"):
            arguments += ["--app", APP]

        if given.reload and os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            return _start_anew_after_changes()
        self.check()  # imports the URLs, too, and so the views and their tasks
        import_tasks()
        _log_once()
        return _work(backend, lambda: _reloading(lambda: run(arguments)) if given.reload else run(arguments))


def _says(arguments: list[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def _work(backend: PgnotifyqBackend, run: Callable[[], int]) -> int:
    """Run a worker, and beside it a thread that imports the tasks of waiting jobs."""
    registry.alias = backend.alias
    waiting, ended = Waiting(backend), threading.Event()
    waiting.look()
    threading.Thread(target=waiting.look_until, args=(ended,), name="pgnotifyq-waiting", daemon=True).start()
    try:
        return run()
    finally:
        ended.set()


def _log_once() -> None:
    """If the project says nothing of logging, have only the worker's log on standard error.

    With DEBUG, Django's own settings write Django's log there. The worker writes that, too.
    """
    logger = logging.getLogger("django")
    if not settings.LOGGING:
        for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:
            logger.removeHandler(handler)


def _start_anew_after_changes() -> int:
    """Run this command in a child, and again for as long as it ends with EXIT_RELOAD.

    It does what Django's `restart_with_reloader` does. But a worker is drained: this process hands
    SIGTERM on to the child. Ctrl-C reaches the child from the terminal.
    """
    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    child: subprocess.Popen[bytes] | None = None

    def hand_on(*_: object) -> None:
        if child is None:
            sys.exit(0)
        child.terminate()

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGINT, lambda *_: None)
    while True:
        child = subprocess.Popen(autoreload.get_child_arguments(), env=environment, close_fds=False)  # noqa: S603  # this command
        code = child.wait()
        if code != EXIT_RELOAD:
            return code


def _reloading(run: Callable[[], int]) -> int:
    """Run a worker that drains when a file has changed. Its exit code says that it starts anew.

    Django's own loop runs the program in a second thread. A worker needs the first thread, for its
    signals. So the second thread looks at the files. It sees changes of what is imported by now.
    """
    has_changed = threading.Event()

    def drain(**_: Any) -> bool:
        if not has_changed.is_set():
            has_changed.set()
            os.kill(os.getpid(), signal.SIGTERM)
        return True  # Django's loop need not end the process

    autoreload.file_changed.connect(drain, weak=False)
    reloader = autoreload.get_reloader()
    threading.Thread(target=reloader.run, args=(threading.current_thread(),), name="pgnotifyq-reload", daemon=True).start()
    code = run()
    return EXIT_RELOAD if has_changed.is_set() else code
