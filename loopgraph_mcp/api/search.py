"""The verb search_methods: ranked by text and evidence, not five of one family, another one on a plateau."""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from loopgraph_mcp.api import activity, explain, incumbent
from loopgraph_mcp.api.answers import MethodHit, RunningNow, SearchAnswer, Trials
from loopgraph_mcp.api.context import Sight
from loopgraph_mcp.api.evidence import Count, Evidence
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code import apply, programs
from loopgraph_mcp.code.hashes import group_hash
from loopgraph_mcp.models import Context, Method, Presence, Standing
from loopgraph_mcp.ranking import posterior
from loopgraph_mcp.ranking.prior import Elsewhere
from loopgraph_mcp.store import edits, methods, retrievals, search
from loopgraph_mcp.store.retrievals import Shown, ShownMethod
from loopgraph_mcp.store.version import Newest
from loopgraph_mcp.store.version import look as look_at

SAME_FAMILY = 0.7  # what a method is worth behind another of its family
PLATEAU_RUNS = 6
IN_FLIGHT = 0.3  # what a method is worth that an agent runs at this moment
PLATEAU_FAMILY = 0.5  # what a method is worth whose family the runs of a plateau have tried
_CANDIDATES = 50
_LARGE_PROGRAM = 2**15  # characters; a smaller one is parsed in some 20 ms
_PATIENCE_S = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class _View:
    """What every search in a workspace has to know, whatever it looks for.

    Args:
        shown: What was shown of late and not tried since.
        known: All methods by their ids.
        program: The workspace's file, None where there is no workspace.
        context: Where outcomes of that file are comparable, likewise.
        decided: What changes with each outcome and decision.
    """

    shown: Shown
    known: Mapping[str, Method]
    program: str | None
    context: Context | None
    evidence: Evidence
    decided: object
    running: list[RunningNow]


async def search_methods(
    state: State,
    query: str,
    *,
    workspace: str | None,
    limit: int,
    family: str | None,
    standing: Standing | None,
    caller: Caller | None,
) -> SearchAnswer:
    """Rank methods for a query, or all of them where it is empty, and record what was shown."""
    view, hits, note = await _ranked(state, query, workspace, limit, family=family, standing=standing, caller=caller)
    retrieval_id = await retrievals.add_retrieval(
        state.db,
        query,
        [ShownMethod(hit.method_id, hit.score, hit.parts) for hit in hits],
        context_id=None if view.context is None else await edits.context_id(state.db, view.context),
        now=state.clock(),
        caller=caller,
    )
    return SearchAnswer(
        retrieval_id=retrieval_id,
        query=query,
        context=explain.context(view.context),
        methods_known=len(view.known),
        hits=hits,
        next_step=explain.after_search(hits, retrieval_id, filtered=family is not None or standing is not None),
        note=explain.unrecorded(note, state.db.unrecorded),
        running=view.running,
        best=await incumbent.other_program(state, view.evidence.records, view.program, decided=view.decided),
    )


async def suggestions(state: State, *, workspace: str | None, limit: int) -> list[MethodHit]:
    """Return the methods that a search without words would show, without recording that they were shown."""
    return (await _ranked(state, "", workspace, limit, family=None, standing=None, caller=None))[1]


async def _ranked(
    state: State,
    query: str,
    workspace: str | None,
    limit: int,
    *,
    family: str | None,
    standing: Standing | None,
    caller: Caller | None,
) -> tuple[_View, list[MethodHit], str]:
    """Return what the search looked at, the methods to show, and a note on the search as a whole."""
    await state.here.look(workspace)
    shown, newest, sight, relevance = await state.db.search(
        lambda conn: (
            retrievals.read_shown(conn),
            look_at(conn),
            state.here.sight(workspace),
            search.find_relevance(state.db, conn, query),
        ),
        limit_s=_PATIENCE_S,
    )
    view = await _view(state, shown, newest, sight, caller)
    asked = bool(query.strip())
    found = (
        search.ranked(relevance, view.known, _CANDIDATES) if asked else [(each, 1.0) for each in view.known.values()]
    )
    found = [pair for pair in found if family in {None, pair[0].family}]
    choose = partial(_choose, view, found, asked=asked, limit=limit, standing=standing)
    large = len(view.program or "") > _LARGE_PROGRAM
    hits, note = await asyncio.to_thread(choose) if large else choose()
    if large and view.context is not None:  # what asks for the best program takes it from there
        await asyncio.to_thread(group_hash, view.program, view.context.editable)
    return view, hits, note


