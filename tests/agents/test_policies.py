"""What scripted researchers propose, without a run."""

import itertools
import random
from collections.abc import Iterator

import pytest

from loopgraph_mcp.agents.policies import HABITS, Heard, Proposal

KNOBS: dict[str, float] = {"HEAD_DIM": 32, "TOTAL_BATCH_SIZE": 512, "DEPTH": 2, "MATRIX_LR": 0.04}


def proposals(policy: str, *, kept: bool = False) -> Iterator[Proposal]:
    """Yield what a habit proposes to a program whose runs all come out alike."""
    knobs = dict(KNOBS)
    habit = HABITS[policy](random.Random(1), lambda: knobs, lower=True)
    proposal = next(habit)
    while True:
        yield proposal
        if kept:
            knobs |= {name: type(KNOBS[name])(float(value)) for name, value in proposal.values}
        proposal = habit.send(Heard(kept=kept, metric_value=1.0))


@pytest.mark.parametrize("policy", ["greedy", "random", "textbook", "forgetful", "tpe"])
def test_heads_and_batches_stay_powers_of_two_and_what_is_whole_stays_whole(policy: str) -> None:
    if policy == "tpe":
        pytest.importorskip("optuna", reason="the classical optimiser is an extra")
    for proposal in itertools.islice(proposals(policy), 60):
        for name, value in proposal.values:
            if name in {"HEAD_DIM", "TOTAL_BATCH_SIZE"}:
                assert int(value).bit_count() == 1
            elif name == "DEPTH":
                assert int(value) >= 1
            assert policy == "tpe" or value != str(KNOBS[name])


def test_greedy_tries_nothing_twice_on_one_program() -> None:
    refused = [str(each) for each in itertools.islice(proposals("greedy"), 12)]
    assert len(set(refused)) == 12
