"""`python -m pgnotifyq worker`: a worker as a process, with its handlers found and its events told."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import sysconfig
import traceback
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from pgnotifyq.cli.commands import find_database, open_ledger
from pgnotifyq.cli.ending import heeding_signals
from pgnotifyq.model.config import WorkerConfig
from pgnotifyq.model.errors import AppNotFound, ConfigError, text_of
from pgnotifyq.model.events import Event, as_json, as_line
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.logs import set_up_logging
from pgnotifyq.runtime.worker import run_worker

if TYPE_CHECKING:
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.runtime.worker import WorkerHandle

_log = logging.getLogger("pgnotifyq")
EXIT_INTERRUPTED = 4  # some jobs were cut off and released


def run(
    app: str | None,
    dsn: str | None,
    listen_dsn: str | None,
    settings: dict[str, Any],
    *,
    log_format: str,
    log_level: str | None,
    quiet: bool,
) -> int:
    """Run a worker until it is told to stop; return its exit code."""
    if log_format not in {"line", "json"}:
        raise ConfigError(f"--log-format {log_format!r}: use line or json")
    config = WorkerConfig(**settings)
    registry = load_registry(app)
    set_up_logging(log_format, log_level)
    spare_the_collector()
    work = partial(_work, registry, dsn, listen_dsn, config, tell=_printer(log_format), routine_events=not quiet)
    handle: WorkerHandle = trio.run(work)
    return EXIT_INTERRUPTED if handle.interrupted else 0


def spare_the_collector() -> None:
    """Have the garbage collector leave alone what is loaded by now, and look for cycles more seldom.

    Jobs come and go by the thousand and are in no cycles: looking for some was a sixth of a worker's CPU in a drain.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def load_registry(app: str | None) -> JobRegistry:
    """Import the registry that `--app package.module:registry` names.

    Raises:
        AppNotFound: and what is wrong with it.
    """
    if not app:
        raise AppNotFound("--app is missing: name your registry, as in --app package.module:registry")
    module_name, colon, name = app.partition(":")
    if not colon or not module_name or not name:
        raise AppNotFound(f"--app {app!r} names no registry: write package.module:registry")
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise AppNotFound(f"--app {app!r}: importing {module_name} failed{_where(error)}: {_what(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise AppNotFound(f"--app {app!r}: {module_name} has no {name!r}")
        found = getattr(found, part)
    if not isinstance(found, JobRegistry):
        raise AppNotFound(f"--app {app!r} is a {type(found).__name__}, not a JobRegistry")
    if not found.job_types:
        raise AppNotFound(f"--app {app!r} has no handlers: import the modules that register them in {module_name}")
    return found


def _where(error: BaseException) -> str:
    """Return where an import failed: the last line of the application's own that ran; of a syntax error, the line it is in."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {_path(error.filename)}, line {error.lineno}"
    calls = traceback.extract_tb(error.__traceback__)
    # Our own call and the machinery of imports come first; what the application calls of others' comes last.
    after_ours = [call for call in calls if call.filename != __file__ and "importlib" not in call.filename]
    own = [call for call in after_ours if not call.filename.startswith("<") and not _is_installed(call.filename)] or after_ours
    if not own:
        return ""  # the module itself was not found
    return f" at {_path(own[-1].filename)}, line {own[-1].lineno}, `{own[-1].line}`"


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"SystemExit: it ends the process ({error.code!r}): put what a script does under `if __name__ == '__main__':`"
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else text_of(error)}"


def _is_installed(filename: str) -> bool:
    """Tell whether a file is Python's own, an installed package's, or ours."""
    return any(Path(filename).is_relative_to(folder) for folder in _INSTALLED)


_INSTALLED = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {
    Path(__file__).parents[1]
}


def _path(filename: str) -> str:
    """Return a file's name as it is seen from where the command runs."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


async def _work(
    registry: JobRegistry,
    dsn: str | None,
    listen_dsn: str | None,
    config: WorkerConfig,
    *,
    tell: EventSink,
    routine_events: bool,
) -> WorkerHandle:
    database = await find_database(dsn)
    async with open_ledger(database, config.schema) as connection:
        if not database.is_embedded:
            await _warn_of_powers(connection)
    ended = trio.Event()
    async with trio.open_nursery() as nursery:

        async def work(task_status: trio.TaskStatus[WorkerHandle]) -> None:
            await run_worker(
                registry,
                database.dsn,
                config=config,
                listen_dsn=listen_dsn,
                on_event=tell,
                routine_events=routine_events,
                task_status=task_status,
            )
            ended.set()

        handle: WorkerHandle = await nursery.start(work)
        with heeding_signals(handle, config, database.dsn):
            await ended.wait()
    return handle


async def _warn_of_powers(connection: Any) -> None:
    cursor = await connection.execute("select rolsuper, rolbypassrls, rolname from pg_roles where rolname = current_user")
    row = await cursor.fetchone()
    if row and (row[0] or row[1]):
        power = "a superuser" if row[0] else "exempt from row security"
        _log.warning("connected as %s, %s: use a role of less power, see `doctor`", row[2], power)


def _printer(log_format: str) -> EventSink:
    render = as_json if log_format == "json" else as_line

    def tell(event: Event) -> None:
        print(render(event, datetime.now().astimezone()), flush=True)

    return tell
