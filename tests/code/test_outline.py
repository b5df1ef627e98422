"""A code map says what stands where, of any text, within its budget."""

import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopgraph_mcp.code import outline_fit
from loopgraph_mcp.code.outline import CodeMap, Entry, Kind, import_graph, map_folder, map_text
from loopgraph_mcp.text import estimate_tokens
from tests.conftest import ROOT

TRAINER = (ROOT / "trainer" / "train.py").read_text()
SMALL = """
import argparse, torch
from dataclasses import dataclass

MATRIX_LR = 0.04  # Muon
batch_size = 2**9
SILENT = MATRIX_LR > 1
count = 0

@dataclass
class Config:
    n_head: int = 4
    name: str

class Model(torch.nn.Module):
    def __init__(self, config, *, bias=False):
        self.x = 1

    @torch.no_grad()
    def forward(self, x, targets=None):
        softcap = 15
        total = 0
        total += 1
        return x

    def groups(self, lr):
        adam = dict(kind="adamw", eps=1e-8)
        return [dict(kind='muon', params=self.matrices, lr=lr * 2), adam | {"params": self.scalars, "lr": 0.1}]

parser = argparse.ArgumentParser()
parser.add_argument("--depth", type=int, default=8)
for step in range(10):
    for micro in range(2):
        loss.backward()
    count += 1
print(f"val_bpb:    {1.0:.6f}")
print("note: nothing")
"""


def found(made: CodeMap, kind: Kind) -> dict[str, Entry]:
    return {entry.name: entry for entry in made.entries if entry.kind is kind}


def test_each_kind_of_thing_is_found_with_its_value_and_lines() -> None:
    made = map_text(SMALL)
    assert {name: entry.text for name, entry in found(made, Kind.KNOB).items()} == {
        "MATRIX_LR": "0.04",
        "batch_size": "2**9",
    }
    assert {name: entry.text for name, entry in found(made, Kind.FIELD).items()} == {
        "Config.n_head": "4",
        "Config.name": "",
    }
    assert {name: entry.text for name, entry in found(made, Kind.GROUP).items()} == {
        "self.matrices": "muon lr=lr * 2",
        "self.scalars": "adam lr=0.1",
    }
    assert {name: entry.text for name, entry in found(made, Kind.LOCAL).items()} == {"Model.forward.softcap": "15"}
    assert {name: entry.text for name, entry in found(made, Kind.FLAG).items()} == {"--depth": "8"}
    assert list(found(made, Kind.METRIC)) == ["val_bpb"]
    assert found(made, Kind.CLASS)["Model"].text == "torch.nn.Module"
    assert found(made, Kind.FUNCTION)["Model.__init__"].text == "self, config, *, bias=False"
    loop = found(made, Kind.LOOP)["training loop"]
    assert SMALL.splitlines()[loop.line - 1 : loop.end_line][0] == "for step in range(10):"
    assert loop.end_line - loop.line == 3


def test_the_bundled_trainer_is_mapped_within_the_usual_budget() -> None:
    made = map_text(TRAINER)
    assert found(made, Kind.KNOB)["MATRIX_LR"].text == "0.04"
    assert len(found(made, Kind.GROUP)) == 6
    assert "backward" in "\n".join(TRAINER.splitlines()[found(made, Kind.LOOP)["training loop"].line - 1 :])
    shown = outline_fit.fit([made], "", 800)
    assert 600 < estimate_tokens(shown.text) <= 800
    for budget in range(150, 1_300, 25):
        assert estimate_tokens(outline_fit.fit([made], "", budget).text) <= budget - outline_fit._RESERVE
    assert {"MATRIX_LR", "GPT", "GPT.forward"} <= {entry.name for entry in shown.shown}
    assert shown.left_out[Kind.FUNCTION] > 10
    assert not outline_fit.fit([made], "", 20_000).left_out


@pytest.mark.parametrize(
    ("broken", "told", "still"),
    [
        ("    def forward(self, x, targets=None):\n        softcap = = 15", "invalid syntax", "Model.groups"),
        ("    def forward(self, x, targets=None:", "invalid syntax", "Model.__init__"),
        ("    def forward(self, x, targets=None)", "expected ':'", "Model.__init__"),
    ],
)
def test_a_broken_definition_is_named_and_the_rest_is_mapped(broken: str, told: str, still: str) -> None:
    whole = "    def forward(self, x, targets=None):"
    made = map_text(SMALL.replace(whole, broken))
    assert [entry.name for entry in made.errors] == ["forward"]
    assert told in made.errors[0].text
    assert {"Model", still} <= {entry.name for entry in made.entries}
    assert "MATRIX_LR" in found(made, Kind.KNOB)
    assert outline_fit.fit([made], "", 400).text.startswith("does not parse: forward: line ")


def test_a_broken_statement_takes_nothing_else_with_it() -> None:
    made = map_text(SMALL.replace("batch_size = 2**9", "batch_size = 2**"))
    assert set(found(made, Kind.KNOB)) == {"MATRIX_LR"}
    assert "training loop" in found(made, Kind.LOOP)


def test_a_text_cut_off_in_the_middle_keeps_its_beginning() -> None:
    made = map_text(SMALL[: SMALL.index("    def groups") + 40])
    assert made.errors
    assert {"Config", "Model", "Model.forward"} <= {entry.name for entry in made.entries}


