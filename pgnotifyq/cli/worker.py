"""The command `worker`: it runs a worker as a process, finds its handlers and tells its events."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import sysconfig
import traceback
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import trio
from cyclopts import Parameter

from pgnotifyq.cli.act import find_database, open_ledger
from pgnotifyq.cli.parameters import Dsn, Schema, whole
from pgnotifyq.cli.reach import answered
from pgnotifyq.cli.streams import LAST_LINES_SECONDS, as_error, open_unfailing, tell_errors_as
from pgnotifyq.cli.systemd import Progress, find_service_manager
from pgnotifyq.ledger import look, roles
from pgnotifyq.ledger.roles import RoleKind
from pgnotifyq.model.config import WorkerConfig, queue_of
from pgnotifyq.model.errors import AppNotFound, ConfigError, quietly, text_of
from pgnotifyq.model.events import Event, EventName, as_json, as_line
from pgnotifyq.model.http_address import HttpAddress
from pgnotifyq.model.registry import JobRegistry
from pgnotifyq.runtime.logs import Logs, as_json_log
from pgnotifyq.runtime.worker import run_worker
from pgnotifyq.wire.asking import ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgnotifyq.cli.ending import Ear
    from pgnotifyq.cli.processes import Parent
    from pgnotifyq.cli.systemd import ServiceManager
    from pgnotifyq.embedded import Database
    from pgnotifyq.model.events import EventSink
    from pgnotifyq.runtime.worker import WorkerHandle

_log = logging.getLogger("pgnotifyq")
RIGHTS_CHARS_MAX = 400  # of one line
EXIT_INTERRUPTED = 4  # some jobs were cut off and released


def worker(
    *,
    app: Annotated[str | None, Parameter(name="--app", help="Where the registry is: package.module:registry.")] = None,
    queue: Annotated[
        list[str] | None,
        Parameter(
            name="--queue",
            negative="",
            help="A queue to work on; repeat it in order of preference. NAME:10 runs at most ten of its jobs at once.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        Parameter(
            converter=whole,
            show_default=False,
            help="Jobs that run at once; default: 10, or what the queues say, and 10 more for those that say nothing.",
        ),
    ] = None,
    lease_seconds: Annotated[float, Parameter(help="How long a silent worker keeps its jobs.")] = 60.0,
    heartbeat_seconds: Annotated[float | None, Parameter(help="At most, and by default, a third of the lease.")] = None,
    shutdown_seconds: Annotated[float, Parameter(help="How long running jobs may go on after the first signal.")] = 12.0,
    grace_seconds: Annotated[float, Parameter(help="How long an interrupted handler may clean up.")] = 5.0,
    handler_connections: Annotated[
        int, Parameter(converter=whole, help="Database sessions that handlers share for their own transactions, at most.")
    ] = 10,
    handler_processes: Annotated[
        int | None,
        Parameter(
            converter=whole,
            show_default=False,
            help='Processes for handlers with runs_in="process", at most; default: one a core.',
        ),
    ] = None,
    handler_process_jobs: Annotated[
        int | None, Parameter(converter=whole, show_default=False, help="Replace such a process after so many jobs.")
    ] = None,
    handler_process_memory_bytes: Annotated[
        int | None,
        Parameter(converter=whole, show_default=False, help="Data that such a process may have while a handler runs (Linux)."),
    ] = None,
    tenant_dsn: Annotated[
        str | None,
        Parameter(
            env_var="PGNOTIFYQ_TENANT_DSN",
            help="The address of a login for transactions of a tenant's. Default: what `migrate --tenant-login` made.",
        ),
    ] = None,
    listen_dsn: Annotated[str | None, Parameter(help="A direct address for LISTEN, when --dsn leads to a pooler.")] = None,
    http: Annotated[
        str | None,
        Parameter(
            help="HOST:PORT where /live, /ready and /metrics are answered; of several processes, each has the next port.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int, Parameter(converter=whole, help="So many worker processes, supervised by this one, which does no work.")
    ] = 1,
    reload: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Start anew when a Python file below this folder changes (extra `reload`)."
        ),
    ] = False,
    log_format: Annotated[
        str, Parameter(help="line or json; of events (standard output) and of logs (standard error).")
    ] = "line",
    log_level: Annotated[
        str | None, Parameter(help="Of logs: debug, info (the default), warning, error or critical.", show_default=False)
    ] = None,
    log_config: Annotated[
        str | None,
        Parameter(help="A file, JSON or TOML, for logging.config.dictConfig; it sets up logging whole.", show_default=False),
    ] = None,
    quiet: Annotated[
        bool, Parameter(negative="", show_default=False, help="Say nothing of jobs that go as planned: twice as many a second.")
    ] = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Work on queues until told to stop.

    SIGTERM, SIGINT or SIGHUP: stop claiming and let running jobs finish; a second one interrupts
    them, unless it comes within 0.2 s. Jobs cut off are released at once and not charged an
    attempt.

    Events go to standard output, what is logged (`ctx.log`, the application's own loggers,
    warnings) to standard error, both as --log-format says. An application that sets up logging
    itself keeps its own set-up, unless --log-config gives another.

    With --processes, each process is started again when it ends by itself, and signals go to all.
    Under systemd (Type=notify), readiness, status and a watchdog are told.

    Exit codes besides the usual: 4 some jobs had to be interrupted and were released, 5 a handler
    did not let go and the process was ended over it, its jobs released.
    """
    from pgnotifyq.cli.processes import find_parent, supervise

    logs = Logs.read(log_format, log_level, log_config)
    if logs.format == "json":
        tell_errors_as(as_json_log)
    given = {"heartbeat_seconds": heartbeat_seconds, "concurrency": concurrency}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = WorkerConfig(
        queues=_queues(queue or ["default"]),
        lease_seconds=lease_seconds,
        shutdown_seconds=shutdown_seconds,
        grace_seconds=grace_seconds,
        handler_connections_max=handler_connections,
        handler_processes_max=handler_processes,
        handler_process_jobs_max=handler_process_jobs,
        handler_process_memory_bytes_max=handler_process_memory_bytes,
        tenant_dsn=tenant_dsn,
        schema=schema,
        http=http,
        **settings,
    )
    parent, manager = find_parent(), find_service_manager()
    if parent is None and (processes != 1 or reload):
        if config.http is not None:
            HttpAddress.read(config.http).nth(processes - 1)  # else the last process would fail again and again
        with _standard_output(logs.format) as tell:
            attrs.evolve(logs, config=None).set_up()  # the parent has no application, whose classes a configuration may name
            return supervise(processes, reloads=reload, config=config, emit=tell, manager=manager)
    if parent is not None and config.http is not None:
        config = attrs.evolve(config, http=str(HttpAddress.read(config.http).nth(parent.index)))
    return _run(app, dsn, listen_dsn, config, logs=logs, quiet=quiet, parent=parent, manager=manager)


