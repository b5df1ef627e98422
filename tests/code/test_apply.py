import ast
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.code.apply import apply_method, detect, unified_diff
from loopgraph_mcp.code.hashes import program_hash
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import (
    AddMethod,
    Applied,
    ByRole,
    InsertAfter,
    Knob,
    KnobValue,
    Method,
    Presence,
    Present,
    Recipe,
    RecipeOp,
    Refused,
    ReplaceStmt,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
)
from tests.conftest import ROOT

SHIPPED = read_pack(ROOT / "methodpacks").methods
FITTING = {  # what can be changed in the file below; tests/test_recipes_train.py tries the others on the trainer
    "embedding-lr",
    "gqa",
    "logit-softcap",
    "mqa",
    "muon-lr",
    "rope-base",
    "sliding-window-pattern",
    "smaller-batch",
    "swiglu",
    "warmdown-length",
}
METHODS = {method.id: method for method in SHIPPED if method.id in FITTING}


def by_name(method: Method) -> Method:
    """The method without its edits by role, whose refusals tell of roles: what an op finds by name stays."""
    constants = {"embedding-lr": "EMBEDDING_LR", "muon-lr": "MATRIX_LR"}
    if method.id in constants:
        return replace(method, recipe=Recipe((SetConst(constants[method.id], "{rate}"),)))
    recipe = method.recipe or Recipe(())
    variants = [each for each in recipe.variants if not any(isinstance(op, ByRole) for op in each.ops)]
    return replace(method, recipe=replace(recipe, variants=tuple(variants)))


BY_NAME = {method_id: by_name(method) for method_id, method in METHODS.items()}

UPSTREAM_LIKE = '''
"""A training file in the usual form."""
import torch
import torch.nn as nn
import torch.nn.functional as F

ASPECT_RATIO = 64  # width per layer
HEAD_DIM = 128
WINDOW_PATTERN = "SSSL"  # S half, L whole
TOTAL_BATCH_SIZE = 2**19  # tokens a step
EMBEDDING_LR = 0.6  # of the tables
MATRIX_LR = 0.04
WARMDOWN_RATIO = 0.5  # of the budget


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)  # back

    def forward(self, x):
        x = self.c_fc(x)
        x = F.relu(x).square()  # squared
        x = self.c_proj(x)
        return x


class GPT(nn.Module):
    def init_weights(self):
        s = 3**0.5 * self.config.n_embd**-0.5
        for block in self.transformer.h:
            torch.nn.init.uniform_(block.mlp.c_fc.weight, -s, s)  # up
            torch.nn.init.zeros_(block.mlp.c_proj.weight)

    def _precompute_rotary_embeddings(self, seq_len, head_dim, base=10000, device=None):
        return base

    def forward(self, idx, targets=None):
        softcap = 15  # bounds the logits
        logits = self.lm_head(idx).float()
        logits = softcap * torch.tanh(logits / softcap)
        return logits


def build_model_config(depth):
    num_heads = depth * ASPECT_RATIO // HEAD_DIM
    return GPTConfig(
        n_head=num_heads,
        n_kv_head=num_heads,  # as many
        window_pattern=WINDOW_PATTERN,
    )
'''.lstrip()

CAPPED = UPSTREAM_LIKE[UPSTREAM_LIKE.index("softcap = 15") : UPSTREAM_LIKE.index("        return logits")]


def reordered(text: str) -> str:
    """The functions before the classes, the methods the other way round, everything decorated."""
    tree = ast.parse(text)
    head = [node for node in tree.body if not isinstance(node, ast.ClassDef | ast.FunctionDef)]
    blocks = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for block in blocks:
        if isinstance(block, ast.ClassDef):
            block.body.reverse()
            for method in block.body:
                assert isinstance(method, ast.FunctionDef)
                method.decorator_list = [ast.parse("torch.no_grad()", mode="eval").body]
        block.decorator_list = [ast.parse("final", mode="eval").body]
    return ast.unparse(ast.Module([*head[:4], *reversed(blocks), *head[4:]], [])) + "\n"


