"""What `manage.py check --database` says of the queue's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.checks import Tags, Warning, register  # noqa: A004  # as Django calls it
from django.db import Error as DatabaseError

from pgnotifyq.ledger.schema import check_schema
from pgnotifyq.model.errors import PgnotifyqError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@register(Tags.database)
def check_schemas(databases: Sequence[str] | None = None, **_: Any) -> Iterator[Any]:
    """Yield what is wrong with the schemas of backends.

    These are warnings, because `manage.py migrate` runs the checks before it mends a schema.
    """
    from pgnotifyq.django.backend import backends

    for backend in backends():
        if backend.database not in (databases or ()) or any(backend.check()):
            continue
        try:
            backend.ask(check_schema(backend.schema))
        except PgnotifyqError as error:
            hint = "Run `manage.py migrate`, with pgnotifyq.django in INSTALLED_APPS, or `python -m pgnotifyq migrate`."
            yield Warning(f"TASKS[{backend.alias!r}]: {error}.", hint=hint, id="pgnotifyq.W001")
        except DatabaseError as error:
            yield Warning(f"TASKS[{backend.alias!r}]: the schema cannot be looked at: {error}.", id="pgnotifyq.W002")
