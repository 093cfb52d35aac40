"""Django's own tasks on pgnotifyq: a backend, `manage.py pgnotifyq`, checks, migrations, an admin.

A project's settings:

    TASKS = {"default": {"BACKEND": "pgnotifyq.django.PgnotifyqBackend"}}
    INSTALLED_APPS = [..., "pgnotifyq.django"]  # for the admin and `manage.py pgnotifyq`

The names below come from Django 6's `django.tasks`, or from its back-port `django-tasks` on Django
5.2. This module imports them when they are asked for. Django imports this module at its start,
before anything is set up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgnotifyq.django.backend import PgnotifyqBackend
    from pgnotifyq.django.declaring import PgnotifyqTask, PgnotifyqTaskContext, task
    from pgnotifyq.django.scheduling import every

__all__ = ["PgnotifyqBackend", "PgnotifyqTask", "PgnotifyqTaskContext", "every", "task"]


def __getattr__(name: str) -> object:
    if name == "PgnotifyqBackend":
        from pgnotifyq.django.alone import listen
        from pgnotifyq.django.backend import PgnotifyqBackend

        listen()
        return PgnotifyqBackend
    if name == "every":
        from pgnotifyq.django.scheduling import every

        return every
    if name in __all__:
        from pgnotifyq.django import declaring

        return getattr(declaring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
