"""Guidance where no recipe fits: the method, what is written of it, where it belongs here, and the nearest recipe.

It is never a diff: what the change is, the agent decides from the sources.
"""

import asyncio
from collections.abc import Iterator, Sequence

from loopgraph_mcp.api.answers import Guidance, MappedEntry, Passage
from loopgraph_mcp.code import apply, outline, outline_fit
from loopgraph_mcp.code.outline import CodeMap, Entry, Kind
from loopgraph_mcp.models import Method, Presence, RecipeOp
from loopgraph_mcp.store import chunks, methods, papers
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.text import plain_line

_MAX_PASSAGES = 3
_MAX_REPORTED = 3
_PASSAGE_CHARS = 600
_DESCRIPTION_CHARS = 1_200
_MAX_PLACES = 6
_PLACES = frozenset({Kind.KNOB, Kind.FIELD, Kind.FLAG, Kind.LOCAL, Kind.CLASS, Kind.FUNCTION, Kind.GROUP, Kind.LOOP})


async def guide(db: Database, method: Method, program: str, *, learned: Sequence[str] = ()) -> Guidance:
    """Return what helps to put a method into a program by hand; `learned` says why learned recipes do not fit."""
    made = await asyncio.to_thread(outline.map_text, program)
    others = [each for each in await methods.all_methods(db) if each.id != method.id and each.recipe is not None]
    near = _nearest(method, others)
    places = _places(made, method, near)
    passages = await chunks.passages_of(db, method.id, limit=_MAX_PASSAGES)
    return Guidance(
        name=method.name,
        description=plain_line(method.description, limit=_DESCRIPTION_CHARS),
        sources=[f"{each.kind}:{each.ref} {each.title}" for each in method.sources],
        passages=[
            Passage(each.place, plain_line(each.text, limit=_PASSAGE_CHARS), each.paper_id or each.source_kind)
            for each in passages
        ],
        reported=[plain_line(each) for each in await papers.figures_of(db, method.id, limit=_MAX_REPORTED)],
        places=[MappedEntry(each.kind.value, each.name, each.line, each.end_line, each.text) for each in places],
        nearest_recipe="" if near is None else near.id,
        nearest_recipe_note="" if near is None else _told(near, await asyncio.to_thread(apply.detect, near, program)),
        learned=list(learned),
    )


def _nearest(method: Method, others: Sequence[Method]) -> Method | None:
    """Return the method with a recipe that is most like another: of its family, then by the words they share."""
    own = set(_words(method))
    scored = [
        ((each.family == method.family) + len(own & (theirs := set(_words(each)))) / (1 + len(own | theirs)), each)
        for each in others
    ]
    alike = [pair for pair in scored if pair[0] >= 1]
    return max(alike, key=lambda pair: (pair[0], pair[1].id), default=(0.0, None))[1]


def _words(method: Method) -> list[str]:
    return outline_fit.words(" ".join([method.name, method.summary, *method.aliases]))


def _told(near: Method, presence: Presence) -> str:
    ops: tuple[RecipeOp, ...] = near.recipe.ops if near.recipe else ()
    touched = dict.fromkeys(_place_of(op) for op in ops)
    here = {Presence.PRESENT: "in the file already", Presence.PARTIAL: "partly in the file"}.get(
        presence, "not in the file"
    )
    return f"{near.name}: changes {', '.join(list(touched)[:6])}; {here}"


def _place_of(op: RecipeOp) -> str:
    scope, name = getattr(op, "scope", ""), getattr(op, "name", "")
    return ".".join(part for part in (scope, name) if part) or "the module"


def _places(made: CodeMap, method: Method, near: Method | None) -> list[Entry]:
    """Return where in a program a method belongs: what its own recipe looks for, then what its words touch."""
    by_name: dict[str, Entry] = {}
    for entry in made.entries:
        if entry.kind in _PLACES:
            by_name.setdefault(entry.name, entry)
    own = list(_looked_for(method, by_name))
    asked = " ".join([method.name, *method.aliases, method.summary])
    touched = [entry for entry in outline_fit.relevant([made], asked) if entry.kind in _PLACES]
    beside = [] if near is None else list(_looked_for(near, by_name))
    return list(dict.fromkeys([*own, *touched[: _MAX_PLACES - 1], *beside]))[:_MAX_PLACES]


def _looked_for(method: Method, by_name: dict[str, Entry]) -> Iterator[Entry]:
    for op in method.recipe.ops if method.recipe else ():
        scope = getattr(op, "scope", "")
        for name in (_place_of(op), scope, scope.rpartition(".")[0]):
            if name in by_name:
                yield by_name[name]
                break
