"""The lifecycle is a table; what is derived from it agrees with it."""

from __future__ import annotations

import pytest

from pgnotifyq.model.states import FINISHED, LEGAL_STATUS_CHANGES, TRANSITIONS, Status, as_mermaid, label


def test_finished_states_absorb() -> None:
    """I5: nothing leads out of completed or cancelled."""
    assert not {change for change in LEGAL_STATUS_CHANGES if change[0] in FINISHED}


def test_the_diagram_shows_every_verb() -> None:
    """It is drawn from the table, so it cannot lag behind."""
    drawn = as_mermaid()
    assert all(verb in drawn for verb in TRANSITIONS)


@pytest.mark.parametrize(
    ("status", "is_held", "attempts", "is_due", "word"),
    [
        (Status.CANCELLED, True, 1, True, "stopping"),
        (Status.CANCELLED, False, 1, True, "cancelled"),
        (Status.PENDING, False, 0, False, "scheduled"),
        (Status.PENDING, False, 2, False, "retrying"),
        (Status.PENDING, False, 2, True, "pending"),
        (Status.RUNNING, True, 1, True, "running"),
    ],
)
def test_labels_are_derived(status: Status, is_held: bool, attempts: int, is_due: bool, word: str) -> None:
    """scheduled, retrying and stopping are not stored."""
    assert label(status, is_held=is_held, attempts=attempts, is_due=is_due) == word
