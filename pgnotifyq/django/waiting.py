"""If jobs wait whose type no live worker has, this worker imports the module of their task.

Most tasks are known when the worker starts. This is for tasks in modules that nothing imports.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from django.db import DatabaseError, close_old_connections
from django.utils.module_loading import autodiscover_modules

from pgnotifyq.django.registry import registry
from pgnotifyq.ledger.ask import Ask
from pgnotifyq.ledger.columns import records
from pgnotifyq.ledger.errors import said_of
from pgnotifyq.ledger.statements import query
from pgnotifyq.model.errors import PgnotifyqError

if TYPE_CHECKING:
    from pgnotifyq.django.backend import PgnotifyqBackend

_log = logging.getLogger("pgnotifyq.django")

LOOK_SECONDS = 30.0  # between two looks: as often as an idle worker looks at its queues


def import_tasks() -> None:
    """Import the module `tasks` of each application, where there is one."""
    autodiscover_modules("tasks")


class Waiting:
    """Looks for such jobs, again and again. It tells once of each type that is refused."""

    def __init__(self, backend: PgnotifyqBackend) -> None:
        self._backend = backend
        self._refused: dict[str, str] = {}

    def look(self) -> None:
        """Import the tasks of jobs that wait and that no worker serves."""
        close_old_connections()
        with suppress(PgnotifyqError, DatabaseError):  # the worker tells of a database that is away
            for path, why in import_waiting(self._backend).items():
                if self._refused.get(path) != why:
                    _log.warning("Jobs wait, uncharged, that this worker cannot run: %s", why)
                    self._refused[path] = why
        close_old_connections()

    def look_until(self, ended: threading.Event) -> None:
        """Look now and then, in a thread of its own, until the worker has ended."""
        while not ended.wait(LOOK_SECONDS):
            self.look()


def import_waiting(backend: PgnotifyqBackend) -> dict[str, str]:
    """Import the tasks of due jobs that no live worker has; return why others cannot be."""
    unserved = Ask(query("unserved", backend.schema), (), records, said_of(backend.schema))
    return registry.import_unknown([row["job_type"] for row in backend.ask(unserved) if "." in row["job_type"]])
