"""The verb get_code_edit: methods as one edit of the workspace's present file, or an edit taken out of it again."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loopgraph_mcp.api import activity, explain, incumbent, learned_recipes, lookups, precedents, smoke, suggest
from loopgraph_mcp.api.answers import EditAnswer, Guidance, OfferedChange
from loopgraph_mcp.api.evidence import Records
from loopgraph_mcp.api.guidance import guide
from loopgraph_mcp.api.run_plan import keep_program
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code import by_role, compose, constants
from loopgraph_mcp.code.apply import ALL, NOTHING, Around, detect, offered, unified_diff
from loopgraph_mcp.code.compose import Wish
from loopgraph_mcp.code.revert import undo
from loopgraph_mcp.errors import RunError, WorkspaceError
from loopgraph_mcp.models import Applied, ByRole, EditResult, KnobValue, Method, Presence, Refused, SetConst
from loopgraph_mcp.ranking.prior import Estimate
from loopgraph_mcp.runner import schemas
from loopgraph_mcp.runner.workspace import Workspace
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import experiments, methods
from loopgraph_mcp.store import learned as learned_store
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.edits import EditRow
from loopgraph_mcp.text import compile_later

_ONLY_A_KNOB = compile_later(r"\{[a-z0-9_]+\}")
_LIKELY = 0.15  # a suggested value less likely to improve than most changes does not replace a method's own
_RUNS_SINCE = 50  # newest experiments among which it is looked whether an applied edit has run


@dataclass(frozen=True, slots=True)
class Asked:
    """What an edit is asked to hold, and whether the file is to be written.

    Args:
        method_ids: The methods, the main one first; or one experiment; to revert, also the id of an edit.
        knobs: Knob values; of another method than the first as `method.knob`.
        companions: Names of companions to make as well; `edits.ALL` for all.
        revert: Whether to take the method's last edit out of the file.
    """

    method_ids: Sequence[str]
    knobs: Mapping[str, KnobValue]
    companions: frozenset[str] = frozenset()
    retrieval_id: str | None = None
    revert: bool = False
    apply: bool = False

    @property
    def sets_values(self) -> bool:
        """Whether constants are to be set, in a method's place."""
        return not self.revert and self.method_ids[0] == suggest.METHOD_ID

    @property
    def whole(self) -> bool:
        """Whether the program of an experiment is asked for, in a method's place."""
        return not self.revert and self.method_ids[0].startswith(incumbent.PREFIX)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What came of it, and what of it is written down: the methods it puts into practice, and what was asked for."""

    made: EditResult
    methods: tuple[Method, ...]
    asked: Mapping[str, KnobValue]
    around: Around


async def get_code_edit(state: State, asked: Asked, *, workspace: str | None, caller: Caller | None) -> EditAnswer:
    """Make, store and, if asked to, write an edit; say what of its like is under way."""
    answer = await _make_edit(state, asked, workspace)
    running = activity.running_now(await activity.under_way(state.db), caller)
    return answer if asked.revert else activity.told_in_edit(answer, running, set(answer.method_id.split(" + ")))


async def _make_edit(state: State, asked: Asked, workspace: str | None) -> EditAnswer:
    """Make, store and, if asked to, write an edit of the workspace's present file.

    Where a method's own recipe does not fit, one learned of a winning patch is taken, or there is guidance instead.

    Raises:
        WorkspaceError: The file changed meanwhile.
    """
    db, here, now = state.db, state.here, state.clock()
    await lookups.check_retrieval(db, asked.retrieval_id)
    where = await here.workspace(workspace)
    program = await asyncio.to_thread(where.read_program)
    asked, taken = await _with_suggested(state, where, await _with_ids(db, asked), program)
    plan = await _plan(state, where, asked, program)
    if asked.apply and (earlier := await _applied_before(db, await here.workspace_id(where), plan, program)):
        return _again(plan, earlier, where.editable)
    subject = " + ".join(method.id for method in plan.methods) or asked.method_ids[0]
    learned: learned_recipes.Offer | None = None
    guidance: Guidance | None = None
    if isinstance(plan.made, Refused) and len(plan.methods) == 1:
        method = plan.methods[0]
        await learned_recipes.learn(state, [method.id])
        offers = await learned_recipes.offers(state, method, program, asked.knobs)
        if offers and not isinstance(offers[0].made, Refused):
            learned = offers[0]
            plan = replace(plan, made=learned.made)
        else:
            guidance = await guide(db, method, program, learned=learned_recipes.misfits(offers))
    record = "" if learned is None else learned.record
    if not isinstance(plan.made, Applied):
        has_recipe = learned is not None or all(method.has_edit for method in plan.methods)
        return explain.no_edit(
            subject, where.editable, plan.made, has_recipe=has_recipe, guidance=guidance, learned=record
        )
    text = plan.made.text
    took = "" if asked.revert or asked.whole else await smoke.smoke(where, program, text, os.environ)
    if took.startswith("failed"):
        failed = Refused("an edited program that takes a step", f"smoke {took}")
        return explain.no_edit(subject, where.editable, failed, has_recipe=True)
    context = await here.context(where, where.budget_s)
    diff = await asyncio.to_thread(unified_diff, program, text, where.editable)
    base_hash = await keep_program(db, program, where.editable)
    new_hash = await keep_program(db, text, where.editable)
    inputs = await here.inputs(where)
    edit_id = await edit_store.add_edit(
        db,
        workspace=await here.workspace_id(where),
        method_id=plan.methods[0].id if plan.methods and not asked.revert else None,
        retrieval_id=asked.retrieval_id,
        base_hash=base_hash,
        new_hash=new_hash,
        knobs=plan.asked,
        diff=diff,
        now=now,
    )
    if learned is not None:
        await learned_store.add_edit(db, edit_id, learned.recipe.id)
    if asked.apply and not await asyncio.to_thread(here.write_alone, where, text, program):
        raise WorkspaceError(f"{where.editable_path}: changed while the edit was made; ask again")
    names = " + ".join(method.name for method in plan.methods)
    made_of = ", ".join(plan.made.changes) if asked.sets_values else f"the program of {subject}"
    description = f"revert {subject}" if asked.revert else names or made_of
    bearing = await precedents.find_precedents(
        state,
        context,
        await asyncio.to_thread(inputs.identify, text, where.editable),
        files=inputs.files,
        base_hash=base_hash,
        new_hash=new_hash,
        description=description,
    )
    estimate, odds = bearing.estimate, 1.0
    if estimate is not None and len(plan.methods) == 1 and not asked.revert:
        estimate, odds = await asyncio.to_thread(
            _with_record, estimate, (await state.evidence(context)).records, plan.methods[0]
        )
    return EditAnswer(
        status="applied" if asked.apply else "ready",
        method_id=subject,
        file=where.editable,
        edit_id=edit_id,
        diff=diff,
        changes=list(plan.made.changes),
        reason=""
        if asked.revert
        else _noted(taken, explain.replaced(await asyncio.to_thread(_in_the_way, plan, program))),
        nearest=[],
        earlier=list(bearing.earlier),
        next_step=explain.after_whole(subject, applied=asked.apply)
        if asked.whole
        else explain.after_edit(edit_id, bearing.earlier),
        p_keep=None if estimate is None else round(estimate.p_keep, 4),
        prior=explain.prior(estimate, odds),
        companions=[]
        if asked.revert or learned is not None or not plan.methods
        else await asyncio.to_thread(_offered, plan, asked, text),
        learned=record,
        smoke=took,
    )


def _with_record(estimate: Estimate, records: Records, method: Method) -> tuple[Estimate, float]:
    """Return the estimate for a method's edit with what its own record adds, and by which factor that is."""
    odds = records.appraisal(method).odds
    return estimate.with_odds(odds), odds


