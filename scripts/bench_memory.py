"""Measures the memory: searches over a large store, recording an outcome, start-up, and what pruning costs.

The text is synthetic, with words as frequent as in natural language (Zipf), and the same for the same seed.
"""

import argparse
import asyncio
import itertools
import json
import math
import random
import re
import statistics
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import loopgraph_mcp.__main__  # noqa: F401 - the collector looks as seldom as in the server
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings, bundled
from loopgraph_mcp.models import Context, Decision, Direction, Method, Outcome, OutcomeKind, Pack, Source, WhatRan
from loopgraph_mcp.runner.workspace import create_workspace
from loopgraph_mcp.store import changes, chunks, edits, experiments, methods, search
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.experiments import NewExperiment
from loopgraph_mcp.store.query import MAX_WORDS, Limits

SEED = 42
VOCABULARY = 50_000
CHUNK_WORDS = 140
METHODS, EXPERIMENTS, PAPERS, FAMILIES = 1_000, 10_000, 500, 20
BATCH = 5_000
EDITED = "muon-lr"  # of the bundled pack, whose recipe fits the bundled trainer
PRUNED = Limits()
UNPRUNED = Limits(common_share=1.0, common_rows=10**9, words=MAX_WORDS, rows=10**9, seconds=60.0)
ROOT = Path(__file__).parents[1]
LABELLED = tomllib.loads((ROOT / "tests" / "data" / "queries.toml").read_text(encoding="utf-8"))
SYLLABLES = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "x")]


@dataclass(frozen=True)
class Language:
    """Words by rank, with the running sums of their frequencies: real ones first, made-up ones after them."""

    words: list[str]
    sums: list[float]

    @classmethod
    def make(cls) -> "Language":
        """Return the words, the commonest first; each is as frequent as one over its rank."""
        rng = random.Random(SEED)
        real = Counter(word for text in real_texts() for word in read_all(text))
        made = ("".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) for _ in range(3 * VOCABULARY))
        words = dict.fromkeys(itertools.chain((word for word, _ in real.most_common()), made))
        chosen = list(itertools.islice(words, VOCABULARY))
        return cls(chosen, list(itertools.accumulate(1 / rank for rank in range(1, len(chosen) + 1))))

    def text(self, rng: random.Random, length: int) -> str:
        """Return running text."""
        return " ".join(rng.choices(self.words, cum_weights=self.sums, k=length))

    def topic(self, rng: random.Random) -> str:
        """Return a word that is neither among the ten commonest nor among the rarer half, alike from each decade."""
        return self.words[int(10 * (len(self.words) / 20) ** rng.random())]


def real_texts() -> list[str]:
    """Return the text of this project's pages, its packs and the labelled passages, for their words' frequencies."""
    pages = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "methodpacks").glob("*.toml")), ROOT / "README.md"]
    return [page.read_text(encoding="utf-8") for page in pages] + [each["text"] for each in LABELLED["passage"]]


def read_all(text: str) -> list[str]:
    """Return a text's words as they follow one another."""
    return re.findall(r"[^\W\d]{2,}", text.casefold())


def make_methods(language: Language) -> Pack:
    """Return methods of made-up names and text, each with a paper."""
    rng = random.Random(SEED + 1)
    made = []
    for number in range(METHODS):
        name = " ".join(language.topic(rng) for _ in range(3))
        paper = number % PAPERS
        made.append(
            Method(
                id=f"method-{number:04d}",
                name=name.capitalize(),
                family=f"family-{number % FAMILIES}",
                summary=language.text(rng, 12),
                description=language.text(rng, 50),
                aliases=(f"acronym{number}", *(" ".join(language.topic(rng) for _ in range(3)) for _ in range(3))),
                sources=(Source("arxiv", f"{paper:04d}.00001", f"Paper {paper}"),),
            )
        )
    return Pack("bench", "1", "bench-1", tuple(made))


def make_chunks(language: Language, count: int) -> Iterator[list[Chunk]]:
    """Yield passages in batches, spread over the papers."""
    rng = random.Random(SEED + 2)
    for start in range(0, count, BATCH):
        yield [
            Chunk(
                "paper",
                language.text(rng, CHUNK_WORDS),
                place=f"section {number % 9}",
                paper_id=f"arxiv:{rng.randrange(PAPERS):04d}.00001",
            )
            for number in range(start, min(start + BATCH, count))
        ]


