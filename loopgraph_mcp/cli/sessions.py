"""Runs an agent session to its end, reports it, shows a prompt."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from loopgraph_mcp.agents import prompts
from loopgraph_mcp.agents.messages import ASSISTANT, MESSAGES, Assistant, Message
from loopgraph_mcp.agents.opening import find_session, store_files
from loopgraph_mcp.agents.outcomes import Run, decided, undone_by
from loopgraph_mcp.agents.plan import Spent
from loopgraph_mcp.agents.session import Session
from loopgraph_mcp.cli import render
from loopgraph_mcp.cli.live_view import cost_text, tokens_text
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import NotFoundError, ProviderError
from loopgraph_mcp.store import sessions
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.text import plain, said


async def work(opened: AbstractAsyncContextManager[Session]) -> dict[str, Any]:
    """Run a session until it ends; if it is interrupted, show how to resume it."""
    async with opened as session:
        render.errors.print(
            f"session {session.id}: {session.plan.researcher}, memory {session.plan.memory}; to resume after Ctrl-C or "
            f"a crash: loopgraph agent --resume {session.id}",
            style="dim",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        try:
            await session.advance(session.plan.experiments)
        except ProviderError as error:
            render.errors.print(f"stopped: {said(str(error))}", style="red", markup=False, highlight=False)
            render.errors.print(f"to resume: loopgraph agent --resume {session.id}", highlight=False)
            raise
        except asyncio.CancelledError:
            render.errors.print(f"stopped; to resume: loopgraph agent --resume {session.id}", highlight=False)
            raise
        return report(session)


def report(session: Session) -> dict[str, Any]:
    """Return a session's report as data."""
    best, runs, spent = session.desk.best, session.runs, session.spent
    return {
        "session_id": session.id,
        "researcher": session.plan.researcher,
        "memory": session.plan.memory,
        "ended": session.ended,
        "metric": session.desk.where.metric,
        "baseline": session.desk.baseline,
        "best": None if best is None else best.mean,
        "best_run": None if best is None else best.number,
        "best_runs": 0 if best is None else best.runs,
        "best_standard_error": None if best is None else best.standard_error,
        "best_beats_noise": best is not None and best.beats_noise,
        "noise_floor": None if best is None else best.noise_floor,
        "headline": "nothing finished" if best is None else str(best),
        "experiments": session.counted,
        "repeats_of_failures": sum(run.again and run.counts for run in runs),
        "spent": {**asdict(spent), "tokens": spent.tokens},
        "runs": [_listed(run, runs[place:]) for place, run in enumerate(runs, start=1)],
    }


def _listed(run: Run, later: Sequence[Run]) -> dict[str, Any]:
    return {**asdict(run), "undone_by": undone_by(run, later), "decided": decided(run, later)}


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Show a session's report."""
    if as_json:
        render.console.print(json.dumps(found, indent=2), soft_wrap=True, markup=False, highlight=False)
        return
    found = plain(found)
    for run in found["runs"]:
        value = run["outcome"] if run["metric_value"] is None else f"{run['metric_value']:.6f}"
        how = "from memory" if run["repeated"] else run["decided"]
        render.console.print(
            f"{run['number']:>3} {value:>12}  {escape(run['description'])} [dim]{run['experiment_id']}[/] {how}",
            highlight=False,
        )
    render.console.print(f"[bold]{escape(found['metric'])}[/] {escape(found['headline'])}", highlight=False)
    render.console.print(f"ended: {escape(str(found['ended']))}", highlight=False)
    counted = Spent(**{name: value for name, value in found["spent"].items() if name != "tokens"})
    render.console.print(f"tokens {tokens_text(counted)}; {cost_text(counted)}", highlight=False)
    render.console.print(
        f"[dim]next:[/] loopgraph trace EXPERIMENT names a turn; loopgraph prompt {found['session_id']}:TURN shows it",
        highlight=False,
    )


def show_bench(rows: list[list[str]], files: list[Path], *, as_json: bool) -> None:
    """Show the table of a comparison and the paths of its files."""
    if as_json:
        print(files[0].read_text(encoding="utf-8"))  # noqa: T201 - for programs, unwrapped
        return
    table = Table()
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    render.console.print(table)
    for file in files:
        render.console.print(str(file), style="dim", highlight=False, soft_wrap=True)


def show_prompt(turn: tuple[str, list[Message], Assistant], *, as_json: bool) -> None:
    """Show the exact prompt of one turn and the reply."""
    system, messages, reply = turn
    if as_json:
        found = {"system": system, "messages": MESSAGES.dump_python(messages), "reply": ASSISTANT.dump_python(reply)}
        render.console.print(json.dumps(found, indent=2), soft_wrap=True, markup=False, highlight=False)
        return
    for role, text in [("system", system), *((each.role, _text(each)) for each in [*messages, reply])]:
        render.console.rule(role, align="left")
        render.console.print(text, markup=False, highlight=False)


def _text(message: Message) -> str:
    calls = message.calls if isinstance(message, Assistant) else []
    return "\n".join([message.text, *(f"{call.name}({call.arguments})" for call in calls)]).strip()


async def recall_prompt(settings: Settings, session_id: str, number: int) -> tuple[str, list[Message], Assistant]:
    """Return a turn as it was sent: system prompt, messages, and reply.

    Raises:
        NotFoundError: There is no such turn.
    """
    row = await find_session(settings, session_id)
    for path in store_files(settings, session_id):
        sent: list[Message] = []
        async with Database.open(path) as db:
            for turn in await sessions.turns_of(db, session_id):
                sent = sent[: turn.kept] + MESSAGES.validate_json(turn.prompt)
                if turn.number == number:
                    system = prompts.MENU if turn.menu else row.system
                    return system, sent, ASSISTANT.validate_json(turn.reply)
    raise NotFoundError(f"{session_id} has no turn {number}")
