"""The queue's schema at version 24."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from pgnotifyq.django import schema


def forwards(_: Any, editor: Any) -> None:
    """Bring the schemas up."""
    schema.migrate(editor.connection.alias)


class Migration(migrations.Migration):
    """A step of `manage.py migrate`."""

    dependencies = (("pgnotifyq", "0013_schema_23"),)
    operations = (migrations.RunPython(forwards, migrations.RunPython.noop),)
