"""Tables and bars for people; programs get --json."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Self

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.syntax import Syntax
from rich.table import Table

from loopgraph_mcp.answers import EditAnswer, ExperimentAnswer, SearchAnswer
from loopgraph_mcp.doctor import Check, Level
from loopgraph_mcp.models import Decision, OutcomeKind, Presence, State, VerdictKind
from loopgraph_mcp.store.lineage import Link

console = Console()
errors = Console(stderr=True)

_VERDICT_STYLE = {
    VerdictKind.WIN: "bold green",
    VerdictKind.LOSS: "red",
    VerdictKind.CRASH: "bold red",
    VerdictKind.WITHIN_NOISE: "yellow",
}


def print_json(value: Any) -> None:
    """Print a value, or a list of values, as JSON."""
    plain = TypeAdapter[Any](type(value)).dump_python(value, mode="json") if dataclasses.is_dataclass(value) else value
    if isinstance(value, list):
        plain = [TypeAdapter[Any](type(item)).dump_python(item, mode="json") for item in value]
    console.print(json.dumps(plain, indent=2), soft_wrap=True, markup=False, highlight=False)


def show_search(answer: SearchAnswer) -> None:
    """Show ranked methods."""
    table = Table(title=escape(f"{answer.query or 'all methods'}: {answer.context}"), title_justify="left")
    for name in ("#", "method", "family", "standing", "mean gain", "score", "why"):
        table.add_column(name, justify="right" if name in {"#", "mean gain", "score"} else "left", overflow="fold")
    for rank, hit in enumerate(answer.hits, start=1):
        table.add_row(
            str(rank),
            f"[bold]{escape(hit.method_id)}[/]\n{escape(hit.summary)}",
            escape(hit.family),
            hit.standing.value,
            "" if hit.mean_gain is None else f"{hit.mean_gain:+.4f}",
            f"{hit.score:.2f}",
            escape(hit.why) + ("" if hit.has_edit or hit.presence is Presence.PRESENT else "; no recipe"),
        )
    console.print(table)
    console.print(f"[dim]next:[/] {escape(answer.next_step)}")


def show_edit(answer: EditAnswer) -> None:
    """Show an edit's diff, or why there is none."""
    if answer.edit_id is None:
        console.print(f"[bold]{escape(answer.method_id)}[/] is {answer.status}: {escape(answer.reason)}")
        for line in answer.nearest:
            console.print(f"  {escape(line)}")
    else:
        console.print(Syntax(answer.diff, "diff", background_color="default", word_wrap=True))
        console.print(f"[bold]{answer.edit_id}[/] ({answer.status})")
        for run in answer.earlier:
            console.print(f"[yellow]run before:[/] {escape(f'{run.experiment_id} {run.description}: {run.outcome}')}")
    console.print(f"[dim]next:[/] {escape(answer.next_step)}")


def show_experiment(answer: ExperimentAnswer) -> None:
    """Show one experiment's outcome or progress."""
    console.print(results_table([answer]))
    if answer.reason and answer.outcome is not OutcomeKind.FINISHED:
        console.print(f"{escape(answer.reason)}")
    if answer.log_tail:
        console.print(f"[dim]{escape(answer.log_tail)}[/]")
    if answer.repeated:
        console.print("[yellow]this program was run before; --replicate runs it again[/]")
    if answer.note:
        console.print(escape(answer.note))
    console.print(f"[dim]next:[/] {escape(answer.next_step)}")


def results_table(answers: Sequence[ExperimentAnswer]) -> Table:
    """Return a table of experiments, in the order given."""
    table = Table()
    metric = answers[0].metric if answers else "metric"
    for name in ("experiment", "tried", "seed", "state", metric, "gain", "noise", "verdict", "decision"):
        table.add_column(
            name, justify="right" if name in {"seed", metric, "gain", "noise"} else "left", overflow="fold"
        )
    for answer in answers:
        verdict = "" if answer.verdict is None else answer.verdict.value.replace("_", " ")
        style = _VERDICT_STYLE.get(answer.verdict, "") if answer.verdict else ""
        table.add_row(
            answer.experiment_id,
            escape(answer.description),
            str(answer.seed),
            _state(answer),
            "" if answer.metric_value is None else f"{answer.metric_value:.6f}",
            "" if answer.gain is None else f"{answer.gain:+.4f}",
            "" if answer.noise_floor is None else f"{answer.noise_floor:.4f}",
            f"[{style}]{verdict}[/]" if style else verdict,
            "" if answer.decision is None else _decision(answer.decision),
        )
    return table


def show_chain(links: Sequence[Link]) -> None:
    """Show the chain that led to an experiment, one stage a line."""
    for link in links:
        console.print(f"[bold]{link.stage:>10}[/]  {escape(link.id)}  [dim]{escape(link.words)}[/]", highlight=False)


def show_checks(checks: Sequence[Check]) -> None:
    """Show what doctor found."""
    mark = {Level.OK: "[green]ok[/]", Level.NOTE: "[yellow]note[/]", Level.FAIL: "[bold red]FAIL[/]"}
    table = Table(show_header=False)
    for check in checks:
        hint = f"\n[dim]{escape(check.next_step)}[/]" if check.next_step and check.level is not Level.OK else ""
        table.add_row(mark[check.level], check.name, escape(check.found) + hint)
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
        if self._task is None:
            self._task = self._progress.add_task(escape(answer.description), total=100.0, detail="")
        detail = "queued" if answer.state is State.QUEUED else ""
        if answer.step is not None:
            detail = f"step {answer.step}" + ("" if answer.loss is None else f", loss {answer.loss:.3f}")
        self._progress.update(self._task, completed=answer.percent or 0.0, detail=detail)


def _state(answer: ExperimentAnswer) -> str:
    if answer.state is State.DONE:
        return answer.outcome.value if answer.outcome else ""
    percent = "" if answer.percent is None else f" {answer.percent:.0f}%"
    return f"[cyan]{answer.state.value}{percent}[/]"


def _decision(decision: Decision) -> str:
    return "[green]keep[/]" if decision is Decision.KEEP else decision.value
