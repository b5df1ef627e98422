import json
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.histories import HistoryRow, RowStatus, read_history
from loopgraph_mcp.models import Direction

HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"


def rows(text: str, **kwargs: str) -> tuple[HistoryRow, ...]:
    return read_history(text, name="x.tsv", **kwargs).rows  # type: ignore[arg-type]


def told(row: HistoryRow) -> tuple[str, float | None, RowStatus, str]:
    return row.commit, row.metric_value, row.status, row.description


def test_the_usual_table() -> None:
    text = f"{HEADER}\na1b2c3d\t0.997900\t44.0\tkeep\tbaseline\nb2c3d4e\t0.000000\t0.0\tcrash\tdouble width (OOM)\n"
    history = read_history(text, name="x.tsv")
    assert (history.metric, history.direction) == ("val_bpb", Direction.LOWER)
    assert [told(row) for row in history.rows] == [
        ("a1b2c3d", 0.9979, RowStatus.KEEP, "baseline"),
        ("b2c3d4e", None, RowStatus.CRASH, "double width (OOM)"),
    ]
    assert [row.is_baseline for row in history.rows] == [True, False]
    assert all(not row.notes for row in history.rows)


@pytest.mark.parametrize(
    "text",
    [
        "val_bpb\tdescription\tstatus\n1.25\tLR up\tkeep\n",
        "exp\tcommit\tval_bpb\tmemory_gb\tmfu\tstatus\tdescription\n1\ta1b2c3d\t1.25\t1.0\t40\tkeep\tLR up\n",
        "commit,val_bpb,memory_gb,status,description\na1b2c3d,1.25,1.0,keep,LR up\n",
        "commit;val_bpb;memory_gb;status;description\na1b2c3d;1,25;1,0;keep;LR up\n",
        "| commit | val_bpb | status | description |\n|---|:--:|---|---|\n| `a1b2c3d` | **1.25** | keep | LR up |\n",
        f"# run of Tuesday, 3 March\n\n{HEADER}\na1b2c3d\t1.25 (best)\t1.0\tkept\tLR up\n",
        f"{HEADER}\na1b2c3d\t1,25\t1.0\tbest\tLR up\n",
        f"{HEADER}\r\na1b2c3d\t1.25\t1.0\tKEEP\tLR up\r\n",
        f"\ufeff{HEADER}\na1b2c3d\t~1.25\t1.0\tkeep ✓\tLR up\n",
        "commit  val_bpb  memory_gb  status  description\na1b2c3d  1.25  1.0  keep  LR up\n",
        "a1b2c3d\t1.25\t1.0\tkeep\tLR up\n",
        json.dumps({"run": 1, "commit": "a1b2c3d", "metric": 1.25, "status": "keep", "description": "LR up"}),
    ],
)
def test_tables_in_many_forms_say_the_same(text: str) -> None:
    (row,) = rows(text)
    assert told(row)[1:] == (1.25, RowStatus.KEEP, "LR up")


def test_several_tables_in_one_file_are_segments_of_their_own() -> None:
    first, second = f"{HEADER}\na1b2c3d\t1.0\t1\tkeep\tbaseline\n", f"{HEADER}\nb1b2c3d\t2.0\t1\tkeep\tbaseline\n"
    text = f"{first}\nOn the other machine:\n\n{second}"
    assert [row.segment for row in rows(text)] == [0, 1]
    repeated = f"{HEADER}\na1b2c3d\t1.0\t1\tkeep\tbaseline\n{HEADER}\nb1b2c3d\t0.9\t1\tkeep\tLR up\n"
    assert [row.segment for row in rows(repeated)] == [0, 0]


def test_a_baseline_far_from_the_first_begins_another_machine() -> None:
    text = f"{HEADER}\na\t1.0\t1\tkeep\tbaseline\nb\t0.99\t1\tkeep\tLR up\nc\t1.30\t1\tkeep\tbaseline on the laptop\n"
    found = rows(text)
    assert [row.segment for row in found] == [0, 0, 1]
    assert "another machine" in found[2].notes[0]


def test_a_log_that_grows_at_its_head_is_read_from_its_baseline_on() -> None:
    history = read_history(f"{HEADER}\nb\t0.9\t1\tkeep\tLR up\na\t1.0\t1\tkeep\tbaseline\n", name="x.tsv")
    assert [(row.line, row.is_baseline) for row in history.rows] == [(3, True), (2, False)]
    assert history.notes == ("its baseline stands last: taken as newest first",)


def test_what_is_not_understood_is_said_row_by_row() -> None:
    text = f"{HEADER}\na1b2c3d\tn/a\t1\tkeep\tLR up\nb1b2c3d\t1.0\t1\tperhaps\tLR down\nc1b2c3d\t0.0\t0\tdiscard\t\n"
    notes = [row.notes for row in rows(text)]
    assert notes[0] == ("metric 'n/a' is no number",)
    assert notes[1] == ("status 'perhaps' is not understood",)
    assert notes[2] == ("no description", "a metric of 0 counts as none")
    short = read_history(f"{HEADER}\na1b2c3d\nb1b2c3d\t1.0\t1\tkeep\tLR up\n", name="x.tsv")
    assert [(each.line, each.reason) for each in short.left_out] == [(2, "is no row of a table")]


