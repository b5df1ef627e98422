import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.ingest.published import PublishedHistory, read_day_one, write_day_one
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.features import Past, Try
from loopgraph_mcp.ranking.prior import Elsewhere, Foreseen, Foresight, Lesson, Parts, lessons, windows

knobs = st.sampled_from(["matrix_lr", "embed_lr", "warmdown", "softcap"])
moves = st.builds(
    Move, knob=knobs, direction=st.sampled_from([-1, 0, 1]), value=st.none() | st.sampled_from([0.01, 0.1, 0.5, 2.0])
)
tries = st.builds(
    Try,
    moves=st.lists(moves, min_size=1, max_size=3).map(tuple),
    kept=st.booleans(),
    metric_value=st.none() | st.floats(0.5, 2.0),
    gain=st.none() | st.floats(-1, 1),
    is_change=st.booleans(),
)
histories = st.lists(tries, max_size=60)


def learned(done: list[Try]) -> Past:
    past = Past()
    for each in done:
        past.learn(each)
    return past


def baseline(value: float) -> Try:
    return Try((), kept=True, metric_value=value, is_change=False)


def lr(value: float | None, *, kept: bool, direction: int = 0) -> Try:
    return Try((Move("matrix_lr", direction, value),), kept, 1.0)


@pytest.mark.parametrize(
    ("done", "value", "place"),
    [
        ([], 0.05, "new, at a value"),
        ([], None, "new, without a value"),
        ([lr(0.05, kept=False)], 0.05, "value failed before"),
        ([lr(0.05, kept=True)], 0.05, "value kept before"),
        ([lr(None, kept=False)], None, "after a failure, without a value"),
        ([lr(None, kept=True)], None, "after a keep, without a value"),
        ([lr(0.05, kept=True), lr(0.06, kept=False)], 0.07, "beyond a failure, moved before"),
        ([lr(0.05, kept=True), lr(0.07, kept=False)], 0.06, "short of a failure, moved before"),
        ([lr(0.05, kept=True), lr(0.04, kept=False)], 0.06, "open side, other side failed, moved before"),
        ([lr(0.05, kept=True)], 0.06, "open side, moved before"),
    ],
)
def test_a_value_has_its_place_among_those_tried(done: list[Try], value: float | None, place: str) -> None:
    assert learned(done).place(Move("matrix_lr", 1, value)) == place


def test_a_way_is_told_from_where_the_knob_stands() -> None:
    past = learned([lr(0.02, kept=True)])
    assert past.direction(Move("matrix_lr", -1, 0.03)) == 1
    assert Past().direction(Move("matrix_lr", 0, 0.03)) == -1  # the usual start is 0.04
    assert Past().direction(Move("unheard of", 1, 0.03)) == 1
    assert learned([lr(0.02, kept=False)]).direction(Move("matrix_lr", 0, 0.03)) == -1


@pytest.mark.parametrize(
    ("move", "step"),
    [
        (Move("matrix_lr", 1), "to no value"),
        (Move("matrix_lr", 0, 0.04), "nowhere"),
        (Move("matrix_lr", 1, 0.045), "up slightly"),
        (Move("matrix_lr", 1, 0.03, 0.02), "up much"),  # where it came from is told
        (Move("matrix_lr", -1, 0.03), "down somewhat"),
        (Move("matrix_lr", 1, 4.0), "up vastly"),
        (Move("warmup", 1, 0.1), "from no value"),
        (Move("unheard of", 1, 0.1), "from no value"),
    ],
)
def test_a_step_is_told_in_proportion(move: Move, step: str) -> None:
    assert Past().step(move) == step


def test_a_knobs_last_move_is_known() -> None:
    up, down = Move("matrix_lr", 1), Move("matrix_lr", -1)
    assert Past().lately(up) == "never moved"
    assert learned([lr(None, kept=True, direction=1)]).lately(up) == "kept, the same way"
    assert learned([lr(None, kept=True, direction=1), lr(None, kept=False, direction=1)]).lately(down) == (
        "failed, another way"
    )


def test_the_narrower_kind_of_move_counts_most_where_it_was_seen() -> None:
    up = (Move("matrix_lr", 1),)
    family, knob = "family:learning-rate +1 early", "move:matrix_lr +1"
    wide, both = [lesson("a", 12.0, about=family)], [lesson("a", 12.0, about=family), lesson("b", 0.0, about=knob)]
    assert Foresight(wide).foresee(up, Past()).parts.elsewhere > Foresight(both).foresee(up, Past()).parts.elsewhere
    much = [*both, *(lesson(f"c{each}", 0.0, about=knob) for each in range(20))]
    assert Foresight(much).foresee(up, Past()).parts.elsewhere < 0
    late = learned([lr(None, kept=False)] * 20)
    assert Foresight(wide).foresee(up, late).parts.elsewhere == 0


def lesson(owner: str, kept: float, level: float = 0.0, about: str = "move:matrix_lr +1") -> Lesson:
    return Lesson(owner, about, (level, level), 4.0, kept, 10)


