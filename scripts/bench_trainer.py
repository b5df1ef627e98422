"""Measures the trainer on this machine: speed, overhead and val_bpb over seeds, beside a plain AdamW and upstream's.

Runs alternate between the trainers, so that a noisy machine disturbs all alike. Needs torch, numpy and tokenizers.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TRAINER = Path(__file__).parents[1] / "trainer"

# The same model and loop, with one well-known optimizer for all parameters.
ADAMW = """
import torch
import train

def setup_optimizer(model):
    group = {"params": list(model.parameters()), "kind": "adamw", "lr": RATE, "initial_lr": RATE}
    return torch.optim.AdamW([group], betas=(0.9, 0.95), weight_decay=0.1)

train.GPT.setup_optimizer = setup_optimizer
train.WARMUP_RATIO = 0.05
train.main()
"""

# Upstream's train.py asks for its own prepare.py and for a kernel from a hub: here is ours in both places.
UPSTREAM_PREPARE = """
import prepare
from prepare import MAX_SEQ_LEN, TIME_BUDGET

class Tokenizer:
    @classmethod
    def from_directory(cls):
        prepare.open_corpus()
        return cls()

    def get_vocab_size(self):
        return prepare.VOCAB_SIZE

def make_dataloader(tokenizer, rows, length, split):
    return prepare.make_dataloader(split, rows, length, prepare.SEED, prepare.DEVICE)

def evaluate_bpb(model, tokenizer, rows):
    return prepare.evaluate_bpb(model, EVAL_ROWS)
"""
UPSTREAM_KERNELS = """
from types import SimpleNamespace
import torch
import ours

MASKS = {}
for window in (ours.MAX_SEQ_LEN, ours.MAX_SEQ_LEN // 2):
    MASKS[window] = ours.window_mask(ours.ATTENTION, ours.MAX_SEQ_LEN, window, ours.DEVICE)

def flash_attn_func(q, k, v, causal, window_size):
    return ours.attend(q.to(v.dtype), k.to(v.dtype), v, MASKS[window_size[0]], ours.ATTENTION)

def get_kernel(repository):
    return SimpleNamespace(flash_attn_interface=SimpleNamespace(flash_attn_func=flash_attn_func))

if ours.DEVICE != "cuda":
    torch.cuda.get_device_capability = lambda: (9, 0)
    torch.cuda.synchronize = lambda: None
"""
SHAPE = ("DEPTH", "ASPECT_RATIO", "HEAD_DIM", "WINDOW_PATTERN", "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE")
ASK = (
    f"import json, train; print(json.dumps({{n: getattr(train, n) for n in {(*SHAPE, 'EVAL_BATCH_SIZE', 'DEVICE')}}}))"
)


def write_ours(folder: Path) -> str:
    """Copy the trainer into a folder; return the script to run."""
    for path in TRAINER.glob("*.py"):
        shutil.copy(path, folder)
    return "train.py"


def write_adamw(folder: Path, *, rate: float) -> str:
    """Add the trainer with AdamW alone."""
    write_ours(folder)
    (folder / "adamw.py").write_text(ADAMW.replace("RATE", repr(rate)), encoding="utf-8")
    return "adamw.py"


def write_upstream(folder: Path, *, checkout: Path, knobs: dict[str, Any]) -> str:
    """Add karpathy/autoresearch's train.py at our model's shape, on our corpus, tokenizer, metric and attention."""
    write_ours(folder)
    (folder / "train.py").rename(folder / "ours.py")
    (folder / "kernels.py").write_text(UPSTREAM_KERNELS, encoding="utf-8")
    shim = UPSTREAM_PREPARE.replace("EVAL_ROWS", str(knobs["EVAL_BATCH_SIZE"]))
    (folder / "upstream_prepare.py").write_text(shim, encoding="utf-8")
    text = (checkout / "train.py").read_text(encoding="utf-8")
    text = text.replace("from prepare import", "from upstream_prepare import").replace('"cuda"', f'"{knobs["DEVICE"]}"')
    text = text.replace("manual_seed(42)", "manual_seed(int(os.environ['LOOPGRAPH_SEED']))")
    for name in SHAPE:
        text, found = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {knobs[name]!r} ", text)
        if found != 1:
            raise SystemExit(f"{checkout}/train.py: no line sets {name}; is it karpathy/autoresearch's?")
    (folder / "upstream.py").write_text(text, encoding="utf-8")
    return "upstream.py"


def run(script: str, folder: Path, environment: dict[str, str], *, seed: int, budget_s: float) -> dict[str, Any]:
    """Train once; return the summary's numbers, the overhead by phase, and the wall time of the process."""
    settings = {"LOOPGRAPH_SEED": str(seed), "LOOPGRAPH_BUDGET_S": str(budget_s)}
    began = time.perf_counter()
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, script],
        cwd=folder,
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * budget_s + 1200,
        check=False,
    )
    wall_s = time.perf_counter() - began
    before, _, summary = done.stdout.rpartition("\n---\n")
    found = {name: float(value) for name, value in re.findall(r"^(\w+):\s+([\d.]+)$", summary, re.MULTILINE)}
    if done.returncode or "val_bpb" not in found:
        raise SystemExit(f"{script} failed:\n{done.stdout[-3000:]}")
    phases = re.search(r"^overhead_seconds: [\d.]+ \((.*)\)$", before, re.MULTILINE)
    named = (part.rsplit(" ", 1) for part in phases[1].split(", ")) if phases else ()
    found["seed"], found["wall_seconds"] = seed, wall_s
    found["overhead_seconds"] = wall_s - found["training_seconds"]
    speeds = [int(speed.replace(",", "")) for speed in re.findall(r"tok/sec: ([\d,]+)", before)]
    return found | {"tokens_per_second": statistics.median(speeds), "phases": {k: float(v) for k, v in named}}


