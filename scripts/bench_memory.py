"""Measures the memory on this machine: searches over a large store, recording an outcome, start-up, and relevance.

The store is made of random words whose frequencies follow Zipf's law, the same for the same numbers.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopgraph_mcp.config import Settings
from loopgraph_mcp.knobs import FAMILIES as KNOBS
from loopgraph_mcp.loopgraph import LoopGraph
from loopgraph_mcp.models import Context, Decision, Direction, Method, Move, OutcomeKind, Pack
from loopgraph_mcp.sources.packs import FAMILIES
from loopgraph_mcp.store import edits, imports, methods
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.search import CHUNKS, TextSearch, query_words

WORDS = 20_000
CHUNK_WORDS = 140
LABELLED = Path(__file__).parents[1] / "tests" / "data" / "queries.toml"
BARS = {"p50_ms": 5.0, "p99_ms": 25.0, "million_p99_ms": 100.0, "record_ms": 5.0}


def vocabulary() -> tuple[list[str], list[float]]:
    """Return made-up words, the commonest first, with the cumulative weights of Zipf's law."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    chance = random.Random(7)
    words = ["".join(chance.choices(letters, k=chance.randint(4, 10))) for _ in range(WORDS)]
    weights, total = [], 0.0
    for rank in range(1, WORDS + 1):
        total += 1 / rank
        weights.append(total)
    return words, weights


def tell(message: str) -> None:
    """Say how far it is, on stderr."""
    print(message, file=sys.stderr, flush=True)


async def fill(path: Path, *, chunks: int, experiments: int, known: int) -> None:
    """Make a store of methods, experiments and chunks."""
    words, weights = vocabulary()
    chance = random.Random(11)

    def text(count: int) -> str:
        return " ".join(chance.choices(words, cum_weights=weights, k=count))

    knobs = sorted(KNOBS)
    made = tuple(
        Method(
            f"m{n}",
            text(3),
            chance.choice(FAMILIES),
            text(12),
            text(60),
            aliases=(text(3), text(2)),
            moves=(Move(chance.choice(knobs), chance.choice((-1, 1))),),
        )
        for n in range(known)
    )
    async with Database.open(path) as db:
        await methods.import_pack(db, Pack("bench", "1", "0" * 64, made), now=0.0)
        workspace = await edits.workspace_id(db, "bench", now=0.0)
        context = await edits.context_id(
            db, Context(workspace, "cuda (bench)", 300.0, "data", "harness", "val_bpb", Direction.LOWER)
        )
        rows = [
            imports.ImportedRow(
                key=f"bench:{n}",
                context_id=context,
                description=text(8),
                kind=OutcomeKind.FINISHED,
                metric_value=1.0 + chance.gauss(0, 0.002),
                reason="bench",
                decision=Decision.KEEP if chance.random() < 0.17 else Decision.DISCARD,
                commit=None,
                method_ids=(f"m{min(int(chance.expovariate(8) * known), known - 1)}",),
            )
            for n in range(experiments)
        ]
        await imports.add_rows(db, rows, now=1.0)
        tell(f"{experiments:,} experiments")
        for start in range(0, chunks, 20_000):
            several = [(start + n, text(CHUNK_WORDS)) for n in range(min(20_000, chunks - start))]
            async with db.transaction() as conn:
                await conn.executemany(
                    "INSERT INTO chunk (id, kind, place, licence, text, identifiers) VALUES (?, 'paper', '', '', ?, '')",
                    [(f"c{n}", content) for n, content in several],
                )
                await conn.executemany(
                    "INSERT OR IGNORE INTO method_chunk (method_id, chunk_row) VALUES (?, ?)",
                    [(f"m{n % known}", n + 1) for n, _ in several if n % 10 == 0],
                )
            tell(f"{start + len(several):,} chunks")


