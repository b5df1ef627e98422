"""Pretrain a small GPT for a fixed time, then print its bits per byte on held-out text.

    python train.py                train, evaluate, print the summary
    python train.py --sample 200   and then let the model write 200 tokens
    python train.py --dry-run      print the plan: parameters, FLOPs, memory, tokens in the budget
    python train.py --evaluate     evaluate the state.pt that an interrupted evaluation left behind

Everything in this file is an agent's to change: the architecture, the optimizer, the batch, the schedules.
What must stay comparable (text, tokens, context length, metric) is in prepare.py, and the frame of a run
(clock, budget, evaluation, summary) in harness.py. Each step adds a line to metrics.jsonl.
"""

# isort: off
import harness  # before torch: the clock of a run starts here
# isort: on

import importlib.util
import math
import os
import shutil
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.optim.adamw import adamw

# isort: split
from prepare import DEVICE, MAX_SEQ_LEN, PROFILE, SEED, VOCAB_SIZE, make_dataloader, on

# ----------------------------------------------------------------------------------------------------------
# Knobs. `on` picks the value of the present profile.

# Model
DEPTH = on(cuda=8, mps=6, cpu=4, smoke=2)  # layers; the width follows from it
ASPECT_RATIO = on(cuda=64, mps=64, cpu=32, smoke=32)  # width = DEPTH * ASPECT_RATIO, up to a whole head
HEAD_DIM = on(cuda=128, mps=64, cpu=64, smoke=32)  # 128 fills a tensor core; narrow models need more heads
WINDOW_PATTERN = on(cuda="SSSL", mps="SSL", cpu="SL", smoke="SL")  # S = half the context, L = all of it

# Batch
TOTAL_BATCH_SIZE = on(cuda=2**19, mps=2**14, cpu=2**11, smoke=2**9)  # tokens a step; small = more steps
DEVICE_BATCH_SIZE = on(cuda=128, mps=16, cpu=8, smoke=8)  # rows at once; lower it if memory runs out
EVAL_BATCH_SIZE = on(cuda=32, mps=16, cpu=8, smoke=8)  # rows at once in the evaluation, which holds all logits

# Optimizer. Adam's rates are for width 768 and grow with 1/sqrt(width); Muon's need no scaling.
EMBEDDING_LR = 0.6  # token and value embeddings: each row sees few gradients, so steps are large
UNEMBEDDING_LR = 0.004  # lm_head: every row moves at every step
MATRIX_LR = 0.04  # Muon, for the blocks' matrices
SCALAR_LR = 0.5  # per-layer scalars
WEIGHT_DECAY = 0.2  # cautious, on Muon's matrices only; fades to zero
ADAM_BETAS = (0.8, 0.95)  # short memories for a short run

# Schedule, in fractions of the budget
WARMUP_RATIO = 0.0  # normalised updates and zero-init projections start safely without one
WARMDOWN_RATIO = 0.5  # linear decay over the last half
FINAL_LR_FRAC = 0.0  # of the initial rate, at the very end

UNTIMED_STEPS = on(cuda=3, mps=1, cpu=2, smoke=1)  # compilation and first touches stay out of the budget

# ----------------------------------------------------------------------------------------------------------
# Device


def has_fast_bf16():
    """Whether this CPU multiplies bfloat16 in hardware; without it, autocast would be slower than fp32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def has_compiler():
    """Whether torch.compile can build C++ here."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))


ON_CUDA = DEVICE == "cuda"
# bf16 matmuls over fp32 weights. Not on MPS: from no gain to a sixth slower on an M1 and an M4 (nanochat #244, #685).
AUTOCAST = ON_CUDA or (DEVICE == "cpu" and has_fast_bf16())
# On two CPU cores a compiled model takes 1.5 times as many steps; MPS runs eagerly, as do runs of ten steps.
COMPILE = ON_CUDA or (PROFILE == "cpu" and has_compiler())


def find_attention():
    """The kernel that wastes least on sliding windows: FlashAttention 3, FlexAttention or SDPA."""
    if not ON_CUDA or torch.cuda.get_device_capability() < (8, 0):
        return "sdpa"
    hopper = torch.cuda.get_device_capability()[0] == 9
    return "flash3" if hopper and importlib.util.find_spec("flash_attn_interface") else "flex"


