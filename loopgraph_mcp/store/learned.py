"""Learned recipes: made from winning patches, offered with the outcomes of the edits that they made."""

import json
import sqlite3
from dataclasses import dataclass

from loopgraph_mcp.models import Knob, Recipe
from loopgraph_mcp.store.database import Database, text_hash
from loopgraph_mcp.store.methods import decode_recipe, encode_recipe


@dataclass(frozen=True, slots=True)
class LearnedRecipe:
    """One learned recipe as stored.

    Args:
        experiment_id: The win it was learned from.
        base_hash: The program that win started from.
        applied: How many of the other programs known then it fitted.
        present: How many of them held it already.
        refused: How many it did not fit.
    """

    id: str
    method_id: str
    experiment_id: str
    base_hash: str
    recipe: Recipe
    knobs: tuple[Knob, ...]
    applied: int
    present: int
    refused: int


async def unread_wins(db: Database, method_id: str) -> list[str]:
    """Return the kept experiments of a method whose edits were not looked at yet, oldest first.

    Whether they won is for their verdicts to say. An edit made by a learned recipe yields no new one.
    """
    rows = await db.reader.execute_fetchall(
        """
        SELECT experiment.id FROM experiment_method
        JOIN experiment ON experiment.id = experiment_method.experiment_id
        JOIN edit ON edit.id = experiment.edit_id
        JOIN outcome ON outcome.experiment_id = experiment.id AND outcome.kind = 'finished'
        WHERE experiment_method.method_id = :method
            AND (SELECT decision FROM decision WHERE experiment_id = experiment.id ORDER BY row DESC LIMIT 1) = 'keep'
            AND NOT EXISTS (SELECT 1 FROM learned_edit WHERE learned_edit.edit_id = edit.id)
            AND NOT EXISTS (
                SELECT 1 FROM learned_from
                WHERE learned_from.experiment_id = experiment.id AND learned_from.method_id = :method)
            AND (SELECT count(*) FROM experiment_method AS also WHERE also.experiment_id = experiment.id) = 1
        ORDER BY experiment.row
        """,
        {"method": method_id},
    )
    return [str(row["id"]) for row in rows]


async def add_recipe(
    db: Database,
    method_id: str,
    experiment_id: str,
    *,
    base_hash: str,
    recipe: Recipe,
    knobs: tuple[Knob, ...],
    fits: tuple[int, int, int],
    now: float,
) -> str:
    """Store the recipe learned from a win; return its id, equal for equal recipes."""
    card = encode_recipe(recipe, knobs)
    identity = f"recipe_{text_hash(method_id + card)[:12]}"

    def write(conn: sqlite3.Connection) -> None:
        conn.execute(
            "INSERT INTO learned_recipe (id, method_id, experiment_id, base_hash, recipe, applied, present, refused, "
            "created_at) VALUES (:id, :method, :experiment, :base, :recipe, :applied, :present, :refused, :now) "
            "ON CONFLICT (id) DO NOTHING",
            {
                "id": identity,
                "method": method_id,
                "experiment": experiment_id,
                "base": base_hash,
                "recipe": card,
                "applied": fits[0],
                "present": fits[1],
                "refused": fits[2],
                "now": now,
            },
        )
        conn.execute(
            _LOOKED_AT,
            {"experiment": experiment_id, "method": method_id, "recipe": identity, "reason": "generalised"},
        )

    await db.write(write)
    return identity


async def add_lookover(db: Database, method_id: str, experiment_id: str, reason: str) -> None:
    """Record why a win gives no recipe, so that it is not looked at again."""
    await db.change(_LOOKED_AT, {"experiment": experiment_id, "method": method_id, "recipe": None, "reason": reason})


_LOOKED_AT = (
    "INSERT INTO learned_from (experiment_id, method_id, recipe_id, reason) "
    "VALUES (:experiment, :method, :recipe, :reason) ON CONFLICT DO NOTHING"
)


async def recipes_of(db: Database, method_id: str) -> list[LearnedRecipe]:
    """Return the learned recipes of a method whose win is still kept, newest first."""
    rows = await db.reader.execute_fetchall(
        f"{_SELECT} AND method_id = :method ORDER BY rowid DESC", {"method": method_id}
    )
    return [_row(row) for row in rows]


async def methods_with_recipe(db: Database) -> set[str]:
    """Return the methods that have a learned recipe whose win is still kept."""
    rows = await db.reader.execute_fetchall(_SELECT)
    return {str(row["method_id"]) for row in rows}


_SELECT = """
    SELECT learned_recipe.* FROM learned_recipe
    WHERE (SELECT decision FROM decision WHERE decision.experiment_id = learned_recipe.experiment_id
           ORDER BY row DESC LIMIT 1) = 'keep'
"""


async def learned_from(db: Database, experiment_id: str) -> list[str]:
    """Return the methods with a recipe learned from an experiment."""
    rows = await db.reader.execute_fetchall(
        "SELECT method_id FROM learned_from WHERE experiment_id = :id AND recipe_id IS NOT NULL ORDER BY method_id",
        {"id": experiment_id},
    )
    return [str(row["method_id"]) for row in rows]


async def add_edit(db: Database, edit_id: str, recipe_id: str) -> None:
    """Record that a learned recipe made an edit."""
    await db.change(
        "INSERT INTO learned_edit (edit_id, recipe_id) VALUES (:edit, :recipe) ON CONFLICT DO NOTHING",
        {"edit": edit_id, "recipe": recipe_id},
    )


async def experiments_of(db: Database, recipe_id: str) -> list[str]:
    """Return the finished experiments of the edits that a learned recipe made, oldest first."""
    rows = await db.reader.execute_fetchall(
        "SELECT experiment.id FROM learned_edit JOIN experiment ON experiment.edit_id = learned_edit.edit_id "
        "JOIN outcome ON outcome.experiment_id = experiment.id "
        "WHERE recipe_id = :recipe AND outcome.kind NOT IN ('cancelled', 'interrupted', 'no_metric') "
        "ORDER BY experiment.row",
        {"recipe": recipe_id},
    )
    return [str(row["id"]) for row in rows]


async def programs_beside(db: Database, edit_id: str, *, limit: int) -> list[str]:
    """Return the newest programs of an edit's workspace other than its own two, one for each syntax tree."""
    rows = await db.reader.execute_fetchall(
        """
        SELECT program.text FROM edit AS own
        JOIN context ON context.workspace_id = own.workspace_id
        JOIN experiment ON experiment.context_id = context.id
        JOIN program ON program.hash = experiment.program_hash
        WHERE own.id = :edit AND program.hash NOT IN (own.base_hash, own.new_hash)
        GROUP BY program.tree_hash ORDER BY max(experiment.row) DESC LIMIT :limit
        """,
        {"edit": edit_id, "limit": limit},
    )
    return [str(row["text"]) for row in rows]


def _row(row: sqlite3.Row) -> LearnedRecipe:
    recipe, knobs = decode_recipe(json.loads(row["recipe"]))
    same = ("id", "method_id", "experiment_id", "base_hash", "applied", "present", "refused")
    return LearnedRecipe(**{name: row[name] for name in same}, recipe=recipe, knobs=knobs)