def tell(words: str) -> None:
    """Report progress."""
    print(words, file=sys.stderr, flush=True)


async def add_experiments(db: Database, language: Language, context_ids: list[str], workspace: str) -> None:
    """Add experiments with edits, programs and outcomes; a few methods are tried far more often than the rest."""
    rng = random.Random(SEED + 3)
    ids = [f"method-{number:04d}" for number in range(METHODS)]
    popularity = list(itertools.accumulate(1 / (rank + 20) for rank in range(METHODS)))
    base = await edits.add_program(db, "BASE", "tree-base")
    for context_id in context_ids:
        await _run(db, context_id, None, base, (), "baseline", 1.8, 0.0)
    for number in range(EXPERIMENTS - len(context_ids)):
        program = await edits.add_program(db, f"PROGRAM {number % 6000}", f"tree-{number % 6000}")
        method_id = rng.choices(ids, cum_weights=popularity)[0]
        edit = await edits.add_edit(
            db,
            workspace=workspace,
            method_id=method_id,
            retrieval_id=None,
            base_hash=base,
            new_hash=program,
            knobs={language.topic(rng): number},
            diff=f"--- train.py\n+++ train.py\n@@ -1 +1 @@\n-{language.text(rng, 6)}\n+{language.text(rng, 6)}\n",
            now=float(number),
        )
        value = 1.8 + rng.gauss(0.01, 0.05) if rng.random() > 0.05 else None
        context_id = rng.choice(context_ids)
        await _run(db, context_id, edit, program, (method_id,), language.text(rng, 10), value, float(number), base)
        if number % 1000 == 0:
            tell(f"{number:,} experiments")
    for context_id in context_ids:  # what each edit did is worked out when it is run
        await changes.tried_changes(db, context_id, newest=EXPERIMENTS)


async def _run(
    db: Database,
    context_id: str,
    edit: str | None,
    program: str,
    method_ids: tuple[str, ...],
    description: str,
    value: float | None,
    now: float,
    base: str | None = None,
) -> None:
    new = NewExperiment(
        context_id,
        "cpu-0",
        description,
        42,
        60.0,
        30.0,
        edit_id=edit,
        base_hash=base,
        program_hash=program,
        method_ids=method_ids,
        ran=WhatRan(program, program),
        base_group_key=base,
    )
    experiment_id, _ = await experiments.add_experiment(db, new, now=now)
    kind = OutcomeKind.CRASHED if value is None else OutcomeKind.FINISHED
    await experiments.finish(db, experiment_id, Outcome(kind, value, "as told", {}), now=now)
    kept = Decision.KEEP if value is not None and value < 1.75 else Decision.DISCARD
    await experiments.add_decision(db, experiment_id, kept, made_by="loopgraph", commit=None, note="", now=now)


async def build(settings: Settings, language: Language, count: int) -> None:
    """Fill a new store; the labelled passages come in its middle."""
    async with LoopGraph.open(settings) as graph:
        await methods.import_pack(graph.db, make_methods(language), now=1.0)
        await graph.search_methods("")  # makes the rows of workspace and context
        workspace = await edits.workspace_id(graph.db, str(settings.workspace), now=1.0)
        for number in range(3):
            elsewhere = Context(workspace, f"cuda: gpu {number}", 300.0, "data", "harness", "val_bpb", Direction.LOWER)
            await edits.context_id(graph.db, elsewhere)
        rows = await graph.db.reader.execute_fetchall("SELECT id FROM context ORDER BY id")
        await add_experiments(graph.db, language, [row["id"] for row in rows], workspace)
        done, half = 0, count // 2
        for batch in make_chunks(language, count):
            await chunks.add_chunks(graph.db, batch)
            if done <= half < done + len(batch):
                for told in LABELLED["passage"]:
                    passage = Chunk("document", told["text"], place=told["place"])
                    await chunks.add_chunks(graph.db, [passage], method_id=told["method"])
            done += len(batch)
            if done % 50_000 == 0:
                tell(f"{done:,} chunks")


