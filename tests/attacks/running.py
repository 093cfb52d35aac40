"""One attack, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import psycopg

from tests.attacks.stage import MARK

if TYPE_CHECKING:
    from tests.attacks.catalogue import Attack
    from tests.attacks.stage import Session, Stage


@attrs.frozen
class Outcome:
    """What became of an attack."""

    verdict: str  # refused, blind; or leaked, changed, allowed: it succeeded
    why: str

    @property
    def is_held_off(self) -> bool:
        """Whether the attack failed."""
        return self.verdict in {"refused", "blind"}


def run(attack: Attack, stage: Stage) -> Outcome:
    """Run an attack, and judge it by what was told and by what is Bob's before and after."""
    before = stage.everything()
    told: list[str] = []
    opened = stage.as_handler() if attack.who == "handler" else stage.as_role(attack.who)
    with opened as session:
        session.add_notice_handler(lambda notice: told.append(f"{notice.message_primary} {notice.message_detail}"))
        errors = [_say(session, stage.fill(statement), told) for statement in attack.statements]
        _say(session, "commit", told)
    return judge(attack, errors, told, is_changed=stage.everything() != before)


def judge(attack: Attack, errors: list[str | None], told: list[str], *, is_changed: bool) -> Outcome:
    """Say what became of an attack, from what its statements were answered."""
    seen = [text for text in told if MARK in text]
    if is_changed:
        return Outcome("changed", "a row of Bob's, or a role")
    if seen:
        return Outcome("leaked", seen[0][:200])
    last = errors[-1]
    if attack.refused and last is None:
        return Outcome("allowed", attack.statements[-1])
    return Outcome("blind", "") if last is None else Outcome("refused", last)


def _say(session: Session, statement: str, told: list[str]) -> str | None:
    """Run a statement, note what it answers, and return what it was refused with, if so."""
    is_within = session.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    ends = statement.split(maxsplit=1)[0] in {"commit", "rollback", "begin", "savepoint", "discard"}
    try:
        if is_within and not ends:
            session.execute("savepoint attack")
        cursor = session.execute(statement.encode())
        if cursor.description is not None:
            told.extend(str(row) for row in cursor.fetchall())
    except psycopg.Error as error:
        # The statement itself, which an error may quote, is the attacker's own.
        told.append(f"{error.diag.message_primary} {error.diag.message_detail} {error.diag.message_hint}".replace(statement, ""))
        if is_within and not session.closed and session.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            session.execute("rollback to savepoint attack" if not ends else "rollback")
        return f"{error.sqlstate} {error.diag.message_primary}"
    return None
