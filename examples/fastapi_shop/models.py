"""The shop's tables."""

from __future__ import annotations

import os
from uuid import UUID

from sqlalchemy import CheckConstraint
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DSN = os.environ["PGNOTIFYQ_DSN"]
engine = create_async_engine(DSN.replace("postgresql://", "postgresql+asyncpg://", 1))
new_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """Of all tables."""


class Order(Base):
    """What somebody has bought, and the job that writes its receipt."""

    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("cents > 0", name="costs_something"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    cents: Mapped[int]
    receipt_job: Mapped[UUID | None]
    receipt: Mapped[str | None]
