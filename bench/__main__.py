"""`python -m bench NAME [options]`."""

from __future__ import annotations

import importlib
import signal
import sys

SCRIPTS = (
    "compare", "drain", "scale", "pickup", "cancel", "kinds", "enqueue", "producers", "backlog", "history", "snapshot", "idle", "herd",
    "heartbeats", "soak", "profile", "against", "doors", "testing", "tenant", "observed", "cost", "batches", "schedules", "unique",
    "instructions", "turns",
)  # fmt: skip


def main() -> int:
    """Run one script by name."""
    if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
        print(f"usage: python -m bench {{{'|'.join(SCRIPTS)}}} [--help]", file=sys.stderr)
        return 2
    # An end by the default would leave the temporary server and the workers behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    name = sys.argv.pop(1)
    sys.argv[0] = f"bench {name}"
    importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
