"""Outcomes as evidence: the metrics measured in a context, and the gains of each method's runs."""

import json
from dataclasses import dataclass

from loopgraph_mcp.models import Direction, Origin, OutcomeKind
from loopgraph_mcp.store.database import Database


@dataclass(frozen=True, slots=True)
class Run:
    """One outcome as evidence.

    Args:
        row: Its place among all outcomes, from 1: what came later has a greater one.
        group: What ran, up to the values of seeds; the experiment's id where that is not known.
        base_group: What it is compared with, likewise; None where there is nothing.
        method_ids: What its edit put into practice.
        origin: Who says so.
        other_load: The share of the device that others used meanwhile; None where it was not measured.
        tokens: Tokens trained on, in millions, if the trainer reports them.
        params: The model's parameters, in millions, likewise.
    """

    row: int
    context_id: str
    kind: OutcomeKind
    metric_value: float | None
    group: str
    base_group: str | None
    method_ids: tuple[str, ...]
    origin: Origin = Origin.MEASURED
    other_load: float | None = None
    tokens: float | None = None
    params: float | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """The runs that were made in one workspace by one metric.

    Args:
        context_id: One of its contexts.
        outcome: Place of its newest outcome.
        decision: Place of its newest decision, 0 if there is none.
    """

    workspace_id: str
    metric: str
    direction: Direction
    context_id: str
    outcome: int
    decision: int


async def own_searches(db: Database, *, besides: str | None) -> list[Search]:
    """Return the searches made in other workspaces than one, those imported left out, in a fixed order."""
    rows = await db.reader.execute_fetchall(
        """
        SELECT workspace_id, metric, direction, min(context.id) AS context_id, max(outcome.rowid) AS outcome,
               coalesce(max((SELECT max(row) FROM decision WHERE experiment_id = experiment.id)), 0) AS decision
        FROM workspace CROSS JOIN context ON context.workspace_id = workspace.id -- most stores have one workspace
        CROSS JOIN experiment ON experiment.context_id = context.id
        CROSS JOIN outcome ON outcome.experiment_id = experiment.id
        WHERE workspace.id IS NOT :besides AND workspace.path NOT LIKE 'imported:%'
        GROUP BY workspace_id, metric, direction ORDER BY workspace_id, metric, direction
        """,
        {"besides": besides},
    )
    return [
        Search(
            row["workspace_id"],
            row["metric"],
            Direction(row["direction"]),
            row["context_id"],
            row["outcome"],
            row["decision"],
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric value of a context that counts as evidence; `other_load` as in `Run`."""

    group: str
    value: float
    other_load: float | None


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """One outcome of a program, as evidence on its numbers: what it measured, None where it failed."""

    context_id: str
    program_hash: str
    metric_value: float | None


async def program_runs(db: Database, context_id: str, *, limit: int) -> list[ProgramRun]:
    """Return runs by a metric on a device, oldest first: those of a context before those of others, then the newest."""
    rows = await db.reader.execute_fetchall(
        """
        SELECT * FROM (
            SELECT outcome.rowid AS row, context.id AS context_id, experiment.program_hash, outcome.metric_value
            FROM context AS here
            CROSS JOIN context ON context.metric = here.metric AND context.direction = here.direction
                AND context.device = here.device
            CROSS JOIN experiment ON experiment.context_id = context.id
            CROSS JOIN outcome ON outcome.experiment_id = experiment.id
            WHERE here.id = :context AND experiment.program_hash IS NOT NULL
                AND outcome.kind NOT IN ('cancelled', 'interrupted', 'no_metric', 'void')
                AND outcome.origin IN ('measured', 'logged', 'trusted')
            ORDER BY context.id = here.id DESC, outcome.rowid DESC LIMIT :limit
        ) ORDER BY row
        """,
        {"context": context_id, "limit": limit},
    )
    return [ProgramRun(row["context_id"], row["program_hash"], row["metric_value"]) for row in rows]


async def measured_in(db: Database, context_id: str) -> list[Measured]:
    """Return what was measured in a context, oldest first."""
    rows = await db.reader.execute_fetchall(
        """
        SELECT coalesce(experiment.group_key, experiment.id) AS "group", outcome.metric_value AS value,
               iif(json_valid(summary), json_extract(summary, '$.other_load'), NULL) AS other_load
        FROM experiment CROSS JOIN outcome ON outcome.experiment_id = experiment.id
        WHERE experiment.context_id = :context AND outcome.metric_value IS NOT NULL AND outcome.origin <> 'reported'
        ORDER BY outcome.rowid
        """,
        {"context": context_id},
    )
    return [Measured(row["group"], row["value"], row["other_load"]) for row in rows]


async def runs_between(db: Database, row: int, newest: int) -> list[Run]:
    """Return the outcomes behind a place, up to another, that say something of an idea, oldest first."""
    found = await db.reader.execute_fetchall(
        """
        SELECT outcome.rowid AS row, experiment.context_id, outcome.kind, outcome.metric_value,
               experiment.group_key, experiment.base_group_key, outcome.origin,
               (SELECT json_group_array(method_id) FROM experiment_method
                WHERE experiment_id = experiment.id) AS methods,
               json_extract(said, '$.other_load') AS other_load, json_extract(said, '$.total_tokens_M') AS tokens,
               json_extract(said, '$.num_params_M') AS params
        FROM (SELECT *, rowid, iif(json_valid(summary), summary, '{}') AS said FROM outcome) AS outcome
        JOIN experiment ON experiment.id = outcome.experiment_id
        WHERE outcome.rowid > :row AND outcome.rowid <= :newest
            AND outcome.kind NOT IN ('cancelled', 'interrupted', 'no_metric')
        ORDER BY outcome.rowid
        """,
        {"row": row, "newest": newest},
    )
    return [
        Run(
            row=each["row"],
            context_id=each["context_id"],
            kind=OutcomeKind(each["kind"]),
            metric_value=each["metric_value"],
            group=each["group_key"],
            base_group=each["base_group_key"],
            method_ids=tuple(sorted(json.loads(each["methods"]))),
            origin=Origin(each["origin"]),
            other_load=each["other_load"],
            tokens=each["tokens"],
            params=each["params"],
        )
        for each in found
    ]
