"""Run every attack: `python -m tests.attacks [--dsn SUPERUSER] [--only WORDS]`. Exit code 1 if one succeeds."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from pgnotifyq.embedded import open_temporary_server
from tests.attacks.catalogue import ATTACKS
from tests.attacks.running import run
from tests.attacks.stage import open_stage

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--dsn", help="of a superuser; default: an embedded server for the run")
    parser.add_argument("--only", default="", help="attacks whose line contains this")
    given = parser.parse_args(arguments)
    version = int(os.environ.get("PGNOTIFYQ_TEST_POSTGRES", "18"))
    failed = 0
    with nullcontext(None) if given.dsn else open_temporary_server(version=version, settings={"fsync": "off"}) as server:
        dsn = given.dsn or (server.dsn if server else "")
        with open_stage(dsn) as stage:
            chosen = [attack for attack in ATTACKS if given.only in f"{attack.who}: {attack.name}"]
            for attack in chosen:
                outcome = run(attack, stage)
                failed += not outcome.is_held_off
                print(f"{outcome.verdict:<8}{attack.who:<9} {attack.name:<40} {outcome.why}"[:180])
    print(f"{len(chosen)} attacks, {failed} succeeded")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
