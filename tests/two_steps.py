"""Trains each named file for two or three steps on the CPU; prints what never moved, or how it failed, as JSON.

Run by the tests in a process of its own: `python two_steps.py FILE…`. A file is the bundled trainer's train.py, or a
script in upstream's shape, whose `prepare` and `kernels` are stood in for here.
"""

import contextlib
import io
import itertools
import json
import os
import sys
import time
import types
from pathlib import Path

os.environ["LOOPGRAPH_PROFILE"] = "smoke"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "trainer"))

import torch  # noqa: E402 - the profile comes first
import torch.nn.functional as F  # noqa: E402, N812 - the field's name for it

WORDS, CONTEXT = 64, 32


def attention(q, k, v, *, causal, window_size):
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    groups = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def batches(rows, length, words):
    torch.manual_seed(1)
    while True:
        tokens = torch.randint(words, (rows, length + 1))
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), 1


def stand_ins():
    """The modules that upstream's shape imports."""
    prepare = types.ModuleType("prepare")
    prepare.MAX_SEQ_LEN, prepare.TIME_BUDGET = CONTEXT, 0.25
    prepare.evaluate_bpb = lambda model, tokenizer, batch_size: model(*next(batches(2, CONTEXT, WORDS))[:2]).item()
    prepare.make_dataloader = lambda tokenizer, rows, length, split: batches(rows, length, WORDS)
    prepare.Tokenizer = types.SimpleNamespace(
        from_directory=lambda: types.SimpleNamespace(get_vocab_size=lambda: WORDS)
    )
    kernels = types.ModuleType("kernels")
    interface = types.SimpleNamespace(flash_attn_interface=types.SimpleNamespace(flash_attn_func=attention))
    kernels.get_kernel = lambda repo: interface
    ticks = itertools.count()
    clock = types.ModuleType("time")
    clock.__dict__.update(vars(time))
    clock.time = lambda: next(ticks) / 10  # a step takes a tenth of a second, however long it takes
    return {"prepare": prepare, "kernels": kernels, "time": clock}


def train_script(space, text, name):
    """Run a script to its end, then make its model again as it began."""
    known = {key: sys.modules.get(key) for key in ("prepare", "kernels", "time")}
    sys.modules.update(stand_ins())
    try:
        exec(compile(text, name, "exec"), space)
    finally:
        for key, module in known.items():
            sys.modules.pop(key) if module is None else sys.modules.update({key: module})
    torch.manual_seed(42)
    with torch.device("meta"):
        first = space["GPT"](space["config"])
    first.to_empty(device="cpu")
    first.init_weights()
    return first, space["model"], space["optimizer"]


def train_trainer(space, text, name):
    exec(compile(text, name, "exec"), space)
    first, model = space["build"](), space["build"]()
    optimizer = model.setup_optimizer()
    loader = batches(2, space["MAX_SEQ_LEN"], space["VOCAB_SIZE"])
    for _ in range(2):
        x, y, _ = next(loader)
        model(x, y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return first, model, optimizer


def trained(path):
    """What is wrong with a file, or nothing."""
    text = path.read_bytes().decode("utf-8-sig")
    space = {"__name__": path.stem.replace("-", "_")}
    sys.modules[space["__name__"]] = module = types.ModuleType(space["__name__"])
    module.__dict__.update(space)
    how = train_trainer if "import harness" in text else train_script
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            first, model, optimizer = how(module.__dict__, text, str(path))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a program may fail in any way
        return f"{type(error).__name__}: {error}"
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lost = [name for name, p in model.named_parameters() if id(p) not in grouped]
    before = dict(first.named_parameters())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    told = [("no group", lost), ("never moved", still), ("not finite", broken)]
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told if names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argument in sys.argv[1:]:
        print(json.dumps([argument, trained(Path(argument))]), flush=True)