def _queues(texts: Sequence[str]) -> Mapping[str, int | None]:
    queues: dict[str, int | None] = {}
    for text in texts:
        name, count = queue_of(text)
        if name in queues:
            raise ConfigError(f"--queue {text}: the queue {name} is named twice")
        queues[name] = count
    return queues


@contextmanager
def _standard_output(log_format: str) -> Iterator[EventSink]:
    """Write events to standard output. Neither stream waits for its reader, and neither fails.

    Enter this block before the application is imported: its logging may keep the streams.
    """
    render = as_json if log_format == "json" else as_line

    def dropped(count: int) -> str:
        fields = {"lines": count, "why": "nobody read standard output"}
        return render(Event(name=EventName.EVENTS_DROPPED, fields=fields), datetime.now().astimezone())

    def dropped_log(count: int) -> str:
        text = f"{count} lines are missing here: nobody read standard error"
        return as_error(text)

    sys.stdout, out = open_unfailing(sys.stdout, dropped=dropped)
    sys.stderr, err = open_unfailing(sys.stderr, dropped=dropped_log)

    def tell(event: Event) -> None:
        out.write(render(event, datetime.now().astimezone()))

    tell.__qualname__ = "standard output"
    try:
        yield tell
    finally:
        for stream, writer in ((sys.stdout, out), (sys.stderr, err)):
            quietly(stream.flush)
            writer.flush(LAST_LINES_SECONDS)


