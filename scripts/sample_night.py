"""Fills a store with a night of experiments: searches, edits and kin are real, the training is not.

What each run measured is drawn from a table of gains with noise, so that a page, a report or a measurement has a night
to show without a GPU and without waiting for one. Nothing of it is a result.
"""

import asyncio
import math
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loopgraph_mcp.api.context import Inputs, Surroundings
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.run_plan import keep_program
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.config import Settings, bundled
from loopgraph_mcp.models import Context, Decision, Direction, Outcome, OutcomeKind
from loopgraph_mcp.runner.locks import hold_lock
from loopgraph_mcp.runner.workspace import Workspace, create_workspace
from loopgraph_mcp.store import edits, experiments
from loopgraph_mcp.store.experiments import ExperimentRow, NewExperiment, ProcessId

SEED = 26
SIGMA = 0.0007  # bits per byte between two seeds, as on one H100
START = 0.9979
BUDGET_S = 300.0
RUN_S = 331.0
AGENT = Caller("claude-code", "night")
RUNNING = "exp_sampl3run0"
QUERIES = ("what helps a short run", "learning rate", "batch size", "attention", "schedule", "normalisation", "")
# Gains in bits per byte. What is not named here costs a little, as most changes do.
GAINS = {
    "smaller-batch": 0.0086,
    "short-window": 0.0041,
    "depth-width-ratio": 0.0042,
    "embedding-lr": 0.0033,
    "rope-base": 0.0025,
    "x0-lambdas": 0.0009,
    "warmdown-length": 0.0007,
    "final-lr-floor": 0.0006,
    "unembedding-lr": 0.0009,
    "init-scale": 0.0005,
    "gqa": -0.0011,
    "mqa": -0.0079,
    "parallel-block": -0.0110,
    "lr-warmup": -0.0016,
    "adam-betas": -0.0011,
    "weight-tying": -0.0300,
}
FAILURES = {
    "fp8": (OutcomeKind.CRASHED, "RuntimeError: float8 needs a device of compute capability 8.9"),
    "mixture-of-experts": (OutcomeKind.OUT_OF_MEMORY, "the log says CUDA out of memory"),
    "swiglu": (OutcomeKind.DIVERGED, "the loss became NaN at step 212"),
}
NOTES = """# Notes on short windows

A sliding window attends to the last few tokens only. In a short run, short-window attention trains more steps in the
same time: with a quarter of the context we measured an improvement of 0.001 bits per byte over full windows.

## Batch size

A smaller batch takes more steps in the same budget. Halving the batch size gained 0.0119 bits per byte in five minutes.
"""


@dataclass(slots=True)
class Clock:
    """The time of the night, which passes as it is told to."""

    at: float


