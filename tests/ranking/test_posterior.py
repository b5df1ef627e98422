import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.ranking.posterior import (
    ODDS_BOUND,
    PRIOR_BOUND,
    PRIOR_MEAN,
    TOLD_BOUND,
    Candidate,
    Evidence,
    Observation,
    appraise,
    explain,
    family_mean,
    fatigue,
    posterior,
    rank,
    score,
)

gains = st.floats(-50, 50)
observations = st.builds(
    Observation,
    gain=gains,
    n_parent=st.integers(1, 5),
    n_child=st.integers(1, 5),
    age=st.integers(0, 2000),
    kappa=st.sampled_from([0.25, 0.5, 1.0]),
    shared=st.integers(1, 4),
)
evidences = st.builds(
    Evidence,
    observations=st.lists(observations, max_size=5).map(tuple),
    crashes=st.integers(0, 5),
    shown_ages=st.lists(st.integers(0, 300), max_size=5).map(tuple),
)
relevances = st.floats(0.05, 1.0)


@given(st.lists(relevances, min_size=1, max_size=8, unique=True))
def test_without_evidence_the_order_is_the_texts(found: list[float]) -> None:
    candidates = [Candidate(f"m{index}", relevance, appraise((), 0)) for index, relevance in enumerate(found)]
    by_text = sorted(candidates, key=lambda each: -each.relevance)
    assert [method for method, _ in rank(candidates)] == [each.method_id for each in by_text]
    assert score(0.4, Evidence()).score == pytest.approx(0.4 * (1 / 0.9) ** 0.7 * 0.9**0.7)


@given(relevances, evidences)
def test_one_more_win_never_lowers_a_method(relevance: float, known: Evidence) -> None:
    won = Evidence((*known.observations, Observation(8.0)), known.crashes, known.shown_ages)
    assert score(relevance, won).score >= score(relevance, known).score - 1e-12


@given(relevances, evidences, observations)
def test_a_higher_gain_never_lowers_a_method(relevance: float, known: Evidence, seen: Observation) -> None:
    def with_gain(gain: float) -> float:
        changed = Observation(gain, seen.n_parent, seen.n_child, seen.age, seen.kappa, seen.shared)
        return score(relevance, Evidence((*known.observations, changed), known.crashes, known.shown_ages)).score

    assert with_gain(seen.gain + 1.0) >= with_gain(seen.gain) - 1e-12


@given(relevances, st.integers(0, 4))
def test_one_more_loss_never_raises_a_method(relevance: float, losses: int) -> None:
    def after(count: int) -> float:
        return score(relevance, Evidence(tuple(Observation(-8.0) for _ in range(count)))).score

    assert after(losses + 1) <= after(losses)


@given(relevances, evidences)
def test_a_crash_never_raises_a_method(relevance: float, known: Evidence) -> None:
    crashed = Evidence(known.observations, known.crashes + 1, known.shown_ages)
    assert score(relevance, crashed).score <= score(relevance, known).score


@given(relevances, evidences, st.integers(0, 300))
def test_being_passed_over_never_raises_a_method(relevance: float, known: Evidence, age: int) -> None:
    tired = Evidence(known.observations, known.crashes, (*known.shown_ages, age))
    assert score(relevance, tired).score <= score(relevance, known).score


@given(st.lists(st.integers(0, 100), min_size=1, max_size=10), st.integers(1, 100))
def test_fatigue_recovers_with_time(ages: list[int], later: int) -> None:
    assert 0.3 <= fatigue(ages) <= fatigue([age + later for age in ages]) <= 1.0


@given(st.lists(observations, min_size=1, max_size=6))
def test_the_posterior_lies_between_prior_and_data(seen: list[Observation]) -> None:
    hull = [PRIOR_MEAN, *(each.clipped_gain for each in seen)]
    belief = posterior(seen)
    assert min(hull) - 1e-9 <= belief.mean <= max(hull) + 1e-9
    assert belief.sd < 2.0
    assert min(hull) - 1e-9 <= family_mean(seen) <= max(hull) + 1e-9