async def _with_ids(db: Database, asked: Asked) -> Asked:
    """Return what is asked for with the methods' ids for any of their names, and knob values in their knobs' types.

    Raises:
        NotFoundError: A name is no method's, or several methods'.
        RunError: A knob is given twice.
    """
    if (
        asked.whole
        or asked.sets_values
        or (asked.revert and await edit_store.get_edit(db, asked.method_ids[0]) is not None)
    ):
        return asked
    wanted = {each.id: each for each in [await lookups.the_method(db, each) for each in asked.method_ids]}
    first = next(iter(wanted))
    knobs = dict[str, KnobValue]()
    for name, value in asked.knobs.items():
        owner, _, knob = name.rpartition(".")
        owners = [each.id for each in lookups.named(owner, wanted.values())] or [owner]
        method = wanted.get(owners[0] if owner else first)
        key = knob if method is not None and method.id == first else f"{owners[0]}.{knob}"
        if key in knobs:
            raise RunError(f"knobs: {knob} of {first} is given twice, as {key} and as {name}; give it once")
        knobs[key] = _in_type(value, method, knob)
    return replace(asked, method_ids=tuple(wanted), knobs=knobs)


def _in_type(value: KnobValue, method: Method | None, knob: str) -> KnobValue:
    """Return a knob's value as a number where it was sent as text and the knob takes no text."""
    declared = {} if method is None else {each.name: each.default for each in method.knobs}
    if not isinstance(value, str) or isinstance(declared.get(knob), str):
        return value
    number = schemas.number(value)
    return value if number is None else number