ON_STYLE = (
    UPSTREAM_LIKE.replace('= "SSSL"', '= on(cuda="SSSL", cpu="SL")')
    .replace("= 2**19", "= on(cuda=2**19, cpu=2**11)")
    .replace("EMBEDDING_LR = 0.6", "EMBEDDING_LR = on(cuda=0.6, cpu=0.3)")
)
VARIANTS = {
    "upstream-like": UPSTREAM_LIKE,
    "on-style": ON_STYLE,
    "tabs": UPSTREAM_LIKE.replace("    ", "\t"),
    "two spaces": UPSTREAM_LIKE.replace("    ", "  "),
    "crlf": UPSTREAM_LIKE.replace("\n", "\r\n"),
    "carriage returns": UPSTREAM_LIKE.replace("\n", "\r"),
    "byte order mark": "\ufeff" + UPSTREAM_LIKE,
    "no last newline": UPSTREAM_LIKE.rstrip(),
    "non-ascii": UPSTREAM_LIKE.replace("# ", "# größer 🌀 ").replace('"""A', '"""Ünï 🌀 A'),
    "non-ascii on the line": UPSTREAM_LIKE.replace(
        "x = F.relu(x)", 'x, note = x, "é🌀"\n        x = F.relu(x)'
    ).replace('x, note = x, "é🌀"\n        ', "# é\n        "),
    "comments between": UPSTREAM_LIKE.replace("        x = F.relu", "        # the activation\n\n        x = F.relu"),
    "reordered": reordered(UPSTREAM_LIKE),
    "annotated": UPSTREAM_LIKE.replace("_LR = ", "_LR: float = ")
    .replace("SIZE = ", "SIZE: int = ")
    .replace("PATTERN = ", "PATTERN: str = ")
    .replace("RATIO = 0.5", "RATIO: float = 0.5"),
    "multi-line": UPSTREAM_LIKE.replace("= 2**19", "= (\n    2**19\n)")
    .replace("= 0.6", "= \\\n    0.6")
    .replace('"SSSL"', '(\n    "SS"\n    "SL"\n)')
    .replace("base=10000", "base=(\n        10_000\n    )")
    .replace(
        "(config.n_embd, 4 * config.n_embd, bias=False)",
        "(\n            config.n_embd, 4 * config.n_embd,\n bias=False)",
    ),
    "form feeds": UPSTREAM_LIKE.replace("\n\n\nclass", "\n\f\n\nclass").replace(
        "\n    def forward", "\n\f    def forward"
    ),
}


