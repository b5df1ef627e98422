"""Compares researchers on a surrogate of real training, in process, over paired seeds: tables, tests and a plot."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

from loopgraph_mcp.agents.stats import Estimate, estimate
from loopgraph_mcp.agents.surrogate_arms import ARMS, check_arms, session
from loopgraph_mcp.agents.surrogates.model import Surrogate
from loopgraph_mcp.code.constants import constants as constants_of
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.web import charts, drawing

FOLDER = Path(__file__).parent / "surrogates"
OTHER = "nanochat-h200-narrow"  # another context: a fit of narrow models alone
CHECKPOINTS = (10, 20, 40, 60, 100)
FIRST = "none"
_FILES = ("train.py", "loopgraph.toml")
_DRAWN = (FIRST, "tpe", "cold", "warm", "placebo")  # a chart of ten arms shows none
_FLIPS = 10_000
_MILLI = 1_000


@dataclass(frozen=True, slots=True)
class Curve:
    """One session.

    Args:
        best: The least noise-free value of the programs run so far, after the baseline and after each experiment.
        failed: How many of its runs failed.
    """

    arm: str
    seed: int
    best: tuple[float, ...]
    failed: int


def names() -> list[str]:
    """Return the surrogates that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def find(name: str) -> Path:
    """Return a surrogate's model by its name, or a file that `scripts/fit_surrogate.py` wrote.

    Raises:
        ConfigError: There is none.
    """
    path = FOLDER / f"{name}.json" if name in names() else Path(name)
    if not path.is_file():
        raise ConfigError(f"no surrogate {name!r}; there are {', '.join(names())}, or name a file of a fit")
    return path


def about(name: str) -> dict[str, Any]:
    """Return what a surrogate was fitted to and how well."""
    surrogate = Surrogate.load(find(name))
    return {"name": name, **surrogate.about, "noise": surrogate.noise}


def lay_out(name: str, folder: Path) -> None:
    """Make a workspace whose runs the surrogate answers."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = {each: each for each in _FILES} | {"model.py": "surrogate.py"}
    for source, target in copied.items():
        (folder / target).write_text((FOLDER / source).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "model.json").write_text(find(name).read_text(encoding="utf-8"), encoding="utf-8")


def run(name: str, arms: Sequence[str], seeds: Sequence[int], *, experiments: int, jobs: int) -> Iterator[Curve]:
    """Yield the sessions of all arms and seeds as they end.

    Raises:
        ConfigError: There is no such surrogate or arm.
    """
    path = find(name)
    check_arms(arms)
    wanted = [(path, arm, seed, experiments) for seed in seeds for arm in arms]
    if jobs == 1:
        yield from (_one(*each) for each in wanted)
        return
    # Not forked: Optuna and numpy hold threads.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from (done.result() for done in as_completed([pool.submit(_one, *each) for each in wanted]))


_LOADED: dict[Path, Surrogate] = {}


def _load(path: Path) -> Surrogate:
    if path not in _LOADED:
        _LOADED[path] = Surrogate.load(path)
    return _LOADED[path]


def _one(path: Path, arm: str, seed: int, experiments: int) -> Curve:
    program = constants_of((FOLDER / "train.py").read_text(encoding="utf-8"), "cuda")
    made = session(ARMS[arm], program, _load(path), _load(FOLDER / f"{OTHER}.json"), seed=seed, experiments=experiments)
    best, least = list[float](), math.inf
    for each in made:
        least = min(least, math.inf if each.true is None else each.true)
        best.append(least)
    return Curve(arm, seed, tuple(best), sum(each.metric is None for each in made))


# ---------------------------------------------------------------------------------------------- what it says


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one arm.

    Args:
        best: By checkpoint, the mean over seeds of the best value, noise taken out.
        difference: The same, less the first arm's of the same seed.
        p: By checkpoint, of a paired test against the first arm.
        area: Mean of the best value over all experiments.
        failed: Runs that failed, of all.
        to_goal: Median experiments until a session was as good as the first arm's mean at the end; None where most
            sessions never were.
    """

    arm: str
    best: Mapping[int, Estimate | None]
    difference: Mapping[int, Estimate | None]
    p: Mapping[int, float]
    area: Estimate | None
    failed: Estimate | None
    to_goal: float | None


