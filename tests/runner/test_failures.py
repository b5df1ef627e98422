"""Whose fault a failed run is: the logs are as programs print them."""

import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api.recovery import missing_in_copy
from loopgraph_mcp.runner.failures import fault_of_surroundings


def fault(log: str, *, exit_code: int = 1, in_folder: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> str:
    return fault_of_surroundings(
        exit_code,
        textwrap.dedent(log),
        absent=lambda name: name if name in in_folder else None,
        is_own_module=lambda name: name in own,
    )


def raised(last: str, *, file: str = "train.py") -> str:
    return f'Traceback (most recent call last):\n  File "{file}", line 3, in <module>\n    go()\n{last}\n'


SURROUNDINGS = {
    "OSError: [Errno 28] No space left on device: 'state.pt'": "the disk is full",
    "RuntimeError: [enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0": "the disk is full",
    "RuntimeError: unable to write to file </torch_12>: No space left on device (28)": "the disk is full",
    "sqlite3.OperationalError: database or disk is full": "the disk is full",
    "safetensors_rust.SafetensorError: IoError(Os { code: 28, kind: StorageFull })": "the disk is full",
    "OSError: [Errno 122] Disk quota exceeded": "quota",
    "OSError: [Errno 5] Input/output error": "the disk failed",
    "OSError: [Errno 116] Stale file handle": "the disk failed",
    "OSError: [Errno 30] Read-only file system: 'out'": "read-only",
    "socket.gaierror: [Errno -3] Temporary failure in name resolution": "the network failed",
    "ConnectionRefusedError: [Errno 111] Connection refused": "the network failed",
    "ConnectionResetError: [Errno 104] Connection reset by peer": "the network failed",
    "TimeoutError: [Errno 110] Connection timed out": "the network failed",
    "TimeoutError: The read operation timed out": "the network failed",
    "urllib.error.URLError: <urlopen error [Errno -2] Name or service not known>": "the network failed",
    "ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed": "the network failed",
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='hf.co'): Max retries": "the network failed",
    "httpx.ConnectError: All connection attempts failed": "the network failed",
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files": "the network failed",
    "ValueError: Connection error, and we cannot find the requested files in the cached path.": "the network failed",
    "urllib.error.HTTPError: HTTP Error 503: Service Unavailable": "a server refused",
    "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: https://hf.co": "a server refused",
    "httpx.HTTPStatusError: Server error '502 Bad Gateway' for url 'https://x.org'": "a server refused",
    "ModuleNotFoundError: No module named 'flash_attn'": "`flash_attn` is not installed",
    "importlib.metadata.PackageNotFoundError: No package metadata was found for triton": "`triton` is not",
    "ImportError: Missing optional dependency 'openpyxl'. Use pip or conda to install it.": "is not installed",
    "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory": "a shared library",
    "OSError: libsox.so: cannot open shared object file: No such file or directory": "a shared library",
    "ImportError: /x/flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi": "a shared library",
    "RuntimeError: Found no NVIDIA driver on your system.": "the GPU",
    "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable": "the GPU",
    "torch.AcceleratorError: CUDA error: no CUDA-capable device is detected": "the GPU",
    "AssertionError: Torch not compiled with CUDA enabled": "the GPU",
    "OSError: [Errno 98] Address already in use": "a port is in use",
}
PROGRAM = (
    "ValueError: No space left on device",
    "RuntimeError: shape '[4, 8]' is invalid for input of size 31",
    "KeyError: 'Connection refused'",
    "AssertionError: 503",
    "ImportError: cannot import name 'Muon' from 'optim' (/x/optim.py)",
    "ImportError: attempted relative import with no known parent package",
    "ModuleNotFoundError: No module named 'model.layers'; 'model' is not a package",
    "FileNotFoundError: [Errno 2] No such file or directory: 'typo.bin'",
    "urllib.error.HTTPError: HTTP Error 404: Not Found",
    "RuntimeError: CUDA error: device-side assert triggered",
    "TimeoutError: a step took longer than 3 s",
    "OSError: [Errno 24] Too many open files",
    "torch.distributed.DistBackendError: NCCL error, connection reset by peer",
)


@pytest.mark.parametrize("last", SURROUNDINGS)
def test_what_failed_around_the_program_is_named(last: str) -> None:
    told = fault(raised(last))
    assert SURROUNDINGS[last] in told
    assert told.endswith("then run it again")


@pytest.mark.parametrize("last", PROGRAM)
def test_what_the_program_did_stays_a_crash(last: str) -> None:
    assert fault(raised(last)) == ""