@dataclass(slots=True)
class Night:
    """A night as it is being made up: the file's quality, and the clock."""

    graph: LoopGraph
    where: Workspace
    context: Context
    inputs: Inputs
    clock: Clock
    quality: float = START
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    worth: dict[str, float] = field(default_factory=dict)

    async def run(
        self, description: str, *, text: str, edit: edits.EditRow | None = None, gain: float = 0.0, seed: int = 42
    ) -> ExperimentRow:
        """Add an experiment that is over, and decide on it as LoopGraph does."""
        db, method_ids = self.graph.db, () if edit is None else edit.method_ids
        failed = next((FAILURES[each] for each in method_ids if each in FAILURES), None)
        value = self.worth.setdefault(text, self.quality - gain) + self.rng.gauss(0, SIGMA)
        ran = self.inputs.identify(text, self.where.editable)
        base = None if edit is None else self.inputs.identify(edit.base_text, self.where.editable).group_key
        folder = self.graph.settings.runs_dir / f"run-{len(list(self.graph.settings.runs_dir.glob('*'))):05d}"
        folder.mkdir(parents=True)
        (folder / "run.log").write_text(self.log(value, failed), encoding="utf-8")
        new = NewExperiment(
            await edits.context_id(db, self.context),
            "cuda-0",
            description,
            seed,
            900.0,
            120.0,
            edit_id=None if edit is None else edit.id,
            base_hash=None if edit is None else edit.base_hash,
            program_hash=await keep_program(db, text, self.where.editable),
            method_ids=method_ids,
            caller=AGENT,
            run_dir=str(folder),
            ran=ran,
            base_group_key=base,
        )
        experiment_id, _ = await experiments.add_experiment(db, new, now=self.clock.at)
        mark = ProcessId(1, 1.0)
        await experiments.mark_running(db, experiment_id, mark, now=self.clock.at + 2)
        took = RUN_S + self.rng.uniform(-6, 9) if failed is None else self.rng.uniform(9, 80)
        self.clock.at += 2 + took
        summary = {"training_seconds": 300.1, "peak_vram_mb": 45_060.2, "total_tokens_M": 499.6, "num_params_M": 50.3}
        outcome = (
            Outcome(OutcomeKind.FINISHED, value, f"val_bpb {value:.6f}", summary)
            if failed is None
            else Outcome(failed[0], None, failed[1], {}, self.log(value, failed)[-900:])
        )
        await experiments.add_outcome(db, experiment_id, outcome, now=self.clock.at)
        await self.graph.db.change(
            "UPDATE experiment SET state = 'done', finished_at = ? WHERE id = ?", (self.clock.at, experiment_id)
        )
        answer = await self.graph.get_experiment(experiment_id, wait_s=0)
        kept = answer.gain is None or answer.gain > 0
        made = Decision.KEEP if kept and failed is None else Decision.DISCARD
        await experiments.add_decision(
            db, experiment_id, made, made_by="loopgraph", commit=None, note="", now=self.clock.at + 0.1
        )
        await self.graph.add_cost("run_experiment", subject_id=experiment_id, tokens=260)
        await self.graph.add_cost(
            "agent",
            subject_id=experiment_id,
            tokens=self.rng.randrange(9_000, 26_000),
            cost_usd=round(self.rng.uniform(0.02, 0.07), 4),
        )
        if made is Decision.KEEP and edit is not None:
            self.where.editable_path.write_text(text, encoding="utf-8")
            self.quality = self.worth[text]
        self.clock.at += self.rng.uniform(12, 70)
        row = await experiments.get_experiment(db, experiment_id)
        assert row is not None  # noqa: S101 - it was just made
        return row

    def log(self, value: float, failed: tuple[OutcomeKind, str] | None, *, until: float = 1.0) -> str:
        """Return a training log in the bundled trainer's form."""
        lines = ["device: NVIDIA H100", "compiling …"]
        steps = 940
        end = until if failed is None else 0.02
        for step in range(0, int(steps * end), 4):
            done = step / steps
            loss = 2.62 + 5.9 * math.exp(-11 * done) + 2.1 * math.exp(-3.2 * done) * 0.5 + 3.5 * (value - START)
            loss += self.rng.gauss(0, 0.012)
            lines.append(
                f"\rstep {step:05d} ({100 * done:.1f}%) | loss: {loss:.6f} | lrm: 1.00 | dt: 319ms | "
                f"tok/sec: 1,643,000 | mfu: 39.8% | epoch: 1 | remaining: {300 * (1 - done):.0f}s    "
            )
        text = lines[0] + "\n" + lines[1] + "\n" + "".join(lines[2:]) + "\n"
        if failed is not None:
            return text + f"Traceback (most recent call last):\n  …\n{failed[1]}\n"
        return text + (f"---\nval_bpb:          {value:.6f}\ntraining_seconds: 300.1\n" if until == 1.0 else "")


def settings_in(folder: Path) -> Settings:
    """Return settings whose store and workspace lie in a folder."""
    return Settings(folder / "home", folder / "home" / "loopgraph.db", folder / "workspace", device="cpu")


async def fill(settings: Settings, count: int, *, began: float) -> Night:
    """Make a night of so many experiments in a workspace's store; return it as it stands then."""
    where, _ = create_workspace(settings.workspace, bundled("trainer"), budget_s=BUDGET_S)
    clock = Clock(began)
    async with LoopGraph.open(settings, clock=lambda: clock.at) as graph:
        notes = settings.workspace.parent / "notes.md"
        notes.write_text(NOTES, encoding="utf-8")
        await graph.ingest(str(notes))
        return await _fill(graph, where, count, clock)


