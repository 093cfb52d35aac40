"""The facts that doctor asks for, by their names. Doctor judges them."""

from __future__ import annotations

from typing import Any, TypeAlias

from pgnotifyq.ledger.ask import Ask
from pgnotifyq.ledger.columns import records, rows
from pgnotifyq.ledger.statements import query

Facts: TypeAlias = dict[str, Any]


def facts(schema: str) -> Ask[list[Facts]]:
    """Return what there is to know of role, server and tables, in one row.

    Source: sql/queries/doctor.sql
    """
    return Ask(query("doctor", schema), (), records)


def tenant(schema: str) -> Ask[list[Facts]]:
    """Return what the connected role can do with the tenants' role: one row, or none.

    Source: sql/queries/tenant_role.sql
    """
    return Ask(query("tenant_role", schema), (), records)


def tenant_logins(schema: str) -> Ask[list[str]]:
    """Return the logins that are tenants', by name.

    Source: sql/queries/tenant_logins.sql
    """
    return Ask(query("tenant_logins", schema), (), lambda answer, encoding: [name for (name,) in rows(answer, encoding)])


def strangers(schema: str) -> Ask[list[Facts]]:
    """Return what others have put on our tables, and what was switched off.

    Source: sql/queries/strangers.sql
    """
    return Ask(query("strangers", schema), (), records)


def due_queues(schema: str) -> Ask[list[Facts]]:
    """Return the queues that hold due jobs, the longest waiting first.

    Source: sql/queries/due_queues.sql
    """
    return Ask(query("due_queues", schema), (), records)


def unserved(schema: str) -> Ask[list[Facts]]:
    """Return the job types with due jobs for which no live worker of the queue has a handler.

    Source: sql/queries/unserved.sql
    """
    return Ask(query("unserved", schema), (), records)


def old_snapshots(schema: str) -> Ask[list[Facts]]:
    """Return what keeps vacuum from removing dead rows, the oldest first.

    Source: sql/queries/old_snapshots.sql
    """
    return Ask(query("old_snapshots", schema), (), records)
