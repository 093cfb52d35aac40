"""What contributors are told is what CI does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_hooks_are_what_ci_checks() -> None:
    """Each check of `.ci/run` beside the tests is a hook, and there is no other hook."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (checks,) = re.findall(r"^lint\(\) \{ (.*); \}$", ci, re.MULTILINE)
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    said = [check.removesuffix(" .") for check in checks.split(" && ")]
    assert hooks == said


def test_commands_that_are_named_exist() -> None:
    """Every module that a contributor is told to run is there."""
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"python -m (tests(?:\.\w+)+|bench)", told)):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_ledger_is_tested_without_an_event_loop() -> None:
    """A verb is a value: what tests it needs a database, and no loop."""
    for path in sorted((ROOT / "tests" / "ledger").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in (alias.name for alias in node.names)
        } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"trio", "asyncio", "anyio"}, path
        assert not any(isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(tree)), path
