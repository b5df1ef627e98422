"""Measures the page over a store of many experiments: what the server takes to paint it, and to show one more.

The targets at 2,000 experiments are 300 ms until the first paint and 50 ms of the server's time for a live update.
Where there is a Chromium, the paint is also measured in it, from the request to the first contents on the screen.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Context, Decision, Direction, Outcome, OutcomeKind, WhatRan
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.experiments import NewExperiment
from loopgraph_mcp.web.door import Door
from loopgraph_mcp.web.page import Page
from loopgraph_mcp.web.serve import application

SEED, SIGMA, ROUNDS = 26, 0.0007, 7


async def add(graph: LoopGraph, context: str, number: int, rng: random.Random, base: str | None) -> str | None:
    """Add an experiment that is over; return the program that the next one starts from."""
    value = 1.0 + rng.gauss(0.001, 0.002) if rng.random() > 0.04 else None
    program = "baseline" if base is None else f"program {number}"
    new = NewExperiment(
        context, "cuda-0", f"change {number}", 42, 900, 60, ran=WhatRan(program, program), base_group_key=base
    )
    experiment_id, _ = await experiments.add_experiment(graph.db, new, now=float(number))
    kind = OutcomeKind.CRASHED if value is None else OutcomeKind.FINISHED
    await experiments.finish(graph.db, experiment_id, Outcome(kind, value, "as told", {}), now=number + 0.9)
    kept = base is None or (value is not None and rng.random() < 0.03)
    decision = Decision.KEEP if kept else Decision.DISCARD
    await experiments.add_decision(
        graph.db, experiment_id, decision, made_by="loopgraph", commit=None, note="", now=number + 0.95
    )
    return program if kept else base


async def timed(work: Callable[[], Coroutine[Any, Any, httpx.Response]]) -> float:
    """Return the milliseconds that a request took, whatever else the machine did, as processor time of this process."""
    began = time.process_time()
    (await work()).raise_for_status()
    return 1e3 * (time.process_time() - began)


async def measure(count: int) -> dict[str, float]:
    """Build a store, visit its page, and add experiments one by one."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with LoopGraph.open(Settings(home, home / "loopgraph.db", home)) as graph:
            workspace = await edits.workspace_id(graph.db, str(home), now=0.0)
            context = Context(workspace, "cuda:bench", 300.0, "data", "harness", "val_bpb", Direction.LOWER, "train.py")
            context_id, rng, base = await edits.context_id(graph.db, context), random.Random(SEED), None
            for number in range(count):
                base = await add(graph, context_id, number, rng, base)
            door = Door("bench")
            page = Page(graph, door)
            began = time.process_time()
            await page.warm()
            cold_ms = 1e3 * (time.process_time() - began)
            transport = httpx.ASGITransport(application(page))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost:1") as visitor:
                (await visitor.get(f"/enter?key={door.make_link()}", follow_redirects=True)).raise_for_status()
                paint = [await timed(lambda: visitor.get("/")) for _ in range(ROUNDS)]
                everything = [await timed(lambda: visitor.get("/changes")) for _ in range(ROUNDS)]
                curve = [await timed(lambda: visitor.get("/charts/progress?width=1100")) for _ in range(ROUNDS)]
                updates = []
                for number in range(count, count + ROUNDS):
                    version = (await visitor.get("/changes", params={"since": "-"})).json()["version"]
                    base = await add(graph, context_id, number, rng, base)
                    updates.append(await timed(lambda since=version: visitor.get("/changes", params={"since": since})))
            found = {
                "cold_ms": cold_ms,
                "first_paint_server_ms": statistics.median(paint),
                "all_rows_ms": statistics.median(everything),
                "curve_ms": statistics.median(curve),
                "live_update_ms": statistics.median(updates),
            }
            return found | await in_browser(page)


async def in_browser(page: Page) -> dict[str, float]:
    """Return when a browser first shows something of the page; nothing where there is none."""
    chromium = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    try:
        from playwright.async_api import async_playwright  # noqa: PLC0415 - the extra dev
    except ImportError:
        return {}
    if chromium is None:
        return {}
    import uvicorn  # noqa: PLC0415 - likewise

    server = uvicorn.Server(uvicorn.Config(application(page), port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = await browser.new_page()
        await tab.goto(f"http://127.0.0.1:{port}/enter?key={page.door.make_link()}")
        paints = []
        for _ in range(ROUNDS):
            await tab.reload()
            paints.append(
                await tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
            )
        await browser.close()
    server.should_exit = True
    await serving
    seen = [each for each in paints if each is not None]
    return {"first_paint_browser_ms": statistics.median(seen)} if seen else {}


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench page", description=__doc__)
    parser.add_argument("--experiments", type=int, default=2_000, help="in the store (%(default)d)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.experiments))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(
        "", "ms", title=f"{options.experiments:,} experiments; processor time of the server, paint by the clock"
    )
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
