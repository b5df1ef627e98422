"""What a recipe asks of a file and brings with it: forms, marks, numbers, companions, other methods, the way back."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.api.answers import EditAnswer
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.code import apply, compose, revert
from loopgraph_mcp.code.apply import Around, apply_method, detect, offered
from loopgraph_mcp.code.compose import Wish
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import (
    Advice,
    Applied,
    Companion,
    InsertAfter,
    Knob,
    Mark,
    Method,
    NextStep,
    Presence,
    Present,
    Recipe,
    Refused,
    ReplaceStmt,
    SetConst,
    Sign,
    Variant,
)
from loopgraph_mcp.server import render as wording
from loopgraph_mcp.text import estimate_tokens
from tests.conftest import ROOT

METHODS = {method.id: method for method in read_pack(ROOT / "methodpacks").methods}
TRAINER = (ROOT / "trainer" / "train.py").read_text(encoding="utf-8")
SCRIPT = (ROOT / "tests" / "data" / "single_file.txt").read_text(encoding="utf-8")


def method_of(method_id: str = "made-up", knobs: tuple[Knob, ...] = (), **recipe: object) -> Method:
    made = Recipe(**{"ops": (), **recipe})  # type: ignore[arg-type]
    return Method(method_id, "Made up", "schedule", "A test's.", "A test's.", knobs=knobs, recipe=made)


def applied(method: Method, source: str, around: Around = apply.NOTHING, **knobs: float | str) -> str:
    made = apply_method(method, source, knobs, around)
    assert isinstance(made, Applied), made
    return made.text


def refused(method: Method, source: str, around: Around = apply.NOTHING) -> Refused:
    made = apply_method(method, source, {}, around)
    assert isinstance(made, Refused), made
    return made


# ------------------------------------------------------------------------------------------------- holes


def test_a_hole_stands_for_one_variable_wherever_it_stands() -> None:
    method = method_of(ops=(ReplaceStmt("f", "{_h} = relu({_h})", "{_h} = gelu({_h})"),))
    source = "from n import relu, gelu\ndef f(a, b):\n    hidden = relu(hidden)\n    b = relu(a)\n"
    assert applied(method, source) == source.replace("relu(hidden)", "gelu(hidden)")
    assert "no statement there equals it" in refused(method, source.replace("relu(hidden)", "relu(b)")).reason
    assert "2 times" in refused(method, source + "    a = relu(a)\n").reason


def test_an_expression_s_hole_keeps_what_stood_there() -> None:
    method = method_of(ops=(ReplaceStmt("f", "{_x} = g({__rest})", "{_x} = h({__rest}, 2 * {__rest})"),))
    source = "from n import g, h\ndef f(a, b):\n    y = g(a + b)\n"
    made = applied(method, source)
    assert made == source.replace("g(a + b)", "h((a + b), 2 * (a + b))")
    assert isinstance(apply_method(method, made, {}), Present)


def test_an_inserted_line_uses_the_names_of_its_anchor() -> None:
    method = method_of(ops=(InsertAfter("f", "{_i} = start({__n})", "{_i} = step({_i})"),))
    source = "from n import start, step\ndef f():\n  count = start(3)\n  other = step(other)\n"
    made = applied(method, source)
    assert made == source.replace("(3)\n", "(3)\n  count = step(count)\n")
    assert detect(method, source) is Presence.ABSENT
    assert detect(method, made) is Presence.PRESENT


def test_an_f_string_s_braces_are_its_own() -> None:
    knobs = (Knob("rate", 0.5, "A rate."),)
    method = method_of(knobs=knobs, ops=(InsertAfter("f", "x = 1", 'print(f"{x}.{y[0]} {rate}")'),))
    assert applied(method, "def f(y):\n    x = 1\n").endswith('    print(f"{x}.{y[0]} 0.5")\n')


# --------------------------------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("class C:\n    matrix_lr: float = 0.04  # Muon\n", "class C:\n    matrix_lr: float = 0.5  # Muon\n"),
        (
            "class C:\n    Matrix_LR: float = field(default=0.04)\n",
            "class C:\n    Matrix_LR: float = field(default=0.5)\n",
        ),
        ('p.add_argument("-m", "--matrix-lr", default=0.04)\n', 'p.add_argument("-m", "--matrix-lr", default=0.5)\n'),
        ("class C:\n    matrix_lr = 0.1\nMATRIX_LR = 0.04\n", "class C:\n    matrix_lr = 0.1\nMATRIX_LR = 0.5\n"),
        (
            "class C:\n    matrix_lr: float = 1\nclass S:\n    matrix_lr: float = 2\nC(matrix_lr=S().matrix_lr)\n",
            "class C:\n    matrix_lr: float = 1\nclass S:\n    matrix_lr: float = 0.5\nC(matrix_lr=S().matrix_lr)\n",
        ),
    ],
)
def test_a_constant_is_found_where_it_was_moved_to(source: str, made: str) -> None:
    assert applied(method_of(ops=(SetConst("MATRIX_LR", "0.5"),)), source) == made


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("class C:\n    x: int = 1\nclass D:\n    x: int = 1\n", "it is a default 2 times (lines 2, 4)"),
        ("class C:\n    x: int = 1\nC(x=2)\n", "line 3 passes another value than the default"),
        ("y = 1\n", "nothing assigns it at module level"),
    ],
)
def test_a_default_that_counts_for_nothing_or_stands_twice_is_refused(source: str, reason: str) -> None:
    assert reason in refused(method_of(ops=(SetConst("X", "2"),)), source).reason


# ----------------------------------------------------------------------------------------- forms and marks


def test_of_several_forms_the_first_that_fits_is_taken_and_is_present_again() -> None:
    forms = (Variant((SetConst("A", "2"),)), Variant((SetConst("B", "2"),)), Variant((SetConst("C", "2"),), part="c"))
    method = method_of(variants=forms)
    assert applied(method, "A = 1\nB = 1\nC = 1\n") == "A = 2\nB = 1\nC = 2\n"
    made = applied(method, "B = 1\nC = 1\n")
    assert made == "B = 2\nC = 2\n"
    assert isinstance(apply_method(method, made, {}), Present)
    assert detect(method, made) is Presence.PRESENT
    assert detect(method, "B = 2\nC = 1\n") is Presence.PARTIAL
    told = refused(method, "C = 1\n")
    assert "`A = …`" in told.looked_for
    assert "none of its 2 forms fits" in told.reason


def test_a_form_without_ops_says_in_which_files_there_is_nothing_to_do() -> None:
    nothing = Variant((), (Mark(lacks=("check({__x})",)),))
    method = method_of(
        ops=(SetConst("A", "2"),), variants=(Variant((ReplaceStmt("", "check(1)", "check(2)"),)), nothing)
    )
    assert applied(method, "A = 1\n") == "A = 2\n"
    assert applied(method, "A = 1\ncheck(1)\n") == "A = 2\ncheck(2)\n"
    assert "check" in refused(method, "A = 1\ncheck(3)\n").reason


def test_a_method_in_another_form_is_present_and_something_in_its_way_conflicts() -> None:
    signs = (
        Sign("present", Mark(has=("norm({_q})", "norm(k)"), scope="f")),
        Sign("conflicting", Mark(has=("cap",), why="a cap does the same")),
    )
    method = method_of(ops=(SetConst("NORMED", "True"),), detect=signs)
    other = "NORMED = False\ndef f(x, k):\n    return norm(x), norm(k)\n"
    assert detect(method, other) is Presence.PRESENT
    told = apply_method(method, other, {})
    assert isinstance(told, Present)
    assert "in another form (line 3: `return norm(x), norm(k)`)" in told.reason
    capped = "NORMED = False\ncap = 3\n"
    assert detect(method, capped) is Presence.CONFLICTING
    assert "a cap does the same (line 2: `cap = 3`)" in refused(method, capped).reason
    assert detect(method, applied(method, "NORMED = False\n") + "cap = 3\n") is Presence.PRESENT


def test_what_a_file_must_hold_is_told_with_its_reason() -> None:
    method = method_of(ops=(SetConst("A", "2"),), needs=(Mark(scope="Net.init", why="weights are set there"),))
    assert "weights are set there" in refused(method, "A = 1\nclass Net:\n    def __init__(self): pass\n").reason
    assert applied(method, "A = 1\nclass Net:\n    def init(self): pass\n").startswith("A = 2")


def test_a_conflict_is_refused_where_both_would_stand_and_not_where_one_takes_the_other_s_place() -> None:
    one = method_of("one", ops=(SetConst("A", "2"),), conflicts=("other",))
    beside, instead = method_of("other", ops=(SetConst("B", "2"),)), method_of("other", ops=(SetConst("A", "3"),))
    assert "revert that method first" in refused(one, "A = 1\nB = 2\n", Around(library={"other": beside})).reason
    assert detect(one, "A = 1\nB = 2\n", around=Around(library={"other": beside})) is Presence.CONFLICTING
    assert applied(one, "A = 3\nB = 2\n", Around(library={"other": instead})) == "A = 2\nB = 2\n"


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(("factor", "rows"), [(2, 4), (4, 4), (8, 2)])
def test_a_smaller_batch_stays_a_whole_number_of_passes(factor: int, rows: int) -> None:
    made = applied(METHODS["smaller-batch"], SCRIPT, factor=factor)
    assert f"TOTAL_BATCH_SIZE = 2**9 // {factor}" in made
    (line,) = re.findall(r"^DEVICE_BATCH_SIZE = ([^#\n]+)", made, re.MULTILINE)
    names = {"TOTAL_BATCH_SIZE": 2**9 // factor, "MAX_SEQ_LEN": 32}
    assert eval(line, names) == rows


def test_rows_are_not_worked_out_where_the_program_fits_them_itself() -> None:
    assert "DEVICE_BATCH_SIZE = on(" in applied(METHODS["smaller-batch"], TRAINER)


def test_a_value_that_reads_what_the_file_sets_only_below_is_refused() -> None:
    method = method_of(ops=(SetConst("A", "{current} * B"),))
    assert "line 2 sets it only below" in refused(method, "A = 1\nB = 2\n").reason
    assert applied(method, "B = 2\nA = 1\n") == "B = 2\nA = 1 * B\n"
    assert applied(method, "B = 2\nA = 1\nB = 3\n") == "B = 2\nA = 1 * B\nB = 3\n"
    loop = method_of(ops=(SetConst("A", "max(k for k in range(9))"),))
    assert applied(loop, "A = 1\nk = 2\n") == "A = max(k for k in range(9))\nk = 2\n"


# --------------------------------------------------------------------------------------------- companions


def test_a_companion_is_offered_with_its_reason_and_made_when_asked_for() -> None:
    batch = METHODS["smaller-batch"]
    plain = applied(batch, SCRIPT)
    assert "MATRIX_LR = 0.04 " in plain
    ((companion, change),) = offered(batch, plain, {})
    assert (companion.name, change) == ("lower-rate", "MATRIX_LR = 0.04 * 2 ** -0.5 (was 0.04)")
    for asked in ({"lower-rate"}, {apply.ALL}):
        with_it = applied(batch, SCRIPT, Around(companions=frozenset(asked)))
        assert with_it == plain.replace("MATRIX_LR = 0.04 ", "MATRIX_LR = 0.04 * 2 ** -0.5 ")
        assert offered(batch, with_it, {}) == []
    assert (
        "this method's companions are: lower-rate" in refused(batch, SCRIPT, Around(companions=frozenset({"x"}))).reason
    )


def test_a_required_companion_is_always_made_and_says_why() -> None:
    needed = Companion("group", "it would never train", required=True, ops=(SetConst("B", "2"),))
    made = apply_method(method_of(ops=(SetConst("A", "2"),), companions=(needed,)), "A = 1\nB = 1\n", {})
    assert made == Applied("A = 2\nB = 2\n", ("A = 2 (was 1)", "B = 2 (was 1); it would never train"))
    assert isinstance(apply_method(method_of(ops=(SetConst("A", "2"),), companions=(needed,)), "A = 1\n", {}), Refused)


def test_another_method_can_be_a_companion() -> None:
    rate = method_of("rate", (Knob("rate", 0.5, "A rate."),), ops=(SetConst("B", "{rate}"),))
    companion = Companion("slower", "it diverges", method="rate", knobs=(("rate", 0.25),))
    method = method_of(ops=(SetConst("A", "2"),), companions=(companion,))
    around = Around(library={"rate": rate}, companions=frozenset({"slower"}))
    assert applied(method, "A = 1\nB = 1\n", around) == "A = 2\nB = 0.25\n"


# -------------------------------------------------------------------------------------------- several


def test_methods_that_change_one_place_are_refused_by_pair_and_place() -> None:
    half = method_of("half", ops=(SetConst("X", "{current} // 2"),))
    third = method_of("third", ops=(SetConst("X", "{current} // 3"),))
    answers = {compose.compose(Wish(order), "X = 12\n") for order in ([half, third], [third, half])}
    (answer,) = answers
    assert isinstance(answer, Refused)
    assert "half and third change the same place" in answer.reason
    assert "X = " in answer.looked_for


def test_a_pair_that_its_pack_keeps_apart_is_refused() -> None:
    answer = compose.compose(Wish([METHODS["mqa"], METHODS["gqa"]]), SCRIPT)
    assert isinstance(answer, Refused)
    assert answer.looked_for == "gqa beside mqa"


def test_a_method_that_another_one_makes_room_for_is_made_after_it() -> None:
    makes = method_of("makes-room", ops=(InsertAfter("", "A = 1", "B = 1"),))
    uses = method_of("a-user", ops=(SetConst("B", "2"),))
    answer = compose.compose(Wish([uses, makes]), "A = 1\n")
    assert isinstance(answer, Refused) or answer == compose.compose(Wish([makes, uses]), "A = 1\n")


# -------------------------------------------------------------------------------------------- the way back


def test_an_edit_comes_out_of_a_file_that_moved_on_to_the_byte() -> None:
    made = applied(METHODS["swiglu"], TRAINER)
    other = applied(METHODS["embedding-lr"], made)
    back = revert.undo(TRAINER, made, other)
    assert isinstance(back, Applied)
    assert back.text == applied(METHODS["embedding-lr"], TRAINER)


def test_a_place_that_was_changed_since_is_told() -> None:
    made = applied(METHODS["muon-lr"], SCRIPT)
    again = applied(METHODS["muon-lr"], made, rate=0.02)
    told = revert.undo(SCRIPT, made, again)
    assert isinstance(told, Refused)
    assert "MATRIX_LR = 0.03" in told.looked_for
    assert "changed since" in told.reason


LINES = st.lists(st.sampled_from(["a = 1", "b = 2", "c = 3", "d = 4", "a = 2", "if a:\n    b = 3"]), max_size=7)


@given(LINES, LINES, LINES)
@settings(max_examples=200, deadline=None)
def test_what_comes_out_can_be_put_back_or_nothing_comes_out(
    base: list[str], new: list[str], present: list[str]
) -> None:
    one, two, three = ("".join(f"{line}\n" for line in lines) for lines in (base, new, present))
    back = revert.undo(one, two, three)
    if isinstance(back, Applied) and three != two:
        again = revert.undo(two, one, back.text)
        assert isinstance(again, Applied)
        assert again.text == three
    same = revert.undo(one, two, two)
    assert isinstance(same, Applied)
    assert same.text == one


# ---------------------------------------------------------------------------------------------- the verb

PACK = """
id = "{id}"
name = "{id}"
family = "schedule"
summary = "s"
description = "d"
[recipe]
[[recipe.ops]]
op = "set_const"
name = "{name}"
value = "{value}"
[[recipe.companions]]
name = "longer"
why = "it is slower"
[[recipe.companions.ops]]
op = "set_const"
name = "STEPS"
value = "6"
"""


@pytest.fixture
def with_pack(settings: Settings, tmp_path: Path) -> Settings:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "pack.toml").write_text('name = "p"\nversion = "1"\nlicense = "MIT"\n')
    for method_id, name, value in (("rate", "LEARNING_RATE", "0.7"), ("sleep", "SLEEP_S", "0.01")):
        (folder / f"{method_id}.toml").write_text(PACK.format(id=method_id, name=name, value=value))
    return replace(settings, packs=folder)


async def test_several_methods_are_one_edit_with_companions_and_come_out_again(with_pack: Settings) -> None:
    file = with_pack.workspace / "train.py"
    before = file.read_text()
    async with LoopGraph.open(with_pack) as graph:
        one = await graph.get_code_edit("rate", also=["sleep"], companions=["longer"])
        other = await graph.get_code_edit("sleep", also=["rate"], companions=["longer"], apply=True)
        assert one.diff == other.diff
        assert one.method_id == "rate + sleep"
        assert "+STEPS = 6" in one.diff
        assert one.companions == []
        assert (await graph.get_code_edit("rate")).status == "present"
        file.write_text(file.read_text() + "# later\n")
        run = await graph.run_experiment(wait_s=0, description="as it stands")
        back = await graph.get_code_edit(other.edit_id or "", revert=True, apply=True)
        assert back.status == "applied"
        assert file.read_text() == before + "# later\n"
        assert (await graph.get_code_edit("rate", revert=True)).status == "refused"
        with pytest.raises(RunError, match="revert takes one"):
            await graph.get_code_edit("rate", also=["sleep"], revert=True)
        offer = await graph.get_code_edit("rate")
        assert [each.name for each in offer.companions] == ["longer"]
        assert "companions=true" in wording.edit(offer)
        await graph.cancel_experiment(run.experiment_id)


def test_a_long_diff_is_shown_in_parts_that_fit() -> None:
    diff = "\n".join(f"+line {number} = {number} * {number}  # a comment" for number in range(1_000))
    answer = EditAnswer("ready", "m", "train.py", "edit_1", diff, ["c"], "", [], [], NextStep(Advice.GO_ON))
    shown, first = list[str](), 1
    while first:
        words = wording.edit(answer, first)
        assert estimate_tokens(words) < 1_500
        shown += re.search(r"```diff\n(.*?)\n```", words, re.DOTALL).group(1).splitlines()  # type: ignore[union-attr]
        more = re.search(r"diff_from=(\d+)", words)
        first = int(more.group(1)) if more else 0
    assert "\n".join(shown) == diff


# ------------------------------------------------------------------------------------- the shipped recipes


TWO_KERNELS = SCRIPT.replace(
    "        y = self.c_proj(y)\n",
    "        if q.is_cuda:\n            y = y.contiguous()\n"
    "        else:\n            y = y.clone()\n        y = self.c_proj(y)\n",
)
COUNTS = """
    def estimate_flops(self):
        nparams = sum(p.numel() for p in self.parameters())
        value_embeds_numel = sum(each.weight.numel() for each in self.value_embeds.values())
        return 6 * (nparams - self.transformer.wte.weight.numel() - value_embeds_numel)

    def num_scaling_params(self):
        value_embeds = sum(p.numel() for p in self.value_embeds.parameters())
        lm_head = sum(p.numel() for p in self.lm_head.parameters())
        return value_embeds + lm_head

    def setup_optimizer("""


@pytest.mark.parametrize("method_id", ["attention-gate", "exclusive-attention"])
def test_what_changes_the_heads_stands_behind_every_kernel_of_a_file(method_id: str) -> None:
    made = applied(METHODS[method_id], TWO_KERNELS)
    inside, _, behind = made.partition("            y = y.clone()\n")
    assert inside.count("unflatten") == 0
    assert behind.index("unflatten") < behind.index("y = self.c_proj(y)")


def test_weights_are_averaged_whether_or_not_the_model_is_compiled() -> None:
    made = applied(METHODS["weight-averaging"], SCRIPT)
    assert re.search(r"^total_training_time = 0\naverages = ", made, re.MULTILINE)


@pytest.mark.parametrize(
    ("method_id", "counted"),
    [
        ("bigram-hash", ["value_embeds_numel += self.bigrams", "value_embeds += self.bigrams"]),
        ("weight-tying", ["nparams += self.lm_head.weight.numel()"]),
        ("multi-token-prediction", ["lm_head += self.ahead_head.weight.numel()"]),
    ],
)
def test_what_a_file_counts_stays_right_and_a_file_that_counts_nothing_is_edited_too(
    method_id: str, counted: list[str]
) -> None:
    made = applied(METHODS[method_id], SCRIPT.replace("\n    def setup_optimizer(", COUNTS, 1))
    plain = applied(METHODS[method_id], SCRIPT)
    assert [code in made for code in counted] == [True] * len(counted)
    assert not any(code in plain for code in counted)


@pytest.mark.parametrize(
    ("method_id", "old", "new"),
    [
        ("cosine-decay", "return cooldown * 1.0", "return 0.5 * (1 + math.cos(math.pi * cooldown))"),
        ("label-smoothing", "reduction=reduction", "reduction=reduction, label_smoothing=0.1"),
        (
            "weight-tying",
            "        self.resid_lambdas = ",
            "        self.lm_head.weight = self.transformer.wte.weight\n        self.resid_lambdas = ",
        ),
    ],
)
def test_a_method_that_somebody_wrote_by_hand_is_present(method_id: str, old: str, new: str) -> None:
    assert detect(METHODS[method_id], SCRIPT.replace(old, new)) is Presence.PRESENT
