"""Chooses what to show for a query: ranked by text and evidence, not five of one family, another one on a plateau."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from loopgraph_mcp import fits, ranking, wording
from loopgraph_mcp.answers import MethodHit, Trials
from loopgraph_mcp.evidence import Count, Memory
from loopgraph_mcp.fits import Fit
from loopgraph_mcp.foresight import Elsewhere, Foresight
from loopgraph_mcp.models import Method, Standing
from loopgraph_mcp.store.retrievals import Shown
from loopgraph_mcp.tries import Past

SAME_FAMILY = 0.7  # what a method is worth behind another of its family
PLATEAU_RUNS = 6
IN_FLIGHT = 0.3  # what a method is worth that an agent runs at this moment
MISFIT = 0.1  # what a method is worth whose recipe does not fit the program
NO_FIT = Fit()
_SPARE = 3  # fitting methods beyond those shown, which the rank of their families may put in front
_MOST_TRIED = 15  # methods tried on a program for one answer: each takes some hundredths of a second
PLATEAU_FAMILY = 0.5  # what a method is worth whose family the runs of a plateau have tried


def choose(
    found: Sequence[tuple[Method, float]],
    memory: Memory,
    foresight: Foresight,
    past: Past,
    *,
    shown: Shown,
    program: str | None,
    siblings: Mapping[str, str],
    metric: str = "",
    asked: bool,
    limit: int,
    standing: Standing | None,
    in_flight: Collection[str] = (),
    learned: Collection[str] = (),
) -> tuple[list[MethodHit], str]:
    """Return the methods to show, best first, and what is to be said of the search as a whole.

    Where words are `asked` for, what others told of a method moves its rank less.
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
    ranked, known = _that_fit(ranked, methods, memory, program, siblings, learned, metric, asked=asked, limit=limit)
    best = _diverse(ranked, methods, stale, in_flight, limit)
    if program is not None and ranked:
        known |= fits.fits([methods[each] for each in best if each not in known], program, siblings)
        best.sort(key=lambda each: bool(known[each].misfit) and each not in learned)
    hits = [
        _hit(
            methods[each],
            ranking.explain(candidates[each], told_bound=bound),
            memory,
            known.get(each, NO_FIT),
            foresight.foreseen(methods[each].moves, past).elsewhere,
        )
        for each in best
    ]
    note = wording.plateau(PLATEAU_RUNS, stale)
    if program is not None and not hits and not fits.is_model(program, metric):
        note = wording.NO_MODEL
    return hits, note


def _that_fit(
    ranked: Sequence[tuple[str, float]],
    methods: Mapping[str, Method],
    memory: Memory,
    program: str | None,
    siblings: Mapping[str, str],
    learned: Collection[str],
    metric: str,
    *,
    asked: bool,
    limit: int,
) -> tuple[list[tuple[str, float]], dict[str, Fit]]:
    """Put what does not fit the program behind the rest; a method is tried when its turn comes.

    Of a program that is no model, methods that do not fit and that nobody tried here are left out.
    """
    if program is None:
        return list(ranked), {}
    is_model = fits.is_model(program, metric)
    known, fitting, others = dict[str, Fit](), list[tuple[str, float]](), list[tuple[str, float]]()
    for place, (method_id, score) in enumerate(ranked):
        reached = len(fitting) >= limit + _SPARE or place >= _MOST_TRIED
        if (reached or (asked and place >= limit)) and is_model:
            others.append((method_id, score))
            continue
        known |= fits.fits([methods[method_id]], program, siblings)
        fit = known[method_id]
        if (not fit.misfit or method_id in learned) and (
            is_model or fit.presence is not None or memory.record(method_id).here.tries
        ):
            fitting.append((method_id, score))
        elif is_model:
            others.append((method_id, score if asked else score * MISFIT))
    return sorted([*fitting, *others], key=lambda pair: -pair[1]), known


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
    fit: Fit,
    elsewhere: Elsewhere | None,
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
        presence=fit.presence,
        has_edit=method.has_edit and not fit.misfit,
        misfit=fit.misfit,
        score=round(score.score, 4),
        why=wording.why(method, record, fit.presence, elsewhere, memory.here),
        parts=score.parts(),
        elsewhere=_trials(record.elsewhere),
        imported=_trials(record.imported),
        reports=record.reports,
    )


def _trials(count: Count) -> Trials:
    return Trials(count.tries, count.wins, count.crashes, count.mean_gain)
