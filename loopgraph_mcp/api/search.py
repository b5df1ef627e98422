"""The verb search_methods: ranked by text and evidence, not five of one family, another one on a plateau."""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from loopgraph_mcp.api import activity, explain, incumbent, suggest
from loopgraph_mcp.api.answers import MethodHit, RunningNow, SearchAnswer, Trials
from loopgraph_mcp.api.context import Sight
from loopgraph_mcp.api.evidence import Count, Evidence
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code import fits, programs
from loopgraph_mcp.code.fits import Fit
from loopgraph_mcp.models import Context, Method, Move, Origin, Presence, Standing
from loopgraph_mcp.ranking import change, posterior
from loopgraph_mcp.ranking.prior import Estimate
from loopgraph_mcp.store import edits, methods, retrievals, search
from loopgraph_mcp.store.retrievals import Shown, ShownMethod
from loopgraph_mcp.store.version import Newest
from loopgraph_mcp.store.version import look as look_at

SAME_FAMILY = 0.7  # what a method is worth behind another of its family
PLATEAU_RUNS = 6
IN_FLIGHT = 0.3  # what a method is worth that an agent runs at this moment
_UNLIKELY = 0.5  # of the keep rate here: a method less likely to be kept than this does not lead
NO_FIT = Fit()
PLATEAU_FAMILY = 0.5  # what a method is worth whose family the runs of a plateau have tried
_CANDIDATES = 50
_PATIENCE_S = 10.0  # for what is read beside the text, whose own limit is shorter; a busy process makes it wait


@dataclasses.dataclass(frozen=True, slots=True)
class _View:
    """What every search in a workspace has to know, whatever it looks for.

    Args:
        shown: What was shown of late and not tried since.
        known: All methods by their ids.
        program: The workspace's file, None where there is no workspace.
        siblings: The modules that it imports, and the script that is run.
        context: Where outcomes of that file are comparable, likewise.
        decided: What changes with each outcome and decision.
    """

    shown: Shown
    known: Mapping[str, Method]
    program: str | None
    siblings: Mapping[str, str]
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
    best, other = await asyncio.to_thread(incumbent.best_beside, view.evidence.records, view.program), None
    if best is not None and view.context is not None and view.program is not None:
        other = await incumbent.other_program(state, best, view.context, view.program, decided=view.decided)
    suggested = await suggest.suggest(state, view.program, view.context, view.evidence)
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
        next_step=explain.after_search(
            hits,
            retrieval_id,
            suggested.values,
            filtered=family is not None or standing is not None,
            asked=bool(query.strip()),
        ),
        note=explain.unrecorded(note, state.db.unrecorded),
        running=view.running,
        best=other,
        values=list(suggested.values),
        knob_values=list(suggested.knobs),
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
    sight = await asyncio.to_thread(state.here.sight, workspace)
    shown, newest, relevance = await state.db.search(
        lambda conn: (
            retrievals.read_shown(conn),
            look_at(conn),
            search.find_relevance(state.db, conn, query),
        ),
        limit_s=_PATIENCE_S,
    )
    view = await _view(state, shown, newest, sight, caller)
    found = relevance if query.strip() else None
    choose = partial(_choose, view, found, query.strip(), limit=limit, family=family, standing=standing)
    return view, *await asyncio.to_thread(choose)


async def _view(state: State, shown: Shown, newest: Newest, sight: Sight | None, caller: Caller | None) -> _View:
    """Return what every search in a workspace has to know: little of it is read again before the store moves."""
    context = None if sight is None else await state.here.context_of(sight)
    running = activity.running_now(await activity.under_way(state.db), caller) if newest.live else []
    return _View(
        shown=shown,
        known=await methods.library(state.db, newest),
        program=None if sight is None else sight.program,
        siblings={} if sight is None else sight.siblings,
        context=context,
        evidence=await state.evidence(context, newest),
        decided=(newest.outcome, newest.decision),
        running=running,
    )


