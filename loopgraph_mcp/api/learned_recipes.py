"""Learned recipes: made of wins that were agents' patches, and offered where a pack's own recipe does not fit."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loopgraph_mcp.api import lookups
from loopgraph_mcp.api.state import State
from loopgraph_mcp.code import apply, generalize, hashes
from loopgraph_mcp.code.generalize import Learned, NotLearned
from loopgraph_mcp.models import Applied, EditResult, KnobValues, Method, Refused, VerdictKind
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import learned
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.learned import LearnedRecipe

_MAX_PROGRAMS = 20  # other versions that a new recipe is tried on


@dataclass(frozen=True, slots=True)
class Offer:
    """What a learned recipe makes of a program, and its record in a few words."""

    recipe: LearnedRecipe
    made: EditResult
    record: str


async def learn(state: State, method_ids: Sequence[str]) -> None:
    """Make recipes of the methods' wins that were patches and were not looked at yet. No code is run."""
    for method_id in method_ids:
        for experiment_id in await learned.unread_wins(state.db, method_id):
            row = await lookups.the_experiment(state.db, experiment_id)
            if (await state.judge(row)).kind is VerdictKind.WIN and row.edit_id is not None:
                await _learn_from(state.db, method_id, experiment_id, row.edit_id, state.clock())


async def _learn_from(db: Database, method_id: str, experiment_id: str, edit_id: str, now: float) -> None:
    edit = await edit_store.get_edit(db, edit_id)
    assert edit is not None  # noqa: S101 - a foreign key
    method = await lookups.the_method(db, method_id)
    others = await learned.programs_beside(db, edit_id, limit=_MAX_PROGRAMS)
    found, fits = await asyncio.to_thread(_generalise, method, edit.base_text, edit.new_text, others)
    if isinstance(found, NotLearned):
        await learned.add_lookover(db, method_id, experiment_id, found.reason)
        return
    await learned.add_recipe(
        db,
        method_id,
        experiment_id,
        base_hash=edit.base_hash,
        recipe=found.recipe,
        knobs=found.knobs,
        fits=(fits.applied, fits.present, fits.refused),
        now=now,
    )


def _generalise(
    method: Method, base: str, new: str, others: Sequence[str]
) -> tuple[Learned | NotLearned, generalize.Fits]:
    made = apply.apply_method(method, base, {})
    if isinstance(made, Applied) and hashes.program_hash(made.text) == hashes.program_hash(new):
        return NotLearned("the pack's own recipe makes this change"), generalize.Fits()
    found = generalize.generalise(base, new)
    return found, generalize.Fits() if isinstance(found, NotLearned) else generalize.fits(found, others)


async def offers(state: State, method: Method, program: str, knobs: KnobValues) -> list[Offer]:
    """Return what the learned recipes of a method make of a program: those that fit first, then the newest."""
    found = []
    for recipe in await learned.recipes_of(state.db, method.id):
        made = await asyncio.to_thread(apply.apply_method, as_method(method, recipe), program, knobs)
        found.append(Offer(recipe, made, await _record_of(state, recipe)))
    return sorted(found, key=lambda offer: isinstance(offer.made, Refused))


def as_method(method: Method, recipe: LearnedRecipe) -> Method:
    """Return a method with a learned recipe in the place of its own."""
    return replace(method, recipe=recipe.recipe, knobs=recipe.knobs)


async def _record_of(state: State, recipe: LearnedRecipe) -> str:
    """Return where a learned recipe comes from and what came of it, in a few words."""
    kinds = [
        (await state.judge(await lookups.the_experiment(state.db, each))).kind
        for each in await learned.experiments_of(state.db, recipe.id)
    ]
    wins = sum(kind is VerdictKind.WIN for kind in kinds)
    parts = [f"learned from {recipe.experiment_id}"]
    if kinds:
        parts.append(f"applied {_times(len(kinds))}, {wins} win{'' if wins == 1 else 's'}")
    if tried := recipe.applied + recipe.present + recipe.refused:
        parts.append(f"fits {recipe.applied + recipe.present} of {tried} other versions")
    return ", ".join(parts)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def misfits(found: Sequence[Offer]) -> list[str]:
    """Return why learned recipes do not fit, a line each."""
    told = [(offer.record, offer.made) for offer in found]
    return [
        f"{record}: looked for {made.looked_for}: {made.reason}" for record, made in told if isinstance(made, Refused)
    ]
