"""A function's text cannot change without a migration of its own: sql/functions.lock says why."""

from __future__ import annotations

import hashlib

from pgnotifyq.ledger.schema import code_version
from pgnotifyq.ledger.statements import files, sql_folder


def locked() -> dict[int, str]:
    """Return the digests of sql/functions.lock, by schema version."""
    lines = (sql_folder() / "functions.lock").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return {int(version): digest for version, digest in pairs}


def digest() -> str:
    """Return the digest of the functions' texts and of their files' paths."""
    whole = hashlib.sha256()
    for path, text in files("functions"):
        whole.update(f"{path}\0{text}\0".encode())
    return whole.hexdigest()[:16]


def test_functions_are_those_of_their_version() -> None:
    """The last line is of this code's schema version, and of its functions."""
    wanted = f"{code_version()} {digest()}"
    version = max(locked())
    assert f"{version} {locked()[version]}" == wanted, (
        "sql/functions has changed. If its schema version is released, add a migration. Then the last line of sql/functions.lock "
        f"is: {wanted}"
    )


def test_versions_are_in_order() -> None:
    """Each version has one line, behind that of the version before."""
    assert list(locked()) == sorted(locked())
    lines = (sql_folder() / "functions.lock").read_text(encoding="utf-8").splitlines()
    assert len(locked()) == len([line for line in lines if line and not line.startswith("#")])
