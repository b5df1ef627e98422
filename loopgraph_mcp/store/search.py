"""Full-text search: any words find methods by their own text, by passages linked to them, and by what was tried.

A word that stands in many rows costs time and says little: bm25 scores every row that matches. So words in more than
2 % of a table's rows are left out there, the six rarest are kept, all of them are asked for first and any of them only
where that finds too little; if all words are common, all of them are looked for in the newest rows.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.store.database import Database

COMMON_SHARE = 0.02
FEW_ROWS = 5_000  # a table this small is searched for every word
KEPT_WORDS = 6
NEWEST_ROWS = 2_000
DEADLINE_S = 0.25
SOME_WORDS = 0.3  # what a row with some of the words is worth, where another has them all
LEAST_RELEVANCE = 0.05
_MAX_TOKENS = 12
_MAX_CHARS = 2_000
MAX_NAME_WORDS = 4
# fmt: off
# Words that say nothing of a method; dropped unless they are all there is.
_STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "could", "do", "does", "for", "from", "how", "i", "if",
    "in", "into", "is", "it", "its", "make", "me", "of", "on", "or", "our", "should", "so", "some", "than", "that",
    "the", "then", "there", "these", "this", "to", "try", "use", "using", "want", "was", "we", "what", "when",
    "which", "with", "would", "you",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class Index:
    """One full-text table and how a match in it is scored and named.

    Args:
        score: bm25 with the weights of its columns.
        rows: How to count the table's rows, roughly and at once.
        join: What leaves out rows that are not to be found.
    """

    table: str
    score: str
    rows: str
    join: str = ""


METHODS = Index(
    "method_fts",
    "-bm25(method_fts, 8.0, 8.0, 3.0, 1.0, 4.0)",
    "SELECT coalesce(max(row), 0) FROM method",
    "JOIN method ON method.row = method_fts.rowid AND method.retired_at IS NULL",
)
CHUNKS = Index("chunk_fts", "-bm25(chunk_fts, 1.0, 0.2)", "SELECT coalesce(max(row), 0) FROM chunk")
EXPERIMENTS = Index("experiment_fts", "-bm25(experiment_fts)", "SELECT coalesce(max(row), 0) FROM experiment")


@dataclass(frozen=True, slots=True)
class Words:
    """A query's words, each with the phrases that mean the same.

    Args:
        tokens: Words in the query's order, common ones of the language dropped.
        aliases: For a run of tokens that names something: where it begins and ends, and its other names.
    """

    tokens: tuple[str, ...]
    aliases: tuple[tuple[int, int, tuple[str, ...]], ...] = ()

    def terms(self) -> list[str]:
        """Return one FTS5 expression for each word, or for each run of words that has other names."""
        terms, place = [], 0
        by_start = {start: (end, names) for start, end, names in self.aliases}
        while place < len(self.tokens):
            end, names = by_start.get(place, (place + 1, ()))
            phrase = quoted(" ".join(self.tokens[place:end]))
            terms.append(f"({' OR '.join([phrase, *map(quoted, names)])})" if names else phrase)
            place = end
        return terms


def quoted(phrase: str) -> str:
    """Return a phrase of words as FTS5 takes it; it holds nothing but words."""
    return f'"{phrase}"'


def tokens_of(text: str) -> list[str]:
    """Return the words of any string that are safe to quote for FTS5."""
    text = text[:_MAX_CHARS].encode("utf-8", "ignore").decode("utf-8").replace("\x00", " ")
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def query_words(query: str, names: Mapping[tuple[str, ...], tuple[str, ...]] | None = None) -> Words:
    """Return the words of a query, the first twelve, with other names of what they name.

    Args:
        query: Any string.
        names: Other names by the words of one name.
    """
    unique = list(dict.fromkeys(tokens_of(query)))
    telling = ([word for word in unique if word not in _STOP_WORDS] or unique)[:_MAX_TOKENS]
    aliases = []
    place = 0
    while names and place < len(telling):
        end = next(
            (
                end
                for end in range(min(place + MAX_NAME_WORDS, len(telling)), place, -1)
                if tuple(telling[place:end]) in names
            ),
            None,
        )
        if end is not None:
            aliases.append((place, end, names[tuple(telling[place:end])]))
        place = end or place + 1
    return Words(tuple(telling), tuple(aliases))


@dataclass(slots=True)
class TextSearch:
    """Searches the full-text tables of one store; remembers how common words are, as long as tables hardly grow."""

    db: Database
    _frequencies: dict[tuple[str, str, int], int] = field(default_factory=dict)

    async def find(self, index: Index, words: Words, *, limit: int, pruned: bool = True) -> dict[int, float]:
        """Return the rows of a table that match best, with their relevance in (0, 1], best first, ties by row.

        A row that lacks some of the words is worth less than one that has them all.

        Args:
            index: The table.
            words: What to look for.
            limit: How many rows to return.
            pruned: Whether words that are common in the table are left out.
        """
        terms = words.terms()
        if not terms:
            return {}
        newest = 0
        if pruned:
            terms, newest = await self._telling(index, terms)
        found = _shares(await self._matches(index, " AND ".join(terms), newest, limit))
        if len(found) < limit and len(terms) > 1 and not newest:
            worth = SOME_WORDS if found else 1.0
            for row, share in _shares(await self._matches(index, " OR ".join(terms), newest, limit)).items():
                found.setdefault(row, worth * share)
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:limit])

    async def _telling(self, index: Index, terms: list[str]) -> tuple[list[str], int]:
        """Return the rarest terms, and where all are common, the row from which on to look."""
        rows = await self._count(index.rows)
        if rows <= FEW_ROWS:
            return terms, 0
        limit = max(int(COMMON_SHARE * rows), 1)
        counted = [(await self._frequency(index, term, limit, rows), term) for term in terms]
        rare = [term for count, term in sorted(counted) if count <= limit]
        return (rare[:KEPT_WORDS], 0) if rare else (terms, max(rows - NEWEST_ROWS, 1))

    async def _frequency(self, index: Index, term: str, limit: int, rows: int) -> int:
        """Return in how many rows a term stands, counted no further than one beyond the limit."""
        key = (index.table, term, rows.bit_length())
        if key not in self._frequencies:
            if len(self._frequencies) > 10_000:
                self._frequencies.clear()
            self._frequencies[key] = await self._count(
                f"SELECT count(*) FROM (SELECT 1 FROM {index.table} WHERE {index.table} MATCH :match LIMIT :limit)",  # noqa: S608 - our own names
                {"match": term, "limit": limit + 1},
            )
        return self._frequencies[key]

    async def _matches(self, index: Index, match: str, newest: int, limit: int) -> list[tuple[int, float]]:
        statement = (
            f"SELECT {index.table}.rowid, {index.score} AS score FROM {index.table} {index.join} "  # noqa: S608 - our own names
            f"WHERE {index.table} MATCH :match {f'AND {index.table}.rowid >= :newest' if newest else ''} "
            f"ORDER BY score DESC, {index.table}.rowid LIMIT :limit"
        )
        rows = await self.db.search(statement, {"match": match, "newest": newest, "limit": limit}, DEADLINE_S)
        return [(row[0], row[1]) for row in rows]

    async def _count(self, statement: str, values: Mapping[str, object] | None = None) -> int:
        rows = await self.db.search(statement, values or {}, DEADLINE_S)
        return int(rows[0][0]) if rows else 0


def _shares(found: Sequence[tuple[int, float]]) -> dict[int, float]:
    """Return scores as shares of the best; bm25 gives a word that stands in most rows nothing or less."""
    best = max((score for _, score in found), default=0.0)
    return {row: max(LEAST_RELEVANCE, score / best if best > 0 else 1.0) for row, score in found}
