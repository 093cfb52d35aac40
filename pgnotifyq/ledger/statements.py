"""Where the SQL comes from: finds the files of `sql/` and composes them for a schema.

The files are ordinary SQL with four names left open: `{schema}`, `{schema_text}`, `{tenant_role}`
and `{tenant_role_text}`. They are filled by psycopg's own composition, which quotes; no SQL is
edited as text.
"""

from __future__ import annotations

import functools
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql

from pgnotifyq.model.names import check_schema_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.resources.abc import Traversable


def sql_folder() -> Traversable:
    """Return the folder of SQL files: inside the installed package, or at the top of a checkout."""
    packaged = resources.files("pgnotifyq") / "_sql"
    if packaged.is_dir():
        return packaged
    return Path(__file__).resolve().parents[2] / "sql"


def files(kind: str) -> list[tuple[str, str]]:
    """Return the files of one kind, in order of path: path without ending, and text.

    Kinds are the folders of `sql/`: migrations, functions, queries, bookkeeping, sessions.
    """
    return sorted(_walk(sql_folder() / kind, ""))


def _walk(folder: Traversable, path: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{path}{entry.name}/")
        elif entry.name.endswith(".sql"):
            yield path + entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8")


def compose(text: str, schema: str) -> bytes:
    """Fill in the names that a statement leaves open.

    Raises:
        InvalidName: the schema's name does not fit its pattern.
    """
    check_schema_name(schema)
    tenant_role = f"{schema}_tenant"
    return (
        sql.SQL(text)  # the text is ours, read from sql/
        .format(
            schema=sql.Identifier(schema),
            schema_text=sql.Literal(schema),
            tenant_role=sql.Identifier(tenant_role),
            tenant_role_text=sql.Literal(tenant_role),
        )
        .as_bytes(None)
    )


@functools.cache
def query(name: str, schema: str) -> bytes:
    """Return the statement of `sql/queries/<name>.sql`, composed."""
    return _statement("queries", name, schema)


@functools.cache
def bookkeeping(name: str, schema: str) -> bytes:
    """Return the statement of `sql/bookkeeping/<name>.sql`, composed."""
    return _statement("bookkeeping", name, schema)


@functools.cache
def session(name: str) -> bytes:
    """Return the statement of `sql/sessions/<name>.sql`. It leaves no name open."""
    return (sql_folder() / "sessions" / f"{name}.sql").read_bytes()


def with_values(statement: bytes, values: Sequence[object]) -> bytes:
    """Return a statement with its values written out, and without its comments.

    For places where a statement cannot have parameters.
    """
    lines = [line for line in statement.strip().split(b"\n") if not line.startswith(b"--")]
    literals = [sql.Literal(value).as_bytes(None) for value in values]
    return re.sub(rb"\$(\d+)", lambda found: literals[int(found[1]) - 1], b"\n".join(lines))


def _statement(folder: str, name: str, schema: str) -> bytes:
    return compose((sql_folder() / folder / f"{name}.sql").read_text(encoding="utf-8"), schema)


@functools.cache
def call(function: str, types: str, schema: str) -> bytes:
    """Return the statement that calls a function of `sql/functions`, its arguments cast to `types`.

    >>> call("cancel", "uuid text", "pgnotifyq")
    b'select * from "pgnotifyq"."cancel"($1::uuid, $2::text)'
    """
    check_schema_name(schema)
    arguments = ", ".join(f"${place}::{name}" for place, name in enumerate(types.split(), 1))
    target = sql.Identifier(schema, function).as_bytes(None)
    return b"select * from " + target + b"(" + arguments.encode() + b")"
