"""What a worker keeps of its tenants: settings and sealed credentials, read once and kept fresh.

A change of either is told on the channel that all workers hear (`+config`). The message names no
tenant, for anybody may listen. So the worker takes all that it keeps for stale. It reads a tenant's
settings or credentials anew when a handler next asks for them. Anybody may send the message, too.
Then a handler's question costs what it costs without a cache, a millisecond, and nothing is wrong.

Rules:

- What was read counts only if no change was told since the reading began.
- A notification may be lost. So nothing counts for longer than the worker's own backstop: thirty
  seconds while notifications are proven to arrive, one second while they are not.
- When the listener comes back, all is stale: nobody has listened meanwhile.
- At most TENANTS_MAX tenants are kept. The one that was asked for longest ago is dropped first.
- Credentials are kept as they are stored, sealed. They are opened for the handler that asks.

The questions have a connection of their own, opened when a handler first asks. On the claimer's
connection a long list would hold up claims. With a connection of the handlers' pool a handler could
wait for itself: it may have a transaction open, and the transactions of other handlers may have
used up the pool.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from pgnotifyq.ledger import organisation, workers
from pgnotifyq.model.credentials import CredentialKeys
from pgnotifyq.model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pgnotifyq.ledger.ask import Verb
    from pgnotifyq.model.credentials import CredentialsProvider, SealedCredential
    from pgnotifyq.model.job import OrgId
    from pgnotifyq.runtime.link import Link

T = TypeVar("T")

TENANTS_MAX = 1000  # a thousand settings objects of some hundred bytes each


class Kept(Generic[T]):
    """What was read of each tenant, until it is told to be stale, or too old."""

    def __init__(self, read: Callable[[OrgId], Awaitable[T]], seconds_max: Callable[[], float]) -> None:
        self._read = read
        self._seconds_max = seconds_max
        self._found: OrderedDict[OrgId, tuple[float, T]] = OrderedDict()
        self._news = 0  # grows when all becomes stale
        self._lock = trio.Lock()  # of many handlers that ask at once, one reads

    def forget(self) -> None:
        """Take all for stale, also what is being read now."""
        self._news += 1
        self._found.clear()

    async def get(self, org_id: OrgId) -> T:
        """Return what there is of a tenant."""
        if (found := self._fresh(org_id)) is not None:
            return found[1]
        async with self._lock:
            if (found := self._fresh(org_id)) is not None:
                return found[1]
            news, began_at = self._news, trio.current_time()
            value = await self._read(org_id)
            if news == self._news:
                self._found[org_id] = (began_at, value)
                while len(self._found) > TENANTS_MAX:
                    self._found.popitem(last=False)
            return value

    def _fresh(self, org_id: OrgId) -> tuple[float, T] | None:
        found = self._found.get(org_id)
        if found is None or trio.current_time() > found[0] + self._seconds_max():
            return None
        self._found.move_to_end(org_id)
        return found


class Organisations:
    """What handlers ask of their tenants, for all handlers of a worker."""

    def __init__(
        self,
        schema: str,
        link: Link,
        seconds_max: Callable[[], float],
        credentials: CredentialsProvider | CredentialKeys | None,
    ) -> None:
        self.schema = schema
        self._link = link
        self._given = credentials
        self._keys = credentials if isinstance(credentials, CredentialKeys) else None
        self._config = Kept(self._read_config, seconds_max)
        self._sealed = Kept(self._read_sealed, seconds_max)

    def forget(self) -> None:
        """Take all settings and credentials for stale."""
        self._config.forget()
        self._sealed.forget()

    async def ask(self, verb: Verb[T]) -> T:
        """Ask a verb about a tenant.

        A verb that may be repeated is repeated until the database is back. Before any other verb,
        the session must show that it is there: it may have ended unnoticed, if nobody has asked it
        anything for long.
        """
        if verb.may_repeat:
            return await self._link.ask(verb)
        await self._link.ask(workers.show_life(self.schema))
        return await self._link.ask_once(verb)

    async def config_of(self, org_id: OrgId) -> dict[str, Any]:
        """Return the settings of a tenant by their names. They are shared: change none."""
        return await self._config.get(org_id)

    async def credential_of(self, org_id: OrgId, name: str) -> str | None:
        """Return a credential of a tenant, or None.

        Raises:
            ConfigError: there is neither a provider nor a key.
            CredentialSealed: the credential does not open.
        """
        return await credential_of(self._given, org_id, name, self._open)

    async def _open(self, org_id: OrgId, name: str) -> str | None:
        if self._keys is None:
            self._keys = CredentialKeys.from_environment()
        found = (await self._sealed.get(org_id)).get(name)
        return None if found is None else self._keys.open(found)

    async def _read_config(self, org_id: OrgId) -> dict[str, Any]:
        return await self.ask(organisation.config(self.schema, org_id))

    async def _read_sealed(self, org_id: OrgId) -> dict[str, SealedCredential]:
        return {each.name: each for each in await self.ask(organisation.sealed(self.schema, org_id))}


async def credential_of(
    given: CredentialsProvider | CredentialKeys | None,
    org_id: OrgId,
    name: str,
    by_default: Callable[[OrgId, str], Awaitable[str | None]],
) -> str | None:
    """Return a credential from the program's own provider, or from the built-in store.

    Raises:
        ConfigError: the provider gave something that is not a text.
    """
    if given is None or isinstance(given, CredentialKeys):
        return await by_default(org_id, name)
    if inspect.iscoroutinefunction(given.get):
        value = await given.get(org_id, name)
    else:
        value = await trio.to_thread.run_sync(given.get, org_id, name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"the credentials' provider gave a {type(value).__name__} for {name}, and a credential is a text")
    return value


def seconds_max_of(*, backstop_seconds: float, poll_seconds: float, is_proven: Callable[[], bool]) -> Callable[[], float]:
    """Return a function that tells for how long what was read counts."""
    return lambda: backstop_seconds if is_proven() else poll_seconds
