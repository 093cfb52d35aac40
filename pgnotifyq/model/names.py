"""What names may look like.

The patterns keep identifiers, channels, logs and command lines free of surprises.
"""

from __future__ import annotations

import functools
import re

from pgnotifyq.model.errors import InvalidName

# A queue's name travels in notifications and logs. PostgreSQL gives identifiers 63 bytes.
_QUEUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,62}", re.ASCII)
_JOB_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,126}", re.ASCII)
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", re.ASCII)
# 24 characters leave room for `<schema>_w_<32 hex digits>` in the 63 bytes of a channel.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,23}", re.ASCII)


def check_queue_name(name: object) -> str:
    """Return the name of a queue.

    Raises:
        InvalidName: it does not fit.
    """
    return _check("queue name", name, _QUEUE, "1 to 63 letters, digits and _ . : - (not first: . : -)")


def is_queue_name(text: str) -> bool:
    """Tell whether a queue may be called so."""
    return _fits(text, _QUEUE)


def is_setting_name(text: str) -> bool:
    """Tell whether a tenant's setting or credential may be called so."""
    return _fits(text, _SETTING)


def check_job_type(name: object) -> str:
    """Return the name of a job type.

    Raises:
        InvalidName: it does not fit.
    """
    return _check("job type", name, _JOB_TYPE, "1 to 127 letters, digits and _ . : - (not first: . : -)")


def check_schema_name(name: object) -> str:
    """Return the name of a schema.

    Raises:
        InvalidName: it does not fit.
    """
    return _check("schema name", name, _SCHEMA, "1 to 24 lower-case letters, digits and _, not a digit first")


def _check(what: str, name: object, pattern: re.Pattern[str], allowed: str) -> str:
    if not isinstance(name, str) or not _fits(name, pattern):
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
        raise InvalidName(f"{what} {shown} is not valid: use {allowed}")
    return name


@functools.lru_cache(maxsize=1024)
def _fits(name: str, pattern: re.Pattern[str]) -> bool:
    return pattern.fullmatch(name) is not None
