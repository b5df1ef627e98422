"""The steps after an outcome and their states (due, begun, done, failed), so that a killed run can be concluded."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from loopgraph_mcp.models import Decision
from loopgraph_mcp.store.database import Database


class Step(StrEnum):
    """A step after the decision, in the order in which they are made."""

    APPLY = "apply"
    ROW = "row"
    LEARN = "learn"


class StepState(StrEnum):
    """How far a step is."""

    DUE = "due"
    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step of one experiment.

    Args:
        note: Its result.
        place: Of a row of results.tsv that was begun: how long the file was before it.
        commit: Of an edit that was applied: the commit that holds it.
    """

    step: Step
    state: StepState
    note: str
    place: int | None = None
    commit: str | None = None


async def decide(
    db: Database, experiment_id: str, decision: Decision, *, note: str, steps: Sequence[Step], now: float
) -> None:
    """Record LoopGraph's decision together with the steps that it makes due, all or none; again changes nothing."""

    def write(conn: sqlite3.Connection) -> None:
        known = conn.execute("SELECT 1 FROM conclusion WHERE experiment_id = :id", {"id": experiment_id}).fetchone()
        if known is not None:
            return
        conn.execute(
            "INSERT INTO decision (experiment_id, decision, made_by, commit_hash, note, created_at) "
            "VALUES (:id, :decision, 'loopgraph', NULL, :note, :now)",
            {"id": experiment_id, "decision": decision.value, "note": note, "now": now},
        )
        conn.executemany(
            "INSERT INTO conclusion (experiment_id, step, state, note, at) VALUES (:id, :step, 'due', '', :now)",
            [{"id": experiment_id, "step": step.value, "now": now} for step in steps],
        )

    await db.write(write)


async def set_step(db: Database, experiment_id: str, row: StepRow, *, now: float) -> None:
    """Record how far a step is."""
    await db.change(
        "UPDATE conclusion SET state = :state, note = :note, place = :place, commit_hash = :commit, at = :now "
        "WHERE experiment_id = :id AND step = :step",
        {
            "id": experiment_id,
            "step": row.step.value,
            "state": row.state.value,
            "note": row.note,
            "place": row.place,
            "commit": row.commit,
            "now": now,
        },
    )


async def steps_of(db: Database, experiment_id: str) -> list[StepRow]:
    """Return an experiment's steps in their order; none where nothing was decided by LoopGraph."""
    rows = await db.reader.execute_fetchall(
        "SELECT step, state, note, place, commit_hash FROM conclusion WHERE experiment_id = :id", {"id": experiment_id}
    )
    found = {
        Step(row["step"]): StepRow(
            Step(row["step"]), StepState(row["state"]), row["note"], row["place"], row["commit_hash"]
        )
        for row in rows
    }
    return [found[step] for step in Step if step in found]


async def open_conclusions(db: Database, workspace_path: str | None = None) -> list[str]:
    """Return the experiments that are done and have a step that is not, oldest first."""
    rows = await db.reader.execute_fetchall(
        "SELECT json_group_array(id) AS ids FROM (SELECT DISTINCT experiment.id FROM conclusion "
        "JOIN experiment ON experiment.id = conclusion.experiment_id JOIN context ON context.id = context_id "
        "JOIN workspace ON workspace.id = context.workspace_id "
        "WHERE conclusion.state <> 'done' AND experiment.state = 'done' "
        "AND (:path IS NULL OR workspace.path = :path) ORDER BY experiment.row LIMIT 20)",
        {"path": workspace_path},
    )
    return [str(each) for each in json.loads(next(iter(rows))["ids"])]
