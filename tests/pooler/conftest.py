"""A pooler a test, before one database a file; and workers whose statements go through it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ledger.conftest import dsn, dsn_of_file
from tests.pooler.support import BINARY, KEEPS_TRACK, open_pooler
from tests.runtime.conftest import place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.pooler.support import Pooler

__all__ = ["dsn", "dsn_of_file", "place"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what is missing, and what for."""
    here = Path(__file__).parent
    for item in items:
        if BINARY is None and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="pgbouncer is not installed: apt-get install pgbouncer"))


@pytest.fixture
def pool(dsn: str) -> Iterator[Callable[..., Pooler]]:
    """A function that starts a pooler with some settings before the test's database."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(open_pooler(dsn, **settings))


MODES = {"loses statements": {"max_prepared_statements": 0} if KEEPS_TRACK else {}}
if KEEPS_TRACK:
    MODES["keeps track of statements"] = {"max_prepared_statements": 100}


@pytest.fixture(params=MODES)
def pooler(request: pytest.FixtureRequest, pool: Callable[..., Pooler]) -> Pooler:
    """A pooler that knows nothing of prepared statements; and, where there is one, a pooler that does."""
    return pool(**MODES[request.param])
