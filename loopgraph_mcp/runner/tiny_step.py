"""Builds a program's model at a tiny size and trains it for one step; run as a script by the workspace's own Python.

    python tiny_step.py FILE MODEL CONFIG

Only the file's imports, definitions and plain assignments are executed: no loop, no data, no device. It prints one line
of JSON: `passed`, or the `error` and where it happened. It needs only the standard library and the program's torch.
"""

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

LAYERS, HEADS, WIDTH, WORDS, LENGTH = 2, 2, 64, 128, 32
# How sizes are called in constructors and configurations; what has another name keeps its default.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "depth", "layers"), LAYERS),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "heads"), HEADS),
    **dict.fromkeys(("n_kv_head", "n_kv_heads", "num_kv_heads"), HEADS),
    **dict.fromkeys(("n_embd", "model_dim", "dim", "d_model", "width", "hidden_size", "embed_dim"), WIDTH),
    **dict.fromkeys(("vocab_size", "num_vocab", "padded_vocab_size"), WORDS),
    **dict.fromkeys(("sequence_len", "block_size", "seq_len", "max_seq_len", "context", "sequence_length"), LENGTH),
    **dict.fromkeys(("mlp_mult",), 2),
    **dict.fromkeys(("dropout",), 0.0),
    **dict.fromkeys(("bias",), False),
    **dict.fromkeys(("tie_embeddings",), False),
    **dict.fromkeys(("logit_softcap",), 30.0),
    **dict.fromkeys(("rope_base", "rope_theta"), 10000.0),
    **dict.fromkeys(("tied_embed_init_std",), 0.02),
    **dict.fromkeys(("qk_gain_init",), 1.0),
}
_STATEMENTS = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)


def stand_ins(torch: Any) -> None:
    """Put a plain attention where programs import kernels of a device, unless they are installed."""
    functional = torch.nn.functional

    def flash(q: Any, k: Any, v: Any, **_: Any) -> Any:
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        groups = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    interface = types.SimpleNamespace(flash_attn_func=flash)
    for name in ("kernels", "flash_attn", "flash_attn_interface"):
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001 - a kernel that cannot be loaded here, whatever the reason
            module = types.ModuleType(name)
            module.get_kernel = lambda *_, **__: types.SimpleNamespace(  # type: ignore[attr-defined]
                flash_attn_interface=interface, flash_attn_func=flash
            )
            module.flash_attn_func = flash  # type: ignore[attr-defined]
            sys.modules[name] = module


def definitions(path: str) -> dict[str, Any]:
    """Execute a file's imports, definitions and assignments one by one; what fails is left out."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses look their module up
    space = module.__dict__
    for node in tree.body:
        if not isinstance(node, _STATEMENTS):
            continue
        code = compile(ast.Module([node], []), path, "exec")
        try:
            exec(code, space)  # noqa: S102 - the workspace's own program, as a run of it would
        except Exception:  # noqa: BLE001 - what asks for a device or data is nothing here
            if isinstance(node, ast.Assign):
                space.update({each.id: None for each in node.targets if isinstance(each, ast.Name)})
    return space


def model_of(space: dict[str, Any], model: str, config: str) -> Any:
    """Build the model at a tiny size."""
    kind = space[model]
    given = inspect.signature(kind.__init__).parameters
    if config:
        return kind(sized(space[config]))
    wanted = [name for name, each in given.items() if name != "self" and each.default is inspect.Parameter.empty]
    return kind(**{name: SIZES[name] for name in wanted})


def sized(config: Any) -> Any:
    """Return a configuration with tiny sizes."""
    names = [*inspect.signature(config).parameters]
    made = config(**{name: SIZES[name] for name in names if name in SIZES and name not in {"bias", "dropout"}})
    for name, value in SIZES.items():
        if not names and hasattr(made, name):
            setattr(made, name, value)
    return made


def step(torch: Any, model: Any) -> None:
    """Train a model for one step: forward, backward, and its own optimizer where it makes one without arguments."""
    if hasattr(model, "init_weights"):
        with contextlib.suppress(TypeError):
            model.init_weights()
    model.train()
    tokens = torch.randint(WORDS, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    losses = [each for each in (made if isinstance(made, tuple) else (made,)) if torch.is_tensor(each)]
    loss = next(each for each in losses if each.ndim == 0)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the first loss is {loss.item()}")
    loss.backward()
    optimizer = None
    for name in ("setup_optimizer", "setup_optimizers"):
        if hasattr(model, name):
            optimizer = getattr(model, name)()
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for each in optimizer if isinstance(optimizer, list | tuple) else [optimizer]:
        each.step()


def main() -> None:
    """Say in one line what came of it."""
    here = str(Path(__file__).resolve().parent)  # a script's own folder comes first: its queue.py would be taken
    sys.path[:] = [each for each in sys.path if os.path.realpath(each or ".") != here]
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # to compile would take a minute
    path, model, config = sys.argv[1:4]
    told: dict[str, str] = {}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            torch = importlib.import_module("torch")
            torch.set_num_threads(1)
            torch.manual_seed(0)
            stand_ins(torch)
            space = definitions(path)
            step(torch, model_of(space, model, config))
        except Exception as error:  # noqa: BLE001 - the program's failure is what is asked for
            frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename == path]
            where = f" (line {frames[-1].lineno})" if frames else ""
            told = {"error": f"{type(error).__name__}: {error}"[:300] + where}
    sys.stdout.write(json.dumps(told or {"passed": "yes"}))


if __name__ == "__main__":
    main()