async def _applied_before(db: Database, workspace_id: str, plan: _Plan, program: str) -> EditRow | None:
    """Return the edit that the file holds by an earlier call with the same wish: its client gave up and calls again.

    Where that program has run since, an edit that fits once more is a further step, not a retry.
    """
    if not plan.methods or edit_store.REVERTS in plan.asked:
        return None
    wish = plan.methods[0].id, tuple(each.id for each in plan.methods), dict(plan.asked)
    for row in await edit_store.edits_to_revert(db, workspace_id, plan.methods[0].id):
        if row.new_text != program or wish != (row.method_id, row.method_ids, json.loads(row.knobs)):
            continue
        runs = await experiments.list_experiments(db, workspace_id, limit=_RUNS_SINCE)
        if not isinstance(plan.made, Applied) or row.new_hash not in {run.program_hash for run in runs}:
            return row
    return None


def _again(plan: _Plan, row: EditRow, file: str) -> EditAnswer:
    return EditAnswer(
        status="applied",
        method_id=" + ".join(each.id for each in plan.methods),
        file=file,
        edit_id=row.id,
        diff=row.diff,
        changes=[],
        reason=f"an earlier call made this edit, and {file} already holds it",
        nearest=[],
        earlier=[],
        next_step=explain.after_edit(row.id, []),
    )


async def _plan(state: State, where: Workspace, asked: Asked, program: str) -> _Plan:
    if (asked.revert or asked.whole) and (len(asked.method_ids) > 1 or asked.knobs or asked.companions):
        whole, back = (
            "an experiment's program is taken as it ran",
            "revert takes one method or edit back as it was made",
        )
        raise RunError(f"{whole if asked.whole else back}; leave also, knobs and companions out")
    if asked.sets_values:
        if len(asked.method_ids) > 1 or asked.companions:
            raise RunError(f"{suggest.METHOD_ID} sets constants alone; leave also and companions out")
        return _Plan(_with_values(program, asked.knobs), (), asked.knobs, NOTHING)
    if not asked.revert and not asked.whole:
        siblings = await asyncio.to_thread(where.read_siblings, program)
        return await _plan_methods(state.db, asked, program, siblings)
    workspace_id = await state.here.workspace_id(where)
    if asked.revert:
        return await _plan_revert(state.db, workspace_id, asked, program)
    made = await incumbent.as_it_ran(state.db, asked.method_ids[0], program, workspace_id)
    return _Plan(made, (), {edit_store.PROGRAM_OF: asked.method_ids[0]}, NOTHING)


def _with_values(program: str, values: Mapping[str, KnobValue]) -> EditResult:
    if not values:
        return Refused("a suggested value", "no constant of the file is a number that could be set; name one in knobs")
    return constants.set_constants(program, {name: str(value) for name, value in values.items()})


async def _with_suggested(state: State, where: Workspace, asked: Asked, program: str) -> tuple[Asked, str]:
    """Return what is asked for with suggested values where it names none, and what is to be said of them."""
    if asked.whole or asked.revert or (asked.sets_values and asked.knobs):
        return asked, ""
    wanted = [] if asked.sets_values else [await lookups.the_method(state.db, each) for each in asked.method_ids]
    if not asked.sets_values and not any(map(_constants_of, wanted)):
        return asked, ""
    context = await state.here.context(where, where.budget_s)
    found = await suggest.suggest(state, program, context)
    if not asked.sets_values:
        present = constants.read(program, suggest.profile_of(context)).numbers
        return _with_suggested_knobs(asked, wanted, found, present)
    first = next((each for each in found.values if each.knobs), None)
    if first is None:
        return asked, ""
    said = f"the values suggested first: {explain.value(first)}, by {explain.rests_on(first)}"
    return replace(asked, knobs=first.knobs), said


