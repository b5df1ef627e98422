"""The sentences and figures of the page and the report: fit to forward, and no surer than what was measured."""

import time
from dataclasses import dataclass
from pathlib import PurePath

from loopgraph_mcp.api import explain
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.api.overview import Line, Mark, Overview
from loopgraph_mcp.models import Context, Decision, Direction, OutcomeKind, RunState, VerdictKind
from loopgraph_mcp.store.nights import WorkspaceRow
from loopgraph_mcp.text import plain_line
from loopgraph_mcp.web.themes import places

MINUS = "\u2212"  # as wide as a plus, so that gains align
_WAYS = {Direction.LOWER: "lower", Direction.HIGHER: "higher"}
_FAILURES = {
    OutcomeKind.CRASHED: "crashed",
    OutcomeKind.OUT_OF_MEMORY: "ran out of memory",
    OutcomeKind.DIVERGED: "diverged",
    OutcomeKind.TIMED_OUT: "ran out of time",
    OutcomeKind.SILENT: "fell silent and was ended",
    OutcomeKind.NO_METRIC: "printed no metric",
    OutcomeKind.VOID: "printed a number that cannot be believed",
    OutcomeKind.CANCELLED: "was cancelled",
    OutcomeKind.INTERRUPTED: "was interrupted",
}


def value(number: float | None, noise: float | None = None) -> str:
    """Return a metric's value with the decimals that its noise leaves."""
    return "" if number is None else f"{number:.{places(noise)}f}"


def gain(number: float | None, noise: float | None = None) -> str:
    """Return a gain with its sign, likewise."""
    return "" if number is None else f"{number:+.{places(noise)}f}".replace("-", MINUS)


def percent(share: float | None) -> str:
    """Return a probability in whole percent, never as certain."""
    if share is None:
        return ""
    return "< 1 %" if share < 0.01 else "> 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """Return seconds in the two units that say most."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def count(number: float) -> str:
    """Return a large number short: 18,400 tokens are 18 k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            shown = number / size
            return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"
    return f"{number:.0f}"


def dollars(amount: float) -> str:
    """Return an amount; a small one keeps what it has."""
    return f"${amount:,.2f}" if amount >= 0.1 or amount == 0 else f"${amount:.4f}"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(at: float | None) -> str:
    """Return a time as this machine's clock shows it."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def workspace(where: WorkspaceRow) -> str:
    """Return a workspace's name: its folder's, or that it is an imported history."""
    if where.is_imported:
        return f"imported history {where.path.partition(':')[2][:6]}"
    return plain_line(PurePath(where.path).name or where.path, limit=60)


def setting(context: Context) -> str:
    """Return what makes runs comparable, in a few words."""
    return plain_line(
        f"{context.device}, {context.budget_s:g} s a run, {context.metric} ({_WAYS[context.direction]} is better)",
        limit=160,
    )


@dataclass(frozen=True, slots=True)
class Headline:
    """What a search came to: a few words and a sentence."""

    title: str
    sentence: str


def headline(overview: Overview) -> Headline:
    """Return what a search came to, claiming no more than was measured."""
    best, metric = overview.best, plain_line(overview.setting.context.metric, limit=60)
    if best is None:
        live = sum(line.state is not RunState.DONE for line in overview.lines)
        waiting = "The first run is on its way." if live else "Run the unchanged program first, to compare with."
        return Headline("Nothing measured yet", waiting)
    noise = best.noise_floor
    mean = f"mean of {best.runs} runs" if best.runs > 1 else "one run"
    shown = f"{value(best.metric_value, noise)} ± {value(best.standard_error, noise)} ({mean})"
    if best.is_baseline:
        return Headline(
            f"{metric} {value(best.metric_value, noise)}: the baseline",
            f"The unchanged program reaches {shown}. Nothing measured here beats it yet.",
        )
    against = f"{value(abs(best.gain), noise)} better than the baseline ({value(best.baseline, noise)}, " + (
        f"mean of {best.baseline_runs} runs)" if best.baseline_runs > 1 else "one run)"
    )
    title = f"{metric} {value(best.baseline, noise)} → {value(best.metric_value, noise)}"
    if not best.beats_noise:
        return Headline(
            title,
            f"The best program reaches {shown}: {against}, which is not distinguishable from noise. Replicate it.",
        )
    doubt = " One run can be lucky: replicate it." if best.runs == 1 else ""
    return Headline(title, f"The best program reaches {shown}: {against}, beyond the noise.{doubt}")


def mark(line: Line) -> str:
    """Return what became of an experiment, in a word or a few."""
    if line.mark is Mark.TENTATIVE:
        return "kept, within noise"
    if line.mark is Mark.DISCARDED and line.undone_by is not None:
        return "undone"
    if line.mark in {Mark.FAILED, Mark.UNMEASURED} and line.outcome is not None:
        return line.outcome.value.replace("_", " ")
    return line.mark.value


def verdict(answer: ExperimentAnswer) -> str:
    """Return the verdict on an experiment as one or two sentences."""
    if answer.state is RunState.QUEUED:
        before = answer.queue_position or 0
        return "It waits for its device." if not before else f"It waits behind {plural(before, 'experiment')}."
    if answer.state is RunState.RUNNING:
        return "It is running."
    if answer.outcome is not OutcomeKind.FINISHED:
        said = _FAILURES.get(answer.outcome, "failed") if answer.outcome is not None else "failed"
        return f"It {said}: {plain_line(answer.reason)}." if answer.reason else f"It {said}."
    if answer.verdict is None:
        return "It is a number that somebody reported without a log: no verdict, and it counts little."
    if answer.verdict is VerdictKind.BASELINE:
        return "It is the unchanged program: what the others are compared with."
    if answer.verdict is VerdictKind.NO_BASELINE or answer.gain is None:
        return "There is nothing to compare it with: its parent was never measured under these conditions."
    noise = answer.noise_floor
    way = "better" if answer.gain > 0 else "worse"
    sentence = f"It is {value(abs(answer.gain), noise)} {way} than its parent"
    sure = f"the noise of one run is {value(noise, noise)}"
    if answer.p_win is not None:
        sure += f", so the chance that it improves at all is {percent(answer.p_win)}"
    if answer.verdict is VerdictKind.WITHIN_NOISE:
        text = f"{sentence}, which is within the noise ({sure})."
    else:
        text = f"{sentence}, beyond the noise ({sure})."
    return f"{text} {_decided(answer)}".strip()


def _decided(answer: ExperimentAnswer) -> str:
    if answer.undone_by is not None:
        return "It was kept, and undone after a further run."
    if answer.decision is Decision.KEEP:
        return "It was kept for now; a replicate would decide." if answer.tentative else "It was kept."
    return "It was discarded." if answer.decision is Decision.DISCARD else ""


def noise_from(overview: Overview) -> str:
    """Return where the noise of one run comes from."""
    return "" if overview.noise is None else explain.noise(overview.noise)


def phase(answer: ExperimentAnswer) -> str:
    """Return what a live experiment does at this moment."""
    if answer.state is RunState.QUEUED:
        return "queued" if not answer.queue_position else f"queued, {answer.queue_position} before it"
    if answer.percent is None and answer.step is None:
        return "starting"
    return "evaluating" if (answer.percent or 0.0) >= 99.5 else "training"
