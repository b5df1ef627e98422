"""A patch becomes a recipe that makes the same change again, here and in later versions; or nothing is learned."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.code import apply, generalize
from loopgraph_mcp.code.generalize import Fits, Learned, NotLearned
from loopgraph_mcp.code.hashes import program_hash
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import (
    AddMethod,
    Applied,
    InsertAfter,
    Method,
    Present,
    ReplaceStmt,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
)
from tests.conftest import ROOT

TRAINER = (ROOT / "trainer" / "train.py").read_text()
METHODS = [
    method
    for method in read_pack(ROOT / "methodpacks").methods
    if isinstance(apply.apply_method(method, TRAINER, {}), Applied)
]
PARENT = '''
import math

RATE = 0.04  # the rate
NAME = "a"

def schedule(step, base=10):
    frac = min(step / 300, 1)
    return frac * base

class Model:
    """A model."""

    def __init__(self, config):
        self.fc = linear(config.width, 4 * config.width, bias=False)
        self.out = linear(config.width, config.width, bias=False)

    def forward(self, x):
        x = self.fc(x)
        x = relu(x)
        for block in self.blocks:
            x = block(x)
        x = norm(x)
        x = norm(x)
        return self.out(x)

model = build(depth=8, width=64)
while True:
    loss = model(1)
    loss.backward()
'''


def learn(parent: str, child: str) -> Learned:
    found = generalize.generalise(parent, child)
    assert isinstance(found, Learned), found
    return found


def as_method(found: Learned) -> Method:
    return Method("m", "m", "", "", "", knobs=found.knobs, recipe=found.recipe)


def changed(old: str, new: str) -> str:
    assert PARENT.count(old) == 1
    return PARENT.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "op", "knobs"),
    [
        ("RATE = 0.04", "RATE = 0.02", SetConst("RATE", "{rate}"), {"rate": 0.02}),
        ('NAME = "a"', 'NAME = "b"', SetConst("NAME", "'b'"), {}),
        ("/ 300, 1", "/ 200, 1", SetLocal("schedule", "frac", "min(step / {frac}, 1)"), {"frac": 200}),
        ("base=10)", "base=-2.5)", SetDefault("schedule", "base", "{base}"), {"base": -2.5}),
        ("depth=8", "depth=9", SetKwarg("", "build", "depth", "{depth}"), {"depth": 9}),
        ("loss.backward()", "loss.backward(2)", ReplaceStmt("", "loss.backward()", "loss.backward(2)"), {}),
        (
            "        x = relu(x)\n",
            "        x = relu(x)\n        x = drop(x, norm)\n",
            InsertAfter("Model.forward", "x = relu(x)", "x = drop(x, norm)"),
            {},
        ),
        (
            "model = build",
            "    def late(self, x):\n        return x\n\nmodel = build",
            AddMethod("Model", "def late(self, x):\n    return x"),
            {},
        ),
    ],
)
def test_a_change_is_told_by_name_where_it_can_be(old: str, new: str, op: object, knobs: dict[str, object]) -> None:
    new = new.replace("drop(x, norm)", "relu(norm(x))")
    if isinstance(op, InsertAfter):
        op = InsertAfter(op.scope, op.anchor, op.code.replace("drop(x, norm)", "relu(norm(x))"))
    found = learn(PARENT, changed(old, new))
    assert found.recipe.ops == (op,)
    assert {knob.name: knob.default for knob in found.knobs} == knobs


def test_a_keyword_of_a_call_that_stands_in_no_assignment_is_told_by_its_call() -> None:
    parent = "def f(n):\n    return Config(heads=n, depth=8)\n"
    assert learn(parent, parent.replace("8", "9")).recipe.ops == (SetKwarg("f", "Config", "depth", "{depth}"),)


def test_an_ambiguous_statement_is_told_by_its_neighbours() -> None:
    found = learn(PARENT, changed("        x = norm(x)\n        x = norm(x)\n", "        x = norm(x)\n"))
    assert len(found.recipe.ops) == 1
    made = apply.apply_method(as_method(found), PARENT, {})
    assert isinstance(made, Applied)
    assert made.text.count("norm(x)") == 1


def test_a_change_in_several_places_is_one_recipe_with_its_helpers() -> None:
    child = changed("        x = relu(x)\n", "        x = gate(x) * SCALE\n")
    child = child.replace(
        "class Model", "SCALE = 2\n\ndef gate(x):\n    return math.exp(x)\n\ndef clip(a, b):\n    pass\n\nclass Model"
    )
    child = child.replace("    loss.backward()\n", "    loss.backward()\n    clip(loss, math.pi)\n")
    made = apply.apply_method(as_method(learn(PARENT, child)), PARENT, {})
    assert isinstance(made, Applied)
    assert "# the rate" in made.text
    assert {"gate", "clip"} <= {node.name for node in ast.parse(made.text).body if isinstance(node, ast.FunctionDef)}


def test_what_was_learned_applies_to_a_later_version_with_another_value() -> None:
    found = learn(PARENT, changed("/ 300, 1", "/ 200, 1"))
    later = PARENT.replace("RATE = 0.04", "RATE = 0.5").replace("x = relu(x)", "x = gelu(x)")
    made = apply.apply_method(as_method(found), later, {"frac": 100})
    assert isinstance(made, Applied)
    assert "step / 100, 1" in made.text
    assert generalize.fits(found, [later, changed("/ 300, 1", "/ 200, 1"), "x = 1"]) == Fits(1, 1, 1)


def test_names_in_braces_are_code_and_no_knobs() -> None:
    child = changed("    loss = model(1)\n", '    loss = model(1)\n    print(f"{loss}", {math})\n')
    found = learn(PARENT, child)
    assert not found.knobs
    made = apply.apply_method(as_method(found), PARENT, {})
    assert isinstance(made, Applied)
    assert program_hash(made.text) == program_hash(child)


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        (PARENT, "the two are one program"),
        (
            PARENT.replace("# the rate", "# another comment").replace('"""A model."""', '"""Other words."""'),
            "one program",
        ),
        (PARENT + "x = (", "does not parse"),
        (
            changed("        x = relu(x)\n", "        x = relu(x)\n        x = nowhere_defined(x)\n"),
            "none for the rest",
        ),
        (changed('NAME = "a"', 'NAME = "{rate}"'), "not make the same|none for the rest|too large"),
    ],
)
def test_what_gives_no_recipe_says_why(child: str, reason: str) -> None:
    found = generalize.generalise(PARENT, child)
    assert isinstance(found, NotLearned)
    assert any(each in found.reason for each in reason.split("|")), found


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
def test_what_a_pack_s_recipe_does_to_the_trainer_is_learned_again(method: Method) -> None:
    made = apply.apply_method(method, TRAINER, {})
    assert isinstance(made, Applied)
    found = learn(TRAINER, made.text)
    again = apply.apply_method(as_method(found), TRAINER, {})
    assert isinstance(again, Applied)
    assert program_hash(again.text) == program_hash(made.text)
    assert len(found.recipe.ops) <= 5


LINES = PARENT.splitlines(keepends=True)
EDIT = st.tuples(
    st.integers(0, len(LINES) - 1),
    st.sampled_from(
        ["", "        x = norm(x)\n", "RATE = 3\n", "    frac = 2\n", "    pass\n", "        x = relu(x, 0.5)\n"]
    ),
)


@given(st.lists(EDIT, min_size=1, max_size=3))
@settings(deadline=None, max_examples=60)
def test_any_change_is_learned_exactly_or_not_at_all(changes: list[tuple[int, str]]) -> None:
    lines = list(LINES)
    for place, line in changes:
        lines[place] = line
    child = "".join(lines)
    found = generalize.generalise(PARENT, child)
    if isinstance(found, Learned):
        method = as_method(found)
        made = apply.apply_method(method, PARENT, {})
        assert isinstance(made, Applied)
        assert isinstance(apply.apply_method(method, made.text, {}), Present)
        assert generalize._shape(ast.parse(made.text)) == generalize._shape(ast.parse(child))


@given(st.text(max_size=60), st.text(max_size=60))
@settings(deadline=None, max_examples=50)
def test_any_two_texts_are_answered(one: str, other: str) -> None:
    assert isinstance(generalize.generalise(one, other), Learned | NotLearned)
