"""Experiments: queued, running, done; who runs them; and how they ended."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from loopgraph_mcp.auth import Caller
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Advice, Decision, NextStep, Origin, Outcome, OutcomeKind, RunState, WhatRan
from loopgraph_mcp.runner.queue import Priority
from loopgraph_mcp.store import agents
from loopgraph_mcp.store.database import Database, insert, new_id


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for sure: a pid alone is reused, with when it started (runner.processes.start_mark) it is not."""

    pid: int
    started: float


@dataclass(frozen=True, slots=True)
class NewExperiment:
    """What is known of an experiment before it runs; its parent is the incumbent of the moment it is queued.

    Args:
        id: Its id, where its lock is held and its run's folder made already; None for a new one.
        run_dir: That folder.
        ran: What identifies what is to run; None where that is not known.
        base_group_key: What it is compared with; None where there is nothing, or where that is its parent.
        inputs_hash: All that its run can see besides the editable file; None where it is not run here.
        shared: Whether another agent's active run of the same program is enough: `never`, `same_seed`,
            or with `any_seed`.
    """

    context_id: str
    device_slot: str
    description: str
    seed: int
    timeout_s: float
    silence_s: float
    edit_id: str | None = None
    base_hash: str | None = None
    program_hash: str | None = None
    method_ids: tuple[str, ...] = ()
    idempotency_key: str | None = None
    priority: Priority = Priority.NORMAL
    caller: Caller | None = None
    id: str | None = None
    run_dir: str | None = None
    ran: WhatRan | None = None
    base_group_key: str | None = None
    inputs_hash: str | None = None
    shared: Literal["never", "same_seed", "any_seed"] = "never"


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """One experiment as stored, with the outcome and the last decision where there are any.

    Args:
        run_key: What ran with all that it could see; its id where that is not known.
        group_key: The same up to the values of seeds.
        base_group_key: What it is compared with, likewise; None where there is nothing.
        inputs_hash: All that the run could see besides the editable file; None where it was not run here.
        origin: Who says what its outcome was; None before it has one.
        undone_by: A later run of what ran, after which it was discarded.
    """

    id: str
    context_id: str
    workspace_id: str
    workspace_path: str
    device: str
    device_slot: str
    budget_s: float
    edit_id: str | None
    base_hash: str | None
    program_hash: str | None
    parent_id: str | None
    description: str
    seed: int
    timeout_s: float
    silence_s: float
    run_dir: str | None
    state: RunState
    supervisor: ProcessId | None
    child: ProcessId | None
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    run_key: str
    group_key: str
    base_group_key: str | None
    inputs_hash: str | None
    method_ids: tuple[str, ...]
    outcome: Outcome | None
    origin: Origin | None
    decision: Decision | None
    undone_by: str | None


