"""The frame of a run: its clock and budget, what it writes down, and what survives when things go wrong."""

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopgraph_mcp.runner.printed import parse_summary

torch = pytest.importorskip("torch", reason="the trainer needs torch")
pytest.importorskip("tokenizers", reason="the trainer needs tokenizers")


@pytest.fixture
def harness(train, tmp_path, monkeypatch):
    """The module, in an empty folder; what a run switched off is on again afterwards."""
    monkeypatch.chdir(tmp_path)
    yield train.harness
    gc.unfreeze()
    gc.enable()


def begun(harness, train, **options):
    run = harness.Run(**options)
    run.begin(train.build(), tokens_per_step=100, untimed_steps=2)
    return run


# ------------------------------------------------------------------------------------------ clock and budget


def test_the_phases_are_all_the_time_since_the_start(harness, train):
    run = begun(harness, train, max_steps=4)
    while run.goes_on():
        run.record(1.0, lr_multiplier=1.0, epoch=1)
    run.end("evaluation")
    assert set(run.seconds) == {"imports", "model", "first steps", "training", "evaluation"}
    assert sum(run.seconds.values()) == pytest.approx(run.since - harness.STARTED)
    assert all(seconds >= 0 for seconds in run.seconds.values())


def test_the_first_steps_do_not_count_towards_the_budget(harness, train, monkeypatch):
    monkeypatch.setattr(harness, "TIME_BUDGET", 1e-9)
    run = begun(harness, train, max_steps=None)
    for _ in range(2):
        assert run.goes_on()
        run.record(1.0, lr_multiplier=1.0, epoch=1)
        assert run.training_seconds == 0
    assert run.goes_on()
    run.record(1.0, lr_multiplier=1.0, epoch=1)
    assert run.training_seconds > 0
    assert not run.goes_on()
    assert run.timed_steps() == 1


def test_a_run_bounded_in_steps_goes_by_steps(harness, train):
    run = begun(harness, train, max_steps=4)
    seen = []
    while run.goes_on():
        seen.append(run.progress)
        run.record(1.0, lr_multiplier=1.0, epoch=1)
    assert seen == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("loss", [float("nan"), 100.5])
def test_a_loss_out_of_bounds_ends_the_run(harness, train, capsys, loss):
    run = begun(harness, train)
    with pytest.raises(SystemExit) as stopped:
        run.record(loss, lr_multiplier=1.0, epoch=1)
    assert stopped.value.code == 1
    assert capsys.readouterr().out.endswith(f"\nthe loss is {loss} at step 0\nFAIL\n")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 125e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 5070 Ti", 87.9e12),
        ("NVIDIA GeForce RTX 5070", 61.7e12),
        ("Tesla T4", 0.0),
        ("cpu (2 threads)", 0.0),
    ],
)
def test_the_peak_is_that_of_the_device_at_hand(harness, name, peak):
    assert harness.peak_flops(name) == peak


def test_no_device_hides_behind_an_earlier_one(harness):
    names = list(harness.PEAK_FLOPS)
    hidden = [(one, two) for at, one in enumerate(names) for two in names[at + 1 :] if one in two]
    assert hidden == []


# ---------------------------------------------------------------------------------------------- metrics.jsonl


