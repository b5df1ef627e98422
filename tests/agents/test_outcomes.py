"""The headline of a session and how its runs are listed, on made-up runs."""

import dataclasses
import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console

from loopgraph_mcp.agents.outcomes import Best, Run, decided, find_best, result_text, undone_by
from loopgraph_mcp.agents.plan import Spent
from loopgraph_mcp.agents.session import Status
from loopgraph_mcp.cli import render, sessions
from loopgraph_mcp.cli.live_view import Board
from loopgraph_mcp.models import Direction

NOISE = 0.05


def ran(number: int, group: str, value: float | None, decision: str = "keep", **more: object) -> Run:
    outcome = "crashed" if value is None else "finished"
    usual: dict[str, Any] = {"repeated": False, "counts": True, "again": False, "seconds": 1.0}
    given: dict[str, Any] = {"group": group, "noise_floor": NOISE, **more}
    run = Run(number, f"change {number}", f"exp_{number}", outcome, value, decision, group, **usual)
    return dataclasses.replace(run, **given)


def best_of(*runs: Run, direction: Direction = Direction.LOWER) -> Best:
    best = find_best(runs, direction=direction, metric="val_bpb", device="cpu")
    assert best is not None
    return best


def test_three_good_runs_are_better_than_one_lucky_run() -> None:
    steady = [ran(number, "steady", value, replicate=number > 1) for number, value in enumerate((1.51, 1.5, 1.52), 1)]
    best = best_of(ran(0, "base", 2.0), *steady, ran(4, "lucky", 1.49))
    assert (best.mean, best.runs, best.number) == (pytest.approx(1.51), 3, 3)
    assert best.standard_error == pytest.approx(NOISE / math.sqrt(3))
    assert best.beats_noise
    assert (
        str(best)
        == "1.510000 +- 0.028868 (mean of 3 runs, the last is run 3), +0.4900 against the baseline's 2.000000."
    )


def test_a_gain_within_the_noise_is_said_not_to_beat_it() -> None:
    best = best_of(ran(0, "base", 2.0), ran(1, "little", 1.96, tentative=True))
    assert (best.gain, best.beats_noise, best.is_baseline) == (pytest.approx(0.04), False, False)
    assert "not distinguishable from noise. Nothing measured here beats the noise yet." in str(best)


def test_programs_that_differ_in_a_seed_are_one_program() -> None:
    best = best_of(ran(0, "base", 2.0), ran(1, "base", 1.5, program="base with another seed"))
    assert (best.is_baseline, best.mean, best.runs, best.beats_noise) == (True, 1.75, 2, False)
    assert "nothing measured here beats it" in str(best)


def test_an_experiment_that_the_memory_answers_with_twice_counts_once() -> None:
    once = ran(1, "known", 1.5, repeated=True)
    again = ran(2, "known", 1.5, repeated=True, experiment_id=once.experiment_id)
    assert best_of(ran(0, "base", 2.0), once, again).runs == 1


def test_the_noise_known_last_counts_and_that_of_a_busy_device_for_its_own_runs_alone() -> None:
    quiet, busy = ran(1, "quiet", 1.9, noise_floor=0.01), ran(2, "busy", 1.7, noise_floor=0.04, noise_factor=4.0)
    best = best_of(ran(0, "base", 2.0), quiet, ran(2, "busy", 1.95, noise_floor=0.04, noise_factor=4.0))
    assert (best.number, best.noise_floor) == (1, pytest.approx(0.01))
    assert best_of(ran(0, "base", 2.0), quiet, busy).noise_floor == pytest.approx(0.04)
    mixed = best_of(ran(0, "base", 2.0), busy, ran(3, "busy", 1.8, noise_floor=0.01))
    assert (mixed.mean, mixed.runs, mixed.noise_floor) == (1.8, 1, pytest.approx(0.01))  # the quiet run alone


def test_where_no_run_says_what_the_noise_is_the_default_counts() -> None:
    best = best_of(ran(0, "base", 2.0, noise_floor=None), ran(1, "a", 1.99, noise_floor=None))
    assert best.standard_error == pytest.approx(0.05)
    assert not best.beats_noise


