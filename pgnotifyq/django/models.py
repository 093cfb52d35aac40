"""The queue's tables as Django's models, to be read. Django neither makes nor writes them.

A job is changed by the queue's own verbs: `task.enqueue()`, `backend.cancel(id)`,
`backend.requeue(id)`.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models

from pgnotifyq.ledger.errors import SCHEMA_DEFAULT
from pgnotifyq.model.states import STORED


def _schema() -> str:
    """Return the schema of the first backend of ours. Models are made before backends can be."""
    for params in (getattr(settings, "TASKS", None) or {}).values():
        if str(params.get("BACKEND", "")).startswith("pgnotifyq.django."):
            return str((params.get("OPTIONS") or {}).get("schema", SCHEMA_DEFAULT))
    return SCHEMA_DEFAULT


def table(name: str) -> str:
    """Return what Django is to write for a table of the queue."""
    return f'"{_schema()}"."{name}"'  # Django adds no quotes to a name that has them


class QueuedJob(models.Model):
    """A row of `jobs`: waiting, running, or finished and not pruned yet."""

    id = models.UUIDField(primary_key=True)
    org_id = models.UUIDField("tenant")
    queue_name = models.CharField("queue", max_length=63)
    job_type = models.CharField("task", max_length=127)
    payload = models.JSONField()
    priority = models.SmallIntegerField()
    status = models.CharField(max_length=20, choices=[(status.value, status.value) for status in STORED])
    scheduled_at = models.DateTimeField()
    attempts = models.IntegerField()
    max_attempts = models.IntegerField(null=True)
    locked_by = models.UUIDField("worker", null=True)
    current_execution_id = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField("finished at", null=True)
    error_message = models.TextField("error", null=True)  # noqa: DJ001  # null is what the table has
    result = models.JSONField(null=True)
    progress = models.FloatField(null=True)
    progress_message = models.TextField(null=True)  # noqa: DJ001  # null is what the table has
    unique_key = models.TextField(null=True)  # noqa: DJ001  # null is what the table has
    created_at = models.DateTimeField("enqueued at")
    headers = models.JSONField(null=True)

    class Meta:  # noqa: D106  # Django's word for settings
        managed = False
        db_table = table("jobs")
        verbose_name = "job"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.job_type} {self.id}"


class DeadJob(models.Model):
    """A row of `dead_letter_jobs`: a job that will not be tried again."""

    id = models.UUIDField(primary_key=True)
    org_id = models.UUIDField("tenant")
    queue_name = models.CharField("queue", max_length=63)
    job_type = models.CharField("task", max_length=127)
    payload = models.JSONField()
    priority = models.SmallIntegerField()
    scheduled_at = models.DateTimeField()
    attempts = models.IntegerField()
    max_attempts = models.IntegerField()
    unique_key = models.TextField(null=True)  # noqa: DJ001  # null is what the table has
    created_at = models.DateTimeField("enqueued at")
    reason = models.CharField(max_length=20)
    error_message = models.TextField("error", null=True)  # noqa: DJ001  # null is what the table has
    history = models.JSONField()
    died_at = models.DateTimeField()
    headers = models.JSONField(null=True)

    class Meta:  # noqa: D106  # Django's word for settings
        managed = False
        db_table = table("dead_letter_jobs")
        verbose_name = "dead letter"
        ordering = ("-died_at",)

    def __str__(self) -> str:
        return f"{self.job_type} {self.id}"
