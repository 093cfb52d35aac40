"""Which faults come when: a pure function of the seed, so that a run that went wrong can be had again."""

from __future__ import annotations

import random
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

WORKERS = 4
PRODUCERS_CABLE = WORKERS  # the target that is not a worker


class Fault(StrEnum):
    """Every kind of fault, in the words of the story."""

    KILL = "kill -9 a worker"
    STOP = "stop a worker past its lease"
    ASK = "ask a worker to end"
    POISON = "poison pill"
    RESTART_FAST = "restart the server, fast"
    RESTART_IMMEDIATE = "restart the server, immediate"
    END_LISTENER = "terminate a listener"
    END_CLAIMER = "terminate a claimer"
    END_SETTLER = "terminate a settler"
    END_HANDLER = "terminate a handler's transaction"
    FREEZE = "freeze a cable"
    CUT = "cut a cable"
    DELAY = "delay a cable"
    LOSE_REPLIES = "lose replies"
    DEAFEN = "deafen a listener"
    SNAPSHOT = "hold an old snapshot"
    FILL = "fill the connections"
    CANCEL = "cancel at random"


# How many of each in two minutes; and in the long run, whatever its minutes.
SHORT: Mapping[Fault, int] = MappingProxyType(
    {
        Fault.KILL: 4,
        Fault.STOP: 2,
        Fault.ASK: 2,
        Fault.POISON: 1,
        Fault.RESTART_FAST: 1,
        Fault.RESTART_IMMEDIATE: 1,
        Fault.END_LISTENER: 2,
        Fault.END_CLAIMER: 2,
        Fault.END_SETTLER: 2,
        Fault.END_HANDLER: 2,
        Fault.FREEZE: 2,
        Fault.CUT: 2,
        Fault.DELAY: 1,
        Fault.LOSE_REPLIES: 3,
        Fault.DEAFEN: 1,
        Fault.SNAPSHOT: 1,
        Fault.FILL: 1,
        Fault.CANCEL: 6,
    }
)
LONG: Mapping[Fault, int] = MappingProxyType(
    {
        Fault.KILL: 62,
        Fault.STOP: 22,
        Fault.ASK: 30,
        Fault.POISON: 4,
        Fault.RESTART_FAST: 16,
        Fault.RESTART_IMMEDIATE: 16,
        Fault.END_LISTENER: 16,
        Fault.END_CLAIMER: 16,
        Fault.END_SETTLER: 16,
        Fault.END_HANDLER: 16,
        Fault.FREEZE: 24,
        Fault.CUT: 20,
        Fault.DELAY: 10,
        Fault.LOSE_REPLIES: 24,
        Fault.DEAFEN: 8,
        Fault.SNAPSHOT: 8,
        Fault.FILL: 8,
        Fault.CANCEL: 100,
    }
)

# How long each lasts, in seconds; a freeze is a hiccup or outlasts the lease (stage.LEASE_SECONDS).
LASTS: Mapping[Fault, tuple[float, ...]] = MappingProxyType(
    {
        Fault.RESTART_FAST: (0.0, 1.0),
        Fault.RESTART_IMMEDIATE: (0.0, 1.0),
        Fault.FREEZE: (2.0, 9.0),
        Fault.DELAY: (4.0,),
        Fault.DEAFEN: (17.0,),
        Fault.SNAPSHOT: (8.0,),
        Fault.FILL: (3.0,),
    }
)


@attrs.frozen(kw_only=True)
class Planned:
    """One fault to come."""

    at: float  # seconds from the start
    fault: Fault
    target: int  # which worker, or PRODUCERS_CABLE
    seconds: float  # how long it lasts, of those that last

    def __str__(self) -> str:
        lasting = f" for {self.seconds:g} s" if self.seconds else ""
        return f"{self.at:7.1f}  {self.fault.value}{lasting}, target {self.target}"


def plan(seed: int, seconds: float, counts: Mapping[Fault, int]) -> list[Planned]:
    """Return the faults of a run in the order of their times.

    Each kind is spread over the run, one in each of as many slices; what lasts ends within the run.
    """
    chosen = random.Random(seed)
    planned = []
    for fault, count in counts.items():
        lasts = LASTS.get(fault, (0.0,))
        room = max(seconds - max(lasts), 0.0)
        for number in range(count):
            cables = fault in {Fault.FREEZE, Fault.CUT, Fault.LOSE_REPLIES}
            planned.append(
                Planned(
                    at=round((number + chosen.random()) * room / count, 1),
                    fault=fault,
                    target=chosen.randrange(WORKERS + 1 if cables else WORKERS),
                    seconds=lasts[number % len(lasts)],
                )
            )
    return sorted(planned, key=lambda one: (one.at, one.fault))


def scaled(counts: Mapping[Fault, int], factor: float) -> dict[Fault, int]:
    """Return the counts for a run of another length, at least one of each."""
    return {fault: max(round(count * factor), 1) for fault, count in counts.items()}
