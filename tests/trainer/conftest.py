"""The trainer as its users have it: a copy in a folder of its own, on the smoke profile."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[2] / "trainer"


@pytest.fixture(scope="session")
def trainer_folder():
    return TRAINER


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory):
    """Copies the trainer and returns the folder."""

    def make():
        folder = tmp_path_factory.mktemp("workspace")
        for name in ("climbmix.py", "prepare.py", "harness.py", "verify.py", "train.py"):
            shutil.copy(TRAINER / name, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for the session, so that the smoke corpus is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_script(cache):
    """Runs `python script args` in a workspace; settings are environment variables without their prefix."""

    def run(folder, *argv, preexec_fn=None, **settings):
        settings = {"PROFILE": "smoke", "CACHE": cache} | settings
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPGRAPH_", "COVERAGE_"))}
        threads = {"OMP_NUM_THREADS": "1"}  # two busy runs of two threads each would wait for one another
        env = clean | threads | {f"LOOPGRAPH_{name}": str(value) for name, value in settings.items()}
        command = [sys.executable, *map(str, argv)]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, timeout=390, check=False, preexec_fn=preexec_fn
        )
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()  # text mode would lose each \r
        return done

    return run


@pytest.fixture(scope="session")
def train(make_workspace, cache):
    """The module train.py of a workspace on the smoke profile, imported; `train.prepare` is beside it."""
    pytest.importorskip("torch", reason="the trainer needs torch")
    pytest.importorskip("tokenizers", reason="the trainer needs tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LOOPGRAPH_")]:
            patch.delenv(name)
        patch.setenv("LOOPGRAPH_PROFILE", "smoke")
        patch.setenv("LOOPGRAPH_CACHE", str(cache))
        patch.syspath_prepend(make_workspace())
        import prepare  # noqa: PLC0415 - it reads the environment when imported
        import train as module  # noqa: PLC0415

        patch.setattr(module, "prepare", prepare, raising=False)
        threads = module.torch.get_num_threads()
        module.torch.set_num_threads(1)  # as in run_script
        yield module
        module.torch.set_num_threads(threads)
    del sys.modules["prepare"], sys.modules["harness"], sys.modules["train"]


@pytest.fixture(scope="session")
def prepare(train):
    return train.prepare


@pytest.fixture
def fresh(prepare, tmp_path, monkeypatch):
    """prepare.py with an empty cache and no corpus.json; returns a function that runs its command line."""
    monkeypatch.setattr(prepare, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(prepare, "CORPORA", tmp_path / "cache" / "corpora")
    monkeypatch.setattr(prepare, "MANIFEST", tmp_path / "corpus.json")
    prepare.open_corpus.cache_clear()

    def main(*argv):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, argv)])
        prepare.main()
        prepare.open_corpus.cache_clear()
        return prepare.open_corpus()

    yield main
    prepare.open_corpus.cache_clear()


@pytest.fixture
def texts(tmp_path):
    """A folder of 60 small documents, in several scripts, some with traps for counting bytes."""
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for number in range(60):
        words = f"Zeile {number}: größer, 漢字かな, 🙂🚀, e\u0301, \ufeffBOM, \x00, <|bos|> <|endoftext|>\r\n"
        body = words * (3 + number % 5) + "".join(chr(0x3A9 + number * 37 + step * 131) for step in range(200))
        target = folder / ("deep" if number % 2 else "") / f"{number:02d}.txt"
        target.write_bytes(body.encode())
    return folder
