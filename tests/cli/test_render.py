"""What a person reads at a terminal: tables fit narrow terminals, and gains keep their digits."""

import re
from dataclasses import replace

import pytest
from rich.console import Console

from loopgraph_mcp.api import explain
from loopgraph_mcp.api.answers import ExperimentAnswer
from loopgraph_mcp.cli import render
from loopgraph_mcp.models import Advice, Decision, NextStep, OutcomeKind, RunState, VerdictKind

RUN = ExperimentAnswer(
    experiment_id="exp_8bxr0vkgdr",
    state=RunState.DONE,
    description="a change that takes more words than a narrow column holds",
    seed=42,
    metric="val_bpb",
    next_step=NextStep(Advice.NOTHING),
    run_dir=None,
    outcome=OutcomeKind.FINISHED,
    metric_value=1.25,
    gain=0.0123,
    verdict=VerdictKind.WITHIN_NOISE,
    decision=Decision.KEEP,
    tentative=True,
)


@pytest.mark.parametrize("width", [80, 150])
@pytest.mark.parametrize(
    ("run", "words"),
    [
        (RUN, "kept, not yet distinguishable from noise"),
        (replace(RUN, undone_by="exp_q0202jjx1q"), "kept, undone by exp_q0202jjx1q"),
        (replace(RUN, tentative=False, verdict=VerdictKind.WIN), "win, kept"),
        (replace(RUN, tentative=False, decision=Decision.DISCARD), "within noise, discarded"),
        (replace(RUN, tentative=False, verdict=VerdictKind.BASELINE, gain=None), "baseline"),
        (replace(RUN, tentative=False, verdict=None, decision=None), ""),
    ],
)
def test_a_table_of_results_breaks_no_word_of_a_verdict(run: ExperimentAnswer, words: str, width: int) -> None:
    console = Console(width=width)
    with console.capture() as shown:
        console.print(render.results_table([run]))
    rows = [line.split("│") for line in shown.get().splitlines() if "│" in line]
    assert max(map(len, shown.get().splitlines())) <= width
    assert " ".join(" ".join(row[-2].split()) for row in rows).strip() == words
    assert rows[0][1].strip() == run.experiment_id


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.0123, "+0.0123"), (-1.5, "-1.5000"), (0.0, "+0.0000"), (0.00031, "+0.00031"), (-2e-06, "-2e-06")],
)
def test_a_small_gain_is_not_shown_as_none(gain: float, words: str) -> None:
    assert explain.signed(gain) == words
    assert re.search("[1-9]", explain.signed(gain)) or gain == 0
