"""Tables and bars for people; programs get --json."""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import typer
from pydantic import TypeAdapter
from rich.box import MINIMAL
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.syntax import Syntax
from rich.table import Table
from rich.tree import Tree

from loopgraph_mcp.api import explain
from loopgraph_mcp.api.answers import (
    BestResult,
    CodeMapAnswer,
    EarlierRun,
    EditAnswer,
    ExperimentAnswer,
    Guidance,
    ImportAnswer,
    IngestAnswer,
    MethodAnswer,
    PackCheckAnswer,
    PackExportAnswer,
    SearchAnswer,
    TraceAnswer,
)
from loopgraph_mcp.api.run_plan import DEFAULT_SEED
from loopgraph_mcp.cli import next_steps
from loopgraph_mcp.cli.doctor import Check, Level
from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.models import Decision, NextStep, Origin, OutcomeKind, RunState, VerdictKind
from loopgraph_mcp.ranking.backtest import Difference, Report
from loopgraph_mcp.text import diff_lines, marked, plain, quoted, visible


class _PlainConsole(Console):
    """Writes only what can be seen: whatever a text holds, the terminal gets no commands but our own colours."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for part in super().render(renderable, options):
            yield part if part.control else Segment(visible(part.text), part.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print; what goes to a file or a pipe is not broken into lines: the rest of one would look like another."""
        if not self.is_terminal and all(isinstance(each, str | Tree) for each in objects):
            how["soft_wrap"] = True
        super().print(*objects, **how)


console = _PlainConsole(emoji=False)
errors = _PlainConsole(stderr=True, emoji=False)

_A = TypeVar("_A")
_P = ParamSpec("_P")


def _plain_first(show: Callable[Concatenate[_A, _P], None]) -> Callable[Concatenate[_A, _P], None]:
    """Show an answer once all text in it is plain, so that each field is one line of ours at most."""

    @functools.wraps(show)
    def shown(answer: _A, /, *args: _P.args, **named: _P.kwargs) -> None:
        show(plain(answer), *args, **named)

    return shown


_VERDICT_STYLE = {
    VerdictKind.WIN: "bold green",
    VerdictKind.LOSS: "red",
    VerdictKind.CRASH: "bold red",
    VerdictKind.WITHIN_NOISE: "yellow",
}
MAX_SHOWN = 1_000
# Lines of an import's summary by what they say; with totals, methods, what is left of each and what is next, 40 in all.
_FILE_LINES, _NOTE_LINES, _ROW_NOTE_LINES, _FAILURE_LINES = 16, 8, 5, 5
_METHODS_SHOWN = 8
_DECIDED_WIDTH = 17  # of the column's head: no word of a decision is broken in 80 columns
_UNDERSTOOD = {"whole": ("green", "yes"), "part": ("yellow", "in part"), "left_out": ("red", "left out")}


def print_json(value: Any) -> None:
    """Print a value, or a list of values, as JSON."""
    plain = TypeAdapter[Any](type(value)).dump_python(value, mode="json") if dataclasses.is_dataclass(value) else value
    if isinstance(value, list):
        plain = [TypeAdapter[Any](type(item)).dump_python(item, mode="json") for item in value]
    console.print(json.dumps(plain, indent=2), soft_wrap=True, markup=False, highlight=False)


def named(source: str) -> str:
    """Return a source as it was typed, with its path in full where it is one: here is not always the workspace."""
    try:
        path = Path(source).expanduser()
        return str(path.absolute()) if "://" not in source and path.exists() else source
    except (OSError, RuntimeError):  # too long a name, or no such user's home
        return source


