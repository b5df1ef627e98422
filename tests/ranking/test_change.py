import json
import random
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.change import (
    Change,
    Kin,
    Kinship,
    Precedent,
    Rewrite,
    Turn,
    change_between,
    kin,
    moves_of,
    named,
    told,
)
from tests.conftest import ROOT

SOURCE = textwrap.dedent('''
    """Train."""
    MATRIX_LR = 0.04  # Muon
    ADAM_BETAS = (0.8, 0.95)
    TOTAL_BATCH_SIZE = on(cuda=2**19, cpu=2**11)
    WINDOW_PATTERN = "SSSL"

    @compiled
    class GPT(Module):
        def forward(self, x, scale=1.0):
            softcap = 15
            x = relu(x).square()
            return softcap * tanh(x / softcap)

    def seed_all():
        torch.manual_seed(42)
''')


def changed(*pairs: tuple[str, str], base: str = SOURCE) -> Change:
    new = base
    for old, put in pairs:
        assert new.count(old) == 1
        new = new.replace(old, put)
    found = change_between(base, new)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("old", "new", "turn"),
    [
        ("0.04", "0.03", Turn("MATRIX_LR", "0.04", "0.03")),
        ("0.95)", "0.99)", Turn("ADAM_BETAS", "0.95", "0.99")),
        ("2**19", "2**18", Turn("TOTAL_BATCH_SIZE.cuda", "2 ** 19", "2 ** 18")),
        ('"SSSL"', '"SL"', Turn("WINDOW_PATTERN", "'SSSL'", "'SL'")),
        ("softcap = 15", "softcap = 20", Turn("GPT.forward.softcap", "15", "20")),
        ("scale=1.0", "scale=2.0", Turn("GPT.forward.scale", "1.0", "2.0")),
        ("manual_seed(42)", "manual_seed(43)", Turn("seed_all.manual_seed", "42", "43")),
    ],
)
def test_a_value_that_differs_is_a_turn_of_its_knob(old: str, new: str, turn: Turn) -> None:
    assert changed((old, new)) == Change((turn,))
    assert changed((new, old), base=SOURCE.replace(old, new)) == Change((turn,)).reversed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # Muon", ""),
        ("0.04", "4e-2"),
        ("x / softcap", "(x / softcap)"),
        ("    softcap = 15", "    softcap =   15"),
    ],
)
def test_comments_and_layout_change_nothing(old: str, new: str) -> None:
    assert changed((old, new)) == Change()


def test_other_code_is_a_rewrite_of_its_scope_and_the_same_from_anywhere() -> None:
    gelu = changed(("return softcap * tanh(x / softcap)", "y = x\n        return y"))
    assert [each.scope for each in gelu.rewrites] == ["GPT.forward"]
    elsewhere = SOURCE.replace("0.04", "0.05")
    assert changed(("return softcap * tanh(x / softcap)", "y = x\n        return y"), base=elsewhere) == gelu
    assert gelu.reversed.reversed == gelu
    assert gelu.reversed != gelu


def test_decorators_count() -> None:
    assert changed(("@compiled\n", "")) != Change()


@pytest.mark.parametrize("broken", ["def f(:", "x = (" * 3000, "\x00"])
def test_what_does_not_parse_has_no_change(broken: str) -> None:
    assert change_between(SOURCE, broken) is None
    assert change_between(broken, SOURCE) is None


def test_a_seed_alone_is_no_method() -> None:
    assert changed(("manual_seed(42)", "manual_seed(7)")).is_seed_alone
    assert not changed(("manual_seed(42)", "manual_seed(7)"), ("0.04", "0.05")).is_seed_alone
    assert kin(changed(("manual_seed(42)", "manual_seed(7)")), []) == [Kin(Kinship.SEED_ALONE, ())]


def turn(old: float, new: float, knob: str = "matrix_lr") -> Change:
    return Change((Turn(knob, f"{old:g}", f"{new:g}"),))


def kinships(change: Change, *past: tuple[str, Change, bool]) -> dict[Kinship, tuple[str, ...]]:
    found = kin(change, [Precedent(key, each, failed=not kept, kept=kept) for key, each, kept in past])
    return {each.kinship: each.keys for each in found}