def aggregate(runs: list[dict[str, Any]], cold: dict[str, Any]) -> dict[str, Any]:
    """What the runs of one trainer say together: means, and the spread of val_bpb over the seeds."""
    scores = [one["val_bpb"] for one in runs]
    means = ("tokens_per_second", "mfu_percent", "total_tokens_M", "num_steps", "overhead_seconds", "peak_vram_mb")
    return {
        "val_bpb": statistics.mean(scores),
        "spread": max(scores) - min(scores),
        **{name: statistics.mean(one[name] for one in runs) for name in means},
        "cold_overhead_seconds": cold["overhead_seconds"],
        "num_params_M": runs[0]["num_params_M"],
        "runs": runs,
    }


def judge(figures: dict[str, Any], device: str) -> list[tuple[str, bool]]:
    """What the trainer promises, and whether these figures keep it."""
    ours = figures["ours"]
    said = []
    if adamw := figures.get("adamw"):
        margin, spread = adamw["val_bpb"] - ours["val_bpb"], max(ours["spread"], adamw["spread"])
        said.append((f"better than AdamW by {margin:.4f}, more than the spread of {spread:.4f}", margin > spread))
    if upstream := figures.get("upstream"):
        margin = upstream["val_bpb"] - ours["val_bpb"]
        said.append((f"val_bpb not above upstream's: lower by {margin:.4f}", margin >= 0))
    if device == "cuda":
        said.append((f"MFU {ours['mfu_percent']:.1f} %, at least 45 %", ours["mfu_percent"] >= 45))
        millions = ours["total_tokens_M"] * 300 / ours["runs"][0]["training_seconds"]
        said.append((f"{millions:.0f} M tokens in 300 s, at least 550 M", millions >= 550))
        said.append((f"warm overhead {ours['overhead_seconds']:.1f} s, under 10 s", ours["overhead_seconds"] < 10))
    return said