def test_another_metric_and_its_direction() -> None:
    text = "commit\tval_acc\tstatus\tdescription\na1b2c3d\t0.0\tdiscard\tLR up\n"
    history = read_history(text, name="x.tsv", metric="val_acc")
    assert (history.metric, history.direction, history.rows[0].metric_value) == ("val_acc", Direction.HIGHER, 0.0)
    assert read_history(text, name="x", metric="val_acc", direction=Direction.LOWER).direction is Direction.LOWER
    with pytest.raises(HistoryError, match="--metric"):
        read_history(text, name="x.tsv", metric="val_bpb")


def test_a_metric_of_another_name_is_taken_only_where_it_stands_alone() -> None:
    history = read_history("commit\ttokens_per_s\tstatus\tdescription\na1b2c3d\t9.5\tkeep\tfuse\n", name="x.tsv")
    assert (history.metric, history.direction) == ("tokens_per_s", Direction.HIGHER)
    assert history.notes == ("the column 'tokens_per_s' is taken as the metric",)
    text = "commit\tfoo\tbar\tstatus\tdescription\na1b2c3d\t1.5\t1\tkeep\tfuse\n"
    with pytest.raises(HistoryError, match="--metric: foo, bar"):
        read_history(text, name="x.tsv")
    assert [row.metric_value for row in rows(text, metric="bar")] == [1.0]


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("ms_per_token", "lower"),
        ("images_per_s", "higher"),
        ("latency", "lower"),
        ("val_acc", "higher"),
        ("x", "lower"),
    ],
)
def test_a_metrics_name_tells_its_direction(metric: str, direction: str) -> None:
    assert read_history(f"{metric}\tstatus\tdescription\n1.5\tkeep\tx\n", name="x.tsv").direction == direction


def test_thousands_are_no_decimals() -> None:
    text = "commit\tval_bpb\tstatus\tdescription\n" + "".join(
        f"\t{value}\tkeep\tx\n" for value in ("1,234.5", "1,234,567", "0,997", "nan", "-inf", "1.2.3")
    )
    assert [row.metric_value for row in rows(text)] == [1234.5, 1234567.0, 0.997, None, None, None]


def test_secondary_metrics_do_not_stand_in_for_the_metric() -> None:
    (row,) = rows('{"run": 1, "metric": 10, "metrics": {"loss": 3}, "status": "keep", "description": "x"}')
    assert row.metric_value == 10


def test_a_log_of_pi_autoresearch() -> None:
    lines = [
        {"type": "config", "name": "speed", "metricName": "tokens_s", "metricUnit": "t/s", "bestDirection": "higher"},
        {"run": 1, "commit": "abcdef0", "metric": 10, "metrics": {}, "status": "keep", "description": "baseline"},
        {"run": 2, "commit": "abcdef1", "metric": 0, "metrics": {}, "status": "checks_failed", "description": "LR up"},
    ]
    history = read_history("\n".join(map(json.dumps, lines)) + "\n{broken\n", name="log.jsonl")
    assert (history.metric, history.direction) == ("tokens_s", Direction.HIGHER)
    assert [told(row)[1:3] for row in history.rows] == [(10.0, RowStatus.KEEP), (None, RowStatus.CRASH)]
    assert [each.reason for each in history.left_out] == ["is no JSON object"]


def test_exports_of_trackers() -> None:
    mlflow = "run_id,status,metrics.val_loss,params.lr,tags.mlflow.runName\nx1,FINISHED,1.5,0.1,LR up\n"
    (row,) = rows(mlflow)
    assert (row.metric_value, row.description) == (1.5, "LR up")
    assert row.status is RowStatus.OTHER  # that a run finished does not say that it was kept
    assert row.notes == ("status 'finished' does not say whether it was kept",)
    running = mlflow.replace("x1,FINISHED", "x0,RUNNING") + "x1,FINISHED,1.4,0.1,LR up\n"
    history = read_history(running, name="runs.csv")
    assert [row.metric_value for row in history.rows] == [1.4]
    assert [each.reason for each in history.left_out] == ["is not over yet"]
    wandb = json.dumps([{"name": "LR up", "state": "crashed", "summary": {"val_loss": 1.5}, "config": {"lr": 0.1}}])
    (row,) = rows(wandb)
    assert (row.status, row.description, row.metric_value) == (RowStatus.CRASH, "LR up", None)


@given(st.text(max_size=400))
@example("[[]]")
@example("{")
@example('"a,b,c')
@example("loss\tx\n9e999\ty")
def test_any_text_is_a_history_or_a_clear_error(text: str) -> None:
    with suppress(HistoryError):
        history = read_history(text, name="x.tsv")
        assert history.rows
        assert all(row.metric_value is None or abs(row.metric_value) < float("inf") for row in history.rows)


plain = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=30).map(
    lambda t: " ".join(t.split())
)


@given(
    st.lists(
        st.tuples(st.floats(0.1, 9).map(lambda value: round(value, 6)), st.sampled_from(["keep", "discard"]), plain),
        min_size=1,
        max_size=8,
    )
)
def test_what_was_written_is_read_again(table: list[tuple[float, str, str]]) -> None:
    lines = [f"{index:07x}\t{value:.6f}\t1.0\t{status}\t{text}" for index, (value, status, text) in enumerate(table)]
    found = rows("\n".join([HEADER, *lines]))
    assert [(row.metric_value, row.status.value, row.description) for row in found] == table


def test_hostile_cells_cannot_move_the_cursor() -> None:
    (row,) = rows(f"{HEADER}\na1b2c3d\t1.0\t1\tkeep\tLR \x1b[2Jup\u202e\u200b now\n")
    assert row.description == "LR [2Jup now"
