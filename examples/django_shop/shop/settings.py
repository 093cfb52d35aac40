"""Settings of the shop: what matters here is the last line of INSTALLED_APPS, and TASKS."""

from __future__ import annotations

import os

import django
from psycopg.conninfo import conninfo_to_dict

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "only for trying this example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = ["shop", "pgnotifyq.django"]
if django.VERSION < (6, 0):
    INSTALLED_APPS.append("django_tasks")  # the back-port of what Django has since 6.0

_ADDRESS = conninfo_to_dict(os.environ.get("PGNOTIFYQ_DSN", ""))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _ADDRESS.get("dbname", "postgres"),
        "USER": _ADDRESS.get("user", ""),
        "PASSWORD": _ADDRESS.get("password", ""),
        "HOST": _ADDRESS.get("host", ""),
        "PORT": _ADDRESS.get("port", ""),
    }
}

TASKS = {"default": {"BACKEND": "pgnotifyq.django.PgnotifyqBackend", "QUEUES": ["default", "mail"]}}
