"""What is wrong with the settings of a backend, for `manage.py check`. No database is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.checks import Error, Warning  # noqa: A004  # as Django calls it
from django.db import connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from pgnotifyq.model.errors import InvalidName
from pgnotifyq.model.names import check_queue_name, check_schema_name
from pgnotifyq.model.new_job import MAX_ATTEMPTS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = frozenset({"database", "schema", "max_attempts"})


def check_settings_of(backend: Any) -> Iterator[Any]:
    """Yield what is wrong with the settings of a PgnotifyqBackend."""
    where = f"TASKS[{backend.alias!r}]"
    unknown = ", ".join(sorted(map(str, set(backend.options) - OPTIONS)))
    if unknown:
        yield Error(f"{where}: OPTIONS has no {unknown}.", hint=f"Use {', '.join(sorted(OPTIONS))}.", id="pgnotifyq.E001")
    if backend.database not in connections:
        aliases = ", ".join(connections)
        yield Error(
            f"{where}: DATABASES has no {backend.database!r}.",
            hint=f"OPTIONS['database'] is one of {aliases}.",
            id="pgnotifyq.E002",
        )
    elif connections[backend.database].vendor != "postgresql":
        yield Error(
            f"{where}: the database {backend.database!r} is not PostgreSQL, but {connections[backend.database].vendor}.",
            hint="Name one with the engine django.db.backends.postgresql in OPTIONS['database'].",
            id="pgnotifyq.E003",
        )
    elif not is_psycopg3:
        yield Error(f"{where}: Django uses psycopg2.", hint="pip install 'psycopg>=3.3' and restart.", id="pgnotifyq.E004")
    try:
        check_schema_name(backend.schema)
    except InvalidName as error:
        yield Error(f"{where}: {error}.", id="pgnotifyq.E005")
    for name in backend.queue_names:
        try:
            check_queue_name(name)
        except InvalidName as error:
            yield Error(f"{where}: QUEUES: {error}.", id="pgnotifyq.E006")
    if not apps.is_installed("pgnotifyq.django"):
        yield Warning(
            f"{where}: pgnotifyq.django is not in INSTALLED_APPS. The admin has no list of jobs, `manage.py` has no command pgnotifyq, and "
            "`check --database` does not look at the queue's schema. Everything else works.",
            hint="INSTALLED_APPS += ['pgnotifyq.django']; or do without: `python -m pgnotifyq.django worker`, and this in "
            "SILENCED_SYSTEM_CHECKS.",
            id="pgnotifyq.W003",
        )
    attempts = backend.max_attempts
    is_number = isinstance(attempts, int) and not isinstance(attempts, bool)
    if attempts is not None and not (is_number and 1 <= attempts <= MAX_ATTEMPTS_MAX):
        hint = f"Use 1 to {MAX_ATTEMPTS_MAX}."
        yield Error(f"{where}: OPTIONS['max_attempts'] {attempts!r} is out of range.", hint=hint, id="pgnotifyq.E007")
