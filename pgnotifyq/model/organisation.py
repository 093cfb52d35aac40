"""Tenants by name: the id of a tenant that a program knows by a text or a number.

An id is a uuid. Any other name becomes a uuid, and the same name always becomes the same one. It is
of version 8 (RFC 9562, appendix B.2), made of the first bits of the SHA-256 of a fixed namespace
and of the name in UTF-8. The SQL function `org` does the same (migration 0014). The uuid is not of
version 5, because PostgreSQL has no SHA-1 without an extension.

An id does not say its name. The table `org_names` keeps names for people: a command that is given a
name notes it there.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any
from uuid import UUID

from pgnotifyq.model.errors import InvalidJob
from pgnotifyq.model.job import OrgId, uuid_of

NAMESPACE = UUID("5d3c0f0e-6a0b-4c3e-9f43-0c1f6f7a8b21")
NAME_CHARS_MAX = 200
NUMBER_MIN, NUMBER_MAX = -(2**63), 2**63 - 1  # PostgreSQL's bigint

_AROUND = re.compile(r"^urn:uuid:|[-{}]")
_PLAIN = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MISSPELT = re.compile(r"(?=.*-.*-.*-)[0-9a-fA-F-]{24,}", re.ASCII)
_UNFIT = re.compile(r"^ | $|[\x01-\x1f\x7f\x00\ud800-\udfff]")
_VERSION, _VARIANT = 8 << 76, 2 << 62
_FREE = ~(15 << 76 | 3 << 62)


def org(name: UUID | str | int) -> OrgId:
    """Return the id of a tenant, given its id or its name.

    Args:
        name: a UUID, or its text: that id. A number, or any other text: the id of that name, always
            the same. 42 and "42" are one tenant; "acme" and "Acme" are two.

    Raises:
        InvalidJob: it is empty or longer than 200 characters, has control characters or outer
            blanks, looks like a uuid and is none, or is of another type.
    """
    if isinstance(name, UUID):
        return OrgId(name)
    if isinstance(name, int) and not isinstance(name, bool) and NUMBER_MIN <= name <= NUMBER_MAX:
        name = str(int(name))
    if not isinstance(name, str):
        raise InvalidJob(f"org_id {name!r:.80} names no tenant: pass a uuid.UUID, a text, or a whole number of 64 bits")
    if (of_a_uuid := _as_uuid(name)) is not None:
        return OrgId(of_a_uuid)
    if not 1 <= len(name) <= NAME_CHARS_MAX or _UNFIT.search(name) or _MISSPELT.fullmatch(name):
        raise InvalidJob(
            f"org_id {name!r:.80} names no tenant: use a uuid, a number, or a name of 1 to {NAME_CHARS_MAX} characters without"
            " control characters and outer blanks"
        )
    digest = hashlib.sha256(NAMESPACE.bytes + name.encode()).digest()
    return OrgId(uuid_of(int.from_bytes(digest[:16], "big") & _FREE | _VERSION | _VARIANT))


def is_name(name: UUID | str | int) -> bool:
    """Tell whether a tenant is given by a name or a number, and not by its id."""
    return isinstance(name, int) or (isinstance(name, str) and _as_uuid(name) is None)


def _as_uuid(name: str) -> UUID | None:
    plain = _AROUND.sub("", name.lower())
    return uuid_of(int(plain, 16)) if _PLAIN.fullmatch(plain) else None


def of_tenant(org_id: OrgId, settings: dict[str, Any]) -> None:
    """Put a tenant into a job's settings.

    Raises:
        InvalidJob: the settings say another tenant.
    """
    given = settings.setdefault("org_id", org_id)
    if org(given) != org_id:
        raise InvalidJob(f"org_id {given!r:.80} is another tenant than {org_id}, whose jobs these are: leave it out")
    settings["org_id"] = org_id
