"""The comparison of arms: its figures on made-up sessions, and a whole small one with real runs."""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from loopgraph_mcp.agents import bench
from loopgraph_mcp.agents.plan import Plan
from loopgraph_mcp.agents.stats import Point, Trial, compare, estimate, reached
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.web import charts, drawing


def trial(arm: str, seed: int, *bests: float | None) -> Trial:
    curve = [Point(number, 100 * number, 10.0 * number, best) for number, best in enumerate(bests)]
    return Trial(arm, seed, curve, 0, 0, 1.0, 0.0, "", "ses_x", "nothing")


def test_what_it_took_to_be_as_good_as_the_first_arm() -> None:
    first, quick, never = trial("none", 1, 2.0, 1.9, 1.8), trial("both", 1, 2.0, 1.7, 1.7), trial("x", 1, 2.0, 1.9, 1.9)
    point = reached(quick, first, lower=True)
    assert point is not None
    assert (point.experiments, point.tokens) == (1, 100)
    assert reached(never, first, lower=True) is None
    assert reached(never, first, lower=False) == never.curve[0]


def test_a_lucky_run_that_was_undone_later_has_not_reached_another_arms_best() -> None:
    first, undone = trial("none", 1, 2.0, 1.8), trial("both", 1, 2.0, 1.7, 1.9, 1.75, 1.8)
    point = reached(undone, first, lower=True)
    assert point is not None
    assert point.experiments == 3
    assert reached(trial("both", 1, 2.0, 1.7, 1.9), first, lower=True) is None
    assert reached(trial("both", 1, None, None), first, lower=True) is None


def test_differences_are_taken_seed_by_seed() -> None:
    trials = [trial("none", seed, 2.0 + seed) for seed in range(5)] + [
        trial("both", seed, 1.9 + seed) for seed in range(5)
    ]
    figures = compare(trials, ["none", "both"], lower=True)
    difference, best = figures["both"]["difference in best"], figures["both"]["best"]
    assert difference is not None
    assert best is not None
    assert difference.high == pytest.approx(-0.1)  # the same in each seed, however far seeds lie apart
    assert best.high - best.low > 1
    assert figures["both"]["experiments to the first arm's best"] is not None
    assert figures["none"]["difference in best"] is None


def test_an_interval_holds_the_mean_and_narrows_with_seeds() -> None:
    few, many = estimate([1.0, 2.0, 4.0]), estimate([1.0, 2.0, 4.0] * 20)
    assert few is not None
    assert many is not None
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    assert estimate([]) is None


def test_a_chart_of_arms_is_valid_and_names_them() -> None:
    pytest.importorskip("vl_convert", reason="the extra ui draws charts")
    curves = {"none": [[(0.0, 2.0), (1.0, 1.9)], [(0.0, 2.1), (1.0, 2.1)]], "a<b": [[(0.0, 2.0)]]}
    drawn = drawing.svg(charts.arms(curves, across="x", up="y"))
    texts = [each.text for each in ET.fromstring(drawn).iter() if each.text]
    assert {"none", "a<b", "x", "y"} <= set(texts)
    ET.fromstring(drawing.svg(charts.arms({"none": [[]]}, across="x", up="y")))


async def test_both_arms_run_in_turns_and_everything_is_written_down(settings: Settings, tmp_path: Path) -> None:
    begun: list[str] = []
    plan, out = Plan(policy="forgetful", experiments=2), tmp_path / "out"
    comparison = bench.run(
        settings,
        plan,
        ["none", "both-warm"],
        [1],
        out,
        os.environ,
        again=1,
        on_status=lambda status: begun.append(status.memory) if status.doing.startswith("running") else None,
    )
    (found,) = [each async for each in comparison]
    changes = [memory for place, memory in enumerate(begun) if place == 0 or begun[place - 1] != memory]
    assert changes[0] == "on"  # the earlier session of the warm arm
    assert changes.count("off") >= 2
    assert [point.experiments for point in found.trials[0].curve] == [0, 1, 2]
    assert found.trials[0].seeded == "nothing"
    assert "earlier session: 2 experiments" in found.trials[1].seeded
    assert found.trials[1].curve[0].best == found.trials[0].curve[0].best  # the same start
    for each in found.trials:  # no fresh seed's run is taken for one of the session's
        assert len(each.again) == 1
        assert each.again[0] not in {point.best for point in each.curve}
    files = bench.write(found, out, "loopgraph bench")
    written = json.loads(files[0].read_text())
    assert written["figures"]["none"]["best"]["seeds"] == 1
    assert "difference to none" in files[1].read_text()
    assert not (settings.db_path).exists()
    with pytest.raises(ConfigError, match="--out"):
        await anext(bench.run(settings, plan, ["none"], [1], out, os.environ, on_status=lambda _: None))
    with pytest.raises(ConfigError, match="both-skill needs a model"):
        await anext(bench.run(settings, plan, ["both-skill"], [1], tmp_path, os.environ, on_status=lambda _: None))
    with pytest.raises(ConfigError, match="the arms are none"):
        await anext(bench.run(settings, plan, ["nun"], [1], out, os.environ, on_status=lambda _: None))
