"""The fixed frame of a run: its clock, budget, records, evaluation, summary and plan. Agents do not edit it.

train.py calls `main` with its parts, and a `Run` tells its loop when to stop. Import it before torch, whose
import is part of a run's overhead.
"""

import os
import time

STARTED = time.perf_counter()
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # fewer holes in the GPU's memory

import argparse
import contextlib
import ctypes
import gc
import json
import math
import pickle
import resource
import sys
from pathlib import Path

import torch
from torch import nn

# isort: split
from prepare import (
    BOS_ID,
    DEVICE,
    MAX_SEQ_LEN,
    MAX_STEPS,
    PROFILE,
    TIME_BUDGET,
    Tokenizer,
    evaluate_bpb,
    open_corpus,
)

if sys.platform == "linux":  # glibc would give large tensors back at every step and get zeroed pages for the next
    with contextlib.suppress(AttributeError):  # on a CPU that is a tenth of the step; musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its maximum
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 2**26)  # M_TOP_PAD

METRICS = Path("metrics.jsonl")
# What was trained, until it is evaluated; in a folder from outside it stays, to be evaluated again by verify.py.
STATE_DIR = os.environ.get("LOOPGRAPH_STATE_DIR", "")
STATE = Path(STATE_DIR, "state.pt")
FIGURES = {  # the summary, after val_bpb
    "training_seconds": ".1f",
    "total_seconds": ".1f",
    "peak_vram_mb": ".1f",
    "mfu_percent": ".2f",
    "total_tokens_M": ".1f",
    "num_steps": "d",
    "num_params_M": ".1f",
    "depth": "d",
}

# ----------------------------------------------------------------------------------------------------------
# Device

PEAK_FLOPS = {  # dense bf16 with fp32 sums, by a part of the device's name, from NVIDIA's data sheets; first match wins
    "B200": 2250e12, "H200 NVL": 835e12, "H200": 989.5e12,
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.5e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "A40": 149.7e12, "A10": 125e12,
    "RTX 5090": 209.5e12, "RTX 5080": 112.6e12, "RTX 5070 Ti": 87.9e12, "RTX 5070": 61.7e12,
    "RTX 4090": 165.2e12, "RTX 4080": 97.5e12, "RTX 3090": 71e12,
}  # fmt: skip


def device_name():
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"{DEVICE} ({torch.get_num_threads()} threads)"


