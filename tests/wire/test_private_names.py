"""Every private name of psycopg this package relies on, so that an upgrade fails here first."""

from __future__ import annotations

import inspect

import psycopg
import pytest
from psycopg import (
    _conninfo_utils,
    _pipeline_async,
    _server_cursor_async,
    cursor_async,
    errors,
    generators,
    transaction,
    waiting,
)
from psycopg._capabilities import capabilities
from psycopg._connection_base import BaseConnection
from psycopg._pipeline_async import AsyncPipeline
from psycopg._preparing import PrepareManager
from psycopg.copy import AsyncCopy
from psycopg.transaction import AsyncTransaction, BaseTransaction

EXPECTED = {
    psycopg.AsyncConnection: ("_connect_gen", "_pipeline_nolock", "_try_cancel", "_get_connection_params"),
    BaseConnection: (
        "_cancel_gen",
        "_should_cancel",
        "_check_connection_ok",
        "_notify_handler",
        "_start_query",
        "_exec_command",
    ),
    psycopg.AsyncCursor: ("_start_copy_gen", "_select_current_result"),
    AsyncTransaction: ("__aenter__", "__aexit__"),
    BaseTransaction: ("_enter_gen", "_exit_gen", "_check_enter", "Status"),
    AsyncPipeline: ("_exit_gen", "_exit"),
    AsyncCopy: ("finish",),
    errors: ("_WaitTimeout", "CancellationTimeout", "ConnectionTimeout"),
    generators: ("notifies", "cancel", "connect", "execute"),
    waiting: ("Wait", "Ready"),
    _conninfo_utils: ("get_param", "get_param_def", "is_ip_address", "split_attempts"),
    type(capabilities): ("has_cancel_safe",),
}


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in EXPECTED.items() for name in names])
def test_name_exists(owner: object, name: str) -> None:
    """The name is still there."""
    assert hasattr(owner, name)


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
