import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.ingest.published import PublishedHistory, read_day_one, write_day_one
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.features import Trial, TrialHistory
from loopgraph_mcp.ranking.prior import KindCount, PooledRate, Prior, count_kinds, wider

knobs = st.sampled_from(["matrix_lr", "embed_lr", "warmdown", "softcap"])
moves = st.builds(
    Move, knob=knobs, direction=st.sampled_from([-1, 0, 1]), value=st.none() | st.sampled_from([0.01, 0.1, 0.5, 2.0])
)
trials = st.builds(
    Trial,
    moves=st.lists(moves, min_size=1, max_size=3).map(tuple),
    kept=st.booleans(),
    metric_value=st.none() | st.floats(0.5, 2.0),
    gain=st.none() | st.floats(-1, 1),
    is_change=st.booleans(),
)
histories = st.lists(trials, max_size=60)
UP = (Move("matrix_lr", 1, 0.05),)  # from 0.04, the usual start: up somewhat


def learned(done: list[Trial]) -> TrialHistory:
    history = TrialHistory()
    for each in done:
        history.learn(each)
    return history


def lr(value: float | None, *, kept: bool, direction: int = 0) -> Trial:
    return Trial((Move("matrix_lr", direction, value),), kept, 1.0)


def count(owner: str, kept: int, trials: int = 40, kind: str = "matrix_lr +1, up somewhat") -> KindCount:
    return KindCount(owner, kind, kept, trials)


OTHERS = [count("z", 36, 200, "other +0, to no value")]  # so that the overall rate stays near the usual one


def test_a_direction_is_read_from_the_knobs_present_value() -> None:
    history = learned([lr(0.02, kept=True)])
    assert history.direction(Move("matrix_lr", -1, 0.03)) == 1
    assert TrialHistory().direction(Move("matrix_lr", 0, 0.03)) == -1  # the usual start is 0.04
    assert TrialHistory().direction(Move("unheard of", 1, 0.03)) == 1
    assert learned([lr(0.02, kept=False)]).direction(Move("matrix_lr", 0, 0.03)) == -1


@pytest.mark.parametrize(
    ("move", "step"),
    [
        (Move("matrix_lr", 1), "to no value"),
        (Move("matrix_lr", 0, 0.04), "nowhere"),
        (Move("matrix_lr", 1, 0.045), "up slightly"),
        (Move("matrix_lr", 1, 0.03, 0.02), "up much"),  # the old value is given
        (Move("matrix_lr", -1, 0.03), "down somewhat"),
        (Move("matrix_lr", 1, 4.0), "up vastly"),
        (Move("warmup", 1, 0.1), "from no value"),
        (Move("unheard of", 1, 0.1), "from no value"),
    ],
)
def test_a_step_is_measured_in_proportion(move: Move, step: str) -> None:
    assert TrialHistory().step(move) == step


def test_the_keep_rate_forgets_old_changes() -> None:
    kept, lost = [lr(None, kept=True)] * 20, [lr(None, kept=False)] * 20
    assert learned(lost + kept).keep_rate > 0.5 > learned(kept + lost).keep_rate
    assert learned([*kept, *lost * 10]).keep_rate < 0.05
    baseline = Trial((), kept=True, metric_value=1.0, is_change=False)
    assert learned([baseline] * 5).keep_rate == TrialHistory().keep_rate


def test_what_others_kept_raises_the_estimate_and_what_they_dropped_lowers_it() -> None:
    history = TrialHistory()
    unknown = Prior(OTHERS).estimate(UP, history)
    good = Prior([*OTHERS, count("a", 30)]).estimate(UP, history)
    bad = Prior([*OTHERS, count("a", 0)]).estimate(UP, history)
    assert bad.p_keep < unknown.p_keep < good.p_keep
    assert bad.log_ratio < 0 < good.log_ratio
    assert Prior([]).estimate(UP, history).p_keep == pytest.approx(history.keep_rate)


def test_the_same_step_counts_most_and_other_steps_count_too() -> None:
    history = TrialHistory()
    same = Prior([*OTHERS, count("a", 30)]).estimate(UP, history).log_ratio
    other = Prior([*OTHERS, count("a", 30, kind="matrix_lr +1, up vastly")]).estimate(UP, history).log_ratio
    against = Prior([*OTHERS, count("a", 30, kind="matrix_lr -1, down much")]).estimate(UP, history).log_ratio
    assert same > other > against == 0


def test_few_trials_are_shrunk() -> None:
    once, often = (Prior([*OTHERS, count("a", each, each)]).estimate(UP, TrialHistory()) for each in (1, 30))
    assert 0 < once.log_ratio < 0.5 < often.log_ratio