# ------------------------------------------------------------------------------------------------ measuring


def questions(language: Language, passages: list[str]) -> dict[str, Callable[[], str]]:
    """Return for each kind of query how to make one."""
    rng = random.Random(SEED + 4)

    def sentence() -> str:
        words = rng.choice(passages).split()
        start = rng.randrange(len(words) - 14)
        return " ".join(words[start : start + 14])

    return {
        "one word": lambda: language.topic(rng),
        "three words": lambda: " ".join(language.topic(rng) for _ in range(3)),
        "a sentence": sentence,
        "commonest words": lambda: " ".join(rng.sample(language.words[:20], rng.randint(1, 4))),
    }


async def time_calls(call: Callable[[], Awaitable[Any]], times: int) -> list[float]:
    """Return how many milliseconds each of some calls took, in order of length."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        took.append(1e3 * (time.perf_counter() - began))
    return sorted(took)


def quantiles(took: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile of ordered times."""
    return {"p50": statistics.median(took), "p99": took[round(0.99 * (len(took) - 1))]}


async def measure_start(settings: Settings) -> list[float]:
    """Return the milliseconds of opening a store that has been opened before."""

    async def start() -> None:
        async with LoopGraph.open(settings):
            pass

    await start()
    return await time_calls(start, 9)