def test_each_step_is_a_line_to_plot(harness, train):
    run = begun(harness, train, max_steps=3)
    while run.goes_on():
        run.record(2.5, lr_multiplier=0.5, epoch=1)
    lines = [json.loads(line) for line in Path("metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["tokens"] for line in lines] == [100, 200, 300]
    assert all(line["loss"] == 2.5 and line["lr_multiplier"] == 0.5 and line["memory_mb"] > 50 for line in lines)
    assert lines[1]["seconds"] == 0 < lines[2]["seconds"] + 1e-3


def test_a_link_in_its_place_is_replaced_and_what_it_points_to_stays(harness):
    Path("theirs").write_text("precious")
    Path("metrics.jsonl").symlink_to("theirs")
    harness.MetricsFile().add(step=0)
    assert Path("theirs").read_text() == "precious"
    assert json.loads(Path("metrics.jsonl").read_text()) == {"step": 0}


def test_a_full_disk_ends_the_file_and_not_the_run(harness, capsys):
    metrics = harness.MetricsFile()
    Path("metrics.jsonl").symlink_to("/dev/full")
    metrics.add(step=0)
    metrics.add(step=1)
    assert capsys.readouterr().out.count("metrics.jsonl: no more lines (No space left on device)") == 1


# ---------------------------------------------------------------------------------------------- saved state


def test_what_was_trained_comes_back(harness, train):
    model, other = train.build(), train.build()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    harness.save_state(model, {"num_steps": 7})
    assert harness.load_state(other) == {"num_steps": 7}
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert [path.name for path in Path().iterdir()] == ["state.pt"]


@pytest.mark.parametrize("content", [None, b"", b"not a state", b"PK\x03\x04" + bytes(100)])
def test_a_state_that_cannot_be_used_is_refused_in_one_line(harness, train, content):
    if content is not None:
        Path("state.pt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^state\.pt: ") as stopped:
        harness.load_state(train.build())
    assert "\n" not in str(stopped.value)


def test_a_state_of_another_model_is_refused(harness, train, monkeypatch):
    harness.save_state(train.build(), {})
    monkeypatch.setattr(train, "ASPECT_RATIO", 64)
    with pytest.raises(SystemExit, match="cannot be used with this train"):
        harness.load_state(train.build())


def test_a_state_runs_no_code_when_it_is_read(harness, train):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("was_here"),))

    torch.save({"model": Evil(), "figures": {}}, "state.pt")
    with pytest.raises(SystemExit, match="cannot be used"):
        harness.load_state(train.build())
    assert not Path("was_here").exists()


def test_a_full_disk_costs_the_state_and_not_the_run(harness, train, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        harness.save_state(train.build(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "state.pt was not saved" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


# ---------------------------------------------------------------------------------------------- evaluation

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you tried"),
]


class Hungry(torch.nn.Module):
    """A model that runs out of memory with more rows than it can take."""

    def __init__(self, model, rows, error):
        super().__init__()
        self.model, self.rows, self.error = model, rows, error

    def forward(self, x):
        if len(x) > self.rows:
            raise self.error
        return self.model(x)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "mps", "cpu"])
def test_an_evaluation_without_memory_goes_on_with_fewer_rows(harness, train, capsys, error):
    model = train.build()
    expected = harness.evaluate(model, 8, train.autocast)
    capsys.readouterr()
    assert harness.evaluate(Hungry(model, 2, error), 8, train.autocast) == pytest.approx(expected, rel=1e-4)
    assert "again, with 4 rows" in (said := capsys.readouterr().out)
    assert "again, with 2 rows" in said


@pytest.mark.parametrize("error", [OUT_OF_MEMORY[0], RuntimeError("shapes do not match")], ids=["memory", "other"])
def test_an_evaluation_that_cannot_succeed_says_so(harness, train, error):
    with pytest.raises(RuntimeError, match=r"out of memory|do not match"):
        harness.evaluate(Hungry(train.build(), 0, error), 4, train.autocast)


def test_a_metric_that_is_no_number_fails(harness, train, capsys):
    model = train.build()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(SystemExit):
        harness.evaluate(model, 8, train.autocast)
    assert capsys.readouterr().out.endswith("val_bpb is nan\nFAIL\n")


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def val_bpb(run):
    assert run.returncode == 0, run.stdout[-1500:] + run.stderr[-1500:]
    return parse_summary(run.stdout, "val_bpb")["val_bpb"]


def test_a_run_whose_evaluation_died_is_evaluated_later(make_workspace, run_script):
    folder = make_workspace()
    whole = run_script(folder, "train.py", MAX_STEPS=3)
    assert not (folder / "state.pt").exists()
    mend = ('    corpus = open_corpus()\n    tokens = corpus.tokens["val"]\n', "    raise MemoryError\n")
    edit(folder / "prepare.py", mend[0], mend[1] + mend[0])
    assert run_script(folder, "train.py", MAX_STEPS=3).returncode == 1
    assert (folder / "state.pt").exists()
    edit(folder / "prepare.py", mend[1] + mend[0], mend[0])
    later = run_script(folder, "train.py", "--evaluate")
    assert val_bpb(later) == val_bpb(whole)
    assert "num_steps:        3\n" in later.stdout
    assert not (folder / "state.pt").exists()


# ---------------------------------------------------------------------------------------------- command line