def lines_of(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").splitlines()


def applied(method: Method, source: str, **knobs: KnobValue) -> str:
    made = apply_method(method, source, knobs)
    assert isinstance(made, Applied), made
    return made.text


def refused(method: Method, source: str, **knobs: KnobValue) -> Refused:
    made = apply_method(method, source, knobs)
    assert isinstance(made, Refused), made
    return made


def method_of(*ops: RecipeOp, knobs: tuple[Knob, ...] = ()) -> Method:
    return Method("made-up", "Made up", "schedule", "A test's.", "A test's.", knobs=knobs, recipe=Recipe(ops))


def scaled(value: str = "{current} // {factor}", default: KnobValue = 2) -> Method:
    return method_of(SetConst("X", value), knobs=(Knob("factor", default, "By how much."),))


# -------------------------------------------------------------------------------- every method, every file

TOUCHED = {  # a mark of each line that a method may take away
    "embedding-lr": ("EMBEDDING_LR", "0.6"),
    "gqa": ("n_kv_head=",),
    "logit-softcap": ("softcap = 15",),
    "mqa": ("n_kv_head=",),
    "muon-lr": ("MATRIX_LR",),
    "rope-base": ("base=", "10_000"),
    "sliding-window-pattern": ("WINDOW_PATTERN =", "WINDOW_PATTERN:", '"SS"', '"SL"'),
    "smaller-batch": ("TOTAL_BATCH_SIZE", "2**19"),
    "swiglu": (
        "self.c_fc",
        "self.c_proj = ",
        "F.relu",
        "config.n_embd, 4 *",
        " bias=False)",
        "bias=False)",
        "activation",
    ),
    "warmdown-length": ("WARMDOWN_RATIO",),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_changes_its_lines_and_no_others(method: Method, variant: str) -> None:
    source = VARIANTS[variant]
    new = applied(method, source)
    ast.parse(new.removeprefix("\ufeff"))
    old_lines, new_lines = lines_of(source), lines_of(new)
    gone = [line for line in old_lines if line not in new_lines]
    assert all(any(mark in line for mark in TOUCHED[method.id]) for line in gone), gone
    made = [line for line in new_lines if line not in old_lines]
    assert 0 < len(made) <= len(gone) + 6
    comments = [line.split("#", 1)[1] for line in old_lines if "#" in line]
    assert [comment for comment in comments if f"#{comment}" not in new] == []
    assert new.startswith("\ufeff") == source.startswith("\ufeff")
    assert new.endswith(("\n", "\r")) == source.endswith(("\n", "\r"))
    assert new.count("\r\n") in {0, len(new_lines)}
    assert ("\n" in new) == ("\n" in source)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_asked_for_again_is_present(method: Method, variant: str) -> None:
    source = VARIANTS[variant]
    assert detect(method, source) is Presence.ABSENT
    new = applied(method, source)
    assert detect(method, new) is Presence.PRESENT
    assert isinstance(apply_method(method, new, {}), Present)


def test_the_values_land_where_they_are_meant() -> None:
    for method_id, line in {
        "embedding-lr": "EMBEDDING_LR = 0.8  # of the tables",
        "gqa": " " * 8
        + "n_kv_head=max(k for k in range(1, max(1, num_heads // 2) + 1) if num_heads % k == 0),  # as many",
        "logit-softcap": "        softcap = 20.0  # bounds the logits",
        "mqa": "        n_kv_head=1,  # as many",
        "muon-lr": "MATRIX_LR = 0.03",
        "rope-base": "    def _precompute_rotary_embeddings(self, seq_len, head_dim, base=200000, device=None):",
        "sliding-window-pattern": 'WINDOW_PATTERN = "SSSSL"  # S half, L whole',
        "smaller-batch": "TOTAL_BATCH_SIZE = 2**19 // 2  # tokens a step",
        "warmdown-length": "WARMDOWN_RATIO = 0.7  # of the budget",
    }.items():
        old = UPSTREAM_LIKE.splitlines()
        new = applied(METHODS[method_id], UPSTREAM_LIKE).splitlines()
        assert [line for before, line in zip(old, new, strict=True) if before != line] == [line]


def test_swiglu_gates_the_hidden_layer() -> None:
    new = applied(METHODS["swiglu"], UPSTREAM_LIKE, multiple=64)
    assert (
        textwrap.dedent(new[new.index("    def __init__") : new.index("class GPT")]).strip()
        == textwrap.dedent("""
            def __init__(self, config):
                super().__init__()
                hidden = max(64, 8 * config.n_embd // 3 // 64 * 64)
                self.c_fc = nn.Linear(config.n_embd, hidden, bias=False)
                self.c_gate = nn.Linear(config.n_embd, hidden, bias=False)
                self.c_proj = nn.Linear(hidden, config.n_embd, bias=False)  # back

            def forward(self, x):
                x = F.silu(self.c_gate(x)) * self.c_fc(x)  # squared
                x = self.c_proj(x)
                return x
        """).strip()
    )
    assert "c_fc.weight, -s, s)  # up\n            torch.nn.init.uniform_(block.mlp.c_gate.weight, -s, s)\n" in new


def test_a_half_made_change_is_partial_and_gets_completed() -> None:
    swiglu = METHODS["swiglu"]
    assert swiglu.recipe is not None
    whole = applied(swiglu, UPSTREAM_LIKE)
    ops = swiglu.recipe.variants[0].ops
    for part in (ops[:1], ops[:2]):  # the others alone read a name that these make, and are refused
        half = applied(replace(swiglu, recipe=Recipe(part)), UPSTREAM_LIKE)
        assert detect(swiglu, half) is Presence.PARTIAL
        made = apply_method(swiglu, half, {})
        assert isinstance(made, Applied)
        assert made.text == whole
        assert len(made.changes) == len(ops) - len(part)


def test_code_that_is_there_with_another_knob_value_is_rewritten() -> None:
    swiglu = METHODS["swiglu"]
    narrow = applied(swiglu, UPSTREAM_LIKE, multiple=8)
    wide = applied(swiglu, narrow, multiple=64)
    assert wide == applied(swiglu, UPSTREAM_LIKE, multiple=64)
    assert detect(swiglu, wide) is Presence.PRESENT
    assert detect(swiglu, wide, {"multiple": 64}) is Presence.PRESENT


def test_a_comment_between_replaced_statements_stays() -> None:
    new = applied(METHODS["swiglu"], VARIANTS["comments between"])
    assert "        # the activation\n        x = F.silu(self.c_gate(x)) * self.c_fc(x)  # squared\n" in new


def test_a_text_without_the_recipe_s_places_holds_none_of_it() -> None:
    for method in METHODS.values():
        assert detect(method, "import os\n") is Presence.ABSENT
        assert detect(method, "def broken(:\n") is Presence.ABSENT
    assert detect(replace(METHODS["gqa"], recipe=None), UPSTREAM_LIKE) is Presence.ABSENT
    assert "no recipe" in refused(replace(METHODS["gqa"], recipe=None), UPSTREAM_LIKE).reason


# -------------------------------------------------------------------------------------------- refusals


def test_a_refusal_names_what_was_looked_for_and_the_nearest_lines() -> None:
    source = UPSTREAM_LIKE.replace("MATRIX_LR", "MATRIX_RATE")
    answer = refused(BY_NAME["muon-lr"], source)
    assert answer.looked_for == "`MATRIX_LR = …` at module level"
    assert answer.reason == "nothing assigns it at module level"
    number = source.splitlines().index("MATRIX_RATE = 0.04") + 1
    assert f"{number}: MATRIX_RATE = 0.04" in answer.nearest


@pytest.mark.parametrize(
    ("method_id", "old", "new", "looked_for", "reason"),
    [
        ("embedding-lr", "MATRIX_LR = 0.04", "EMBEDDING_LR = 0.7", "EMBEDDING_LR = ", "bound 2 times (lines 10, 11)"),
        ("embedding-lr", "MATRIX_LR = 0.04", "EMBEDDING_LR *= 2", "EMBEDDING_LR = ", "bound 2 times (lines 10, 11)"),
        ("embedding-lr", "MATRIX_LR = 0.04", "if 1:\n    EMBEDDING_LR = 2", "EMBEDDING_LR", "2 times (lines 10, 12)"),
        ("embedding-lr", "EMBEDDING_LR = 0.6", "EMBEDDING_LR, Z = 0.6, 1", "EMBEDDING_LR", "line 10 is no such form"),
        ("embedding-lr", "EMBEDDING_LR = 0.6", "EMBEDDING_LR = Z = 0.6", "EMBEDDING_LR", "line 10 is no such form"),
        ("embedding-lr", "import torch\n", "from prepare import EMBEDDING_LR\n", "EMBEDDING_LR", "(lines 2, 10)"),
        ("logit-softcap", "class GPT(", "class Model(", "`GPT.forward`", "nothing has this name"),
        ("logit-softcap", "def forward(self, idx", "def run(self, idx", "`GPT.forward`", "nothing has this name"),
        ("logit-softcap", CAPPED, "logits = torch.tanh(idx)\n", "softcap = ", "none of its 2 forms fits"),
        ("rope-base", "base=10000", "base", "a default of `base`", "it has none"),
        ("mqa", "    return GPTConfig(", "    GPTConfig()\n    return GPTConfig(", "GPTConfig", "called 2 times"),
        ("mqa", "GPTConfig(", "Config(", "GPTConfig", "nothing calls it"),
        ("mqa", "n_kv_head=num_heads", "**heads", "`n_kv_head=`", "no such keyword"),
        ("swiglu", "class MLP(", "class FFN(", "`MLP.__init__`", "nothing has this name"),
        ("swiglu", "F.relu(x).square()", "F.gelu(x)", "`{_h} = self.c_fc({_x})` in MLP", "no statement there equals"),
        ("swiglu", "        x = self.c_fc(x)\n", "        pass; x = self.c_fc(x)\n", "self.c_fc(x)", "shares its line"),
        ("swiglu", ".square()  # squared", ".square(); y = 1", "self.c_fc(x)", "shares its line"),
        ("swiglu", "-s, s)  # up", "-s, s); pass", "c_fc.weight", "shares its line"),
        (
            "swiglu",
            "    def forward(self, x):\n",
            "    def forward(self, x): return x\n    def forward(self, x):\n",
            "MLP.forward",
            "defined 2 times",
        ),
    ],
)
def test_what_does_not_match_once_is_refused(method_id: str, old: str, new: str, looked_for: str, reason: str) -> None:
    assert old in UPSTREAM_LIKE
    source = UPSTREAM_LIKE.replace(old, new, 1)
    ast.parse(source)
    answer = refused(BY_NAME[method_id], source)
    assert looked_for in answer.looked_for
    assert reason in answer.reason
    assert all(source.splitlines()[int(line.split(":")[0]) - 1] == line.split(": ", 1)[1] for line in answer.nearest)


def test_a_constant_that_a_function_gives_another_value_is_refused() -> None:
    source = "X = 1\n\ndef f():\n    global X\n    X = 2\n"
    assert refused(scaled("3"), source).reason == "it is bound 2 times (lines 1, 5)"


def test_a_statement_that_stands_there_twice_is_refused() -> None:
    method = method_of(InsertAfter("f", "x = g(x)", "x = h(x)"))
    assert "2 times (lines 2, 3)" in refused(method, "def f(x):\n    x = g(x)\n    x = g(x)\n").reason


def test_a_block_on_its_header_s_line_is_refused() -> None:
    method = method_of(InsertAfter("f", "x = 1", "y = 2"))
    for source in (
        "def f(): x = 1\n",
        "def f(): \\\n  x = 1\n",
        "def f():\n    if z: x = 1\n",
        "def f():\n    if z: \\\n    x = 1\n",
    ):
        refused(method, source)
    assert "x = 1\n    y = 2\n" in applied(method, "def f():\n    a = 1 + \\\n 2\n    x = 1\n")


def test_a_source_that_does_not_parse_says_where() -> None:
    answer = refused(METHODS["muon-lr"], UPSTREAM_LIKE + "def f(:\n")
    assert answer.looked_for == "a text that Python can parse"
    assert f"line {len(UPSTREAM_LIKE.splitlines()) + 1}:" in answer.reason


@pytest.mark.parametrize("value", ["1 # c", "1\n", "1; Y = 2", "x = 1", "1) + (2", "", "(", "{missing", "1, b=2"])
def test_a_value_that_is_no_expression_is_refused(value: str) -> None:
    made = apply_method(method_of(SetConst("X", value)), "X = 0; Z = 1\n", {})
    assert isinstance(made, Refused) or ast.dump(ast.parse(made.text)) == ast.dump(ast.parse("X = 1; Z = 1"))  # type: ignore[union-attr]


def test_an_edit_that_would_reach_beyond_its_place_is_refused() -> None:
    source = "def f(x):\n    return g(a=1, b=2)\n"
    refused(method_of(SetKwarg("f", "g", "a", "1, 2")), source)
    refused(method_of(SetKwarg("f", "g", "a", "1, *h")), source)


@pytest.mark.parametrize(
    "op",
    [
        ReplaceStmt("f", "# nothing", "x = 1"),
        ReplaceStmt("f", "x = 1", "# nothing"),
        ReplaceStmt("f", "x = 1", "x = ("),
        InsertAfter("f", "# nothing", "x = 1"),
        InsertAfter("f", "x = 1", "  "),
        AddMethod("C", "x = 1"),
        AddMethod("C", "def f(self): pass\ndef g(self): pass"),
        SetLocal("f", "x", "# nothing"),
        SetDefault("f", "y", "*z"),
    ],
)
def test_code_that_a_recipe_should_not_hold_is_refused(op: RecipeOp) -> None:
    refused(method_of(op), "def f(y=1):\n    x = 1\n\nclass C:\n    z = 1\n")


# ----------------------------------------------------------------------------------------------- knobs

LIMITED = method_of(
    SetConst("X", "({rate}, {steps}, {name})"),
    knobs=(
        Knob("rate", 0.5, "A rate.", 0.0, 1.0),
        Knob("steps", 4, "Steps.", choices=(2, 4)),
        Knob("name", "a", "A name."),
    ),
)


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"size": 1}, "this method's knobs are: name, rate, steps"),
        ({"rate": "0.5"}, "it takes a number from 0 to 1"),
        ({"rate": True}, "it takes a number from 0 to 1"),
        ({"rate": 1.5}, "it takes a number from 0 to 1"),
        ({"rate": -1}, "it takes a number from 0 to 1"),
        ({"rate": float("nan")}, "it takes a number from 0 to 1"),
        ({"rate": float("inf")}, "it takes a number from 0 to 1"),
        ({"steps": True}, "it takes one of 2, 4"),
        ({"steps": 3}, "it takes one of 2, 4"),
        ({"steps": 4.0}, "it takes one of 2, 4"),
        ({"steps": "4"}, "it takes one of 2, 4"),
        ({"name": 1}, "it takes a text"),
        ({"name": None}, "it takes a text"),
    ],
)
def test_a_knob_value_that_is_not_allowed_is_refused(knobs: dict[str, KnobValue], reason: str) -> None:
    assert refused(LIMITED, "X = 0\n", **knobs).reason == reason


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), 10**400, -(10**6000), True], ids=map(str, range(6))
)
def test_an_unlimited_knob_takes_no_number_that_python_cannot_write(value: KnobValue) -> None:
    method = method_of(SetConst("X", "{rate}"), knobs=(Knob("rate", 1.0, "A rate."),))
    assert refused(method, "X = 0\n", rate=value).reason == "it takes a number"
    assert len(refused(method, "X = 0\n", rate=value).looked_for) < 100


