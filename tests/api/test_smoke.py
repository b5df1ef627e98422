"""A tiny step of an edited program: it passes, it fails by the edit's own fault, or it cannot be told."""

import os
import sys
from pathlib import Path

import pytest

from loopgraph_mcp.api import smoke
from loopgraph_mcp.code import fits
from loopgraph_mcp.runner.workspace import Workspace, load_workspace

MODEL = """
import torch
import torch.nn as nn
import torch.nn.functional as F
from dataclasses import dataclass

@dataclass
class GPTConfig:
    vocab_size: int = 50257
    n_layer: int = 12
    n_embd: int = 768

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(nn.Linear(config.n_embd, config.n_embd) for _ in range(config.n_layer))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, idx, targets):
        x = self.wte(idx)
        for layer in self.layers:
            x = x + layer(x)
        logits = self.lm_head(x)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

data = open("no such file")
for step in range(3):
    pass
"""


def workspace(root: Path, *, allows: bool = True) -> Workspace:
    declared = f'[workspace]\ncommand = ["{{python}}", "train.py"]\nsmoke = {str(allows).lower()}\n'
    (root / "loopgraph.toml").write_text(declared)
    (root / "train.py").write_text(MODEL)
    return load_workspace(root)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(smoke, "LIMIT_S", 120.0)  # torch alone takes long to import on a busy machine
    monkeypatch.setattr(smoke, "python_of", lambda _: sys.executable)


async def test_an_edit_that_breaks_the_step_is_told_by_its_error_and_line(tmp_path: Path) -> None:
    where = workspace(tmp_path)
    fine = MODEL.replace("x = x + layer(x)", "x = x + F.relu(layer(x)).square()")
    assert await smoke.smoke(where, MODEL, fine, os.environ) == "passed"
    broken = MODEL.replace("x = x + layer(x)", "x = x + layer(x[..., :3])")
    answer = await smoke.smoke(where, MODEL, broken, os.environ)
    assert answer.startswith("failed: RuntimeError")
    assert "(line 23)" in answer


async def test_what_takes_no_step_by_itself_blames_no_edit(tmp_path: Path) -> None:
    where = workspace(tmp_path)
    unknown = MODEL.replace("self.wte(idx)", "self.wte(kernel(idx))")
    answer = await smoke.smoke(where, unknown, unknown + "\n", os.environ)
    assert answer.startswith("not possible here: the program without the edit takes no step")
    assert "no torch model" in await smoke.smoke(where, "x = 1\n", "x = 2\n", os.environ)
    closed = workspace(tmp_path, allows=False)
    assert "does not say smoke = true" in await smoke.smoke(closed, MODEL, MODEL, os.environ)


def test_a_program_that_is_no_model_is_none_whatever_its_language() -> None:
    assert fits.is_model(MODEL)
    assert fits.is_model("RATE = 1\n", "val_bpb")
    for program in ("const rate = 0.5;\n", "from sklearn import svm\nC = 1.0\n", "You are helpful.\n"):
        assert not fits.is_model(program, "accuracy")
