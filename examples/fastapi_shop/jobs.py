"""The handlers. A worker imports this, and nothing of the application."""

from __future__ import annotations

import attrs

import pgnotifyq

registry = pgnotifyq.JobRegistry()


@attrs.frozen
class Receipt:
    """Which order's."""

    order_id: int


@registry.handler("write_receipt", queue="mail", max_attempts=5, timeout_seconds=30.0)
async def write_receipt(wanted: Receipt, ctx: pgnotifyq.JobContext) -> str:
    """Write an order's receipt.

    The text is written only while this attempt owns the job: once, whatever happens.
    """
    async with ctx.transaction() as connection:
        found = await connection.execute("select email, cents from orders where id = %s", (wanted.order_id,))
        row = await found.fetchone()
        if row is None:
            raise pgnotifyq.Discard(reason="the order is gone")
        email, cents = row
        text = f"Dear {email}, you have paid {cents / 100:.2f}."
        await connection.execute("update orders set receipt = %s where id = %s", (text, wanted.order_id))
    return text
