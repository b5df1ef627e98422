"""Suggests values of the present program's constants: reads its runs from the store and asks the response model."""

import asyncio
import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from loopgraph_mcp.api.answers import ValueSuggestion
from loopgraph_mcp.api.evidence import Evidence
from loopgraph_mcp.api.state import State
from loopgraph_mcp.code import constants
from loopgraph_mcp.models import Context, Direction
from loopgraph_mcp.ranking.leanings import leanings
from loopgraph_mcp.ranking.response import Advice, Run, Suggestion, advise
from loopgraph_mcp.store import edits, outcomes

METHOD_ID = "set-values"  # what get_code_edit takes to set constants
_RUNS = 240  # newest runs that are read; the model takes no more
_SHOWN = 3
_KNOWN_PROGRAMS = 4_096


@dataclass(frozen=True, slots=True)
class Suggested:
    """What is suggested for one program.

    Args:
        values: The most promising first.
        knobs: For each constant its most promising value.
    """

    values: tuple[ValueSuggestion, ...] = ()
    knobs: tuple[ValueSuggestion, ...] = ()


NOTHING = Suggested()


async def suggest(
    state: State, program: str | None, context: Context | None, evidence: Evidence | None = None
) -> Suggested:
    """Return the values worth a run: nothing where the program has no numeric constants.

    What is worked out is kept until a run ends or the file changes. `evidence` is the context's, where it is known.
    """
    if program is None or context is None:
        return NOTHING
    evidence = evidence or await state.evidence(context)
    key = program, context, evidence.records.outcomes.newest
    if state.values_known[0] != key or not isinstance(state.values_known[1], Suggested):
        found = await _work_out(state, program, context, evidence)
        state.values_known = key, found
        return found
    return state.values_known[1]


async def _work_out(state: State, program: str, context: Context, evidence: Evidence) -> Suggested:
    profile = profile_of(context)
    present = constants.read(program, profile)
    if not present.numbers:
        return NOTHING
    here = await edits.context_id(state.db, context)
    rows = await outcomes.program_runs(state.db, here, limit=_RUNS)
    if not rows:  # the first thing to run is a baseline
        return NOTHING
    await _read_programs(state, {row.program_hash for row in rows}, profile)
    groups = {(here, present.rest): 0}
    runs = list[Run]()
    for row in rows:
        written = state.numbers_read[row.program_hash, profile]
        group = groups.setdefault((row.context_id, written.rest), len(groups))
        runs.append(Run(written.numbers, row.metric_value, group))

    def ask() -> Advice:
        return advise(
            present.numbers,
            runs,
            lower=context.direction is Direction.LOWER,
            noise=evidence.records.noise(),
            lean=leanings(present.numbers, evidence.prior, evidence.tries.history),
            seed=len(runs),
            limit=_SHOWN,
        )

    # On a thread: it takes tenths of a second, and may import numpy.
    advice = await asyncio.to_thread(ask)
    counted = Counter(run.group == 0 for run in runs)

    def told(found: Suggestion) -> ValueSuggestion:
        return _told(found, advice.best, present.numbers, counted[True], counted[False])

    return Suggested(tuple(map(told, advice.suggestions)), tuple(map(told, advice.knobs)))


async def _read_programs(state: State, hashes: Collection[str], profile: str) -> None:
    read = state.numbers_read
    if len(read) > _KNOWN_PROGRAMS:
        read.clear()
    if unread := {each for each in hashes if (each, profile) not in read}:
        texts = await edits.program_texts(state.db, unread)
        found = await asyncio.to_thread(lambda: {each: constants.read(text, profile) for each, text in texts.items()})
        read.update({(each, profile): written for each, written in found.items()})


def profile_of(context: Context) -> str:
    """Return which value counts of a constant that depends on the device: of the declared profile, or its kind."""
    environment = json.loads(context.environment) if context.environment else {}
    return str(environment.get("LOOPGRAPH_PROFILE") or context.device.partition(":")[0])


def _told(
    found: Suggestion, best: Mapping[str, float], present: Mapping[str, float], runs: int, others: int
) -> ValueSuggestion:
    """Return a suggestion as values for the file: what the best program has otherwise is among them."""
    wanted = {**best, **{change.name: change.new for change in found.changes}}
    knobs = {name: value for name, value in wanted.items() if value != present[name]}
    changes = ", ".join(f"{name} {number(present[name])} to {number(value)}" for name, value in knobs.items())
    return ValueSuggestion(
        knobs,
        changes or "the best program again, on another seed",
        found.worth,
        found.gain,
        found.low,
        found.high,
        found.p_improves,
        found.p_fails,
        runs,
        others,
    )


def number(value: float) -> str:
    """Return a value as code."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