@pytest.mark.parametrize(
    "text", ['a"b', "a'b", "\\", "\n", "{current}", "{rate}", "\ud800", "\0", "# é", '"""', "{", "'\""]
)
def test_a_text_knob_is_a_literal_whatever_it_holds(text: str) -> None:
    new = applied(LIMITED, "X = 0  # stays\n", name=text)
    assert ast.literal_eval(new.removeprefix("X = ").removesuffix("  # stays\n")) == (0.5, 4, text)


def test_a_text_is_written_in_double_quotes_where_it_can_be() -> None:
    assert applied(LIMITED, "X = 0\n", name="b c") == 'X = (0.5, 4, "b c")\n'


def test_a_negative_value_keeps_its_sign_in_an_expression() -> None:
    new = applied(scaled("{factor} ** 2", 1), "X = 0\n", factor=-3)
    assert new == "X = (-3) ** 2\n"
    assert applied(scaled("1 - {factor}", 1), "X = 0\n", factor=-3) == "X = 1 - -3\n"


# ------------------------------------------------------------------------------------- relative values


@pytest.mark.parametrize(
    ("value", "halved", "quartered"),
    [
        ("2**19", "2**19 // 2", "2**19 // 4"),
        ("BASE", "BASE // 2", "BASE // 4"),
        ("a + b", "(a + b) // 2", "(a + b) // 4"),
        ("on(cuda=2**19, cpu=2)", "on(cuda=2**19, cpu=2) // 2", "on(cuda=2**19, cpu=2) // 4"),
        ("x if y else z", "(x if y else z) // 2", "(x if y else z) // 4"),
        ("(\n    a +  # left\n    b\n)", "(\n    (a +  # left\n    b) // 2\n)", "(\n    (a +  # left\n    b) // 4\n)"),
        ("(a\n.b)", "((a\n.b) // 2)", "((a\n.b) // 4)"),
    ],
)
def test_a_relative_value_asked_for_with_another_factor_is_rewritten(value: str, halved: str, quartered: str) -> None:
    half = applied(scaled(), f"X = {value}  # note\n", factor=2)
    assert half == f"X = {halved}  # note\n"
    assert isinstance(apply_method(scaled(), half, {"factor": 2}), Present)
    quarter = applied(scaled(), half, factor=4)
    assert quarter == f"X = {quartered}  # note\n"
    assert applied(scaled(), quarter, factor=2) == half
    assert detect(scaled(), quarter) is Presence.PRESENT
    assert detect(scaled(), quarter, {"factor": 2}) is Presence.ABSENT