def test_what_paid_elsewhere_is_foreseen_and_more_so_where_the_metric_was_near() -> None:
    up = (Move("matrix_lr", 1),)
    near, far = learned([baseline(1.0)]), learned([baseline(2.0)])
    for kept, better in ((9.0, True), (0.5, False)):
        taught = Foresight([lesson("a", kept)])
        seen, elsewhere = taught.foresee(up, near), taught.foresee(up, far)
        assert (seen.score > elsewhere.score) == better
        assert (seen.parts.elsewhere > 0) == better
        assert (seen.p_keep > Foresight([]).foresee(up, near).p_keep) == better


def test_lessons_of_an_owner_are_left_out_for_that_owner() -> None:
    up = (Move("matrix_lr", 1),)
    taught = [lesson("a", 9.0), lesson("b", 0.0)]
    assert Foresight(taught, without="a").foresee(up, Past()) == Foresight([lesson("b", 0.0)]).foresee(up, Past())
    assert Foresight(taught, without="a").foresee(up, Past()).elsewhere == Elsewhere(10, 0.0, near=False)


def test_what_others_made_of_a_move_is_told_of_those_near_where_there_are_some() -> None:
    up, here = (Move("matrix_lr", 1),), learned([baseline(1.0)])
    near, far = lesson("a", 8.0, level=0.0), lesson("b", 0.0, level=2.0)
    told = Foresight([near, far]).foresee(up, here).elsewhere
    assert told is not None
    assert (told.tries, round(told.ratio, 6), told.near) == (20, 2.0, True)
    assert Foresight([far]).foresee(up, here).elsewhere == Elsewhere(10, 0.0, near=False)
    assert Foresight([]).foresee(up, here).elsewhere is None


@given(histories, st.lists(moves, min_size=1, max_size=3))
def test_what_is_foreseen_is_a_probability(done: list[Try], change: list[Move]) -> None:
    taught = Foresight(lessons(done, owner="a"))
    seen = taught.foresee(change, learned(done))
    assert 0 < seen.p_keep < 1
    assert math.isfinite(seen.score)


@given(histories, st.randoms(), st.integers(0, 60), moves)
def test_the_future_says_nothing_of_the_past(done: list[Try], chance: random.Random, cut: int, move: Move) -> None:
    past = learned(done[:cut])
    seen = Foresight([]).foresee([move], past)
    future = done[cut:]
    chance.shuffle(future)
    shuffled = [*done[:cut], *future]
    again = Foresight([]).foresee([move], learned(shuffled[:cut]))
    assert seen == again


@given(histories)
def test_windows_begin_at_every_tenth_row_and_hold_keeps_and_others(done: list[Try]) -> None:
    for start, ahead in windows(done):
        assert start % 10 == 0 or not any(each.is_change for each in done[:start])
        assert 10 <= len(ahead) <= 20
        assert {each.kept for each in ahead} == {True, False}
        assert ahead == [each for each in done[start:] if each.is_change][:20]


@given(histories)
def test_lessons_are_the_same_each_time_and_balance(done: list[Try]) -> None:
    found = lessons(done, owner="a")
    assert found == lessons(done, owner="a")
    for kind in ("family:", "move:", "step:", "place:", "lately:"):
        expected = math.fsum(each.expected for each in found if each.about.startswith(kind))
        kept = math.fsum(each.kept for each in found if each.about.startswith(kind))
        assert expected == pytest.approx(kept)


def test_a_metric_of_nan_or_of_the_other_direction_is_taken_as_it_is() -> None:
    past = learned([baseline(math.nan), baseline(0.5)])
    assert past.level == (math.log(0.5), math.log(0.5))
    higher = Past(higher_is_better=True)
    for value in (0.5, 0.7, 0.6):
        higher.learn(Try((Move("depth", 1),), kept=True, metric_value=value))
    assert higher.best == 0.7
    negative = learned([baseline(-1.0)])
    assert negative.level is None


def test_the_shipped_lessons_name_their_sources_and_survive_writing(tmp_path: Path) -> None:
    shipped = read_day_one()
    assert len(shipped.histories) == 50
    assert {each.owner for each in shipped.histories} == {each.owner for each in shipped.lessons}
    assert all(each.licence and each.commit and each.fingerprint for each in shipped.histories)
    halving = [each for each in shipped.lessons if each.about == "move:batch_size -1"]
    assert sum(each.tries for each in halving) > 50
    by_history: dict[int, list[Lesson]] = {}
    for index, each in zip(shipped.sources, shipped.lessons, strict=True):
        by_history.setdefault(index, []).append(each)
    found: list[tuple[PublishedHistory, list[Lesson]]] = [
        (history, by_history.get(index, [])) for index, history in enumerate(shipped.histories)
    ]
    path = tmp_path / "again.json"
    write_day_one(found, path)
    assert read_day_one(path) == shipped


@given(st.floats(0.01, 0.99), st.floats(0.125, 8.0))
def test_a_record_shifts_the_odds_and_nothing_else(p_keep: float, factor: float) -> None:
    seen = Foreseen(Parts(0.1, 0.2, 0.3), p_keep, "new")
    shifted = seen.with_odds(factor)
    assert shifted.p_keep / (1 - shifted.p_keep) == pytest.approx(factor * p_keep / (1 - p_keep))
    assert (shifted.parts, shifted.place) == (seen.parts, seen.place)
