"""Finds methods by full text: their own, that of passages about them, and that of experiments that tried them.

bm25 scores every row that holds a word, so a common word would cost seconds in a large store, and says little anyway:
common words are dropped, the rarest of the rest kept, and where all are common the newest rows stand for the others.
"""

import asyncio
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopgraph_mcp.models import Method
from loopgraph_mcp.store.database import Database, interruptible
from loopgraph_mcp.store.methods import library
from loopgraph_mcp.store.query import Limits, Match, plan, read_concepts, read_words, spans, words_of

_HITS = 30  # rows of an index that are followed to their methods
_SOME_WORDS = 0.6  # how far a method with some of the words counts, where another has them all
_LEAST_RELEVANCE = 0.05  # a weak match still ranks by its evidence
_LEAST_SCORE = 0.01  # of a match in one index
_SCORED_ALL = 5_000  # rows of an index that is small enough to score common words in
_MEANT = 3  # a name of more methods than this is no name of any
_COUNTED_WORDS = 10_000  # word counts remembered for an index; bounds the memory
_PRUNED = Limits()


@dataclass(frozen=True, slots=True)
class _Index:
    """One full-text index and how its rows lead to methods.

    Args:
        weight: How far a hit counts, beside one in a method's own text.
        enough: Rows with all the words, at which those with some are not asked for.
        bm25: The columns' weights.
        hits: The query for hits, open for their score and order: row, method, score and share of each, as JSON.
    """

    name: str
    weight: float
    enough: int
    bm25: str
    hits: str

    @property
    def scored(self) -> str:
        """The query for the best rows."""
        return self.hits.format(score=f"-bm25({self.name}_fts, {self.bm25})", order="score DESC, rowid")

    @property
    def newest(self) -> str:
        """The query for the newest rows, which scores none: for words that are too common to."""
        return self.hits.format(score="1.0", order="rowid DESC")


_METHODS = _Index(
    "method",
    weight=1.0,
    enough=_HITS,
    bm25="8.0, 8.0, 3.0, 1.0, 4.0",
    hits="""
    WITH hit AS MATERIALIZED (
        SELECT rowid AS row, {score} AS score FROM method_fts WHERE method_fts MATCH :match
        AND rowid NOT IN (SELECT row FROM method WHERE retired_at IS NOT NULL) ORDER BY {order} LIMIT :limit
    )
    SELECT json_group_array(json_array(hit.row, method.id, hit.score, 1.0))
    FROM hit JOIN method ON method.row = hit.row
    """,
)
# A paper's passages count by half for the methods that only cite it.
_CHUNKS = _Index(
    "chunk",
    weight=0.8,
    enough=10,
    bm25="2.0, 1.0, 3.0",
    hits="""
    WITH hit AS MATERIALIZED (
        SELECT rowid AS row, {score} AS score FROM chunk_fts WHERE chunk_fts MATCH :match
        ORDER BY {order} LIMIT :limit
    )
    SELECT json_group_array(json_array(row, method_id, score, share)) FROM (
        SELECT hit.row, method_chunk.method_id, hit.score, 1.0 AS share FROM hit JOIN chunk ON chunk.row = hit.row
        JOIN method_chunk ON method_chunk.chunk_id = chunk.id
        UNION ALL
        SELECT hit.row, method_paper.method_id, hit.score, 0.5 AS share FROM hit JOIN chunk ON chunk.row = hit.row
        JOIN method_paper ON method_paper.paper_id = chunk.paper_id
    )
    """,
)
_EXPERIMENTS = _Index(
    "experiment",
    weight=0.4,
    enough=10,
    bm25="3.0, 1.0, 0.5",
    hits="""
    WITH hit AS MATERIALIZED (
        SELECT rowid AS row, {score} AS score FROM experiment_fts WHERE experiment_fts MATCH :match
        ORDER BY {order} LIMIT :limit
    )
    SELECT json_group_array(json_array(hit.row, experiment_method.method_id, hit.score, 1.0)) FROM hit
    JOIN experiment ON experiment.row = hit.row
    JOIN experiment_method ON experiment_method.experiment_id = experiment.id
    """,
)
_INDEXES = (_METHODS, _CHUNKS, _EXPERIMENTS)


@dataclass(slots=True)
class _Found:
    """What one index found: each method's best score, and which have every word."""

    scores: dict[str, float] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)

    def add(self, method_id: str, score: float) -> None:
        """Take in one hit."""
        self.scores[method_id] = max(self.scores.get(method_id, score), score)


# How many rows hold a word, for as long as the index has the same newest row. Counting stops where a word is common,
# which takes a tenth of a microsecond a row; fts5vocab counts to the end.
_Counts = tuple[tuple[int, int], dict[str, int]]


async def find_methods(db: Database, query: str, *, limit: int, limits: Limits = _PRUNED) -> list[tuple[Method, float]]:
    """Return methods that a query finds, with their relevance in (0, 1], best first, ties by id.

    Rows that match everything asked for come first; those with some of it count for less. A search that comes to its
    limit of time answers with what it has.
    """
    relevance, known = await asyncio.gather(
        db.search(lambda conn: find_relevance(db, conn, query, limits), limit_s=limits.seconds), library(db)
    )
    return ranked(relevance, known, limit)