def queries(kind: str, count: int) -> list[str]:
    """Return queries of one kind: one word, three, a whole sentence, or the commonest words there are."""
    words, weights = vocabulary()
    chance = random.Random(kind)
    if kind == "commonest words":
        return [" ".join(chance.sample(words[:12], 3)) for _ in range(count)]
    size = {"one word": 1, "three words": 3, "a sentence": 14}[kind]
    return [" ".join(chance.choices(words, cum_weights=weights, k=size)) for _ in range(count)]


async def timed(calls: int, call: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    """Return the median and the 99th percentile of calls, in ms, after some to warm up."""
    times = []
    for n in range(calls + 5):
        began = time.perf_counter()
        await call(n)
        times.append(1000 * (time.perf_counter() - began))
    times = sorted(times[5:])
    return {"p50_ms": statistics.median(times), "p99_ms": times[min(int(0.99 * len(times)), len(times) - 1)]}


async def measure(settings: Settings, calls: int) -> dict[str, Any]:
    """Measure one store."""
    began = time.perf_counter()
    async with LoopGraph.open(settings) as graph:
        found: dict[str, Any] = {"start_up_ms": 1000 * (time.perf_counter() - began)}
        began = time.perf_counter()
        await graph.search_methods("learning rate")
        found["first_search_ms"] = 1000 * (time.perf_counter() - began)
        found["searches"] = {}
        for kind in ("one word", "three words", "a sentence", "commonest words"):
            asked = queries(kind, calls + 5)
            found["searches"][kind] = await timed(calls, lambda n, asked=asked: graph.search_methods(asked[n]))
            tell(f"{kind}: {found['searches'][kind]}")
        found["searches"]["no query"] = await timed(calls, lambda _: graph.search_methods())
        found["record"] = await timed(
            calls, lambda n: graph.record_outcome(method_id=f"m{n}", metric_value=1.0, description="bench")
        )
        text = TextSearch(graph.db)
        asked = queries("a sentence", calls + 5)
        pruned = await timed(calls, lambda n: text.find(CHUNKS, query_words(asked[n]), limit=50))
        few = max(calls // 10, 3)
        whole = await timed(few, lambda n: text.find(CHUNKS, query_words(asked[n]), limit=50, pruned=False))
        found["pruning"] = {"pruned": pruned, "unpruned": whole, "ratio": whole["p50_ms"] / pruned["p50_ms"]}
    return found


def score(wanted: list[str], got: list[str]) -> tuple[float, float]:
    """Return recall at 5 and nDCG at 10 of what a query found."""
    recall = len(set(wanted) & set(got[:5])) / min(len(wanted), 5)
    gain = sum(1 / (2 + place).bit_length() for place, each in enumerate(got[:10]) if each in wanted)
    best = sum(1 / (2 + place).bit_length() for place in range(min(len(wanted), 10)))
    return recall, gain / best


async def relevance(home: Path) -> dict[str, Any]:
    """Measure what labelled queries find in the packs and in the passages labelled with them, pruned and not."""
    labelled = tomllib.loads(LABELLED.read_text(encoding="utf-8"))
    settings = Settings(home=home, db_path=home / "labelled.db", workspace=home)
    words, weights = vocabulary()
    chance = random.Random(3)
    async with LoopGraph.open(settings) as graph:
        async with graph.db.transaction() as conn:  # the passages among six thousand others, so that words are common
            filler = [(f"f{n}", " ".join(chance.choices(words, cum_weights=weights, k=60))) for n in range(6_000)]
            common = "the model is trained with a learning rate and attention over layers for steps of training"
            filler = [(name, f"{content} {common if n % 3 else ''}") for n, (name, content) in enumerate(filler)]
            passages = [(each["id"], each["text"]) for each in labelled["passage"]]
            await conn.executemany(
                "INSERT INTO chunk (id, kind, place, licence, text, identifiers) VALUES (?, 'paper', '', '', ?, '')",
                filler + passages,
            )
        text = TextSearch(graph.db)
        names = {row[0]: row[1] for row in await graph.db.reader.execute_fetchall("SELECT row, id FROM chunk")}
        found: dict[str, list[tuple[float, float]]] = {"methods": [], "pruned": [], "unpruned": []}
        for query in labelled["query"]:
            if "methods" in query:
                got = [method.id for method, _ in await methods.find_methods(text, query["text"], limit=10)]
                found["methods"].append(score(query["methods"], got))
            if "passages" in query:
                for kind, pruned in (("pruned", True), ("unpruned", False)):
                    rows = await text.find(CHUNKS, query_words(query["text"]), limit=10, pruned=pruned)
                    found[kind].append(score(query["passages"], [names[row] for row in rows]))
    return {
        kind: {
            "queries": len(scores),
            "recall_at_5": statistics.fmean(recall for recall, _ in scores),
            "ndcg_at_10": statistics.fmean(ndcg for _, ndcg in scores),
        }
        for kind, scores in found.items()
        if scores
    }


def report(found: dict[str, Any]) -> None:
    """Print the figures, and which bars were met."""
    chunks, full = found["chunks"], found["full"]
    bar = BARS["million_p99_ms"] if chunks > 100_000 else BARS["p99_ms"]
    print(f"{found['methods']:,} methods, {found['experiments']:,} experiments, {chunks:,} chunks\n")
    print(f"{'search':<18}{'p50 ms':>9}{'p99 ms':>9}")
    for kind, times in full["searches"].items():
        met = times["p99_ms"] <= bar and (chunks > 100_000 or times["p50_ms"] <= BARS["p50_ms"])
        print(f"{kind:<18}{times['p50_ms']:>9.1f}{times['p99_ms']:>9.1f}  {'met' if met else 'NOT MET'}")
    record = full["record"]
    met = "met" if record["p50_ms"] <= BARS["record_ms"] else "NOT MET"
    print(f"{'record an outcome':<18}{record['p50_ms']:>9.1f}{record['p99_ms']:>9.1f}  {met}")
    print(f"start-up: {found['empty_start_up_ms']:.0f} ms with an empty store, {full['start_up_ms']:.0f} with this one")
    print(f"first search: {full['first_search_ms']:.0f} ms (the runs of the whole store are read once)")
    print(f"unpruned over pruned, whole sentences over the chunks: {full['pruning']['ratio']:.1f} times as long")
    for kind, scores in found["relevance"].items():
        told = f"recall@5 {scores['recall_at_5']:.3f}, nDCG@10 {scores['ndcg_at_10']:.3f}"
        print(f"{kind}: {told} ({scores['queries']} queries)")


async def run(options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Make the stores and measure them."""
    workspace = home / "workspace"
    workspace.mkdir()
    (workspace / "train.py").write_text("import prepare\n", encoding="utf-8")
    (workspace / "prepare.py").write_text("TIME_BUDGET = 300\n", encoding="utf-8")
    empty = Settings(home=home, db_path=home / "empty.db", workspace=workspace, device="cpu")
    async with LoopGraph.open(empty):
        pass
    began = time.perf_counter()
    async with LoopGraph.open(empty):
        start_up_ms = 1000 * (time.perf_counter() - began)
    path = options.keep or home / "full.db"
    if not path.exists():
        await fill(path, chunks=options.chunks, experiments=options.experiments, known=options.methods)
    full = await measure(Settings(home=home, db_path=path, workspace=workspace, device="cpu"), options.calls)
    return {
        "methods": options.methods,
        "experiments": options.experiments,
        "chunks": options.chunks,
        "empty_start_up_ms": start_up_ms,
        "full": full,
        "relevance": await relevance(home) if LABELLED.exists() else {},
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--methods", type=int, default=1_000)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="a file to keep the store in, or to take it from")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="loopgraph-bench-") as folder:
        found = asyncio.run(run(options, Path(folder)))
        print(json.dumps(found, indent=2)) if options.json else report(found)


if __name__ == "__main__":
    main()
