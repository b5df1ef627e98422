"""Finds rows by the ids that callers send, or says what to do instead."""

import difflib

from loopgraph_mcp.errors import NotFoundError
from loopgraph_mcp.models import Method
from loopgraph_mcp.store import experiments, methods, retrievals
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow


async def the_method(db: Database, method_id: str) -> Method:
    """Return a method.

    Raises:
        NotFoundError: There is none; the message names the ones most like it, or those of the search that the id names.
    """
    method = await methods.get_method(db, method_id)
    if method is None:
        if shown := await retrievals.methods_shown(db, method_id):
            raise NotFoundError(f"{method_id} is a search, no method; it showed {', '.join(shown)}")
        known = [each.id for each in await methods.all_methods(db)]
        near = difflib.get_close_matches(method_id[:80], known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "search_methods finds one"
        raise NotFoundError(f"no method {method_id[:80]!r}; {hint}")
    return method


async def the_experiment(db: Database, experiment_id: str) -> ExperimentRow:
    """Return an experiment.

    Raises:
        NotFoundError: There is none.
    """
    row = await experiments.get_experiment(db, experiment_id)
    if row is None:
        raise NotFoundError(f"no experiment {experiment_id[:80]!r}; run_experiment starts one and returns its id")
    return row


async def check_retrieval(db: Database, retrieval_id: str | None) -> None:
    """Refuse an id that names no retrieval: a win could not be traced to it.

    Raises:
        NotFoundError: There is none.
    """
    if retrieval_id is not None and not await retrievals.retrieval_exists(db, retrieval_id):
        raise NotFoundError(f"no retrieval {retrieval_id[:80]!r}; leave it out, or use the id search_methods returned")
