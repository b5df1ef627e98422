"""The sentences of the answers: why a method ranks where it does, what happened, what to do next."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from loopgraph_mcp.api.answers import (
    BestResult,
    EarlierRun,
    EditAnswer,
    Guidance,
    MethodHit,
    RunningNow,
    ValueSuggestion,
)
from loopgraph_mcp.api.evidence import Count, TrackRecord
from loopgraph_mcp.models import (
    Advice,
    Context,
    Decision,
    Direction,
    EditResult,
    KnobValue,
    Method,
    NextStep,
    NoiseFloor,
    Origin,
    Outcome,
    OutcomeKind,
    Presence,
    Present,
    Refused,
    SharedOutcome,
    Standing,
)
from loopgraph_mcp.ranking.change import Kinship
from loopgraph_mcp.ranking.prior import Estimate, PooledRate
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.text import plain_line

_MAX_FILES = 4
_TWO_LINES, _FEWEST_REASONS = 240, 2  # letters of what a reader takes in at a glance, and reasons always shown
_FOUR_DECIMALS = 1e-3  # the least gain of which four decimals show enough
_WORTH_TELLING = 1.25  # odds that are further than this from 1 to 1


def context(where: Context | None) -> str:
    """Return a context in a few words."""
    if where is None:
        return "no workspace: evidence of all contexts"
    better = "lower" if where.direction is Direction.LOWER else "higher"
    return f"{where.device}, {where.budget_s:g} s, {where.metric} ({better} is better)"


def signed(gain: float) -> str:
    """Return a gain with its sign and enough digits to tell it from noise."""
    return f"{gain:+.4f}" if gain == 0 or abs(gain) >= _FOUR_DECIMALS else f"{gain:+.2g}"


def why(
    method: Method,
    record: TrackRecord,
    presence: Presence | None,
    estimate: Estimate | None = None,
    here: Context | None = None,
    *,
    p_keep: float | None = None,
) -> str:
    """Return what is known of a method, in two lines at most."""
    parts = [*_in_file(presence, p_keep), *_records(method, record, here)]
    if estimate is not None:
        parts += _rates(estimate)
    while len(parts) > _FEWEST_REASONS and len("; ".join(parts)) > _TWO_LINES:
        parts.pop()
    return "; ".join(parts)


def _records(method: Method, record: TrackRecord, here: Context | None) -> list[str]:
    parts = []
    if record.here.tries:
        parts.append(f"{counted(record.here)}{_ago(record.here.last_age)}")
    else:
        parts.append("untried here")
    if record.elsewhere.tries:
        parts.append(f"in other workspaces or settings: {counted(record.elsewhere)}")
    if record.imported.tries:
        parts.append(f"in imported histories: {counted(record.imported)}")
    if record.reports:
        parts.append(f"{record.reports} reported without a log, which counts little")
    if not record.here.tries and not record.elsewhere.tries:
        parts += _published(method, here)
    return parts


def _in_file(presence: Presence | None, p_keep: float | None) -> list[str]:
    found = [f"P(keep) {p_keep:.2f}"] if p_keep is not None else []
    match presence:
        case Presence.PRESENT:
            return ["already in the file"]
        case Presence.PARTIAL:
            return [*found, "partly in the file"]
        case Presence.CONFLICTING:
            return [*found, "conflicts with code already in the file"]
    return found


def counted(count: Count) -> str:
    """Return how some trials ended."""
    times = "once" if count.tries == 1 else f"{count.tries} times"
    outcome = f"tried {times}, {count.wins} win{'s' if count.wins != 1 else ''}"
    if count.mean_gain is not None:
        outcome += f", mean gain {signed(count.mean_gain)}"
    return outcome + (f", {count.crashes} failed" if count.crashes else "")


def decision(made: Decision, tentative: bool) -> str:  # noqa: FBT001 - a fact of the decision, no behaviour
    """Return a decision in words: what gained within the noise is kept, and not won."""
    if made is Decision.KEEP and tentative:
        return "kept, not yet distinguishable from noise"
    return made.value


def noise(floor: NoiseFloor) -> str:
    """Return where a noise floor comes from."""
    if floor.replicates:
        source = f"from {floor.replicates} replicate{'s' if floor.replicates != 1 else ''} and a default"
    else:
        source = "a default: nothing was replicated yet"
    shared = f"; x{floor.factor:g} because these runs shared their device" if floor.factor > 1 else ""
    return source + shared


def _ago(age: int | None) -> str:
    if age is None:
        return ""
    return ", just now" if age == 0 else f", {age} experiment{'s' if age != 1 else ''} ago"


def _published(method: Method, here: Context | None) -> list[str]:
    told = sorted((each for each in method.published if each.gain is not None), key=lambda each: each.gain or 0.0)
    alike = [each for each in method.outcomes if here is None or each.device == here.device_class]
    if outcomes := alike or ([] if told else method.outcomes):
        return [shared(max(outcomes, key=lambda each: each.runs or each.tries))]
    if not told:
        return []
    gains = dict.fromkeys(signed(each.gain or 0.0) for each in (told[0], told[-1]))
    return [f"published {' to '.join(gains)} ({told[-1].setting})"]


def shared(outcome: SharedOutcome) -> str:
    """Return what came of a method for somebody else, in one context."""
    tries = "1 try" if outcome.tries == 1 else f"{outcome.tries} tries"
    in_runs = f" in {outcome.runs} run{'s' if outcome.runs != 1 else ''}" if outcome.runs else ""
    gain = "" if outcome.mean_gain is None else f", mean gain {signed(outcome.mean_gain)}"
    return f"others' {tries}{in_runs}, {outcome.wins} won{gain} ({outcome.context})"


def plateau(runs: int, families: Collection[str]) -> str:
    """Return that the last runs led nowhere, or nothing where they did not."""
    if not families:
        return ""
    return (
        f"Plateau: none of the last {runs} changes here gained more than the noise ({', '.join(sorted(families))}); "
        "other families are put first. A larger change, or a replicate of the best, tells more than another small step."
    )


def unrecorded(note: str, reason: str) -> str:
    """Return a search's note with why the search is not recorded, where it is not."""
    if not reason:
        return note
    said = f"This search is not recorded yet: the store cannot be written ({reason}). Free disk space or allow writing."
    return f"{note} {said}".strip()


