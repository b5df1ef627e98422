import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api import backtest as api_backtest
from loopgraph_mcp.cli.main import spread
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.ranking import backtest
from loopgraph_mcp.ranking.backtest import Replay, order_balanced_auc, taught_by

scored = st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=2, max_size=20)


@given(scored)
def test_the_agents_own_order_scores_one_half_and_the_truth_scores_one(pool: list[tuple[float, bool]]) -> None:
    kept = [keep for _, keep in pool]
    own = order_balanced_auc([-float(place) for place in range(len(kept))], kept)
    truth = order_balanced_auc([float(keep) for keep in kept], kept)
    assert (own, truth) in {(0.5, 1.0), (None, None)}


@given(scored)
def test_turning_scores_around_turns_the_auc_around(pool: list[tuple[float, bool]]) -> None:
    scores, kept = [score for score, _ in pool], [keep for _, keep in pool]
    auc, turned = order_balanced_auc(scores, kept), order_balanced_auc([-score for score in scores], kept)
    assert (auc is None and turned is None) or auc == pytest.approx(1 - (turned or 0.0))


def test_an_auc_worked_out_by_hand() -> None:
    # pairs with the keep first: (0,1) wrong, (0,3) right; with the keep later: (2,1) right; (2,3) is keep first, right
    assert order_balanced_auc([0.5, 0.6, 0.9, 0.1], [True, False, True, False]) == pytest.approx((2 / 3 + 1) / 2)
    assert order_balanced_auc([1.0, 2.0], [True, False]) is None


def write_history(path: Path, *, seed: int, good: str = "up", rows: int = 120) -> Path:
    """Write a history in which one way of one knob pays more than the other does."""
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


def replays(folder: Path, count: int, **kwargs: str) -> list[Replay]:
    paths = [write_history(folder / f"owner{index}__x.tsv", seed=index, **kwargs) for index in range(count)]
    return [api_backtest.read_replay(path) for path in paths]


def test_what_pays_with_others_is_found_and_what_pays_with_oneself_alone_is_not(tmp_path: Path) -> None:
    found = replays(tmp_path, 6)
    report = backtest.run(found, taught_by(found), others=found)
    assert report.order_balanced_auc is not None
    assert report.order_balanced_auc > 0.65
    assert report.baselines["agent order"] == 0.5
    assert report.ci95 is not None
    assert report.ci95[0] < report.order_balanced_auc < report.ci95[1]
    assert report.top_lift is not None
    assert report.top_lift > 1.2
    own = [found[0]]
    alone = backtest.run(own, taught_by(own), others=own)  # it is the only one, and may not teach itself
    taught = backtest.run(own, taught_by(found), others=found)
    assert (alone.per_history[0].auc or 0) < (taught.per_history[0].auc or 0)


def test_shuffling_the_future_leaves_the_scores_of_the_past(tmp_path: Path) -> None:
    found = replays(tmp_path, 4)
    first, others = found[0], found[1:]
    memory = taught_by(others)
    rows = list(zip(first.tries, first.texts, strict=True))
    tail = rows[41:]  # the windows at rows 0, 10 and 20 end before it
    random.Random(1).shuffle(tail)
    tries, texts = zip(*rows[:41], *tail, strict=True)
    shuffled = Replay(first.name, first.owner, tries, texts)
    seen: list[list[object]] = []
    for replay in (first, shuffled):
        frozen: list[object] = []

        def keep(known: backtest.Frozen, pool: object, into: list[object] = frozen) -> list[float]:
            into.append(copy.deepcopy((known.past, known.before, pool)))
            return [0.0] * len(pool)  # type: ignore[arg-type]

        backtest.run([replay], memory, extra={"keep": keep})
        seen.append(frozen[:3])
    assert seen[0] == seen[1]


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
    for key in ("order_balanced_auc", "ci95", "histories", "pools", "baselines", "per_history"):
        assert report[key] is not None
    assert report["histories"] == 3


def test_a_published_history_under_another_name_does_not_teach_itself(tmp_path: Path) -> None:
    published = {each.fingerprint: each.owner for each in api_backtest.read_day_one().histories}
    replay = api_backtest.read_replay(write_history(tmp_path / "mine.tsv", seed=1))
    assert replay.owner == "mine"
    assert api_backtest.fingerprint(replay.tries) not in published


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
        api_backtest.read_replay(path)
    with pytest.raises(HistoryError, match="name a results"):
        api_backtest.read_replay(tmp_path / "absent.tsv")
