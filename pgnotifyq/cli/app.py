"""The command line: which commands there are, what they take, and how errors are told.

Exit codes: 0 done; 1 what was asked failed or was not found; 2 the command or its input is wrong; 3 the database cannot be
used (unreachable, too old, not migrated, rights missing). `worker` has two more, see its help.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import psycopg
import trio
from cyclopts import App, CycloptsError, Parameter, Token

from pgnotifyq._version import __version__
from pgnotifyq.cli.db import db
from pgnotifyq.cli.streams import prepare_streams, silence
from pgnotifyq.ledger.errors import is_passing
from pgnotifyq.model import errors
from pgnotifyq.model.errors import quietly

EXIT_FAILED, EXIT_USAGE, EXIT_DATABASE = 1, 2, 3

app = App(
    name="pgnotifyq",
    help="An event-driven job queue on PostgreSQL.",
    version=__version__,
    help_epilogue=(
        "Database: --dsn, else PGNOTIFYQ_DSN, else an embedded PostgreSQL that is started on demand.\n\n"
        "Exit codes: 0 done; 1 what was asked failed or was not found; 2 the command or its input is wrong; "
        "3 the database cannot be used."
    ),
)

app.command(db)


def _whole(_type: object, tokens: Sequence[Token]) -> int:
    """Convert a whole number; the library would round 1.5."""
    return int(tokens[0].value)


Dsn = Annotated[str | None, Parameter(name="--dsn", help="The database; default: PGNOTIFYQ_DSN, else the embedded one.")]
Schema = Annotated[str, Parameter(name="--schema", help="The schema the queue lives in.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON.")]
JobId = Annotated[str, Parameter(help="Its id, as `enqueue` and `jobs` print them.")]
OfQueue = Annotated[str | None, Parameter(name="--queue", help="Only of this queue.")]
OfType = Annotated[str | None, Parameter(name="--type", help="Only of this job type.")]


@app.command
def demo(
    folder: Annotated[Path | None, Parameter(help="Default: Python's own standard library.")] = None, /, *, dsn: Dsn = None
) -> int:
    """Watch real jobs run: one a file; one is cancelled in mid-flight, one worker killed and its work recovered."""
    from pgnotifyq.cli.jobs import run_demo

    return run_demo(folder, dsn)


@app.command
def migrate(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print the SQL that is missing, and change nothing.")
    ] = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Bring the database's schema up to this version. Safe to run again, and at the same time twice."""
    from pgnotifyq.cli.jobs import run_migrate

    return run_migrate(dsn, schema, dry_run=dry_run)


