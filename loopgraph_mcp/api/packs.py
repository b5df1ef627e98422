"""The verb export_pack, and packs from elsewhere: written with what came of them here, checked, installed."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from statistics import fmean
from urllib.parse import urlsplit

from loopgraph_mcp.api import explain, learned_recipes, lookups
from loopgraph_mcp.api.answers import CheckedMethod, ExportedMethod, IngestAnswer, PackCheckAnswer, PackExportAnswer
from loopgraph_mcp.api.evidence import Records, Trial
from loopgraph_mcp.api.state import State
from loopgraph_mcp.code import apply
from loopgraph_mcp.errors import PackError
from loopgraph_mcp.ingest import pack_archives
from loopgraph_mcp.ingest.pack_archives import Checked
from loopgraph_mcp.ingest.pack_files import write_pack
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Advice, Applied, Method, NextStep, Present, SharedOutcome, VerdictKind
from loopgraph_mcp.runner.plain_files import read_plain
from loopgraph_mcp.store import learned, methods
from loopgraph_mcp.text import plain_line


async def export_pack(state: State, name: str, folder: Path, *, method_ids: Sequence[str]) -> PackExportAnswer:
    """Write methods with their recipes and outcomes for others: those chosen, or all learned or local ones.

    A learned recipe goes out as the method's recipe: who has the pack that the method came from has its own already.

    Raises:
        NotFoundError: No such method.
        PackError: There is nothing to export, or it cannot be written.
    """
    db = state.db
    own = await asyncio.to_thread(read_pack, state.settings.packs)
    await learned_recipes.learn(state, [each.id for each in await methods.all_methods(db)])
    chosen = {(await lookups.the_method(db, each)).id for each in method_ids}
    chosen = chosen or (await learned.methods_with_recipe(db) | await methods.ids_beside(db, own.name))
    if not chosen:
        raise PackError("nothing was learned here and no method is local; name methods with --method")
    records = Records(await state.outcomes(), None)
    found, remarks, told = list[Method](), dict[str, str](), list[ExportedMethod]()
    for method_id in sorted(chosen):
        method = await lookups.the_method(db, method_id)
        known = await learned.recipes_of(db, method_id)
        outcomes = _outcomes([each for each in records.of(method_id).trials if each.origin.is_evidence])
        if known:
            method = learned_recipes.as_method(method, known[0])
            remarks[method_id] = (
                f"Recipe learned from {known[0].experiment_id}; its parent has the hash {known[0].base_hash[:12]}."
            )
        if method.recipe is not None:
            beside = tuple(each for each in method.recipe.conflicts if each in chosen)
            method = replace(method, recipe=replace(method.recipe, conflicts=beside))
        found.append(_for_others(replace(method, outcomes=(*method.outcomes, *outcomes))))
        kind = "learned" if known else "none" if method.recipe is None else "own"
        tries, wins = sum(each.tries for each in outcomes), sum(each.wins for each in outcomes)
        told.append(ExportedMethod(method_id, kind, tries, wins))
    pack = await asyncio.to_thread(
        write_pack, folder, name, found, version="0.1.0", licence="Apache-2.0", remarks=remarks
    )
    return PackExportAnswer(
        name=pack.name,
        folder=str(folder),
        content_hash=pack.content_hash,
        methods=told,
        next_step=NextStep(Advice.CHECK_PACK, about={"folder": str(folder)}),
    )


def _for_others(method: Method) -> Method:
    """Return a method without the paths of documents on this machine."""
    published = [
        replace(each, source="a local document") if each.source.startswith("local:") else each
        for each in method.published
    ]
    return replace(
        method,
        sources=tuple(each for each in method.sources if each.kind != "local"),
        published=tuple(published),
    )


def _outcomes(trials: Sequence[Trial]) -> list[SharedOutcome]:
    """Return what came of a method, for each context in words: no path, no prompt, no description."""
    by_context: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        words = plain_line(explain.context(trial.context), limit=200)
        by_context.setdefault((words, plain_line(trial.context.metric, limit=200)), []).append(trial)
    shared = []
    for (words, metric), group in sorted(by_context.items()):
        gains = [
            (trial.gain, trial.gain / trial.verdict.noise_floor, trial.observation.n_child)
            for trial in group
            if trial.gain is not None and trial.observation is not None and trial.verdict is not None
        ]
        runs = [each for _, _, each in gains]
        shared.append(
            SharedOutcome(
                context=words,
                metric=metric,
                tries=len(group),
                wins=sum(trial.kind is VerdictKind.WIN for trial in group),
                crashes=sum(trial.kind is VerdictKind.CRASH for trial in group),
                mean_gain=round(fmean([gain for gain, _, _ in gains], runs), 6) if gains else None,
                gain_sigmas=round(fmean([sigmas for _, sigmas, _ in gains], runs), 3) if gains else None,
                runs=sum(runs) or None,
                device=group[0].context.device_class,
                budget_s=group[0].context.budget_s,
            )
        )
    return shared


async def install_archive(state: State, source: str, data: bytes, *, sha256: str | None) -> IngestAnswer:
    """Install the pack that an archive holds.

    Raises:
        PackError: It holds none, or one that is refused.
        SourceError: The archive is damaged, over a limit, or holds a path that leads out of it.
    """
    opened = pack_archives.opened(data, name=PurePosixPath(urlsplit(source).path).name or "pack")
    with ExitStack() as stack:
        checked = await asyncio.to_thread(stack.enter_context, opened)
        return await install_pack(state, source, checked, sha256=sha256)


async def install_pack(state: State, source: str, checked: Checked, *, sha256: str | None) -> IngestAnswer:
    """Install a pack and bring the store's methods up to it.

    Args:
        state: Its settings say where packs are kept, and which one is loaded at every start.
        source: What the caller named.
        checked: The pack.
        sha256: What its content must hash to, if that is pinned.

    Raises:
        PackError: It is not what was pinned, has changed without a new version, or holds another pack's method.
    """
    db, settings, pack = state.db, state.settings, checked.pack
    pack_archives.check_pin(pack, sha256)
    if pack.name == (await asyncio.to_thread(read_pack, settings.packs)).name:
        raise PackError(f"pack {pack.name}: loaded at every start from {settings.packs}; rename yours")
    held = await methods.held_pack(db, pack.name)
    if held is not None and held[0] == pack.version and held[1] != pack.content_hash:
        raise PackError(
            f"pack {pack.name} {pack.version} is installed with another content (sha256 {held[1]}); "
            "an update needs a new version"
        )
    if taken := await methods.owned_by_others(db, pack):
        raise PackError(f"pack {pack.name}: its method {taken[0][0]!r} belongs to pack {taken[0][1]}; rename it")
    folder = await asyncio.to_thread(pack_archives.install, checked, settings.packs_dir)
    changed = await methods.import_pack(db, pack, now=state.clock())
    return IngestAnswer(
        source=source,
        kind="pack",
        id=pack.name,
        version=pack.version,
        title=pack.name,
        sha256=pack.content_hash,
        fetched_from=str(folder),
        documents=0,
        added=len(pack.methods) if changed else 0,
        known=0 if changed else len(pack.methods),
        methods=[each.id for each in pack.methods],
        next_step=NextStep(Advice.FIND_METHODS, "search_methods"),
    )


def check_pack(folder: Path, programs: Mapping[str, Path]) -> PackCheckAnswer:
    """Check a pack against the format, and each of its recipes against some programs.

    Raises:
        PackError: It does not follow the format, or a program cannot be read.
    """
    pack = read_pack(folder)
    texts = {}
    for name, path in programs.items():
        try:
            texts[name] = read_plain(path).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PackError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    checked = [_checked(method, texts) for method in pack.methods]
    nowhere = [each.method_id for each in checked if each.fits and set(each.fits.values()) == {"refused"}]
    return PackCheckAnswer(
        name=pack.name,
        version=pack.version,
        content_hash=pack.content_hash,
        methods=checked,
        fits_nowhere=nowhere,
        next_step=NextStep(Advice.READ_REASONS if nowhere else Advice.NOTHING),
    )


def _checked(method: Method, texts: Mapping[str, str]) -> CheckedMethod:
    fits, reasons = dict[str, str](), dict[str, str]()
    for name, text in texts.items() if method.recipe is not None else ():
        made = apply.apply_method(method, text, {})
        if isinstance(made, Applied | Present):
            fits[name] = type(made).__name__.lower()
        else:
            fits[name] = "refused"
            reasons[name] = f"looked for {made.looked_for}: {made.reason}"
    return CheckedMethod(method.id, fits, reasons)