def _choose(
    view: _View,
    relevance: Mapping[str, float] | None,
    query: str,
    *,
    limit: int,
    family: str | None,
    standing: Standing | None,
) -> tuple[list[MethodHit], str]:
    """Return the methods to show, best first, and what is to be said of the search as a whole.

    With `relevance` to a query, what others reported of a method moves its rank less. Without a query, what the file
    holds and what does not fit it is left out. What lost on this class of device is shown behind the others, unless the
    query names it.
    """
    asked = relevance is not None
    found = (
        [(each, 1.0) for each in view.known.values()]
        if relevance is None
        else search.ranked(relevance, view.known, _CANDIDATES)
    )
    found = [pair for pair in found if family in {None, pair[0].family}]
    records, prior, history = view.evidence.records, view.evidence.prior, view.evidence.tries.history
    chosen = {each.id: each for each, _ in found if standing is None or records.of(each.id).standing is standing}
    estimates = {each.id: prior.estimate(each.moves, history) for each in chosen.values()}
    candidates = {
        each.id: posterior.Candidate(
            each.id,
            relevance,
            records.appraisal(each),
            view.shown.ages(each.id),
            # A prior is for what was not tried: it fades with each trial of the method here.
            estimates[each.id].log_ratio / (1 + records.of(each.id).here.tries),
        )
        for each, relevance in found
        if each.id in chosen
    }
    bound = posterior.TOLD_BOUND if asked else math.inf
    stale = records.plateau_families(PLATEAU_RUNS)
    ranked = posterior.rank(list(candidates.values()), told_bound=bound)
    in_flight = {each for run in view.running for each in run.method_ids}
    ranked, known = _of_models(view, ranked, chosen)
    losers = {each for each, _ in ranked if lost_here(chosen[each], view) and not _names(query, chosen[each])}
    best = _diverse(ranked, chosen, stale, in_flight, limit if asked else len(ranked))
    if not asked:
        best = _usable(view, sorted(best, key=lambda each: each in losers), chosen, known, limit=limit)
    if view.program is not None:
        known |= fits.fits([chosen[each] for each in best], view.program, view.siblings)

    def p_keep(each: str) -> float:
        method, fit = chosen[each], known.get(each, NO_FIT)
        moves = _moves(view.program, fit.text, method.name) if view.program and fit.text else ()
        return prior.estimate(moves or method.moves, history).with_odds(candidates[each].appraisal.odds).p_keep

    hits = [
        _hit(
            view,
            chosen[each],
            posterior.explain(candidates[each], told_bound=bound),
            known.get(each, NO_FIT),
            estimates[each],
            p_keep(each),
        )
        for each in best
    ]
    doubted = history.keep_rate * _UNLIKELY
    # What lost here, does not fit or is hardly kept does not lead.
    hits.sort(key=lambda hit: (bool(hit.misfit), hit.method_id in losers, not asked and (hit.p_keep or 0) < doubted))
    if view.program is not None and not hits and not fits.is_model(view.program, _metric(view)):
        return hits, explain.NO_MODEL
    return hits, explain.plateau(PLATEAU_RUNS, stale)


def _names(query: str, method: Method) -> bool:
    names = (method.id, method.id.replace("-", " "), method.name, *method.aliases)
    return any(name.casefold() in query.casefold() for name in names)


def lost_here(method: Method, view: _View) -> bool:
    """Return whether a method lost on this class of device, and never won there."""
    here, record = view.context, view.evidence.records.of(method.id)
    if record.here.tries:
        return record.standing is Standing.FLOPPED
    if here is None:
        return False
    near = Count.of(
        trial
        for trial in record.trials
        if trial.context.device_class == here.device_class and trial.origin is not Origin.REPORTED
    )
    told = [each for each in method.outcomes if each.device == here.device_class]
    wins = near.wins + sum(each.wins for each in told)
    gains = [near.mean_gain, *(each.mean_gain for each in told)]
    return not wins and any(gain is not None and gain < 0 for gain in gains)


def _usable(
    view: _View, ranked: Sequence[str], methods: Mapping[str, Method], known: dict[str, Fit], *, limit: int
) -> list[str]:
    """Return the first few methods that fit the program and are not in it yet; all where there is no program.

    Each is tried when its turn comes, and `known` keeps how it fits.
    """
    if view.program is None:
        return list(ranked[:limit])
    found = list[str]()
    for each in ranked:
        known |= fits.fits([methods[each]], view.program, view.siblings)
        fit = known[each]
        usable = not fit.misfit and fit.presence is not Presence.PRESENT
        if usable or not methods[each].has_edit or each in view.evidence.learned:
            found.append(each)
        if len(found) == limit:
            break
    return found


@programs.remembered(2**20)
def _moves(program: str, edited: str, name: str) -> tuple[Move, ...]:
    """Return what an edit moves in a program."""
    found = change.change_between(program, edited)
    return () if found is None else change.moves_of(change.named(found), name)


def _metric(view: _View) -> str:
    return "" if view.context is None else view.context.metric


def _of_models(
    view: _View, ranked: Sequence[tuple[str, float]], methods: Mapping[str, Method]
) -> tuple[list[tuple[str, float]], dict[str, Fit]]:
    """Leave out, for a program that is no model, the methods that do not fit it and that nobody tried here."""
    if view.program is None or fits.is_model(view.program, _metric(view)):
        return list(ranked), {}
    known = fits.fits([methods[each] for each, _ in ranked], view.program, view.siblings)

    def belongs(each: str) -> bool:
        fit, tried = known[each], view.evidence.records.of(each).here.tries
        return bool(tried) or each in view.evidence.learned or (fit.presence is not None and not fit.misfit)

    return [pair for pair in ranked if belongs(pair[0])], known


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


def _hit(view: _View, method: Method, score: posterior.Score, fit: Fit, estimate: Estimate, p_keep: float) -> MethodHit:
    record, learned = view.evidence.records.of(method.id), method.id in view.evidence.learned
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
        presence=fit.presence,
        has_edit=(method.has_edit and not fit.misfit) or learned,
        misfit="" if learned else fit.misfit,
        score=round(score.score, 4),
        why=explain.why(method, record, fit.presence, estimate, view.context, p_keep=p_keep),
        p_keep=round(p_keep, 4),
        parts=score.parts(),
        elsewhere=_trials(record.elsewhere),
        imported=_trials(record.imported),
        reports=record.reports,
    )


def _trials(count: Count) -> Trials:
    return Trials(count.tries, count.wins, count.crashes, count.mean_gain)
