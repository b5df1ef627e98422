"""Writes down runs that were made outside of LoopGraph: only told of, never measured here."""

import math

from loopgraph_mcp import launch, lookups, wording
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Outcome, OutcomeKind
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import ExperimentRow, NewExperiment
from loopgraph_mcp.surroundings import Surroundings


async def record_outside(
    db: Database,
    here: Surroundings,
    method_id: str | None,
    metric_value: float | None,
    status: OutcomeKind | None,
    *,
    description: str,
    workspace: str | None,
    now: float,
) -> ExperimentRow:
    """Store a run made elsewhere as a finished experiment, to be compared with the incumbent of this moment.

    Raises:
        NotFoundError: No such method.
        RunError: Metric and status contradict one another.
    """
    kind = status or (OutcomeKind.CRASHED if metric_value is None else OutcomeKind.FINISHED)
    if (kind is OutcomeKind.FINISHED) != (metric_value is not None):
        raise RunError("a finished run has a metric_value and a failed one has none; give one or change the status")
    if metric_value is not None and not math.isfinite(metric_value):
        raise RunError(f"metric_value is {metric_value}; record a diverged run with status='diverged' and no metric")
    method_ids = () if method_id is None else ((await lookups.the_method(db, method_id)).id,)
    where, device, context = await here.found(workspace)
    context_id = await edits.context_id(db, context)
    return await experiments.add_finished(
        db,
        NewExperiment(
            context_id=context_id,
            device_slot=device.slot,
            description=wording.description(description, method_ids, None),
            seed=launch.DEFAULT_SEED,
            timeout_s=where.timeout_s,
            silence_s=where.silence_s,
            method_ids=method_ids,
        ),
        Outcome(kind, metric_value, "recorded by the agent", {}),
        now=now,
    )