_SELECT = """
    SELECT experiment.*,
           context.workspace_id, workspace.path AS workspace_path, context.device, context.budget_s,
           outcome.kind, outcome.metric_value, outcome.reason, outcome.summary, outcome.log_tail,
           outcome.origin,
           (SELECT decision FROM decision WHERE experiment_id = experiment.id ORDER BY row DESC LIMIT 1) AS decision,
           (SELECT CASE WHEN decision.decision = 'discard' THEN decision.experiment_id END
            FROM experiment AS later JOIN decision ON decision.experiment_id = later.id
            WHERE later.context_id = experiment.context_id AND later.group_key = experiment.group_key
                AND later.base_group_key IS experiment.base_group_key
                AND later.row > experiment.row ORDER BY decision.row DESC LIMIT 1) AS undone_by,
           (SELECT json_group_array(method_id) FROM experiment_method WHERE experiment_id = experiment.id) AS methods
    FROM experiment
    JOIN context ON context.id = experiment.context_id
    JOIN workspace ON workspace.id = context.workspace_id
    LEFT JOIN outcome ON outcome.experiment_id = experiment.id
"""
_BY_ID = f"{_SELECT} WHERE experiment.id = :id"
# CROSS JOIN: from the newest decision back, and not through all experiments of the context.
_LAST_KEPT = f"""
    {_SELECT} WHERE experiment.id = (
        SELECT kept.experiment_id FROM decision AS kept
        CROSS JOIN experiment ON experiment.id = kept.experiment_id AND experiment.context_id = :context
            AND (experiment.program_hash IS NOT NULL OR :any_kind)
        CROSS JOIN outcome ON outcome.experiment_id = kept.experiment_id AND outcome.kind = 'finished'
            AND outcome.origin IN ('measured', 'logged', 'trusted')
        WHERE kept.decision = 'keep' AND NOT EXISTS (
            SELECT 1 FROM decision AS later WHERE later.experiment_id = kept.experiment_id AND later.row > kept.row)
        AND NOT EXISTS ( -- a replicate undid it
            SELECT 1 FROM experiment AS again JOIN decision AS undoing ON undoing.experiment_id = again.id
            WHERE again.context_id = :context AND again.group_key = experiment.group_key
                AND again.base_group_key IS experiment.base_group_key
                AND undoing.row > kept.row AND undoing.decision = 'discard')
        ORDER BY kept.row DESC LIMIT 1
    )
"""  # noqa: S608 - no input


async def add_experiment(db: Database, new: NewExperiment, *, now: float) -> tuple[str, bool]:
    """Queue an experiment; return its id and whether it is new: a known idempotency key returns the earlier one.

    So does a program that is queued or running, if `shared` allows it: two agents who ask at the same moment share
    one run.

    Raises:
        RunError: The caller is at its limit of queued and running experiments.
    """
    return await db.write(lambda conn: _queue(conn, new, now))


async def add_finished(
    db: Database, new: NewExperiment, outcome: Outcome, *, origin: Origin, now: float
) -> ExperimentRow:
    """Store an experiment that is over, with its outcome; return it."""

    def write(conn: sqlite3.Connection) -> ExperimentRow:
        experiment_id, _ = _queue(conn, new, now)
        _finish(conn, experiment_id, outcome, now, origin)
        return _row(conn.execute(_BY_ID, {"id": experiment_id}).fetchone())

    return await db.write(write)


def _queue(conn: sqlite3.Connection, new: NewExperiment, now: float) -> tuple[str, bool]:
    experiment_id = new.id or new_id("exp")
    if new.idempotency_key is not None:
        rows = conn.execute("SELECT id FROM experiment WHERE idempotency_key = :key", {"key": new.idempotency_key})
        for row in rows:
            return str(row["id"]), False
    for row in conn.execute(
        _ON_ITS_WAY,
        {
            "context": new.context_id,
            "ran": None if new.ran is None else new.ran.run_key,
            "seed": new.seed,
            "shared": new.shared,
        },
    ):
        if new.caller is not None:
            insert(conn, agents.asked_rows(row["id"], new.caller, now=now))
        return str(row["id"]), False
    if new.caller is not None and new.program_hash is not None:
        _check_cap(conn, new.caller)
    incumbent = conn.execute(_LAST_KEPT, {"context": new.context_id, "any_kind": True}).fetchone()
    base_group = new.base_group_key
    if new.program_hash is None and base_group is None and incumbent is not None:  # a report
        base_group = incumbent["group_key"]
    conn.execute(
        "INSERT INTO experiment (id, context_id, edit_id, base_hash, program_hash, parent_id, description, seed, "
        "timeout_s, silence_s, idempotency_key, priority, device_slot, state, created_at, inputs_hash, run_key, "
        "group_key, base_group_key, run_dir) VALUES (:id, :context, :edit, :base, :program, :parent, :description, "
        ":seed, :timeout, :silence, :key, :priority, :slot, 'queued', :now, :inputs, :run_key, :group_key, "
        ":base_group, :run_dir)",
        {
            "id": experiment_id,
            "context": new.context_id,
            "edit": new.edit_id,
            "base": new.base_hash,
            "program": new.program_hash,
            "parent": None if incumbent is None else incumbent["id"],
            "slot": new.device_slot,
            "description": new.description,
            "seed": new.seed,
            "timeout": new.timeout_s,
            "silence": new.silence_s,
            "key": new.idempotency_key,
            "priority": new.priority.value,
            "now": now,
            "inputs": new.inputs_hash,
            "run_key": experiment_id if new.ran is None else new.ran.run_key,
            "group_key": experiment_id if new.ran is None else new.ran.group_key,
            "base_group": base_group,
            "run_dir": new.run_dir,
        },
    )
    if new.caller is not None:
        insert(conn, agents.asked_rows(experiment_id, new.caller, now=now))
    conn.executemany(
        "INSERT INTO experiment_method (experiment_id, method_id) VALUES (?, ?)",
        [(experiment_id, method_id) for method_id in new.method_ids],
    )
    return experiment_id, True


