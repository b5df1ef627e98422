"""Whole runs: what they print, how they end, what a seed fixes."""

import ast
import gc
import json
import re
import shutil
import sysconfig
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")
pytest.importorskip("tokenizers", reason="the trainer needs tokenizers")

SUMMARY = [
    ("val_bpb", r"\d+\.\d{6}"),
    ("training_seconds", r"\d+\.\d"),
    ("total_seconds", r"\d+\.\d"),
    ("peak_vram_mb", r"\d+\.\d"),
    ("mfu_percent", r"\d+\.\d{2}"),
    ("total_tokens_M", r"\d+\.\d"),
    ("num_steps", r"\d+"),
    ("num_params_M", r"\d+\.\d"),
    ("depth", r"\d+"),
]
PROGRESS = re.compile(
    r"step (\d{5}) \((\d+\.\d)%\) \| loss: \d+\.\d{6} \| lrm: \d\.\d\d \| dt: \d+ms \| tok/sec: [\d,]+ \| "
    r"mfu: \d+\.\d% \| epoch: \d+ \| remaining: \d+s +"
)
KNOBS = [
    *("ASPECT_RATIO", "HEAD_DIM", "WINDOW_PATTERN", "DEPTH", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE"),
    *("EMBEDDING_LR", "UNEMBEDDING_LR", "MATRIX_LR", "SCALAR_LR", "WEIGHT_DECAY", "ADAM_BETAS"),
    *("WARMUP_RATIO", "WARMDOWN_RATIO", "FINAL_LR_FRAC"),
]


def summary(run):
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    lines = run.stdout.split("\n---\n")[1].splitlines()
    assert [line.split(":")[0] for line in lines] == [name for name, _ in SUMMARY]
    for line, (name, shape) in zip(lines, SUMMARY, strict=True):
        assert re.fullmatch(rf"{name + ':':<17} {shape}", line), line
    return {name: float(line.split()[1]) for line, (name, _) in zip(lines, SUMMARY, strict=True)}


def edit(folder, old, new):
    path = folder / "train.py"
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")


def test_a_run_learns_and_prints_progress_and_summary(make_workspace, run_script):
    folder = make_workspace()
    run = run_script(folder, "train.py", BUDGET_S=2)
    result = summary(run)
    assert result["val_bpb"] < 3.6  # a uniform guess over the vocabulary costs 3.9
    assert 2 <= result["training_seconds"] < result["total_seconds"] < 40
    assert result["peak_vram_mb"] > 100
    assert result["depth"] == 2
    progress = [PROGRESS.fullmatch(part) for part in run.stdout.split("\noverhead_seconds")[0].split("\r")[1:]]
    assert all(progress)
    assert [int(match[1]) for match in progress] == [*range(int(result["num_steps"]))]
    assert 80 < float(progress[-1][2]) <= 100
    assert (folder / "corpus.json").exists()


def test_a_seed_fixes_a_run_and_another_seed_changes_it(train, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def trained(seed):
        monkeypatch.setattr(train, "SEED", seed)
        run = train.harness.Run(max_steps=5, quiet=True)
        model = train.train(run)
        gc.unfreeze()
        gc.enable()
        assert run.step == 5
        return train.harness.evaluate(model, 8, train.autocast)

    same, again, other = (trained(seed) for seed in (7, 7, 8))
    assert same == again
    assert same != other


# What a test shrinks of a profile, as an agent would: its context and vocabulary stay.
SMALL = {
    "DEPTH": 2,
    "ASPECT_RATIO": 32,
    "HEAD_DIM": 32,
    "TOTAL_BATCH_SIZE": "2 * MAX_SEQ_LEN",
    "DEVICE_BATCH_SIZE": 1,
    "EVAL_BATCH_SIZE": 1,
}


def shrink(folder, **changes):
    path = folder / "train.py"
    text = path.read_text("utf-8")
    for name, value in (SMALL | changes).items():
        text, found = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {value}  ", text)
        assert found == 1
    path.write_text(text, "utf-8")


@pytest.fixture(scope="module")
def texts_of_the_library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for package in ("asyncio", "email", "json", "unittest", "xml"):
        shutil.copytree(Path(sysconfig.get_path("stdlib"), package), folder / package)
    return folder


@pytest.mark.parametrize("profile", ["cuda", "mps", "cpu"])
def test_ten_steps_of_each_profile_learn_on_a_cpu(
    make_workspace, run_script, texts_of_the_library, monkeypatch, profile
):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # the next test compiles
    folder = make_workspace()
    shrink(folder)
    prepared = run_script(folder, "prepare.py", "--corpus", texts_of_the_library, PROFILE=profile)
    assert prepared.returncode == 0, prepared.stderr
    run = run_script(folder, "train.py", PROFILE=profile, MAX_STEPS=10)
    result = summary(run)
    assert result["num_steps"] == 10
    assert result["val_bpb"] < 6
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.3
    assert f"profile {profile}" in run.stdout


@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for the CPU takes g++")
def test_a_compiled_run_gives_what_an_eager_one_gives_and_leaves_its_code_for_the_next(
    make_workspace, run_script, texts_of_the_library, tmp_path
):
    folder = make_workspace()
    shrink(folder, DEPTH=1, TOTAL_BATCH_SIZE="MAX_SEQ_LEN")
    edit(folder, "COMPILE = ON_CUDA or (", "COMPILE = os.environ['EAGER'] == '0' and (")
    kept = tmp_path / "compiled"

    def run(eager):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EAGER", str(eager))
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kept))
            ended = run_script(folder, "train.py", PROFILE="cpu", MAX_STEPS=2)
        first_line = (folder / "metrics.jsonl").read_text().splitlines()[0]
        return json.loads(first_line)["loss"], summary(ended)["val_bpb"]

    assert run_script(folder, "prepare.py", "--corpus", texts_of_the_library, PROFILE="cpu").returncode == 0
    eager, first = run(1), run(0)
    libraries = sorted(kept.rglob("*.so"))
    assert first[0] == pytest.approx(eager[0], rel=1e-4)
    assert first[1] == pytest.approx(eager[1], rel=0.05)  # Adam's first steps go by signs: rounding shows
    assert run(0) == pytest.approx(first, rel=1e-4)
    assert libraries
    assert sorted(kept.rglob("*.so")) == libraries