@pytest.mark.parametrize(
    "template",
    [
        "{current} * 2",
        "8 * {current} // {factor}",
        "round({current} / {factor})",
        "-{current}",
        "max({current}, 3)",
        "{factor} * {current} + {current}",
    ],
)
def test_every_form_of_relative_value_is_present_when_asked_for_again(template: str) -> None:
    new = applied(scaled(template), "X = a + 1\n")
    assert isinstance(apply_method(scaled(template), new, {}), Present)
    if "factor" in template:
        assert applied(scaled(template), new, factor=3) == applied(scaled(template), "X = a + 1\n", factor=3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2**18", "262144"),
        ("1 << 18", "262144"),
        (".8", "0.80"),
        ("20", "20.0"),
        ("1e4", "10_000"),
        ("(5)", "5"),
        ("-1", "1 - 2"),
        ("'a'", '"a"'),
        ("2**19 // 2", "2**18"),
    ],
)
def test_literals_of_equal_value_are_present(one: str, other: str) -> None:
    assert isinstance(apply_method(scaled(one), f"X = {other}\n", {}), Present)
    assert isinstance(apply_method(scaled(other), f"X = {one}\n", {}), Present)


def test_a_sum_too_long_to_calculate_is_just_replaced() -> None:
    assert applied(scaled("1"), "X = 0" + " + 0" * 1_500 + "\n") == "X = 1\n"


