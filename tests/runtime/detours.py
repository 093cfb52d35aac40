"""Detours: a test's own function on the way between a verb of the ledger and its answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from pgnotifyq.ledger.ask import Plan
from pgnotifyq.wire import plans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    import pytest

    from pgnotifyq.ledger.ask import Steps, Verb

Go: TypeAlias = "Callable[[], Awaitable[Any]]"
"""What asks the verb, and returns its answer."""
Way: TypeAlias = "Callable[..., Awaitable[Any]]"
"""Given `Go` and the verb's keywords; returns the answer that the asker gets."""

_take = plans._take


@attrs.frozen(eq=False)
class _Detour:
    """A step that leads through a test's function."""

    verb: Verb[Any]
    way: Way
    keywords: dict[str, Any]


async def _take_or_detour(link: Any, step: Any) -> Any:
    if not isinstance(step, _Detour):
        return await _take(link, step)
    return await step.way(partial(plans.follow, link, step.verb), **step.keywords)


def detour(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, way: Way) -> None:
    """Lead a verb of a module through `way` from now on. A second detour of the same verb takes the first one's place."""
    true = getattr(module, name)
    true = getattr(true, "true", true)

    def make(*arguments: Any, **keywords: Any) -> Plan[Any]:
        def steps() -> Steps[Any]:
            step: Any = _Detour(true(*arguments, **keywords), way, keywords)
            return (yield step)

        return Plan(steps)

    make.true = true  # type: ignore[attr-defined]
    monkeypatch.setattr(plans, "_take", _take_or_detour)
    monkeypatch.setattr(module, name, make)
