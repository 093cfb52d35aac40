"""Credentials of tenants: who gives them, and how the built-in store seals them.

A credential is sealed by AES-256-GCM. The tenant and the name are associated data: a row that is
moved to another tenant, or to another name, does not open. The database has the sealed text and a
fingerprint of the key. It never has a key.

A key is 32 bytes, in base64. If there are several keys, the first one seals. Each key opens what it
has sealed. To change keys, put the new key first, start the workers with both, run
`python -m pgnotifyq credentials rotate`, and take the old key away.

`cryptography` does the work (extra `credentials`). It is imported at the first sealing or opening.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from pgnotifyq.model.errors import ConfigError, CredentialSealed, InvalidName
from pgnotifyq.model.names import is_setting_name

if TYPE_CHECKING:
    from pgnotifyq.model.job import OrgId

KEYS_VARIABLE = "PGNOTIFYQ_CREDENTIALS_KEYS"
FILE_VARIABLE = "PGNOTIFYQ_CREDENTIALS_KEYS_FILE"
VALUE_BYTES_MAX = 65_536
KEYS_MAX = 16
_KEY_BYTES, _NONCE_BYTES = 32, 12
_FORM = "v1."  # of what is stored


@runtime_checkable
class CredentialsProvider(Protocol):
    """Who gives the credentials of tenants: a vault, a table of your own.

    Pass it as `JobRegistry(credentials=...)`. The tenant is the job's; a handler does not choose
    it.
    """

    def get(self, org_id: OrgId, name: str) -> Any:
        """Return a credential as a text, or None if the tenant has none of this name.

        If it is an async function, trio runs it. If it is not, a thread does.
        """


@attrs.frozen(kw_only=True)
class SealedCredential:
    """A credential as the database has it."""

    org_id: OrgId
    name: str
    key_id: str  # the fingerprint of the key that has sealed it
    sealed: str


class CredentialKeys:
    """The keys of the built-in store.

    Pass them as `JobRegistry(credentials=CredentialKeys([...]))` if they are neither in the
    environment nor in a file.

    Args:
        keys: each 32 bytes, or their base64. The first seals.

    Raises:
        ConfigError: there are no keys, or one of them is not a key. The message does not show it.
    """

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        if isinstance(keys, (str, bytes)) or not 1 <= len(keys) <= KEYS_MAX:
            raise ConfigError(f"keys are not a list of 1 to {KEYS_MAX}: make one with `python -m pgnotifyq credentials new-key`")
        made = [_key_of(each, place) for place, each in enumerate(keys, 1)]
        self._keys = {_fingerprint(key): key for key in made}
        self.key_id = _fingerprint(made[0])

    def __repr__(self) -> str:
        return f"CredentialKeys({', '.join(self._keys)})"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> CredentialKeys:
        """Read the keys that the environment has, or the file that it names.

        Several keys have blanks, commas or new lines between them.

        Raises:
            ConfigError: there are no keys, both variables are set, or the file is open to others.
        """
        text, path = environment.get(KEYS_VARIABLE, ""), environment.get(FILE_VARIABLE, "")
        if text and path:
            raise ConfigError(f"{KEYS_VARIABLE} and {FILE_VARIABLE} are both set: unset one")
        if path:
            text = _read(Path(path))
        if not text:
            raise ConfigError(
                f"there is no key for credentials: set {KEYS_VARIABLE}, or {FILE_VARIABLE} to the path of a file;"
                " `python -m pgnotifyq credentials new-key` makes one"
            )
        return cls(text.replace(",", " ").split())

    def seal(self, org_id: OrgId, name: str, value: str) -> SealedCredential:
        """Seal a credential for a tenant.

        Raises:
            InvalidName: the name does not fit.
            ConfigError: the value is empty, too large, or not a text in UTF-8; or `cryptography` is
                not installed.
        """
        check_credential_name(name)
        try:
            data = value.encode()
        except UnicodeEncodeError:
            # Not `from` that error: it has the value in it.
            raise ConfigError(f"credential {name} is not a text in UTF-8: put bytes into base64") from None
        if not 1 <= len(data) <= VALUE_BYTES_MAX:
            raise ConfigError(f"a credential has 1 to {VALUE_BYTES_MAX} bytes, and {name} has {len(data)}")
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _cipher(self._keys[self.key_id]).encrypt(nonce, data, _bound_to(org_id, name))
        return SealedCredential(
            org_id=org_id, name=name, key_id=self.key_id, sealed=_FORM + base64.b64encode(nonce + sealed).decode("ascii")
        )

    def open(self, sealed: SealedCredential) -> str:
        """Return the credential.

        Raises:
            CredentialSealed: none of the keys has sealed it, or it was changed or moved.
            ConfigError: `cryptography` is not installed.
        """
        what = f"credential {sealed.name} of tenant {sealed.org_id}"
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise CredentialSealed(
                f"{what} was sealed with key {sealed.key_id}, and here are {', '.join(self._keys)}: add that key, or set it anew"
            )
        cipher = _cipher(key)
        from cryptography.exceptions import InvalidTag

        try:
            data = base64.b64decode(sealed.sealed.removeprefix(_FORM), validate=True)
            opened: bytes = cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound_to(sealed.org_id, sealed.name))
            return opened.decode()
        except (InvalidTag, ValueError) as error:
            raise CredentialSealed(
                f"{what} does not open: its row was changed, or was moved from another tenant or name; set it anew"
            ) from error


def check_credential_name(name: object) -> str:
    """Return the name of a credential, or of a setting.

    Raises:
        InvalidName: it does not fit.
    """
    if not isinstance(name, str) or not is_setting_name(name):
        raise InvalidName(f"name {name!r:.80} is not valid: use 1 to 100 letters, digits and _ . - (first: a letter or _)")
    return name


def new_key() -> str:
    """Return a new key, in base64."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode("ascii")


def _bound_to(org_id: OrgId, name: str) -> bytes:
    return b"pgnotifyq credential\0" + org_id.bytes + name.encode()


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigError("credentials are sealed by cryptography: pip install 'pgnotifyq[credentials]'") from None
    return AESGCM(key)


def _key_of(given: object, place: int) -> bytes:
    key = given
    if isinstance(given, str):
        try:
            key = base64.b64decode(given.translate(_URL_SAFE), validate=True)
        except (binascii.Error, ValueError):
            key = None
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        raise ConfigError(f"key {place} is not {_KEY_BYTES} bytes in base64: `python -m pgnotifyq credentials new-key` makes one")
    return key


_URL_SAFE = str.maketrans("-_", "+/")


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"pgnotifyq key\0" + key).hexdigest()[:12]


def _read(path: Path) -> str:
    try:
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXO | stat.S_IWGRP):
            raise ConfigError(f"{path}, of {FILE_VARIABLE}, is open to others: chmod 600 {path}")
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the keys in {path}, of {FILE_VARIABLE}, cannot be read: {error}") from error