# By +context_id: otherwise SQLite scans all programs of the context instead of the few that are active.
_ON_ITS_WAY = """
    SELECT experiment.id FROM experiment
    WHERE experiment.state <> 'done' AND experiment.cancel_requested_at IS NULL AND +experiment.context_id = :context
    AND +experiment.run_key = :ran
    AND (:shared = 'any_seed' OR (:shared = 'same_seed' AND experiment.seed = :seed)) ORDER BY experiment.row LIMIT 1
"""


def _check_cap(conn: sqlite3.Connection, caller: Caller) -> None:
    """Refuse an agent at its limit of queued and running experiments.

    Raises:
        RunError: It has.
    """
    live = agents.live_runs_of(conn, caller)
    if len(live) >= caller.runs_at_once:
        raise RunError(
            f"{caller.token or caller.client} has {len(live)} experiments queued or running, its limit "
            f"({', '.join(live[:3])}, …)",
            next_step=NextStep(Advice.WAIT, "get_experiment", {"experiment_id": live[0]}),
        )


async def join_experiment(db: Database, experiment_id: str, caller: Caller | None, *, now: float) -> None:
    """Write down that somebody else asked for an experiment as well."""
    if caller is not None:
        await db.append(agents.asked_rows(experiment_id, caller, now=now))


async def get_experiment(db: Database, experiment_id: str) -> ExperimentRow | None:
    """Return one experiment, or None where the id names none."""
    rows = await db.reader.execute_fetchall(_BY_ID, {"id": experiment_id})
    return next((_row(row) for row in rows), None)


async def find_by_key(db: Database, idempotency_key: str) -> str | None:
    """Return the experiment that a call with this key made, if there was one."""
    rows = await db.reader.execute_fetchall(
        "SELECT id FROM experiment WHERE idempotency_key = :key", {"key": idempotency_key}
    )
    return next((str(row["id"]) for row in rows), None)


async def free_key(db: Database, experiment_id: str) -> None:
    """Let the next call with an experiment's idempotency key make another one."""
    await db.change("UPDATE experiment SET idempotency_key = NULL WHERE id = :id", {"id": experiment_id})


async def last_note(db: Database, experiment_id: str) -> str:
    """Return the text of the last decision on an experiment and the results of its steps, or nothing."""
    rows = await db.reader.execute_fetchall(
        "SELECT note FROM (SELECT row, note FROM decision WHERE experiment_id = :id ORDER BY row DESC LIMIT 1) "
        "WHERE note <> '' UNION ALL "
        "SELECT note FROM conclusion WHERE experiment_id = :id AND note <> '' ORDER BY 1",
        {"id": experiment_id},
    )
    return "; ".join(str(row["note"]) for row in rows)


