"""Each recipe of the shipped pack, applied to the shipped trainer, must still train: in one process, for speed."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

import pytest

from loopgraph_mcp.code.apply import apply_method, detect
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Applied, Method, Presence, Present
from tests.conftest import ROOT

TRAINER = (ROOT / "trainer" / "train.py").read_text(encoding="utf-8")
METHODS = {method.id: method for method in read_pack(ROOT / "methodpacks").methods if method.has_edit}
MISSING = [name for name in ("torch", "tokenizers", "numpy") if importlib.util.find_spec(name) is None]
IN_THE_TRAINER = {
    "cautious-weight-decay",
    "normuon",
    "polar-express",
    "qk-norm",
    "relu-squared",
    "value-embeddings",
    "zero-init-projections",
}

needs_torch = pytest.mark.skipif(bool(MISSING), reason=f"the trainer needs {', '.join(MISSING)}")

# Trains each program for two steps, then holds the loss that it reports in evaluation against its own logits.
TRAIN = """
import importlib.util, json, sys, traceback
import harness, torch
import torch.nn.functional as F
from prepare import MAX_SEQ_LEN, evaluate_bpb, make_dataloader

def train(name):
    spec = importlib.util.spec_from_file_location(name, f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = harness.Run(max_steps=2, quiet=True)
    model = module.train(run).eval()
    x, y, _ = next(make_dataloader("val", 2, MAX_SEQ_LEN, 1, "cpu"))
    with torch.no_grad():
        logits = model(x)
        expected = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none")
        for reduction, loss in (("none", expected), ("mean", expected.mean())):
            assert torch.allclose(model(x, y, reduction=reduction), loss, atol=1e-4), f"its {reduction} loss is another"
        return {"steps": run.step, "val_bpb": evaluate_bpb(model, 8), "parameters": run.num_params}

for name in json.load(sys.stdin):
    try:
        found = train(name)
    except (Exception, SystemExit):
        found = {"error": traceback.format_exc()[-2000:]}
    print(json.dumps({"name": name, **found}), flush=True)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, float | str]]:
    """What came of each recipe's program, and of the trainer itself, by the recipe's id with underscores."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("harness.py", "prepare.py"):
        shutil.copy(ROOT / "trainer" / name, folder)
    programs = {"itself": TRAINER}
    for method in METHODS.values():
        made = apply_method(method, TRAINER, {})
        if isinstance(made, Applied):
            programs[method.id.replace("-", "_")] = made.text
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "LOOPGRAPH_PROFILE": "smoke",
        "LOOPGRAPH_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=folder,
        env=environment,
        input=json.dumps(list(programs)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@needs_torch
@pytest.mark.parametrize(
    "name", ["itself", *(each.replace("-", "_") for each in METHODS if each not in IN_THE_TRAINER)]
)
def test_the_trainer_trains_with_a_method(name: str, trained: Mapping[str, Mapping[str, float | str]]) -> None:
    found = trained[name]
    assert "error" not in found, found["error"]
    assert found["steps"] == 2
    assert math.isfinite(float(found["val_bpb"]))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_asked_for_again_is_present(method: Method) -> None:
    made = apply_method(method, TRAINER, {})
    if method.id in IN_THE_TRAINER:
        assert isinstance(made, Present), made
        assert detect(method, TRAINER) is Presence.PRESENT
    else:
        assert isinstance(made, Applied), made
        assert detect(method, made.text) is Presence.PRESENT
        assert isinstance(apply_method(method, made.text, {}), Present)
