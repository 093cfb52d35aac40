"""What the shop does in the background."""

from __future__ import annotations

from django.db import transaction

from pgnotifyq.django import task
from shop.models import Order


@task(queue_name="mail", max_attempts=5, timeout_seconds=30)
def write_receipt(order_id: int) -> str:
    """Write the receipt of an order, once: a second run finds it written."""
    with transaction.atomic():
        order = Order.objects.select_for_update().get(pk=order_id)
        if not order.receipt:
            order.receipt = f"Dear {order.email}, you have paid {order.cents / 100:.2f}."
            order.save(update_fields=["receipt"])
    return order.receipt


@task
async def count_orders() -> int:
    """Count the orders; async, by the ORM's async names."""
    return await Order.objects.acount()