def test_one_owners_many_trials_do_not_outvote_the_others() -> None:
    crowd = [count(f"owner {each}", 0, 20) for each in range(5)]
    rest = [count(f"rest {each}", 18, 100, "other +0, to no value") for each in range(100)]
    large, several = [count("large", 600, 1_000)], [count(f"part {each}", 60, 100) for each in range(10)]
    by_root, by_trial = (Prior([*rest, *crowd, *each]).estimate(UP, TrialHistory()) for each in (large, several))
    assert by_root.log_ratio < by_trial.log_ratio


def test_the_users_own_searches_count_most() -> None:
    pooled = [*OTHERS, count("a", 0, 60)]
    alone, with_own = Prior(pooled), Prior(pooled, [count("me", 30, 40), count("me", 2, 60, "depth +1, up much")])
    history = TrialHistory()
    assert alone.estimate(UP, history).log_ratio < 0 < with_own.estimate(UP, history).log_ratio
    seen = with_own.estimate(UP, history)
    assert (seen.pooled and seen.pooled.trials, seen.own and seen.own.trials) == (60, 40)
    assert seen.own
    assert seen.own.ratio > 1
    assert with_own.estimate((Move("softcap", 1, 20.0),), history).own is None


def test_rates_of_others_are_reported_unshrunk() -> None:
    seen = Prior([*OTHERS, count("a", 20), count("b", 0, 10, "matrix_lr +1, up vastly")]).estimate(UP, TrialHistory())
    rate = (1.8 + 36 * 0.5**0.5 + 20) / (10 + 200 * 0.5**0.5 + 50)  # the owner of 200 trials counts by the root
    assert seen.pooled == PooledRate(50, pytest.approx(20 / 50 / rate))


@given(histories, st.lists(moves, max_size=3))
def test_an_estimate_is_a_probability(done: list[Trial], change: list[Move]) -> None:
    counts = count_kinds(done, owner="a")
    seen = Prior(counts, counts).estimate(change, learned(done))
    assert 0 < seen.p_keep < 1
    assert math.isfinite(seen.log_ratio)


@given(histories, st.randoms(), st.integers(0, 60), moves)
def test_the_future_does_not_change_an_estimate(done: list[Trial], chance: random.Random, cut: int, move: Move) -> None:
    future = done[cut:]
    chance.shuffle(future)
    shuffled = [*done[:cut], *future]
    seen, again = (Prior([]).estimate([move], learned(rows[:cut])) for rows in (done, shuffled))
    assert seen == again


@given(histories)
def test_every_move_of_a_change_is_counted_once(done: list[Trial]) -> None:
    counts = count_kinds(done, owner="a")
    changes = [each for each in done if each.is_change]
    assert sum(each.trials for each in counts) == sum(len(each.moves) for each in changes)
    assert sum(each.kept for each in counts) == sum(len(each.moves) for each in changes if each.kept)
    assert len({each.kind for each in counts}) == len(counts)
    assert all(
        wider(each.kind).rpartition(" ")[0] in {"matrix_lr", "embed_lr", "warmdown", "softcap"} for each in counts
    )


@given(st.floats(0.01, 0.99), st.floats(0.125, 8.0))
def test_a_record_multiplies_the_odds_and_nothing_else(p_keep: float, factor: float) -> None:
    seen = replace(Prior([]).estimate(UP, TrialHistory()), p_keep=p_keep)
    shifted = seen.with_odds(factor)
    assert shifted.p_keep / (1 - shifted.p_keep) == pytest.approx(factor * p_keep / (1 - p_keep))
    assert replace(shifted, p_keep=p_keep) == seen


def test_the_bundled_counts_name_their_sources_and_survive_writing(tmp_path: Path) -> None:
    bundled = read_day_one()
    assert len(bundled.histories) == 50
    assert {each.owner for each in bundled.histories} == {each.owner for each in bundled.counts}
    assert all(each.licence and each.commit and each.fingerprint for each in bundled.histories)
    assert sum(each.trials for each in bundled.counts if wider(each.kind) == "batch_size -1") > 50
    by_history: dict[int, list[KindCount]] = {}
    for source, each in zip(bundled.sources, bundled.counts, strict=True):
        by_history.setdefault(source, []).append(each)
    found: list[tuple[PublishedHistory, list[KindCount]]] = [
        (history, by_history.get(source, [])) for source, history in enumerate(bundled.histories)
    ]
    path = tmp_path / "again.json"
    write_day_one(found, path)
    assert read_day_one(path) == bundled
