"""The queue's schema at version 22."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from pgnotifyq.django import schema


def forwards(_: Any, editor: Any) -> None:
    """Bring the schemas up."""
    schema.migrate(editor.connection.alias)


class Migration(migrations.Migration):
    """A step of `manage.py migrate`."""

    dependencies = (("pgnotifyq", "0011_schema_21"),)
    operations = (migrations.RunPython(forwards, migrations.RunPython.noop),)