ATTENTION = find_attention()
if ATTENTION == "flash3":
    from flash_attn_interface import flash_attn_func

if COMPILE:
    dynamo = importlib.import_module("torch._dynamo.config")
    dynamo.recompile_limit = 64  # one optimizer step function serves parameters of many shapes
    dynamo.suppress_errors = not ON_CUDA  # a CPU without a working toolchain runs eagerly


def compiled_on_cuda(function):
    """Compile an optimizer step where it runs often enough to pay; on a CPU it gains nothing."""
    return torch.compile(function, dynamic=False, fullgraph=True) if ON_CUDA else function


def scalar(value):
    """A float; for compiled code a tensor, so that a changed value is no reason to compile again."""
    return torch.tensor(float(value)) if ON_CUDA else float(value)


# ----------------------------------------------------------------------------------------------------------
# Model


@dataclass
class GPTConfig:
    sequence_len: int = 2048
    vocab_size: int = 8192
    n_layer: int = 8
    n_head: int = 4
    n_kv_head: int = 4  # any divisor of n_head: fewer is grouped-query attention, one is multi-query
    n_embd: int = 512
    window_pattern: str = "SSSL"
    attention: str = "sdpa"  # or flex, flash3


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def has_value_embedding(layer, n_layer):
    """Every second layer, counted so that the last one has it."""
    return (n_layer - 1 - layer) % 2 == 0


def apply_rotary(x, cos, sin):
    """Turn each pair (x[i], x[i + D/2]) of a head by its position's angle; x is (B, T, H, D)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def window_mask(attention, seq_len, window, device):
    """What `attention` needs to know to let a query see itself and the `window` tokens before it."""

    def seen(_batch, _head, query, key):
        return (query >= key) & (query - key <= window)

    if attention == "flash3":
        return window
    if attention == "flex":
        return create_block_mask(seen, None, None, seq_len, seq_len, device=device)
    position = torch.arange(seq_len, device=device)
    return None if window >= seq_len else seen(None, None, position[:, None], position)


def attend(q, k, v, mask, attention):
    """Causal attention over (B, T, H, D); k and v may have fewer heads, each for a group of q's."""
    if attention == "flash3":
        y = flash_attn_func(q, k, v, causal=True, window_size=(mask, 0))
        return y[0] if isinstance(y, tuple) else y
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    groups = q.size(1) // k.size(1)
    if attention == "flex":
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=groups > 1).transpose(1, 2)
    if groups > 1:  # repeated rather than enable_gqa, which not every kernel takes together with a mask
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2)


class CausalSelfAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        if config.n_embd % config.n_head or config.n_head % config.n_kv_head:
            raise ValueError(f"n_head must divide n_embd, and n_kv_head must divide n_head: {config}")
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.n_embd // config.n_head
        self.c_q = nn.Linear(config.n_embd, self.n_head * self.head_dim, bias=False)
        self.c_k = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.attention = config.attention
        self.gate_width = min(32, config.n_embd)  # a gate per head needs only a glance at the input
        gated = has_value_embedding(layer, config.n_layer)
        self.ve_gate = nn.Linear(self.gate_width, self.n_kv_head, bias=False) if gated else None

    def forward(self, x, ve, cos_sin, mask):
        B, T, C = x.size()
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        if ve is not None:  # the token's own value, as much of it as the gate lets through
            gate = 2 * torch.sigmoid(self.ve_gate(x[..., : self.gate_width]))
            v = v + gate.unsqueeze(-1) * ve.view(B, T, self.n_kv_head, self.head_dim)
        dtype = q.dtype  # what autocast made of it
        q = norm(apply_rotary(q, *cos_sin))
        k = norm(apply_rotary(k, *cos_sin))
        y = attend(q.to(dtype), k.to(dtype), v.to(dtype), mask, self.attention)
        return self.c_proj(y.reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x):
        x = self.c_fc(x)
        x = F.relu(x).square()
        x = self.c_proj(x)
        return x  # noqa: RET504 - one step a line, for edits to stand between


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, ve, cos_sin, mask):
        x = x + self.attn(norm(x), ve, cos_sin, mask)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        head_dim = config.n_embd // config.n_head
        blocks = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.value_embeds = nn.ModuleDict()
        for layer in range(config.n_layer):
            if has_value_embedding(layer, config.n_layer):
                self.value_embeds[str(layer)] = nn.Embedding(config.vocab_size, config.n_kv_head * head_dim)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))  # how much of the stream goes on
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))  # how much of the embedding comes back
        self.windows = self._window_sizes(config)
        cos, sin = self._precompute_rotary_embeddings(config.sequence_len, head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.masks = {}
        self.add_masks(config.sequence_len)

    def add_masks(self, seq_len):
        """Make the masks for inputs of `seq_len` tokens; forward has those for the whole context."""
        for window in set(self.windows):
            self.masks[seq_len, window] = window_mask(self.config.attention, seq_len, window, DEVICE)

    @torch.no_grad()
    def init_weights(self):
        """Matrices uniform with std 1/sqrt(width); what writes to the stream starts at zero."""
        s = 3**0.5 * self.config.n_embd**-0.5
        torch.nn.init.normal_(self.transformer.wte.weight, mean=0.0, std=1.0)
        torch.nn.init.normal_(self.lm_head.weight, mean=0.0, std=0.001)
        for embedding in self.value_embeds.values():
            torch.nn.init.uniform_(embedding.weight, -s, s)
        for block in self.transformer.h:
            torch.nn.init.uniform_(block.attn.c_q.weight, -s, s)
            torch.nn.init.uniform_(block.attn.c_k.weight, -s, s)
            torch.nn.init.uniform_(block.attn.c_v.weight, -s, s)
            torch.nn.init.uniform_(block.mlp.c_fc.weight, -s, s)
            torch.nn.init.zeros_(block.attn.c_proj.weight)
            torch.nn.init.zeros_(block.mlp.c_proj.weight)
            if block.attn.ve_gate is not None:
                torch.nn.init.zeros_(block.attn.ve_gate.weight)  # 2 * sigmoid(0) = 1: the gate starts open
        self.resid_lambdas.fill_(1.0)
        self.x0_lambdas.fill_(0.1)
        if ON_CUDA:  # a bf16 residual stream halves its traffic; the lookups lose nothing that matters
            self.transformer.wte.bfloat16()
            self.value_embeds.bfloat16()
            self.cos, self.sin = self.cos.bfloat16(), self.sin.bfloat16()

    def _precompute_rotary_embeddings(self, seq_len, head_dim, base=10000, device=None):
        """Cosine and sine of every position's angles, each (1, T, 1, D/2)."""
        frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
        angle = torch.arange(seq_len, dtype=torch.float32, device=device)[:, None] * frequency
        return angle.cos()[None, :, None, :], angle.sin()[None, :, None, :]

    def _window_sizes(self, config):
        """Tokens that each layer looks back: the pattern repeated over the layers, the last one full."""
        sizes = {"L": config.sequence_len, "S": config.sequence_len // 2}
        pattern = config.window_pattern.upper()
        if not pattern or set(pattern) - set(sizes):
            raise ValueError(f"WINDOW_PATTERN {config.window_pattern!r} must be made of S and L")
        windows = [sizes[pattern[layer % len(pattern)]] for layer in range(config.n_layer)]
        return [*windows[:-1], config.sequence_len]

    def estimate_flops(self):
        """Per token, forward and backward: 6 for each weight that multiplies, 12 for each key and channel."""
        looked_up = {self.transformer.wte, *self.value_embeds.values()}
        idle = sum(module.weight.numel() for module in looked_up) + 2 * self.config.n_layer
        weights = sum(p.numel() for p in self.parameters()) - idle
        return 6 * weights + 12 * self.config.n_embd * sum(self.windows)

    def setup_optimizer(self):
        """Adam for what is looked up, for lm_head and for scalars; Muon for the blocks' matrices."""
        scale = (self.config.n_embd / 768) ** -0.5
        adam = {"kind": "adamw", "betas": ADAM_BETAS, "eps": 1e-10, "weight_decay": 0.0}
        groups = [
            adam | {"params": [self.lm_head.weight], "lr": UNEMBEDDING_LR * scale},
            adam | {"params": [self.transformer.wte.weight], "lr": EMBEDDING_LR * scale},
            adam | {"params": list(self.value_embeds.parameters()), "lr": EMBEDDING_LR * scale},
            adam | {"params": [self.resid_lambdas], "lr": SCALAR_LR * 0.01},  # errors multiply over depth
            adam | {"params": [self.x0_lambdas], "lr": SCALAR_LR, "betas": (0.96, 0.95)},
        ]
        matrices = [p for p in self.transformer.h.parameters() if p.ndim == 2]
        muon = {"kind": "muon", "lr": MATRIX_LR, "momentum": 0.95, "beta2": 0.95, "ns_steps": 5}
        for shape in sorted({p.shape for p in matrices}):  # one shape, one batch of matrices
            alike = [p for p in matrices if p.shape == shape]
            groups.append(muon | {"params": alike, "weight_decay": WEIGHT_DECAY})
        grouped = {id(p) for group in groups for p in group["params"]}
        forgotten = [name for name, p in self.named_parameters() if id(p) not in grouped]
        if forgotten:
            raise ValueError(f"setup_optimizer: add a group for {', '.join(forgotten)}: it would never train")
        return MuonAdamW(groups)

    def forward(self, idx, targets=None, reduction="mean"):
        T = idx.size(1)
        cos_sin = self.cos[:, :T], self.sin[:, :T]
        x = norm(self.transformer.wte(idx))
        x0 = x
        for layer, block in enumerate(self.transformer.h):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            ve = self.value_embeds[str(layer)](idx) if str(layer) in self.value_embeds else None
            x = block(x, ve, cos_sin, self.masks[T, self.windows[layer]])
        x = norm(x)

        softcap = 15
        logits = self.lm_head(x).float()
        logits = softcap * torch.tanh(logits / softcap)
        if targets is None:
            return logits
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), reduction=reduction)
        return loss  # noqa: RET504 - one step a line, for edits to stand between


