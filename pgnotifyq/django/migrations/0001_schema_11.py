"""The queue's schema at version 11.

Each version of the schema has a migration here. So `manage.py migrate` of a release brings what the
release needs. Each migration does the same: it migrates to the version of the code.
"""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from pgnotifyq.django import schema
from pgnotifyq.django.models import table


def forwards(_: Any, editor: Any) -> None:
    """Bring the schemas up."""
    schema.migrate(editor.connection.alias)


def backwards(_: Any, editor: Any) -> None:
    """Take them away."""
    schema.drop(editor.connection.alias)


class Migration(migrations.Migration):
    """A step of `manage.py migrate`."""

    initial = True
    operations = (
        migrations.RunPython(forwards, backwards),
        # Django does not make these, and looks at no column of theirs but the key.
        migrations.CreateModel(
            name="QueuedJob",
            fields=[("id", models.UUIDField(primary_key=True, serialize=False))],
            options={"verbose_name": "job", "db_table": table("jobs"), "ordering": ("-id",), "managed": False},
        ),
        migrations.CreateModel(
            name="DeadJob",
            fields=[("id", models.UUIDField(primary_key=True, serialize=False))],
            options={
                "verbose_name": "dead letter",
                "db_table": table("dead_letter_jobs"),
                "ordering": ("-died_at",),
                "managed": False,
            },
        ),
    )
