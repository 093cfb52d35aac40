"""What a job is unique by, for how long, and what follows if its key is taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, Literal, get_args

import attrs

from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import Result_co

if TYPE_CHECKING:
    from pgnotifyq.model.job import JobId

UNIQUE_KEY_CHARS_MAX = 512  # an index entry holds 2,700 bytes
UNIQUE_FIELDS_MAX = 32
UNIQUE_SECONDS_MAX = 10 * 366 * 86_400.0  # ten years; more is a mistake in the unit

UniqueWhile = Literal["pending", "unfinished"]
OnConflict = Literal["keep", "replace", "refuse", "supersede"]
Replaced = Literal["payload", "scheduled_at", "priority"]
UniqueScope = Literal["job_type", "global"]


class EnqueueOutcome(StrEnum):
    """What an enqueue did about a job's unique key."""

    CREATED = "created"  # there is a new job
    KEPT = "kept"  # another job holds the key, and stays as it is; none was made
    REPLACED = "replaced"  # another job holds the key, and got what the new one said; none was made
    SUPERSEDED = "superseded"  # there is a new job, and the one that held the key was cancelled


@attrs.frozen
class Enqueued(Generic[Result_co]):
    """What became of an enqueue."""

    job_id: JobId[Result_co]  # the new job; if kept or replaced, the job that holds the key
    outcome: EnqueueOutcome


@attrs.frozen(kw_only=True)
class Unique:
    """Say that a job is unique. Checked when it is made.

    One job at a time holds a key. A key belongs to a tenant, and there to one job type, or to all
    job types together (`scope`).

    Raises:
        InvalidJob: a value is not known or out of range, or two contradict each other.
    """

    key: str | None = None  # 1 to 512 characters; or `by`
    # The fields of the payload that make the key, or True: the whole payload. Their values are
    # compared as JSON. A payload that lacks one of the fields is refused.
    by: Sequence[str] | Literal[True] | None = None
    # How long a job holds its key. `pending`: until it first starts. `unfinished`, the default:
    # until it has ended, handler and all.
    while_: UniqueWhile | None = None
    # In place of `while_`: a job holds its key for this many seconds from its enqueue on, on the
    # database's clock, also beyond its end. A job that is cancelled or dies gives its key up.
    for_seconds: float | None = None
    # What follows if another job holds the key. `keep`: that job stays, and no job is made.
    # `replace`: if that job waits, it gets what `replace` names of the new one; else it is kept.
    # `refuse`: UniqueKeyHeld. `supersede`: that job is cancelled, and the new one starts when the
    # cancelled job's handler has ended.
    on_conflict: OnConflict = "keep"
    replace: Sequence[Replaced] = ("payload", "scheduled_at", "priority")
    # With `replace`: the job is due so many seconds after its first enqueue, at the latest, however
    # often its time is replaced.
    longest_wait_seconds: float | None = None
    scope: UniqueScope = "job_type"

    def __attrs_post_init__(self) -> None:
        if (self.key is None) == (self.by is None):
            raise InvalidJob("say what a job is unique by: Unique(key=...), or Unique(by=('field', ...)), and not both")
        if self.key is not None:
            check_key(self.key)
        if self.by is not None and self.by is not True:
            _check_fields(self.by)
        _check_word("while_", self.while_, (None, *get_args(UniqueWhile)))
        _check_word("on_conflict", self.on_conflict, get_args(OnConflict))
        _check_word("scope", self.scope, get_args(UniqueScope))
        if isinstance(self.replace, str) or not self.replace:
            raise InvalidJob(f"replace {self.replace!r} names nothing: use some of {', '.join(get_args(Replaced))}")
        for name in self.replace:
            _check_word("replace", name, get_args(Replaced))
        if self.for_seconds is not None:
            _check_seconds("for_seconds", self.for_seconds)
            if self.while_ is not None:
                raise InvalidJob("both while_ and for_seconds are given: pass one")
        if self.longest_wait_seconds is not None:
            _check_seconds("longest_wait_seconds", self.longest_wait_seconds)
            if self.on_conflict != "replace" or "scheduled_at" not in self.replace:
                raise InvalidJob("longest_wait_seconds goes with on_conflict='replace' of scheduled_at")

    @property
    def rule(self) -> str | None:
        """What the database is told besides the key, as JSON; None: nothing.

        Source: sql/functions/enqueue/enqueue_unique.sql
        """
        rule: dict[str, object] = {}
        if self.by is not None:
            rule["by"] = True if self.by is True else list(self.by)
        if self.scope == "global":
            rule["scope"] = "*"
        if self.while_ == "pending":
            rule["while"] = self.while_
        if self.for_seconds is not None:
            rule["for_seconds"] = self.for_seconds
        if self.on_conflict != "keep":
            rule["on_conflict"] = self.on_conflict
        if self.on_conflict == "replace" and not {*get_args(Replaced)} <= {*self.replace}:  # else all of them
            rule["replace"] = list(self.replace)
        if self.longest_wait_seconds is not None:
            rule["longest_wait_seconds"] = self.longest_wait_seconds
        return json.dumps(rule) if rule else None


def check_key(key: object) -> None:
    """Refuse what is no unique key.

    Raises:
        InvalidJob: it is not of 1 to 512 characters, or has a NUL.
    """
    if not isinstance(key, str) or not 1 <= len(key) <= UNIQUE_KEY_CHARS_MAX or "\x00" in key or not _is_text(key):
        raise InvalidJob(f"unique_key is not valid: use 1 to {UNIQUE_KEY_CHARS_MAX} characters, without NUL")


def _check_fields(fields: object) -> None:
    if isinstance(fields, str) or not isinstance(fields, (list, tuple)) or not 1 <= len(fields) <= UNIQUE_FIELDS_MAX:
        raise InvalidJob(f"by {fields!r:.80} is not valid: use a tuple of 1 to {UNIQUE_FIELDS_MAX} names of fields, or True")
    for name in fields:
        if not isinstance(name, str) or "\x00" in name or not _is_text(name):
            raise InvalidJob(f"by {name!r:.80} is no name of a field of the payload")


def _check_word(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        words = ", ".join(str(word) for word in known if word is not None)
        raise InvalidJob(f"{name} {value!r:.80} is not known: use one of {words}")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= UNIQUE_SECONDS_MAX:
        raise InvalidJob(f"{name} {value!r} is out of range: use more than 0, to {UNIQUE_SECONDS_MAX:.0f}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