def _with_suggested_knobs(
    asked: Asked, wanted: Sequence[Method], found: suggest.Suggested, present: Mapping[str, float]
) -> tuple[Asked, str]:
    best = {name: each for each in found.knobs if len(each.knobs) == 1 for name in each.knobs}
    taken = dict[str, tuple[KnobValue, KnobValue]]()
    for place, method in enumerate(wanted):
        for knob, name in _constants_of(method).items():
            key = knob if place == 0 else f"{method.id}.{knob}"
            default = next(each.default for each in method.knobs if each.name == knob)
            if key in asked.knobs or isinstance(default, str) or name not in best:
                continue
            new, likely = best[name].knobs[name], best[name].runs and best[name].p_improves >= _LIKELY
            if likely and (new > present[name]) is (default > present[name]):  # the other way is another idea
                taken[key] = new, default
    if not taken:
        return asked, ""
    knobs = {**asked.knobs, **{key: new for key, (new, _) in taken.items()}}
    return replace(asked, knobs=knobs), explain.suggested_knobs(taken, next(iter(best.values())).runs)


def _constants_of(method: Method) -> dict[str, str]:
    """Return the constants that a method sets to a knob's value as it is, by the knob."""
    ops = () if method.recipe is None else method.recipe.ops
    found = {op.value[1:-1]: op.name for op in ops if isinstance(op, SetConst) and _ONLY_A_KNOB.fullmatch(op.value)}
    for op in ops:
        names = by_role.constant_names(op.edit) if isinstance(op, ByRole) and len(method.knobs) == 1 else ()
        if names:
            found[method.knobs[0].name] = names[0]
    return found


def _noted(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


async def _plan_methods(db: Database, asked: Asked, program: str, siblings: Mapping[str, str]) -> _Plan:
    wanted = [await lookups.the_method(db, each) for each in asked.method_ids]
    library = {method.id: method for method in await methods.all_methods(db)}
    around = Around(siblings, library, asked.companions)
    wish = Wish(wanted, compose.knobs_by_method(wanted, asked.knobs))
    made = await asyncio.to_thread(compose.compose, wish, program, around)
    notes: dict[str, KnobValue] = {edit_store.METHODS: " ".join(each.id for each in wanted)} if len(wanted) > 1 else {}
    if asked.companions:
        notes[edit_store.COMPANIONS] = " ".join(sorted(asked.companions))
    return _Plan(made, tuple(wanted), {**asked.knobs, **notes}, around)


async def _plan_revert(db: Database, workspace_id: str, asked: Asked, program: str) -> _Plan:
    """Take out the newest edit that stands in the file: the one whose very text it is, else one whose lines are."""
    wanted = asked.method_ids[0]
    rows = await edit_store.edits_to_revert(db, workspace_id, wanted)
    rows.sort(key=lambda row: row.new_text != program)
    made: EditResult | None = None
    for row in rows:
        answer = await asyncio.to_thread(undo, row.base_text, row.new_text, program)
        if isinstance(answer, Applied):
            known = [await lookups.the_method(db, each) for each in row.method_ids]
            return _Plan(answer, tuple(known), {edit_store.REVERTS: row.id}, NOTHING)
        made = made or answer
    missing = Refused(f"an edit of {wanted} made in this workspace", "there is none to take back; take it out by hand")
    return _Plan(made or missing, (), {}, NOTHING)


def _in_the_way(plan: _Plan, program: str) -> list[str]:
    """Return the methods in the file whose place the edit takes."""
    conflicts = {each for method in plan.methods if method.recipe for each in method.recipe.conflicts}
    known = [plan.around.library[each] for each in sorted(conflicts) if each in plan.around.library]
    return [each.id for each in known if detect(each, program) is Presence.PRESENT]


def _offered(plan: _Plan, asked: Asked, text: str) -> list[OfferedChange]:
    """Return the companions that were not asked for and would change the edited text further."""
    given = compose.knobs_by_method(plan.methods, asked.knobs)
    around = replace(plan.around, companions=frozenset())
    return [
        OfferedChange(companion.name, companion.why, change)
        for method in plan.methods
        for companion, change in offered(method, text, given[method.id], around)
        if not {companion.name, ALL} & asked.companions
    ]