async def list_experiments(db: Database, workspace: str, *, limit: int) -> list[ExperimentRow]:
    """Return the newest experiments of one workspace, newest first."""
    rows = await db.reader.execute_fetchall(
        f"{_SELECT} WHERE context.workspace_id = :workspace ORDER BY experiment.row DESC LIMIT :limit",
        {"workspace": workspace, "limit": limit},
    )
    return [_row(row) for row in rows]


async def changed_experiments(
    db: Database, workspace: str, *, after: int, decided_after: int, live: Sequence[str]
) -> list[ExperimentRow]:
    """Return a workspace's experiments behind a place, those decided on since with their replicates, and some by id.

    Args:
        db: The store.
        workspace: The workspace's id.
        after: Place of the newest experiment that is known; 0 for all of them.
        decided_after: Place of the newest decision that is known.
        live: Experiments that were not over when they were read.
    """
    rows = await db.reader.execute_fetchall(
        f"""
        {_SELECT} WHERE context.workspace_id = :workspace AND (
            experiment.row > :after OR experiment.id IN (SELECT value FROM json_each(:live))
            OR (experiment.context_id, experiment.group_key) IN (
                SELECT told.context_id, told.group_key FROM decision JOIN experiment AS told
                ON told.id = decision.experiment_id WHERE decision.row > :decided))
        ORDER BY experiment.row
        """,  # noqa: S608 - no input
        {"workspace": workspace, "after": after, "decided": decided_after, "live": json.dumps(list(live))},
    )
    return [_row(row) for row in rows]


async def live_experiments(db: Database) -> list[ExperimentRow]:
    """Return the experiments that are queued or running, oldest first."""
    # By +row, not row: else SQLite goes through all experiments in that order, and not through the few of the index.
    rows = await db.reader.execute_fetchall(f"{_SELECT} WHERE experiment.state <> 'done' ORDER BY +experiment.row")
    return [_row(row) for row in rows]


async def states_of(db: Database, experiment_ids: Sequence[str]) -> dict[str, RunState]:
    """Return the states of those experiments that there are."""
    rows = await db.reader.execute_fetchall(
        "SELECT id, state FROM experiment WHERE id IN (SELECT value FROM json_each(:ids))",
        {"ids": json.dumps(experiment_ids)},
    )
    return {str(row["id"]): RunState(row["state"]) for row in rows}


async def runs_of(db: Database, context_id: str, run_key: str) -> list[ExperimentRow]:
    """Return the experiments of one context that ran this and could see the same, oldest first."""
    rows = await db.reader.execute_fetchall(
        f"{_SELECT} WHERE experiment.context_id = :context AND experiment.run_key = :key ORDER BY experiment.row",
        {"context": context_id, "key": run_key},
    )
    return [_row(row) for row in rows]


async def runs_of_group(db: Database, context_id: str, group_key: str) -> list[ExperimentRow]:
    """Return the experiments of one context that are replicates of one another, oldest first."""
    rows = await db.reader.execute_fetchall(
        f"{_SELECT} WHERE experiment.context_id = :context AND experiment.group_key = :key ORDER BY experiment.row",
        {"context": context_id, "key": group_key},
    )
    return [_row(row) for row in rows]


async def runs_among_other_files(db: Database, context_id: str, run_key: str, *, limit: int) -> list[ExperimentRow]:
    """Return the newest experiments of one context that ran this program and could see other files, newest first."""
    program = run_key.partition(".")[0]
    rows = await db.reader.execute_fetchall(
        f"{_SELECT} WHERE experiment.context_id = :context AND experiment.run_key >= :first "
        "AND experiment.run_key < :last AND experiment.run_key <> :key ORDER BY experiment.row DESC LIMIT :limit",
        {"context": context_id, "first": f"{program}.", "last": f"{program}/", "key": run_key, "limit": limit},
    )
    return [_row(row) for row in rows]