@pytest.mark.parametrize(
    "value",
    [
        "True",
        "2**((-8)**0.5)",
        "9**9**9**9",
        "1 / 0",
        "1e999",
        "0x" + "f" * 5000,
        "1 << 10**9",
        "1 << -1",
        "2 ** 0.5 % 1",
    ],
)
def test_arithmetic_that_has_no_small_real_value_is_just_replaced(value: str) -> None:
    assert applied(scaled("1"), f"X = {value}\n") == "X = 1\n"


# --------------------------------------------------------------------------------------------- statements


def test_a_replacement_that_holds_what_it_replaces_is_made_once() -> None:
    method = method_of(ReplaceStmt("f", "x = g(x)", "x = g(x)\nx = h(x)"))
    once = applied(method, "import h\ndef f(x):\n    x = g(x)\n")
    assert once == "import h\ndef f(x):\n    x = g(x)\n    x = h(x)\n"
    assert isinstance(apply_method(method, once, {}), Present)


def test_equal_code_elsewhere_does_not_count_as_inserted() -> None:
    method = method_of(InsertAfter("f", "x = g(x)", "x = norm(x)"))
    source = "from n import g, norm\ndef f(x):\n    x = norm(x)\n    x = g(x)\n    return x\n"
    assert detect(method, source) is Presence.ABSENT
    new = applied(method, source)
    assert new == source.replace("    return", "    x = norm(x)\n    return")
    assert isinstance(apply_method(method, new, {}), Present)


