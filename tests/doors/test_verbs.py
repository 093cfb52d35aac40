"""One table of verbs: each client has them all, by the same name, for the same arguments, with the same words."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import pgnotifyq
import pgnotifyq.aio
import pgnotifyq.sync
from pgnotifyq.doors.verbs import Verbs

CLIENTS: dict[str, Any] = {"trio": pgnotifyq.Client, "asyncio": pgnotifyq.aio.Client, "sync": pgnotifyq.sync.Client}
# What a door does by itself: no statement waits for a job or for many, and none makes a client.
BY_THE_DOOR = {"wait", "drain", "stack", "for_org", "watch", "follow_logs", "events"}
# They return what is iterated: where nothing is awaited, another kind of it.
ITERATED = {"watch", "follow_logs", "events"}


def public_methods(kind: type) -> dict[str, Any]:
    """Return what a class offers."""
    return {name: method for name, method in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def table() -> set[str]:
    """Return the names of the verbs that doors/verbs.py has."""
    return {
        name for name, method in public_methods(Verbs).items() if re.match(r"(Ask|Plan)\[", str(method.__annotations__["return"]))
    }


def differences(clients: dict[str, Any]) -> list[str]:
    """Return how clients differ from the table, and from the one on trio."""
    found = []
    for name, client in clients.items():
        verbs = public_methods(client)
        found += [f"{name} {verb}: not in both" for verb in sorted(verbs.keys() ^ (table() | BY_THE_DOOR))]
        for verb, method in public_methods(clients["trio"]).items():
            if verb in verbs:
                found += [f"{name} {verb}: {what}" for what in between(method, verbs[verb])]
    return found


def between(method: Any, other: Any) -> list[str]:
    """Return in what two methods differ that a caller would notice."""
    differs = []
    signatures = [
        inspect.signature(one).replace(return_annotation=None) if one.__name__ in ITERATED else inspect.signature(one)
        for one in (method, other)
    ]
    if signatures[0] != signatures[1]:
        differs.append(f"{inspect.signature(method)} or {inspect.signature(other)}")
    ours, theirs = sections(method), sections(other)
    differs += [f"{name} reads {ours.get(name)} or {theirs.get(name)}" for name in ("", "Raises", "Returns") if ours.get(name) != theirs.get(name)]  # fmt: skip
    if described(ours) != described(theirs):
        differs.append(f"describes {described(ours)} or {described(theirs)}")
    return differs


def sections(method: Any) -> dict[str, str]:
    """Return the first line of a docstring, by "", and its sections, by their names."""
    text = inspect.getdoc(method) or ""
    first, _, rest = text.partition("\n")
    found = {"": first}
    for paragraph in rest.split("\n\n"):
        head = re.match(r"\s*(\w+):(.*)", paragraph, re.DOTALL)
        if head is not None:
            found[head[1]] = head[2].strip()
    return found


def described(told: dict[str, str]) -> list[str]:
    """Return the names of the arguments that a docstring describes."""
    return re.findall(r"^ *(\w+):", told.get("Args", ""), re.MULTILINE)


def test_every_client_has_every_verb() -> None:
    """By the same name, with the same signature, and the same account of what it returns and raises."""
    assert differences(CLIENTS) == []
    assert {"enqueue", "enqueue_many", "cancel", "get", "requeue"} <= table()


def test_a_verb_of_one_client_alone_is_found() -> None:
    """One more verb, one less, another default, and another error are each told."""

    class More(pgnotifyq.sync.Client):
        def renew(self) -> None: ...

    class Other(pgnotifyq.sync.Client):
        def stats(self, *, limit: int = 51) -> list[pgnotifyq.QueueRow]:
            """Return what each queue holds, by name."""
            raise NotImplementedError

        def get(self, job_id: Any) -> pgnotifyq.Job:
            """Return a job.

            Raises:
                KeyError: there is none.
            """
            raise NotImplementedError

    class Less:
        pass

    assert differences({"trio": pgnotifyq.Client, "sync": More}) == ["sync renew: not in both"]
    assert {found.split(":")[0] for found in differences({"trio": pgnotifyq.Client, "sync": Other})} == {"sync stats", "sync get"}
    assert len(differences({"trio": pgnotifyq.Client, "sync": Less})) == len(table() | BY_THE_DOOR)


def test_every_client_opens_alike() -> None:
    """With the same arguments, whose words are the same."""
    opened = [inspect.unwrap(door.open_client) for door in (pgnotifyq, pgnotifyq.aio, pgnotifyq.sync)]
    first, *others = opened
    for other in others:
        assert list(inspect.signature(first).parameters.values()) == list(inspect.signature(other).parameters.values())
        assert sections(first).get("Raises") == sections(other).get("Raises")
        assert described(sections(first)) == described(sections(other))


@pytest.mark.parametrize("door", [pgnotifyq.aio, pgnotifyq.sync])
def test_a_verb_returns_what_it_says(door: Any) -> None:
    """A client's method returns what the verb of the table answers, by annotation."""
    for name in table():
        method = getattr(door.Client, name)
        told = method.__annotations__["return"]
        verb = public_methods(Verbs)[name].__annotations__["return"]
        assert re.fullmatch(r"(Ask|Plan)\[(.*)\]", verb)[2] == told  # type: ignore[index]
