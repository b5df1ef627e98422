"""Agents and their requests: each request is stored with its row, and read for turns, limits and current runs."""

import json
import sqlite3
from dataclasses import dataclass

from loopgraph_mcp.auth import Caller
from loopgraph_mcp.runner.queue import Priority, Waiting
from loopgraph_mcp.store.database import Database, Rows

_SERVED = 1_000  # newest experiments among which it is looked who was served last


@dataclass(frozen=True, slots=True)
class Asker:
    """An agent that asked for something."""

    agent_id: str
    token: str
    client: str

    @property
    def name(self) -> str:
        """The agent as other agents see it."""
        return self.token or self.client


def asked_rows(subject_id: str, caller: Caller, *, now: float) -> list[Rows]:
    """Return what says who asked for something."""
    agent = {"id": caller.id, "token": caller.token, "client": caller.client, "session": caller.session, "now": now}
    return [
        (
            "INSERT INTO agent (id, token, client, session, created_at) VALUES (:id, :token, :client, :session, :now) "
            "ON CONFLICT (id) DO NOTHING",
            [agent],
        ),
        (
            "INSERT INTO asked (subject_id, agent_id, asked_at) VALUES (:subject, :agent, :now) "
            "ON CONFLICT (subject_id, agent_id) DO NOTHING",
            [{"subject": subject_id, "agent": caller.id, "now": now}],
        ),
    ]


async def askers(db: Database, subject_ids: list[str]) -> dict[str, list[Asker]]:
    """Return who asked for each of some rows, the first to ask first."""
    marks = ", ".join("?" * len(subject_ids))
    rows = await db.reader.execute_fetchall(
        "SELECT asked.subject_id, agent.id, agent.token, agent.client FROM asked "  # noqa: S608 - question marks
        f"JOIN agent ON agent.id = asked.agent_id WHERE asked.subject_id IN ({marks}) "
        "ORDER BY asked.asked_at, agent.id",
        subject_ids,
    )
    found: dict[str, list[Asker]] = {}
    for row in rows:
        found.setdefault(row["subject_id"], []).append(Asker(row["id"], row["token"], row["client"]))
    return found


def live_runs_of(conn: sqlite3.Connection, caller: Caller) -> list[str]:
    """Return the experiments that a token, or an agent without one, has queued or running."""
    rows = conn.execute(
        "SELECT DISTINCT experiment.id FROM experiment JOIN asked ON asked.subject_id = experiment.id "
        "JOIN agent ON agent.id = asked.agent_id WHERE experiment.state <> 'done' "
        "AND iif(:token = '', agent.id = :agent, agent.token = :token) ORDER BY experiment.row",
        {"token": caller.token, "agent": caller.id},
    )
    return [str(row["id"]) for row in rows]


async def live_slots(db: Database) -> list[str]:
    """Return the device slots that something is queued or running on."""
    rows = await db.reader.execute_fetchall("SELECT DISTINCT device_slot FROM experiment WHERE state <> 'done'")
    return [str(row["device_slot"]) for row in rows]


async def queue(db: Database, *device_slots: str) -> tuple[list[Waiting], dict[Waiting, float]]:
    """Return what waits for a device, oldest first, and when the newest of those that ran on it started.

    Args:
        db: The store.
        device_slots: The device's slot, and those of other devices that share a card with it.
    """
    rows = await db.reader.execute_fetchall(
        "SELECT experiment.id, experiment.priority, experiment.state, experiment.started_at, "
        "coalesce(agent.token, '') AS token, coalesce(agent.id, '') AS agent FROM experiment LEFT JOIN agent "
        "ON agent.id = (SELECT agent_id FROM asked WHERE subject_id = experiment.id ORDER BY asked_at, agent_id "
        "LIMIT 1) WHERE experiment.device_slot IN (SELECT value FROM json_each(:slots)) AND experiment.row IN ("
        "SELECT row FROM experiment WHERE state <> 'done' UNION "
        "SELECT row FROM experiment WHERE row > (SELECT max(row) FROM experiment) - :served) "
        "AND (experiment.state = 'queued' OR experiment.started_at IS NOT NULL) ORDER BY experiment.row",
        {"slots": json.dumps(device_slots), "served": _SERVED},
    )
    waiting, served = list[Waiting](), dict[Waiting, float]()
    for row in rows:
        run = Waiting(row["id"], row["token"], row["agent"], Priority(row["priority"]))
        if row["state"] == "queued":
            waiting.append(run)
        else:
            served[run] = row["started_at"]
    return waiting, served
