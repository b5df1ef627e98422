import csv
import io
import json
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.ingest.histories import History, HistoryRow, RowStatus, read_history
from loopgraph_mcp.models import Direction, Move
from loopgraph_mcp.ranking.directions import Origin, named, other

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


# ------------------------------------------------------------------------------------------------ directions

HIGHER = [
    "tok_s",
    "tg_tok_s",
    "it_s",
    "img_s",
    "samples/s",
    "tokens_per_second",
    "steps_per_sec",
    "gb_s",
    "throughput",
    "throughput_s",
    "qps",
    "fps",
    "r2",
    "ndcg",
    "ndcg@10",
    "map",
    "mAP50",
    "mrr",
    "auc",
    "f1",
    "bleu",
    "rouge",
    "precision",
    "recall@10",
    "accuracy",
    "val_acc",
    "mfu",
    "speedup",
    "hit_rate",
    "win_rate",
    "pass@1",
    "psnr",
    "neg_mean_squared_error",
    "log_likelihood",
    "memory_saved",
]
LOWER = [
    "loss",
    "val_bpb",
    "bpb",
    "ppl",
    "perplexity",
    "error",
    "error_rate",
    "top1_error",
    "wer",
    "cer",
    "rmse",
    "mae",
    "latency",
    "p99_latency_ms",
    "time_ms",
    "seconds",
    "memory",
    "ms_per_token",
    "sec/step",
    "s_per_it",
    "valLoss",
    "nll",
    "negative_log_likelihood",
    "time_to_accuracy",
    "accuracy_loss",
    "miss_rate",
    "fid",
]


@pytest.mark.parametrize(("metrics", "direction"), [(HIGHER, Direction.HIGHER), (LOWER, Direction.LOWER)])
def test_a_name_says_which_way_its_metric_improves(metrics: list[str], direction: Direction) -> None:
    assert {metric: said.direction for metric in metrics if (said := named(metric)) is not None} == dict.fromkeys(
        metrics, direction
    )


def kept(metric: str, *values: float, above: str = "") -> History:
    lines = [f"\t{value}\tkeep\t{'baseline' if place == 0 else f'try {place}'}" for place, value in enumerate(values)]
    header = f"commit\t{metric}\tstatus\tdescription"
    return read_history("\n".join([*filter(None, [above]), header, *lines]), name="x.tsv", metric=metric)


@pytest.mark.parametrize(
    "above",
    [
        "# metric_direction: higher",
        "# metric_direction: higher_is_better",
        "# direction=maximize",
        "# optimization direction is MAXIMIZE",
        '# {"metric_direction": "higher", "mode": "loop"}',
        "# val_loss: higher is better",
        "# higher_is_better: true",
        "# lower_is_better = false",
        "// goal: maximize val_loss",
        "---\nmetric: val_loss\ndirection: maximize\n---",
        "maximize: true",
    ],
)
def test_what_a_file_declares_beats_the_name(above: str) -> None:
    history = kept("val_loss", 1.0, 1.1, above=above)
    assert (history.direction, history.origin) == (Direction.HIGHER, Origin.DECLARED)


@pytest.mark.parametrize(
    "above",
    [
        "# mode: loop",
        "# environment: cpu=8 max=3 gpu=A100",
        "# run on the high end, best: 0.9",
        "# latency_ms: lower is better",
        "# the best results are below",
    ],
)
def test_a_comment_on_something_else_declares_nothing(above: str) -> None:
    table = "commit\taccuracy\tlatency_ms\tstatus\tdescription\n\t0.5\t9\tkeep\tbaseline\n\t0.6\t8\tkeep\tLR up\n"
    history = read_history(f"{above}\n{table}", name="x.tsv")
    assert (history.direction, history.origin) == (Direction.HIGHER, Origin.KEPT)


@pytest.mark.parametrize(
    ("header", "cell"),
    [
        ("better", "higher"),
        ("higher_is_better", "True"),
        ("direction", "MAXIMIZE"),
        ("direction", "StudyDirection.MAXIMIZE"),
        ("minimize", "false"),
    ],
)
def test_a_column_declares_the_direction(header: str, cell: str) -> None:
    text = f"val_loss\t{header}\tstatus\tdescription\n1.0\t{cell}\tkeep\tbaseline\n1.5\t{cell}\tdiscard\tLR up\n"
    history = read_history(text, name="x.tsv")
    assert (history.direction, history.origin) == (Direction.HIGHER, Origin.DECLARED)


