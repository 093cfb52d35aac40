"""What the shop keeps."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """An order of a customer."""

    email = models.EmailField()
    cents = models.PositiveIntegerField()
    receipt = models.TextField(blank=True)  # written by a task

    class Meta:  # noqa: D106  # Django's word for settings
        app_label = "shop"

    def __str__(self) -> str:
        return f"order {self.pk} of {self.email}"