def say(line: str) -> None:
    """Print one line as it is, whatever it holds."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def end_with(failed: Sequence[LoopGraphError]) -> None:
    """Say what failed, and end with status 1 where anything did."""
    for error in failed:
        errors.print(f"loopgraph: {next_steps.refusal(error)}", style="red", markup=False, highlight=False)
    if failed:
        raise typer.Exit(1)


def _show_next(*steps: NextStep) -> None:
    console.print(f"[dim]next:[/] {escape(' '.join(map(next_steps.word, steps)))}", highlight=False)


@_plain_first
def show_search(answer: SearchAnswer) -> None:
    """Show ranked methods."""
    console.print(
        f"[bold]{escape(marked(answer.query) or 'all methods')}[/] [dim]{escape(answer.context)}[/]", highlight=False
    )
    table = Table()
    table.add_column("#", justify="right")
    table.add_column("method", no_wrap=True)
    table.add_column("standing", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("what it does, and why it stands here", overflow="fold")
    for rank, hit in enumerate(answer.hits, start=1):
        recipe = "" if hit.has_edit else f"; {escape(hit.misfit) or 'no recipe'}"
        told = f"{escape(hit.summary)}\n[dim]{escape(hit.why)}{recipe}[/]"
        table.add_row(str(rank), f"[bold]{escape(hit.method_id)}[/]", hit.standing.value, f"{hit.score:.2f}", told)
    console.print(table)
    if answer.values and answer.values[0].runs:
        values = Table(title="values to try", title_justify="left")
        for name in ("change", "expected gain (90 %)", "P(improves)", "P(fails)"):
            values.add_column(name, overflow="fold")
        for each in [*answer.values, *answer.knob_values]:
            gain = f"{explain.signed(each.gain)} ({explain.signed(each.low)} to {explain.signed(each.high)})"
            values.add_row(escape(each.changes), gain, f"{each.p_improves:.2f}", f"{each.p_fails:.2f}")
        console.print(values)
    if answer.best is not None:
        best = answer.best
        told = f"best known here: {best.metric} {best.metric_value:.6f}; the file is another program"
        console.print(f"[green]{escape(told)}: loopgraph edit {best.experiment_id}[/]", highlight=False)
    if answer.note:
        console.print(f"[yellow]{escape(answer.note)}[/]", highlight=False)
    _show_next(answer.next_step)


@_plain_first
def show_ingest(answer: IngestAnswer) -> None:
    """Show what was ingested, with its few passages."""
    if answer.kind == "choice":
        console.print("not ingested; it may be one of these:" if answer.candidates else "arXiv finds nothing for it")
        for each in answer.candidates:
            console.print(f"- [bold]{escape(each.id)}[/] {escape(each.title)}", highlight=False)
        return
    of = ", ".join(part for part in (answer.state.value, answer.form, answer.licence) if part)
    console.print(f"[bold]{escape(marked(answer.id))}[/] [dim]{escape(of)}[/]", highlight=False, soft_wrap=True)
    console.print(escape(marked(answer.title)), highlight=False)
    unit = {"pack": "methods", "history": "rows"}.get(answer.kind, "passages")
    console.print(f"{answer.added} new {unit}, {answer.known} known", highlight=False)
    if answer.kind == "pack":
        console.print(f"sha256 {answer.sha256}", markup=False, highlight=False, soft_wrap=True)
    if answer.methods:
        console.print(f"methods: {escape(', '.join(answer.methods))}", highlight=False)
    for note in answer.warnings:
        console.print(f"[yellow]{escape(marked(note))}[/]", highlight=False)
    for shown in answer.passages:
        console.print(f"[dim]{shown.chunk_id}[/] [bold]{escape(shown.place)}[/]", highlight=False)
        console.print("\n".join(quoted(shown.text, "  | ")), markup=False, highlight=False)


@_plain_first
def show_edit(answer: EditAnswer) -> None:
    """Show an edit's diff, or why there is none."""
    if answer.edit_id is None:
        console.print(
            f"[bold]{escape(answer.method_id)}[/] is {answer.status}: {escape(answer.reason)}", highlight=False
        )
        for line in answer.nearest:
            console.print(escape(f"| {line}"), highlight=False)
        if answer.guidance is not None:
            _show_guidance(answer.guidance)
    else:
        if console.is_terminal:
            console.print(Syntax(answer.diff, "diff", background_color="default", word_wrap=True))
        else:
            console.print("\n".join(diff_lines(answer.diff)), markup=False, highlight=False)
        console.print(f"[bold]{answer.edit_id}[/] ({answer.status})")
        if answer.learned:
            console.print(f"[dim]recipe:[/] {escape(answer.learned)}", highlight=False)
        if answer.prior:
            console.print(f"[dim]prior:[/] {escape(answer.prior)}", highlight=False)
        for each in answer.companions:
            told = f"--with {each.name}: {each.why} ({each.change})"
            console.print(f"[dim]goes well with it:[/] {escape(told)}", highlight=False)
        _show_earlier(answer.earlier)
    _show_next(answer.next_step)
    if answer.otherwise is not None:
        console.print(f"[dim]to run it all the same:[/] {escape(next_steps.word(answer.otherwise))}", highlight=False)