@given(st.lists(observations, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_evidence_does_not_count(seen: list[Observation], rng: random.Random) -> None:
    shuffled = rng.sample(seen, len(seen))
    assert posterior(shuffled).mean == pytest.approx(posterior(seen).mean, abs=1e-9)


@given(st.lists(st.tuples(relevances, evidences), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_ranking_does_not_depend_on_the_order_asked_and_breaks_ties_by_id(
    found: list[tuple[float, Evidence]], rng: random.Random
) -> None:
    candidates = [
        Candidate(f"m{index}", relevance, appraise(known.observations, known.crashes), known.shown_ages)
        for index, (relevance, known) in enumerate([*found, found[0]])
    ]
    ranked = rank(candidates)
    assert rank(rng.sample(candidates, len(candidates))) == ranked
    order = [method for method, _ in ranked]
    assert order.index("m0") < order.index(f"m{len(found)}")


def test_older_and_foreign_evidence_counts_for_less() -> None:
    fresh = score(1.0, Evidence((Observation(4.0),))).score
    old = score(1.0, Evidence((Observation(4.0, age=300),))).score
    foreign = score(1.0, Evidence((Observation(4.0, kappa=0.5),))).score
    shared = score(1.0, Evidence((Observation(4.0, shared=3),))).score
    untried = score(1.0, Evidence()).score
    assert fresh > old > untried
    assert fresh > foreign > untried
    assert fresh > shared > untried


def test_every_score_is_the_product_of_its_parts() -> None:
    made = score(0.5, Evidence((Observation(2.0), Observation(-1.0)), crashes=1, shown_ages=(0, 3)))
    parts = made.parts()
    assert made.score == pytest.approx(
        parts["relevance"] * parts["reward"] ** 0.7 * parts["fatigue"] * parts["prior"], rel=1e-3
    )


def test_a_proven_family_lifts_its_untried_member() -> None:
    proven = family_mean([Observation(6.0), Observation(5.0)])
    assert score(0.5, Evidence(), prior_mean=proven).score > score(0.5, Evidence()).score


@given(relevances, evidences, st.floats(-9, 9), st.floats(-9, 9))
def test_the_prior_moves_a_score_by_no_more_than_its_bound(
    relevance: float, known: Evidence, one: float, other: float
) -> None:
    low, high = (score(relevance, known, log_ratio=each).score for each in sorted((one, other)))
    assert low <= high <= low * PRIOR_BOUND**2 * (1 + 1e-9)
    assert score(relevance, known, log_ratio=0.0) == score(relevance, known)


def test_a_score_made_in_parts_is_the_score_made_at_once() -> None:
    known = Evidence((Observation(2.0),), crashes=1, shown_ages=(0, 3))
    (ranked,) = rank([Candidate("m", 0.5, appraise(known.observations, known.crashes), known.shown_ages, 0.2)])
    assert ranked == ("m", score(0.5, known, log_ratio=0.2).score)


@given(st.lists(observations, max_size=5), gains)
def test_the_odds_of_a_method_are_bounded_and_rise_with_a_win(known: list[Observation], gain: float) -> None:
    odds = appraise(known, 0).odds
    assert 1 / ODDS_BOUND <= odds <= ODDS_BOUND
    assert appraise([*known, Observation(8.0)], 0).odds >= odds - 1e-12
    assert appraise((), 0).odds == pytest.approx(1.0)
    assert (appraise([Observation(gain)], 0).odds > 1.0) or gain < 0
    assert (appraise([Observation(gain)], 0).odds < 1.0) or gain > PRIOR_MEAN


@given(relevances, st.floats(1 / 64, 64))
def test_what_others_told_moves_a_reward_by_a_bounded_factor(relevance: float, told: float) -> None:
    def scored(told: float, bound: float) -> float:
        return explain(Candidate("m", relevance, replace(appraise((), 0), told=told)), told_bound=bound).reward

    plain, moved = scored(1.0, TOLD_BOUND), scored(told, TOLD_BOUND)
    assert plain / TOLD_BOUND <= moved * (1 + 1e-12) <= plain * TOLD_BOUND * (1 + 1e-9)
    assert scored(told, math.inf) == pytest.approx(plain * told)
