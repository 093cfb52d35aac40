"""The application: `manage.py pgnotifyq`, migrations, checks, an admin list."""

from __future__ import annotations

from django.apps import AppConfig


class PgnotifyqConfig(AppConfig):
    """`pgnotifyq.django` in INSTALLED_APPS."""

    name = "pgnotifyq.django"
    label = "pgnotifyq"
    verbose_name = "Job queue"

    def ready(self) -> None:
        """Have the checks known."""
        from pgnotifyq.django import checks  # noqa: F401  # they register themselves
