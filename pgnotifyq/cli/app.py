"""The command line: which commands there are, and how errors are told.

Exit codes:

- 0: done.
- 1: the act failed, or the thing was not found.
- 2: the command or its input is wrong.
- 3: the database cannot be used (unreachable, too old, not migrated, rights missing).

`worker` has two more; see its help.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Literal

import psycopg
import trio
from cyclopts import App, CycloptsError, Parameter

from pgnotifyq._version import __version__
from pgnotifyq.cli import (
    changes,
    db,
    dead,
    demo,
    doctor,
    explain,
    jobs,
    org,
    org_credentials,
    pauses,
    retention,
    schedules,
    schema,
    stack,
    top,
    watch,
    worker,
    workers,
)
from pgnotifyq.cli.streams import as_error, leave_streams, prepare_streams, silence
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

for command in (
    demo.demo,
    schema.migrate,
    worker.worker,
    jobs.enqueue,
    jobs.jobs,
    jobs.show,
    watch.watch,
    explain.explain,
    stack.stack,
    jobs.cancel,
    changes.edit,
    changes.bulk,
    dead.dead,
    dead.requeue,
    pauses.pause,
    pauses.resume,
    pauses.drain,
    pauses.pauses,
    schedules.schedules,
    retention.retention,
    retention.erase,
    workers.workers,
    top.top,
    workers.stats,
    org.config,
    org_credentials.credentials,
    org.audit,
    org.protect,
    org.unprotect,
    doctor.doctor,
    db.db,
):
    app.command(command)


@app.command
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Which shell.")],
    /,
    *,
    install: Annotated[bool, Parameter(negative="", show_default=False, help="Put it where the shell finds it.")] = False,
) -> int:
    """Print a script by which a shell completes the words of `pgnotifyq`.

    For this session: eval "$(pgnotifyq completion bash)". With --install, for each new one: the
    script is written to a file in your home, and bash and zsh get a line in their startup file.
    """
    if install:
        print(f"pgnotifyq: written to {app.install_completion(shell=shell)}; begin a new {shell}", file=sys.stderr)
    else:
        print(app.generate_completion(shell=shell))
    return 0


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    Every expected error becomes one line on standard error.
    """
    prepare_streams()
    try:
        _check_text(arguments)
        told = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BaseException as error:  # errors of many tasks come as a group, perhaps of groups
        code = _tell_all(list(_leaves(error)))
        if code is None:
            raise
    else:
        code = told if isinstance(told, int) else 0
    leave_streams()
    return code


def _tell_all(raised: list[BaseException]) -> int | None:
    """Tell the errors that ended a command. Return its exit code; None: one of them is a bug."""
    if any(isinstance(error, KeyboardInterrupt) for error in raised):
        return 130
    # rich turns a BrokenPipeError into a SystemExit.
    if any(isinstance(error, (BrokenPipeError, SystemExit)) for error in raised):
        # Say nothing more to a reader that has gone, as in `pgnotifyq jobs | head -1`.
        silence(sys.stdout)
        return EXIT_FAILED
    told = [_as_told(error) for error in raised]
    if not all(told):
        return None
    line, code = next(one for one in told if one)
    # The terminal may be gone, or its disk may be full.
    quietly(print, as_error(" ".join(line.split())), file=sys.stderr, flush=True)
    return code


def _check_text(arguments: list[str]) -> None:
    """Refuse bytes that are not UTF-8.

    Python hands them over as lone surrogates. Neither PostgreSQL nor JSON takes those.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise errors.ConfigError(
                f"the argument {argument!a:.80} is not text in UTF-8: check the terminal's encoding"
            ) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, or the errors of a group.

    It does not recurse: a group may be deeper than Python's stack.
    """
    found = [error]
    while found:
        error = found.pop()
        if isinstance(error, BaseExceptionGroup):
            found.extend(reversed(error.exceptions))
        else:
            yield error


def _as_told(error: BaseException) -> tuple[str, int] | None:
    """Return an error's line and its exit code; None: it is not an expected error."""
    database = (
        psycopg.OperationalError,
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedTable,
        psycopg.errors.UndefinedFunction,
    )
    if isinstance(error, CycloptsError):
        return f"{error} See `python -m pgnotifyq --help`.", EXIT_USAGE
    if isinstance(error, trio.TooSlowError):
        return "the database did not answer in time: check that its server is well", EXIT_DATABASE
    if isinstance(error, psycopg.Error):
        code = EXIT_DATABASE if isinstance(error, database) or is_passing(error) else EXIT_FAILED
        # The statement is left out: it says nothing to the caller.
        parts = (error.diag.message_primary, error.diag.message_hint)
        return "; ".join(text for text in parts if text) or str(error), code
    if isinstance(error, errors.PgnotifyqError):
        return str(error), exit_code_of(type(error))
    if isinstance(error, OSError):
        silence(sys.stdout)  # its stream may be the broken one
        return f"{type(error).__name__}: {error}", EXIT_FAILED
    return None


# The nearest base decides: see the tree in model/errors.py.
_EXIT_CODES: dict[type, int] = {
    errors.PgnotifyqError: EXIT_FAILED,
    errors.Refused: EXIT_USAGE,
    # The command is well formed. The application has no such handler.
    errors.UnknownJobType: EXIT_FAILED,
    errors.DatabaseError: EXIT_DATABASE,
    errors.PoolTimeout: EXIT_FAILED,  # our own connections were taken; the database may be well
    errors.SchemaError: EXIT_DATABASE,
}


def exit_code_of(kind: type[errors.PgnotifyqError]) -> int:
    """Return the exit code of a command that one of our errors has ended."""
    return next(_EXIT_CODES[base] for base in kind.__mro__ if base in _EXIT_CODES)
