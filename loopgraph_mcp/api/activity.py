"""What agents share: what is being run now, told to the others, and whose experiment it is to cancel."""

from collections.abc import Collection
from dataclasses import dataclass

from loopgraph_mcp.api import explain
from loopgraph_mcp.api.answers import EditAnswer, RunningNow
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.errors import AccessError
from loopgraph_mcp.store import agents, experiments
from loopgraph_mcp.store.agents import Asker
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow
from loopgraph_mcp.text import plain_line


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What is queued or running on any device, the oldest first, and who asked for each."""

    runs: list[ExperimentRow]
    askers: dict[str, list[Asker]]


async def under_way(db: Database) -> UnderWay:
    """Look at what is queued or running at this moment."""
    runs = await experiments.live_experiments(db)
    return UnderWay(runs, await agents.askers(db, [run.id for run in runs]) if runs else {})


def running_now(now: UnderWay, caller: Caller | None) -> list[RunningNow]:
    """Return what a caller is told of what is under way."""
    return [
        RunningNow(
            run.id,
            run.description,
            list(run.method_ids),
            run.state,
            agents=[plain_line(each.name, limit=60) for each in now.askers.get(run.id, [])],
            yours=caller is not None and any(each.agent_id == caller.id for each in now.askers.get(run.id, [])),
        )
        for run in now.runs
    ]


def told_in_edit(answer: EditAnswer, running: Collection[RunningNow], method_ids: set[str]) -> EditAnswer:
    """Return an edit's answer with what of its like is under way, and the advice to wait for it."""
    same = {each.experiment_id for each in answer.earlier if each.kinship == "same_program"}
    alike = [run for run in running if run.experiment_id in same or not method_ids.isdisjoint(run.method_ids)]
    if not alike or answer.edit_id is None:
        return answer
    return explain.edit_under_way(answer, alike)


async def check_cancel(db: Database, experiment_id: str, caller: Caller | None) -> None:
    """Refuse to end what others wait for, unless the caller is an admin.

    Raises:
        AccessError: Another token asked for it, alone or as well.
    """
    if caller is None or caller.is_admin:
        return
    others = {each.token for each in (await agents.askers(db, [experiment_id])).get(experiment_id, [])} - {caller.token}
    if others:
        names = ", ".join(sorted(each or "a program of the server's user" for each in others))
        raise AccessError(f"{experiment_id} was asked for by {names} too; it goes on, and an admin may cancel it")