@pytest.mark.parametrize("column", ["quality \u2191", "quality (higher is better)", "quality [max]"])
def test_a_header_is_marked_with_the_direction(column: str) -> None:
    text = f"commit\t{column}\tstatus\tdescription\n\t1.0\tdiscard\tLR up\n"
    history = read_history(text, name="x.tsv", metric="quality")
    assert (history.metric, history.direction, history.origin) == ("quality", Direction.HIGHER, Origin.DECLARED)


@pytest.mark.parametrize("head", [{"metric_direction": "higher"}, {"type": "config", "bestDirection": "higher"}])
def test_the_head_of_a_json_log_declares_the_direction(head: dict[str, str]) -> None:
    lines = [head, {"commit": "a1b2c3d", "val_loss": 1.0, "status": "discard", "description": "LR up"}]
    history = read_history("\n".join(map(json.dumps, lines)), name="log.jsonl")
    assert (history.direction, history.origin, len(history.rows)) == (Direction.HIGHER, Origin.DECLARED, 1)


def test_a_file_that_declares_both_directions_asks() -> None:
    with pytest.raises(HistoryError, match="--direction"):
        kept("quality", 1.0, 1.1, above="# direction: higher\n# lower is better")


def test_a_json_study_declares_its_direction() -> None:
    trials = [{"number": n, "value": n / 10, "params": {"lr": n / 10}, "state": "COMPLETE"} for n in range(1, 3)]
    for declared in ("MAXIMIZE", ["maximize"]):
        history = read_history(json.dumps({"direction": declared, "trials": trials}, indent=1), name="study.json")
        assert (history.direction, history.origin) == (Direction.HIGHER, Origin.DECLARED)
        assert [str(move) for move in history.rows[1].moves] == ["lr_general up to 0.2"]


@given(
    st.sampled_from(["quality", "zork", "score", "x1"]),
    st.lists(st.integers(1, 10_000), min_size=2, max_size=12, unique=True),
    st.sampled_from(Direction),
)
def test_kept_rows_show_the_direction_that_a_name_does_not(metric: str, values: list[int], way: Direction) -> None:
    history = kept(metric, *sorted(values, reverse=way is Direction.LOWER))
    assert history.direction is way
    assert history.origin is Origin.KEPT


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=12))
def test_turning_the_values_around_turns_the_direction_around(values: list[int]) -> None:
    one, turned = kept("zork", *values), kept("zork", *[-value for value in values])
    assert one.origin is turned.origin
    if one.origin is Origin.KEPT:
        assert turned.direction is other(one.direction)


@given(st.sampled_from(["higher", "lower"]), st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_a_declaration_holds_whatever_the_rows_say(declared: str, values: list[int]) -> None:
    history = kept("val_loss", *values, above=f"# metric_direction: {declared}")
    assert (history.direction.value, history.origin) == (declared, Origin.DECLARED)


# ----------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("experiment\tval_bpb\tstatus\tdescription", "102\t1.0\tkeep\tLR up"),
        ("commit\tval_bpb\tstatus\texperiment\tnotes", "a1b2c3d\t1.0\tkeep\t7\tLR up"),
        ("commit\tval_bpb\tstatus\tname\tchange", "a1b2c3d\t1.0\tkeep\tfallen-sun-12\tLR up"),
        ("name\tval_bpb\tstatus\tmessage\tnotes", "8c31be2\t1.0\tkeep\t2026-02-03T10:00:00\tLR up"),
        ("note\tval_bpb\tstatus\tidea", "runs/out/train.log\t1.0\tkeep\tLR up"),
        ("summary\tval_bpb\tstatus\ttitle", "0.98\t1.0\tkeep\tLR up"),
    ],
)
def test_a_description_is_a_column_of_words(header: str, row: str) -> None:
    assert [each.description for each in rows(f"{header}\n{row}\n")] == ["LR up"]


@pytest.mark.parametrize("name", ["name", "experiment", "notes", "message"])
@pytest.mark.parametrize("cells", [("1", "2"), ("a1b2c3d", "b2c3d4e"), ("/runs/a", "/runs/b"), ("10:00", "11:00")])
def test_a_column_of_numbers_ids_paths_or_times_describes_nothing(name: str, cells: tuple[str, str]) -> None:
    text = f"{name},val_loss,status,lr\n{cells[0]},1.0,keep,0.1\n{cells[1]},0.9,keep,0.2\n"
    assert rows(text)[1].description == "lr 0.1 -> 0.2"


