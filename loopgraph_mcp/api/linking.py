"""Recognises known methods in passages: which tell of which, in what words, and the figures that they report."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence

from loopgraph_mcp.models import Method
from loopgraph_mcp.ranking.mentions import methods_described, with_names
from loopgraph_mcp.ranking.reported import read_figures
from loopgraph_mcp.store import methods, papers
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.papers import Mention

MOST_PASSAGES = 5  # of one document for one method
_TOLD_IN = frozenset({"paper", "document"})
_MOST_CHUNKS = 200


def find_mentions(chunks: Iterable[Chunk], known: Sequence[Method]) -> list[Mention]:
    """Return which passages of a document tell of which methods: of each method the few that tell most.

    Code names too much in passing to tell of anything. A figure belongs to a method only where the passage tells of no
    other.
    """
    found, names = list[Mention](), with_names(known)
    for chunk in dict.fromkeys(chunks):
        if chunk.source_kind not in _TOLD_IN:
            continue
        told = methods_described(chunk.text, names, place=chunk.place)
        figures = tuple(read_figures(chunk.text)) if len(told) == 1 else ()
        titled = methods_described(chunk.place, names)
        found += [Mention(each, chunk.id, words, figures, titled=each in titled) for each, words in told.items()]
    found.sort(key=lambda each: (not each.titled, not each.figures))
    kept, seen = list[Mention](), Counter[str]()
    for each in found:
        seen[each.method_id] += 1
        if seen[each.method_id] <= MOST_PASSAGES:
            kept.append(each)
    return kept


async def link_earlier(db: Database, method: Method) -> None:
    """Link what was read before a method was known."""
    known = await methods.all_methods(db)
    for chunks in (await papers.chunks_saying(db, method, limit=_MOST_CHUNKS)).values():
        found = await asyncio.to_thread(find_mentions, chunks, known)
        mentions = [each for each in found if each.method_id == method.id]
        await papers.add_mentions(db, mentions)
