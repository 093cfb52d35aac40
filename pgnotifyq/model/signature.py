"""What a function says of itself as a handler: what it takes, and where it can run.

Signatures and annotations are read once, where the handler is registered. What cannot be honoured
is refused there, by a ConfigError that names the function, so that no job has to fail for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pgnotifyq.model.batch import BatchItem
from pgnotifyq.model.converting import bare, is_pydantic, is_structured, name_of
from pgnotifyq.model.errors import ConfigError, text_of
from pgnotifyq.model.handler import RunsIn
from pgnotifyq.model.job import Job
from pgnotifyq.model.returned import AWAITED_MAX
from pgnotifyq.model.structuring import understood

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cattrs import Converter

ASYNC = (RunsIn.TRIO, RunsIn.ASYNCIO)


def listed(kinds: Iterable[RunsIn]) -> str:
    """Return places in words, for an error."""
    return " or ".join(kinds)


# What it takes


def _inner(function: Any) -> Any:
    """Return the function inside a functools.partial or an object with `__call__`.

    That function has the name and the annotations.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__qualname__") and callable(function):
        return type(function).__call__
    return function


def signature_of(function: Callable[..., Any]) -> tuple[Any, list[inspect.Parameter]]:
    """Return the function inside, and its parameters that a worker fills: (payload[, ctx]).

    If a decorator's function takes `*args`, the function that it wraps is read instead. If the
    decorator's function names its parameters, those count.
    """
    inner = _inner(function)
    try:
        signature = inspect.signature(function, follow_wrapped=False)
        if any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
            signature = inspect.signature(function)
    except (TypeError, ValueError) as error:  # a function in C
        raise ConfigError(f"{function!r} cannot be a handler: what it takes cannot be read ({error})") from error
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    everything = signature.parameters.values()
    parameters = [p for p in everything if p.kind in kinds]
    needed = [p for p in parameters if p.default is p.empty]
    by_name_only = [p for p in everything if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not parameters or len(needed) > 2 or by_name_only:
        name = getattr(inner, "__qualname__", repr(function))
        raise ConfigError(f"{name} cannot be a handler: it must take (payload) or (payload, ctx)")
    takes_context = len(needed) == 2 or (len(parameters) > 1 and _asks_for_context(parameters[1]))
    return inner, parameters[:2] if takes_context else parameters[:1]


def _asks_for_context(parameter: inspect.Parameter) -> bool:
    """Tell whether a parameter with a default is the context, by its name or by its annotation."""
    return parameter.name in {"ctx", "context"} or "JobContext" in str(parameter.annotation)


def annotations_of(inner: Any, parameters: list[inspect.Parameter], around: Mapping[str, Any] | None) -> list[Any]:
    """Return the types that a handler's parameters are annotated with.

    Any stands for an annotation that is missing, and for one of the context that cannot be read.
    `around` holds the local names of the function in which the handler is defined.

    Raises:
        ConfigError: the payload's annotation cannot be read, or the second parameter's annotation
            is not the context.
    """
    wanted = []
    for place, parameter in enumerate(parameters):
        annotation = parameter.annotation
        try:
            wanted.append(Any if annotation is parameter.empty else _read(inner, annotation, around))
        except Exception as error:  # reading an annotation runs the program's own source
            if place == 0 and around is not None:
                raise ConfigError(
                    f"{inner.__module__}:{inner.__qualname__}: the annotation {annotation!r} of its payload cannot be read "
                    f"({type(error).__name__}: {text_of(error)}): import it outside of `if TYPE_CHECKING:`, above the handler"
                ) from error
            wanted.append(Any)
    if len(wanted) > 1 and is_of_payloads(wanted[1]):
        raise ConfigError(
            f"{inner.__module__}:{inner.__qualname__}: its second parameter is given the job's context, not a {name_of(wanted[1])}"
        )
    return wanted


def is_of_payloads(wanted: Any) -> bool:
    """Tell whether a type is plainly a payload's: neither a job nor a context."""
    wanted = bare(wanted)
    kind = typing.get_origin(wanted) or wanted
    return is_structured(kind) or is_pydantic(kind) or typing.is_typeddict(kind) or kind in _SIMPLE


_SIMPLE = (str, int, float, bool, bytes, dict, list, tuple, set)


def _read(inner: Any, annotation: Any, around: Mapping[str, Any] | None) -> Any:
    """Return an annotation as the type that it names."""
    globals_ = getattr(inspect.unwrap(inner), "__globals__", {})
    holder = type("_", (), {"__annotations__": {"it": annotation}})
    return typing.get_type_hints(holder, globals_, {**(around or {})}, include_extras=True)["it"]


def payload_type_of(name: str, wanted: Any, converter: Converter | None) -> Any:
    """Return what payloads are read as, given the first parameter's annotation.

    Raises:
        ConfigError: it cannot be honoured.
    """
    try:
        return understood(wanted, converter)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def item_of(wanted: Any) -> Any:
    """Return the BatchItem of an annotation `list[BatchItem[...]]`; None: it is another one."""
    item = bare(typing.get_args(wanted)[0]) if typing.get_origin(wanted) in (list, Sequence) and typing.get_args(wanted) else None
    return item if (typing.get_origin(item) or item) is BatchItem else None


def payload_of_batch(name: str, wanted: Any, parameters: list[inspect.Parameter]) -> Any:
    """Return the type that one payload of a batch is annotated with.

    Raises:
        ConfigError: the function does not take a batch.
    """
    if len(parameters) > 1:
        raise ConfigError(
            f"{name} takes a batch, and each job of that has a context of its own: take (jobs) alone, and use item.ctx"
        )
    wanted = bare(wanted)
    item = item_of(wanted)
    if item is None and wanted not in (Any, object, list, Sequence):
        raise ConfigError(f"{name}: with batch_size it is given a list of BatchItem, and not a {name_of(wanted)}")
    payload = (*typing.get_args(item), Any)[0] if item is not None else Any
    if is_job(payload):
        raise ConfigError(f"{name}: each job of a batch is item.ctx.job: say BatchItem alone, or BatchItem of the payload's type")
    return payload


def saved_type_of(name: str, wanted: Any, converter: Converter | None) -> Any:
    """Return the type as which a handler's saved state is read; None: as it is decoded.

    Raises:
        ConfigError: the type cannot be honoured.
    """
    try:
        return None if wanted is None else understood(wanted, converter)
    except ConfigError as error:
        raise ConfigError(f"{name}: saved_type: {error}") from error


def is_job(wanted: Any) -> bool:
    """Tell whether a type is the whole job."""
    wanted = bare(wanted)
    return wanted is Job or typing.get_origin(wanted) is Job


# Where it can run


def is_async_handler(inner: Any) -> bool:
    """Tell whether a handler is async.

    An async function inside a plain decorator does not count: its call returns a coroutine, which
    `finished` awaits.

    Raises:
        ConfigError: the handler is a generator. A call of it runs nothing, so its jobs would be
            completed without having been done.
    """
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ConfigError(f"{inner.__qualname__} cannot be a handler: it yields; return the result instead")
    return inspect.iscoroutinefunction(inner)


def place_of(name: str, function: Any, inner: Any, wanted: str | None, default: RunsIn, *, is_batch: bool = False) -> RunsIn:
    """Return where a handler runs.

    Raises:
        ConfigError: there is no such place, or the function cannot run there.
    """
    is_async = inspect.iscoroutinefunction(inner)
    # A plain decorator around an async function: a call of it returns a coroutine.
    wraps_async = _wraps_async(inner)
    if wanted is None:
        return default if is_async or (wraps_async and default is RunsIn.ASYNCIO) else RunsIn.THREAD
    if wanted not in RunsIn.__members__.values():
        raise ConfigError(f"{name}: runs_in {wanted!r} is not a place for a handler: use {listed(RunsIn)}")
    kind = RunsIn(wanted)
    if kind is RunsIn.PROCESS and is_batch:
        raise ConfigError(f"{name} cannot take a batch in a process, which is given one job: use a thread, or batch_size=None")
    if kind in ASYNC and not (is_async or wraps_async):
        raise ConfigError(f"{name} cannot run in {kind}, where it would hold the loop: write `async def`, or leave runs_in out")
    if kind not in ASYNC and is_async:
        raise ConfigError(f"{name} is an async function, and cannot run in a {kind}: use runs_in={listed(ASYNC)}, or write `def`")
    if kind is RunsIn.PROCESS and (why := _why_not_importable(function, inner)) is not None:
        raise ConfigError(f"{name} cannot run in a process, which imports it by its name: {why}")
    return kind


def _wraps_async(function: Any, depth: int = 0) -> bool:
    """Tell whether a function is a decorator's, around an async function, as far as can be seen.

    It can be seen by `functools.wraps`, or by the decorator's variables that the function uses.
    """
    function = inspect.unwrap(function)
    if inspect.iscoroutinefunction(function):
        return True
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            if inspect.isfunction(cell.cell_contents) and depth < AWAITED_MAX and _wraps_async(cell.cell_contents, depth + 1):
                return True
    return False


def _why_not_importable(function: Any, inner: Any) -> str | None:
    """Return why another process would not find a function; None: nothing is known against it."""
    if os.name != "posix":
        return f"processes are for POSIX, and this is {sys.platform}; a plain function may run in a thread"
    if not inspect.isfunction(function):
        return "it is no plain function at the top of a module; write one that makes what it needs"
    if "<" in function.__qualname__:  # <lambda>, <locals>
        return "it is made inside another function; move it to the top of a module"
    module = sys.modules.get(inner.__module__)
    if inner.__module__ == "__mp_main__":
        return None  # the name of the program's main module in a process of handlers
    if inner.__module__ == "__main__":
        if getattr(module, "__spec__", None) is None and not os.path.isfile(getattr(module, "__file__", "")):  # noqa: PTH113
            return "its main module is no file; move it to a module"
        return None
    try:
        found = module is not None and importlib.util.find_spec(inner.__module__) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else f"there is no module {inner.__module__!r} to import"