def test_a_result_in_a_description_is_no_value_of_a_knob() -> None:
    text = f"{HEADER}\na1b2c3d\t0.98\t1\tkeep\tbaseline\nb2c3d4e\t0.978123\t1\tkeep\tsoftcap 20 -> 0.978\n"
    assert rows(text)[1].moves == (Move("softcap", 0, 20.0),)


# ------------------------------------------------------------------------------------------------- statuses


def test_a_kept_metric_of_zero_is_a_value() -> None:
    text = (
        "commit\terrors\tstatus\tdescription\n\t4\tkeep\tbaseline\n\t0\tkeep\tfix the parser\n"
        "\t0.000000\tcrash\ta bad import\n\t0\tdiscard\tsimpler\n"
    )
    assert [row.metric_value for row in rows(text)] == [4.0, 0.0, None, 0.0]
    usual = f"{HEADER}\na1b2c3d\t1.0\t1\tkeep\tbaseline\nb2c3d4e\t0.000000\t0.0\tdiscard\tLR up\n"
    assert [row.metric_value for row in rows(usual)] == [1.0, None]


@pytest.mark.parametrize(
    ("state", "status", "left"),
    [
        ("COMPLETE", RowStatus.OTHER, 0),
        ("TrialState.COMPLETE", RowStatus.OTHER, 0),
        ("finished", RowStatus.OTHER, 0),
        ("FAIL", RowStatus.CRASH, 0),
        ("crashed", RowStatus.CRASH, 0),
        ("PRUNED", None, 1),
        ("killed", None, 1),
        ("RUNNING", None, 1),
        ("WAITING", None, 1),
    ],
)
def test_a_trackers_state_says_how_a_run_ended(state: str, status: RowStatus | None, left: int) -> None:
    text = f"number,value,params_lr,state\n0,0.5,0.1,COMPLETE\n1,0.4,0.2,{state}\n"
    history = read_history(text, name="trials.csv")
    assert [row.status for row in history.rows[1:]] == ([] if status is None else [status])
    assert len(history.left_out) == left


@pytest.mark.parametrize("status", ["no-op", "pivot", "search", "refine", "INFO", "WIP", "drift"])
def test_a_line_of_a_log_that_ran_nothing_is_no_experiment(status: str) -> None:
    text = f"{HEADER}\na1b2c3d\t1.0\t1\tkeep\tbaseline\n-\t1.0\t1\t{status}\tLR up\n"
    assert len(rows(text)) == 1


# ------------------------------------------------------------------------------------------- tracker exports


def test_what_differs_in_an_optuna_studys_parameters_is_the_change() -> None:
    text = (
        "number,value,datetime_start,datetime_complete,duration,params_batch_size,params_lr,params_optimizer,"
        "params_qk_norm,state\n"
        "2,0.80,2026-01-31 12:03:00,2026-01-31 12:04:00,0 days 00:01:00,32,0.05,sgd,True,COMPLETE\n"
        "0,0.81,2026-01-31 12:00:00,2026-01-31 12:01:15,0 days 00:01:15.2,32,0.1,adam,True,COMPLETE\n"
        "1,0.78,2026-01-31 12:01:15,2026-01-31 12:02:30,0 days 00:01:15.1,32,0.05,adam,True,COMPLETE\n"
        "3,0.79,2026-01-31 12:05:00,2026-01-31 12:06:00,0 days 00:01:00,32,0.05,adam,False,COMPLETE\n"
        "4,0.77,2026-01-31 12:07:00,2026-01-31 12:08:00,0 days 00:01:00,64,5e-2,adam,True,COMPLETE\n"
    )
    history = read_history(text, name="trials.csv")
    assert history.metric == "value"
    assert [(row.description, row.moves) for row in history.rows[1:]] == [
        ("lr 0.1 -> 0.05", (Move("lr_general", -1, 0.05, 0.1),)),
        ("optimizer adam -> sgd", (Move("optimizer", word="sgd"),)),
        ("qk_norm True -> False", (Move("qk_norm", -1),)),
        ("batch_size 32 -> 64", (Move("batch_size", 1, 64.0, 32.0),)),
    ]
    assert [row.base for row in history.rows] == [None, 0, 1, 1, 1]


