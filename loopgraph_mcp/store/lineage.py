"""The chain as one query: from an experiment back to the retrieval, the method, its papers and its pack."""

from dataclasses import dataclass

from loopgraph_mcp.store.database import Database


@dataclass(frozen=True, slots=True)
class Link:
    """One row on the chain: its stage, its id, and a few words on it."""

    stage: str
    id: str
    words: str


async def chain_of(db: Database, experiment_id: str) -> list[Link]:
    """Return the links that led to an experiment and what came of it, in the order of the chain."""
    rows = await db.reader.execute_fetchall(
        """
        WITH tried AS (
            SELECT method.* FROM experiment_method JOIN method ON method.id = experiment_method.method_id
            WHERE experiment_method.experiment_id = :id
        ), made AS (
            SELECT edit.* FROM experiment JOIN edit ON edit.id = experiment.edit_id WHERE experiment.id = :id
        )
        SELECT 1 AS place, 'pack' AS stage, pack.name AS id, 'version ' || pack.version AS words
        FROM pack WHERE pack.name IN (SELECT pack_name FROM tried)
        UNION ALL
        SELECT 2, 'paper', paper.id, paper.title FROM paper
        JOIN method_paper ON method_paper.paper_id = paper.id WHERE method_paper.method_id IN (SELECT id FROM tried)
        UNION ALL SELECT 3, 'method', tried.id, tried.name FROM tried
        UNION ALL
        SELECT 4, 'retrieval', retrieval.id, 'query: ' || retrieval.query FROM retrieval
        WHERE retrieval.id IN (SELECT retrieval_id FROM made)
        UNION ALL
        SELECT 5, 'edit', made.id, substr(made.base_hash, 1, 7) || ' -> ' || substr(made.new_hash, 1, 7) FROM made
        UNION ALL
        SELECT 6, 'turn', turn.session_id || ':' || turn.number, session.researcher || ', memory ' || session.memory
        FROM tool_call
        JOIN turn ON turn.session_id = tool_call.session_id AND turn.number = tool_call.turn
        JOIN session ON session.id = turn.session_id
        WHERE tool_call.experiment_id = :id
        UNION ALL
        SELECT 7, 'experiment', experiment.id, experiment.description || ', seed ' || experiment.seed
        FROM experiment WHERE experiment.id = :id
        UNION ALL
        SELECT 8, 'outcome', outcome.experiment_id, outcome.kind || ': ' || outcome.reason
        FROM outcome WHERE outcome.experiment_id = :id
        UNION ALL
        SELECT 9, 'decision', decision.experiment_id, decision.decision || ' by ' || decision.made_by
        FROM decision WHERE decision.experiment_id = :id
        ORDER BY place, id
        """,
        {"id": experiment_id},
    )
    return [Link(row["stage"], row["id"], row["words"]) for row in rows]
