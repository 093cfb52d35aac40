"""Looks at the server and at roles, rather than at jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgnotifyq.ledger.ask import Ask, array
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.statements import query

if TYPE_CHECKING:
    from collections.abc import Collection

    from pgnotifyq.ledger.ask import Answer


def tenant_role(schema: str) -> Ask[str | None]:
    """Return the role that confines tenants, or None where it does not exist, may not be taken on, or has no rights in the schema.

    Source: sql/queries/tenant_role.sql
    """

    def read(answer: Answer, encoding: str) -> str | None:
        found = [may_be_set and has_rights for may_be_set, has_rights, _ in rows(answer, encoding)]
        return f"{schema}_tenant" if any(found) else None

    return Ask(query("tenant_role", schema), (), read)


def powers(schema: str) -> Ask[list[tuple[Any, ...]]]:
    """Return whether the connected role is a superuser, whether it is exempt from row security, and its name: one row, or none.

    Source: sql/queries/powers.sql
    """
    return Ask(query("powers", schema), (), rows)


def idle_backends(schema: str, pids: Collection[int]) -> Ask[list[tuple[Any, ...]]]:
    """Return which of some sessions wait for their client, by process number, and since when.

    Source: sql/queries/idle_backends.sql
    """
    return Ask(query("idle_backends", schema), (array([str(pid) for pid in pids]),), rows)
