"""Every private name of psycopg this package relies on, so that an upgrade fails here first."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import psycopg
import pytest
from psycopg import _pipeline_async, _server_cursor_async, cursor_async, transaction
from psycopg._connection_base import BaseConnection
from psycopg._pipeline_async import AsyncPipeline
from psycopg._preparing import PrepareManager

from pgnotifyq.model.errors import UnsupportedPsycopg
from pgnotifyq.wire.names import NAMES, check_psycopg

# What psycopg's own code calls in what this package overrides; none of it is called by name here.
ALSO = {
    "psycopg:AsyncConnection": ("_try_cancel", "_get_connection_params"),
    "psycopg._connection_base:BaseConnection": ("_notify_handler",),
}


@pytest.mark.parametrize("names", [NAMES, ALSO])
def test_names_are_there(names: dict[str, tuple[str, ...]]) -> None:
    """Every private name of psycopg that is relied on is still there."""
    check_psycopg(names)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ({"psycopg:AsyncConnection": ("connect", "_no_such")}, "psycopg.AsyncConnection._no_such"),
        ({"psycopg:NoSuchClass": ("run",)}, "psycopg.NoSuchClass.run"),
        ({"psycopg._no_such_module": ("run",)}, "psycopg._no_such_module.run"),
    ],
)
def test_name_that_is_missing(names: dict[str, tuple[str, ...]], missing: str) -> None:
    """The error is an ImportError that says in one line which name, of which psycopg, and what to install."""
    with pytest.raises(ImportError, match="install a psycopg that has it") as failed:
        check_psycopg(names)
    assert type(failed.value) is UnsupportedPsycopg
    assert f"psycopg {psycopg.__version__} lacks {missing}, " in str(failed.value)
    assert "\n" not in str(failed.value)


def failed_import(program: str, **environment: str) -> str:
    """Run a program that fails to import, and return the last line that it wrote."""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 1
    return ran.stderr.splitlines()[-1]


def test_import_without_libpq() -> None:
    """`import pgnotifyq` fails with one line that says what to install."""
    last = failed_import("import pgnotifyq", PSYCOPG_IMPL="c")  # an implementation that is not installed here
    assert last.startswith("pgnotifyq.model.errors.UnsupportedPsycopg: psycopg finds no libpq")
    assert "pgnotifyq[binary]" in last


def test_import_with_a_psycopg_that_lacks_a_name() -> None:
    """`import pgnotifyq` fails with that line."""
    last = failed_import("import psycopg.generators; del psycopg.generators.notifies; import pgnotifyq")
    assert last.startswith(
        f"pgnotifyq.model.errors.UnsupportedPsycopg: psycopg {psycopg.__version__} lacks psycopg.generators.notifies"
    )


def test_state_set_by_the_constructors() -> None:
    """The attributes this package reads or sets are still set by psycopg's constructors."""
    connection = inspect.getsource(BaseConnection.__init__)
    for name in ("_autocommit", "_adapters", "_closed", "_pipeline", "_notifies_backlog", "_notify_handler", "_prepared"):
        assert f"self.{name}" in connection or f"BaseConnection.{name}" in connection
    assert "self._lock" in inspect.getsource(AsyncPipeline.__init__)
    assert "self._to_flush" in inspect.getsource(PrepareManager.__init__)
    assert "self._prepared_idx" in inspect.getsource(PrepareManager.__init__)
    assert "_no_lock" in inspect.signature(AsyncPipeline.__init__).parameters


def test_only_overridden_places_enter_a_loop() -> None:
    """The asynchronous classes reach asyncio only where this package overrides them."""
    for module in (cursor_async, transaction, _pipeline_async, _server_cursor_async):
        assert "asyncio." not in inspect.getsource(module)
    methods = inspect.getmembers(psycopg.AsyncConnection, inspect.isfunction)
    assert {name for name, method in methods if "asyncio." in inspect.getsource(method)} == {"cancel_safe"}