def test_two_insertions_at_one_place_are_both_present() -> None:
    one, other = (method_of(InsertAfter("f", "x = g(x)", code)) for code in ("x = a(x)", "x = b(x)"))
    both = applied(other, applied(one, "from n import a, b\ndef f(x):\n    x = g(x)\n"))
    assert detect(one, both) is detect(other, both) is Presence.PRESENT


def test_inserted_code_with_another_knob_value_is_rewritten() -> None:
    method = method_of(InsertAfter("f", "s = 1", "s = {factor} * s"), knobs=(Knob("factor", 0.5, "A factor."),))
    once = applied(method, "def f():\n    s = 1\n")
    assert applied(method, once, factor=-0.25) == "def f():\n    s = 1\n    s = -0.25 * s\n"
    assert applied(method, applied(method, once, factor=-0.25)) == once


def test_a_decorated_statement_is_replaced_with_its_decorators() -> None:
    method = method_of(ReplaceStmt("C", "@a\n@b(1)\ndef f(self): pass", "@c\ndef f(self): pass"))
    source = "c = 1\nclass C:\n    # a@b\n    @a\n    @b(1)\n    def f(self): pass\n"
    assert applied(method, source) == "c = 1\nclass C:\n    # a@b\n    @c\n    def f(self): pass\n"


def test_a_method_is_added_once_at_the_end_of_its_class() -> None:
    code = 'def f(self):\n    """Say it.\n\n  At length.\n    """\n    if self:\n        return {factor}\n'
    method = method_of(AddMethod("C", code), knobs=(Knob("factor", 2, "A factor."),))
    source = "class C:\n\tx = 1  # one\n\ny = 2"
    new = applied(method, source)
    assert new == (
        'class C:\n\tx = 1  # one\n\n\tdef f(self):\n\t\t"""Say it.\n\n  At length.\n    """\n'
        "\t\tif self:\n\t\t\treturn 2\n\ny = 2"
    )
    assert isinstance(apply_method(method, new, {}), Present)
    assert applied(method, new, factor=3) == new.replace("return 2", "return 3")
    assert "another one" in refused(method, "class C:\n    def f(self): pass\n").reason
    assert "nothing has this name" in refused(method, "x = 1\n").reason
    assert "shares its line" in refused(method, "class C: x = 1\n").reason


def test_a_string_that_spans_lines_keeps_its_text() -> None:
    method = method_of(InsertAfter("f", "x = 1", 'y = """a\n  b\n\n   \n"""\nif y:\n    z = 1'))
    new = applied(method, "def f():\n\tx = 1\n")
    assert new == 'def f():\n\tx = 1\n\ty = """a\n  b\n\n   \n"""\n\tif y:\n\t\tz = 1\n'


# -------------------------------------------------------------------------------------------- together

APART = [method for method_id, method in METHODS.items() if method_id != "mqa"]
TOGETHER = UPSTREAM_LIKE
for each in APART:
    TOGETHER = applied(each, TOGETHER)


@given(st.permutations(APART))
@settings(max_examples=40, deadline=None)
def test_any_order_of_methods_gives_one_text(order: list[Method]) -> None:
    text = UPSTREAM_LIKE
    for method in order:
        text = applied(method, text)
    assert text == TOGETHER


