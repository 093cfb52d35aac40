"""Answers to questions about a tenant, in a test: from the test itself, or from its database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from pgnotifyq.ledger import organisation
from pgnotifyq.model.credentials import CredentialKeys
from pgnotifyq.runtime.organisations import credential_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.model.credentials import CredentialsProvider
    from pgnotifyq.model.job import OrgId

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class Desk:
    """Settings and credentials that a test gives. Its database has what the test does not give."""

    schema: str
    tell: Callable[[Verb[Any]], Awaitable[Any]]  # raises NoDatabaseInTest if there is no database
    provider: CredentialsProvider | CredentialKeys | None  # the registry's
    config: Mapping[str, Any] | None = None
    credentials: Mapping[str, str] | None = None

    async def ask(self, verb: Verb[T]) -> T:
        """Ask a verb of the test's database."""
        answer: T = await self.tell(verb)
        return answer

    async def config_of(self, org_id: OrgId) -> Mapping[str, Any]:
        """Return the settings that the test gives, or those in its database."""
        if self.config is not None:
            return self.config
        return await self.ask(organisation.config(self.schema, org_id))

    async def credential_of(self, org_id: OrgId, name: str) -> str | None:
        """Return a credential that the test gives, or the provider's, or one in its database."""
        if self.credentials is not None:
            return self.credentials.get(name)
        return await credential_of(self.provider, org_id, name, self._open)

    async def _open(self, org_id: OrgId, name: str) -> str | None:
        keys = self.provider if isinstance(self.provider, CredentialKeys) else CredentialKeys.from_environment()
        found = {each.name: each for each in await self.ask(organisation.sealed(self.schema, org_id))}.get(name)
        return None if found is None else keys.open(found)
