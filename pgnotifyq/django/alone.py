"""The queue's schema for a project that changes `TASKS` only, and not INSTALLED_APPS.

Django runs the migrations of applications only. When they are done, it sends a signal. This module
listens to that signal. So `manage.py migrate` brings the queue's schema to such a project, too, and
a test database has it.
"""

from __future__ import annotations

import sys
from typing import Any

from django.apps import apps
from django.db.models.signals import post_migrate

from pgnotifyq.django.connections import ask_on_database
from pgnotifyq.django.schema import schemas_in
from pgnotifyq.ledger.schema import check_schema, code_version, migrate
from pgnotifyq.model.errors import SchemaMissing, SchemaOutOfDate

APPLICATION = "pgnotifyq.django"


def listen() -> None:
    """Have `manage.py migrate` bring the schema. Any number of calls is as good as one."""
    post_migrate.connect(_bring, dispatch_uid="pgnotifyq")


def _bring(sender: Any, *, using: str, verbosity: int = 1, **given: Any) -> None:
    """Bring the schemas of a database up to this code's version, if no migration has done it.

    Django sends the signal once for each application. The first one is enough. Django also sends it
    when a test has emptied the tables. So a schema that is there already is only looked at.
    """
    if sender is not _first_told() or apps.is_installed(APPLICATION):
        return
    for name in schemas_in(using):
        try:
            ask_on_database(using, check_schema(name))
        except (SchemaMissing, SchemaOutOfDate):
            ask_on_database(using, migrate(name))
            if verbosity:
                (given.get("stdout") or sys.stdout).write(f"The queue's schema {name!r} is at version {code_version()}.\n")


def _first_told() -> Any:
    return next((application for application in apps.get_app_configs() if application.models_module is not None), None)