def summarise(curves: Sequence[Curve], *, first: str = FIRST) -> list[Row]:
    """Return a row for each arm, compared seed by seed with the first."""
    by_place = {(curve.arm, curve.seed): curve for curve in curves}
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    end = min(len(curve.best) for curve in curves) - 1
    at = [each for each in CHECKPOINTS if each <= end]
    base = [curve for curve in curves if curve.arm == first]
    goal = fmean(curve.best[end] for curve in base) if base else math.nan
    rows = []
    for arm in sorted(arms, key=list(ARMS).index):
        mine = sorted((curve for curve in curves if curve.arm == arm), key=lambda curve: curve.seed)
        paired = [(curve, by_place[first, curve.seed]) for curve in mine if (first, curve.seed) in by_place]
        rows.append(
            Row(
                arm,
                {n: estimate([curve.best[n] for curve in mine]) for n in at},
                {n: estimate([curve.best[n] - other.best[n] for curve, other in paired]) for n in at},
                {n: paired_p([curve.best[n] - other.best[n] for curve, other in paired]) for n in at},
                estimate([fmean(curve.best[1 : end + 1]) for curve in mine]),
                estimate([float(curve.failed) for curve in mine]),
                _median_to(goal, mine),
            )
        )
    return rows


def _median_to(goal: float, curves: Sequence[Curve]) -> float | None:
    found = median(next((float(n) for n, best in enumerate(curve.best) if best <= goal), math.inf) for curve in curves)
    return None if math.isinf(found) else found


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of a sign-flip test: how often chance alone makes a mean difference as large."""
    if not any(differences):
        return 1.0
    rng = random.Random(len(differences))  # noqa: S311 - resampling
    real = abs(math.fsum(differences))
    sizes = [abs(each) for each in differences]
    flipped = sum(
        abs(math.fsum(size if rng.random() < 0.5 else -size for size in sizes)) >= real * (1 - 1e-12)
        for _ in range(_FLIPS)
    )
    return (flipped + 1) / (_FLIPS + 1)


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Return the table, its head first."""
    at = list(rows[0].best)
    head = ["arm", *(f"best after {n}" for n in at), "area", f"runs to {FIRST}'s end", "failed"]
    return [head, *([row.arm, *(_cell(row, n) for n in at), *_rest(row)] for row in rows)]


def _cell(row: Row, n: int) -> str:
    found, difference = row.best[n], row.difference[n]
    if found is None:
        return ""
    text = f"{found.mean:.4f}"
    if row.arm == FIRST or difference is None:
        return text
    low, high = difference.low * _MILLI, difference.high * _MILLI
    return f"{text} ({difference.mean * _MILLI:+.1f}, {low:+.1f} to {high:+.1f}; p {row.p[n]:.4f})"


def _rest(row: Row) -> list[str]:
    return [
        "" if row.area is None else f"{row.area.mean:.4f}",
        "more than half never" if row.to_goal is None else f"{row.to_goal:g}",
        "" if row.failed is None else f"{row.failed.mean:.1f}",
    ]


def _chart(curves: Sequence[Curve]) -> dict[str, str]:
    """Return the mean curves of a few arms as an image; without the extra that draws, as its specification."""
    means = dict[str, list[list[tuple[float, float]]]]()
    for arm in _DRAWN:
        mine = [curve.best for curve in curves if curve.arm == arm]
        if mine:
            means[arm] = [[(float(n), fmean(values)) for n, values in enumerate(zip(*mine, strict=False))]]
    spec = charts.arms(means, across="experiments", up="best val_bpb, noise taken out")
    try:
        return {"surrogate.svg": drawing.svg(spec)}
    except ConfigError:
        return {"surrogate.vl.json": json.dumps(spec)}


def write(curves: Sequence[Curve], name: str, out: Path, *, command: str) -> list[Path]:
    """Write the sessions, the table and the plot; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    rows = summarise(curves)
    head, *body = table(rows)
    text = [
        f"`{command}`",
        "",
        "Noise-free best value after so many experiments: mean over seeds; in brackets the difference to the arm "
        f"{FIRST} of the same seed in thousandths, its 95 % bootstrap interval, and p of a paired sign-flip test.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(each) + " |" for each in body),
        "",
    ]
    files = {
        "surrogate.json": json.dumps(
            {
                "command": command,
                "about": about(name),
                "rows": [asdict(row) for row in rows],
                "curves": [asdict(curve) for curve in curves],
            }
        ),
        "surrogate.md": "\n".join(text),
        **_chart(curves),
    }
    for file, content in files.items():
        (out / file).write_text(content, encoding="utf-8")
    return [out / file for file in files]
