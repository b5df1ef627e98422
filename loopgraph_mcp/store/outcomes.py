"""Outcomes as evidence: what programs measured in a context, and what the runs of each method gained."""

from collections.abc import Sequence
from dataclasses import dataclass

from loopgraph_mcp.models import Context, OutcomeKind
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.edits import context_of

# A program is known by its syntax tree, so that comments and layout do not make another one; a run that was only told
# of, by its own id. What it is compared with is its base, or for a run only told of, the incumbent of that time: an
# imported row may have its program where its parent's is not known, and the other way round.
_TREE = "(SELECT tree_hash FROM program WHERE hash = {column})"
_OWN_TREE = f"coalesce({_TREE.format(column='experiment.program_hash')}, experiment.id)"
_BASE_TREE = f"""
    CASE WHEN experiment.program_hash IS NOT NULL AND experiment.device_slot <> 'imported'
    THEN {_TREE.format(column="experiment.base_hash")}
    ELSE (SELECT coalesce({_TREE.format(column="parent.program_hash")}, parent.id)
          FROM experiment AS parent WHERE parent.id = experiment.parent_id) END
"""  # noqa: S608 - no input


@dataclass(frozen=True, slots=True)
class MethodRun:
    """One run of an edit that holds a method.

    Args:
        tree: The program that ran, by syntax tree; the experiment's id where its text is not known.
        base_tree: What it is compared with, likewise; None where there is nothing.
        age: Outcomes of own runs written since.
        shared: Methods in the same edit.
        imported: Whether somebody's history tells of it.
    """

    method_id: str
    family: str
    context_id: str
    context: Context
    kind: OutcomeKind
    tree: str
    base_tree: str | None
    age: int
    shared: int
    imported: bool = False


async def finished_values(db: Database, context_ids: Sequence[str]) -> dict[tuple[str, str], list[float]]:
    """Return the metric values of every (context, program) in some contexts, oldest first."""
    marks = ", ".join("?" * len(context_ids))
    rows = await db.reader.execute_fetchall(
        f"SELECT context_id, {_OWN_TREE} AS tree, metric_value "  # noqa: S608 - marks only
        f"FROM experiment JOIN outcome ON outcome.experiment_id = experiment.id "
        f"WHERE kind = 'finished' AND context_id IN ({marks}) ORDER BY experiment.row",
        list(context_ids),
    )
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row["context_id"], row["tree"]), []).append(row["metric_value"])
    return values


async def compared_trees(db: Database, experiment_id: str) -> tuple[str, str | None]:
    """Return the program of an experiment and what it is compared with, by syntax tree (or experiment id)."""
    rows = await db.reader.execute_fetchall(
        f"SELECT {_OWN_TREE} AS tree, {_BASE_TREE} AS base_tree FROM experiment WHERE id = :id",  # noqa: S608 - no input
        {"id": experiment_id},
    )
    row = next(iter(rows))
    return str(row["tree"]), row["base_tree"]


async def method_runs(db: Database) -> list[MethodRun]:
    """Return every run that says something of a method, oldest first."""
    rows = await db.reader.execute_fetchall(
        f"""
        WITH own AS (  -- imported runs age nothing: the user's experience does not fade by other people's
            SELECT outcome.experiment_id, outcome.created_at,
                   sum(device_slot <> 'imported') OVER (ORDER BY outcome.created_at DESC)
                   - sum(device_slot <> 'imported') OVER (PARTITION BY outcome.created_at) AS later
            FROM outcome JOIN experiment ON experiment.id = outcome.experiment_id
        )
        SELECT experiment_method.method_id, method.family, experiment.context_id, context.*, outcome.kind,
               {_OWN_TREE} AS tree, {_BASE_TREE} AS base_tree, own.later AS age,
               experiment.device_slot = 'imported' AS imported,
               (SELECT count(*) FROM experiment_method AS other WHERE other.experiment_id = experiment.id) AS shared
        FROM experiment_method
        JOIN method ON method.id = experiment_method.method_id
        JOIN experiment ON experiment.id = experiment_method.experiment_id
        JOIN context ON context.id = experiment.context_id
        JOIN outcome ON outcome.experiment_id = experiment.id
        JOIN own ON own.experiment_id = experiment.id
        WHERE outcome.kind NOT IN ('cancelled', 'interrupted')
        ORDER BY experiment.row, experiment_method.method_id
        """  # noqa: S608 - no input
    )
    return [
        MethodRun(
            method_id=row["method_id"],
            family=row["family"],
            context_id=row["context_id"],
            context=context_of(row),
            kind=OutcomeKind(row["kind"]),
            tree=row["tree"],
            base_tree=row["base_tree"],
            age=row["age"],
            shared=row["shared"],
            imported=bool(row["imported"]),
        )
        for row in rows
    ]
