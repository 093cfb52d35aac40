"""Where peers are installed: a folder in the user's cache, an environment a peer. They are never the project's dependencies."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from bench.peers.catalogue import NODE_PACKAGE, OURS, PEERS, Peer

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent
INSTALL_SECONDS_MAX = 600.0


class CannotInstallError(Exception):
    """A peer cannot be installed here; the message says why."""


def cache_folder() -> Path:
    """Return the folder: PGNOTIFYQ_BENCH_CACHE, else in the platform's place for caches."""
    if given := os.environ.get("PGNOTIFYQ_BENCH_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pgnotifyq-bench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgnotifyq-bench"


def prepare(peer: Peer) -> list[str]:
    """Install a peer if it is not, and return the command of its program.

    Raises:
        CannotInstallError: no suitable Python or Node, or the package cannot be had.
    """
    if peer == OURS:
        return [sys.executable, "-m", "bench.peers.pgnotifyq_app"]
    if peer.on_node:
        return [_node(), str(_node_folder() / f"{peer.name}_app.mjs")]
    return [str(_python_environment(peer)), "-m", f"bench.peers.{peer.name}_app"]


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstallError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise CannotInstallError(f"{Path(command[0]).name} failed: {last}")


def _python_environment(peer: Peer) -> Path:
    python = find_python(peer.python_min)
    key = hashlib.sha256("\n".join([python, *peer.packages]).encode()).hexdigest()[:12]
    folder = cache_folder() / f"{peer.name}-{key}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([python, "-m", "venv", str(folder)], folder.parent)
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *peer.packages], folder)
        (folder / "complete").touch()
    return folder / "bin" / "python"


@cache
def find_python(least: tuple[int, int]) -> str:
    """Return a Python of at least a version: this one if it is new enough, so that peers and we run on the same."""
    if sys.version_info[:2] >= least:
        return sys.executable
    named = [f"python3.{minor}" for minor in range(least[1], 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which(name) for name in named] + [str(path) for name in named for path in sorted(pyenv.glob(f"*/bin/{name}"))]
    for python in found:
        # A shim may be there and lead nowhere.
        if python and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    raise CannotInstallError(f"needs Python {least[0]}.{least[1]} or later, and none is here")


@cache
def _node_folder() -> Path:
    if shutil.which("npm") is None:
        raise CannotInstallError("needs Node.js, and npm is not here")
    packages = [NODE_PACKAGE, *(package for peer in PEERS if peer.on_node for package in peer.packages)]
    key = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    folder = cache_folder() / f"node-{key}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
        _run(["npm", "install", "--no-fund", "--no-audit", *packages], folder)
        (folder / "complete").touch()
    # Node looks for packages beside the program, so the programs go where the packages are.
    for program in PROGRAMS.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


def _node() -> str:
    brought = _node_folder() / "node_modules" / ".bin" / "node"
    return str(brought) if brought.exists() else str(shutil.which("node"))
