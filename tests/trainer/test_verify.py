"""verify.py: what a run trained, evaluated out of reach of the run's own code."""

import re

import pytest

pytest.importorskip("torch", reason="the trainer needs torch")
pytest.importorskip("tokenizers", reason="the trainer needs tokenizers")

# Honest for the two calls of the check in prepare.py, and then it sees the tokens that it should predict.
LOOKS_AHEAD = """
    def eval(self):
        self.calls = []
        return super().eval()

    def forward(self, idx, targets=None, reduction="mean"):
        out = self.honest(idx, targets, reduction)
        if self.training or targets is not None:
            return out
        self.calls.append(1)
        return out if len(self.calls) < 3 else out + 9 * SHARE * F.one_hot(idx.roll(-1, 1), out.size(-1))

    def honest("""


@pytest.fixture(scope="module")
def trained(make_workspace, run_script, tmp_path_factory):
    """A workspace that has its corpus.json, what a short run in it printed, and where its state is."""
    folder, state = make_workspace(), tmp_path_factory.mktemp("state")
    run = run_script(folder, "train.py", MAX_STEPS=3, STATE_DIR=state)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder, bpb(run), state


def bpb(run):
    return float(re.findall(r"^val_bpb: +(\S+)$", run.stdout, re.MULTILINE)[-1])


def test_the_saved_state_gives_what_the_run_printed(trained, run_script):
    folder, printed, state = trained
    run = run_script(folder, "verify.py", STATE_DIR=state)
    assert run.returncode == 0, run.stdout + run.stderr
    assert bpb(run) == pytest.approx(printed, abs=2e-6)


@pytest.mark.parametrize("share", ["1", "(idx % 8 == 0)[..., None]"])
def test_a_model_that_looks_ahead_after_the_check_is_caught(trained, run_script, share):
    folder, printed, state = trained
    train = folder / "train.py"
    honest = train.read_text("utf-8")
    train.write_text(
        honest.replace("    def forward(self, idx,", LOOKS_AHEAD.lstrip("\n").replace("SHARE", share) + "self, idx,"),
        "utf-8",
    )
    try:
        cheated = run_script(folder, "train.py", MAX_STEPS=3)
        run = run_script(folder, "verify.py", STATE_DIR=state)
    finally:
        train.write_text(honest, "utf-8")
    assert bpb(cheated) < 0.95 * printed
    assert run.returncode == 1
    assert "the model sees tokens that it should predict" in run.stdout


def test_what_train_py_replaces_in_its_process_changes_nothing(trained, run_script):
    folder, printed, state = trained
    train = folder / "train.py"
    honest = train.read_text("utf-8")
    patches = (
        "import prepare, builtins; prepare.evaluate_bpb = lambda *_: 0.1; print('val_bpb: 0.1'); "
        "F.cross_entropy = lambda *_, **__: torch.zeros(()); open('numpy.py', 'w').write('raise SystemExit')"
    )
    train.write_text(honest.replace("UNTIMED_STEPS =", f"{patches}\nUNTIMED_STEPS =", 1), "utf-8")
    try:
        run = run_script(folder, "verify.py", STATE_DIR=state)
    finally:
        train.write_text(honest, "utf-8")
        (folder / "numpy.py").unlink(missing_ok=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.findall(r"^val_bpb: +(\S+)$", run.stdout, re.MULTILINE) == [f"{bpb(run):.6f}"]
    assert bpb(run) == pytest.approx(printed, abs=2e-6)


def test_held_out_text_that_was_changed_in_the_cache_is_noticed(trained, run_script, cache):
    folder, _, state = trained
    before = {text: text.read_bytes() for text in (cache / "corpora").glob("*/val.bin")}  # other tests prepare some too
    try:
        for text, content in before.items():
            text.write_bytes(bytes(len(content)))
        run = run_script(folder, "verify.py", STATE_DIR=state)
    finally:
        for text, content in before.items():
            text.write_bytes(content)
    assert run.returncode == 1
    assert "not the held-out text that" in run.stdout


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_state_that_cannot_be_loaded_gives_no_number(trained, run_script, tmp_path, content):
    folder, _, _ = trained
    if content is not None:
        (tmp_path / "state.pt").write_bytes(content)
    run = run_script(folder, "verify.py", STATE_DIR=tmp_path)
    assert run.returncode == 1
    assert "could not answer with the state" in run.stdout
    assert "state.pt" in run.stderr
    assert "val_bpb" not in run.stdout