async def measure(settings: Settings, language: Language, queries: int) -> dict[str, dict[str, float]]:
    """Time searches of each kind, pruned and not, an edit, recording an outcome, and a search right after one."""
    rng = random.Random(SEED + 5)
    figures: dict[str, dict[str, float]] = {}
    async with LoopGraph.open(settings) as graph:
        rows = await graph.db.reader.execute_fetchall("SELECT max(1, max(row) / 300) AS step FROM chunk")
        step = next(iter(rows))["step"]
        rows = await graph.db.reader.execute_fetchall(
            "SELECT text FROM chunk WHERE source_kind = 'paper' AND row % :step = 0", {"step": step}
        )
        kinds = questions(language, [row["text"] for row in rows])
        figures["first search"] = quantiles(await time_calls(lambda: graph.search_methods("warm"), 1))
        for kind, ask in kinds.items():
            figures[kind] = quantiles(await time_calls(lambda ask=ask: graph.search_methods(ask()), queries))
            tell(f"{kind}: p50 {figures[kind]['p50']:.2f} ms, p99 {figures[kind]['p99']:.2f} ms")
        figures["an edit"] = quantiles(await time_calls(lambda: graph.get_code_edit(EDITED), max(5, queries // 10)))
        for kind, ask in kinds.items():
            figures[f"{kind}, text only"] = await compare(graph.db, ask, max(5, queries // 30))

        async def record() -> None:
            await graph.record_outcome(method_id=f"method-{rng.randrange(METHODS):04d}", metric_value=rng.random() + 1)

        async def record_and_search() -> list[float]:
            await record()
            return await time_calls(lambda: graph.search_methods(kinds["three words"]()), 1)

        figures["record an outcome"] = quantiles(await time_calls(record, queries))
        after = [(await record_and_search())[0] for _ in range(max(5, queries // 10))]
        figures["search after an outcome"] = quantiles(sorted(after))
    return figures


async def compare(db: Database, ask: Callable[[], str], times: int) -> dict[str, float]:
    """Time the text search alone, pruned and not, in turns over the same queries."""
    pruned, unpruned = list[float](), list[float]()
    for _ in range(times):
        query = ask()
        for limits, took in ((PRUNED, pruned), (UNPRUNED, unpruned)):
            took.extend(await time_calls(lambda q=query, li=limits: search.find_methods(db, q, limit=50, limits=li), 1))
    before, after = statistics.median(unpruned), statistics.median(pruned)
    return {"p50": after, "unpruned p50": before, "ratio": before / after}


async def judge_relevance(settings: Settings) -> dict[str, dict[str, float]]:
    """Return recall@5 and nDCG@10 over the labelled queries, in the large store, pruned and not."""
    found: dict[str, dict[str, float]] = {}
    async with LoopGraph.open(settings) as graph:
        for name, limits in (("pruned", PRUNED), ("unpruned", UNPRUNED)):
            recalls, gains = [], []
            for asked in LABELLED["query"]:
                hits = await search.find_methods(graph.db, asked["text"], limit=10, limits=limits)
                ids = [method.id for method, _ in hits]
                recalls.append(sum(each in ids[:5] for each in asked["found"]) / len(asked["found"]))
                gains.append(ndcg(ids, asked["found"]))
            found[name] = {"recall@5": statistics.fmean(recalls), "nDCG@10": statistics.fmean(gains)}
    return found


def ndcg(ids: list[str], wanted: list[str]) -> float:
    """Return the discounted gain of a ranking over the best possible one; each wanted id counts the same."""
    gain = sum(1 / math.log2(place + 2) for place, each in enumerate(ids[:10]) if each in wanted)
    return gain / sum(1 / math.log2(place + 2) for place in range(len(wanted)))


# ------------------------------------------------------------------------------------------------ reporting


def bars(chunk_count: int, timed: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """Return which promises hold."""
    kinds = ("one word", "three words", "a sentence", "commonest words")
    worst = {name: max(timed[kind][name] for kind in kinds) for name in ("p50", "p99")}
    met = {
        "recording an outcome within 20 ms (p50)": timed["record an outcome"]["p50"] <= 20,
        "an edit within 100 ms (p50)": timed["an edit"]["p50"] <= 100,
    }
    if chunk_count <= 100_000:
        met["search p50 within 15 ms"] = worst["p50"] <= 15
        met["search p99 within 60 ms"] = worst["p99"] <= 60
    else:
        met["search p99 within 100 ms"] = worst["p99"] <= 100
    empty, full = timed["start, empty store"]["p50"], timed["start, this store"]["p50"]
    met["start-up grows by less than 10 ms"] = full - empty < 10
    return met


def show(found: Mapping[str, Any]) -> None:
    """Print tables."""
    console = Console()
    table = Table(title=f"{found['chunks']:,} chunks, {METHODS:,} methods, {EXPERIMENTS:,} experiments; ms")
    for name in ("", "p50", "p99", "unpruned p50", "ratio"):
        table.add_column(name, justify="right")
    for kind, seen in found["ms"].items():
        table.add_row(kind, *(f"{seen[name]:.2f}" if name in seen else "" for name in ("p50", "p99")),
                      *(f"{seen[name]:.1f}" if name in seen else "" for name in ("unpruned p50", "ratio")))  # fmt: skip
    console.print(table)
    for name, seen in found["relevance"].items():
        console.print(f"{name}: " + ", ".join(f"{measure} {value:.3f}" for measure, value in seen.items()))
    for bar, met in found["bars"].items():
        console.print(f"{'met' if met else 'MISSED'}: {bar}")


def settings_in(home: Path) -> Settings:
    """Return settings for a store and a workspace in a folder."""
    folder = home / "workspace"
    if not folder.exists():
        create_workspace(folder, bundled("trainer"), budget_s=30)
    return Settings(home=home, db_path=home / "loopgraph.db", workspace=folder, device="cpu")


async def run(home: Path, chunk_count: int, queries: int) -> dict[str, Any]:
    """Build the store where it is not there yet, and measure it."""
    language, settings = Language.make(), settings_in(home)
    done = home / f"built-{chunk_count}"
    if not done.exists():
        await build(settings, language, chunk_count)
        done.touch()
    with tempfile.TemporaryDirectory() as empty:
        start = {
            "start, empty store": quantiles(await measure_start(settings_in(Path(empty)))),
            "start, this store": quantiles(await measure_start(settings)),
        }
    relevance = await judge_relevance(settings)
    timed = {**start, **await measure(settings, language, queries)}
    return {"chunks": chunk_count, "ms": timed, "relevance": relevance, "bars": bars(chunk_count, timed)}


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench memory", description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000, help="passages in the store (%(default)d)")
    parser.add_argument("--queries", type=int, default=300, help="searches of each kind (%(default)d)")
    parser.add_argument("--keep", type=Path, help="folder for the store: made there, or found there from before")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = (options.keep or Path(folder)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(run(home, options.chunks, options.queries))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
