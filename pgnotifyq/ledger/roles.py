"""Roles: who may do what, in the database's own words.

`sql/functions/roles` says which rights each kind of role has. `migrate` gives them, each time.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

import attrs
import psycopg
from psycopg import errors

from pgnotifyq.ledger.ask import Ask, nothing
from pgnotifyq.ledger.columns import rows, word
from pgnotifyq.ledger.errors import INVALID_JOB, raise_translated, said_of
from pgnotifyq.ledger.statements import call, session
from pgnotifyq.model.errors import ConfigError, MissingRights

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from pgnotifyq.ledger.ask import Answer

T = TypeVar("T")


class RoleKind(StrEnum):
    """What a role is for."""

    PRODUCER = "producer"
    WORKER = "worker"
    ADMIN = "admin"
    OBSERVER = "observer"
    TENANT = "tenant"


@attrs.frozen(kw_only=True)
class RoleFault:
    """A right that a role lacks, or that it has and should not have."""

    kind: RoleKind
    role_name: str
    fault: str  # missing, excess
    what: str
    remedy: str | None  # a statement; None: no statement fits in every case


@attrs.frozen(kw_only=True)
class TenantLogin:
    """The login that tenants' transactions run as."""

    role_name: str
    password: str = attrs.field(repr=False)


def keep(schema: str) -> Ask[list[str]]:
    """Give each known role the rights that it lacks; return what was done, for people.

    Source: sql/functions/roles/keep_roles.sql
    """
    return Ask(call("keep_roles", "", schema), (), _words, said_of(schema))


def act_as(role_name: str) -> Ask[None]:
    """Let the session act as the owner, a role that has no login.

    Raises:
        ConfigError: there is no such role.
        MissingRights: the connected role is no member of it.

    Source: sql/sessions/act_as.sql
    """

    def say(error: Exception) -> NoReturn:
        if isinstance(error, errors.InvalidParameterValue):
            raise ConfigError(f'role "{role_name}" does not exist: make it first, create role ... nologin') from error
        if isinstance(error, errors.InsufficientPrivilege):
            raise MissingRights(f'the connected role may not act as "{role_name}": grant it, with set true') from error
        raise error

    return Ask(session("act_as"), (role_name,), nothing, say)


def grant(schema: str, kind: RoleKind, role_name: str) -> Ask[None]:
    """Note what a role is. `keep` gives it the rights.

    Raises:
        ConfigError: there is no such role.

    Source: sql/functions/roles/keep_roles.sql
    """

    def say(error: Exception) -> NoReturn:
        if isinstance(error, psycopg.Error) and error.sqlstate == INVALID_JOB:
            raise ConfigError(f"{error.diag.message_primary}: {error.diag.message_hint}") from error
        raise_translated(error, schema)

    return Ask(call("grant_role", "text text", schema), (kind, role_name), nothing, say)


def make_tenant_login(schema: str) -> Ask[str]:
    """Make the login for tenants' transactions, and return its name. Its password is new.

    Raises:
        MissingRights: the connected role may make no roles.

    Source: sql/functions/roles/tenant_login.sql
    """

    def say(error: Exception) -> NoReturn:
        if isinstance(error, errors.InsufficientPrivilege):
            raise MissingRights(
                f"the tenants' login cannot be made: {error.diag.message_primary}; have an administrator make one, say"
                " --grant-tenant with its name, and give workers its address by --tenant-dsn"
            ) from error
        raise_translated(error, schema)

    return Ask(call("make_tenant_login", "", schema), (), word, say)


def tenant_login(schema: str) -> Ask[TenantLogin | None]:
    """Return the login that `make_tenant_login` made; None: there is none, or we may not ask.

    Source: sql/functions/roles/tenant_login.sql
    """

    def read(answer: Answer, encoding: str) -> TenantLogin | None:
        found = rows(answer, encoding)
        return TenantLogin(role_name=found[0][0], password=found[0][1]) if found else None

    return Ask(call("tenant_login", "", schema), (), read, _refused(None))


def tenant_key(schema: str) -> Ask[bytes | None]:
    """Return the key of the tokens that say which tenant a transaction is of.

    None: the connected role may not ask.

    Source: sql/functions/roles/tenant_login.sql
    """

    def read(answer: Answer, encoding: str) -> bytes | None:
        found = rows(answer, encoding)
        return bytes.fromhex(found[0][0]) if found and found[0][0] else None

    return Ask(call("tenant_key", "", schema), (), read, _refused(None))


def faults(schema: str, role_name: str | None = None, kind: RoleKind | None = None) -> Ask[list[RoleFault]]:
    """Return the rights that known roles lack, and those that they should not have.

    With `role_name`, return those of that role, as if it were of this `kind`.

    Source: sql/functions/roles/role_faults.sql
    """

    def read(answer: Answer, encoding: str) -> list[RoleFault]:
        return [
            RoleFault(kind=RoleKind(of_kind), role_name=name, fault=fault, what=what, remedy=remedy)
            for of_kind, name, fault, what, remedy in rows(answer, encoding)
        ]

    return Ask(call("role_faults", "text text", schema), (role_name, kind), read)


def _refused(answer: T) -> Callable[[Exception], T]:
    """Return an `on_error` that returns `answer` if a right is missing."""

    def say(error: Exception) -> T:
        if isinstance(error, errors.InsufficientPrivilege):
            return answer
        raise error

    return say


def _words(answer: Answer, encoding: str) -> list[str]:
    return [said for (said,) in rows(answer, encoding)]