def test_a_table_of_wandb_runs_is_read_oldest_first_by_its_parameters() -> None:
    text = (
        '"Name","State","Notes","User","Tags","Created","Runtime","batch_size","lr","activation","_step","train_loss","val_loss"\n'
        '"fallen-sun-3","crashed","-","me","","2026-02-03T10:00:00.000Z","12","64","0.01","relu","1","2.0","2.5"\n'
        '"royal-lake-2","finished","-","me","","2026-02-02T10:00:00.000Z","120","32","0.01","relu","9","1.0","1.5"\n'
        '"ash-sky-1","finished","-","me","","2026-02-01T10:00:00.000Z","120","32","0.01","gelu","9","1.2","1.8"\n'
    )
    history = read_history(text, name="wandb.csv")
    assert (history.metric, history.direction) == ("val_loss", Direction.LOWER)
    assert [(row.metric_value, row.status, [str(move) for move in row.moves]) for row in history.rows] == [
        (1.8, RowStatus.OTHER, []),
        (1.5, RowStatus.OTHER, ["activation to relu"]),
        (None, RowStatus.CRASH, ["batch_size up to 64"]),
    ]


@pytest.mark.parametrize("write", [json.dumps, repr])
def test_a_nested_config_is_read_from_json_and_from_what_python_prints(write: Callable[[object], str]) -> None:
    first = {"lr": 0.1, "model": {"depth": 8, "act": "relu"}, "amp": True, "output_dir": "/tmp/a"}
    second = {"lr": 0.1, "model": {"depth": 10, "act": "relu"}, "amp": False, "output_dir": "/tmp/b"}
    table = [["", "summary", "config", "name"]]
    for value, config in ((1.8, first), (1.5, second)):
        summary = {"val_loss": value, "_runtime": 120.0, "_timestamp": 1.7e9}
        table.append(["0", write(summary), write(config), "ash-sky-1"])
    text = io.StringIO()
    csv.writer(text).writerows(table)
    history = read_history(text.getvalue(), name="project.csv")
    assert history.metric == "val_loss"
    assert [row.description for row in history.rows[1:]] == ["model.depth 8 -> 10, amp True -> False"]
    assert [str(move) for move in history.rows[1].moves] == ["depth up to 10", "amp down"]


def test_mlflow_runs_are_compared_by_their_parameters() -> None:
    table = (
        "run_id,status,start_time,end_time,metrics.val_acc,metrics.epoch_time,params.lr,params.seed,tags.mlflow.runName\n"
        f"{'0' * 31}1,FINISHED,2026-01-02 00:00:00,2026-01-02 01:00:00,0.9,12,0.1,1,gaggling-snake-417\n"
        f"{'0' * 31}2,FINISHED,2026-01-01 00:00:00,2026-01-01 01:00:00,0.8,12,0.2,1,bold-cat-12\n"
        f"{'0' * 31}3,KILLED,2026-01-03 00:00:00,2026-01-03 01:00:00,0.1,12,0.3,1,calm-dog-3\n"
        f"{'0' * 31}4,FINISHED,2026-01-04 00:00:00,2026-01-04 01:00:00,0.91,12,0.1,2,calm-dog-4\n"
    )
    found = read_history(table, name="runs.csv")
    assert (found.metric, found.direction) == ("val_acc", Direction.HIGHER)
    assert [(row.metric_value, row.description, row.is_rerun) for row in found.rows[1:]] == [
        (0.9, "lr 0.2 -> 0.1", False),
        (0.91, "another seed", True),
    ]
    runs = [
        {
            "info": {"run_id": str(value), "status": "FINISHED", "start_time": start},
            "data": {"metrics": [{"key": "val_acc", "value": value}], "params": [{"key": "lr", "value": lr}]},
        }
        for value, start, lr in ((0.9, 2, "0.1"), (0.8, 1, "0.2"))
    ]
    found = read_history(json.dumps({"runs": runs}), name="runs.json")
    assert [(row.metric_value, row.description) for row in found.rows] == [(0.8, "lr=0.2"), (0.9, "lr 0.2 -> 0.1")]


def test_decided_rows_are_compared_with_the_kept_one() -> None:
    text = "val_loss,status,lr,batch_size\n1.0,keep,0.1,32\n1.2,discard,0.2,32\n0.9,keep,0.1,64\n0.95,discard,0.2,64\n"
    assert [row.description for row in rows(text)[1:]] == [
        "lr 0.1 -> 0.2",
        "batch_size 32 -> 64",
        "lr 0.1 -> 0.2",
    ]


