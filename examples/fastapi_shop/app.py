"""The application: orders come in, receipts are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from jobs import Receipt, registry, write_receipt
from models import DSN, Base, Order, engine, new_session
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

import pgnotifyq.aio


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold the client as long as the application runs."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with pgnotifyq.aio.open_client(DSN, registry=registry) as app.state.queue:
        yield
    await engine.dispose()


def get_queue(request: Request) -> pgnotifyq.aio.Client:
    """Return the application's client."""
    queue: pgnotifyq.aio.Client = request.app.state.queue
    return queue


async def get_session() -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    async with new_session() as session:
        yield session


app = FastAPI(lifespan=lifespan)
Queue = Annotated[pgnotifyq.aio.Client, Depends(get_queue)]
Session = Annotated[AsyncSession, Depends(get_session)]


class NewOrder(BaseModel):
    """What a customer sends."""

    email: str
    cents: int


@app.post("/orders", status_code=202)
async def place_order(new: NewOrder, session: Session, queue: Queue) -> dict[str, int]:
    """Write an order and enqueue its receipt: both, or neither."""
    try:
        async with session.begin():
            order = Order(email=new.email, cents=new.cents)
            session.add(order)
            await session.flush()  # the order has its id now
            order.receipt_job = await queue.enqueue(write_receipt, Receipt(order.id), connection=session)
    except IntegrityError:
        raise HTTPException(422, "an order costs something") from None
    return {"order": order.id}


@app.get("/receipts/{order_id}")
async def show_receipt(order_id: int, session: Session, queue: Queue) -> dict[str, object]:
    """Say how far an order's receipt has come."""
    job_id = await _job_of(order_id, session)
    try:
        job = await queue.get(job_id)
    except pgnotifyq.JobNotFound:
        letter = await queue.get_dead(job_id)
        return {"status": "failed", "why": letter.error_message}
    return {"status": job.status, "attempts": job.attempts, "receipt": job.result}


@app.delete("/receipts/{order_id}")
async def cancel_receipt(order_id: int, session: Session, queue: Queue) -> dict[str, str]:
    """Cancel an order's receipt, and wait until its handler has stopped."""
    return {"outcome": await queue.cancel(await _job_of(order_id, session), wait_seconds=5, why="the customer said so")}


async def _job_of(order_id: int, session: AsyncSession) -> str:
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "there is no such order")
    return str(order.receipt_job)