def test_the_last_exception_decides_and_no_word_before_it() -> None:
    full = raised("OSError: [Errno 28] No space left on device")
    chained = "\nDuring handling of the above exception, another exception occurred:\n\n"
    assert fault(full + chained + raised("ValueError: bad shape")) == ""
    assert "disk is full" in fault(raised("ValueError: bad shape") + chained + full)
    assert fault("WARNING: No space left on device\n" + raised("ValueError: bad shape")) == ""
    assert fault(full + "".join(f"step {n} loss 2\n" for n in range(20)) + "Segmentation fault\n", exit_code=139) == ""
    assert fault(full + "ERROR: the loss exploded, giving up\n") == ""


def test_what_is_printed_after_the_exception_hides_it_not() -> None:
    full = raised("OSError: [Errno 28] No space left on device")
    assert "disk is full" in fault(full + "wandb: You can sync this run later\nwandb: Find logs at: ./wandb\n")
    assert fault(raised("ValueError: x") + "Exception ignored in: <_io.TextIOWrapper>\n" + full) == ""
    assert fault("--- Logging error ---\n" + full + "\nloss is 9, stopping: invalid\n") == ""


def test_a_launcher_is_looked_through_to_what_it_launched() -> None:
    launcher = (
        raised("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ", file="torchrun")
        + "=====\ntrain.py FAILED\n-----\nRoot Cause (first observed failure):\n  exitcode  : 1 (pid: 12)\n=====\n"
    )
    ranks = "".join(
        f"[rank{rank}]: {line}\n"
        for line in raised("OSError: [Errno 28] No space left on device").splitlines()
        for rank in (0, 1)
    )
    assert "disk is full" in fault(ranks + launcher)
    assert fault(raised("ValueError: bad") + launcher) == ""


def test_a_rank_that_lost_its_peer_is_not_the_network() -> None:
    lost = "RuntimeError: [/gloo/transport/tcp/pair.cc:534] Connection reset by peer [127.0.0.1]:2811"
    log = "".join(f"[rank0]: {line}\n" for line in raised("ValueError: bad").splitlines())
    log += "".join(f"[rank1]: {line}\n" for line in raised(lost).splitlines())
    assert fault(log) == ""
    assert fault(raised(lost)) == ""
    dead_worker = "ConnectionResetError: [Errno 104] Connection reset by peer"
    assert fault(raised(dead_worker, file="/usr/lib/python3.11/multiprocessing/connection.py")) == ""


def test_an_exception_group_and_a_worker_are_read() -> None:
    group = """\
          + Exception Group Traceback (most recent call last):
          |   File "train.py", line 1, in <module>
          | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
          +-+---------------- 1 ----------------
            | Traceback (most recent call last):
            |   File "train.py", line 9, in load
            | ConnectionRefusedError: [Errno 111] Connection refused
            +------------------------------------
        """
    assert "the network failed" in fault(group)
    worker = raised("OSError: Caught OSError in DataLoader worker process 0.") + (
        'Original Traceback (most recent call last):\n  File "w.py", line 3\nOSError: [Errno 5] Input/output error\n'
    )
    assert "the disk failed" in fault(worker)


OTHER_PROGRAMS = {
    "sh: 1: tac2: not found": ("could not be started", 127),
    "./run.sh: line 3: nvcc: command not found": ("could not be started", 1),
    "run.sh: 3: pyhton: not found": ("could not be started", 127),
    "/bin/sh: 1: ./main: Permission denied": ("could not be started", 126),
    "/usr/bin/python3: No module named torch.distributed.run": ("`torch.distributed.run` is not installed", 1),
    "python3: can't open file '/x/main.py': [Errno 2] No such file or directory": ("could not be started", 2),
    "./sim: error while loading shared libraries: libblas.so.3: cannot open shared object": (
        "a shared library",
        127,
    ),
    "cp: error writing 'out': No space left on device": ("the disk is full", 1),
    "panic: open out: no space left on device\n\ngoroutine 1 [running]:\nmain.main()": ("the disk is full", 2),
    "curl: (6) Could not resolve host: example.org": ("the network failed", 6),
    "curl: (22) The requested URL returned error: 503": ("a server refused", 22),
    "fatal: unable to access 'https://x.org/': Could not resolve host: x.org": ("the network failed", 128),
    "Error in library(lme4) : there is no package called ‘lme4’": ("is not installed", 1),
    "ERROR: No matching distribution found for torch==9.9": ("is not installed", 1),
    "make: nvcc: No such file or directory\n/bin/sh: 1: nvcc: not found\nmake: *** [Makefile:2: all] Error 127": (
        "could not be started",
        2,
    ),
}


