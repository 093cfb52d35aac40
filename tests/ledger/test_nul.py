"""NUL, which no text of PostgreSQL can have: whatever verb it is given to, the answer is a typed error."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgnotifyq.ledger import look, organisation, pauses
from pgnotifyq.ledger.ask import Ask
from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.organisation import org
from pgnotifyq.wire.asking import ask_blocking
from pgnotifyq.wire.blocking import Connection
from tests.ledger.support import SCHEMA

NUL = "a\x00b"
VERBS: dict[str, Ask[Any]] = {
    "set a setting": organisation.set_config(SCHEMA, org("acme"), NUL, 1),
    "unset a setting": organisation.unset_config(SCHEMA, org("acme"), NUL),
    "list settings": organisation.list_config(SCHEMA, name=NUL),
    "delete a credential": organisation.delete_credential(SCHEMA, org("acme"), NUL),
    "list jobs": look.list_jobs(SCHEMA, queue=NUL),
    "pause": pauses.pause(SCHEMA, pauses.Scope(queue="q"), why=NUL),
}


@pytest.mark.parametrize("verb", VERBS)
def test_text_with_nul(connection: Connection[Any], verb: str) -> None:
    """It is refused, and the connection goes on."""
    with pytest.raises(InvalidJob, match="NUL"):
        ask_blocking(connection, VERBS[verb])
    assert ask_blocking(connection, look.list_jobs(SCHEMA)) == []


def test_on_a_blocking_connection(dsn: str) -> None:
    """The same."""
    with psycopg.connect(dsn) as session, pytest.raises(InvalidJob, match="NUL"):
        ask_blocking(session, VERBS["set a setting"])
