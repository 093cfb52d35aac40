"""Tenants by name, and what seals their credentials."""

from __future__ import annotations

import base64
import sys
import uuid
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotifyq import ConfigError, CredentialKeys, CredentialSealed, InvalidJob, InvalidName, JobRegistry, NewJob, org
from pgnotifyq.model.credentials import FILE_VARIABLE, KEYS_VARIABLE, new_key

OURS, THEIRS = org("acme"), org("umbrella")


def test_names_do_not_change() -> None:
    """Rows in databases have these ids: no release may make others."""
    assert {name: str(org(name)) for name in ("acme", "Acme", 42, -1, "ünïcödé 🙂")} == {
        "acme": "ad61c3f4-06c0-8094-9cd8-450806820a97",
        "Acme": "f7fff028-4088-8429-888a-0f4bb6068ed3",
        42: "871897f3-c578-8451-83d0-60ad342594f7",
        -1: "c5b3e6d0-c99f-896a-be0d-e5f5e86026c0",
        "ünïcödé 🙂": "f230f710-46ad-8b4c-81d2-81013aa48fc4",
    }


def test_a_uuid_however_it_is_written() -> None:
    """Is itself, and is never taken for a name."""
    one = uuid.UUID("5d3c0f0e-6a0b-4c3e-9f43-0c1f6f7a8b21")
    for text in (str(one), str(one).upper(), one.hex, f"{{{one}}}", one.urn):
        assert org(text) == org(one) == one


def test_number_and_its_text() -> None:
    """Are one tenant, whichever the application's table has."""
    assert org(42) == org("42") != org("042")


@given(st.text(min_size=1, max_size=200))
def test_id_of_a_name(name: str) -> None:
    """Is of version 8 and of the variant of RFC 9562, or the name is refused."""
    try:
        found = org(name)
    except InvalidJob:
        return
    assert found.version == 8 or len(name.replace("-", "")) >= 32
    assert found.variant == uuid.RFC_4122


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "a\n",
        "a\x00b",
        "x" * 201,
        "\ud800",
        "5d3c0f0e-6a0b-4c3e-9f43-0c1f6f7a8b2",
        True,
        1.5,
        None,
        2**63,
        b"acme",
    ],
)
def test_what_names_no_tenant(name: Any) -> None:
    """Is refused: a uuid that lacks a digit would be a tenant of its own."""
    with pytest.raises(InvalidJob):
        org(name)
    with pytest.raises(InvalidJob):
        NewJob(job_type="a", org_id=name)


def test_jobs_by_a_name() -> None:
    """A job takes its tenant by name or number."""
    assert NewJob(job_type="a", org_id="acme").org_id == OURS  # type: ignore[arg-type]  # what a door hands on


# Credentials


def test_sealed_and_opened() -> None:
    """What is sealed for a tenant and a name opens for them; what is stored does not show it."""
    keys = CredentialKeys([new_key()])
    sealed = keys.seal(OURS, "stripe", "sk_live_é")
    assert keys.open(sealed) == "sk_live_é"
    assert "sk_live" not in base64.b64decode(sealed.sealed[3:]).decode("latin-1")
    assert keys.seal(OURS, "stripe", "sk_live_é").sealed != sealed.sealed  # with a nonce of its own


@pytest.mark.parametrize(
    "moved", [{"org_id": THEIRS}, {"name": "paypal"}, {"sealed": "v1."}, {"sealed": "v1.!"}, {"sealed": "v1.AAAA"}]
)
def test_row_that_was_moved_or_changed(moved: dict[str, Any]) -> None:
    """Does not open: the tenant and the name are part of the seal."""
    keys = CredentialKeys([new_key()])
    with pytest.raises(CredentialSealed, match="does not open"):
        keys.open(attrs.evolve(keys.seal(OURS, "stripe", "secret"), **moved))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said, by who seals and by who opens."""
    keys = CredentialKeys([new_key()])
    sealed = keys.seal(OURS, "stripe", "secret")
    for module in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for ask_for in (lambda: keys.seal(OURS, "stripe", "secret"), lambda: keys.open(sealed)):
        with pytest.raises(ConfigError, match=r"pgnotifyq\[credentials\]"):
            ask_for()


def test_bytes_that_are_no_text() -> None:
    """Are refused, as a terminal in another encoding gives them; the error does not have them in it."""
    with pytest.raises(ConfigError, match="is not a text in UTF-8") as refused:
        CredentialKeys([new_key()]).seal(OURS, "stripe", "secret\udcff")
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None and refused.value.__suppress_context__


def test_each_bit_counts() -> None:
    """Of what is stored, none can be changed."""
    keys = CredentialKeys([new_key()])
    sealed = keys.seal(OURS, "stripe", "s")
    data = base64.b64decode(sealed.sealed[3:])
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CredentialSealed):
            keys.open(attrs.evolve(sealed, sealed="v1." + base64.b64encode(changed).decode()))


def test_keys_in_turn() -> None:
    """The first seals, each opens what it has sealed, and one that is gone is named."""
    old, new = new_key(), new_key()
    sealed = CredentialKeys([old]).seal(OURS, "stripe", "secret")
    both = CredentialKeys([new, old])
    assert both.open(sealed) == "secret"
    assert both.seal(OURS, "stripe", "secret").key_id == CredentialKeys([new]).key_id
    with pytest.raises(CredentialSealed, match=sealed.key_id):
        CredentialKeys([new]).open(sealed)


def test_keys_are_not_shown() -> None:
    """Neither by repr nor by an error."""
    key = new_key()
    assert key not in repr(CredentialKeys([key])) and key[:8] not in repr(CredentialKeys([key]))
    with pytest.raises(ConfigError) as refused:
        CredentialKeys([key, key[:-8]])
    assert key[:8] not in str(refused.value)


@pytest.mark.parametrize("keys", [[], "abc", ["short"], [new_key()] * 17, [b"x" * 31], [None]])
def test_what_is_no_key(keys: Any) -> None:
    """Is refused."""
    with pytest.raises(ConfigError):
        CredentialKeys(keys)


def test_keys_of_the_environment(tmp_path: Path) -> None:
    """From a variable, or from a file that is closed to others; not from both, and not from neither."""
    one, two = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(f"{one}\n{two}\n")
    file.chmod(0o600)
    wanted = repr(CredentialKeys([one, two]))
    assert repr(CredentialKeys.from_environment({KEYS_VARIABLE: f"{one}, {two}"})) == wanted
    assert repr(CredentialKeys.from_environment({FILE_VARIABLE: str(file)})) == wanted
    for wrong in ({}, {KEYS_VARIABLE: one, FILE_VARIABLE: str(file)}, {FILE_VARIABLE: str(tmp_path / "none")}):
        with pytest.raises(ConfigError):
            CredentialKeys.from_environment(wrong)
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        CredentialKeys.from_environment({FILE_VARIABLE: str(file)})


def test_names_and_sizes() -> None:
    """Are bounded."""
    keys = CredentialKeys([new_key()])
    with pytest.raises(InvalidName):
        keys.seal(OURS, "a b", "secret")
    for value in ("", "x" * 65_537):
        with pytest.raises(ConfigError):
            keys.seal(OURS, "a", value)


def test_provider_that_is_none() -> None:
    """Is refused by the registry; the checked name says what is wanted."""
    with pytest.raises(ConfigError, match=r"get\(org_id, name\)"):
        JobRegistry(credentials=object())  # type: ignore[arg-type]  # on purpose