# ---------------------------------------------------------------------------------------- hostile texts


def check_answers(source: str) -> None:
    for method in METHODS.values():
        made = apply_method(method, source, {})
        if isinstance(made, Applied):
            ast.parse(made.text.removeprefix("\ufeff"))
            assert isinstance(apply_method(method, made.text, {}), Present)
        assert detect(method, source) in Presence
    assert len(program_hash(source)) == 64


@pytest.mark.parametrize(
    "source",
    [
        "",
        "\0",
        "\ufeff",
        "\ufeff\ufeffX = 1",
        "\ud800",
        "# \udfff\nX = 1",
        "(" * 10_000 + ")" * 10_000,
        "X = " + "(" * 150 + "1" + ")" * 150,
        "X = " + "-" * 100_000 + "1",
        "X = " + "not " * 50_000 + "1",
        "X = 1" + " + 1" * 50_000,
        "X = a" + ".b" * 50_000,
        "X = " + "lambda: " * 20_000 + "1",
        "X = " + "[" * 5_000,
        "if 1:\n" + "".join(" " * depth + "if 1:\n" for depth in range(1, 200)),
        "\f\n\f",
        "X = 1\\\n",
        "\\\n" * 1000,
        "X = 0x" + "f" * 10_000,
        "# -*- coding: latin-1 -*-\nX = 'é'\n",
        "# -*- coding: utf-7 -*-\nX = 1\n",
        "x" * 200_000,
        "\r" * 1000,
        "'''",
        "f'{",
        "class GPT:\n  def forward(self): softcap = 1",
    ],
    ids=map(str, range(26)),
)
def test_a_hostile_text_is_answered(source: str) -> None:
    check_answers(source)
    check_answers(UPSTREAM_LIKE + source)
    apply_method(scaled("1"), source, {})


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_any_text_is_answered(source: str) -> None:
    check_answers(source)


LINES = UPSTREAM_LIKE.splitlines(keepends=True)
ODDITIES = ["\0", "\ud800", "\f", "\r", "\\\n", ";", "\t", "(", '"""', "#", " ", "\ufeff", "\u2028", "é", "\x1c", "; "]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_mutated_file_is_answered(data: st.DataObject) -> None:
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "double", "swap", "put"])):
            case "drop":
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "swap":
                lines[at], lines[0] = lines[0], lines[at]
            case _:
                column = data.draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + data.draw(st.sampled_from(ODDITIES)) + lines[at][column:]
    check_answers("".join(lines))


# ------------------------------------------------------------------------------------------------ diffs


def test_a_diff_counts_lines_as_git_does() -> None:
    old, new = "a\f\rb\u2028\nX = 1\n", "a\f\rb\u2028\nX = 2"
    assert unified_diff(old, new, "train.py") == (
        "--- a/train.py\n+++ b/train.py\n@@ -1,2 +1,2 @@\n a\f\rb\u2028\n-X = 1\n+X = 2\n\\ No newline at end of file\n"
    )
    assert unified_diff(old, old, "train.py") == ""


SHADOWED = "def f(cap):\n    cap = 2\n    return cap\n"
NESTED = "def f():\n    def g():\n        return C(n=1)\n    return g\n"
RENAMED = "def build_model_config(depth):\n    heads = 4\n    return GPTConfig(n_kv_head=heads)\n"


@pytest.mark.parametrize(
    ("op", "source", "told"),
    [
        (SetLocal("f", "cap", "3"), SHADOWED, "2 times"),
        (SetKwarg("f", "C", "n", "2"), NESTED, "nothing calls it"),
        (SetKwarg("build_model_config", "GPTConfig", "n_kv_head", "num_heads // 2"), RENAMED, "num_heads"),
        (SetConst("A", "silu(1)"), "A = 1\n", "silu"),
    ],
)
def test_an_edit_that_would_mean_something_else_or_nothing_is_refused(op: RecipeOp, source: str, told: str) -> None:
    method = Method("m", "M", "output", "s", "d", recipe=Recipe((op,)))
    made = apply_method(method, source, {})
    assert isinstance(made, Refused), made
    assert told in made.reason


def test_a_text_that_nobody_edits_is_refused_at_once() -> None:
    method = Method("m", "M", "output", "s", "d", recipe=Recipe((SetConst("A", "2"),)))
    made = apply_method(method, "A = 1\n" * 400_000, {})
    assert isinstance(made, Refused)
    assert "characters" in made.reason