def value(found: ValueSuggestion) -> str:
    """Return a suggestion of values in a line or two."""
    if not found.knobs:
        return f"{found.changes}: P(its lead is luck) {1 - found.p_improves:.2f}"
    return (
        f"{found.changes}: P(improves) {found.p_improves:.2f}, P(fails) {found.p_fails:.2f}, "
        f"gain {signed(found.gain)} ({signed(found.low)} to {signed(found.high)})"
    )


def rests_on(found: ValueSuggestion) -> str:
    """Return which runs a suggestion of values rests on."""
    if not found.runs + found.others:
        return "no runs here yet; others' histories alone"
    others = f" and {found.others} of other programs or settings" if found.others else ""
    return f"{found.runs} run{'s' if found.runs != 1 else ''} of this program{others}"


def suggested_knobs(taken: Mapping[str, tuple[KnobValue, KnobValue]], runs: int) -> str:
    """Return which knob values an edit took from what runs here measured, and which of its own they replace."""
    told = ", ".join(f"{knob} = {value} (its own default is {default})" for knob, (value, default) in taken.items())
    return f"suggested by {runs} run{'s' if runs != 1 else ''} here: {told}; knobs={{…}} sets others"


def after_search(
    hits: Sequence[MethodHit],
    retrieval_id: str,
    values: Sequence[ValueSuggestion] = (),
    *,
    filtered: bool,
    asked: bool = True,
) -> NextStep:
    """Return what to do with an answer.

    Args:
        hits: The methods shown.
        retrieval_id: Of the search.
        values: Suggested values, the most promising first.
        filtered: Whether it was asked for some methods alone, by their family or standing.
        asked: Whether it was asked in words.
    """
    if values and values[0].runs and not asked and not filtered:
        if not values[0].knobs:
            return NextStep(Advice.REPLICATE_BEST, "run_experiment", {"replicate": True})
        return _make_edit(Advice.SET_VALUES, "set-values", retrieval_id=retrieval_id)
    if not hits:
        return NextStep(Advice.NO_FILTER if filtered else Advice.OTHER_WORDS)
    ready = [hit for hit in hits if hit.has_edit and hit.presence is not Presence.PRESENT]
    ready.sort(key=lambda hit: hit.standing is Standing.FLOPPED)
    if not ready:
        return NextStep(Advice.ALL_PRESENT, "get_code_edit")
    if ready[0].standing is Standing.FLOPPED:
        return NextStep(Advice.ALL_FLOPPED)
    return _make_edit(Advice.MAKE_EDIT, ready[0].method_id, retrieval_id=retrieval_id)


