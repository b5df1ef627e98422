"""Runs the same researcher in several arms from the same start, and reports what memory was worth."""

import dataclasses
import json
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from loopgraph_mcp import __version__
from loopgraph_mcp.agents.opening import open_session
from loopgraph_mcp.agents.plan import MemoryArm, Plan
from loopgraph_mcp.agents.policies import check_policies
from loopgraph_mcp.agents.session import OnStatus, Session
from loopgraph_mcp.agents.stats import Estimate, Point, Trial, compare
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.models import Direction
from loopgraph_mcp.runner.device import choose_device
from loopgraph_mcp.runner.run_copy import snapshot
from loopgraph_mcp.runner.workspace import Workspace, load_workspace
from loopgraph_mcp.store import retrievals
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.web import charts, drawing

# What each arm's memory has; with `-skill` the prompt also has the skill. A warm arm's memory has one earlier
# session of the same researcher, in the same folder and with other choices; its cost is reported separately.
ARMS: Mapping[str, MemoryArm] = {
    "none": "off", "outcomes": "outcomes", "packs": "packs", "both": "on", "both-skill": "on", "both-warm": "on",
    "tpe": "off",
}  # fmt: skip
_SHIPPED = "the packs with their outcomes, and published histories"
_WARM_SEED = 1_000  # far from the seeds of the sessions that count
_FRESH_SEED = 2_000  # far from every seed that a session uses
_TRIALS: TypeAdapter[list[Trial]] = TypeAdapter(list[Trial])
_FIGURES: TypeAdapter[dict[str, dict[str, Estimate | None]]] = TypeAdapter(dict[str, dict[str, Estimate | None]])


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a comparison found so far."""

    about: dict[str, Any]
    arms: tuple[str, ...]
    trials: list[Trial]
    figures: dict[str, dict[str, Estimate | None]]


async def run(
    settings: Settings,
    plan: Plan,
    arms: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    environment: Mapping[str, str],
    *,
    again: int = 0,
    on_status: OnStatus,
) -> AsyncIterator[Result]:
    """Compare arms over seeds, and yield what is known after each seed.

    Each arm has a workspace and a store of its own; the device is theirs in turns.

    The least of many noisy values is better than it should be, and more so for who made more of them: so the program
    that each session ends with is trained `again` on so many fresh seeds, the same for all arms.

    Raises:
        ConfigError: An arm is unknown or lacks a package, or the folder for the results holds a comparison already.
    """
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ConfigError(f"no arm {', '.join(unknown)}; the arms are {', '.join(ARMS)}")
    if (out / "seeds").exists():
        raise ConfigError(f"{out} has a comparison already; name another folder with --out")
    check_policies([plan.policy, *arms])
    if plan.policy and "both-skill" in arms:
        raise ConfigError("the arm both-skill needs a model: a scripted researcher reads no skill")
    where = load_workspace(settings.workspace)
    lower = where.direction is Direction.LOWER
    about = {
        "researcher": plan.researcher,
        "experiments": plan.experiments,
        "trained_again": again,
        "metric": where.metric,
        "direction": where.direction.value,
        "budget_s": where.budget_s,
        "device": where.device or choose_device(settings.device, settings.visible_gpus, where.devices_per_run).label,
        "packs": settings.packs.name,
        "published_histories": settings.day_one,
        "loopgraph": __version__,
        "python": platform.python_version(),
    }
    trials = list[Trial]()
    for seed in seeds:
        async with AsyncExitStack() as stack:
            trials += await _one_seed(
                settings, where, plan, arms, seed, out, environment, on_status, stack, again=again
            )
        estimated = sum(trial.estimated_turns for trial in trials)
        counted = "as the provider counted them" + (
            f", estimated in {estimated} turns without its counts" if estimated else ""
        )
        known = {
            "seeds": sorted({trial.seed for trial in trials}),
            "tokens": "estimated from words: no model is asked" if plan.policy else counted,
        }
        yield Result(about | known, tuple(arms), list(trials), compare(trials, arms, lower=lower))


async def _one_seed(
    settings: Settings,
    where: Workspace,
    plan: Plan,
    arms: Sequence[str],
    seed: int,
    out: Path,
    environment: Mapping[str, str],
    on_status: OnStatus,
    stack: AsyncExitStack,
    *,
    again: int,
) -> list[Trial]:
    """Run all arms of one seed, an experiment of each in turn, so that what drifts on the device hits all alike."""
    opened: dict[str, Session] = {}
    curves: dict[str, list[Point]] = {}
    seeded: dict[str, str] = {}
    for arm in arms:
        folder = out / "seeds" / str(seed) / arm
        snapshot(where, folder / "workspace", where.read_program())
        own = dataclasses.replace(settings, workspace=folder / "workspace", db_path=folder / "loopgraph.db")
        other = {"policy": "tpe", "provider": "", "model": ""} if arm == "tpe" else {}
        skill = arm.endswith("-skill")
        mine = plan.model_copy(update={"memory": ARMS[arm], "skill": skill, "seed": seed, **other})
        seeded[arm] = _SHIPPED if ARMS[arm] in {"on", "packs"} else "nothing"
        if arm.endswith("-warm"):
            seeded[arm] = await _warm(own, mine, where, environment, on_status)
        opened[arm] = await stack.enter_async_context(open_session(own, mine, environment, on_status=on_status))
        curves[arm] = []
    for done in range(plan.experiments + 1):
        turn = done % len(arms)
        for arm in [*arms[turn:], *arms[:turn]]:
            session = opened[arm]
            if done == 0 or session.ended is None:
                await _advance(session, done)
                curves[arm].append(_point(session))
    again_on: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(again):
        for arm in arms:
            session, fresh = opened[arm], _FRESH_SEED + number
            metric_value = await session.desk.remeasure(fresh, key=f"{session.id}:fresh:{fresh}")
            again_on[arm] += [] if metric_value is None else [metric_value]
    return [_trial(arm, seed, opened[arm], curves[arm], seeded[arm], again_on[arm]) for arm in arms]


async def _advance(session: Session, done: int) -> None:
    """Bring a session to its next experiment; the zeroth is the baseline."""
    if done == 0:
        await session.begin()
    else:
        await session.advance(done)
        if session.counted >= session.plan.experiments and session.ended is None:
            await session.end(f"{session.counted} experiments done")


async def _warm(
    settings: Settings, plan: Plan, where: Workspace, environment: Mapping[str, str], on_status: OnStatus
) -> str:
    """Let the researcher fill its memory in a session before the one that counts, then put the program back."""
    before = plan.model_copy(update={"choice_seed": (plan.seed or 0) + _WARM_SEED})
    async with open_session(settings, before, environment, on_status=on_status) as session:
        await session.advance(plan.experiments)
        spent = session.spent
        estimated = f"an earlier session: {session.counted} experiments, {spent.tokens:,} tokens, {spent.seconds:.0f} s"
    (settings.workspace / where.editable).write_text(where.read_program(), encoding="utf-8", newline="")
    async with Database.open(settings.db_path) as db:
        counted = await retrievals.count_rows(db)
    return f"{estimated}; {counted['experiments']} experiments in all, and the packs"


def _point(session: Session) -> Point:
    best = session.desk.best
    return Point(session.counted, session.spent.tokens, session.spent.seconds, None if best is None else best.mean)


def _trial(arm: str, seed: int, session: Session, curve: list[Point], seeded: str, again: list[float]) -> Trial:
    spent, runs = session.spent, session.runs
    return Trial(
        arm=arm,
        seed=seed,
        curve=curve,
        repeats=sum(run.again and run.counts for run in runs),
        from_memory=sum(run.repeated for run in runs),
        valid=1 - spent.invalid_calls / max(spent.calls, 1),
        usd=spent.usd,
        ended=session.ended or "",
        session_id=session.id,
        seeded=seeded,
        again=again,
        estimated_turns=spent.estimated_turns,
    )


# ---------------------------------------------------------------------------------------- what is written


def write(result: Result, out: Path, command: str) -> list[Path]:
    """Write results.json, results.md and the charts; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    charted = _charts(result)
    files = {
        "results.json": json.dumps(
            {
                "command": command,
                **result.about,
                "arms": list(result.arms),
                "figures": _FIGURES.dump_python(result.figures, mode="json"),
                "trials": _TRIALS.dump_python(result.trials, mode="json"),
            },
            indent=2,
        ),
        "results.md": page(result, command, [name for name in charted if name.endswith(".svg")]),
        **charted,
    }
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in files]