def build_model_config(depth):
    width = math.ceil(depth * ASPECT_RATIO / HEAD_DIM) * HEAD_DIM
    num_heads = width // HEAD_DIM
    return GPTConfig(
        sequence_len=MAX_SEQ_LEN,
        vocab_size=VOCAB_SIZE,
        n_layer=depth,
        n_head=num_heads,
        n_kv_head=num_heads,
        n_embd=width,
        window_pattern=WINDOW_PATTERN,
    )


# ----------------------------------------------------------------------------------------------------------
# Optimizer

# Polar Express (arXiv 2505.16932): the best odd quintic for each step towards the nearest orthogonal matrix.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(stack, steps):
    """Roughly U V^T of each matrix U S V^T in a (N, rows, columns) stack."""
    X = stack.bfloat16() if AUTOCAST else stack.float()  # the iteration forgives rounding
    tall = X.size(-2) > X.size(-1)
    X = X.mT if tall else X  # the Gram matrix of the short side is the small one
    X = X / (1.02 * X.norm(dim=(-2, -1), keepdim=True) + 1e-6)  # all singular values into [0, 1]
    for a, b, c in POLAR_EXPRESS[:steps]:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


@compiled_on_cuda
def muon_update(stack, grads, momentum, energy_mean, lr, mu, beta2, decay, ns_steps, dim):
    """Move a stack of matrices of one shape.

    Nesterov momentum is orthogonalized (Muon), evened out over its rows or columns at an unchanged norm
    (NorMuon, arXiv 2510.05491), and joined by decay only where both pull one way (arXiv 2510.12402).
    """
    momentum.lerp_(grads, 1 - mu)
    update = orthogonalize(grads.lerp(momentum, mu), ns_steps).float()
    energy = update.square().mean(dim=dim, keepdim=True)
    energy_mean.lerp_(energy, 1 - beta2)
    scale = energy_mean.clamp_min(1e-10).rsqrt()
    before = energy.sum(dim=(-2, -1), keepdim=True)
    after = (energy * scale.square()).sum(dim=(-2, -1), keepdim=True)
    update = update * (scale * (before / after.clamp_min(1e-20)).sqrt())
    agree = update * stack >= 0
    stack.mul_(1 - lr * decay * agree).sub_(lr * update)


