import math

from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp import trainlog

RUN = (
    "Vocab size: 8,192\n"
    "\rstep 00000 (0.0%) | loss: 9.011000 | lrm: 1.00 | dt: 9000ms | tok/sec: 58,000 | epoch: 1 | remaining: 300s    "
    "\rstep 00123 (41.0%) | loss: 5.123456 | lrm: 0.92 | dt: 310ms | tok/sec: 1,690,000 | epoch: 1 | remaining: 177s  "
    "\n---\n"
    "val_bpb:          0.997900\n"
    "training_seconds: 300.1\n"
    "total_seconds:    325.9\n"
    "peak_vram_mb:     45060.2\n"
    "mfu_percent:      39.80\n"
    "total_tokens_M:   499.6\n"
    "num_steps:        953\n"
    "num_params_M:     50.3\n"
    "depth:            8\n"
)


def test_the_last_progress_line_is_read_across_carriage_returns() -> None:
    progress = trainlog.parse_progress(RUN.split("---", maxsplit=1)[0])
    assert progress == trainlog.Progress(step=123, percent=41.0, loss=5.123456, remaining_s=177.0)


def test_the_summary_block_is_read_whole() -> None:
    summary = trainlog.parse_summary(RUN, "val_bpb")
    assert summary["val_bpb"] == 0.9979
    assert summary["peak_vram_mb"] == 45060.2
    assert list(summary) == [
        "val_bpb",
        "training_seconds",
        "total_seconds",
        "peak_vram_mb",
        "mfu_percent",
        "total_tokens_M",
        "num_steps",
        "num_params_M",
        "depth",
    ]


def test_the_last_block_with_the_metric_counts_and_another_metric_is_none() -> None:
    log = "val_bpb: 3.0\nsome words\nval_bpb: 2.5\nnoise: 1\nmore words\nlr: 0.1\n"
    assert trainlog.parse_summary(log, "val_bpb") == {"val_bpb": 2.5, "noise": 1.0}
    assert trainlog.parse_summary(log, "accuracy") == {}


def test_numbers_come_as_people_print_them() -> None:
    assert trainlog.parse_summary("accuracy = 1,234.5", "accuracy") == {"accuracy": 1234.5}
    assert trainlog.parse_summary("loss=1e-3", "loss") == {"loss": 0.001}
    assert math.isnan(trainlog.parse_summary("val_bpb: nan", "val_bpb")["val_bpb"])
    assert not trainlog.is_finite(trainlog.parse_summary("val_bpb: inf", "val_bpb")["val_bpb"])


def test_a_sentence_about_the_metric_is_no_metric() -> None:
    assert trainlog.parse_summary("the val_bpb: 0.5 was great\nval_bpb: 0.5 or so\n", "val_bpb") == {}


def test_the_tail_keeps_one_progress_line_and_no_control_characters() -> None:
    tail = trainlog.tail_lines("start\n" + RUN.split("---", maxsplit=1)[0] + "\x1b[31mboom\x1b[0m\x00\n", count=3)
    assert tail.splitlines()[0].startswith("Vocab") or tail.splitlines()[0] == "start"
    assert tail.splitlines()[-2].startswith("step 00123")
    assert tail.splitlines()[-1] == "boom"


def test_failures_are_told_apart() -> None:
    assert trainlog.looks_out_of_memory("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    assert not trainlog.looks_out_of_memory("ValueError: bad shape")
    assert trainlog.looks_diverged("step 1\rstep 2 | loss: nan\nFAIL\n")
    assert not trainlog.looks_diverged("FAILURE is not an option\n")


@given(st.text())
def test_any_log_is_read_without_an_error(log: str) -> None:
    trainlog.parse_progress(log)
    trainlog.parse_summary(log, "val_bpb")
    assert len(trainlog.tail_lines(log, count=5).split("\n")) <= 5
