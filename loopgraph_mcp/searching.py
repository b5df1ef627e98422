"""Chooses what to show for a query: ranked by text and evidence, not five of one family, another one on a plateau."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from loopgraph_mcp import edits, programs, wording
from loopgraph_mcp.answers import MethodHit, Trials
from loopgraph_mcp.evidence import Count, Memory
from loopgraph_mcp.foresight import Elsewhere, Foresight
from loopgraph_mcp.models import Method, Presence, Standing
from loopgraph_mcp.ranking import posterior as ranking
from loopgraph_mcp.store.retrievals import Shown
from loopgraph_mcp.tries import Past

SAME_FAMILY = 0.7  # what a method is worth behind another of its family
PLATEAU_RUNS = 6
IN_FLIGHT = 0.3  # what a method is worth that an agent runs at this moment
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
    best = _diverse(ranked, methods, stale, in_flight, limit)
    present = {} if program is None else _presences([methods[each] for each in best], program)
    hits = [
        _hit(
            methods[each],
            ranking.explain(candidates[each], told_bound=bound),
            memory,
            present.get(each),
            foresight.foreseen(methods[each].moves, past).elsewhere,
        )
        for each in best
    ]
    return hits, wording.plateau(PLATEAU_RUNS, stale)


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
        why=wording.why(method, record, presence, elsewhere, memory.here),
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
def _known(program: str) -> dict[str, tuple[Method, Presence]]:  # noqa: ARG001 - the result is kept by it
    """Return what is known of a program, to be filled."""
    return {}