class MuonAdamW(torch.optim.Optimizer):
    """Each group is of kind "adamw" or "muon"; the parameters of a muon group share one shape."""

    def __init__(self, groups):
        super().__init__(groups, defaults={})
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if group["kind"] == "adamw":
                self._step_adamw(group)
            else:
                self._step_muon(group)

    def _step_adamw(self, group):
        params, states = group["params"], [self.state[p] for p in group["params"]]
        for p, state in zip(params, states, strict=True):
            if not state:
                state.update(step=p.new_zeros((), dtype=torch.float32))
                state.update(mean=torch.zeros_like(p), square=torch.zeros_like(p))
        adamw(  # torch's kernel, one launch for the group
            params,
            [p.grad for p in params],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def _step_muon(self, group):
        params = group["params"]
        rows, columns = params[0].shape
        dim = -1 if rows >= columns else -2
        stack, grads = torch.stack(params), torch.stack([p.grad for p in params])
        state = self.state[params[0]]
        if not state:
            state["momentum"] = torch.zeros_like(stack)
            state["energy_mean"] = torch.zeros_like(stack.mean(dim, keepdim=True))
        lr = group["lr"] * max(1.0, rows / columns) ** 0.5
        hyper = (lr, group["momentum"], group["beta2"], group["weight_decay"])
        hyper = map(scalar, hyper)
        muon_update(stack, grads, state["momentum"], state["energy_mean"], *hyper, group["ns_steps"], dim)
        torch._foreach_copy_(params, list(stack.unbind()))  # one launch for all of them


# ----------------------------------------------------------------------------------------------------------
# Schedules; progress goes from 0 to 1 over the budget


def get_lr_multiplier(progress):
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    if progress <= 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - progress) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRAC


def get_muon_momentum(step):
    ramp = min(step / 300, 1)
    return 0.85 + ramp * (0.95 - 0.85)


def get_weight_decay(progress):
    return WEIGHT_DECAY * (1 - progress)


# ----------------------------------------------------------------------------------------------------------
# Run


def split_batch():
    """Rows per pass, and passes per step."""
    rows = min(DEVICE_BATCH_SIZE, TOTAL_BATCH_SIZE // MAX_SEQ_LEN)
    if rows < 1 or TOTAL_BATCH_SIZE % (rows * MAX_SEQ_LEN):
        raise SystemExit(
            f"TOTAL_BATCH_SIZE={TOTAL_BATCH_SIZE} is not a whole number of passes of "
            f"DEVICE_BATCH_SIZE={DEVICE_BATCH_SIZE} rows of {MAX_SEQ_LEN} tokens; change one of the two"
        )
    return rows, TOTAL_BATCH_SIZE // (rows * MAX_SEQ_LEN)


def autocast():
    return torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=AUTOCAST)


def build(attention=ATTENTION):
    """A new model, on the CPU so that a seed gives the same weights on every device."""
    torch.manual_seed(SEED)
    model = GPT(replace(build_model_config(DEPTH), attention=attention))
    model.init_weights()
    return model


def train(run):
    """Train a new model until the run's budget is spent."""
    torch.set_float32_matmul_precision("high")
    rows, passes = split_batch()
    model = build().to(DEVICE)
    optimizer = model.setup_optimizer()
    call = torch.compile(model, dynamic=False) if COMPILE else model
    loader = make_dataloader("train", rows, MAX_SEQ_LEN, SEED, DEVICE)
    x, y, epoch = next(loader)
    run.begin(model, tokens_per_step=TOTAL_BATCH_SIZE, untimed_steps=UNTIMED_STEPS)
    if COMPILE:
        print("Compiling: a minute for a model of a new shape, seconds for one seen before", flush=True)
    while run.goes_on():
        for _ in range(passes):
            with autocast():
                loss = call(x, y)
            (loss / passes).backward()
            x, y, epoch = next(loader)  # read ahead while the GPU works

        lrm = get_lr_multiplier(run.progress)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lrm
            if group["kind"] == "muon":
                group["momentum"] = get_muon_momentum(run.step)
                group["weight_decay"] = get_weight_decay(run.progress)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.record(loss.item(), lr_multiplier=lrm, epoch=epoch)  # item() alone waits for the device
    return model


def main():
    harness.main(
        build,
        train,
        autocast=autocast,
        compiled=COMPILE,
        rows=split_batch()[0],
        eval_rows=EVAL_BATCH_SIZE,
        tokens_per_step=TOTAL_BATCH_SIZE,
    )


if __name__ == "__main__":
    main()