def _make_edit(reason: Advice, method_id: str, **more: str | bool) -> NextStep:
    return NextStep(reason, "get_code_edit", {"method_id": method_id, **more})


def no_edit(
    subject: str, file: str, made: EditResult, *, has_recipe: bool, guidance: Guidance | None = None, learned: str = ""
) -> EditAnswer:
    """Return the answer where a method makes no edit: it is there already, its recipe does not fit, or it has none."""
    if isinstance(made, Present):
        status, reason, near = "present", made.reason, list[str]()
        next_step = NextStep(Advice.OTHER_VALUES)
    else:
        assert isinstance(made, Refused)  # noqa: S101 - the caller has handled Applied
        status, reason, near = "refused", f"looked for {made.looked_for}: {made.reason}", list(made.nearest)
        if not has_recipe:
            status, reason = "guidance", "it has no recipe, so there is no diff of it"
        own = {"patch": "…", "description": "…"}
        next_step = NextStep(Advice.BY_HAND, "run_experiment", {"patch": "…", "method_id": subject})
        if subject.startswith("exp_"):
            next_step = NextStep(Advice.TAKE_PARTS, "run_experiment", {**own})
        if guidance is not None:
            next_step = NextStep(Advice.WRITE_IT, "run_experiment", {**own, "method_id": subject}, {"file": file})
    return EditAnswer(
        status=status,
        method_id=subject,
        file=file,
        edit_id=None,
        diff="",
        changes=[],
        reason=reason,
        nearest=near,
        earlier=[],
        next_step=next_step,
        learned=learned,
        guidance=guidance,
    )


def taught(run: ExperimentRow, method_ids: Sequence[str]) -> list[NextStep]:
    """Return what a winning change taught: the recipe of a method, or that it should be named to become one."""
    if method_ids:
        return [_make_edit(Advice.USE_LEARNED, method_ids[0])]
    if not run.method_ids and run.decision is Decision.KEEP:
        return [NextStep(Advice.NAME_METHOD, "run_experiment", {"method_id": "…", "replicate": True})]
    return []


def after_unjudged(run: ExperimentRow, outcome: Outcome) -> NextStep:
    """Return what to do with an outcome that has no verdict."""
    if run.origin is Origin.REPORTED and outcome.kind.says_something:
        return after_report()
    if outcome.kind is OutcomeKind.CANCELLED:
        return NextStep(Advice.RUN_AGAIN)
    return NextStep(Advice.FIX_SURROUNDINGS)


def after_report() -> NextStep:
    """Return what to do with a number that somebody reported without its log."""
    return NextStep(Advice.SEND_LOG, "run_experiment")


def among_other_files(names: Sequence[str]) -> str:
    """Return in which files an earlier run of the same program differs from what a run would see now."""
    if not names:
        return "the same program, in a run that did not record the files beside it"
    return f"the same program with other files: {_few(names)} differ{'s' if len(names) == 1 else ''}"


def since_parent(parent: str, names: Sequence[str]) -> list[NextStep]:
    """Return which files changed since the parent was run, and what to do with files that no run reads."""
    return [NextStep(Advice.IGNORE_FILES, about={"parent": parent, "files": _few(names)})] if names else []


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_FILES]) + (f" and {len(names) - _MAX_FILES} more" if len(names) > _MAX_FILES else "")


def earlier_run(run: ExperimentRow) -> EarlierRun:
    """Return an earlier experiment in one line."""
    outcome = "still running" if run.outcome is None else f"{run.outcome.kind.value}: {run.outcome.reason}"
    return EarlierRun(run.id, run.description, outcome, run.decision)


_KINSHIP = {
    Kinship.SAME: "the same change from another parent: a re-test",
    Kinship.SAME_VALUE: "the same knob set to the same value, from another one",
    Kinship.BEYOND_FAILED: "went this way, less far, and failed",
    Kinship.BETWEEN_FAILED: "failed on one side of this value, as others did on its other side",
    Kinship.SAME_DIRECTION: "went this way, further, and failed",
    Kinship.REVERSES_KEPT: "was kept, and this takes it back",
    Kinship.SEED_ALONE: "nothing but the seed changes: that is a replicate, not a method",
}


def kinship(how: Kinship, since: str) -> str:
    """Return how an earlier change stands to a new one, and how the parent has changed since."""
    return _KINSHIP[how] + (f" (since then: {since})" if since else "")