async def runs_of_group_elsewhere(db: Database, context_id: str, group_key: str) -> list[ExperimentRow]:
    """Return the newest finished experiment of the same program, seeds aside, that could see other files, if any."""
    program = group_key.partition(".")[0]
    rows = await db.reader.execute_fetchall(
        f"{_SELECT} WHERE experiment.context_id = :context AND experiment.group_key >= :first "
        "AND experiment.group_key < :last AND experiment.group_key <> :key AND outcome.kind = 'finished' "
        "ORDER BY experiment.row DESC LIMIT 1",
        {"context": context_id, "first": f"{program}.", "last": f"{program}/", "key": group_key},
    )
    return [_row(row) for row in rows]


async def first_program(db: Database, context_id: str) -> str | None:
    """Return the hash of the first program that was measured in a context, or None."""
    rows = await db.reader.execute_fetchall(
        "SELECT program_hash FROM experiment JOIN outcome ON outcome.experiment_id = experiment.id "
        "WHERE context_id = :context AND outcome.metric_value IS NOT NULL AND program_hash IS NOT NULL "
        "ORDER BY outcome.rowid LIMIT 1",
        {"context": context_id},
    )
    return next((str(row["program_hash"]) for row in rows), None)


async def add_inputs(db: Database, inputs_hash: str, files: Mapping[str, str]) -> None:
    """Keep what a run could see besides the editable file, by content id."""
    await db.change(
        "INSERT INTO inputs (hash, files) VALUES (:hash, :files) ON CONFLICT (hash) DO NOTHING",
        {"hash": inputs_hash, "files": json.dumps(dict(files), sort_keys=True)},
    )


async def inputs_of(db: Database, inputs_hash: str) -> Mapping[str, str]:
    """Return the content ids of what a run could see besides the editable file; empty where that is not known."""
    rows = await db.reader.execute_fetchall("SELECT files FROM inputs WHERE hash = :hash", {"hash": inputs_hash})
    return next((dict(json.loads(row["files"])) for row in rows), {})


async def last_kept(db: Database, context_id: str) -> ExperimentRow | None:
    """Return the experiment whose change was kept last in a context: the incumbent."""
    rows = await db.reader.execute_fetchall(_LAST_KEPT, {"context": context_id, "any_kind": True})
    return next((_row(row) for row in rows), None)


async def last_kept_program(db: Database, context_id: str) -> ExperimentRow | None:
    """Return the experiment that was kept last among those whose program is known: no report without a commit."""
    rows = await db.reader.execute_fetchall(_LAST_KEPT, {"context": context_id, "any_kind": False})
    return next((_row(row) for row in rows), None)


async def claim(db: Database, experiment_id: str, supervisor: ProcessId) -> bool:
    """Make a process the supervisor of a queued experiment; only one can be."""
    changed = await db.change(
        "UPDATE experiment SET supervisor_pid = :pid, supervisor_started = :started "
        "WHERE id = :id AND state = 'queued' AND supervisor_pid IS NULL",
        {"id": experiment_id, "pid": supervisor.pid, "started": supervisor.started},
    )
    return changed == 1


async def mark_running(db: Database, experiment_id: str, child: ProcessId, *, now: float) -> None:
    """Record that the training process has started."""
    await db.change(
        "UPDATE experiment SET state = 'running', child_pid = :pid, child_started = :started, started_at = :now "
        "WHERE id = :id AND state = 'queued'",
        {"id": experiment_id, "pid": child.pid, "started": child.started, "now": now},
    )


async def request_cancel(db: Database, experiment_id: str, *, now: float) -> None:
    """Ask the supervisor to end an experiment; it looks twice a second."""
    await _update(db, "UPDATE experiment SET cancel_requested_at = :value WHERE id = :id", experiment_id, now)


async def add_outcome(db: Database, experiment_id: str, outcome: Outcome, *, now: float) -> bool:
    """Write how an experiment ended; the first writer wins; return whether this call was the first."""
    return await db.write(lambda conn: _insert_outcome(conn, experiment_id, outcome, now))