HOSTILE = {
    "nothing": "",
    "a null byte": "X = 1\0\nY = 2\n",
    "a lone surrogate": "X = '\ud800'\nY = 2\n",
    "brackets without end": "(" * 50_000,
    "deep nesting": "x = " + "(" * 3_000 + "1" + ")" * 3_000,
    "a deep sum": "x = " + "+".join("1" * 5_000),
    "a chain of attributes": "x = a" + ".b" * 5_000,
    "ten megabytes": "X = 1  # a line\n" * 650_000,
    "a name of a megabyte": "x" * 2**20 + " = 1",
    "one wrong line of many": "def f():\n    return 1\n" * 20_000 + "x = = 1\n",
    "wrong everywhere": "def f(:\n" * 5_000,
    "deep classes": "".join("    " * depth + f"class C{depth}:\n" for depth in range(90)) + "    " * 90 + "x = 1\n",
    "carriage returns": SMALL.replace("\n", "\r"),
    "form feeds": SMALL.replace("\n\n", "\n\f\n"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_a_hostile_text_is_mapped_in_bounded_time(text: str) -> None:
    began = time.monotonic()
    made = map_text(text)
    assert estimate_tokens(outline_fit.fit([made], "rate of x", 400).text) <= 400
    assert time.monotonic() - began < 10


def test_what_is_around_a_null_byte_is_mapped() -> None:
    made = map_text(HOSTILE["a null byte"])
    assert "Y" in found(made, Kind.KNOB)
    assert made.errors[0].line == 1


PIECES = st.sampled_from(
    [*SMALL.splitlines(keepends=True), "    ", "\t", "(", "'''", "\\\n", "def f(", "\n", "é = 1\n", "\r\n", "\x0c", "@"]
)


@given(
    st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=40).map("".join),
    st.integers(0, 600),
    st.text(max_size=20),
)
@example("class A:\n  def f(self): pass\n  x = (\n", 200, "f")
@settings(deadline=None)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_any_text_is_mapped_truly_within_the_budget_and_always_alike(text: str, budget: int, query: str) -> None:
    made = map_text(text)
    assert made == map_text(text)
    for entry in made.entries:
        assert 1 <= entry.line <= entry.end_line <= len(made.lines)
        if entry.kind in {Kind.FUNCTION, Kind.CLASS, Kind.KNOB}:
            line = unicodedata.normalize("NFKC", made.lines[entry.line - 1])  # as Python does with names
            assert entry.name.rpartition(".")[2][:20] in line
    shown = outline_fit.fit([made], query, budget)
    assert estimate_tokens(shown.text) <= max(budget, outline_fit.MIN_BUDGET) - outline_fit._RESERVE
    assert len(shown.shown) + sum(shown.left_out.values()) == len(made.entries)


@given(st.integers(0, len(TRAINER) - 1), st.sampled_from(["(", ")", "'", " ", "\n", ":", "\x00", ""]))
@settings(deadline=None, max_examples=15)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_one_wrong_character_costs_little_of_the_map(place: int, put: str) -> None:
    made = map_text(TRAINER[:place] + put + TRAINER[place + 1 :])
    whole = {entry.name for entry in map_text(TRAINER).entries}
    assert len(whole & {entry.name for entry in made.entries}) >= len(whole) / 2


# The question, and the symbol that a researcher means: the first three should hold it.
QUESTIONS = {
    "rope base frequency": "GPT._precompute_rotary_embeddings",
    "learning rate of the matrices": "MATRIX_LR",
    "logit softcap": "GPT.forward.softcap",
    "sliding window pattern": "WINDOW_PATTERN",
    "how are weights initialised": "GPT.init_weights",
    "muon momentum schedule": "get_muon_momentum",
    "number of kv heads": "GPTConfig.n_kv_head",
    "warmdown": "WARMDOWN_RATIO",
    "orthogonalize the update": "orthogonalize",
    "tokens per step, batch size": "TOTAL_BATCH_SIZE",
    "weight decay": "WEIGHT_DECAY",
    "attention forward": "CausalSelfAttention.forward",
    "flops estimate": "GPT.estimate_flops",
    "value embeddings": "has_value_embedding",
    "depth of the model": "DEPTH",
    "optimizer parameter groups": "GPT.setup_optimizer",
    "relu activation in the mlp": "MLP.forward",
    "learning rate schedule": "get_lr_multiplier",
    "adam betas": "ADAM_BETAS",
    "evaluate batch size": "EVAL_BATCH_SIZE",
}


def test_a_question_finds_its_place_among_the_first_three() -> None:
    made = map_text(TRAINER)
    missed = [
        question
        for question, meant in QUESTIONS.items()
        if meant not in [entry.name for entry in outline_fit.relevant([made], question)[:3]]
    ]
    assert not missed


def test_a_folder_is_mapped_with_its_imports() -> None:
    texts = {"train.py": "from prepare import SEED\nimport pkg.inner\n", "prepare.py": "SEED = 1\n", "pkg/inner.py": ""}
    maps = map_folder({**texts, "pkg/__init__.py": "from . import inner\nfrom pkg.inner import x\n"})
    assert import_graph(maps) == {
        "train.py": {"prepare.py": "SEED", "pkg/inner.py": ""},
        "pkg/__init__.py": {"pkg/inner.py": ""},
    }
    (seed,) = outline_fit.relevant(list(maps.values()), "seed")
    assert (seed.path, seed.name) == ("prepare.py", "SEED")
    assert import_graph(map_folder({"a.py": "from own.b import c", "b.py": ""}), "own") == {"a.py": {"b.py": "c"}}


def test_words_are_those_of_names_as_well() -> None:
    assert outline_fit.words("GPTConfig val_bpb the learning-rates") == [
        "gpt",
        "config",
        "val",
        "bpb",
        "learning",
        "rate",
    ]