def prior(estimate: Estimate | None, odds: float = 1.0) -> str:
    """Return what the probability of a change rests on; `odds`: what its method's own record adds."""
    if estimate is None:
        return ""
    parts = [f"estimated P(keep) {estimate.p_keep:.2f}", f"recent keep rate here {estimate.keep_rate:.2f}"]
    parts += _rates(estimate)
    if not 1 / _WORTH_TELLING < odds < _WORTH_TELLING:
        parts.append(f"odds multiplied by {odds:.1f} for the method's own record")
    return "; ".join(parts)


def _rates(estimate: Estimate) -> list[str]:
    rates = (estimate.pooled, "other histories"), (estimate.own, "your other workspaces")
    return [_rate(rate, where) for rate, where in rates if rate is not None]


def _rate(rate: PooledRate, where: str) -> str:
    trials = "1 trial" if rate.trials == 1 else f"{rate.trials} trials"
    return f"same knob and direction in {where}: {trials}, keep rate {rate.ratio:.1f}x the average"


def replaced(method_ids: Sequence[str]) -> str:
    """Return a warning that an edit takes the place of methods that cannot stand beside it."""
    return f"{', '.join(method_ids)} is in the file now; this edit takes its place" if method_ids else ""


def best_result(best: BestResult) -> str:
    """Return what ran best here, with its noise, in a sentence that claims no more than was measured."""
    runs = "one run" if best.runs == 1 else f"mean of {best.runs} runs"
    floor = NoiseFloor(best.noise_floor, best.replicates, best.noise_factor)
    value = f"{best.metric} {best.metric_value:.6f} +- {best.standard_error:.6f} ({runs}; noise {noise(floor)})"
    if best.is_baseline:
        return f"Best: {value}: the baseline; nothing measured here beats it."
    against = f"{signed(best.gain)} against the baseline's {best.baseline:.6f}"
    if best.beats_noise:
        return f"Best: {value}: {best.description} ({best.experiment_id}), {against}."
    return (
        f"Best: {value}: {best.description} ({best.experiment_id}), {against}: not distinguishable from noise. "
        "Nothing measured here beats the noise yet."
    )


def after_whole(experiment_id: str, *, applied: bool) -> NextStep:
    """Return what to do with an edit that makes the file the program of an experiment."""
    if applied:
        return NextStep(Advice.GO_ON, "search_methods")
    return _make_edit(Advice.APPLY_WHOLE, experiment_id, apply=True)


def after_edit(edit_id: str, earlier: Sequence[EarlierRun]) -> NextStep:
    """Return what to do with an edit."""
    same = [each for each in earlier if each.kinship == "same_program"]
    if same:
        about = {"experiment_id": same[-1].experiment_id, "outcome": same[-1].outcome}
        return NextStep(Advice.RAN_BEFORE, "run_experiment", {"edit_id": edit_id, "replicate": True}, about)
    reason = Advice.READ_EARLIER if earlier else Advice.RUN_EDIT
    return NextStep(reason, "run_experiment", {"edit_id": edit_id, "description": "…"})


def after_method(method_id: str, status: str, *, amend: bool) -> NextStep:
    """Return what to do once a method is registered or was looked at."""
    if status == "retired" or amend:
        return NextStep(Advice.AMEND if amend else Advice.BRING_BACK, "add_method", {"method_id": method_id})
    return _make_edit(Advice.MAKE_EDIT, method_id)


def under_way(run: RunningNow) -> str:
    """Return an experiment that is on its way in one line: which, whose, what."""
    whose = "you" if run.yours else ", ".join(run.agents) or "somebody"
    return f"{run.experiment_id} ({whose}, {run.state.value}): {run.description}"


def edit_under_way(answer: EditAnswer, alike: Sequence[RunningNow]) -> EditAnswer:
    """Return an edit's answer with the advice to wait for the experiments like it that are on their way."""
    first = alike[0].experiment_id
    wait = NextStep(Advice.WAIT_FOR_OTHER, "get_experiment", {"experiment_id": first})
    return dataclasses.replace(answer, running=list(alike), next_step=wait, otherwise=answer.next_step)


def description(given: str, method_ids: Sequence[str], base: str | None) -> str:
    """Return an experiment's description, one line of at most 200 characters."""
    fallback = " + ".join(method_ids) or ("baseline" if base is None else "edited by hand")
    return plain_line(given, limit=200) or fallback[:200]