@app.command
def worker(
    *,
    app: Annotated[str | None, Parameter(name="--app", help="Where the registry is: package.module:registry.")] = None,
    queue: Annotated[
        list[str] | None, Parameter(name="--queue", negative="", help="A queue to work on; repeat it in order of preference.")
    ] = None,
    concurrency: Annotated[int, Parameter(converter=_whole, help="Jobs that run at once.")] = 10,
    lease_seconds: Annotated[float, Parameter(help="How long a silent worker keeps its jobs.")] = 60.0,
    heartbeat_seconds: Annotated[float | None, Parameter(help="At most, and by default, a third of the lease.")] = None,
    shutdown_seconds: Annotated[float, Parameter(help="How long running jobs may go on after the first signal.")] = 30.0,
    grace_seconds: Annotated[float, Parameter(help="How long an interrupted handler may clean up.")] = 5.0,
    handler_connections: Annotated[
        int, Parameter(converter=_whole, help="Database sessions that handlers share for their own transactions, at most.")
    ] = 10,
    listen_dsn: Annotated[str | None, Parameter(help="A direct address for LISTEN, when --dsn leads to a pooler.")] = None,
    log_format: Annotated[
        str, Parameter(help="line or json; of events (standard output) and of logs (standard error).")
    ] = "line",
    log_level: Annotated[
        str | None, Parameter(help="Of logs: debug, info (the default), warning, error or critical.", show_default=False)
    ] = None,
    quiet: Annotated[
        bool, Parameter(negative="", show_default=False, help="Say nothing of jobs that go as planned: twice as many a second.")
    ] = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Work on queues until told to stop.

    SIGTERM, SIGINT or SIGHUP: stop claiming and let running jobs finish; a second one interrupts them, unless it comes within
    0.2 s. Jobs cut off are released at once and not charged an attempt.

    Events go to standard output, what is logged (`ctx.log`, the application's own loggers, warnings) to standard error, both as
    --log-format says. An application that sets up logging itself keeps its own set-up.

    Exit codes besides the usual: 4 some jobs had to be interrupted and were released, 5 a handler did not let go and the
    process was ended over it, its jobs released.
    """
    from pgnotifyq.cli.worker import run

    settings: dict[str, object] = {
        "queues": tuple(queue or ["default"]),
        "concurrency": concurrency,
        "lease_seconds": lease_seconds,
        "shutdown_seconds": shutdown_seconds,
        "grace_seconds": grace_seconds,
        "handler_connections_max": handler_connections,
        "schema": schema,
    }
    if heartbeat_seconds is not None:
        settings["heartbeat_seconds"] = heartbeat_seconds
    return run(app, dsn, listen_dsn, settings, log_format=log_format, log_level=log_level, quiet=quiet)


@app.command
def enqueue(
    job_type: Annotated[str, Parameter(help="Which handler runs it.")],
    payload: Annotated[str, Parameter(help="JSON; - reads standard input.", allow_leading_hyphen=True)] = "{}",
    /,
    *,
    queue: Annotated[str | None, Parameter(name="--queue", help="Its queue; default: its handler's, else default.")] = None,
    priority: Annotated[int, Parameter(converter=_whole, help="Higher first.")] = 0,
    delay_seconds: Annotated[float | None, Parameter(help="Not before so many seconds from now.")] = None,
    at: Annotated[str | None, Parameter(help="Not before this time: ISO 8601 with a time zone.")] = None,
    max_attempts: Annotated[
        int | None, Parameter(converter=_whole, help="Then it is a dead letter; default: its handler's, else 3.")
    ] = None,
    org: Annotated[str | None, Parameter(help="The tenant, a uuid.")] = None,
    unique_key: Annotated[str | None, Parameter(help="At most one unfinished job a tenant, type and key.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Enqueue a job and print its id."""
    from pgnotifyq.cli.jobs import run_enqueue

    fields = {
        "job_type": job_type,
        "queue_name": queue,
        "priority": priority,
        "delay_seconds": delay_seconds,
        "max_attempts": max_attempts,
        "unique_key": unique_key,
    }
    return run_enqueue(dsn, schema, fields, payload=payload, at=at, org=org, as_json=as_json)


@app.command
def jobs(
    *,
    status: Annotated[
        str | None, Parameter(help="pending, scheduled, retrying, running, stopping, completed or cancelled.")
    ] = None,
    queue: OfQueue = None,
    job_type: OfType = None,
    limit: Annotated[int, Parameter(converter=_whole, help="At most so many.")] = 50,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List jobs, newest first."""
    from pgnotifyq.cli.jobs import run_jobs

    return run_jobs(dsn, schema, status=status, queue=queue, job_type=job_type, limit=limit, as_json=as_json)


@app.command
def show(job_id: JobId, /, *, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Show a job, or a dead letter, with all its attempts."""
    from pgnotifyq.cli.jobs import run_show

    return run_show(dsn, schema, job_id, as_json=as_json)


@app.command
def explain(job_id: JobId, /, *, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Say why a job is where it is: what it waits for, who holds it, and what would help."""
    from pgnotifyq.cli.explain import run

    return run(dsn, schema, job_id, as_json=as_json)


@app.command
def cancel(
    job_id: JobId,
    /,
    *,
    why: Annotated[str | None, Parameter(help="For the handler and the record.")] = None,
    wait_seconds: Annotated[float | None, Parameter(help="Wait so long until its handler has stopped.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Cancel a job: a pending one never starts, a running one's handler is stopped. Exit code 1 if it had ended before."""
    from pgnotifyq.cli.jobs import run_cancel

    return run_cancel(dsn, schema, job_id, why=why, wait_seconds=wait_seconds, as_json=as_json)


@app.command
def dead(
    *,
    queue: OfQueue = None,
    job_type: OfType = None,
    limit: Annotated[int, Parameter(converter=_whole, help="At most so many.")] = 50,
    purge: Annotated[str | None, Parameter(help="Delete this one for good.")] = None,
    purge_older_than_seconds: Annotated[float | None, Parameter(help="Delete those that died longer ago, for good.")] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """List dead letters, the latest first; or purge them."""
    from pgnotifyq.cli.jobs import run_dead

    return run_dead(
        dsn,
        schema,
        queue=queue,
        job_type=job_type,
        limit=limit,
        purge=purge,
        older_than_seconds=purge_older_than_seconds,
        as_json=as_json,
    )


@app.command
def requeue(
    job_id: Annotated[str | None, Parameter(help="A dead letter, as `dead` lists them.")] = None,
    /,
    *,
    all_of_them: Annotated[
        bool, Parameter(name="--all", negative="", show_default=False, help="Every dead letter of --queue and --type.")
    ] = False,
    queue: OfQueue = None,
    job_type: OfType = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
    schema: Schema = "pgnotifyq",
) -> int:
    """Bring a dead letter back as the job it was, with all its attempts before it."""
    from pgnotifyq.cli.jobs import run_requeue

    return run_requeue(dsn, schema, job_id, everything=all_of_them, queue=queue, job_type=job_type, as_json=as_json)


@app.command
def workers(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """List the worker processes and what they hold."""
    from pgnotifyq.cli.jobs import run_workers

    return run_workers(dsn, schema, as_json=as_json)


@app.command
def stats(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Count the jobs of each queue."""
    from pgnotifyq.cli.jobs import run_stats

    return run_stats(dsn, schema, as_json=as_json)


@app.command
def doctor(*, as_json: AsJson = False, dsn: Dsn = None, schema: Schema = "pgnotifyq") -> int:
    """Examine the database and say what is wrong, and what to do. Exit code 1 if anything fails."""
    from pgnotifyq.cli.doctor import run

    return run(dsn, schema, as_json=as_json)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. Every expected error becomes one line on standard error."""
    prepare_streams()
    try:
        _check_text(arguments)
        told = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BaseException as error:  # one raised by many tasks is a group, perhaps of groups
        code = _tell_all(list(_leaves(error)))
        if code is None:
            raise
        return code
    return told if isinstance(told, int) else 0


def _tell_all(raised: list[BaseException]) -> int | None:
    """Tell the errors that ended a command, and return its exit code; None when one of them is a bug."""
    if any(isinstance(error, KeyboardInterrupt) for error in raised):
        return 130
    if any(isinstance(error, (BrokenPipeError, SystemExit)) for error in raised):  # rich says the former by the latter
        # Say nothing more to a reader that has gone, as in `pgnotifyq jobs | head -1`.
        silence(sys.stdout)
        return EXIT_FAILED
    told = [_as_told(error) for error in raised]
    if not all(told):
        return None
    line, code = next(one for one in told if one)
    # The terminal may be gone, or its disk be full.
    quietly(print, f"pgnotifyq: {' '.join(line.split())}", file=sys.stderr, flush=True)
    return code


def _check_text(arguments: list[str]) -> None:
    """Refuse bytes that are not UTF-8, which Python hands over as lone surrogates: neither PostgreSQL nor JSON takes them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise errors.ConfigError(
                f"the argument {argument!a:.80} is not text in UTF-8: check the terminal's encoding"
            ) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, or those of a group; not by recursion, for a group may be deeper than Python's stack."""
    found = [error]
    while found:
        error = found.pop()
        if isinstance(error, BaseExceptionGroup):
            found.extend(reversed(error.exceptions))
        else:
            yield error


def _as_told(error: BaseException) -> tuple[str, int] | None:
    """Return how an error is told in one line, and its exit code; None when it is none that is expected."""
    usage = (errors.ConfigError, errors.InvalidJob, errors.InvalidName, errors.AppNotFound, errors.HandlerAlreadyRegistered)
    database = (
        errors.DatabaseUnreachable, errors.NoDatabase, errors.DatabaseTooOld, errors.MissingRights, errors.SchemaMissing,
        errors.SchemaOutOfDate, errors.SchemaTooNew, psycopg.OperationalError,
        psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction,
    )  # fmt: skip
    if isinstance(error, CycloptsError):
        return f"{error} See `python -m pgnotifyq --help`.", EXIT_USAGE
    if isinstance(error, trio.TooSlowError):
        return "the database did not answer in time: check that its server is well", EXIT_DATABASE
    if isinstance(error, psycopg.Error):
        code = EXIT_DATABASE if isinstance(error, database) or is_passing(error) else EXIT_FAILED
        # Without the statement, which says nothing to the caller.
        parts = (error.diag.message_primary, error.diag.message_hint)
        return "; ".join(text for text in parts if text) or str(error), code
    if isinstance(error, errors.PgnotifyqError):
        return str(error), EXIT_USAGE if isinstance(error, usage) else EXIT_DATABASE if isinstance(
            error, database
        ) else EXIT_FAILED
    if isinstance(error, OSError):
        silence(sys.stdout)  # if it is the stream that is broken
        return f"{type(error).__name__}: {error}", EXIT_FAILED
    return None
