"""Packs for others: methods with what came of them here, written and checked."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from loopgraph_mcp import edits, lookups, recipes, wording
from loopgraph_mcp.answers import CheckedMethod, ExportedMethod, PackCheckAnswer, PackExportAnswer
from loopgraph_mcp.errors import PackError
from loopgraph_mcp.evidence import Ledger, Trial
from loopgraph_mcp.models import Applied, Method, Present, SharedOutcome, VerdictKind
from loopgraph_mcp.plain_files import read_plain
from loopgraph_mcp.quoting import plain_line
from loopgraph_mcp.sources.pack_files import write_pack
from loopgraph_mcp.sources.packs import read_pack
from loopgraph_mcp.store import learned, methods
from loopgraph_mcp.store.database import Database


async def export_pack(
    db: Database, ledger: Ledger, name: str, folder: Path, *, method_ids: Sequence[str], but_pack: str, now: float
) -> PackExportAnswer:
    """Write methods with their recipes and outcomes for others: those chosen, or all learned or local ones.

    A learned recipe goes out as the method's recipe: who has the pack that the method came from has its own already.

    Raises:
        NotFoundError: No such method.
        PackError: There is nothing to export, or it cannot be written.
    """
    for each in await methods.all_methods(db):
        await recipes.learn(db, ledger, [each.id], now=now)
    chosen = {(await lookups.the_method(db, each)).id for each in method_ids}
    chosen = chosen or (await learned.methods_with_recipe(db) | await methods.ids_beside(db, but_pack))
    if not chosen:
        raise PackError("nothing was learned here and no method is local; name methods with --method")
    await ledger.follow()
    found, remarks, told = list[Method](), dict[str, str](), list[ExportedMethod]()
    for method_id in sorted(chosen):
        method = await lookups.the_method(db, method_id)
        known = await learned.recipes_of(db, method_id)
        outcomes = _outcomes([each for each in ledger.record(method_id, None).trials if each.origin.is_evidence])
        if known:
            method = recipes.as_method(method, known[0])
            remarks[method_id] = (
                f"Recipe learned from {known[0].experiment_id}; its parent has the hash {known[0].base_hash[:12]}."
            )
        if method.recipe is not None:
            beside = tuple(each for each in method.recipe.conflicts if each in chosen)
            method = replace(method, recipe=replace(method.recipe, conflicts=beside))
        found.append(_for_others(replace(method, outcomes=(*method.outcomes, *outcomes))))
        kind = "learned" if known else "none" if not method.has_edit else "own"
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
        next_step=f"Read what goes out, set version and license in pack.toml, then: loopgraph pack check {folder}",
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
        words = plain_line(wording.context(trial.context), limit=200)
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
        next_step="Look at the reasons, or give the files it is meant for with --against."
        if nowhere
        else "It is valid.",
    )


def _checked(method: Method, texts: Mapping[str, str]) -> CheckedMethod:
    fits, reasons = dict[str, str](), dict[str, str]()
    for name, text in texts.items() if method.recipe is not None else ():
        made = edits.apply_method(method, text, {})
        if isinstance(made, Applied | Present):
            fits[name] = type(made).__name__.lower()
        else:
            fits[name] = "refused"
            reasons[name] = f"looked for {made.looked_for}: {made.reason}"
    return CheckedMethod(method.id, fits, reasons)
