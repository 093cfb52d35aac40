"""The lifecycle is a table; what is derived from it agrees with it."""

from __future__ import annotations

from pgnotifyq.model.states import FINISHED, LEGAL_STATUS_CHANGES, TRANSITIONS, as_mermaid


def test_finished_states_absorb() -> None:
    """I5: nothing leads out of completed or cancelled."""
    assert not {change for change in LEGAL_STATUS_CHANGES if change[0] in FINISHED}


def test_the_diagram_shows_every_verb() -> None:
    """It is drawn from the table, so it cannot lag behind."""
    drawn = as_mermaid()
    assert all(verb in drawn for verb in TRANSITIONS)
