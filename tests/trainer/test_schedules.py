"""Schedules: pure functions of the progress or the step."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the trainer needs torch")

fractions = st.floats(0, 1)


@pytest.fixture
def knobs(train):
    """Sets the knobs of the schedule, and puts them back."""
    with pytest.MonkeyPatch.context() as patch:

        def turn(**values):
            for name, value in values.items():
                patch.setattr(train, name, value)

        yield turn


@given(warmup=st.floats(0, 0.5), warmdown=st.floats(0, 0.5), floor=fractions, progress=fractions)
def test_the_rate_stays_between_nothing_and_its_knob(train, warmup, warmdown, floor, progress):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WARMUP_RATIO", warmup), ("WARMDOWN_RATIO", warmdown), ("FINAL_LR_FRAC", floor)):
            patch.setattr(train, name, value)
        assert 0 <= train.get_lr_multiplier(progress) <= 1


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_the_rate_rises_holds_and_falls_to_its_floor(train, knobs, floor):
    knobs(WARMUP_RATIO=0.1, WARMDOWN_RATIO=0.4, FINAL_LR_FRAC=floor)
    rates = [train.get_lr_multiplier(step / 100) for step in range(101)]
    assert rates[0] == 0
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert set(rates[10:61]) == {1.0}
    assert all(a >= b for a, b in itertools.pairwise(rates[60:]))
    assert rates[-1] == pytest.approx(floor)


def test_without_warmup_and_warmdown_the_rate_is_constant(train, knobs):
    knobs(WARMUP_RATIO=0.0, WARMDOWN_RATIO=0.0)
    assert {train.get_lr_multiplier(step / 10) for step in range(11)} == {1.0}


@given(a=st.integers(0, 10_000), b=st.integers(0, 10_000))
def test_momentum_rises_from_085_to_095(train, a, b):
    low, high = (train.get_muon_momentum(step) for step in sorted((a, b)))
    assert 0.85 <= low <= high <= 0.95 + 1e-12
    assert train.get_muon_momentum(0) == 0.85
    assert train.get_muon_momentum(10_000) == pytest.approx(0.95)


@given(a=fractions, b=fractions)
def test_decay_falls_to_nothing(train, a, b):
    low, high = sorted((a, b))
    assert train.get_weight_decay(low) >= train.get_weight_decay(high)
    assert train.get_weight_decay(0) == train.WEIGHT_DECAY
    assert train.get_weight_decay(1) == 0
