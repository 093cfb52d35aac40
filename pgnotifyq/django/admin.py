"""Jobs and dead letters in Django's admin: to be looked at, cancelled and requeued.

A user who may view them sees them. A user who may change them may also cancel and requeue: the
permissions are `pgnotifyq.change_queuedjob` and `pgnotifyq.change_deadjob`. Nobody edits a row: a
job is changed by the queue's own verbs.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages

from pgnotifyq.django.backend import PgnotifyqBackend, backend_of
from pgnotifyq.django.framework import TaskResultDoesNotExist
from pgnotifyq.django.models import DeadJob, QueuedJob
from pgnotifyq.model.errors import IllegalTransition, UniqueKeyHeld

if TYPE_CHECKING:
    from django.db.models import QuerySet
    from django.http import HttpRequest


class _Looked(admin.ModelAdmin):
    """What both lists have in common."""

    show_full_result_count = False  # a count of all rows reads all rows
    list_per_page = 50
    search_fields = ("id", "job_type__startswith")
    search_help_text = "An id, or how the path of a task begins"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:  # noqa: ARG002
        return self.model._default_manager.using(_backend().database)  # noqa: SLF001  # Django's public name

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:  # noqa: ARG002
        return False

    def has_view_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return super().has_view_permission(request, obj) or self.has_act_permission(request)

    def has_act_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may cancel and requeue."""
        return bool(request.user.has_perm(f"pgnotifyq.change_{self.opts.model_name}"))

    @admin.display(description="error")
    def first_line(self, row: Any) -> str:
        """Return the beginning of the error."""
        return (row.error_message or "").partition("\n")[0][:200]


def _backend() -> PgnotifyqBackend:
    return backend_of(None)


@admin.register(QueuedJob)
class QueuedJobAdmin(_Looked):
    """Jobs."""

    list_display = (
        "id",
        "job_type",
        "queue_name",
        "status",
        "priority",
        "attempts",
        "scheduled_at",
        "completed_at",
        "first_line",
    )
    list_filter = ("status",)
    actions = ("cancel",)

    @admin.action(permissions=["act"], description="Cancel the selected jobs")
    def cancel(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Cancel what was selected, each by itself."""
        became: Counter[str] = Counter()
        for job_id in queryset.values_list("id", flat=True):
            try:
                became[_backend().cancel(str(job_id), f"by {request.user} in the admin")] += 1
            except TaskResultDoesNotExist:
                became["gone"] += 1
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(became.items()))
        self.message_user(request, f"Jobs: {said}.", messages.SUCCESS)


@admin.register(DeadJob)
class DeadJobAdmin(_Looked):
    """Dead letters."""

    list_display = ("id", "job_type", "queue_name", "reason", "attempts", "died_at", "first_line")
    list_filter = ("reason",)
    actions = ("requeue",)

    @admin.action(permissions=["act"], description="Requeue the selected dead letters")
    def requeue(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Bring back what was selected, each by itself."""
        done = 0
        for job_id in queryset.values_list("id", flat=True):
            try:
                _backend().requeue(str(job_id))
                done += 1
            except (TaskResultDoesNotExist, UniqueKeyHeld, IllegalTransition) as error:
                self.message_user(request, f"{job_id} was not requeued: {error}", messages.WARNING)
        self.message_user(request, f"{done} requeued.", messages.SUCCESS)
