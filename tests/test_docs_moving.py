"""docs/moving.md: what it says that we have is there; what it says that we have not, is not."""

from __future__ import annotations

import inspect
import re

import attrs
import pytest

import pgnotifyq
import pgnotifyq.sync
from pgnotifyq.cli.app import app
from pgnotifyq.doors.verbs import EnqueueSettings
from tests.pages import DOCS

PAGE = (DOCS / "moving.md").read_text(encoding="utf-8")
ROWS = [
    (section, *(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:3]))
    for section, text in re.findall(r"^## From (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for line in text.splitlines()
    if line.startswith("| ") and "pgnotifyq |" not in line
]
ROWS_MIN = 20
CODE = " ".join(code for _, _, ours in ROWS for code in re.findall(r"`([^`]+)`", ours))
CODE = re.sub(r"\b[A-Z]\w*\([^()]*\)", "payload", CODE)  # of one's own


@pytest.mark.parametrize("peer", ["Celery", "RQ", "procrastinate"])
def test_table_is_long_enough(peer: str) -> None:
    """Twenty rows each, none of them twice."""
    theirs = [row[1] for row in ROWS if row[0] == peer]
    assert len(theirs) == len(set(theirs)) >= ROWS_MIN


def test_verbs_and_settings_are_there() -> None:
    """Every `client.verb(...)`, and each of its keywords."""
    for verb, arguments in re.findall(r"client\.(\w+)\(([^)]*)", CODE):
        method = getattr(pgnotifyq.sync.Client, verb)
        known = set(inspect.signature(method).parameters) | set(EnqueueSettings.__annotations__)
        assert set(re.findall(r"(\w+)=", arguments)) <= known, (verb, arguments)


def test_handlers_settings_are_there() -> None:
    """Every keyword of a handler."""
    known = set(attrs.fields_dict(pgnotifyq.HandlerDecorator))
    named = set(re.findall(r"\b(max_attempts|retry|retry_on|discard_on|timeout_seconds|queue)=", CODE))
    assert named == {"max_attempts", "retry", "retry_on", "discard_on", "timeout_seconds", "queue"} <= known


def test_names_are_there() -> None:
    """What is named of the package, of a context, and of the command line."""
    for name in re.findall(r"\b(?:pgnotifyq\.)?(JobRegistry|RetryPolicy|Retry|Discard|Snooze|JobContext)\b", CODE):
        assert hasattr(pgnotifyq, name)
    for name in re.findall(r"ctx\.(\w+)", CODE):
        assert name == "job" or hasattr(pgnotifyq.JobContext, name)
    commands = {name for name in app if not name.startswith("-")}
    assert set(re.findall(r"python -m pgnotifyq (\w+)", CODE)) <= commands


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("limits", ("rate_limit",)),
        ("chains", ("chain", "depends_on")),
    ],
)
def test_what_is_missing_is_missing(what: str, words: tuple[str, ...]) -> None:
    """When one of them comes, the page is to be written anew."""
    names = {"limits": ("limit",), "chains": ("chain", "after")}[what]
    assert not any(hasattr(one, name) for one in (pgnotifyq.JobRegistry, pgnotifyq.sync.Client) for name in names)
    for word in words:
        assert any(word in theirs and ours.startswith("none yet") for _, theirs, ours in ROWS), word
