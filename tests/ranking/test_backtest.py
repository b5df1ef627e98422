import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api import backtest as backtesting
from loopgraph_mcp.cli.main import spread
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking import backtest
from loopgraph_mcp.ranking.backtest import (
    PLAIN,
    RANDOM,
    CountedHistory,
    Replay,
    Report,
    counted,
    gain_share,
    is_held_out,
    order_balanced_auc,
    pools,
)
from loopgraph_mcp.ranking.features import Trial

scored = st.lists(st.tuples(st.floats(-5, 5), st.none() | st.floats(0.1, 3)), min_size=2, max_size=20)
PUBLISHED = {
    "ArmanJR": False,
    "elementalcollision": False,
    "fourcolors": True,
    "karpathy": True,
    "markbriers": False,
    "miolini": False,
    "pimlock": True,
    "radozaprazny": False,
    "trevin-creator": True,
}


def test_the_split_of_the_published_owners_is_the_one_written_down() -> None:
    assert {owner: is_held_out(owner) for owner in PUBLISHED} == PUBLISHED
    assert {each.owner for each in read_day_one().histories} == set(PUBLISHED)


@given(scored)
def test_the_agents_own_order_scores_one_half_and_the_truth_scores_one(pool: list[tuple[float, float | None]]) -> None:
    weights = [weight for _, weight in pool]
    alike = [None if weight is None else 1.0 for weight in weights]
    own = order_balanced_auc([-float(place) for place in range(len(pool))], alike)
    truth = order_balanced_auc([float(weight is not None) for weight in weights], weights)
    assert (own, truth) in {(0.5, 1.0), (None, None)}


@given(scored)
def test_turning_scores_around_turns_the_auc_around(pool: list[tuple[float, float | None]]) -> None:
    scores, weights = [score for score, _ in pool], [weight for _, weight in pool]
    auc, turned = order_balanced_auc(scores, weights), order_balanced_auc([-score for score in scores], weights)
    assert (auc is None and turned is None) or auc == pytest.approx(1 - (turned or 0.0))


def test_an_auc_worked_out_by_hand() -> None:
    # keep first: (0,1) wrong and (0,3) right at weight 1, (2,3) right at weight 3; keep later: (2,1) right
    assert order_balanced_auc([0.5, 0.6, 0.9, 0.1], [1.0, None, 3.0, None]) == pytest.approx((4 / 5 + 1) / 2)
    assert order_balanced_auc([1.0, 2.0], [1.0, None]) is None
    assert order_balanced_auc([0.5, 0.6, 0.9, 0.1], [1.0, None, 0.0, None]) is None  # no gain came later


def test_the_gain_of_ten_picks_shares_out_ties() -> None:
    scores, gains = [float(-place) for place in range(20)], [1.0] + [0.0] * 9 + [3.0] + [0.0] * 9
    assert gain_share(scores, gains) == 0.25
    assert gain_share([0.0] * 20, gains) == pytest.approx(0.5)
    assert gain_share(scores, [0.0] * 20) is None


@pytest.mark.parametrize(("kept", "counts"), [({5}, False), ({5, 9}, True), (set(range(10)) - {5}, False)])
def test_a_pool_needs_two_of_each_kind(kept: set[int], *, counts: bool) -> None:
    trials = [Trial((Move("depth", 1),), kept=place in kept, metric_value=1.0) for place in range(10)]
    assert bool(list(pools(trials))) == counts


def test_a_pool_holds_the_next_twenty_changes_and_a_history_of_those_before() -> None:
    baseline = Trial((), kept=True, metric_value=1.0, is_change=False)
    trials = [baseline, *(Trial((Move("depth", 1),), kept=place % 3 == 0) for place in range(40))]
    seen = [(history.changes, len(pool)) for history, pool in pools(trials)]
    assert seen == [(0, 20), (9, 20), (19, 20), (29, 11)]