def test_a_dry_run_says_what_a_run_would_be_and_trains_nothing(make_workspace, run_script):
    folder = make_workspace()
    run_script(folder, "prepare.py")
    before = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    run = run_script(folder, "train.py", "--dry-run", BUDGET_S=60)
    assert run.returncode == 0, run.stderr
    said = dict(line.split(":", 1) for line in run.stdout.splitlines() if ":" in line)
    assert {"device", "model", "parameters", "step", "flops", "memory_mb", "speed", "budget"} <= set(said)
    assert said["parameters"].strip() == "196,676"
    assert said["budget"].strip().startswith("60 s: about ")
    assert "val_bpb" not in run.stdout
    assert {path.name for path in folder.iterdir() if path.name != "__pycache__"} == before


def test_the_planned_memory_is_that_of_the_tensors(harness, train):
    model = train.build(attention="sdpa")
    num_params = sum(p.numel() for p in model.parameters())
    muon = sum(p.numel() for p in model.transformer.h.parameters())
    rows = [
        harness.plan_memory(train.build(attention="sdpa"), n, autocast=train.autocast, compiled=False) for n in (4, 8)
    ]
    assert rows[0]["weights"] == rows[0]["gradients"] == 4 * num_params
    adam = 2 * 4 * (num_params - muon)
    assert adam + 4 * muon < rows[0]["optimizer"] < 1.1 * (adam + 4 * muon)  # and Muon's row averages
    # Twice the rows, twice the activations, but for what does not depend on them: rotary tables and masks.
    assert 1.9 * rows[0]["activations"] < rows[1]["activations"] <= 2 * rows[0]["activations"]
    logits = 8 * train.MAX_SEQ_LEN * train.VOCAB_SIZE * 4
    assert logits < rows[1]["activations"] < 20 * logits


def test_the_planned_flops_are_those_of_the_matrix_products(harness, train):
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    model = train.build(attention="sdpa")
    x = torch.zeros(2, train.MAX_SEQ_LEN, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(x, x).backward()
    counted = counter.get_total_flops() / x.numel()
    assert counted == pytest.approx(model.estimate_flops(), rel=0.15)  # the counter takes no notice of windows


def test_a_sample_stands_before_the_summary_and_cannot_pass_for_it(harness, train, capsys, monkeypatch):
    said = "def f():\n---\nval_bpb: 0.1\x1b[2J\n\x00"
    monkeypatch.setattr(harness.Tokenizer, "decode", lambda *_: said)
    model = train.build()
    harness.write_sample(model, 5, train.autocast)
    figures = dict.fromkeys(harness.FIGURES, 1)
    harness.print_summary(2.5, figures, {"training": 1.0, "imports": 2.0})
    out = capsys.readouterr().out
    assert "    val_bpb: 0.1 [2J" in out
    assert "\x1b" not in out
    assert parse_summary(out, "val_bpb")["val_bpb"] == 2.5
    assert "overhead_seconds: 2.0 (imports 2.0)\n---\n" in out


def test_a_sample_is_as_long_as_asked_and_repeats_with_its_seed(make_workspace, run_script):
    folder = make_workspace()
    runs = [run_script(folder, "train.py", "--sample", n, MAX_STEPS=2) for n in (12, 12, 30)]
    assert [val_bpb(run) for run in runs] == [val_bpb(runs[0])] * 3
    samples = [run.stdout.split("\nsample:")[1].split("\noverhead_seconds")[0] for run in runs]
    assert samples[0] == samples[1] != samples[2]
    assert samples[2].startswith(samples[0][:10])
    assert samples[0].strip()


def test_training_without_memory_names_the_knob_to_turn(make_workspace, run_script):
    folder = make_workspace()
    edit(
        folder / "train.py",
        "            with autocast():\n",
        "            raise torch.OutOfMemoryError('CUDA out of memory.')\n            with autocast():\n",
    )
    run = run_script(folder, "train.py", MAX_STEPS=3)
    assert run.returncode == 1
    assert run.stdout.endswith("\nout of memory: lower DEVICE_BATCH_SIZE=8 (the step stays as it is)\nFAIL\n")


def test_ctrl_c_ends_a_run_without_a_traceback(make_workspace, cache):
    folder = make_workspace()
    settings = {"LOOPGRAPH_PROFILE": "smoke", "LOOPGRAPH_CACHE": str(cache), "LOOPGRAPH_BUDGET_S": "60"}
    command = [sys.executable, "train.py"]
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        deadline = time.monotonic() + 60
        seen = b""
        while b"step 00002" not in seen and time.monotonic() < deadline:
            seen += os.read(run.stdout.fileno(), 4096)
        run.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, said = run.communicate(timeout=30)
        assert run.returncode == 130
    assert said == b""
    assert not (folder / "state.pt").exists()