def test_nothing_that_finished_has_no_best() -> None:
    for runs in ([], [ran(0, "base", None, "discard")]):
        assert find_best(runs, direction=Direction.LOWER, metric="val_bpb", device="cpu") is None


values = st.floats(-100, 100, allow_nan=False)


@given(st.lists(st.tuples(st.sampled_from("abcd"), values), min_size=1, max_size=12), st.sampled_from(Direction))
def test_no_program_is_better_than_the_best_with_its_standard_error_taken_off(
    measured: list[tuple[str, float]], direction: Direction
) -> None:
    runs = [ran(number, group, value) for number, (group, value) in enumerate(measured)]
    best = best_of(*runs, direction=direction)
    sign = 1 if direction is Direction.HIGHER else -1
    for group in {run.group for run in runs}:
        own = [value for name, value in measured if name == group]
        worth = sign * sum(own) / len(own) - NOISE / math.sqrt(len(own))
        assert sign * best.mean - best.standard_error >= worth - 1e-9
    assert not (best.is_baseline and best.beats_noise)
    assert not best.beats_noise or (best.gain is not None and best.gain > NOISE)


# ------------------------------------------------------------------------------------------------- how runs are listed


def test_a_kept_run_says_what_its_replicates_made_of_it() -> None:
    first = ran(1, "a", 1.9, tentative=True)
    lost = ran(3, "a", 2.2, "discard", replicate=True)
    won = ran(3, "a", 1.7, replicate=True)
    doubtful = ran(3, "a", 1.9, replicate=True, tentative=True)
    crashed = ran(3, "a", None, "discard", replicate=True)
    cancelled = ran(3, "a", None, "", replicate=True, outcome="cancelled")
    between = ran(2, "b", 2.1, "discard")
    assert decided(first) == "kept, not yet distinguishable from noise"
    assert decided(first, [between, lost]) == "kept, undone by run 3"
    assert decided(first, [between, crashed]) == "kept, undone by run 3"
    assert decided(first, [between, won]) == "kept, confirmed by run 3"
    for later in ([between, doubtful], [between, cancelled]):
        assert decided(first, later) == "kept, not yet distinguishable from noise"
    assert decided(between, [lost]) == "not kept"
    assert result_text(first, [between, lost]) == "1.900000, kept, undone by run 3"
    assert undone_by(first, [between, lost]) == 3


def test_going_back_to_a_program_by_hand_does_not_undo_what_it_gained_then() -> None:
    assert undone_by(ran(1, "a", 1.9), [ran(2, "b", 1.7), ran(3, "a", 1.9, "discard")]) is None


def test_nothing_undoes_the_baseline() -> None:
    assert decided(ran(0, "base", 2.0), [ran(1, "base", None, "discard", replicate=True)]) == "kept"


def test_a_run_of_an_older_session_still_loads() -> None:
    new = {"group", "replicate", "tentative", "noise_floor", "noise_factor"}
    old = {name: value for name, value in asdict(ran(0, "base", 2.0)).items() if name not in new}
    run = TypeAdapter(Run).validate_json(json.dumps(old))
    assert (run.metric_value, run.group, run.noise_floor, run.tentative) == (2.0, "", None, False)


def test_the_board_and_the_report_show_the_best_with_its_noise(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [ran(0, "base", 2.0), ran(1, "a", 1.9, tentative=True), ran(2, "a", 2.2, "discard", replicate=True)]
    best = best_of(*runs)
    console = Console(width=120, force_terminal=True, color_system=None)
    with Board(console) as board, console.capture() as shown:
        board.show(Status("ses_1", "r", "off", "val_bpb", "thinking", None, 2, 3, best, Spent(), None, ""))
    assert "2.000000 +- 0.050000 (run 0): the baseline" in shown.get()
    listed = [sessions._listed(run, runs[place:]) for place, run in enumerate(runs, start=1)]
    found = {
        "runs": listed, "metric": "val_bpb", "headline": str(best), "ended": "done", "session_id": "ses_1",
        "spent": {**asdict(Spent()), "tokens": 0},
    }  # fmt: skip
    render.console.width, before = 100, render.console.width
    sessions.show(found, as_json=False)
    render.console.width = before
    out = capsys.readouterr().out
    assert "kept, undone by run 2" in out
    assert "nothing measured here beats it" in out
