"""The verb trace: from any row of the chain both ways, bounded."""

from loopgraph_mcp.api import lookups
from loopgraph_mcp.api.answers import TraceAnswer, TraceLink
from loopgraph_mcp.api.state import State
from loopgraph_mcp.errors import NotFoundError
from loopgraph_mcp.store import lineage, methods
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.lineage import Row
from loopgraph_mcp.text import plain_line

_MOST_LINKS = 60  # each way
_MOST_BESIDE = 5  # rows of one stage that a row is linked with
_WORDS = 160
_LEAVES = frozenset({"retrieval"})  # what else it showed led to nothing here


async def trace(state: State, identity: str) -> TraceAnswer:
    """Return what led to a row and what came of it.

    Raises:
        NotFoundError: No row has this id.
    """
    db = state.db
    row = await lineage.find_row(db, identity)
    if row is None and len(named := lookups.named(identity, await methods.all_methods(db))) == 1:
        row = await lineage.find_row(db, named[0].id)
    if row is None:
        raise NotFoundError(
            f"nothing has the id {identity[:80]!r}; trace takes the id of an experiment, edit, retrieval, method, "
            "paper, passage, recipe, pack or imported history, as answers tell them"
        )
    before, after = list[TraceLink](), list[TraceLink]()
    await _follow(db, row, later=False, depth=1, into=before, seen={(row.stage, row.id)})
    await _follow(db, row, later=True, depth=1, into=after, seen={(row.stage, row.id)})
    return TraceAnswer(row.stage, row.id, plain_line(row.words, limit=_WORDS), row.at, before, after)


async def _follow(
    db: Database, row: Row, *, later: bool, depth: int, into: list[TraceLink], seen: set[tuple[str, str]]
) -> None:
    """Add what a row is linked with, one way, each with what it is linked with itself before the next."""
    if depth > 1 and row.stage in _LEAVES:
        return
    for beside in await lineage.neighbours(db, row, later=later, limit=_MOST_BESIDE):
        for each in beside.rows:
            if (each.stage, each.id) in seen:
                continue
            if len(into) >= _MOST_LINKS:
                into.append(TraceLink(depth, each.stage, "", "and more: trace it by itself", None))
                return
            seen.add((each.stage, each.id))
            into.append(TraceLink(depth, each.stage, each.id, plain_line(each.words, limit=_WORDS), each.at))
            await _follow(db, each, later=later, depth=depth + 1, into=into, seen=seen)
        if beside.count > len(beside.rows):
            into.append(TraceLink(depth, beside.stage, "", f"and {beside.count - len(beside.rows)} more", None))