def test_a_runs_name_adds_only_what_its_parameters_do_not_tell() -> None:
    text = (
        "name,state,val_loss,config.lr,config.batch_size\nbaseline,finished,1.0,0.1,32\n"
        "bigger batch and lr up with SwiGLU,finished,0.9,0.1,64\n"
    )
    assert [str(move) for move in rows(text)[1].moves] == ["batch_size up to 64", "activation to swiglu"]


@pytest.mark.parametrize("name", ["duration", "runtime", "training_seconds", "datetime_start", "epoch", "trial"])
def test_times_and_counts_are_no_metric(name: str) -> None:
    text = f"commit\t{name}\tzork\tstatus\tdescription\na1b2c3d\t12\t0.5\tkeep\tLR up\n"
    assert read_history(text, name="x.tsv").metric == "zork"


values = st.one_of(
    st.floats(-100, 100).map(lambda value: f"{value:.4g}"),
    st.booleans().map(str),
    st.sampled_from(["adam", "sgd", "lion"]),
)


@given(
    st.dictionaries(
        st.sampled_from(["lr", "wd", "zork", "depth", "opt", "model.width"]), values, min_size=1, max_size=6
    ),
    st.data(),
)
def test_each_parameter_that_differs_is_one_move_with_its_values(first: dict[str, str], data: st.DataObject) -> None:
    second = {name: data.draw(values) for name in first}
    lines = [",".join(["number", "value", "state", *(f"params_{name}" for name in first)])]
    lines += [",".join([str(n), "0.5", "COMPLETE", *each.values()]) for n, each in enumerate((first, second))]
    row = read_history("\n".join(lines), name="trials.csv").rows[1]

    def number(text: str) -> float | None:
        with suppress(ValueError):
            return float(text)
        return None

    changed = [
        (number(first[name]), number(value))
        for name, value in second.items()
        if value != first[name] and (number(value) is None or number(value) != number(first[name]))
    ]
    assert row.is_rerun is (not changed)
    assert len(row.moves) == len(changed)
    assert [(move.old, move.value) for move in row.moves if move.value is not None] == [
        pair for pair in changed if pair[1] is not None
    ]


# -------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "text",
    [
        "\t".join(["val_loss", "status", *(f"c{n}" for n in range(1_000_000))]) + "\n1.0\tkeep\n",
        ",".join(["val_loss", "status", *(f"c{n}" for n in range(1_000_000))]) + "\n1.0,keep,x\n",
        f"{HEADER}\n" + "\t" * 2_000_000,
        "\n".join(json.dumps({"metric": 1, **{f"k{n}_{m}": 1 for m in range(500)}}) for n in range(20)),
        "[" * 200_000,
        'val_loss,status,description\n1.0,keep,"' + "x" * 2_000_000,
    ],
)
def test_a_file_of_no_sane_size_is_a_clear_error(text: str) -> None:
    with pytest.raises(HistoryError, match=r"--metric|too many|split"):
        read_history(text, name="x.tsv")


def test_huge_cells_and_zeros_and_marks_are_cut_out_of_rows() -> None:
    text = f"\ufeff{HEADER}\n\x00a1b2c3d\t1.0\t1\tkeep\tLR up {'x' * 3_000_000}\n" + "junk\n" * 20_000
    history = read_history(text, name="x.tsv")
    assert history.rows[0].description.startswith("LR up xxx")
    assert len(history.rows[0].description) <= 2_000
    assert len(history.left_out) == 10_001
    assert "more than 10000 lines" in history.left_out[-1].reason


def test_a_second_table_of_another_metric_is_left_out() -> None:
    one = "commit\tval_loss\tstatus\tdescription\na1\t1.5\tkeep\tbaseline\nb2\t1.2\tkeep\tx from 1 to 2\n"
    other = "commit\tacc\tstatus\tdescription\nc1\t50\tkeep\tbaseline\nd2\t70\tkeep\ty from 1 to 2\n"
    found = read_history(f"{one}\n\n{other}", name="two.tsv")
    assert [row.metric_value for row in found.rows] == [1.5, 1.2]
    assert ["another metric" in each.reason for each in found.left_out] == [True, True]
    assert [row.metric_value for row in read_history(f"{one}\n\n{other}", name="two.tsv", metric="acc").rows][-2:] == [
        50,
        70,
    ]
