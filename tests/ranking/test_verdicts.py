import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.models import Advice, Decision, Direction, NoiseFloor, VerdictKind
from loopgraph_mcp.ranking.verdicts import baseline, default_noise, disturbed, judge, noise_floor

values = st.lists(st.floats(0.5, 3.0), min_size=1, max_size=4)


def test_a_large_gain_is_a_win_and_its_reverse_a_loss() -> None:
    won = judge([1.0], [0.99], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    lost = judge([0.99], [1.0], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    assert (won.kind, won.decision) == (VerdictKind.WIN, Decision.KEEP)
    assert won.gain == pytest.approx(0.01)
    assert (lost.kind, lost.decision) == (VerdictKind.LOSS, Decision.DISCARD)


def test_a_single_run_wins_only_beyond_2_82_noise_floors() -> None:
    # Published working point: with one run each and a noise floor of 0.5 mbpb, a win needs +1.41 mbpb.
    below = judge([1.0], [1.0 - 0.00140], direction=Direction.LOWER, noise=NoiseFloor(0.0005))
    above = judge([1.0], [1.0 - 0.00142], direction=Direction.LOWER, noise=NoiseFloor(0.0005))
    assert below.kind is VerdictKind.WITHIN_NOISE
    assert above.kind is VerdictKind.WIN


def test_three_runs_each_win_with_less() -> None:
    three = judge([1.0] * 3, [1.0 - 0.0007] * 3, direction=Direction.LOWER, noise=NoiseFloor(0.0005))
    one = judge([1.0], [1.0 - 0.0007], direction=Direction.LOWER, noise=NoiseFloor(0.0005))
    assert (three.kind, one.kind) == (VerdictKind.WIN, VerdictKind.WITHIN_NOISE)


def test_a_gain_inside_the_noise_is_kept_but_asks_for_a_replicate() -> None:
    verdict = judge([1.0], [0.9995], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    assert verdict.kind is VerdictKind.WITHIN_NOISE
    assert verdict.decision is Decision.KEEP
    assert verdict.next_step.reason is Advice.REPLICATE_CHANGE


@given(values, values, st.floats(0.0001, 0.1))
def test_direction_mirrors_the_gain(parent: list[float], child: list[float], sigma: float) -> None:
    lower = judge(parent, child, direction=Direction.LOWER, noise=NoiseFloor(sigma))
    higher = judge(
        [-value for value in parent], [-value for value in child], direction=Direction.HIGHER, noise=NoiseFloor(sigma)
    )
    assert lower.kind is higher.kind
    assert lower.gain == pytest.approx(higher.gain)


@given(values, values, st.floats(0.0001, 0.1))
def test_keeping_follows_the_mean(parent: list[float], child: list[float], sigma: float) -> None:
    verdict = judge(parent, child, direction=Direction.LOWER, noise=NoiseFloor(sigma))
    assert verdict.gain is not None
    assert (verdict.decision is Decision.KEEP) == (verdict.gain > 0)
    if verdict.kind is VerdictKind.WIN:
        assert verdict.decision is Decision.KEEP


def test_a_failed_run_is_a_crash_and_a_missing_parent_asks_for_a_baseline() -> None:
    crashed = judge([1.0], [], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    orphan = judge([], [0.9], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    assert (crashed.kind, crashed.decision) == (VerdictKind.CRASH, Decision.DISCARD)
    assert orphan.kind is VerdictKind.NO_BASELINE
    assert orphan.next_step.reason is Advice.RUN_BASELINE


def test_a_baseline_is_kept_and_asks_for_replicates_until_it_has_three() -> None:
    assert baseline([1.0], noise=NoiseFloor(0.001)).next_step.reason is Advice.REPLICATE_BASELINE
    assert baseline([1.0, 1.1, 0.9], noise=NoiseFloor(0.001)).next_step.reason is Advice.SEARCH
    assert baseline([1.0], noise=NoiseFloor(0.001)).decision is Decision.KEEP


def test_a_baseline_that_fails_is_to_be_fixed_first() -> None:
    verdict = baseline([], noise=NoiseFloor(0.001))
    assert (verdict.kind, verdict.decision) == (VerdictKind.CRASH, Decision.DISCARD)
    assert verdict.next_step.reason is Advice.FIX_BASELINE


def test_a_kept_gain_inside_the_noise_is_tentative_and_a_win_is_not() -> None:
    small = judge([1.0], [0.9995], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    large = judge([1.0], [0.9], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    worse = judge([1.0], [1.0005], direction=Direction.LOWER, noise=NoiseFloor(0.001))
    assert [each.is_tentative for each in (small, large, worse)] == [True, False, False]


def test_the_noise_floor_moves_from_the_default_to_what_replicates_show() -> None:
    assert noise_floor(0.01, []).sd == pytest.approx(0.01)
    assert noise_floor(0.01, [[1.0]]) == NoiseFloor(pytest.approx(0.01), 0)
    wide = [[1.0, 1.2, 0.8, 1.1, 0.9]] * 5
    assert noise_floor(0.01, wide).sd > 0.1
    assert noise_floor(0.01, wide).replicates == 20
    assert noise_floor(0.01, [[1.0, 1.0, 1.0]]).sd < 0.01


def test_an_unknown_metric_gets_a_noise_floor_of_its_own_size() -> None:
    assert default_noise("accuracy", "cuda: NVIDIA H100", 80.0) == pytest.approx(0.4)
    assert default_noise("val_bpb", "cuda: NVIDIA H100", 1.0) < default_noise("val_bpb", "cpu: x", 1.0)
    assert default_noise("reward", "cpu: x", 0.0) > 0


def test_a_run_is_disturbed_by_what_was_measured_or_else_by_its_tokens() -> None:
    usual = [(500.0, 50.3), (496.0, 50.3), (90.0, 124.0), (505.0, 50.4)]
    assert disturbed(0.6, 500.0, 50.3, usual)
    assert not disturbed(0.1, 140.0, 50.3, usual)  # the change made it slow: nothing else used the device
    assert disturbed(None, 196.0, 50.3, usual)  # three jobs on one GPU: 140 steps instead of 355
    assert not disturbed(None, 400.0, 50.3, usual)
    assert not disturbed(None, 196.0, 120.0, usual)  # a larger model sees fewer
    assert not disturbed(None, 196.0, 50.3, usual[:2])
    assert not disturbed(None, None, None, usual)


@given(values, values)
def test_a_disturbed_comparison_claims_no_more_than_a_quiet_one(parent: list[float], child: list[float]) -> None:
    quiet = judge(parent, child, direction=Direction.LOWER, noise=NoiseFloor(0.01))
    loud = judge(parent, child, direction=Direction.LOWER, noise=NoiseFloor(4 * 0.01, factor=4.0))
    if loud.kind in {VerdictKind.WIN, VerdictKind.LOSS}:
        assert quiet.kind is loud.kind