ROWS = {
    "val_bpb": ".4f",
    "spread": ".4f",
    "tokens_per_second": ",.0f",
    "mfu_percent": ".1f",
    "total_tokens_M": ",.2f",
    "num_steps": ",.0f",
    "overhead_seconds": ".1f",
    "cold_overhead_seconds": ".1f",
    "peak_vram_mb": ",.0f",
    "num_params_M": ".1f",
}


def print_table(figures: dict[str, Any], device: str) -> None:
    """Print a column for each trainer, where the seconds of our overhead go, and what is kept of what is promised."""
    print(f"{'':<22}" + "".join(f"{name:>12}" for name in figures))
    for row, form in ROWS.items():
        print(f"{row:<22}" + "".join(f"{one[row]:>12{form}}" for one in figures.values()))
    phases = figures["ours"]["runs"][-1]["phases"]
    print("overhead of ours:     " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.items()))
    for said, kept in judge(figures, device):
        print(f"{'kept  ' if kept else 'MISSED'}  {said}")


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench trainer", description=__doc__)
    parser.add_argument("--budget", type=float, default=60, metavar="S", help="training seconds of a run (%(default)g)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each trainer (%(default)d)")
    parser.add_argument("--profile", help="cuda, mps, cpu or smoke; otherwise that of the device at hand")
    parser.add_argument("--corpus", metavar="PATH", help="as prepare.py takes it; otherwise the Python source here")
    parser.add_argument(
        "--adamw-lr", type=float, default=0.008, metavar="LR", help="of the AdamW (%(default)g); 0: none"
    )
    parser.add_argument(
        "--upstream", type=Path, metavar="PATH", help="a checkout of karpathy/autoresearch to compare with"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LOOPGRAPH_")}
    environment |= {"LOOPGRAPH_CACHE": os.environ["LOOPGRAPH_CACHE"]} if "LOOPGRAPH_CACHE" in os.environ else {}
    environment |= {"LOOPGRAPH_PROFILE": options.profile} if options.profile else {}
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        environment["TORCHINDUCTOR_CACHE_DIR"] = f"{temporary}/compiled"  # so that the first run is a cold one
        folders = {name: Path(temporary, name) for name in ("ours", "adamw", "upstream")}
        for folder in folders.values():
            folder.mkdir()
        scripts = {"ours": write_ours(folders["ours"])}
        command = [sys.executable, "prepare.py", *(["--corpus", options.corpus] if options.corpus else [])]
        subprocess.run(command, cwd=folders["ours"], env=environment, check=True, stdout=sys.stderr)  # noqa: S603
        asked = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-c", ASK], cwd=folders["ours"], env=environment, check=True, stdout=subprocess.PIPE
        )
        knobs = json.loads(asked.stdout)
        if options.adamw_lr:
            scripts["adamw"] = write_adamw(folders["adamw"], rate=options.adamw_lr)
        if options.upstream:
            scripts["upstream"] = write_upstream(folders["upstream"], checkout=options.upstream, knobs=knobs)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in scripts}
        for seed in range(options.seeds + 1):  # the one before the first compiles, and is short
            for name, script in scripts.items():
                if name != "ours":
                    shutil.copy(folders["ours"] / "corpus.json", folders[name])
                budget_s = options.budget if seed else 1.0
                one = run(script, folders[name], environment, seed=41 + seed, budget_s=budget_s)
                runs[name].append(one)
                what = f"{name}, seed {41 + seed}" if seed else f"{name}, to compile"
                print(
                    f"{what}: val_bpb {one['val_bpb']:.4f} after {one['wall_seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    figures = {name: aggregate(done[1:], done[0]) for name, done in runs.items()}
    if options.json:
        print(json.dumps({"device": knobs["DEVICE"], "budget_s": options.budget, "trainers": figures}, indent=2))
    else:
        print_table(figures, knobs["DEVICE"])


if __name__ == "__main__":
    main()
