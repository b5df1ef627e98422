"""Measures what LoopGraph's advice on values is worth, and writes the page docs/proof.md with its plot.

scripts/proof                        # all of it
scripts/proof --seeds 3 --out /tmp/p # a short look that leaves the page alone
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from loopgraph_mcp.agents import surrogate_bench
from loopgraph_mcp.agents.surrogate_arms import ARMS, NOISE, Start, prior
from loopgraph_mcp.agents.surrogate_bench import Curve, Row
from loopgraph_mcp.agents.surrogates.model import Surrogate
from loopgraph_mcp.code.constants import constants
from loopgraph_mcp.ranking.response import Run, advise

ROOT = Path(__file__).parents[1]
REPORT, DEVELOPED = "nanochat-h200", "nanochat-h200-dev"
SHORT = ["none", "tpe", "cold", "no-prior", "warm", "warm-other", "placebo"]
AROUND = 10  # experiments of each group of the calibration
WHOLE_STACK = 3  # seeds of the check through server, store and processes; a run there takes a second
WHOLE_STACK_RUNS = 20


def searched(name: str, arms: Sequence[str], seeds: int, experiments: int, jobs: int, out: Path) -> list[Curve]:
    """Search one surrogate with some arms, and write what came of it."""
    curves = list[Curve]()
    for curve in surrogate_bench.run(name, arms, range(1, seeds + 1), experiments=experiments, jobs=jobs):
        curves.append(curve)
        print(f"\r{name}: {len(curves)} of {len(arms) * seeds} sessions", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    command = f"loopgraph bench --surrogate {name} -n {experiments} --seeds {seeds} --arms {','.join(arms)}"
    surrogate_bench.write(curves, name, out / name, command=command)
    return curves


def calibration(name: str, seeds: int, experiments: int) -> list[list[str]]:
    """Return how often first suggestions improved on the best program beside how often that was expected."""
    surrogate = Surrogate.load(surrogate_bench.find(name))
    program = constants((surrogate_bench.FOLDER / "train.py").read_text(encoding="utf-8"), "cuda")
    seen = list[tuple[int, float, bool, float, bool]]()
    for seed in range(1, seeds + 1):
        baseline = surrogate.run(program, seed).val_bpb
        if baseline is None:
            continue
        start = Start(program, baseline, seed, surrogate, surrogate)
        lean, runs, present = prior(start), [Run(start.numbers, baseline)], start.numbers
        for number in range(experiments):
            advice = advise(present, runs, lower=True, noise=NOISE, lean=lean, seed=1000 * seed + number, limit=1)
            first, present = advice.suggestions[0], dict(advice.best)
            tried = present | {change.name: change.new for change in first.changes}
            outcome = surrogate.run(program | tried, seed)
            better = outcome.true_bpb < surrogate.predict(program | present).val_bpb
            failed = outcome.val_bpb is None
            seen.append((number, first.p_improves, better and not failed, first.p_fails, failed))
            runs.append(Run(tried, outcome.val_bpb))
    rows = [["experiments", "P(improves) shown", "improved", "P(fails) shown", "failed"]]
    for low, high in ((0, AROUND), (AROUND, 4 * AROUND), (4 * AROUND, experiments)):
        group = [each for each in seen if low <= each[0] < high]
        if group:
            means = [f"{fmean(float(each[place]) for each in group):.2f}" for place in range(1, 5)]
            rows.append([f"{low + 1} to {high}", *means])
    return rows


def whole_stack(out: Path) -> str:
    """Return what the same comes to through server, store, edits and processes, as a line of a table."""
    command = [
        sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "bench", "--surrogate", REPORT,
        "--policy", "greedy", "-n", str(WHOLE_STACK_RUNS), "--seeds", str(WHOLE_STACK), "--arms", "none,both",
        "--again", "0", "--out", str(out / "whole-stack"), "--json",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(  # noqa: S603 - our own program
            command,
            env={**os.environ, "LOOPGRAPH_DB": str(Path(home) / "loopgraph.db")},
            capture_output=True,
            text=True,
            check=True,
            cwd=home,
        )
    figures = json.loads(done.stdout)["figures"]
    values = [f"{figures[arm]['best']['mean']:.4f}" for arm in ("none", "both")]
    return f"| {values[0]} | {values[1]} | {figures['both']['difference in best']['mean']:+.4f} |"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def claims(rows: Sequence[Row]) -> str:
    """Return the claims that the product makes for itself, each with what came out."""
    by_arm = {row.arm: row for row in rows}
    none, cold, warm, placebo, tpe = (by_arm[each] for each in ("none", "cold", "warm", "placebo", "tpe"))
    at = [n for n in (20, 40, 100) if n in cold.best]
    against_tpe = [cold.best[n].mean - tpe.best[n].mean for n in at]  # type: ignore[union-attr]
    worse = [n for n, each in cold.difference.items() if each is not None and each.low > 0]
    better_placebo = [n for n, each in placebo.difference.items() if each is not None and each.high < 0]
    lines = [
        ("Cold: median experiments to the mean that greedy ends with", "at most 50", _runs(cold.to_goal)),
        ("Warm, same context: the same", "at most 15", _runs(warm.to_goal)),
        (
            f"Cold against TPE from the default after {', '.join(map(str, at))}, thousandths",
            "below 0",
            ", ".join(f"{each * 1000:+.1f}" for each in against_tpe),
        ),
        ("Checkpoints at which cold is worse than none beyond noise", "none", _listed(worse)),
        ("Checkpoints at which the placebo is better than none beyond noise", "none", _listed(better_placebo)),
        (
            "Failed runs a session, cold and greedy",
            "no more",
            f"{cold.failed.mean:.1f}, {none.failed.mean:.1f}" if cold.failed and none.failed else "",
        ),
    ]
    return table([["claim", "bound", "measured"], *lines])


def _runs(found: float | None) -> str:
    return "most sessions never" if found is None else f"{found:g}"


def _listed(found: Sequence[int]) -> str:
    return ", ".join(map(str, found)) or "none"


def paired(curves: Sequence[Curve], arm: str, other: str) -> str:
    """Return the paired p of two arms at each checkpoint."""
    best = {(curve.arm, curve.seed): curve.best for curve in curves}
    seeds = sorted({curve.seed for curve in curves})
    found = []
    for n in (20, 40, 100):
        pairs = [(best[arm, seed][n], best[other, seed][n]) for seed in seeds if n < len(best[arm, seed])]
        if pairs:
            found.append(f"{n}: {surrogate_bench.paired_p([a - b for a, b in pairs]):.4f}")
    return ", ".join(found)


def main() -> None:
    """Measure all of it, and write the page."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, default=20)
    asked.add_argument("--experiments", type=int, default=100)
    asked.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked.add_argument("--out", type=Path, help="a folder for results and page; docs/ gets the page by default")
    given = asked.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="loopgraph-proof-"))
    args = given.seeds, given.experiments, given.jobs, out
    reported = searched(REPORT, list(ARMS), *args)
    developed = searched(DEVELOPED, SHORT, *args)
    figures = {
        "seeds": str(given.seeds),
        "claims": claims(surrogate_bench.summarise(reported)),
        "reported": table(surrogate_bench.table(surrogate_bench.summarise(reported))),
        "developed": table(surrogate_bench.table(surrogate_bench.summarise(developed))),
        "tpe": paired(reported, "cold", "tpe"),
        "calibration": table(calibration(REPORT, max(given.seeds // 2, 1), given.experiments)),
        "whole_stack": whole_stack(out),
        "fidelity": fidelity(),
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    page = (ROOT / "scripts" / "proof.md").read_text(encoding="utf-8")
    for name, text in figures.items():
        page = page.replace(f"<{name}>", text)
    folder = given.out or ROOT / "docs"
    (folder / "proof.md").write_text(page, encoding="utf-8")
    (folder / "proof.svg").write_text((out / REPORT / "surrogate.svg").read_text(encoding="utf-8"), encoding="utf-8")
    print(folder / "proof.md", "; all sessions:", out)


def fidelity() -> str:
    """Return how well each surrogate predicts configurations that its fit has not seen."""
    rows = [
        [
            "surrogate",
            "fitted to",
            "kind",
            "rank correlation: all, below 1.0, below .985",
            "median error below 1.0",
            "AUC of failures",
        ]
    ]
    for name in surrogate_bench.names():
        told = surrogate_bench.about(name)
        fit, width = told["fidelity"], told["width"]
        parts = ", ".join(str(fit[each]["rank_correlation"]) for each in ("all", "below_1.0", "below_.985"))
        rows.append(
            [
                f"`{name}`",
                f"{told['rows']:,} {told['of']}" + (f", width {width}" if width else ""),
                told["kind"],
                parts,
                str(fit["below_1.0"]["median_error"]),
                str(fit["failure_auc"]),
            ]
        )
    return table(rows)


if __name__ == "__main__":
    main()