def find_relevance(db: Database, conn: sqlite3.Connection, query: str, limits: Limits = _PRUNED) -> dict[str, float]:
    """Within a search, return how far a query is about each method that it finds, on a scale of its own."""
    words = read_words(query)
    if not words:
        return {}
    db.limit_search(limits.seconds)
    return _combine(_look_everywhere(conn, words, db.word_counts, limits))


def ranked(relevance: Mapping[str, float], known: Mapping[str, Method], limit: int) -> list[tuple[Method, float]]:
    """Return those methods that are known, with their relevance in (0, 1], best first, ties by id."""
    order = sorted(sorted(relevance.keys() & known.keys()), key=relevance.__getitem__, reverse=True)[:limit]
    best = relevance[order[0]] if order else 1.0
    return [(known[each], max(_LEAST_RELEVANCE, relevance[each] / best)) for each in order]


def _look_everywhere(
    conn: sqlite3.Connection, words: Sequence[str], known: dict[str, _Counts], limits: Limits
) -> list[tuple[_Index, _Found]]:
    """Return what each index has, or had until the time was up."""
    found = [(index, _Found()) for index in _INDEXES]
    with interruptible():
        concepts = read_concepts(words, _other_names(conn, words))
        asked, sizes = words_of(concepts), _sizes(conn)
        for index, seen in found:
            size = sizes[index.name]
            counts = _count_rows(conn, index.name, size, asked, limits.common(size), known)
            _look(conn, index, plan(concepts, counts, size, limits), size, seen)
    return found


def _other_names(conn: sqlite3.Connection, words: Sequence[str]) -> dict[str, list[str]]:
    """Return the names in a query, each with the other names of the methods it means."""
    rows = conn.execute(
        """
        SELECT said.words AS said, other.words AS other FROM json_each(:spans) AS span
        JOIN alias AS said ON said.words = span.value
        JOIN method ON method.id = said.method_id AND method.retired_at IS NULL
        JOIN alias AS other ON other.method_id = said.method_id AND other.words <> said.words
        WHERE (SELECT count(*) FROM alias WHERE alias.words = span.value) <= :meant
        ORDER BY other.place, said.words, other.words
        """,
        {"spans": json.dumps(spans(words)), "meant": _MEANT},
    )
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row["said"], []).append(row["other"])
    return names


def _sizes(conn: sqlite3.Connection) -> dict[str, int]:
    """Return the newest row of each index, which is about how many it has."""
    rows = conn.execute(
        "SELECT (SELECT max(row) FROM method) AS method, (SELECT max(row) FROM chunk) AS chunk, "
        "(SELECT max(row) FROM experiment) AS experiment"
    )
    row = next(iter(rows))
    return {name: row[name] or 0 for name in row.keys()}  # noqa: SIM118 - iterating a Row gives its values


def _count_rows(
    conn: sqlite3.Connection, name: str, size: int, words: Sequence[str], common: int, all_known: dict[str, _Counts]
) -> dict[str, int]:
    """Return how many rows of an index hold each word, or for a common word one more than make it common."""
    of, known = all_known.get(name, (None, {}))
    if of != (size, common) or len(known) > _COUNTED_WORDS:
        known = {}
        all_known[name] = (size, common), known
    new = [word for word in words if word not in known]
    if new:
        counted = _items(
            conn,
            f"SELECT json_group_array((SELECT count(*) FROM (SELECT 1 FROM {name}_fts "  # noqa: S608 - our names
            f"WHERE {name}_fts MATCH '\"' || value || '\"' LIMIT :limit))) FROM json_each(:words)",
            {"words": json.dumps(new), "limit": common + 1},
        )
        known.update(zip(new, counted, strict=True))
    return {word: known[word] for word in words}


def _look(conn: sqlite3.Connection, index: _Index, match: Match, size: int, found: _Found) -> None:
    """Put into `found` what an index has; the rows with every concept are looked up first, which costs little."""
    query, asked, full = index.scored, match.every, set[int]()
    if match.some and not match.every:
        asked = match.some
    elif match.some:
        full.update(
            _items(
                conn,
                f"SELECT json_group_array(rowid) FROM (SELECT rowid FROM {index.name}_fts "  # noqa: S608 - our names
                f"WHERE {index.name}_fts MATCH :match LIMIT :limit)",
                {"match": match.every, "limit": index.enough},
            )
        )
        asked = match.every if len(full) == index.enough else match.some
    elif match.common:
        query, asked = index.scored if size <= _SCORED_ALL else index.newest, match.common
    if not asked:
        return
    for row, method_id, score, share in _items(conn, query, {"match": asked, "limit": _HITS}):
        # bm25 can be zero or negative for a word in most rows; relevance must stay above zero.
        found.add(method_id, share * max(_LEAST_SCORE, score / match.best))
        if asked != match.some or row in full:
            found.full.add(method_id)


def _items(conn: sqlite3.Connection, query: str, values: Mapping[str, Any]) -> Any:
    """Return the items of one JSON value: a result in one row takes Python's lock once, however many items it has."""
    return json.loads(conn.execute(query, values).fetchone()[0])


def _combine(found: Sequence[tuple[_Index, _Found]]) -> dict[str, float]:
    """Return each method's relevance over all indexes, not yet scaled."""
    any_in_full = any(seen.full for _, seen in found)
    relevance: dict[str, float] = {}
    for index, seen in found:
        for method_id, score in seen.scores.items():
            share = 1.0 if method_id in seen.full or not any_in_full else _SOME_WORDS
            relevance[method_id] = relevance.get(method_id, 0.0) + index.weight * share * score
    return relevance
