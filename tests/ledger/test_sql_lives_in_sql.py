"""SQL text lives in `sql/`, so that rights can be granted, and statements judged, by reading one folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgnotifyq.ledger.statements import files, sql_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).parents[2] / "pgnotifyq"
KINDS = ("migrations", "functions", "queries", "bookkeeping", "sessions")
COLUMNS_MAX = 100

# The beginning of a statement, or what only SQL says.
STATEMENT = re.compile(
    r"\s*(select|insert into|update|delete from|with \w+ as|merge into|copy|set|reset|show|begin|start transaction|commit"
    r"|rollback|abort|savepoint|release savepoint|prepare|execute|deallocate|declare|fetch|close all|listen|unlisten|notify"
    r"|create|alter|drop|truncate|grant|revoke|lock|call|do|discard|analyze|vacuum|explain)[ ;]"
    r"|.*\b(select .* from |insert into |update \S+ set |delete from |set_config|current_setting|pg_\w+\()",
    re.DOTALL,
)

# What stays in Python, and why.
STAYS = {
    ("ledger/statements.py", "select * from "): "the call of a function, whose name and types are the verb's; one place makes all",
    ("ledger/schema.py", "begin;"): "the frame of the script that `migrate --dry-run` prints for psql",
    ("ledger/schema.py", "commit;"): "the same",
    ("wire/notifications.py", "listen {}"): "a channel is a name, which no parameter can be",
    ("wire/notifications.py", "unlisten {}"): "the same",
    ("testing/database.py", "create database {} template {} strategy file_copy"): "the same, and no schema's",
    ("testing/database.py", "drop database if exists {} with (force)"): "the same",
    ("wire/callers.py", "select 1"): "what has SQLAlchemy begin its transaction; a word of any schema's",
    ("wire/plans.py", "savepoint pgnotifyq_verb"): "the caller's transaction, framed as psycopg frames our own",
    ("wire/plans.py", "release savepoint pgnotifyq_verb"): "the same",
    ("wire/plans.py", "rollback to savepoint pgnotifyq_verb"): "the same",
    ("cli/doctor.py", "alter role "): "said to people: what to do next",
    ("cli/doctor.py", " reset (autovacuum_enabled)"): "the same",
    ("cli/doctor.py", " reset it, or the database, or the server"): "the same",
    ("cli/doctor.py", "select * from job_troubles in the schema"): "the same",
    ("cli/doctor.py", "set autovacuum = on"): "the same",
    ("cli/doctor.py", "execute on "): "the same: a right by its name",
    ("cli/doctor.py", "dead rows cannot be removed meanwhile and claims slow down; end it, or: select pg_terminate_backend("): "the same",
    ("otel.py", "create "): "the name of a span, as the conventions have it",
}  # fmt: skip


def texts(path: Path) -> Iterator[str]:
    """Return the texts of a module, each piece of an f-string by itself, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in said and isinstance(node.value, str | bytes):
            yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


def statements() -> set[tuple[str, str]]:
    """Return what looks like SQL in the package, by module."""
    return {
        (path.relative_to(PACKAGE).as_posix(), text)
        for path in PACKAGE.rglob("*.py")
        for text in texts(path)
        if STATEMENT.match(text)
    }


def test_no_statement_in_python() -> None:
    """A new one is a file of sql/, asked as a verb of the ledger. One that has gone leaves the list."""
    assert statements() == set(STAYS)


@pytest.mark.parametrize(
    "text",
    ["select 1", "update {schema}.jobs set state = %s", "\n  delete from {}", "set local role x", "unlisten *", "commit;",
     "; select pg_sleep(1)", "a, set_config('role', %s, true)", "drop table x", "with a as (select 1) select"],
)  # fmt: skip
def test_statement_is_seen(text: str) -> None:
    """The test above would see it."""
    assert STATEMENT.match(text)


def test_every_file_is_of_a_kind_and_has_a_head() -> None:
    """No SQL lies where nothing reads it, and each file begins by saying what it is."""
    found = {f"{kind}/{path}.sql": text for kind in KINDS for path, text in files(kind)}
    root = Path(str(sql_folder()))
    assert set(found) == {path.relative_to(root).as_posix() for path in root.rglob("*.sql")}
    assert [path for path, text in found.items() if not text.startswith("-- ")] == []
    wordless = [
        path for path, text in found.items()
        if not path.startswith("migrations/")
        and not re.match(rf"-- ({Path(path).stem}\b|\w+(, \w+)*: )", text)
    ]  # fmt: skip
    assert wordless == []


def test_every_file_is_asked() -> None:
    """What is asked by name is asked: a statement that nobody uses any more goes."""
    said = {text for path in PACKAGE.rglob("*.py") for text in texts(path)}
    asked = {f"{kind}/{path}" for kind in ("queries", "bookkeeping", "sessions") for path, _ in files(kind) if path in said}
    assert asked == {f"{kind}/{path}" for kind in ("queries", "bookkeeping", "sessions") for path, _ in files(kind)}
