"""Errors of other drivers in psycopg's words, whatever wraps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg import errors, pq

if TYPE_CHECKING:
    from collections.abc import Iterator


def in_psycopgs_words(error: Exception) -> Exception:
    """Return psycopg's error for one that PostgreSQL raised by any driver; others as they are."""
    for cause in _causes(error):
        if isinstance(cause, psycopg.Error):
            return cause
        if (state := _state_of(cause)) is not None:
            message, detail, hint = (_text_in(cause, name) for name in ("message", "detail", "hint"))
            fields: dict[int, bytes | None] = {
                pq.DiagnosticField.SQLSTATE: state.encode(),
                pq.DiagnosticField.MESSAGE_PRIMARY: str(message or cause).encode(),
                pq.DiagnosticField.MESSAGE_DETAIL: None if detail is None else str(detail).encode(),
                pq.DiagnosticField.MESSAGE_HINT: None if hint is None else str(hint).encode(),
            }
            said = _class_of(state)(str(cause).rstrip("\n"), info=fields)
            said.__cause__ = error
            return said
    return error


def _text_in(error: BaseException, name: str) -> str | None:
    """Return one of the texts of an error: psycopg2 has them in `diag`, asyncpg in the error.

    SQLAlchemy 2.0 puts an error of its own around asyncpg's, which does not have all texts.
    """
    for cause in _causes(error):
        diag = getattr(cause, "diag", None)
        found = (
            getattr(cause, name, None)
            if diag is None
            else getattr(diag, "message_primary" if name == "message" else f"message_{name}")
        )
        if found is not None:
            return str(found)
    return None


def _class_of(state: str) -> type[psycopg.Error]:
    try:
        return errors.lookup(state)
    except KeyError:  # ours, and those of the user's triggers
        return errors.get_base_exception(state)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error, whatever wraps it."""
    states = (cause.sqlstate if isinstance(cause, psycopg.Error) else _state_of(cause) for cause in _causes(error))
    return next((state for state in states if state is not None), None)


def _state_of(error: BaseException) -> str | None:
    for name in ("sqlstate", "pgcode"):  # asyncpg's, psycopg2's
        if isinstance(state := getattr(error, name, None), str):
            return state
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it wraps: SQLAlchemy's `orig`, anybody's `__cause__`."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        original = getattr(here, "orig", None)
        here = original if isinstance(original, BaseException) else here.__cause__