def _charts(result: Result) -> dict[str, str]:
    """Return the curves as images; without the extra that draws, as the specifications that others can draw."""
    files = {}
    for name in ("experiments", "tokens", "seconds"):
        curves = {
            arm: [
                [(float(getattr(point, name)), point.best) for point in trial.curve if point.best is not None]
                for trial in result.trials
                if trial.arm == arm
            ]
            for arm in result.arms
        }
        spec = charts.arms(curves, across=name, up=f"best mean {result.about['metric']}")
        try:
            files[f"best-by-{name}.svg"] = drawing.svg(spec)
        except ConfigError:
            files[f"best-by-{name}.vl.json"] = json.dumps(spec)
    return files


def rows(result: Result) -> list[list[str]]:
    """Return the table of the claim, its head first: a row for each measure of each arm."""
    table = [["measure", "arm", "mean (95 % interval)", f"difference to {result.arms[0]}"]]
    for name in result.figures[result.arms[0]]:
        if name.startswith("difference"):
            continue
        for arm in result.arms:
            figures = result.figures[arm]
            difference = "" if arm == result.arms[0] else _shown(figures[f"difference in {name}"], sign="+")
            table.append([name, arm, _shown(figures[name]), difference])
    return table


def _shown(value: Estimate | None, sign: str = "") -> str:
    if value is None:
        return "never"
    return f"{value.mean:{sign},.5g} ({value.low:{sign},.5g} to {value.high:{sign},.5g}), n={value.seeds}"


def page(result: Result, command: str, images: Sequence[str]) -> str:
    """Return the results as a page of Markdown."""
    head, *body = rows(result)
    seeded = {trial.arm: trial.seeded for trial in result.trials}
    about = ", ".join(f"{name} {value}" for name, value in result.about.items())
    lines = [
        "# What memory was worth",
        "",
        f"`{command}`",
        "",
        f"{about}.",
        "",
        "Means over seeds with 95 % bootstrap intervals over seeds; differences are to the first arm, seed by seed. "
        "Few seeds make such intervals too narrow. Time is the researcher's and its runs'; the time of other arms is "
        "not included.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in body),
        "",
        "Contents of each arm's memory at the start:",
        "",
        *(f"- {arm}: {estimated}" for arm, estimated in seeded.items()),
        "",
        *(f"![{name.removesuffix('.svg').replace('-', ' ')}]({name})" for name in images),
        "",
    ]
    return "\n".join(lines)