def write_history(path: Path, *, seed: int, good: str = "up", rows: int = 120) -> Path:
    """Write a history in which one direction of one knob pays more than the other does."""
    chance = random.Random(seed)
    best = 1.5 + chance.random() / 10
    lines = ["commit\tval_bpb\tmemory_gb\tstatus\tdescription", f"aaaaaa0\t{best:.6f}\t1.0\tkeep\tbaseline"]
    for row in range(rows):
        knob, way = chance.choice(["warmdown", "matrix lr", "embedding lr"]), chance.choice(["up", "down"])
        pays = chance.random() < (0.8 if (knob, way) == ("warmdown", good) else 0.05)
        value = best - 0.01 if pays else best + 0.01
        best = min(best, value)
        word = "increase" if way == "up" else "reduce"
        lines.append(f"{row:07x}\t{value:.6f}\t1.0\t{'keep' if pays else 'discard'}\t{word} {knob}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def replays(folder: Path, count: int) -> list[Replay]:
    return [backtesting.read_replay(write_history(folder / f"owner{each}__x.tsv", seed=each)) for each in range(count)]


def memory_of(found: Sequence[Replay]) -> list[CountedHistory]:
    return [counted(each) for each in found]


def test_what_pays_with_others_is_predicted_and_an_owners_own_history_is_left_out(tmp_path: Path) -> None:
    found = replays(tmp_path, 6)
    report = backtest.run(found, memory_of(found))
    assert report.prior
    assert report.prior.weighted_auc > 0.65
    assert report.prior.gain_share > 0.6
    assert report.rankings["agent order"].weighted_auc == pytest.approx(0.5)
    assert report.rankings[RANDOM].weighted_auc == pytest.approx(0.5, abs=0.03)  # 50 seeds
    assert 0.5 < report.rankings[RANDOM].gain_share < 0.6  # the last pools are of fewer than twenty
    gain = report.rankings["agent order"].prior_gain
    assert gain
    assert 0 < gain.low < gain.mean < gain.high
    assert report.brier_difference
    assert report.brier_difference.high < 0
    assert report.brier == pytest.approx((report.brier_recent_rate or 0) + report.brier_difference.mean)
    assert sum(each.changes for each in report.calibration) == report.changes == 6 * 120
    own = found[:1]
    alone, taught = (backtest.run(own, memory_of(memory)) for memory in (own, found))
    assert alone.prior
    assert taught.prior
    assert alone.prior.weighted_auc == 0.5 < taught.prior.weighted_auc  # of itself alone it knows nothing


def test_the_plain_counts_are_those_of_the_memory_whatever_it_comes_from(tmp_path: Path) -> None:
    found = replays(tmp_path, 3)
    bundled = [replace_owner(each, f"other{place}") for place, each in enumerate(memory_of(found))]
    (first, *_) = found
    one, same = backtest.run([first], memory_of(found)), backtest.run([first], bundled[1:])
    assert one.rankings[PLAIN].weighted_auc == same.rankings[PLAIN].weighted_auc > 0.6


def replace_owner(history: CountedHistory, owner: str) -> CountedHistory:
    return CountedHistory(owner, history.fingerprint, history.counts)


def test_an_owners_other_histories_count_where_they_are_asked_for(tmp_path: Path) -> None:
    paths = [write_history(tmp_path / f"owner__{each}.tsv", seed=each) for each in range(4)]
    found = [backtesting.read_replay(path) for path in paths]
    without, with_own = (backtest.run(found, memory_of(found), own_searches=each) for each in (False, True))
    assert without.prior
    assert with_own.prior
    assert without.prior.weighted_auc == 0.5 < with_own.prior.weighted_auc
    assert with_own.rankings["without own other searches"].weighted_auc == 0.5


def test_shuffling_the_future_leaves_the_pools_before_it(tmp_path: Path) -> None:
    first = replays(tmp_path, 1)[0]
    tail = list(first.trials[41:])  # the pools at rows 0, 10 and 20 end before it
    random.Random(1).shuffle(tail)
    seen = [
        [copy.deepcopy(each) for each in pools([*first.trials[:41], *rest]) if each[0].changes <= 20]
        for rest in (first.trials[41:], tail)
    ]
    assert seen[0] == seen[1] != []


def test_the_same_histories_give_the_same_report_in_any_process(tmp_path: Path) -> None:
    for index in range(3):
        write_history(tmp_path / f"owner{index}__x.tsv", seed=index)
    loopgraph = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()"]
    command = [*loopgraph, "backtest", str(tmp_path), "--memory", str(tmp_path), "--json"]
    answers = [
        subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    ]
    assert answers[0] == answers[1]
    report = json.loads(answers[0])
    assert set(report) == set(Report.__dataclass_fields__)
    assert report["histories"] == 3


def test_only_held_out_owners_are_replayed_where_that_is_asked_for(tmp_path: Path) -> None:
    for owner in ("karpathy", "miolini"):
        write_history(tmp_path / f"{owner}__x.tsv", seed=1)
    report = backtesting.run([tmp_path], [], bundled=True, held_out=True)
    assert list(report.by_owner) == ["karpathy"]
    assert fmean(report.by_owner["karpathy"]) > 0


def test_a_file_of_a_bundled_history_is_counted_once(tmp_path: Path) -> None:
    published = {each.fingerprint: each.owner for each in read_day_one().histories}
    replay = backtesting.read_replay(write_history(tmp_path / "mine.tsv", seed=1))
    assert replay.owner == "mine"
    assert replay.fingerprint not in published


def test_memory_takes_many_files() -> None:
    assert spread(["backtest", "a", "--memory", "b", "c", "--json"], "--memory") == [
        "backtest", "a", "--memory", "b", "--memory", "c", "--json",
    ]  # fmt: skip
    assert spread(["search", "--json"], "--memory") == ["search", "--json"]


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"hello\n", b"a\tb\n1\t2\n"])
def test_a_file_without_experiments_is_refused_with_the_next_step(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(content)
    with pytest.raises(HistoryError, match=r"x\.tsv"):
        backtesting.read_replay(path)
    with pytest.raises(HistoryError, match="name a results"):
        backtesting.read_replay(tmp_path / "absent.tsv")
