"""No wrong edit: one kind of program after another that an edit once made worse, or changed without effect."""

from pathlib import Path
from textwrap import dedent

import pytest

from loopgraph_mcp.code import outline as codemap
from loopgraph_mcp.code.apply import Around, apply_method, detect
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Applied, EditResult, Presence, Present, Refused

ROOT = Path(__file__).parent.parent.parent
METHODS = {method.id: method for method in read_pack(ROOT / "methodpacks").methods}


def made(method_id: str, source: str, siblings: dict[str, str] | None = None, **knobs: float | str) -> EditResult:
    return apply_method(METHODS[method_id], dedent(source), knobs, Around(siblings or {}, METHODS))


def lines(method_id: str, source: str, siblings: dict[str, str] | None = None, **knobs: float | str) -> list[str]:
    """Return the lines that an edit adds, and that asking again changes nothing."""
    answer = made(method_id, source, siblings, **knobs)
    assert isinstance(answer, Applied), answer
    assert isinstance(made(method_id, answer.text, siblings, **knobs), Present)
    old = dedent(source).splitlines()
    return [line.strip() for line in answer.text.splitlines() if line not in old]


def reason(method_id: str, source: str, siblings: dict[str, str] | None = None) -> str:
    answer = made(method_id, source, siblings)
    assert isinstance(answer, Refused), answer
    return f"{answer.looked_for} | {answer.reason}"


# -------------------------------------------------------------------------------------------------- present

ATTENTION = """
import torch.nn as nn
import torch.nn.functional as F
class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=2)
        q = q.view(B, T, self.heads, -1).transpose(1, 2)
        k = k.view(B, T, self.heads, -1).transpose(1, 2)
        v = v.view(B, T, self.heads, -1).transpose(1, 2)
        HERE
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))
"""


def attention(code: str) -> str:
    return ATTENTION.replace("        HERE\n", "".join(f"        {line}\n" for line in code.splitlines()))


@pytest.mark.parametrize(
    "code",
    [
        "q, k = norm(q), norm(k)\nq = q * 1.2\nk = k * 1.2",
        "q = F.rms_norm(q, (q.size(-1),)) * 1.44\nk = F.rms_norm(k, (k.size(-1),))",
        "q, k = norm(q) * self.gain, norm(k)",
        "q, k = self.q_norm(q), self.k_norm(k)\nq *= 1.44",
    ],
)
def test_a_gain_that_is_there_is_not_stacked(code: str) -> None:
    assert isinstance(made("qk-scale", attention(code)), Present)


def test_constant_gains_are_set_to_the_product_that_is_asked_for() -> None:
    assert lines("qk-scale", attention("q, k = norm(q), norm(k)\nq = q * 1.2\nk = k * 1.2"), gain=2.4) == ["q = q * 2"]
    assert "does not normalise" in reason("qk-scale", attention("pass"))


@pytest.mark.parametrize(
    "code", ["q, k = norm(q), norm(k)", "q = self.q_norm(q)\nk = self.k_norm(k)", "q = F.rms_norm(q, (64,))"]
)
def test_queries_normalised_in_any_form_are_not_normalised_twice(code: str) -> None:
    assert isinstance(made("qk-norm", attention(code)), Present)


def test_queries_are_normalised_right_before_attention() -> None:
    assert lines("qk-norm", attention("pass")) == ["q, k = F.rms_norm(q, (q.size(-1),)), F.rms_norm(k, (k.size(-1),))"]


@pytest.mark.parametrize(
    "tie",
    [
        "self.wte.weight = self.lm_head.weight",
        "self.lm_head.weight = self.wte.weight",
    ],
)
def test_matrices_tied_either_way_are_tied(tie: str) -> None:
    source = f"""
    import torch.nn as nn
    class GPT(nn.Module):
        def __init__(self, words, width):
            super().__init__()
            self.wte = nn.Embedding(words, width)
            self.lm_head = nn.Linear(width, words, bias=False)
            {tie}
        def forward(self, x):
            return self.lm_head(self.wte(x))
    """
    assert isinstance(made("weight-tying", source), Present)


def test_an_import_is_no_sign_of_a_method() -> None:
    assert {detect(method, "import math\nprint(math.pi)\n") for method in METHODS.values()} == {Presence.ABSENT}


# --------------------------------------------------------------------------------------------------- clipping