async def mark_done(db: Database, experiment_id: str, *, now: float) -> None:
    """End an experiment that has its outcome; waiting callers see it only now."""
    await db.change(_MARK_DONE, {"id": experiment_id, "now": now})


async def finish(db: Database, experiment_id: str, outcome: Outcome, *, now: float) -> bool:
    """Write the outcome of an experiment on which nothing is left to do; return whether it was the first."""
    return await db.write(lambda conn: _finish(conn, experiment_id, outcome, now))


def _finish(
    conn: sqlite3.Connection, experiment_id: str, outcome: Outcome, now: float, origin: Origin = Origin.MEASURED
) -> bool:
    first = _insert_outcome(conn, experiment_id, outcome, now, origin)
    conn.execute(_MARK_DONE, {"id": experiment_id, "now": now})
    return first


_MARK_DONE = "UPDATE experiment SET state = 'done', finished_at = :now WHERE id = :id AND state <> 'done'"


def _insert_outcome(
    conn: sqlite3.Connection, experiment_id: str, outcome: Outcome, now: float, origin: Origin = Origin.MEASURED
) -> bool:
    cursor = conn.execute(
        "INSERT INTO outcome (experiment_id, kind, metric_value, reason, summary, log_tail, created_at, origin) "
        "VALUES (:id, :kind, :value, :reason, :summary, :tail, :now, :origin) ON CONFLICT (experiment_id) DO NOTHING",
        {
            "id": experiment_id,
            "kind": outcome.kind.value,
            "value": outcome.metric_value,
            "reason": outcome.reason,
            "summary": json.dumps(dict(outcome.summary), sort_keys=True),
            "tail": outcome.log_tail,
            "now": now,
            "origin": origin.value,
        },
    )
    return cursor.rowcount == 1


async def add_decision(
    db: Database,
    experiment_id: str,
    decision: Decision,
    *,
    made_by: str,
    commit: str | None,
    note: str,
    now: float,
) -> None:
    """Record whether a change is kept; the last decision counts."""
    await db.change(
        "INSERT INTO decision (experiment_id, decision, made_by, commit_hash, note, created_at) "
        "VALUES (:id, :decision, :by, :commit, :note, :now)",
        {
            "id": experiment_id,
            "decision": decision.value,
            "by": made_by,
            "commit": commit,
            "note": note,
            "now": now,
        },
    )


async def _update(db: Database, statement: str, experiment_id: str, value: str | float) -> None:
    await db.change(statement, {"id": experiment_id, "value": value})


def _process(pid: int | None, started: float | None) -> ProcessId | None:
    return ProcessId(pid, started) if pid is not None and started is not None else None


def _readable(summary: str) -> dict[str, float]:
    """Return a summary's numbers; those of a row that was damaged are lost, the row is not."""
    try:
        return dict(json.loads(summary))
    except ValueError:
        return {}


def _row(row: sqlite3.Row) -> ExperimentRow:
    outcome = None
    if row["kind"] is not None:
        outcome = Outcome(
            kind=OutcomeKind(row["kind"]),
            metric_value=row["metric_value"],
            reason=row["reason"],
            summary=_readable(row["summary"]),
            log_tail=row["log_tail"],
        )
    same = (
        "id context_id workspace_id workspace_path device device_slot budget_s edit_id base_hash program_hash "
        "parent_id description seed timeout_s silence_s run_dir created_at started_at finished_at run_key group_key "
        "base_group_key inputs_hash undone_by"
    )
    return ExperimentRow(
        **{name: row[name] for name in same.split()},
        state=RunState(row["state"]),
        supervisor=_process(row["supervisor_pid"], row["supervisor_started"]),
        child=_process(row["child_pid"], row["child_started"]),
        cancel_requested=row["cancel_requested_at"] is not None,
        method_ids=tuple(sorted(json.loads(row["methods"]))),
        outcome=outcome,
        origin=None if row["origin"] is None else Origin(row["origin"]),
        decision=None if row["decision"] is None else Decision(row["decision"]),
    )
