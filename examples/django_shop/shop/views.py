"""Two pages: one makes an order, one shows what has become of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import JsonResponse

from shop.models import Order
from shop.tasks import write_receipt

if TYPE_CHECKING:
    from django.http import HttpRequest


CENTS_MAX = 1_000_000


def order(request: HttpRequest) -> JsonResponse:
    """Make an order and enqueue its receipt: both, or neither, as of one that is too large."""
    with transaction.atomic():
        made = Order.objects.create(email=request.GET["email"], cents=int(request.GET["cents"]))
        result = write_receipt.enqueue(made.pk)
        if made.cents > CENTS_MAX:
            raise PermissionDenied("an order of more than 10,000 is made by telephone")
    return JsonResponse({"order": made.pk, "result": result.id})


def receipt(_: HttpRequest, result_id: str) -> JsonResponse:
    """Show how far a receipt is."""
    result = write_receipt.get_result(result_id)
    text = result.return_value if result.is_finished and not result.errors else None
    return JsonResponse({"status": result.status, "receipt": text, "attempts": result.attempts})
