"""Agent sessions: every prompt, reply, call and cost, and the experiment that a call led to."""

import sqlite3
from dataclasses import dataclass

from loopgraph_mcp.store.database import Database


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session; `settings` and `tools` are JSON. `ended` says why it ended, or is None where it may go on."""

    id: str
    workspace_path: str
    researcher: str
    memory: str
    settings: str
    system: str
    tools: str
    start: str
    kept: str
    draft: str
    draft_edit: str | None
    created_at: float
    ended: str | None = None


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One turn; `prompt` holds the messages behind the first `kept` of the prompt before, as JSON like `reply`."""

    session_id: str
    number: int
    kept: int
    prompt: str
    reply: str
    menu: bool
    prompt_tokens: int
    cached_tokens: int
    written_tokens: int
    completion_tokens: int
    wasted_tokens: int
    estimated: bool
    cost_usd: float | None
    seconds: float
    attempts: int
    created_at: float

    @property
    def tokens(self) -> int:
        """All tokens of the turn: read, written, and wasted on replies that were cut off."""
        return self.prompt_tokens + self.completion_tokens + self.wasted_tokens


@dataclass(frozen=True, slots=True)
class CallRow:
    """One tool call of a turn as it was carried out; `result` and `run` are JSON."""

    session_id: str
    turn: int
    place: int
    name: str
    arguments: str
    valid: bool
    result: str
    run: str | None
    experiment_id: str | None
    seconds: float


async def add_session(db: Database, row: SessionRow) -> None:
    """Begin a session."""
    await db.change(
        "INSERT INTO session (id, workspace_path, researcher, memory, settings, system, tools, start, kept, draft, "
        "draft_edit, created_at) VALUES (:id, :workspace_path, :researcher, :memory, :settings, :system, :tools, "
        ":start, :kept, :draft, :draft_edit, :created_at)",
        {name: getattr(row, name) for name in SessionRow.__slots__},
    )


async def get_session(db: Database, session_id: str) -> SessionRow | None:
    """Return a session, or None where the id names none."""
    rows = await db.reader.execute_fetchall("SELECT * FROM session WHERE id = :id", {"id": session_id})
    return next((SessionRow(**{name: row[name] for name in SessionRow.__slots__}) for row in rows), None)


async def end_session(db: Database, session_id: str, reason: str | None, *, now: float) -> None:
    """Write why a session ended; None lets it go on."""
    await db.change(
        "UPDATE session SET ended = :reason, ended_at = iif(:reason IS NULL, NULL, :now) WHERE id = :id",
        {"id": session_id, "reason": reason, "now": now},
    )


async def add_turn(db: Database, row: TurnRow) -> None:
    """Write down what was asked and answered, before anything is done about it."""
    await db.change(
        "INSERT INTO turn (session_id, number, kept, prompt, reply, menu, prompt_tokens, cached_tokens, "
        "written_tokens, completion_tokens, wasted_tokens, estimated, cost_usd, seconds, attempts, created_at) "
        "VALUES (:session_id, :number, :kept, :prompt, :reply, :menu, :prompt_tokens, :cached_tokens, "
        ":written_tokens, :completion_tokens, :wasted_tokens, :estimated, :cost_usd, :seconds, :attempts, "
        ":created_at)",
        {name: getattr(row, name) for name in TurnRow.__slots__},
    )


async def add_call(db: Database, row: CallRow, *, kept: str, draft: str, draft_edit: str | None) -> None:
    """Write down a call's result together with what it made of the draft."""

    def write(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO tool_call (session_id, turn, place, name, arguments, valid, result, run, experiment_id, "
            "seconds) VALUES (:session_id, :turn, :place, :name, :arguments, :valid, :result, :run, :experiment_id, "
            ":seconds)",
            {name: getattr(row, name) for name in CallRow.__slots__},
        )
        conn.execute(
            "UPDATE session SET kept = :kept, draft = :draft, draft_edit = :edit WHERE id = :id",
            {"id": row.session_id, "kept": kept, "draft": draft, "edit": draft_edit},
        )

    await db.write(write)


async def turns_of(db: Database, session_id: str) -> list[TurnRow]:
    """Return a session's turns in order."""
    rows = await db.reader.execute_fetchall(
        "SELECT * FROM turn WHERE session_id = :id ORDER BY number", {"id": session_id}
    )
    return [_turn(row) for row in rows]


async def calls_of(db: Database, session_id: str) -> list[CallRow]:
    """Return a session's calls in order."""
    rows = await db.reader.execute_fetchall(
        "SELECT * FROM tool_call WHERE session_id = :id ORDER BY turn, place", {"id": session_id}
    )
    return [_call(row) for row in rows]


def _turn(row: sqlite3.Row) -> TurnRow:
    values = {name: row[name] for name in TurnRow.__slots__}
    return TurnRow(**{**values, "menu": bool(row["menu"]), "estimated": bool(row["estimated"])})


def _call(row: sqlite3.Row) -> CallRow:
    values = {name: row[name] for name in CallRow.__slots__}
    return CallRow(**{**values, "valid": bool(row["valid"])})
