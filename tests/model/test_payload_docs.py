"""docs/payloads.md: every block is run, as one program, by a real worker; and what it says of errors is what they say."""

from __future__ import annotations

import re
import sys
import textwrap
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import pgnotifyq
from pgnotifyq.model.payload import encode
from tests.doors.support import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("pydantic")
PAGE = (Path(__file__).parents[2] / "docs" / "payloads.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- test: ([\w ]+) -->\n```\w*\n(.*?)```", PAGE, re.DOTALL))
PROGRAM = ("handler", "enqueue", "refused", "unions", "pydantic", "misfit", "refuse", "versions", "converter")


@pytest.fixture
def shop(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The page's Python, as one module."""
    module = types.ModuleType("shop")
    sys.modules["shop"] = module
    for name in PROGRAM:
        exec(compile(BLOCKS[name], f"docs/payloads.md: {name}", "exec"), module.__dict__)
    yield module
    del sys.modules["shop"]


def as_told(text: str) -> str:
    return " ".join(text.split())


def test_every_block_is_run() -> None:
    """None of the page's blocks is left out of this file, and none is without a name."""
    assert len(BLOCKS) == PAGE.count("```") / 2
    assert set(BLOCKS) == {*PROGRAM, "sql", "sql versions", "refusal", "misfit told"}


def test_what_is_refused_is_told_as_the_page_says(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, but for where lines end."""
    assert as_told(capsys.readouterr().out) == as_told(BLOCKS["refusal"])


async def test_a_payload_that_does_not_fit_is_told_as_the_page_says(
    shop: Any, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the client."""
    capsys.readouterr()
    async with pgnotifyq.open_client(dsn, registry=shop.registry) as client:
        await shop.enqueue_wrongly(client)
    assert as_told(capsys.readouterr().out) == as_told(BLOCKS["misfit told"])


async def test_the_jobs_of_the_page(shop: Any, dsn: str) -> None:
    """By the client and by SQL: orders are shipped, pictures of both versions are resized, prices doubled."""
    shop.registry.include(shop.shop)
    with psycopg.connect(dsn, autocommit=True) as session:
        for name in ("sql", "sql versions"):
            for statement in filter(str.strip, BLOCKS[name].split(";\n")):
                session.execute(statement.encode())
        by_sql = [row[0] for row in session.execute("select id from pgnotifyq.jobs order by id")]
    async with worker(dsn, shop.registry), pgnotifyq.open_client(dsn, registry=shop.registry) as client:

        async def result(job_id: Any) -> Any:
            return (await client.wait(job_id, timeout_seconds=20)).result

        assert await result(await shop.enqueue(client)) == ["cup"]
        assert [await result(job_id) for job_id in by_sql] == [["cup"], 64, 64]
        assert await result(await client.enqueue(shop.pay, shop.Bank("bank", "DE"))) == "Bank"
        assert await result(await client.enqueue(shop.pay, shop.UUID(int=1))) == "UUID"
        assert await result(await client.enqueue(shop.double, shop.Money(250))) == "500 ct"
        job = await client.get(await client.enqueue(shop.resize, shop.Resize("a", 5), delay_seconds=60))
        assert job.payload == {"$version": 3, "path": "a", "width": 5}


def test_strict_handlers_of_the_page(shop: Any) -> None:
    """One refuses an unknown key, its neighbour drops it."""
    line = {"sku": "cup", "price": "1", "colour": "red"}
    with pytest.raises(pgnotifyq.InvalidPayload, match="colour"):
        shop.charge.job(line)
    assert shop.import_line.read(line) == shop.Line("cup", shop.Decimal(1))


ROWS = [
    [cell.strip().replace("\\|", "|") for cell in line.strip("|").split(" | ")]
    for line in PAGE.split("## What may be annotated")[1].split("##")[0].splitlines()
    if line.startswith("| ") and "annotation |" not in line
]


def test_the_table_of_kinds() -> None:
    """Each name in its first column is understood."""
    source = textwrap.dedent("""
        from collections import *; from collections.abc import Mapping; from datetime import *; from decimal import *
        from enum import Enum; from typing import *; from uuid import UUID; import pydantic, pgnotifyq
    """)
    names: dict[str, Any] = {}
    exec(source, names)
    known = {"K": str, "T": int, "A": int}
    registry = pgnotifyq.JobRegistry()
    seen = 0
    for row in ROWS:
        for code in re.findall(r"`([^`]+)`", row[0]):
            if code in {
                "TypedDict",
                "NamedTuple",
                "Enum",
                "Literal",
                "NewType",
                "Page[Line]",
            }:  # what is made of these is tried elsewhere
                continue
            wanted = eval(code.replace("...", "int, ..."), names, dict(known))

            def work(payload: Any) -> None:
                """Do nothing."""

            work.__annotations__["payload"] = wanted
            registry.handler(f"kind_{seen}")(work)
            seen += 1
    assert seen > 20


def test_texts_of_the_table() -> None:
    """As the second column has them."""
    names: dict[str, Any] = {}
    exec("from datetime import *", names)
    assert encode(names["timedelta"](seconds=90)) == '"PT90S"'
    assert encode(b"\x00" * 60) == f'"{"A" * 80}"'
