"""The public face: what `pgnotifyq` exports is enough to annotate a program, is read in order, and runs as it says."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
import typing
from typing import TYPE_CHECKING, Any

import pytest
import trio

import pgnotifyq
from pgnotifyq.model import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXPORTED = {name: getattr(pgnotifyq, name) for name in pgnotifyq.__all__}

# Parameters of public functions that are not a program's to give: with what is its own they are left out.
OWN = {("connect", "used_for")}  # this package's sessions have settings of their own (wire/sessions.py)


def names_in(module_name: str) -> dict[str, Any]:
    """Return a module's names, with those that it imports for annotations only."""
    module = sys.modules[module_name]
    # psycopg's aliases name what they are made of, in texts that are read where the alias is used.
    names = {**(names_in("psycopg.abc") if module_name.startswith("pgnotifyq") else {}), **vars(module)}
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            block = ast.Module(body=statement.body, type_ignores=[])
            exec(compile(block, module_name, "exec"), names)
    return names


def public_annotations(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, type) for what an exported name takes, returns and has."""
    if inspect.isfunction(value):
        yield from of_function(name, value)
    elif isinstance(value, type):
        for kind in value.__mro__:
            if kind.__module__.startswith("pgnotifyq."):
                # Its own alone: those of a base outside of this package are not ours to resolve.
                own = type("own", (), {"__annotations__": inspect.get_annotations(kind)})
                hints = typing.get_type_hints(own, names_in(kind.__module__))
                yield from ((f"{name}.{field}", hint) for field, hint in hints.items() if not field.startswith("_"))
                for member, found in vars(kind).items():
                    if not member.startswith("_"):
                        yield from of_member(f"{name}.{member}", found)


def of_member(where: str, member: Any) -> Iterator[tuple[str, Any]]:
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    if inspect.isfunction(function):
        yield from of_function(where, function)


def of_function(where: str, function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    inner = inspect.unwrap(function)
    for parameter, hint in typing.get_type_hints(inner, names_in(inner.__module__)).items():
        if (where, parameter) not in OWN:
            yield f"{where}({parameter})", hint


def types_in(hint: Any) -> Iterator[Any]:
    """Yield this package's types in an annotation, however deep."""
    if getattr(hint, "__module__", "").startswith("pgnotifyq") and (isinstance(hint, type) or hasattr(hint, "__supertype__")):
        yield hint
    origin = typing.get_origin(hint)
    if origin is not None and origin is not hint:
        yield from types_in(origin)
    for part in typing.get_args(hint):
        for inner in part if isinstance(part, list) else [part]:
            yield from types_in(inner)


def all_annotations() -> list[tuple[str, Any]]:
    """Return (where, type of this package's), for every annotation that is reachable from what is exported."""
    return [
        (where, kind)
        for name, value in EXPORTED.items()
        for where, hint in public_annotations(name, value)
        for kind in types_in(hint)
    ]


def test_every_type_of_an_annotation_is_exported() -> None:
    """Whoever annotates what a public function takes or returns imports from `pgnotifyq` alone."""
    exported = list(EXPORTED.values())
    assert [where for where, kind in all_annotations() if not any(kind is one for one in exported)] == []


def test_annotations_are_found() -> None:
    """The walk above goes through functions, methods, properties, fields, and what types are made of."""
    found = {(where, kind.__name__) for where, kind in all_annotations()}
    assert {
        ("open_client(return)", "Client"),
        ("run_worker(settings)", "WorkerSettings"),
        ("Client.explain(return)", "Explanation"),
        ("Client.enqueue(org_id)", "OrgId"),
        ("JobContext.org(return)", "OrgContext"),
        ("JobContext.transaction(return)", "Connection"),
        ("JobRegistry.handlers(return)", "Handler"),
        ("DeadLetter.history", "Execution"),
        ("Interrupt.kind", "InterruptKind"),
    } <= found


def test_exports_are_in_reading_order() -> None:
    """`__all__` has what is imported, in the same order, each name once; and every error there is."""
    tree = ast.parse(inspect.getsource(pgnotifyq))
    imported = [
        alias.asname or alias.name
        for statement in tree.body
        for one in (statement.body if isinstance(statement, ast.If) else [statement])
        if isinstance(one, ast.ImportFrom) and one.module not in {"__future__", "typing"}
        for alias in one.names
    ]
    assert imported == pgnotifyq.__all__
    assert len(set(imported)) == len(imported)
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, pgnotifyq.PgnotifyqError):
            assert EXPORTED[value.__name__] is value


def test_program_in_the_docstring(blank_dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest program runs as it stands, on a database that has nothing yet."""
    lines = (pgnotifyq.__doc__ or "").splitlines()
    program = textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))
    program, last, _ = program.partition("\ntrio.run(main, ")
    assert last
    namespace: dict[str, Any] = {}
    exec(program, namespace)
    trio.run(namespace["main"], blank_dsn)
    assert capsys.readouterr().out == "Hello, Ann!\n"


def program(text: str) -> None:
    """Run a program in a process of its own."""
    subprocess.run([sys.executable, "-W", "error", "-c", text], check=True, timeout=60)


def test_what_an_import_brings_along() -> None:
    """`import pgnotifyq` imports neither the command line's libraries nor trio, and the doors of other loops need no trio."""
    program(
        "import sys, pgnotifyq\n"
        "def none_of(*names): assert not set(names) & set(sys.modules), set(names) & set(sys.modules)\n"
        "none_of('rich', 'cyclopts', 'trio', 'anyio', 'psycopg_pool')\n"
        "import pgnotifyq.sync, pgnotifyq.aio\n"
        "pgnotifyq.sync.open_client, pgnotifyq.aio.open_client, pgnotifyq.JobRegistry\n"
        "none_of('rich', 'cyclopts', 'trio')\n"
        "pgnotifyq.run_worker\n"
        "assert 'trio' in sys.modules\n"
        "none_of('rich', 'cyclopts')\n"
    )


@pytest.mark.parametrize("name", pgnotifyq.__all__)
def test_each_name_alone(name: str) -> None:
    """What is imported late is the same as if it were imported at once, and is listed."""
    assert getattr(pgnotifyq, name) is EXPORTED[name]
    assert name in dir(pgnotifyq)


def test_doors_are_there_without_an_import_of_their_own() -> None:
    """`import pgnotifyq` is enough for `pgnotifyq.sync.open_client`; a name that does not exist is told as one."""
    program("import pgnotifyq; pgnotifyq.sync.open_client; pgnotifyq.aio.open_client")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pgnotifyq.nonsense
