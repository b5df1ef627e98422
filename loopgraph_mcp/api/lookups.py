"""Finds rows by the ids that callers send, or says what to do instead."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

from loopgraph_mcp.errors import NotFoundError
from loopgraph_mcp.models import Advice, Method, NextStep
from loopgraph_mcp.store import experiments, methods, retrievals
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow

_MAX_NAME = 80


async def the_method(db: Database, method_id: str) -> Method:
    """Return a method by its id, name or alias, however these are written: `qk-norm`, `QK_norm`, `QK norm`.

    Raises:
        NotFoundError: There is none, or several; the message names them, or those of the search that the id names.
    """
    method = await methods.get_method(db, method_id)
    if method is not None:
        return method
    known = await methods.all_methods(db)
    found = named(method_id, known)
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(f"{method_id[:80]!r} names {', '.join(each.id for each in found)}; give one of these ids")
    if shown := await retrievals.methods_shown(db, method_id):
        raise NotFoundError(f"{method_id} is a search, no method; it showed {', '.join(shown)}")
    near = _nearest(method_id, known)
    if near:
        raise NotFoundError(f"no method {method_id[:80]!r}; did you mean {', '.join(near)}?")
    raise NotFoundError(f"no method {method_id[:80]!r}", next_step=NextStep(Advice.FIND_METHODS, "search_methods"))


def named(name: str, known: Iterable[Method]) -> list[Method]:
    """Return the methods with an id that is a name, up to how it is written; else those with such a name or alias."""
    wanted = _written(name)
    if not wanted:
        return []
    every = list(known)
    return [each for each in every if _written(each.id) == wanted] or [
        each for each in every if wanted in _names(each).values()
    ]


def _names(method: Method) -> dict[str, str]:
    """Return a method's names, each with its letters alone; of `Cross-layer norm (CLN)` both parts are names too."""
    parts = [part for part in re.split(r"[()]", method.name) if part.strip()]
    return {name: _written(name) for name in (method.id, method.name, *parts, *method.aliases)}


def _written(name: str) -> str:
    """Return a name without case, spaces, hyphens and the like; signs that tell names apart (`Muon+`) stay."""
    folded = unicodedata.normalize("NFKC", name[:_MAX_NAME]).casefold()
    return re.sub(r"[^\w+^#*&=<>%]|_", "", folded)


def _nearest(name: str, known: Iterable[Method]) -> list[str]:
    """Return the ids of at most three methods whose names are most like a name."""
    owners = {written: each.id for each in known for written in reversed(_names(each).values())}
    near = difflib.get_close_matches(_written(name), owners, n=6, cutoff=0.6)
    near += difflib.get_close_matches(name[:_MAX_NAME], [each.id for each in known], n=3, cutoff=0.4)
    return list(dict.fromkeys(owners.get(each, each) for each in near))[:3]


async def the_experiment(db: Database, experiment_id: str) -> ExperimentRow:
    """Return an experiment.

    Raises:
        NotFoundError: There is none.
    """
    row = await experiments.get_experiment(db, experiment_id)
    if row is None:
        step = NextStep(Advice.START_RUN, "run_experiment")
        raise NotFoundError(f"no experiment {experiment_id[:80]!r}", next_step=step)
    return row


async def check_retrieval(db: Database, retrieval_id: str | None) -> None:
    """Refuse an id that names no retrieval: a win could not be traced to it.

    Raises:
        NotFoundError: There is none.
    """
    if retrieval_id is not None and not await retrievals.retrieval_exists(db, retrieval_id):
        step = NextStep(Advice.LEAVE_OUT, "search_methods")
        raise NotFoundError(f"no retrieval {retrieval_id[:80]!r}", next_step=step)