def _show_guidance(guidance: Guidance) -> None:
    """Show what helps to make a change by hand."""
    console.print(f"[bold]guidance[/] {escape(guidance.description)}", highlight=False)
    for line in [*guidance.sources, *guidance.learned]:
        console.print(f"  {escape(marked(line))}", highlight=False)
    for passage in guidance.passages:
        told = "\n".join(quoted(f"[{passage.source}, {passage.place}] {passage.text}", "> "))
        console.print(f"[dim]{escape(told)}[/]", highlight=False)
    for figure in guidance.reported:
        console.print(f"[dim]> {escape(figure)}[/]", highlight=False)
    for place in guidance.places:
        console.print(f"  {place.line}-{place.end_line} {place.kind} {escape(place.name)}", highlight=False)
    if guidance.nearest_recipe:
        console.print(
            f"nearest recipe: {escape(guidance.nearest_recipe)} ({escape(guidance.nearest_recipe_note)})",
            highlight=False,
        )


@_plain_first
def show_map(answer: CodeMapAnswer) -> None:
    """Show a code map."""
    shown = "\n".join(marked(line.expandtabs(4)) for line in answer.text.split("\n"))
    console.print(shown, markup=False, highlight=False, soft_wrap=True)
    left = ", ".join(f"{count} {kind}" for kind, count in answer.left_out.items())
    if left:
        console.print(
            f"[dim]left out: {escape(left)}; --budget shows more, --query what you look for[/]", highlight=False
        )


def _show_earlier(runs: Sequence[EarlierRun]) -> None:
    for run in runs:
        told = f"{run.experiment_id} {run.description}: {run.outcome} ({run.note})" if run.experiment_id else run.note
        console.print(f"[yellow]before:[/] {escape(told)}", highlight=False)


@_plain_first
def show_experiment(answer: ExperimentAnswer) -> None:
    """Show one experiment's outcome or progress."""
    value = "" if answer.metric_value is None else f", {escape(answer.metric)} [bold]{answer.metric_value:.6f}[/]"
    name = escape(f"{answer.description}, seed {answer.seed}")
    console.print(f"{answer.experiment_id} ({name}): {_state(answer)}{value}", highlight=False)
    if answer.outcome is not OutcomeKind.FINISHED and answer.reason:
        console.print(escape(marked(answer.reason)), highlight=False)
    if answer.log_tail:
        tail = "\n".join(quoted(answer.log_tail))
        console.print(f"[dim]{escape(tail)}[/]", highlight=False)
    if answer.repeated:
        console.print("[yellow]this program was run before; --replicate runs it again[/]")
    if answer.verdict is not None:
        gain = "" if answer.gain is None else f", gain {explain.signed(answer.gain)}"
        noise = "" if answer.noise_floor is None else f" (noise floor {answer.noise_floor:.4f}: {escape(answer.noise)})"
        decided = "" if answer.decision is None else f", {_decision(answer)}"
        console.print(f"verdict: {_verdict(answer)}{gain}{noise}{decided}", highlight=False)
    _show_earlier(answer.earlier)
    if answer.note:
        console.print(escape(marked(answer.note)), highlight=False)
    if answer.run_dir:
        console.print(f"[dim]log: {escape(answer.run_dir)}/run.log[/]", highlight=False, soft_wrap=True)
    _show_next(answer.next_step, *answer.besides)


