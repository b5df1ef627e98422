from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.runner import trainlog

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


def test_progress_is_read_from_bars_and_through_colours() -> None:
    bar = "\r 44%|##4  | 440/1000 [00:29<00:38, 14.8it/s, loss=2.4]\r 45%|##5  | 450/1000 [00:30<01:37, loss=2.31]"
    assert trainlog.parse_progress(bar) == trainlog.Progress(step=450, percent=45.0, loss=2.31, remaining_s=97.0)
    coloured = "\x1b[1mStep\x1b[0m 00100 | \x1b[33mloss: 2.5\x1b[0m\n"
    assert trainlog.parse_progress(coloured) == trainlog.Progress(step=100, loss=2.5)
    assert trainlog.parse_progress('{"step": 10, "loss": 2.25}\n') == trainlog.Progress(step=10, loss=2.25)
    assert trainlog.parse_progress("overstep: 10\n") is None


def test_what_a_terminal_overwrites_is_a_line_of_its_own() -> None:
    assert trainlog.lines_of("a 1\x08\x08b 2\x1b[2A\x1b[2Kc\r\nd\x1b]0;title\x07e") == ["a 1", "b 2", "c", "de"]


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
    assert len(trainlog.tail_lines(log, count=5).split("\n")) <= 5