def test_each_kinship_is_told() -> None:
    new = turn(0.04, 0.06)
    assert kinships(new, ("a", turn(0.04, 0.06), False)) == {Kinship.SAME: ("a",)}
    assert kinships(new, ("a", turn(0.05, 0.06), False)) == {Kinship.SAME_VALUE: ("a",)}
    assert kinships(new, ("a", turn(0.04, 0.05), False)) == {Kinship.BEYOND_FAILED: ("a",)}
    assert kinships(new, ("a", turn(0.04, 0.09), False)) == {Kinship.SAME_DIRECTION: ("a",)}
    assert kinships(new, ("a", turn(0.06, 0.04), True)) == {Kinship.REVERSES_KEPT: ("a",)}
    between = kinships(new, ("a", turn(0.04, 0.05), False), ("b", turn(0.04, 0.09), False))
    assert between == {Kinship.BETWEEN_FAILED: ("a", "b")}
    for other in (turn(0.04, 0.05, "embed_lr"), turn(0.04, 0.03)):
        assert kinships(new, ("a", other, False)) == {}
    assert kinships(new, ("a", turn(0.04, 0.05), True)) == {}


def test_values_are_compared_as_numbers_not_as_words() -> None:
    one = Change((Turn("batch", "2 ** 19", "2 ** 18"),))
    assert kinships(one, ("a", Change((Turn("batch", "2 ** 20", "262144"),)), False)) == {Kinship.SAME_VALUE: ("a",)}


@given(st.lists(st.tuples(st.floats(0.01, 0.09), st.booleans()), max_size=6), st.floats(0.01, 0.09), st.randoms())
def test_an_earlier_change_is_told_once_whatever_the_order(
    tried: list[tuple[float, bool]], value: float, chance: random.Random
) -> None:
    past = [(str(index), turn(0.05, at), kept) for index, (at, kept) in enumerate(tried)]
    found = kinships(turn(0.05, value), *past)
    keys = [key for named_keys in found.values() for key in named_keys]
    assert len(keys) == len(set(keys))
    shuffled = list(past)
    chance.shuffle(shuffled)
    again = kinships(turn(0.05, value), *shuffled)
    if Kinship.BETWEEN_FAILED not in found:  # of equal values either may be named
        assert {kinship: sorted(told_of) for kinship, told_of in again.items()} == {
            kinship: sorted(told_of) for kinship, told_of in found.items()
        }


def test_code_and_description_name_a_knob_alike() -> None:
    code = named(changed(("0.04", "0.03")))
    assert kinships(code, ("a", told("Muon LR 0.04 -> 0.03 worse"), False)) == {Kinship.SAME: ("a",)}
    assert kinships(code, ("a", told("matrix_lr 0.03"), False)) == {Kinship.SAME_VALUE: ("a",)}
    assert moves_of(changed(("2**19", "2**18"))) == (Move("batch_size", -1, 2.0**18, 2.0**19),)
    assert moves_of(changed(('"SSSL"', '"SSLL"'))) == (Move("window", 1, 0.5, 0.25, "ssll"),)


def test_rewritten_code_is_known_by_its_description_or_by_itself() -> None:
    gelu = changed(("relu(x).square()", "gelu(x)"))
    assert moves_of(gelu, "try GELU") == (Move("activation", word="gelu"),)
    assert moves_of(gelu, "try this") == (Move("GPT.forward.x", word="gelu(x)"),)
    assert moves_of(Change(rewrites=(Rewrite("GPT", "", "ab"),))) == (Move("code", word="GPT ab"),)


def test_repeats_are_told_from_what_only_looks_like_them() -> None:
    """Precision and recall on 175 pairs of descriptions labelled by hand."""
    lines = (ROOT / "tests" / "data" / "duplicates.jsonl").read_text(encoding="utf-8").splitlines()
    labelled = [json.loads(line) for line in lines]
    assert len(labelled) == 175
    same = {Kinship.SAME, Kinship.SAME_VALUE}
    said = [bool(same & set(kinships(told(each["one"]), ("a", told(each["other"]), False)))) for each in labelled]
    right = sum(repeat and each["repeat"] for repeat, each in zip(said, labelled, strict=True))
    assert right / sum(said) >= 0.95
    assert right / sum(each["repeat"] for each in labelled) >= 0.95