STEP = """
import torch
for x, y in batches:
    loss = model(x, y)
    loss.backward()
    HERE
"""


def loop(code: str) -> str:
    return STEP.replace("    HERE\n", "".join(f"    {line}\n" for line in code.splitlines())).replace(
        "import torch\n", "import torch\nmodel, optimizer, scaler, batches, limit = make()\n"
    )


@pytest.mark.parametrize(
    "code",
    [
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\nlog(loss)\noptimizer.step()",
        "norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)\nif norm < 9:\n    optimizer.step()",
        "if limit:\n    scaler.unscale_(optimizer)\n    clip_grad_norm_(params, limit)\nscaler.step(optimizer)",
    ],
)
def test_gradients_are_not_clipped_twice(code: str) -> None:
    assert isinstance(made("gradient-clipping", loop(code)), Present)


def test_every_branch_that_steps_is_clipped_and_a_scaler_unscales_first() -> None:
    clip = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
    branches = "if scaler:\n    scaler.step(optimizer)\n    scaler.update()\nelse:\n    optimizer.step()"
    assert lines("gradient-clipping", loop(branches)) == ["scaler.unscale_(optimizer)", clip, clip]
    several = "for each in optimizers:\n    each.step()"
    assert lines("gradient-clipping", loop(several).replace("optimizer,", "optimizers,").replace("each", "opt")) == [
        clip
    ]
    assert "clips on some ways" in reason(
        "gradient-clipping", loop(f"if limit:\n    {clip}\n    optimizer.step()\nelse:\n    optimizer.step()")
    )


def test_a_clip_that_is_switched_off_gets_a_limit() -> None:
    source = loop(
        "if args.clip > 0:\n    torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)\noptimizer.step()"
    )
    source = source.replace(
        "import torch\n",
        'import os\nimport torch\nclass Settings:\n    clip = float(os.environ.get("CLIP", 0.0))\nargs = Settings()\n',
    )
    assert lines("gradient-clipping", source) == ['clip = float(os.environ.get("CLIP", 1.0))']


# ----------------------------------------------------------------------------------------------------- values

