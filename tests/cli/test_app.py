"""`--app`: what is said of a module that cannot be imported. File, line, and what the application was doing there."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from pgnotifyq.cli.worker import load_registry
from pgnotifyq.model.errors import AppNotFound

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "pkg_a/__init__.py": "",
    "pkg_a/deep.py": "import os\n\ndef load():\n    return os.environ['MISSING_SETTING']\n\nCFG = load()\n",
    "pkg_a/tasks.py": "import pgnotifyq\nfrom pkg_a import deep\n",
    "bad_a.py": "\nx = not_defined\n",
    "syntax_a.py": "x = 1\ndef f(:\n",
    "imports_syntax_a.py": "import syntax_a\n",
    "missing_a.py": "\n\nimport numpy_not_there\n",
    "exits_a.py": "import sys\nsys.exit(3)\n",
    "circle_a.py": "from circle_b import thing\n",
    "circle_b.py": "from circle_a import other\nthing = 1\n",
    "twice_a.py": "import pgnotifyq\nregistry = pgnotifyq.JobRegistry()\n@registry.handler('a')\ndef a(p: dict): ...\n"
    "@registry.handler('a')\ndef b(p: dict): ...\n",
    "typed_a.py": "import pgnotifyq\nregistry = pgnotifyq.JobRegistry()\n\n@registry.handler\ndef a(p: complex): ...\n",
    "json_a.py": "import json\nCFG = json.loads('{')\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The application's folder, where the command runs; what is imported from it is forgotten."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("pkg_a.tasks", "at pkg_a/deep.py, line 4, `return os.environ['MISSING_SETTING']`: KeyError: 'MISSING_SETTING'"),
        ("bad_a", "at bad_a.py, line 2, `x = not_defined`: NameError"),
        ("syntax_a", "at syntax_a.py, line 2: SyntaxError"),
        ("imports_syntax_a", "at syntax_a.py, line 2: SyntaxError"),
        ("missing_a", "at missing_a.py, line 3, `import numpy_not_there`: ModuleNotFoundError"),
        ("exits_a", "at exits_a.py, line 2, `sys.exit(3)`: SystemExit: it ends the process (3)"),
        ("circle_a", "at circle_b.py, line 1, `from circle_a import other`: ImportError: cannot import name 'other'"),
        ("twice_a", "at twice_a.py, line 5, `@registry.handler('a')`: HandlerAlreadyRegistered"),
        ("typed_a", "at typed_a.py, line 4, `@registry.handler`: ConfigError: typed_a:a: payloads cannot be made into complex"),
        ("json_a", "at json_a.py, line 2, `CFG = json.loads('{')`: JSONDecodeError"),
        ("pkg_a.nothing", "importing pkg_a.nothing failed: ModuleNotFoundError: No module named 'pkg_a.nothing'"),
    ],
)
def test_application_that_cannot_be_imported(folder: Path, app: str, words: str) -> None:
    """Where it failed in the application's own code, however deep in others' it was raised."""
    with pytest.raises(AppNotFound) as failed:
        load_registry(f"{app}:registry")
    assert words in str(failed.value)
    assert f"--app '{app}:registry'" in str(failed.value)