async def _view(state: State, shown: Shown, newest: Newest, sight: Sight | None, caller: Caller | None) -> _View:
    """Return what every search in a workspace has to know: little of it is read again before the store moves."""
    context = None if sight is None else await state.here.context_of(sight)
    under_way = await activity.under_way(state.db) if newest.live else activity.NOTHING
    return _View(
        shown=shown,
        known=await methods.library(state.db, newest),
        program=None if sight is None else sight.program,
        context=context,
        evidence=await state.evidence(context, newest),
        decided=(newest.outcome, newest.decision),
        running=activity.running_now(under_way, caller),
    )


def _choose(
    view: _View, found: Sequence[tuple[Method, float]], *, asked: bool, limit: int, standing: Standing | None
) -> tuple[list[MethodHit], str]:
    """Return the methods to show, best first, and what is to be said of the search as a whole.

    Where words are `asked` for, what others told of a method moves its rank less.
    """
    records, prior, past = view.evidence.records, view.evidence.prior, view.evidence.tries.past
    chosen = {each.id: each for each, _ in found if standing is None or records.of(each.id).standing is standing}
    foreseen = {each.id: prior.foreseen(each.moves, past) for each in chosen.values()}
    candidates = {
        each.id: posterior.Candidate(
            each.id, relevance, records.appraisal(each), view.shown.ages(each.id), foreseen[each.id].score
        )
        for each, relevance in found
        if each.id in chosen
    }
    bound = posterior.TOLD_BOUND if asked else math.inf
    stale = records.plateau_families(PLATEAU_RUNS)
    ranked = posterior.rank(list(candidates.values()), told_bound=bound)
    in_flight = {each for run in view.running for each in run.method_ids}
    best = _diverse(ranked, chosen, stale, in_flight, limit)
    present = {} if view.program is None else _presences([chosen[each] for each in best], view.program)
    hits = [
        _hit(
            view,
            chosen[each],
            posterior.explain(candidates[each], told_bound=bound),
            present.get(each),
            foreseen[each].elsewhere,
        )
        for each in best
    ]
    return hits, explain.plateau(PLATEAU_RUNS, stale)


def _diverse(
    ranked: Sequence[tuple[str, float]],
    methods: Mapping[str, Method],
    stale: frozenset[str],
    in_flight: Collection[str],
    limit: int,
) -> list[str]:
    """Return the best few, each counted for less behind others of its family or while it runs; ties stay in order."""
    left, chosen, shown = list(ranked), list[str](), Counter[str]()

    def worth(method_id: str, score: float) -> float:
        family = methods[method_id].family
        running = IN_FLIGHT if method_id in in_flight else 1.0
        return score * SAME_FAMILY ** shown[family] * (PLATEAU_FAMILY if family in stale else 1.0) * running

    while left and len(chosen) < limit:
        best, most = 0, -1.0
        for place, (method_id, score) in enumerate(left):
            if score <= most:  # they come by their scores, and none is worth more than its score
                break
            if (now := worth(method_id, score)) > most:
                best, most = place, now
        chosen.append(left.pop(best)[0])
        shown[methods[chosen[-1]].family] += 1
    return chosen


def _hit(
    view: _View, method: Method, score: posterior.Score, presence: Presence | None, elsewhere: Elsewhere | None
) -> MethodHit:
    record = view.evidence.records.of(method.id)
    return MethodHit(
        method_id=method.id,
        name=method.name,
        family=method.family,
        summary=method.summary,
        standing=record.standing,
        tries=record.here.tries,
        wins=record.here.wins,
        crashes=record.here.crashes,
        mean_gain=record.here.mean_gain,
        last_tried=record.here.last_age,
        presence=presence,
        has_edit=method.recipe is not None or method.id in view.evidence.learned,
        score=round(score.score, 4),
        why=explain.why(method, record, presence, elsewhere, view.context),
        parts=score.parts(),
        elsewhere=_trials(record.elsewhere),
        imported=_trials(record.imported),
        reports=record.reports,
    )


def _trials(count: Count) -> Trials:
    return Trials(count.tries, count.wins, count.crashes, count.mean_gain)


def _presences(wanted: Sequence[Method], program: str) -> dict[str, Presence]:
    """Look for methods in a program, each once: the file changes far less often than it is asked about."""
    known = _known(program)
    new = [each for each in wanted if each.recipe is not None and known.get(each.id, (None,))[0] is not each]
    known.update((method.id, (method, how)) for method, how in zip(new, apply.detect_each(new, program), strict=True))
    return {each.id: known[each.id][1] for each in wanted if each.recipe is not None}


@programs.remembered(2**19)
def _known(program: str) -> dict[str, tuple[Method, Presence]]:  # noqa: ARG001 - the result is kept by it
    """Return what is known of a program, to be filled."""
    return {}