FLAGS = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--device-batch-size", type=int, default=8)
parser.add_argument("--max-seq-len", type=int, default=64)
parser.add_argument("--total-batch-size", type=int, default=TOTAL)
args = parser.parse_args()
assert args.total_batch_size % (args.device_batch_size * args.max_seq_len) == 0
"""


@pytest.mark.parametrize("total", ["None", "-1", "0", '"auto"'])
def test_nothing_is_calculated_with_what_is_no_number(total: str) -> None:
    assert f"says {total}" in reason("smaller-batch", FLAGS.replace("TOTAL", total))


def test_passes_stay_whole() -> None:
    assert lines("smaller-batch", FLAGS.replace("TOTAL", "2048")) == [
        'parser.add_argument("--total-batch-size", type=int, default=2048 // 2)'
    ]
    assert lines("smaller-batch", FLAGS.replace("TOTAL", "512")) == [
        'parser.add_argument("--device-batch-size", type=int, default=8 // 2)',
        'parser.add_argument("--total-batch-size", type=int, default=512 // 2)',
    ]


def test_of_two_constants_one_of_which_follows_the_other_one_is_changed() -> None:
    total = (
        "from prepare import MAX_SEQ_LEN\nDEVICE_BATCH_SIZE = 8\nTOTAL_BATCH_SIZE = DEVICE_BATCH_SIZE * MAX_SEQ_LEN\n"
    )
    assert lines("smaller-batch", total) == ["DEVICE_BATCH_SIZE = 8 // 2"]
    rows = "TOTAL_BATCH_SIZE = 2**16\nDEVICE_BATCH_SIZE = TOTAL_BATCH_SIZE // 2048\n"
    assert lines("smaller-batch", rows) == ["TOTAL_BATCH_SIZE = 2**16 // 2"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('float(os.environ.get("MATRIX_LR", 0.04))', 'float(os.environ.get("MATRIX_LR", 0.03))'),
        ('float(os.environ.get("MATRIX_LR", "0.04"))', 'float(os.environ.get("MATRIX_LR", "0.03"))'),
        ('float(os.getenv("MATRIX_LR", 0.04))', 'float(os.getenv("MATRIX_LR", 0.03))'),
        ('float(os.environ.get("MATRIX_LR") or 0.04)', 'float(os.environ.get("MATRIX_LR") or 0.03)'),
    ],
)
def test_an_environment_variable_keeps_its_say(old: str, new: str) -> None:
    assert lines("muon-lr", f"import os\nMATRIX_LR = {old}\n") == [f"MATRIX_LR = {new}"]


def test_the_rate_of_muon_is_not_set_where_adam_trains_the_matrices() -> None:
    assert "Muon" in reason("muon-lr", "MATRIX_LR = 0.04\noptimizer = AdamW(model, lr=MATRIX_LR)\n")


def test_an_assertion_of_the_file_is_kept() -> None:
    source = "TOTAL_BATCH_SIZE = 96\nassert TOTAL_BATCH_SIZE % 32 == 0\n"
    assert "assert TOTAL_BATCH_SIZE % 32 == 0" in reason("smaller-batch", source)


# ----------------------------------------------------------------------------------------------------- effect


def test_a_step_of_one_pass_has_no_fewer() -> None:
    source = """
    import time
    from prepare import MAX_SEQ_LEN, TIME_BUDGET
    TOTAL_BATCH_SIZE = 2**16
    tokens_per_fwdbwd = ROWS * MAX_SEQ_LEN
    grad_accum_steps = TOTAL_BATCH_SIZE // tokens_per_fwdbwd
    total_training_time = 0
    while True:
        t0 = time.time()
        for micro_step in range(grad_accum_steps):
            pass
        break
    """
    beside = {"prepare": "MAX_SEQ_LEN, TIME_BUDGET = 2048, 300\n"}
    assert "more than one pass a step" in reason("batch-size-schedule", source.replace("ROWS", "32"), beside)
    assert isinstance(made("batch-size-schedule", source.replace("ROWS", "8"), beside), Applied)


def test_a_default_that_every_caller_overrides_is_not_set() -> None:
    source = """
    import torch
    class GPT:
        def __init__(self, config):
            self.cos = self._precompute_rotary_embeddings(10, 64, CALL)
        def _precompute_rotary_embeddings(self, length, width, base=10000):
            return 1.0 / (base ** (torch.arange(0, width, 2) / width))
    """
    assert "def" in lines("rope-base", source.replace(", CALL", ""))[0]
    assert lines("rope-base", source.replace("CALL", "base=5000")) == [
        "self.cos = self._precompute_rotary_embeddings(10, 64, base=200000)"
    ]
    assert isinstance(made("rope-base", source.replace("CALL", "base=config.theta")), Refused)


def test_a_field_that_a_script_passes_is_not_set_in_the_model_s_file() -> None:
    model = """
    from dataclasses import dataclass
    @dataclass
    class GPTConfig:
        n_layer: int = 12
        window_pattern: str = 'SL'
    """
    assert "builds GPTConfig" in reason("sliding-window-pattern", model)
    passing = {"train": "from model import GPTConfig\nconfig = GPTConfig(window_pattern=args.pattern)\n"}
    assert "passes its own" in reason("sliding-window-pattern", model, passing)
    using = {"train": "from model import GPTConfig\nconfig = GPTConfig(n_layer=3)\n"}
    assert isinstance(made("sliding-window-pattern", model, using), Applied)


def test_a_pattern_that_gives_every_layer_what_it_has_is_refused() -> None:
    source = 'DEPTH = 4\nWINDOW_PATTERN = "SSSL"\n'
    assert "with 4 layers, SSSL and SSSSL are the same" in reason("sliding-window-pattern", source)
    assert lines("sliding-window-pattern", source.replace("4", "8")) == ['WINDOW_PATTERN = "SSSSL"']


def test_a_short_window_that_no_layer_has_is_not_changed() -> None:
    source = """
    WINDOW_PATTERN = "L"
    def sizes(length):
        short_window = length_window // 2
        return short_window
    """
    assert "no layer has one" in reason("short-window", source)
    assert lines("short-window", source.replace('"L"', '"SL"')) == ["short_window = length_window // 8"]


def test_a_class_that_is_not_built_is_not_edited() -> None:
    source = """
    import torch.nn as nn
    import torch.nn.functional as F
    class MLP(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up = nn.Linear(width, 4 * width)
            self.down = nn.Linear(4 * width, width)
        def forward(self, x):
            return self.down(F.gelu(self.up(x)))
    class Experts(nn.Module):
        def forward(self, x):
            return x
    class Block(nn.Module):
        def __init__(self, width, experts):
            super().__init__()
            self.mlp = BUILT
        def forward(self, x):
            return x + self.mlp(x)
    """
    assert isinstance(made("relu-squared", source.replace("BUILT", "Experts()")), Refused)
    assert isinstance(made("relu-squared", source.replace("BUILT", "Experts() if experts else MLP(width)")), Refused)
    assert lines("relu-squared", source.replace("BUILT", "MLP(width)")) == [
        "return self.down(F.relu(self.up(x)).square())"
    ]


# --------------------------------------------------------------------------------------------- names, attributes

BLOCK = """
import torch.nn as nn
import torch.nn.functional as F
def norm(x):
    return x
class CausalSelfAttention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(q, k, v)
class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.attn = CausalSelfAttention(config)
        if config.experts > 0:
            self.moe = MoE(config)
        else:
            self.mlp = MLP(config)
    def forward(self, x):
        x = x + self.attn(norm(x))
        if self.experts:
            return x + self.moe(norm(x))
        x = x + self.mlp(norm(x))
        return x
"""


def test_a_new_attribute_is_set_on_every_path_and_read_in_every_branch() -> None:
    assert lines("layer-norm-scaling", BLOCK) == [
        "self.ln_scale = (layer_idx + 1) ** -0.5",
        "x = x + self.attn(norm(x) * self.ln_scale)",
        "return x + self.moe(norm(x) * self.ln_scale)",
        "x = x + self.mlp(norm(x) * self.ln_scale)",
    ]


def test_an_attribute_that_the_class_lacks_is_not_read() -> None:
    source = """
    import torch.nn.functional as F
    class CausalSelfAttention:
        def __init__(self, dim, heads):
            self.heads = heads
        def forward(self, x):
            q, k, v = self.qkv(x)
            q, k = norm(q), norm(k)
            y = attend(q, k, v)
            y = self.c_proj(y)
            return y
    """
    assert isinstance(made("exclusive-attention", source), Refused)


def test_a_function_s_own_parameter_is_kept() -> None:
    source = "def get_muon_momentum(it):\n    frac = min(it / 300, 1)\n    return frac\nstep = 0\n"
    assert lines("muon-momentum", source) == ["frac = min(it / 200, 1)"]


# -------------------------------------------------------------------------------------------------- counts

TIED = """
import torch, torch.nn as nn
class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(config.vocab_size, config.n_embd)})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
    def init_weights(self):
        torch.nn.init.normal_(self.lm_head.weight, mean=0.0, std=0.001)
    def num_scaling_params(self):
        wte = sum(p.numel() for p in self.transformer.wte.parameters())
        lm_head = sum(p.numel() for p in self.lm_head.parameters())
        total = wte + lm_head
        assert total == sum(p.numel() for p in self.parameters())
        return total
    def estimate_flops(self):
        return 6 * self.num_matmul_params()
    def setup_optimizer(self):
        lm_head_params = list(self.lm_head.parameters())
        return lm_head_params
    def forward(self, x):
        logits = self.lm_head(x)
        logits = logits.float()
        return logits
"""


def test_a_count_that_the_file_asserts_stays_true() -> None:
    assert "lm_head = 0" in lines("weight-tying", TIED)
    counted_elsewhere = TIED.replace("lm_head = sum(p.numel() for p in self.lm_head.parameters())", "lm_head = 7")
    assert isinstance(made("weight-tying", counted_elsewhere), Refused)


# ---------------------------------------------------------------------------------------------------- map


def test_a_warm_up_is_not_the_training_loop() -> None:
    source = """
    import os
    class Hyperparameters:
        iterations = int(os.environ.get("ITERATIONS", 20000))
    args = Hyperparameters()
    for warmup_step in range(20):
        loss = model(x)
        loss.backward()
        optimizer.step()
    for step in range(args.iterations):
        loss = model(x)
        loss.backward()
        optimizer.step()
    """
    entries = codemap.map_text(dedent(source)).entries
    assert [entry.line for entry in entries if entry.kind is codemap.Kind.LOOP] == [10]
    assert [entry.text for entry in entries if entry.kind is codemap.Kind.FIELD] == ["20000"]
