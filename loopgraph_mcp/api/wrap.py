"""`wrap`: records what an existing training loop does, without changing it."""

import asyncio
import functools
import inspect
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, cast

from loopgraph_mcp.api.answers import RecordAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings, read_settings
from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.models import Decision, OutcomeKind
from loopgraph_mcp.runner.workspace import load_workspace

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_MAX_VALUE = 40


class Wrapped(Generic[_P, _R]):
    """A training function that records each call.

    Args:
        train: Trains once and returns the metric: a number, or a mapping that holds it under the workspace's name.
        workspace: Folder of the training loop, which says what the metric is called and which way is better.
        method_id: The method that it puts into practice, where that is a known one.
        settings: Where the memory lies; by default as the environment says.

    Attributes:
        last: What the memory made of the last call; None before the first, and where it could not be recorded.
    """

    def __init__(
        self, train: Callable[_P, _R], *, workspace: str | Path | None, method_id: str | None, settings: Settings | None
    ) -> None:
        functools.update_wrapper(self, train)
        self.last: RecordAnswer | None = None
        self._train = train
        self._workspace = None if workspace is None else str(workspace)
        self._method_id = method_id
        self._settings = settings
        self._kept: dict[str, Any] | None = None

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Train as ever, then record what came of it; what the function raises is recorded and raised."""
        given = _arguments(self._train, args, kwargs)
        if inspect.iscoroutinefunction(self._train):
            return cast("_R", self._await(given, *args, **kwargs))
        try:
            result = self._train(*args, **kwargs)
        except Exception as error:
            _apart(self._record(given, None, _ending(error), str(error)))
            raise
        _apart(self._note(given, result))
        return result

    async def _await(self, given: dict[str, Any], *args: _P.args, **kwargs: _P.kwargs) -> Any:
        try:
            result = await cast("Any", self._train(*args, **kwargs))
        except Exception as error:
            await self._record(given, None, _ending(error), str(error))
            raise
        await self._note(given, result)
        return result

    async def _note(self, given: dict[str, Any], result: Any) -> None:
        await self._record(given, result, None, "")

    async def _record(self, given: dict[str, Any], result: Any, ending: OutcomeKind | None, reason: str) -> None:
        """Write a call down; a memory that cannot be written never costs anybody a training run."""
        self.last = None
        try:
            settings = self._settings or read_settings(os.environ, Path.cwd())
            where = await asyncio.to_thread(load_workspace, Path(self._workspace or settings.workspace))
            async with LoopGraph.open(settings) as graph:
                value = None if ending else _metric(result, where.metric)
                if value is not None and not math.isfinite(value):
                    value, ending = None, OutcomeKind.DIVERGED
                told = f"{_changes(self._kept, given)}{f': {reason}' if reason else ''}"
                self.last = await graph.record_outcome(
                    method_id=self._method_id,
                    metric_value=value,
                    status=ending,
                    description=told,
                    workspace=self._workspace,
                    measured=True,
                )
        except (LoopGraphError, OSError, TypeError, ValueError) as error:
            _log.warning("the call of %s was not recorded: %s", self._train.__qualname__, error)
            return
        if self._kept is None or self.last.decision is Decision.KEEP:
            self._kept = given


def wrap(
    train: Callable[_P, _R],
    *,
    workspace: str | Path | None = None,
    method_id: str | None = None,
    settings: Settings | None = None,
) -> Wrapped[_P, _R]:
    """Return a training function, sync or async, that records each of its calls and does nothing else new.

    A call is described by the arguments in which it differs from the best call so far: `lr 0.5 to 0.6`. What raises is
    recorded as a crash, running out of memory and a metric that is no number as such. Recording never raises; what goes
    wrong is logged as a warning.

    Args:
        train: Trains once and returns the metric: a number, or a mapping that holds it under the workspace's name.
        workspace: Folder of the training loop; its `loopgraph.toml` names the metric and which way is better.
        method_id: The method that it puts into practice, where that is a known one.
        settings: Where the memory lies; by default as the environment says.
    """
    return Wrapped(train, workspace=workspace, method_id=method_id, settings=settings)


def _apart(work: Any) -> None:
    """Await something to its end from a function that is not async, whether or not it was called from one that is."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def _arguments(train: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(train).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict[str, Any]()
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        given |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return given


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Return in words which arguments differ from those of the call that it is compared with."""
    if before is None:
        return "baseline"
    changed = [
        f"{name} {_short(before[name])} to {_short(value)}" if name in before else f"{name} {_short(value)}"
        for name, value in now.items()
        if name not in before or repr(before[name]) != repr(value)
    ]
    return ", ".join(changed) or "the same again"


def _short(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_VALUE else repr(value)[:_MAX_VALUE]


def _metric(result: Any, name: str) -> float:
    value = result.get(name) if isinstance(result, Mapping) else result
    if value is None:
        raise TypeError(f"it returned no {name}; return the number, or a mapping that holds it")
    return float(value)


def _ending(error: Exception) -> OutcomeKind:
    return OutcomeKind.OUT_OF_MEMORY if isinstance(error, MemoryError) or _is_of_torch(error) else OutcomeKind.CRASHED


def _is_of_torch(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"  # torch is never imported here