async def _fill(graph: LoopGraph, where: Workspace, count: int, clock: Clock) -> Night:
    here = Surroundings(graph.db, graph.settings, lambda: clock.at)
    workspace = await here.workspace_id(where)
    context = Context(
        workspace, "cuda:NVIDIA H100", BUDGET_S, "corpus", "harness", "val_bpb", Direction.LOWER, "train.py"
    )
    night = Night(graph, where, context, await here.inputs(where), clock)
    start = where.read_program()
    made = 0
    for seed in range(42, 42 + min(3, count)):
        await night.run("baseline", text=start, seed=seed)
        made += 1
    tried = set[str]()
    for number in range(6 * len(QUERIES)):
        found = await graph.search_methods(QUERIES[number % len(QUERIES)], limit=20)
        ready = [hit.method_id for hit in found.hits if hit.has_edit and hit.method_id not in tried]
        for method_id in ready[:3]:
            tried.add(method_id)
            answer = await graph.get_code_edit(method_id, retrieval_id=found.retrieval_id)
            edit = None if answer.edit_id is None else await edits.get_edit(graph.db, answer.edit_id)
            if edit is None or made >= count:
                continue
            gain = GAINS.get(method_id, night.rng.gauss(-0.0008, 0.0010))
            hit = next(each for each in found.hits if each.method_id == method_id)
            row = await night.run(hit.name, text=edit.new_text, edit=edit, gain=gain)
            made += 1
            if made % 9 == 0:  # another agent asked for what had been run
                await graph.add_cost("run_experiment", subject_id=row.id, tokens=260)
            if row.decision is Decision.KEEP and made < count and night.rng.random() < 0.5:
                await night.run(hit.name, text=edit.new_text, edit=edit, gain=gain, seed=43)
                made += 1
    while made < count:
        await _hand_edit(night, workspace, made)
        made += 1
    return night


KNOBS = (("EMBEDDING_LR", 0.6), ("MATRIX_LR", 0.04), ("SCALAR_LR", 0.5), ("WEIGHT_DECAY", 0.2), ("WARMDOWN_RATIO", 0.5))


async def _hand_edit(night: Night, workspace: str, number: int) -> None:
    """Change one constant by hand, as an agent does once the methods are used up."""
    name, value = KNOBS[number % len(KNOBS)]
    wanted = round(value * night.rng.uniform(0.4, 1.9), 5)
    base = night.where.read_program()
    lines = base.split("\n")
    place = next(index for index, line in enumerate(lines) if line.startswith(f"{name} ="))
    before, comment = lines[place].partition("#")[::2]
    lines[place] = f"{name} = {wanted}  # {comment.strip()}"
    text = "\n".join(lines)
    if text == base:
        return
    db = night.graph.db
    edit_id = await edits.add_edit(
        db,
        workspace=workspace,
        method_id=None,
        retrieval_id=None,
        base_hash=await keep_program(db, base, "train.py"),
        new_hash=await keep_program(db, text, "train.py"),
        knobs={},
        diff=f"--- train.py\n+++ train.py\n@@ -{place + 1} +{place + 1} @@\n-{before.strip()}\n+{lines[place]}\n",
        now=night.clock.at,
    )
    edit = await edits.get_edit(db, edit_id)
    old = before.partition("=")[2].strip()
    await night.run(f"{name} {old} to {wanted}", text=text, edit=edit, gain=night.rng.gauss(-0.0012, 0.0011))


@asynccontextmanager
async def one_running(settings: Settings, night: Night, *, done: float = 0.62) -> AsyncIterator[str]:
    """Have one more experiment look as if it ran, so far done, for as long as the body lasts; give its id."""
    text = night.where.read_program()
    folder = settings.runs_dir / "running"
    folder.mkdir()
    (folder / "run.log").write_text(night.log(night.worth[text] - 0.001, None, until=done), encoding="utf-8")
    base = night.inputs.identify(text, night.where.editable).group_key
    async with LoopGraph.open(settings) as graph:
        with hold_lock(settings.locks_dir, RUNNING):  # else it would be found abandoned
            new = NewExperiment(
                await edits.context_id(graph.db, night.context),
                "cuda-0",
                "Attention output gate, at half its width",
                42,
                900.0,
                120.0,
                id=RUNNING,
                caller=AGENT,
                run_dir=str(folder),
                base_group_key=base,
                program_hash=await keep_program(graph.db, text, night.where.editable),
            )
            began = time.time() - done * BUDGET_S
            await experiments.add_experiment(graph.db, new, now=began)
            await experiments.mark_running(graph.db, RUNNING, ProcessId(1, 1.0), now=began)
            yield RUNNING


def main() -> None:
    """Fill the folder named first with as many experiments as named second."""
    settings = settings_in(Path(sys.argv[1]).resolve())
    asyncio.run(fill(settings, int(sys.argv[2]), began=1_790_000_000.0))
    print(f"LOOPGRAPH_HOME={settings.home} LOOPGRAPH_WORKSPACE={settings.workspace} loopgraph ui")


if __name__ == "__main__":
    main()