def results_table(answers: Sequence[ExperimentAnswer]) -> Table:
    """Return a table of experiments, in the order given."""
    table = Table()
    answers = plain(answers)
    metric = escape(answers[0].metric) if answers else "metric"
    table.add_column("experiment", no_wrap=True)
    table.add_column("tried", overflow="fold")
    table.add_column(metric, justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("verdict, decision", overflow="fold", min_width=_DECIDED_WIDTH)
    for answer in answers:
        seed = "" if answer.seed == DEFAULT_SEED else f" (seed {answer.seed})"
        table.add_row(
            answer.experiment_id,
            escape(answer.description + seed),
            _state(answer) if answer.metric_value is None else f"{answer.metric_value:.6f}{_said_by(answer)}",
            "" if answer.gain is None else explain.signed(answer.gain),
            _judged(answer),
        )
    return table


def _judged(answer: ExperimentAnswer) -> str:
    """Return verdict and decision together: of what was kept within the noise or undone the decision says both."""
    if answer.tentative or answer.undone_by is not None or answer.verdict is None:
        return _decision(answer)
    if answer.decision is None or answer.verdict is VerdictKind.BASELINE:
        return _verdict(answer)
    return f"{_verdict(answer)}, {_decision(answer)}"


def _said_by(answer: ExperimentAnswer) -> str:
    return "" if answer.origin in {None, Origin.MEASURED} else f" [dim]{answer.origin}[/]"


def show_best(best: BestResult | None) -> None:
    """Show what ran best, as the mean of its runs with its noise, and whether that beats the noise."""
    if best is not None:
        console.print(explain.best_result(plain(best)), markup=False, highlight=False)


@_plain_first
def show_export(answer: PackExportAnswer) -> None:
    """Show a pack that was written."""
    console.print(
        f"[bold]{escape(marked(answer.name))}[/] in {escape(answer.folder)}, {escape(answer.content_hash[:12])}",
        highlight=False,
    )
    for method in answer.methods:
        tried = f"{method.tries} tries, {method.wins} won" if method.tries else "untried"
        console.print(f"  {escape(method.method_id)}: recipe {escape(method.recipe)}; {tried}", highlight=False)
    _show_next(answer.next_step)


@_plain_first
def show_pack_check(answer: PackCheckAnswer) -> None:
    """Show how a pack's recipes fit."""
    console.print(
        f"[bold]{escape(marked(answer.name))}[/] {escape(answer.version)}: {len(answer.methods)} methods, valid; "
        f"hash {escape(answer.content_hash)}",
        highlight=False,
        soft_wrap=True,
    )
    style = {"applied": "green", "present": "green", "refused": "yellow"}
    for method in answer.methods:
        console.print(f"  {escape(method.method_id)}" + ("" if method.fits else " [dim]no recipe[/]"), highlight=False)
        for file, how in method.fits.items():
            reason = f": {escape(method.reasons[file])}" if file in method.reasons else ""
            console.print(f"    [{style[how]}]{how}[/] {escape(file)}{reason}", highlight=False)
    _show_next(answer.next_step)


@_plain_first
def show_trace(answer: TraceAnswer) -> None:
    """Show what led to a row and what came of it as a tree."""
    root = Tree(_traced(answer.stage, answer.id, answer.words), guide_style="dim")
    for head, links in (("led to it", answer.before), ("came of it", answer.after)):
        branches = [root.add(f"[dim]{head}[/]" if links else f"[dim]nothing {head}[/]")]
        for link in links:
            del branches[link.depth :]
            branches.append(branches[-1].add(_traced(link.stage, link.id, link.words)))
    console.print(root, highlight=False)


def _traced(stage: str, identity: str, words: str) -> str:
    return f"[bold]{escape(stage)}[/] {escape(identity)} [dim]{escape(words)}[/]"


@_plain_first
def show_method(answer: MethodAnswer) -> None:
    """Show what is known of one method."""
    told = f"[bold]{escape(answer.method_id)}[/] {escape(answer.name)} [dim]{answer.status}, {escape(answer.recipe)}[/]"
    console.print(told, highlight=False)
    console.print(escape("\n".join(quoted(answer.description))), highlight=False)
    rows = {
        "family": [answer.family],
        "pack": [answer.pack],
        "aliases": answer.aliases,
        "sources": answer.sources,
        "published": answer.published,
        "reported": answer.reported,
        "passages": answer.chunk_ids,
        "versions": answer.versions,
        "warnings": answer.warnings,
    }
    table = Table(show_header=False, box=MINIMAL, show_edge=False)  # its bar marks what a source says, on each line
    for name, lines in rows.items():
        if any(lines):
            table.add_row(f"[dim]{name}[/]", escape("\n".join(lines)))
    console.print(table)
    _show_next(answer.next_step)


@_plain_first
def show_checks(checks: Sequence[Check]) -> None:
    """Show what doctor found."""
    mark = {Level.OK: "[green]ok[/]", Level.NOTE: "[yellow]note[/]", Level.FAIL: "[bold red]FAIL[/]"}
    table = Table(show_header=False)
    for check in checks:
        hint = f"\n[dim]{escape(check.next_step)}[/]" if check.next_step and check.level is not Level.OK else ""
        table.add_row(mark[check.level], escape(check.name), escape(check.found) + hint)
    console.print(table)


class RunBar:
    """A progress bar that follows one experiment; a context manager."""

    def __init__(self, target: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=target,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    async def update(self, answer: ExperimentAnswer) -> None:
        """Move the bar to where an experiment is."""
        answer = plain(answer)
        if self._task is None:
            self._task = self._progress.add_task(escape(answer.description), total=100.0, detail="")
        detail = "queued" if answer.state is RunState.QUEUED else ""
        if answer.step is not None:
            detail = f"step {answer.step}" + ("" if answer.loss is None else f", loss {answer.loss:.3f}")
        self._progress.update(self._task, completed=answer.percent or 0.0, detail=detail)


def _state(answer: ExperimentAnswer) -> str:
    if answer.state is RunState.DONE:
        return answer.outcome.value if answer.outcome else ""
    percent = "" if answer.percent is None else f" {answer.percent:.0f}%"
    return f"[cyan]{answer.state.value}{percent}[/]"


def _verdict(answer: ExperimentAnswer) -> str:
    if answer.verdict is None:
        return ""
    words, style = answer.verdict.value.replace("_", " "), _VERDICT_STYLE.get(answer.verdict)
    return f"[{style}]{words}[/]" if style else words


def _decision(answer: ExperimentAnswer) -> str:
    if answer.decision is not Decision.KEEP:
        return "" if answer.decision is None else "discarded"
    if answer.undone_by is not None:
        return f"[yellow]kept, undone by {escape(answer.undone_by)}[/]"
    return explain.decision(answer.decision, answer.tentative) if answer.tentative else "[green]kept[/]"


@_plain_first
def show_imports(answers: Sequence[ImportAnswer], failed: Sequence[LoopGraphError], *, details: bool) -> None:
    """Show a line for each history that was imported, then what needs doing; with details each of its rows before that.

    Without details, all of it takes at most 40 lines, whatever was imported.

    Raises:
        typer.Exit: A file failed.
    """
    if details:
        for answer in answers:
            console.print(_import_table(answer))
    limits = (_FILE_LINES, _NOTE_LINES, _ROW_NOTE_LINES, _FAILURE_LINES)
    files, notes, rows, failures = (MAX_SHOWN,) * len(limits) if details else limits
    shown = answers if len(answers) <= files else answers[: files - 1]
    for answer in shown:
        _line(f"[bold]{escape(marked(answer.file[:80]))}[/]: {escape(_import_counts(answer))}")
    if rest := answers[len(shown) :]:
        _line(f"... and {len(rest)} more files: {_sums(rest)}")
    if len(answers) > 1:
        _line(f"[bold]{len(answers)} files[/]: {_sums(answers)}")
    methods = Counter(each for answer in answers for row in answer.rows for each in row.method_ids)
    if methods:
        common = [f"{each} {count}" for each, count in methods.most_common(_METHODS_SHOWN)]
        more = ["..."] if len(methods) > _METHODS_SHOWN else []
        _line(f"known methods tried: {escape(', '.join(common + more))}")
    _grouped("note", "files", [note for answer in answers for note in answer.notes], notes)
    _grouped("rows", "rows", [note for answer in answers for row in answer.rows for note in row.notes], rows)
    if answers:
        hint = "" if details else " --details shows each row, --json all of it."
        _line(f"[dim]next:[/] {escape(next_steps.word(answers[0].next_step))}{hint}")
    _end_import([next_steps.refusal(error) for error in failed], limit=failures)


def _end_import(failed: Sequence[str], *, limit: int) -> None:
    """Say what failed, and end with status 1 where anything did."""
    groups = _alike(failed)
    for words, count in groups[:limit]:
        others = f" (and {count - 1} more files like it)" if count > 1 else ""
        errors.print(f"loopgraph: {words}{others}", style="red", markup=False, highlight=False, soft_wrap=True)
    if rest := sum(count for _, count in groups[limit:]):
        errors.print(f"loopgraph: {rest} more files failed; --details names them", style="red", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _line(text: str) -> None:
    """Print one line, however long: a terminal wraps it, a pipe gets it whole."""
    console.print(text, highlight=False, soft_wrap=True)


def _grouped(label: str, unit: str, notes: Sequence[str], limit: int) -> None:
    """Print notes, those that differ in numbers or names alone as one with a count, the most frequent first."""
    groups = _alike(notes)
    for words, count in groups[:limit]:
        times = f" ({count} {unit} like this)" if count > 1 else ""
        _line(f"[yellow]{label}:[/] {escape(words)}{times}")
    if len(groups) > limit:
        _line(f"[yellow]{label}:[/] {len(groups) - limit} more kinds")


def _alike(notes: Sequence[str]) -> list[tuple[str, int]]:
    """Return notes grouped by their words without numbers, quotations and file names, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for note in notes:
        kind = re.sub(r"\d[\d.,]*|'[^']*'|^\S+(?=: )|not counted for .*|changes .*", "_", note)
        groups.setdefault(kind, []).append(note)
    return sorted(((found[0], len(found)) for found in groups.values()), key=lambda group: -group[1])


def _sums(answers: Sequence[ImportAnswer]) -> str:
    added, known = (sum(getattr(answer, name) for answer in answers) for name in ("added", "known"))
    left_out = sum(answer.left_out for answer in answers)
    kinds = sum(answer.kinds for answer in answers)
    return f"{added} new, {known} known already, {left_out} left out; {kinds} kinds of change"


def _import_counts(answer: ImportAnswer) -> str:
    """Return a history's counts, with what its numbers are and where they were measured."""
    whole, part = answer.understood
    diffs = sum(row.has_diff for row in answer.rows)
    methods = sum(bool(row.method_ids) for row in answer.rows)
    better = f"{answer.metric[:60]} ({answer.direction.value} is better: {answer.direction_from})"
    return (
        f"{better}, {answer.device}, {answer.budget_s:g} s; {answer.added} new, {answer.known} known already, "
        f"{answer.left_out} left out; {whole} understood, {part} in part; {diffs} with a diff, {methods} of a known "
        f"method; {answer.kinds} kinds of change"
    )


def _import_table(answer: ImportAnswer) -> Table:
    """Return row by row what was understood of a history."""
    table = Table(title=escape(marked(answer.file)), title_justify="left")
    table.add_column("line", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column(escape(answer.metric), justify="right", no_wrap=True)
    table.add_column("what was done", overflow="fold")
    table.add_column("understood", overflow="fold")
    for row in answer.rows:
        value = "" if row.metric_value is None else f"{row.metric_value:.6g}"
        told = [*row.moves, *(f"method {each}" for each in row.method_ids), *(["diff"] if row.has_diff else [])]
        colour, mark = _UNDERSTOOD[row.understood]
        words = escape("; ".join([mark, *([", ".join(told)] if told else []), *row.notes]))
        new = "" if row.new or row.understood == "left_out" else " [dim](known)[/]"
        table.add_row(str(row.line), escape(row.status), value, escape(row.description), f"[{colour}]{words}[/]{new}")
    return table


def show_backtest(report: Report) -> None:
    """Show how well the prior ranks changes, beside other rankings, and how honest its probabilities are."""
    if report.prior is None:
        console.print("no pool of 20 changes has two that were kept and two that were not: nothing to rank")
        return
    table = Table(
        title="ranking the next 20 changes (means over owners; 0.5 is the agent's own order)", title_justify="left"
    )
    for column in ("ranking", "weighted AUC", "LoopGraph is better by", "plain AUC", "gain in 10 picks"):
        table.add_column(column, justify="left" if column == "ranking" else "right")
    for name, each in {"LoopGraph": report.prior, **report.rankings}.items():
        better = "" if each.prior_gain is None else _difference(each.prior_gain, 3)
        table.add_row(escape(name), f"{each.weighted_auc:.3f}", better, f"{each.auc:.3f}", f"{each.gain_share:.0%}")
    console.print(table)
    owners = ", ".join(f"{owner} {ours:.3f} ({plain:.3f})" for owner, (ours, plain) in report.by_owner.items())
    console.print(f"weighted AUC by owner (plain counts of knob x direction): {escape(owners)}", highlight=False)
    console.print(f"{report.histories} histories, {report.pools} pools, {report.changes} changes", highlight=False)
    if report.brier_difference is not None:
        console.print(
            f"Brier score of P(keep) {report.brier:.4f}, of the recent keep rate {report.brier_recent_rate:.4f}: "
            f"{_difference(report.brier_difference, 4)} (below zero is better)",
            highlight=False,
        )
    bins = ", ".join(f"{each.p_keep:.2f} -> {each.kept:.2f} ({each.changes})" for each in report.calibration)
    console.print(f"calibration, P(keep) -> share kept (changes): {bins}", highlight=False)


def _difference(found: Difference, digits: int) -> str:
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
