"""Trains each method of the shipped pack on this machine, and writes what came of it into the pack as its outcomes.

Every edit of the bundled trainer runs once a round. Each block of ten shares a seed and begins with the unchanged
program. Broken off, it goes on where it stood. What the pack holds of the same setting is replaced.

    LOOPGRAPH_PROFILE=smoke LOOPGRAPH_DEVICE=cpu python scripts/measure_methods.py FOLDER --budget 5 --rounds 3
"""

import argparse
import asyncio
import dataclasses
import json
import os
import random
import shutil
import subprocess
import tomllib
from pathlib import Path

from rich.progress import Progress

from loopgraph_mcp import LoopGraph
from loopgraph_mcp.config import bundled, read_settings
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import SharedOutcome
from loopgraph_mcp.runner.workspace import create_workspace, prepare_command

BLOCK = 10
PACK = bundled("methodpacks")
HEAD = "\n[[outcomes]]\n"


async def main() -> None:
    """Run what has not run yet, and write the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the workspace and the memory")
    parser.add_argument(
        "--budget", type=float, default=5.0, metavar="S", help="training seconds of a run (%(default)g)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each method (%(default)d)")
    parser.add_argument("--method", action="append", metavar="ID", help="measure this one (again for more; all)")
    asked = parser.parse_args()
    shipped = {method.id: method for method in read_pack(PACK).methods}
    if unknown := sorted(set(asked.method or ()) - set(shipped)):
        parser.error(f"the pack has no {', '.join(unknown)}")
    folder = asked.folder.resolve()
    where, new = create_workspace(folder / "workspace", bundled("trainer"), budget_s=asked.budget)
    if new:
        subprocess.run(prepare_command(where.path), cwd=where.path, check=True)  # noqa: ASYNC221, S603 - our prepare.py
    environment = {**os.environ, "LOOPGRAPH_HOME": str(folder / "home"), "LOOPGRAPH_PACKS": str(PACK)}
    start = (bundled("trainer") / where.editable).read_text(encoding="utf-8")
    async with LoopGraph.open(read_settings(environment, where.path)) as graph:
        where.editable_path.write_text(start, encoding="utf-8")  # an edit that was kept stands in it
        edits = {
            method_id: edit.edit_id
            for method_id in asked.method or shipped
            if (edit := await graph.get_code_edit(method_id)).edit_id is not None
        }
        await train(graph, edits, asked.rounds, where.editable_path, start)
        shutil.rmtree(folder / "measured", ignore_errors=True)
        await graph.export_pack("measured", folder / "measured", method_ids=sorted(edits))
    setting = f"bundled trainer, {os.environ.get('LOOPGRAPH_PROFILE') or 'default'} profile, {os.cpu_count()} CPU cores"
    for method in read_pack(folder / "measured").methods:
        for outcome in method.outcomes[len(shipped[method.id].outcomes) :]:  # those of this memory come last
            told = dataclasses.replace(outcome, context=f"{setting}, {asked.budget:g} s")
            keep(PACK / f"{method.id}.toml", told)


async def train(graph: LoopGraph, edits: dict[str, str], rounds: int, file: Path, start: str) -> None:
    """Make all runs of all rounds, each in an order of its own."""
    with Progress() as bar:
        task = bar.add_task("", total=rounds * len(edits))
        for number in range(rounds):
            order = random.Random(number).sample(sorted(edits), len(edits))
            for place, method_id in enumerate(order):
                seed = 100 * (number + 1) + place // BLOCK
                if place % BLOCK == 0:
                    await asyncio.to_thread(file.write_text, start, encoding="utf-8")
                    await run(graph, None, "baseline", seed)
                bar.update(task, description=method_id)
                await run(graph, edits[method_id], method_id, seed)
                bar.advance(task)


async def run(graph: LoopGraph, edit_id: str | None, description: str, seed: int) -> None:
    """Train one program to its end, unless that was done before."""
    answer = await graph.run_experiment(
        edit_id=edit_id, description=description, seed=seed, replicate=True, idempotency_key=f"{description}:{seed}"
    )
    while answer.state != "done":
        answer = await graph.get_experiment(answer.experiment_id, wait_s=50.0)


def keep(file: Path, outcome: SharedOutcome) -> None:
    """Write an outcome at the end of a method's file, in the place of what it tells of the same setting."""
    text, *told = file.read_text(encoding="utf-8").split(HEAD)
    others = [each for each in told if tomllib.loads(each)["context"] != outcome.context]
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in dataclasses.asdict(outcome).items()
        if value is not None
    ]
    file.write_text(HEAD.join([text, *others, "".join(lines)]), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
