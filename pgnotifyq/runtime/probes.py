"""Probes: whether a worker lives, and whether it is ready, from what it said at its last beat.

Pure: `live` and `ready` decide over a `Vitals`, with the worker's settings. `http.py` answers with
what they decide.

Live means that a restart would not help. A worker fails this only if its loop is held, and only
when the loop has been held so long that the leases of the worker's jobs are lost: `lease_seconds -
margin_seconds`, 55 s at the defaults. Before that a restart would charge every other job of the
worker. If the database is away, workers stay live: else all of them would be restarted, again and
again. A worker that is starting is live, however long the application's lifespans take. It holds no
lease, and each restart would make it begin anew.

Ready means that a job which is enqueued now would start now.

- The worker works, and is not on its way out.
- The loop turns: no beat is overdue for longer than `loop_blocked_seconds`.
- The database has answered lately, and the last statement did not fail. A worker with nothing to do
  asks something every 12 s, because its listener proves itself. A worker that polls asks every
  second. A worker that is full asks at each heartbeat.
- The listener is proven. A worker that polls starts jobs within `poll_seconds`. If that will do,
  the prober says so: `/ready?polling=ok`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pgnotifyq.model.config import WorkerConfig
    from pgnotifyq.runtime.meter import Vitals

# A listener that has nothing to hear asks every 12 s, and waits 2.5 s for the answer.
DATABASE_SECONDS_MAX = 20.0
# The same for a worker that is full and polls, in heartbeats: one heartbeat may be late.
DATABASE_BEATS_MAX = 1.5


@attrs.frozen
class Check:
    """One thing that was looked at."""

    is_ok: bool
    says: str


def live(vitals: Vitals, config: WorkerConfig) -> dict[str, Check]:
    """Return what `/live` looks at, by name."""
    return {"loop": _loop(vitals, config.lease_seconds - config.margin_seconds)}


def ready(vitals: Vitals, config: WorkerConfig, *, polling_will_do: bool = False) -> dict[str, Check]:
    """Return what `/ready` looks at, by name."""
    return {
        "worker": Check(vitals.state == "working", vitals.state),
        "loop": _loop(vitals, config.loop_blocked_seconds),
        "database": _database(vitals, max(DATABASE_SECONDS_MAX, DATABASE_BEATS_MAX * config.heartbeat_seconds)),
        "listener": Check(vitals.is_listening or polling_will_do, "proven" if vitals.is_listening else "polling"),
    }


def _loop(vitals: Vitals, seconds_max: float) -> Check:
    held = vitals.silent_seconds()
    is_ok = held <= seconds_max
    # On any machine a beat is late by milliseconds. That says nothing.
    return Check(is_ok, "turning" if is_ok and held < 1 else f"held for {held:.1f} s")


def _database(vitals: Vitals, seconds_max: float) -> Check:
    if vitals.database_seconds is None:
        return Check(is_ok=False, says="not asked yet")
    # What is known is as old as the beat. While the loop is held nobody asks the database.
    seconds = vitals.database_seconds + vitals.silent_seconds()
    if not vitals.is_database_up:
        return Check(is_ok=False, says=f"away; answered {seconds:.1f} s ago")
    return Check(seconds <= seconds_max, f"answered {seconds:.1f} s ago")
