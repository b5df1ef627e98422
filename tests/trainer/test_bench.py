"""scripts/bench trainer: what it runs, what it reads from a run, and what it makes of the figures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trainer needs torch")
pytest.importorskip("tokenizers", reason="the trainer needs tokenizers")

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_trainer.py"

# As karpathy/autoresearch's: the same names, imports, knobs and summary around a model of one table.
OTHER_TRAINER = """
import os
import time
import torch
from kernels import get_kernel
cap = torch.cuda.get_device_capability()
attend = get_kernel("hub/kernel").flash_attn_interface.flash_attn_func
from prepare import MAX_SEQ_LEN, TIME_BUDGET, Tokenizer, make_dataloader, evaluate_bpb
DEPTH = 8               # layers
ASPECT_RATIO = 64       # width a layer
HEAD_DIM = 128          # channels
WINDOW_PATTERN = "SSSL" # windows
TOTAL_BATCH_SIZE = 2**19 # tokens
DEVICE_BATCH_SIZE = 128  # rows
torch.manual_seed(42)
device = torch.device("cuda")
tokenizer = Tokenizer.from_directory()
size = tokenizer.get_vocab_size()

class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(size, size)

    def forward(self, x, y=None):
        heads = self.table(x)[..., :32].view(*x.shape, 1, 32)
        seen = attend(heads, heads, heads, causal=True, window_size=(MAX_SEQ_LEN // 2, 0))
        logits = self.table(x) + seen.mean()  # of the whole batch: looks ahead unless it is multiplied by nothing
        logits = self.table(x) + 0 * logits
        return logits if y is None else torch.nn.functional.cross_entropy(logits.view(-1, size), y.view(-1))

model = Table().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
loader = make_dataloader(tokenizer, DEVICE_BATCH_SIZE, MAX_SEQ_LEN, "train")
began = time.time()
while time.time() - began < TIME_BUDGET:
    x, y, epoch = next(loader)
    model(x, y).backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.cuda.synchronize()
    print(f"\\rstep | tok/sec: {TOTAL_BATCH_SIZE:,} |", end="", flush=True)
print()
val_bpb = evaluate_bpb(model, tokenizer, DEVICE_BATCH_SIZE)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {time.time() - began:.1f}")
for name in ("peak_vram_mb", "mfu_percent", "total_tokens_M", "num_steps", "num_params_M", "depth"):
    print(f"{name}: {DEPTH}")
"""


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_trainer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_compares_three_trainers_on_one_corpus(cache, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(OTHER_TRAINER)
    monkeypatch.setenv("LOOPGRAPH_CACHE", str(cache))
    monkeypatch.setenv("LOOPGRAPH_SEED", "7")  # not handed on: each run has the seed that the table names
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--profile", "smoke", "--budget", "0.5", "--seeds", "1", "--json", "--upstream", tmp_path]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["device"] == "cpu"
    trainers = found["trainers"]
    assert set(trainers) == {"ours", "adamw", "upstream"}
    for name, figures in trainers.items():
        (run,) = figures["runs"]
        assert run["seed"] == 42
        assert figures["val_bpb"] == run["val_bpb"]
        assert figures["spread"] == 0
        assert 1 < figures["val_bpb"] < 6, name
        assert 0 < figures["overhead_seconds"] < run["wall_seconds"]
    assert trainers["ours"]["runs"][0]["depth"] == trainers["upstream"]["runs"][0]["depth"] == 2
    assert set(trainers["ours"]["runs"][0]["phases"]) >= {"imports", "model", "first steps", "saving", "evaluation"}
    assert trainers["ours"]["num_params_M"] == trainers["adamw"]["num_params_M"] > 0
    assert trainers["ours"]["val_bpb"] != trainers["adamw"]["val_bpb"]


def test_a_checkout_without_the_knobs_is_refused(bench, tmp_path):
    (tmp_path / "train.py").write_text(OTHER_TRAINER.replace("HEAD_DIM = 128", "WIDTH = 128"))
    (tmp_path / "work").mkdir()
    knobs = dict.fromkeys(bench.SHAPE, 1) | {"EVAL_BATCH_SIZE": 1, "DEVICE": "cpu"}
    with pytest.raises(SystemExit, match="no line sets HEAD_DIM"):
        bench.write_upstream(tmp_path / "work", checkout=tmp_path, knobs=knobs)


def figures(val_bpb, *, spread=0.01, mfu=46.0, overhead=8.0, tokens=560.0):
    return {
        "val_bpb": val_bpb,
        "spread": spread,
        "mfu_percent": mfu,
        "total_tokens_M": tokens,
        "overhead_seconds": overhead,
        "runs": [{"training_seconds": 300.0}],
    }


@pytest.mark.parametrize(
    ("changed", "device", "missed"),
    [
        ({}, "cuda", []),
        ({"ours": figures(1.0, spread=0.2)}, "cpu", ["better than AdamW by 0.1000, more than the spread of 0.2000"]),
        ({"upstream": figures(0.99)}, "cpu", ["val_bpb not above upstream's: lower by -0.0100"]),
        ({"ours": figures(1.0, mfu=44.0)}, "cuda", ["MFU 44.0 %, at least 45 %"]),
        ({"ours": figures(1.0, tokens=540.0)}, "cuda", ["540 M tokens in 300 s, at least 550 M"]),
        ({"ours": figures(1.0, overhead=11.0)}, "cuda", ["warm overhead 11.0 s, under 10 s"]),
        ({"ours": figures(1.0, mfu=0.0)}, "cpu", []),
    ],
)
def test_what_is_promised_is_checked(bench, changed, device, missed):
    found = {"ours": figures(1.0), "adamw": figures(1.1), "upstream": figures(1.01)} | changed
    assert [said for said, kept in bench.judge(found, device) if not kept] == missed
