"""One word for one thing: what the functions of sql/ call their parameters, against the table in sql/README.md."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from pgnotifyq.ledger.statements import files, sql_folder
from tests.ledger.support import fetch

if TYPE_CHECKING:
    from pgnotifyq.wire.blocking import Connection

KEYS = {"uuid", "uuid[]", "text[]"}  # what is easily called by three names
# One word, two types, and why.
TWO_TYPES = {
    "attempts": "how many, of one job; of a batch an array, and the word has no other plural",
    "job": "a row of jobs for may_start; of the type claimed from a claim",
    "priority": "enqueue takes any integer, so that it need not be cast, and says what does not fit",
    "job_id": "wake takes what goes into a notification",
    "headers": "a claimed job's are text, as its payload; of a batch an array, and the word has no other plural",
    "payload": "a claimed job's is text: the worker reads it without a detour",
    "payloads": "a door sends texts; functions that ask each other pass on what was read once",
    "rules": "the same",
    "saved": "as payload",
}


@attrs.frozen
class Parameter:
    """A parameter or a result column of a function."""

    function: str
    name: str
    kind: str
    is_given: bool  # else it is a result


def table() -> tuple[set[str], set[str]]:
    """Return the words of sql/README.md: those to use, and those not to."""
    text = (Path(str(sql_folder())) / "README.md").read_text(encoding="utf-8").partition("## Words")[2].partition("\n## ")[0]
    cells = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    wanted = {word for first, *_ in cells for word in re.findall(r"`(\w+)`", first)}
    unwanted = {word.strip() for *_, last in cells for word in last.split(",") if word.strip()}
    return wanted, unwanted - wanted  # a word that means something else may be said of that


def folders() -> dict[str, str]:
    """Return the folder of sql/functions that makes each function."""
    return {
        name: path.partition("/")[0]
        for path, text in files("functions")
        for name in re.findall(r"create or replace function \{schema\}\.(\w+)", text)
    }


@pytest.fixture
def parameters(connection: Connection[Any]) -> list[Parameter]:
    """Return the parameters of all our functions, by the catalogue."""
    found = fetch(
        connection,
        "select p.proname::text, a.name, replace(format_type(coalesce(p.proallargtypes[a.n], p.proargtypes[a.n - 1]), null),"
        " 'pgnotifyq.', ''), coalesce(p.proargmodes[a.n], 'i') in ('i', 'v')"
        " from pg_proc as p, unnest(p.proargnames) with ordinality as a(name, n)"
        " where p.pronamespace = 'pgnotifyq'::regnamespace and p.prorettype <> 'trigger'::regtype",
    )
    return [Parameter(*row) for row in found]


@pytest.fixture
def columns(connection: Connection[Any]) -> set[str]:
    """Return the names of all columns of ours."""
    found = fetch(connection, "select column_name::text from information_schema.columns where table_schema = 'pgnotifyq'")
    return {name for (name,) in found}


def is_column(name: str, columns: set[str]) -> bool:
    """Tell whether a name is a column's, or the plural of one."""
    singular = re.sub(r"ies$", "y", name) if name.endswith("ies") else name.removesuffix("s")
    return name in columns or singular in columns


def test_every_word_is_known(parameters: list[Parameter], columns: set[str]) -> None:
    """A key, and what more than one folder of functions speaks of, is called as its column is, or as the table of words says."""
    wanted, _ = table()
    folder = folders()
    used = defaultdict(set)
    for each in parameters:
        used[each.name].add(folder.get(each.function, "migrations"))
    unknown = {
        f"{each.name} of {each.function}"
        for each in parameters
        if (len(used[each.name]) > 1 or each.kind in KEYS) and each.name not in wanted and not is_column(each.name, columns)
    }
    assert unknown == set(), "add them to Words in sql/README.md, or use the word that is there"


def test_no_other_word_for_it(parameters: list[Parameter]) -> None:
    """What the table of words says not to use is not used."""
    _, unwanted = table()
    assert {"of_job", "for_worker", "by_worker", "errors"} <= unwanted
    assert {f"{each.name} of {each.function}" for each in parameters if each.name in unwanted} == set()


def test_one_type_for_one_word(parameters: list[Parameter]) -> None:
    """Functions that say the same word mean the same type."""
    kinds = defaultdict(set)
    for each in parameters:
        kinds[each.name].add(each.kind)
    assert {name for name, found in kinds.items() if len(found) > 1} == set(TWO_TYPES)


def test_one_type_for_a_claimed_job(parameters: list[Parameter], connection: Connection[Any]) -> None:
    """Each claim brings the columns of the type claimed first, in their order, and what was saved and the headers last of all."""
    (row,) = fetch(
        connection,
        "select array_agg(attname::text order by attnum) from pg_attribute"
        " where attrelid = 'pgnotifyq.claimed'::regclass and attnum > 0",
    )
    claimed = row[0]
    told = defaultdict(list)
    for each in parameters:
        if not each.is_given:
            told[each.function].append(each.name)
    bringing = {name: names for name, names in told.items() if "current_execution_id" in names}
    assert bringing, "claim names its columns, for it tells more than the job"
    assert {name for name, names in bringing.items() if [*names[: len(claimed) - 2], *names[-2:]] != claimed} == set()


def test_one_function_for_a_label() -> None:
    """What people read of a job's state is derived in one place."""
    deriving = [
        f"{kind}/{path}"
        for kind in ("functions", "migrations", "queries")
        for path, text in files(kind)
        if re.search(r"then '(retrying|scheduled|stopping)'", text)
    ]
    # cancel tells what became of the job, by the row that it has just written: no time is asked. The migration's is a view's
    # column for an execution that is under way, which has no outcome yet.
    assert deriving == ["functions/end/cancel", "functions/look/label", "migrations/0003_tenants"]