def test_a_loss_that_is_no_number_fails_at_once(make_workspace, run_script):
    folder = make_workspace()
    edit(folder, "        softcap = 15\n", "        softcap = float('nan')\n")
    run = run_script(folder, "train.py", MAX_STEPS=3)
    assert run.returncode == 1
    assert run.stdout.endswith("\nthe loss is nan at step 0\nFAIL\n")
    assert "---" not in run.stdout


def test_a_loss_above_a_hundred_fails_at_once(make_workspace, run_script):
    folder = make_workspace()
    edit(folder, "            return logits\n", "            return logits\n        logits = logits * 1e6\n")
    run = run_script(folder, "train.py", MAX_STEPS=30)
    assert run.returncode == 1
    assert re.search(r"\nthe loss is \d+\.\d+ at step \d+\nFAIL\n$", run.stdout)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("BUDGET_S", "five", "seconds above 0"),
        ("BUDGET_S", "-1", "seconds above 0"),
        ("BUDGET_S", "nan", "seconds above 0"),
        ("SEED", "1.5", "a whole number from 0"),
        ("MAX_STEPS", "0", "a whole number from 1"),
        ("PROFILE", "tpu", "cuda, mps, cpu, smoke"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(trainer_folder, monkeypatch, capsys, name, value, allowed):
    source = (trainer_folder / "prepare.py").read_text("utf-8")
    top = compile(source[: source.index("# Constants:")], "prepare.py", "exec")  # a subprocess each is slow
    monkeypatch.setenv(f"LOOPGRAPH_{name}", value)
    with pytest.raises(SystemExit) as stopped:
        exec(top, {"__name__": "prepare"})
    assert stopped.value.code == 2
    message = rf"prepare\.py: LOOPGRAPH_{name}='{value}' [^\n]*{allowed}[^\n]*\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_a_bad_setting_ends_a_run_with_exit_code_2_and_no_traceback(make_workspace, run_script):
    run = run_script(make_workspace(), "train.py", BUDGET_S="soon")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert "LOOPGRAPH_BUDGET_S='soon'" in run.stderr


def test_help_explains_the_options(make_workspace, run_script):
    run = run_script(make_workspace(), "prepare.py", "--help")
    assert run.returncode == 0
    assert "--corpus" in run.stdout
    assert "--force" in run.stdout


def test_every_knob_is_assigned_once_at_module_level(trainer_folder):
    tree = ast.parse((trainer_folder / "train.py").read_text("utf-8"))
    names = [
        t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    ]
    assert sorted(name for name in names if name in KNOBS) == sorted(KNOBS)


def test_importing_the_trainer_prints_nothing_and_prepares_nothing(make_workspace, run_script, tmp_path):
    run = run_script(make_workspace(), "-c", "import train", CACHE=tmp_path / "cache")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("profile", ["cuda", "mps", "cpu", "smoke"])
def test_the_batch_can_be_halved_down_to_one_row(trainer_folder, train, monkeypatch, profile):
    def on(**values):
        return values[profile]

    prepare_text = (trainer_folder / "prepare.py").read_text("utf-8")
    length = eval(re.search(r"^MAX_SEQ_LEN = (on\(.*?\))", prepare_text, re.MULTILINE)[1], {"on": on})
    knobs = (trainer_folder / "train.py").read_text("utf-8")
    batch, rows = (
        eval(re.search(rf"^{name} = (on\(.*?\))  #", knobs, re.MULTILINE)[1], {"on": on})
        for name in ("TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE")
    )
    monkeypatch.setattr(train, "MAX_SEQ_LEN", length)
    monkeypatch.setattr(train, "DEVICE_BATCH_SIZE", rows)
    while batch >= length:
        monkeypatch.setattr(train, "TOTAL_BATCH_SIZE", batch)
        got, passes = train.split_batch()
        assert got * passes * length == batch
        assert got <= rows
        batch //= 2


def test_a_batch_that_does_not_divide_names_both_knobs(train, monkeypatch):
    monkeypatch.setattr(train, "TOTAL_BATCH_SIZE", 3 * train.MAX_SEQ_LEN)
    monkeypatch.setattr(train, "DEVICE_BATCH_SIZE", 2)
    with pytest.raises(SystemExit, match=r"TOTAL_BATCH_SIZE=192 .* DEVICE_BATCH_SIZE=2"):
        train.split_batch()
