"""Charts as data: what they hold is what was measured, and what draws them takes them."""

import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import pytest

from loopgraph_mcp.api import overview as overviews
from loopgraph_mcp.api.closeup import Loss, LossPoint
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.overview import Line, Mark, Overview, Prediction
from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import Direction, NoiseFloor, OutcomeKind, RunState, VerdictKind
from loopgraph_mcp.web import charts, curve, drawing, report, themes

DRAWN = pytest.mark.skipif(find_spec("vl_convert") is None, reason="the extra ui draws charts")


@pytest.fixture
async def seen(night: Settings) -> Overview:
    async with LoopGraph.open(night) as graph:
        return await graph.overview()


def values_of(spec: Any) -> Iterator[dict[str, Any]]:
    """Yield every value that a specification holds."""
    if isinstance(spec, dict):
        yield from spec.get("data", {}).get("values", [])
        for name, each in spec.items():
            if name != "data":
                yield from values_of(each)
    elif isinstance(spec, list):
        for each in spec:
            yield from values_of(each)


def all_charts(seen: Overview, theme: themes.Theme) -> dict[str, themes.Spec]:
    records = overviews.records_by_family(seen)
    foreseen = [Prediction(f"exp_{number}", "tried", number / 20, number % 3 == 0) for number in range(20)]
    loss = Loss("percent", tuple(LossPoint(x, 3 - x / 50) for x in range(100)), ())
    found = {
        "progress": curve.progress(seen, theme=theme),
        "narrow": curve.progress(seen, across="hour", theme=theme, width=320),
        "dollars": curve.progress(seen, across="dollars", theme=theme),
        "families": charts.families(records, "val_bpb", noise=0.0007, theme=theme),
        "calibration": charts.calibration(foreseen, theme=theme),
        "cost": charts.cost(seen, theme=theme),
        "loss": charts.loss(loss, theme=theme),
        "card": curve.card(seen, title="t", sentence="s " * 200, figures=[("1", "one")]),
    }
    return {name: spec for name, spec in found.items() if spec is not None}


@DRAWN
@pytest.mark.parametrize("theme", themes.THEMES)
def test_every_chart_can_be_drawn_and_says_what_it_shows(seen: Overview, theme: str) -> None:
    found = all_charts(seen, themes.THEMES[theme])
    assert len(found) == 8
    for spec in found.values():
        assert spec["description"]
        assert json.loads(json.dumps(spec, allow_nan=False)) == spec
        drawn = ET.fromstring(drawing.svg(spec))
        assert len(list(drawn.iter())) > 20


@DRAWN
def test_a_card_is_a_picture(seen: Overview) -> None:
    spec = curve.card(seen, title="val_bpb", sentence="better", figures=[("18", "experiments")])
    assert drawing.png(spec).startswith(b"\x89PNG")


def test_the_curve_ends_at_the_best_result(seen: Overview) -> None:
    assert seen.best is not None
    assert seen.noise is not None
    xs = curve.positions(seen, "run")
    reached = curve.best_so_far(seen.here, xs, Direction.LOWER, seen.noise.sd)
    assert reached[-1].value == pytest.approx(seen.best.metric_value)


def test_every_run_is_on_the_curve_once(seen: Overview) -> None:
    dots = [each for each in values_of(curve.progress(seen)) if "id" in each]
    measured = [each["id"] for each in dots if each["y"] is not None]
    assert sorted(measured) == sorted(line.experiment_id for line in seen.here if line.metric_value is not None)
    failed = {each["id"] for each in dots if each["look"] == "failed"}
    assert failed == {line.experiment_id for line in seen.here if line.mark is Mark.FAILED}


def test_nothing_within_the_noise_is_drawn_as_kept_beyond_it(seen: Overview) -> None:
    looks = {each["id"]: each["look"] for each in values_of(curve.progress(seen)) if "id" in each}
    for line in seen.here:
        assert (looks[line.experiment_id] == "kept beyond noise") == (line.verdict is VerdictKind.WIN and line.stays), (
            line
        )


@pytest.mark.parametrize("across", curve.ACROSS)
def test_positions_never_go_back(seen: Overview, across: curve.Across) -> None:
    xs = [curve.positions(seen, across)[line.experiment_id] for line in seen.lines]
    assert xs == sorted(xs)


def line(number: int, value: float | None, group: str, verdict: VerdictKind | None = VerdictKind.LOSS) -> Line:
    return Line(
        number,
        f"exp_{number}",
        "ctx",
        f"change {number}",
        42,
        RunState.DONE,
        group,
        "base",
        (),
        float(number),
        float(number),
        number + 1.0,
        OutcomeKind.FINISHED if value is not None else OutcomeKind.CRASHED,
        "",
        value,
        None,
        verdict,
        None,
        NoiseFloor(0.1),
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_best_so_far_is_the_cautious_mean(seed: int) -> None:
    rng = random.Random(seed)
    runs = [(rng.uniform(0.5, 3), rng.choice("abcd")) for _ in range(rng.randrange(1, 20))]
    lines = [line(number, value, group) for number, (value, group) in enumerate(runs)]
    xs = {each.experiment_id: float(each.number) for each in lines}
    reached = curve.best_so_far(lines, xs, Direction.LOWER, 0.1)
    for upto, each in enumerate(reached, start=1):
        means = dict[str, list[float]]()
        for value, group in runs[:upto]:
            means.setdefault(group, []).append(value)
        worth = {group: fmean(values) + 0.1 / len(values) ** 0.5 for group, values in means.items()}
        assert each.value in [
            pytest.approx(fmean(means[group])) for group in worth if worth[group] <= min(worth.values()) + 1e-9
        ]


def test_one_disaster_does_not_hide_the_search() -> None:
    lines = [line(0, 1.0, "base", VerdictKind.BASELINE), line(1, 0.9, "a", VerdictKind.WIN), line(2, 400.0, "b")]
    reached = curve.best_so_far(lines, {"exp_0": 0, "exp_1": 1, "exp_2": 2}, Direction.LOWER, 0.01)
    low, high = curve._scale(lines, reached, Direction.LOWER, 0.01)
    assert low < 0.9
    assert 1.0 < high < 1.2


@pytest.mark.parametrize(("noise", "places"), [(0.0007, 4), (0.05, 2), (3.0, 1), (None, 4), (0.0, 4), (1e-12, 8)])
def test_decimals_show_the_noise_and_no_more(noise: float | None, places: int) -> None:
    assert themes.places(noise) == places


def test_long_names_are_cut_between_words() -> None:
    assert themes.shortened("halve batch 524K to 262K (more steps in 5 min)", 34) == "halve batch 524K to 262K (more…"
    assert themes.shortened("short", 34) == "short"
    assert themes.shortened("x" * 60, 20) == "x" * 19 + "…"


def test_too_few_predictions_make_no_calibration() -> None:
    assert charts.calibration([Prediction("exp_1", "one", 0.5, gained=True)] * 7) is None


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (15, 30)])
def test_an_interval_of_a_share_holds_it(hits: int, count: int) -> None:
    low, high = charts._wilson(hits, count)
    assert 0 <= low <= hits / count + 1e-9
    assert hits / count - 1e-9 <= high <= 1


def test_a_report_without_experiments_of_a_kind_still_reads(seen: Overview) -> None:
    assert report.Report(seen, [], [], [], [], [], 0.0).made_of == ""
