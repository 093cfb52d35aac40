"""The options of `manage.py pgnotifyq` that are not a command's own."""

from __future__ import annotations

import argparse


def own_options() -> argparse.ArgumentParser:
    """Return a parser of our options, and of Django's for all commands. It knows no others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--backend")
    parser.add_argument("--reload", action="store_true")
    for name in ("--settings", "--pythonpath"):
        parser.add_argument(name)
    for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
        parser.add_argument(name, action="store_true")
    return parser