def peak_flops(name):
    """The peak in FLOP/s of the device of this name, or 0.0 where it is unknown."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), 0.0)


def peak_memory_mb():
    """Of the GPU on CUDA; elsewhere the resident memory of this process."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def is_out_of_memory(error):
    """CUDA has a type for it; MPS and the CPU only say so."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


def fail(reason):
    print(f"\n{reason}\nFAIL", flush=True)
    sys.exit(1)


# ----------------------------------------------------------------------------------------------------------
# A run


class MetricsFile:
    """A line of JSON a step, for plots. A full disk ends the file, not the run."""

    def __init__(self):
        self.writable = True
        with contextlib.suppress(OSError):
            METRICS.unlink(missing_ok=True)  # rather than write into what a link points to

    def add(self, **values):
        try:
            if self.writable:
                with METRICS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(values) + "\n")
        except OSError as error:
            print(f"\n{METRICS}: no more lines ({error.strerror})")
            self.writable = False


class Run:
    """Counts the seconds of a run by phase, from the start of the process, and says when training ends."""

    def __init__(self, *, max_steps=MAX_STEPS, quiet=False):
        self.max_steps = max_steps
        self.quiet = quiet
        self.step = 0
        self.smooth_loss = 0.0
        self.seconds = {}
        self.since = STARTED
        self.end("imports")

    def end(self, phase):
        """Count the time since the last phase ended as `phase`, and return it."""
        now = time.perf_counter()
        took, self.since = now - self.since, now
        self.seconds[phase] = self.seconds.get(phase, 0.0) + took
        return took

    def begin(self, model, *, tokens_per_step, untimed_steps):
        """Say what is trained; the next thing is the first step."""
        self.num_params = sum(p.numel() for p in model.parameters())
        self.depth = model.config.n_layer
        self.flops_per_step = model.estimate_flops() * tokens_per_step
        self.tokens_per_step = tokens_per_step
        self.untimed_steps = untimed_steps
        self.peak = peak_flops(device_name())
        if not self.quiet:
            print(f"Model: {model.config}")
            print(
                f"Parameters: {self.num_params:,}; on {device_name()}, profile {PROFILE}, {TIME_BUDGET:g} s", flush=True
            )
        self.metrics = None if self.quiet else MetricsFile()
        self.end("model")

    @property
    def training_seconds(self):
        return self.seconds.get("training", 0.0)

    @property
    def progress(self):
        """From 0 to 1 over the budget. A run bounded in steps goes by steps, and so can be repeated exactly."""
        return max(self.training_seconds / TIME_BUDGET, self.step / self.max_steps if self.max_steps else 0.0)

    def goes_on(self):
        return self.training_seconds < TIME_BUDGET and self.step != self.max_steps

    def record(self, loss, *, lr_multiplier, epoch):
        """Count a step that ends now: the loss is a number, so the device has done its work."""
        progress = self.progress
        if math.isnan(loss) or loss > 100:
            fail(f"the loss is {loss} at step {self.step}")
        took = self.end("first steps" if self.step < self.untimed_steps else "training")
        self.step += 1
        self.smooth_loss = 0.9 * self.smooth_loss + 0.1 * loss
        if self.step == 1:  # a collection in mid-run would stall the GPU, and there is little to collect
            gc.collect()
            gc.freeze()
            gc.disable()
        if self.quiet:
            return
        mfu = 100 * self.flops_per_step / took / self.peak if self.peak else 0.0
        smooth_loss = self.smooth_loss / (1 - 0.9**self.step)
        print(
            f"\rstep {self.step - 1:05d} ({100 * progress:.1f}%) | loss: {smooth_loss:.6f} | "
            f"lrm: {lr_multiplier:.2f} | dt: {took * 1000:.0f}ms | tok/sec: {int(self.tokens_per_step / took):,} | "
            f"mfu: {mfu:.1f}% | epoch: {epoch} | remaining: {max(0.0, TIME_BUDGET - self.training_seconds):.0f}s    ",
            end="",
            flush=True,
        )
        self.metrics.add(
            step=self.step - 1,
            seconds=round(self.training_seconds, 3),
            loss=loss,
            lr_multiplier=round(lr_multiplier, 6),
            tokens=self.step * self.tokens_per_step,
            memory_mb=round(peak_memory_mb(), 1),
        )

    def timed_steps(self):
        return max(0, self.step - self.untimed_steps)

    def figures(self):
        """What the summary says of the training."""
        seconds = self.training_seconds
        mfu = self.timed_steps() * self.flops_per_step / seconds / self.peak if seconds and self.peak else 0.0
        return {
            "training_seconds": seconds,
            "peak_vram_mb": peak_memory_mb(),
            "mfu_percent": 100 * mfu,
            "total_tokens_M": self.step * self.tokens_per_step / 1e6,
            "num_steps": self.step,
            "num_params_M": self.num_params / 1e6,
            "depth": self.depth,
        }


# ----------------------------------------------------------------------------------------------------------
# After training


def save_state(model, figures):
    """Keep what was trained until it is evaluated; one rename, so that what is there is whole."""
    draft = STATE.with_suffix(f".{os.getpid()}")
    try:
        torch.save({"model": model.state_dict(), "figures": figures}, draft)
        draft.replace(STATE)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        draft.unlink(missing_ok=True)
        print(f"{STATE} was not saved ({error}); the evaluation goes on without it")


def load_state(model):
    """Put back what an evaluation that did not end left behind; return its figures."""
    try:
        state = torch.load(STATE, map_location=DEVICE, weights_only=True)
        model.load_state_dict(state["model"])
    except FileNotFoundError:
        raise SystemExit(f"{STATE}: not here; it is left behind by an evaluation that did not end") from None
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        said = str(error).partition("\n")[0]
        raise SystemExit(f"{STATE}: cannot be used with this train.py ({said})") from None
    return state["figures"]


def evaluate(model, rows, autocast):
    """val_bpb, with half the rows at once whenever memory runs out."""
    model.eval()
    # FlexAttention needs the compiler; elsewhere compiling would take longer than the evaluation.
    call = torch.compile(model, dynamic=False) if DEVICE == "cuda" else model
    while True:
        try:
            with autocast():
                val_bpb = evaluate_bpb(call, rows)
            break
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        rows //= 2
        print(f"The evaluation ran out of memory: again, with {rows} rows at once", flush=True)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    if math.isnan(val_bpb):
        fail("val_bpb is nan")
    return val_bpb


@torch.no_grad()
def write_sample(model, length, autocast):
    """Print what the model writes from the start of a document, indented so that no line looks like ours."""
    tokenizer = Tokenizer.load(open_corpus().folder / "tokenizer.json")
    ids = torch.full((1, MAX_SEQ_LEN), BOS_ID, device=DEVICE)
    length = min(length, MAX_SEQ_LEN - 1)
    model.eval()
    for position in range(length):
        with autocast():
            logits = model(ids)[0, position, :BOS_ID].float()  # the document never ends
        ids[0, position + 1] = torch.multinomial((logits / 0.8).softmax(dim=-1), 1)
    lines = tokenizer.decode(ids[0, 1 : length + 1].tolist()).splitlines()
    print("sample:", *("".join(c if c.isprintable() else " " for c in line) for line in lines), sep="\n    ")


def print_summary(val_bpb, figures, seconds):
    overhead = {phase: took for phase, took in seconds.items() if phase != "training"}
    spent = ", ".join(f"{phase} {took:.1f}" for phase, took in overhead.items())
    print(f"overhead_seconds: {sum(overhead.values()):.1f} ({spent})")
    print("---")
    print(f"{'val_bpb:':<17} {val_bpb:.6f}")
    for name, form in FIGURES.items():
        print(f"{name + ':':<17} {figures[name]:{form}}")


# ----------------------------------------------------------------------------------------------------------
# The plan


def plan_memory(model, rows, *, autocast, compiled):
    """Bytes of a training step by what they hold, counted on tensors without data. Empties the model.

    For the 50 M parameters of the cuda profile it gives 44,991 MiB, where upstream's equal model reports a
    peak of 45,060 on an H100.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415 - for a dry run alone

    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()  # noqa: SLF001 - fake storages have no address
        return tensor

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for held in (module._parameters, module._buffers):  # noqa: SLF001 - .to() cannot make them fake
                for name, full in held.items():
                    if full is not None:
                        empty = torch.empty(full.shape, dtype=full.dtype, device=DEVICE)
                        held[name] = nn.Parameter(empty) if isinstance(full, nn.Parameter) else empty
        # This backend keeps for the backward pass what a compiled model keeps, and builds no kernels.
        call = torch.compile(model, dynamic=False, backend="aot_eager_decomp_partition") if compiled else model
        x = torch.zeros(rows, MAX_SEQ_LEN, dtype=torch.long, device=DEVICE)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast():
            call(x, x)
        params = list(model.parameters())
        for p in params:
            kept.pop(p.untyped_storage()._cdata, None)  # noqa: SLF001
            p.grad = torch.empty_like(p)
        optimizer = model.setup_optimizer()
        with torch.compiler.set_stance("force_eager"):
            optimizer.step()
        states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        parts = {"weights": size(params), "gradients": size(params), "optimizer": size(states)}
        return parts | {"activations": sum(kept.values())}


