"""The verbs add_method, show_method and retire_method: methods that were read in passages, with what they cite."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from loopgraph_mcp.api import explain, linking, lookups
from loopgraph_mcp.api.answers import MethodAnswer
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code import apply
from loopgraph_mcp.errors import LoopGraphError, NotFoundError, PackError
from loopgraph_mcp.models import Advice, Applied, Method, NextStep, Present, Source
from loopgraph_mcp.ranking.reported import numbers
from loopgraph_mcp.store import methods, papers
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.papers import Mention
from loopgraph_mcp.text import plain_line

_INGEST = NextStep(Advice.INGEST, "ingest", {"source": "…"})
_OURS = {"sources": "they are the papers of the passages", "outcomes": "they are what experiments here measure"}


async def add_method(
    state: State,
    method_id: str,
    chunk_ids: Sequence[str],
    definition: Mapping[str, Any] | None,
    *,
    workspace: str | None,
    caller: Caller | None,
) -> MethodAnswer:
    """Register a method read in passages, or link the passages to a known one where there is no definition.

    Raises:
        NotFoundError: No such passage, or no such method to link them to.
        PackError: The definition does not follow the format, says what no cited passage says, or is another's method.
    """
    db = state.db
    cited = await _cited(db, chunk_ids)
    if definition is None:
        method = await lookups.the_method(db, method_id)
        holder = await methods.pack_of(db, method.id)
        await papers.add_mentions(db, [Mention(method.id, each, "") for each in cited])
        return _answer(method, "linked", holder or "", list(cited), fits="", warnings=[])
    holder = await methods.pack_of(db, method_id)
    if holder not in {None, methods.LOCAL}:
        raise PackError(
            f"{method_id} is a method of the pack {holder!r}: leave the definition out to link the passages to it, or "
            "take another id"
        )
    titles = await papers.titles(db, [each.paper_id for each in cited.values() if each.paper_id])
    method = await asyncio.to_thread(_read, method_id, definition, cited, titles)
    _check_names(method, await methods.all_methods(db))
    added_by = "a person" if caller is None else caller.token or caller.client
    await methods.put_local(db, method, list(cited), added_by=added_by, now=state.clock())
    await linking.link_earlier(db, method)
    fits, warnings = await _try(state, method, workspace)
    return _answer(method, "amended" if holder else "added", methods.LOCAL, list(cited), fits=fits, warnings=warnings)


async def show_method(state: State, method_id: str) -> MethodAnswer:
    """Return what is known of one method.

    Raises:
        NotFoundError: There is none.
    """
    db = state.db
    method = await lookups.the_method(db, method_id)
    holder = await methods.pack_of(db, method.id)
    return _answer(
        method,
        "known" if holder else "retired",
        holder or "",
        await papers.cited_by(db, method.id),
        reported=[plain_line(each) for each in await papers.figures_of(db, method.id, limit=10)],
        versions=[
            f"{datetime.fromtimestamp(each.created_at, UTC).date().isoformat()} by {plain_line(each.added_by)}"
            for each in await methods.versions_of(db, method.id)
        ],
    )


async def retire_method(state: State, method_id: str) -> MethodAnswer:
    """Take a registered method out of searches; its experiments stay, and registering it again brings it back.

    Raises:
        NotFoundError: There is none.
        PackError: A pack holds it.
    """
    db = state.db
    method = await lookups.the_method(db, method_id)
    holder = await methods.pack_of(db, method.id)
    if holder not in {None, methods.LOCAL}:
        raise PackError(f"{method.id} is a method of the pack {holder!r}: only what was registered here is retired")
    if holder is not None:
        await methods.retire_local(db, method.id, now=state.clock())
    return _answer(method, "retired", "", await papers.cited_by(db, method.id))


async def _cited(db: Database, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
    if not chunk_ids:
        raise PackError("cite at least one passage by its chunk id", next_step=_INGEST)
    found = await papers.chunks_by_id(db, chunk_ids)
    if missing := [each for each in dict.fromkeys(chunk_ids) if each not in found]:
        raise NotFoundError(f"no passage {missing[0][:80]!r}", next_step=_INGEST)
    return {each: found[each] for each in dict.fromkeys(chunk_ids)}


def _read(
    method_id: str, definition: Mapping[str, Any], cited: Mapping[str, Chunk], titles: Mapping[str, str]
) -> Method:
    """Return the method as defined, with its sources; what it says was published must stand in a cited passage."""
    from loopgraph_mcp.ingest.packs import read_method  # noqa: PLC0415 - what reads packs is slow to import

    if own := sorted(set(definition) & set(_OURS)):
        raise PackError(f"{own[0]}: leave it out; {_OURS[own[0]]}")
    if definition.get("id", method_id) != method_id:
        raise PackError(f"id: {str(definition['id'])[:80]!r} is not {method_id!r}")
    published = definition.get("published", [])
    told = {**definition, "id": method_id}
    if isinstance(published, list):
        told["published"] = [
            {**each, "source": _paper_saying(each, cited)} if isinstance(each, Mapping) else each for each in published
        ]
    papers_cited = dict.fromkeys(each.paper_id for each in cited.values() if each.paper_id)
    sources = tuple(
        Source(kind, ref, plain_line(titles.get(each) or each, limit=200))
        for each in papers_cited
        for kind, _, ref in [each.partition(":")]
    )
    return replace(read_method(told), sources=sources)


def _paper_saying(published: Mapping[str, Any], cited: Mapping[str, Chunk]) -> str:
    """Return the paper whose cited passage holds every number of a claim."""
    told = numbers(str(published.get("claim", "")))
    if published.get("gain") is not None:
        told |= numbers(str(published["gain"]))
    for chunk in cited.values():
        if told <= numbers(chunk.text):
            return chunk.paper_id or chunk.source_kind
    every = set[float]().union(*(numbers(chunk.text) for chunk in cited.values()))
    missing = sorted(told - every)
    what = f"{missing[0]:g} stands in" if missing else "all its numbers stand together in"
    claim = str(published.get("claim", ""))[:120]
    raise PackError(f"published: of {claim!r}, {what} no cited passage; cite the one that it is from")


def _check_names(method: Method, known: Sequence[Method]) -> None:
    """Refuse a method that another already is, by name."""
    taken = {
        name.casefold(): each.id
        for each in known
        if each.id != method.id
        for name in (each.id, each.name, *each.aliases)
    }
    for name in (method.id, method.name, *method.aliases):
        if (other := taken.get(name.casefold())) is not None:
            raise PackError(
                f"{name!r} is a name of {other}; leave the name out if this is another method",
                next_step=NextStep(Advice.LINK, "add_method", {"method_id": other}),
            )


async def _try(state: State, method: Method, workspace: str | None) -> tuple[str, list[str]]:
    """Return how a recipe fits the workspace's present file, in a word, and what to mend."""
    if method.recipe is None:
        return "no recipe", []
    try:
        where = await state.here.workspace(workspace)
        program = await asyncio.to_thread(where.read_program)
        made = await asyncio.to_thread(apply.apply_method, method, program, {})
    except LoopGraphError as error:
        return "untried", [f"its recipe was tried on no file: {error}"]
    match made:
        case Applied():
            return "applied", []
        case Present():
            return "present", [f"{where.editable}: {made.reason}"]
        case _:
            near = f"; nearest: {made.nearest[0]}" if made.nearest else ""
            return "refused", [f"its recipe does not fit {where.editable}: {made.looked_for}: {made.reason}{near}"]


def _answer(
    method: Method,
    status: str,
    pack: str,
    chunk_ids: Sequence[str],
    *,
    fits: str = "",
    warnings: Sequence[str] = (),
    reported: Sequence[str] = (),
    versions: Sequence[str] = (),
) -> MethodAnswer:
    return MethodAnswer(
        method_id=method.id,
        status=status,
        pack=pack,
        name=method.name,
        family=method.family,
        summary=method.summary,
        description=method.description,
        aliases=list(method.aliases),
        sources=[f"{each.kind}:{each.ref} {each.title}" for each in method.sources],
        published=[
            *(f"{each.claim} [{each.setting}] ({each.source})" for each in method.published),
            *map(explain.shared, method.outcomes),
        ],
        reported=list(reported),
        chunk_ids=list(chunk_ids),
        recipe=fits or ("ready" if method.recipe else "no recipe"),
        versions=list(versions),
        warnings=list(warnings),
        next_step=explain.after_method(method.id, status, amend=bool(warnings)),
    )