@pytest.mark.parametrize("log", OTHER_PROGRAMS)
def test_other_programs_are_judged_by_their_last_lines(log: str) -> None:
    told, exit_code = OTHER_PROGRAMS[log]
    assert told in fault(f"starting\n{log}\n", exit_code=exit_code)


@pytest.mark.parametrize(
    "log",
    [
        "main.c:3:10: fatal error: fastmath.h: No such file or directory\ncompilation terminated.",
        "warning: cache not written: No space left on device\nSegmentation fault (core dumped)",
        "error: mismatched types",
        "ValueError: No space left on device",
        "cat: typo.txt: No such file or directory",
        "Connection refused, trying again\nstep 12 loss 3.0",
    ],
)
def test_a_mistake_of_another_program_stays_a_crash(log: str) -> None:
    assert fault(log) == ""


def test_node_says_which_package_or_file_is_missing() -> None:
    frames = "\n    at Module._resolveFilename (node:internal/modules/cjs/loader:1143:15)\n\nNode.js v20.19.2\n"
    cannot = "node:internal/modules/loader:1146\n  throw err;\n\nError: Cannot find module '{}'\nRequire stack:\n- a.js"
    assert "`left-pad` is not installed" in fault(cannot.format("left-pad") + frames)
    assert fault(cannot.format("./typo") + frames) == ""
    assert "run's copy" in fault(cannot.format("./gen") + frames, in_folder=("./gen.js",))
    assert "disk is full" in fault("Error: ENOSPC: no space left on device, write" + frames)
    assert "the network failed" in fault("TypeError: fetch failed" + frames)
    assert fault("TypeError: x is not a function" + frames) == ""


def test_a_file_that_only_the_user_has_is_named_with_the_key_to_add() -> None:
    missing = raised("FileNotFoundError: [Errno 2] No such file or directory: 'data/a.bin'")
    told = fault(missing, in_folder=("data/a.bin",))
    assert "`data/a.bin` exists in your folder, not in the run's copy; add it to `dataset`" in told
    assert "`link`" in fault(missing.replace("data/a.bin", "../in/a.bin"), in_folder=("../in/a.bin",))
    own = raised("ModuleNotFoundError: No module named 'generated.ops'")
    assert "`generated/ops.py` exists" in fault(own, in_folder=("generated/ops.py",))
    assert fault(own, own=("generated",)) == ""
    assert "`gen.h` exists" in fault("a.c:1:10: fatal error: gen.h: No such file or directory", in_folder=("gen.h",))
    assert fault(raised("KeyError: 'data' not found"), in_folder=("data",)) == ""


def test_a_run_that_was_ended_from_outside_says_nothing_of_the_change() -> None:
    assert "SIGTERM" in fault("step 1\n", exit_code=-15)
    assert fault("step 1\n", exit_code=-11) == ""
    assert "could not be started" in fault("", exit_code=127)


def test_the_topmost_path_that_the_copy_lacks_is_found(tmp_path: Path) -> None:
    folder, code = tmp_path / "user" / "project", tmp_path / "run" / "code"
    for made in (folder / "data" / "deep", tmp_path / "user" / "input", code):
        made.mkdir(parents=True)
    for name in ("data/deep/a.bin", "kept.txt", "../input/b.csv"):
        (folder / name).write_text("")
    (code / "kept.txt").write_text("")
    assert missing_in_copy(folder, code, "data/deep/a.bin") == "data"
    assert missing_in_copy(folder, code, str(code / "data" / "deep")) == "data"
    assert missing_in_copy(folder, code, "../input/b.csv") == "../input"
    for name in ("kept.txt", "nowhere", "", "\0", "x" * 5_000, "/etc/passwd", "..", "."):
        assert missing_in_copy(folder, code, name) is None


@given(st.text(max_size=2_000), st.sampled_from([1, 2, 126, 127, -6, 0]))
def test_any_log_is_judged_without_an_error(log: str, exit_code: int) -> None:
    fault(log, exit_code=exit_code)
    fault(raised(log), exit_code=exit_code)


HOSTILE = ("Traceback (most recent call last):\n", "(pid=1", "'a/", "a: ", "HTTP 5", "\x1b[", "../", ": not found")


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_hostile_log_is_judged_in_linear_time(unit: str) -> None:
    log = unit * (2**16 // len(unit))
    began = time.process_time()
    fault(log)
    fault(raised(f"OSError: {log}"))
    assert time.process_time() - began < 3.0
