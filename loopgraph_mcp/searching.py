"""Chooses what to show for a query: ranked by text and evidence, not five of one family, another one on a plateau."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp import changes, edits, programs, wording
from loopgraph_mcp.answers import MethodHit, Trials
from loopgraph_mcp.evidence import Count, Memory
from loopgraph_mcp.foresight import Elsewhere, Foresight
from loopgraph_mcp.models import Applied, Method, Move, Origin, Presence, Standing
from loopgraph_mcp.ranking import posterior as ranking
from loopgraph_mcp.store.retrievals import Shown
from loopgraph_mcp.tries import Past

SAME_FAMILY = 0.7  # what a method is worth behind another of its family
PLATEAU_RUNS = 6
IN_FLIGHT = 0.3  # what a method is worth that an agent runs at this moment
_UNLIKELY = 0.5  # of the keep rate here: a method less likely to be kept than this does not lead
PLATEAU_FAMILY = 0.5  # what a method is worth whose family the runs of a plateau have tried


def choose(
    found: Sequence[tuple[Method, float]],
    memory: Memory,
    foresight: Foresight,
    past: Past,
    *,
    shown: Shown,
    program: str | None,
    asked: bool,
    limit: int,
    standing: Standing | None,
    in_flight: Collection[str] = (),
    learned: Collection[str] = (),
) -> tuple[list[MethodHit], str]:
    """Return the methods to show, best first, and what is to be said of the search as a whole.

    Where words are `asked` for, what others reported of a method moves its rank less. Where none are, what the file
    holds and what does not fit it is left out, and what lost on this class of device comes last. What words
    ask for is shown though it lost, behind the others.

    Args:
        found: Methods and how well they match the query.
        memory: What runs say of them.
        foresight: What others' histories say of changes.
        past: The runs of this workspace.
        shown: When each was shown before.
        program: The file.
        asked: Whether the query has words.
        limit: How many to show.
        standing: Show methods of this status alone.
        in_flight: Methods that run at this moment.
        learned: Methods of which another recipe was learned from a run.
    """
    methods = {
        method.id: method for method, _ in found if standing is None or memory.record(method.id).standing is standing
    }
    candidates = {
        method.id: ranking.Candidate(
            method.id,
            relevance,
            memory.appraisal(method),
            shown.ages(method.id),
            foresight.foreseen(method.moves, past).score,
        )
        for method, relevance in found
        if method.id in methods
    }
    bound = ranking.TOLD_BOUND if asked else math.inf
    stale = memory.plateau_families(PLATEAU_RUNS)
    ranked = ranking.rank(list(candidates.values()), told_bound=bound)
    losers = {each for each, _ in ranked if lost_here(methods[each], memory)}
    best = _diverse(ranked, methods, stale, in_flight, limit if asked else len(ranked))
    fits = dict[str, _Fit]()
    if not asked:
        best.sort(key=lambda each: each in losers)
        best = _usable(best, methods, program, learned, limit, fits)
    present = {} if program is None else _presences([methods[each] for each in best], program)

    def p_keep(each: str) -> float:
        moves = fits[each].moves if each in fits and fits[each].moves else methods[each].moves
        return foresight.foreseen(moves, past).with_odds(candidates[each].appraisal.odds).p_keep

    hits = [
        _hit(
            methods[each],
            ranking.explain(candidates[each], told_bound=bound),
            memory,
            present.get(each),
            foresight.foreseen(methods[each].moves, past).elsewhere,
            p_keep(each),
        )
        for each in best
    ]
    doubted = past.keep_rate * _UNLIKELY
    hits.sort(key=lambda hit: (hit.method_id in losers, not asked and (hit.p_keep or 0) < doubted))  # they do not lead
    return hits, wording.plateau(PLATEAU_RUNS, stale)


def lost_here(method: Method, memory: Memory) -> bool:
    """Return whether a method lost on this class of device, and never won there."""
    here, record = memory.here, memory.record(method.id)
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


@dataclass(frozen=True, slots=True)
class _Fit:
    """Whether a method's edit fits a program, and what it moves there."""

    fits: bool
    moves: tuple[Move, ...] = ()


def _usable(
    ranked: Sequence[str],
    methods: Mapping[str, Method],
    program: str | None,
    learned: Collection[str],
    limit: int,
    fits: dict[str, _Fit],
) -> list[str]:
    """Return the first few methods whose edit fits a program and changes it; all where there is no program."""
    if program is None:
        return list(ranked[:limit])
    chosen = list[str]()
    for each in ranked:
        if methods[each].recipe is not None and each not in learned:
            fits[each] = _fit(methods[each], program)
        if each not in fits or fits[each].fits:
            chosen.append(each)
        if len(chosen) == limit:
            break
    return chosen


def _fit(method: Method, program: str) -> _Fit:
    known = _fits_known(program)
    if known.get(method.id, (None,))[0] is not method:
        made = edits.apply_method(method, program, {})
        moves: tuple[Move, ...] = ()
        if isinstance(made, Applied) and (change := changes.change_between(program, made.text)) is not None:
            moves = changes.moves_of(changes.named(change), method.name)
        known[method.id] = method, _Fit(isinstance(made, Applied), moves)
    return known[method.id][1]


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
    method: Method,
    score: ranking.Score,
    memory: Memory,
    presence: Presence | None,
    elsewhere: Elsewhere | None,
    p_keep: float,
) -> MethodHit:
    record = memory.record(method.id)
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
        has_edit=method.recipe is not None,
        score=round(score.score, 4),
        why=wording.why(method, record, presence, elsewhere, memory.here, p_keep=p_keep),
        p_keep=round(p_keep, 4),
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
    known.update((method.id, (method, how)) for method, how in zip(new, edits.detect_each(new, program), strict=True))
    return {each.id: known[each.id][1] for each in wanted if each.recipe is not None}


@programs.remembered(2**19)
def _fits_known(program: str) -> dict[str, tuple[Method, _Fit]]:  # noqa: ARG001 - the result is kept by it
    """Return what is known of which edits fit a program, to be filled."""
    return {}


@programs.remembered(2**19)
def _known(program: str) -> dict[str, tuple[Method, Presence]]:  # noqa: ARG001 - the result is kept by it
    """Return what is known of a program, to be filled."""
    return {}
