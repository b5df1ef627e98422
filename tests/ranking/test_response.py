"""Which values are suggested: the scales of knobs, the process behind, and what is expected of values."""

import importlib.util
import math
import random

import pytest

from loopgraph_mcp.ranking import process
from loopgraph_mcp.ranking.process import Kernel
from loopgraph_mcp.ranking.response import Run, advise
from loopgraph_mcp.ranking.scales import Kind, Scale

NOISE = 0.001


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("TOTAL_BATCH_SIZE", 2**19, Kind.DOUBLING), ("DEPTH", 8, Kind.SIZE), ("MATRIX_LR", 0.04, Kind.RATE),
        ("WARMUP_RATIO", 0.0, Kind.SHARE), ("WARMDOWN_RATIO", 0.5, Kind.SHARE), ("BETA2", 0.95, Kind.MOMENTUM),
        ("BIAS", 0.0, Kind.PLAIN), ("STEPS", 0, Kind.PLAIN), ("OFFSET", -3.0, Kind.PLAIN),
    ],
)  # fmt: skip
def test_a_knob_has_the_scale_it_acts_on_and_values_come_back(name: str, value: float, kind: Kind) -> None:
    scale = Scale.of(name, value)
    assert scale.kind is kind
    assert scale.value(scale.place(value)) == pytest.approx(value, abs=1e-9)
    for steps in (-2.0, -0.7, 0.7, 2.0):
        moved = scale.value(scale.place(value) + steps)
        assert isinstance(moved, int) is isinstance(value, int)
        if kind in {Kind.SHARE, Kind.MOMENTUM}:
            assert 0 <= moved <= 1
        elif kind is not Kind.PLAIN:
            assert moved > 0
    assert scale.value(scale.place(value) + 3) > value


@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="the faster way is an extra")
def test_numpy_and_plain_python_say_the_same() -> None:
    rng = random.Random(1)
    points = [tuple(rng.gauss(0, 2) for _ in range(4)) for _ in range(30)]
    values = [math.sin(point[0]) + point[1] ** 2 / 5 for point in points]
    given = Kernel(1.5, 2.0, 0.6), points, [n % 2 for n in range(30)], values, [0.01] * 30
    fast, plain = process._Fast(*given), process._Plain(*given)
    places = [tuple(rng.gauss(0, 2) for _ in range(4)) for _ in range(10)]
    for one, other in zip(fast.predict(places), plain.predict(places), strict=True):
        assert one == pytest.approx(other, abs=1e-7)
    assert fast.explained == pytest.approx(plain.explained, rel=1e-7)


def test_a_process_passes_near_what_it_saw_and_doubts_what_it_did_not_see() -> None:
    seen = process._Plain(Kernel(1.0, 2.0, 0.5), [(0.0,), (2.0,)], [0, 0], [0.0, 1.0], [1e-6, 1e-6])
    means, sds = seen.predict([(0.0,), (2.0,), (1.0,), (40.0,)])
    assert means[:2] == pytest.approx([0.0, 1.0], abs=1e-3)
    assert 0.2 < means[2] < 0.8
    assert means[3] == pytest.approx(0.0, abs=1e-6)
    assert sds[0] < sds[2] < sds[3]
    assert sds[3] == pytest.approx(1.0, abs=1e-3)


def bowl(values: dict[str, float]) -> float:
    """Return a loss that is least at a rate of .01 and a depth of 12."""
    return 1.0 + 0.02 * math.log(values["LR"] / 0.01) ** 2 + 0.05 * math.log(values["DEPTH"] / 12) ** 2