def _run(
    app: str | None,
    dsn: str | None,
    listen_dsn: str | None,
    config: WorkerConfig,
    *,
    logs: Logs,
    quiet: bool,
    parent: Parent | None,
    manager: ServiceManager | None,
) -> int:
    """Run a worker until it is told to stop; return its exit code."""
    from pgnotifyq.cli.ending import die_by, heed_signals

    with _standard_output(logs.format) as tell:
        registry = load_registry(app)
        logs.set_up()
        spare_the_collector()
        ear = heed_signals()
        if parent is not None:
            parent.obey(ear)
        listener = parent or manager
        progress = None if listener is None else Progress(listener, config)
        handle: WorkerHandle | None = trio.run(
            partial(_work, registry, dsn, listen_dsn, config, ear=ear, tell=tell, routine_events=not quiet, progress=progress)
        )
    if handle is None:
        return die_by(ear.ended_by or 0)
    ear.rest()
    return EXIT_INTERRUPTED if handle.interrupted else 0


def spare_the_collector() -> None:
    """Let the garbage collector spare what is loaded by now, and look for cycles less often.

    Jobs come and go by the thousand, and are in no cycles. The search for cycles was a sixth of a
    worker's CPU in a drain.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def load_registry(app: str | None) -> JobRegistry:
    """Import the registry that `--app package.module:registry` names.

    Raises:
        AppNotFound: it cannot be imported; the message says why.
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
    """Return where an import failed.

    It is the last line of the application's own code that ran. For a syntax error, it is the line
    with the error.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {_path(error.filename)}, line {error.lineno}"
    calls = traceback.extract_tb(error.__traceback__)
    # Our own call and the machinery of imports come first. Packages that the application calls come
    # last.
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
    ear: Ear,
    tell: EventSink,
    routine_events: bool,
    progress: Progress | None = None,
) -> WorkerHandle | None:
    """Start a worker and wait for its end; None when a signal ended the start."""
    ear.attend()

    def tell_all(event: Event) -> None:
        if progress is not None:
            progress.note(event)
        tell(event)

    tell_all.__qualname__ = "standard output"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ear.stay_heard)
        if progress is not None:
            nursery.start_soon(progress.say_for_ever)
        handle: WorkerHandle | None = None
        with ear.starting:
            database = await find_database(dsn)
            await answered(database.dsn, partial(_look, database, config.schema))
            start = partial(
                run_worker,
                registry,
                database.dsn,
                config=config,
                listen_dsn=listen_dsn,
                on_event=tell_all,
                routine_events=routine_events,
            )
            ended = trio.Event()

            async def work(task_status: trio.TaskStatus[WorkerHandle]) -> None:
                await start(task_status=task_status)
                ended.set()

            handle = await nursery.start(work)
        if handle is not None:
            if progress is not None:
                progress.handle = handle
            ear.serve(handle, config, database.dsn)
            await ended.wait()
        nursery.cancel_scope.cancel(reason="pgnotifyq: the worker has ended")
    return handle


async def _look(database: Database, schema: str) -> None:
    """See that the schema fits, before a worker is made."""
    async with open_ledger(database, schema) as connection:
        if not database.is_embedded:
            await _warn_of_powers(connection, schema)


async def _warn_of_powers(connection: Any, schema: str) -> None:
    for is_superuser, is_exempt, name in await ask(connection, look.powers(schema)):
        if is_superuser or is_exempt:
            power = "a superuser" if is_superuser else "exempt from row security"
            _log.warning("connected as %s, %s: use a role of less power, see `doctor`", name, power)
        await _warn_of_rights(connection, schema, name)


async def _warn_of_rights(connection: Any, schema: str, role_name: str) -> None:
    """Log which rights the connected role and the tenants' roles lack, and which are too many."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for each in await ask(connection, roles.faults(schema)):
        if each.kind is RoleKind.TENANT or (each.kind is RoleKind.WORKER and each.role_name == role_name):
            said.setdefault((each.role_name, each.kind, each.fault), []).append(each.what)
    for (name, kind, fault), what in said.items():
        has = "lacks" if fault == "missing" else "has too much"
        _log.warning("role %s, %s, %s: %s; see `doctor`", name, kind, has, ", ".join(what)[:RIGHTS_CHARS_MAX])