def print_plan(build, train, *, rows, tokens_per_step, autocast, compiled):
    """Print what a run would do; where the device's peak is unknown, a few steps are timed."""
    model = build(attention="sdpa")
    config, flops = model.config, model.estimate_flops()
    num_params = sum(p.numel() for p in model.parameters())
    corpus_tokens = len(open_corpus().tokens["train"])
    memory = plan_memory(model, rows, autocast=autocast, compiled=compiled)
    total = sum(memory.values())
    parts = ", ".join(f"{part} {size / 2**20:,.0f}" for part, size in memory.items())
    print(f"device:      {device_name()}, profile {PROFILE}, {'compiled' if compiled else 'eager'}")
    print(f"model:       {config}")
    print(f"parameters:  {num_params:,}")
    print(f"step:        {tokens_per_step:,} tokens, {rows:,} rows of {MAX_SEQ_LEN:,} at once")
    print(f"flops:       {flops / 1e6:,.1f} M a token, {flops * tokens_per_step / 1e9:,.1f} G a step")
    print(f"memory_mb:   about {total / 2**20:,.0f} of tensors ({parts})", flush=True)
    if DEVICE == "cuda" and total > (free := torch.cuda.mem_get_info()[0]):
        print(f"             more than the {free / 2**20:,.0f} that are free: lower DEVICE_BATCH_SIZE={rows}")
    if peak := peak_flops(device_name()):
        speed, source = 0.4 * peak / flops, "if it uses 40 % of the device's peak"
    else:
        print("speed:       timing a few steps; where the first one compiles, it can take a minute", flush=True)
        run = Run(max_steps=10, quiet=True)
        train(run)
        speed, source = run.timed_steps() * tokens_per_step / run.training_seconds, "as just timed"
    seen = speed * TIME_BUDGET
    print(f"speed:       {speed:,.0f} tokens/s, {source}")
    print(
        f"budget:      {TIME_BUDGET:g} s: about {seen / 1e6:,.1f} M tokens in {seen / tokens_per_step:,.0f} steps, "
        f"{seen / corpus_tokens:.1f} times through the corpus"
    )


