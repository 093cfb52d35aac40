"""The names that this package uses of psycopg, and that psycopg's documentation does not promise.

A release of psycopg may take one away. With such a release, the import of this package fails here,
in one line. Else it would fail later, in the middle of somebody's job. The oldest psycopg that has
all names is 3.3.0; `.ci/matrix` tests with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pgnotifyq._version import __version__
from pgnotifyq.model.errors import UnsupportedPsycopg

if TYPE_CHECKING:
    from collections.abc import Mapping

# By owner: a module, or module:class.
NAMES: dict[str, tuple[str, ...]] = {
    "psycopg:AsyncConnection": ("_connect_gen", "_pipeline_nolock"),
    "psycopg._connection_base:BaseConnection": (
        "_should_cancel",
        "_check_connection_ok",
        "_start_query",
        "_exec_command",
    ),
    "psycopg:AsyncCursor": ("_start_copy_gen", "_select_current_result"),
    "psycopg.transaction:AsyncTransaction": ("__aenter__", "__aexit__"),
    "psycopg.transaction:BaseTransaction": ("_enter_gen", "_exit_gen", "Status"),
    "psycopg._pipeline_async:AsyncPipeline": ("_exit_gen", "_exit"),
    "psycopg.copy:AsyncCopy": ("finish",),
    "psycopg.errors": ("CancellationTimeout", "ConnectionTimeout"),
    "psycopg.generators": ("notifies", "cancel", "connect", "execute"),
    "psycopg.waiting": ("Wait", "Ready"),
    "psycopg._conninfo_utils": ("get_param", "get_param_def", "is_ip_address", "split_attempts"),
    "psycopg._capabilities:Capabilities": ("has_cancel_safe",),
    "psycopg._preparing:PrepareManager": ("clear",),
}


def check_psycopg(names: Mapping[str, tuple[str, ...]] = NAMES) -> None:
    """Import psycopg, and find every name.

    Raises:
        UnsupportedPsycopg: psycopg has no libpq, or a name is missing. The message says what to
            install.
        ModuleNotFoundError: there is no psycopg.
    """
    try:
        importlib.import_module("psycopg")
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise UnsupportedPsycopg(
            "psycopg finds no libpq, PostgreSQL's client library: install it from your system's packages, or pgnotifyq[binary]"
        ) from error
    for owner, wanted in names.items():
        module, _, kind = owner.partition(":")
        for name in wanted:
            try:
                found: object = importlib.import_module(module)
                if kind:
                    found = getattr(found, kind)
                getattr(found, name)
            except (ModuleNotFoundError, AttributeError) as error:
                raise UnsupportedPsycopg(_worded(f"{owner}.{name}".replace(":", "."))) from error


def _worded(missing: str) -> str:
    version = importlib.import_module("psycopg").__version__
    return (
        f"psycopg {version} lacks {missing}, which pgnotifyq {__version__} drives it by:"
        " install a psycopg that has it (3.3.0 has all that is needed), or another pgnotifyq"
    )