@pytest.mark.parametrize("lower", [True, False])
def test_forty_runs_find_the_bottom_of_a_bowl_for_any_direction(lower: bool) -> None:  # noqa: FBT001
    rng, sign = random.Random(2), 1 if lower else -1
    values = {"LR": 0.08, "DEPTH": 6}
    runs = [Run(values, sign * bowl(values))]
    for _ in range(40):
        advice = advise(values, runs, lower=lower, noise=NOISE, seed=len(runs))
        tried = dict(advice.best) | {each.name: each.new for each in advice.suggestions[0].changes}
        runs.append(Run(tried, sign * (bowl(tried) + rng.gauss(0, NOISE))))
    best = advise(values, runs, lower=lower, noise=NOISE).best
    assert bowl(dict(best)) < 1.003
    assert isinstance(best["DEPTH"], int)


def test_advice_is_the_same_for_the_same_runs_and_names_each_knob_once() -> None:
    values = {"LR": 0.08, "DEPTH": 6}
    runs = [Run(values, bowl(values)), Run(values | {"LR": 0.04}, bowl(values | {"LR": 0.04}))]
    advice = advise(values, runs, lower=True, noise=NOISE)
    assert advice == advise(values, runs, lower=True, noise=NOISE)
    assert sorted(each.changes[0].name for each in advice.knobs) == ["DEPTH", "LR"]
    assert all(each.low < each.gain < each.high for each in advice.suggestions)
    assert all(0 <= each.p_improves <= 1 and 0 <= each.p_fails <= 1 for each in advice.suggestions)


def test_where_runs_failed_more_are_expected_to_fail_and_are_not_suggested() -> None:
    values = {"LR": 0.01, "DEPTH": 8}
    runs = [Run(values, 1.0), *(Run(values | {"DEPTH": depth}, None) for depth in (12, 14, 16, 20))]
    advice = advise(values, runs, lower=True, noise=NOISE)
    deeper = [each for each in advice.knobs if each.changes[0].name == "DEPTH" and each.changes[0].new > 9]
    assert deeper == []
    assert advice.best == values


def test_a_lucky_run_leads_to_a_replicate_being_worth_something() -> None:
    values = {"LR": 0.01}
    runs = [Run({"LR": 0.01}, 1.0), Run({"LR": 0.0102}, 0.9985), Run({"LR": 0.0098}, 1.0003)]
    advice = advise(values, runs, lower=True, noise=0.002, limit=50)
    assert any(each.is_replicate and each.worth > 0 for each in advice.suggestions)


def test_others_histories_lean_the_first_suggestion_and_runs_overrule_them() -> None:
    values = {"LR": 0.01, "DEPTH": 8}
    leaning = advise(values, [Run(values, 1.0)], lower=True, noise=NOISE, lean={"LR": 0.8})
    first = {each.changes[0].name: each.changes[0].new for each in leaning.knobs}
    assert first["LR"] > values["LR"]
    losses = [Run(values | {"LR": rate}, 1.0 + 0.02 * math.log(rate / 0.01)) for rate in (0.012, 0.016, 0.02, 0.03)]
    overruled = advise(values, [Run(values, 1.0), *losses], lower=True, noise=NOISE, lean={"LR": 0.8})
    assert {each.changes[0].name: each.changes[0].new for each in overruled.knobs}["LR"] < values["LR"]


def test_runs_of_another_context_count_for_less_than_ones_own() -> None:
    values = {"LR": 0.01}
    better = values | {"LR": 0.02}
    runs = [Run(values, 1.0), Run(values, 3.0, 1), Run(better, 2.9, 1)]
    borrowed = advise(values, runs, lower=True, noise=NOISE)
    own = advise(values, [*runs, Run(better, 0.9)], lower=True, noise=NOISE)
    assert borrowed.best == values
    assert borrowed.suggestions[0].changes[0].new > 0.01
    assert own.best == better


def test_a_program_without_numbers_gets_no_values() -> None:
    advice = advise({}, [], lower=True, noise=NOISE)
    assert advice.suggestions == ()
    assert advice.knobs == ()


def test_a_metric_that_was_never_measured_is_no_obstacle() -> None:
    advice = advise({"LR": 0.01}, [Run({"LR": 0.01}, None), Run({"LR": 0.02}, math.nan)], lower=True, noise=NOISE)
    assert advice.expected is None
    assert advice.suggestions