# ----------------------------------------------------------------------------------------------------------


def main(build, train, *, autocast, compiled, rows, eval_rows, tokens_per_step):
    """The command line of train.py.

    `build(attention)` gives the model on the CPU, `train(run)` a trained one on the device, `autocast()` the
    precision to evaluate in; `rows` are taken at once in training, `eval_rows` in the evaluation.
    """
    parser = argparse.ArgumentParser(description="Train for the budget, evaluate, print the summary.")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and train nothing")
    parser.add_argument("--evaluate", action="store_true", help=f"evaluate the {STATE} that an earlier run left")
    parser.add_argument("--answer", metavar="FILES", help=argparse.SUPPRESS)  # how verify.py starts train.py
    parser.add_argument("--sample", type=int, metavar="N", default=0, help="print N tokens that the model writes")
    options = parser.parse_args()
    try:
        if options.dry_run:
            parts = {"autocast": autocast, "compiled": compiled, "tokens_per_step": tokens_per_step}
            print_plan(build, train, rows=rows, **parts)
            return
        if options.answer:
            import verify  # noqa: PLC0415 - for this alone

            model = build()
            load_state(model)
            verify.answer(model.to(DEVICE), eval_rows, autocast, options.answer)
            return
        run = Run()
        open_corpus()
        run.end("corpus")
        if options.evaluate:
            model = build()
            figures = load_state(model)
            model.to(DEVICE)
            run.end("model")
        else:
            model = train(run)
            figures = run.figures()
            print()
            save_state(model, figures)
            run.end("saving")
        if options.sample:
            write_sample(model, options.sample, autocast)
            run.end("sample")
        val_bpb = evaluate(model, eval_rows, autocast)
        run.end("evaluation")
        total = figures["training_seconds"] + sum(took for phase, took in run.seconds.items() if phase != "training")
        print_summary(val_bpb, figures | {"total_seconds": total}, run.seconds)
        if not STATE_DIR:
            STATE.unlink(missing_ok=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if STATE.exists():
            fail(f"out of memory; what was trained is kept in {STATE}: python train.py --evaluate")
        lower = f"lower DEVICE_BATCH_SIZE={rows} (the step stays as it is)" if rows > 1 else "make the model smaller"
        fail(f"out of memory: {lower}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
