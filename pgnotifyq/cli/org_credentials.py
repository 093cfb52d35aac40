"""The command `credentials`: set, delete, list and rotate them. No command prints one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cyclopts import App

from pgnotifyq.cli.act import run_with
from pgnotifyq.cli.org import named, tell
from pgnotifyq.cli.output import print_json, print_rows
from pgnotifyq.cli.parameters import AsJson, Dsn, Limit, OfAnyOrg, OfOrg, Schema
from pgnotifyq.ledger import organisation
from pgnotifyq.model.credentials import CredentialKeys, SealedCredential, check_credential_name, new_key
from pgnotifyq.model.errors import ConfigError, CredentialSealed
from pgnotifyq.model.organisation import org
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

    from pgnotifyq.wire.connection import Connection

COLUMNS = ["org", "org_id", "name", "key_id", "changed_at", "changed_by"]
BATCH_MAX = 100

credentials = App(name="credentials", help="The credentials of tenants: set, delete, list and rotate them.")


@credentials.command(name="new-key")
def new_key_() -> int:
    """Print a new key, for PGNOTIFYQ_CREDENTIALS_KEYS or its file. Keep it: nobody else has it."""
    print(new_key())
    return 0


@credentials.command(name="set")
def set_(name: str, /, *, of: OfOrg, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Set a credential of a tenant, read from standard input, or asked for in a terminal."""
    check_credential_name(name)
    keys = CredentialKeys.from_environment()
    sealed = keys.seal(org(of), name, _secret(name))

    async def act(connection: Connection[TupleRow]) -> int:
        async with connection.transaction():
            await named(connection, schema, of)
            await ask(connection, organisation.set_credential(schema, sealed))
            await _note(connection, schema, sealed, "credential.set")
        tell({"org_id": str(sealed.org_id), "name": name, "key_id": sealed.key_id}, f"{name} is set", as_json=as_json)
        return 0

    return run_with(dsn, schema, act)


@credentials.command
def delete(name: str, /, *, of: OfOrg, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Delete a credential of a tenant. Exit code 1 if there was none."""
    org_id = org(of)

    async def act(connection: Connection[TupleRow]) -> int:
        async with connection.transaction():
            was_there = await ask(connection, organisation.delete_credential(schema, org_id, name))
            if was_there:
                await ask(connection, organisation.audit_for(schema, org_id, "credential.deleted", {"name": name}))
        tell({"deleted": was_there}, f"{name} is deleted" if was_there else f"there was no {name}", as_json=as_json)
        return 0 if was_there else 1

    return run_with(dsn, schema, act)


@credentials.command(name="list")
def list_(
    *, of: OfAnyOrg = None, limit: Limit = 1000, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq"
) -> int:
    """List which credentials there are, by tenant and name, and the key that has sealed each."""
    org_id = None if of is None else org(of)

    async def act(connection: Connection[TupleRow]) -> int:
        found = await ask(connection, organisation.list_credentials(schema, org_id, limit=limit))
        print_rows(found, COLUMNS, as_json=as_json, nothing="no credentials")
        return 0

    return run_with(dsn, schema, act)


@credentials.command
def rotate(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Seal with the first key what other keys have sealed. Exit code 1 if some did not open."""
    keys = CredentialKeys.from_environment()

    async def act(connection: Connection[TupleRow]) -> int:
        rotated, left = 0, list[SealedCredential]()
        after: SealedCredential | None = None
        while batch := await ask(connection, organisation.stale_credentials(schema, keys.key_id, after=after, limit=BATCH_MAX)):
            for each in batch:
                try:
                    anew = keys.seal(each.org_id, each.name, keys.open(each))
                except CredentialSealed as error:
                    left.append(each)
                    print(f"pgnotifyq: {error}", file=sys.stderr)
                    continue
                async with connection.transaction():
                    # If another session has set the credential meanwhile, that one stays. The next
                    # run looks at it.
                    if await ask(connection, organisation.reseal_credential(schema, each, anew)):
                        rotated += 1
                        await _note(connection, schema, anew, "credential.rotated")
            after = batch[-1]
        told = {"rotated": rotated, "left": [{"org_id": str(each.org_id), "name": each.name} for each in left]}
        print_json(told) if as_json else print(f"rotated {rotated} to key {keys.key_id}")
        return 1 if left else 0

    return run_with(dsn, schema, act)


async def _note(connection: Connection[TupleRow], schema: str, sealed: SealedCredential, action: str) -> None:
    details = {"name": sealed.name, "key_id": sealed.key_id}
    await ask(connection, organisation.audit_for(schema, sealed.org_id, action, details))


def _secret(name: str) -> str:
    """Return what is typed or piped, without the end of its line.

    Raises:
        ConfigError: it is no text in the encoding of the terminal.
    """
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"{name}: ")
    try:
        piped = sys.stdin.read()
    except UnicodeDecodeError:
        # `from None`, because the decoding error has the value in it.
        raise ConfigError(f"credential {name} is not a text in {sys.stdin.encoding.upper()}: put bytes into base64") from None
    return piped.removesuffix("\n").removesuffix("\r")
