"""What a session is asked and told, whatever the schema: `sql/sessions/`.

The wire asks further statements of that folder by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgnotifyq.ledger.ask import Ask, nothing
from pgnotifyq.ledger.columns import rows
from pgnotifyq.ledger.statements import session

if TYPE_CHECKING:
    from pgnotifyq.ledger.ask import Answer


def hush() -> Ask[None]:
    """Keep notices from people who did not ask. Source: sql/sessions/hush.sql."""
    return Ask(session("hush"), (), nothing)


def bound(seconds: float) -> Ask[None]:
    """Bound each statement of the transaction. Source: sql/sessions/bound.sql."""
    return Ask(session("bound"), (str(round(seconds * 1000)),), nothing)


def server() -> Ask[tuple[str, float]]:
    """Return the server's data folder, and when the server began, in seconds since 1970.

    Source: sql/sessions/server.sql
    """

    def read(answer: Answer, encoding: str) -> tuple[str, float]:
        ((folder, began),) = rows(answer, encoding)
        return folder, began

    return Ask(session("server"), (), read)
