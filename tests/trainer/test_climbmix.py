"""Downloading climbmix from a hub on loopback that fails in every way a real one does, and training on it."""

import contextlib
import hashlib
import itertools
import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

np = pytest.importorskip("numpy", reason="the trainer needs numpy")
pytest.importorskip("httpx", reason="climbmix.py needs httpx")
pa = pytest.importorskip("pyarrow", reason="the shards are parquet")
pq = pytest.importorskip("pyarrow.parquet")

VAL = "shard_06542.parquet"
FIRST, SECOND = "shard_00000.parquet", "shard_00001.parquet"
HUB_PATH = "/datasets/karpathy/climbmix-400b-shuffle/resolve/main/"


class LoopbackHub(ThreadingHTTPServer):
    """Speaks the hub's protocol: a redirect with X-Linked-* headers, then the bytes from another host, with ranges.

    `faults[side, name]` holds, for each coming request, what goes wrong with it; past its end nothing does.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Request)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.files, self.faults, self.requests = {}, {}, []
        self.closing = threading.Event()

    def next_fault(self, side, name):
        waiting = self.faults.get((side, name), [])
        return waiting.pop(0) if waiting else {}

    def asked(self, side, name, header=None):
        """The requests for a file, or one header of each."""
        found = [headers for where, what, headers in self.requests if (where, what) == (side, name)]
        return [headers.get(header) for headers in found] if header else found

    def handle_error(self, request, client_address):
        """Clients that go away are part of these tests."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        hub, name = self.server, self.path.rpartition("/")[2]
        side = "hub" if self.path.startswith(HUB_PATH) else "cdn"
        hub.requests.append((side, name, dict(self.headers) | {"at": time.monotonic()}))
        fault = hub.next_fault(side, name)
        if "status" in fault:
            return self.answer(fault["status"], {"Content-Length": 4} | fault.get("headers", {}), b"oops")
        if "page" in fault:
            page = fault["page"]
            return self.answer(200, {"Content-Type": fault["type"], "Content-Length": len(page)}, page)
        if "hold" in fault:
            fault["hold"]()
        if (data := hub.files.get(name)) is None:
            return self.answer(404, {"Content-Length": 0})
        if side == "hub":
            linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": len(data)}
            target = f"http://localhost:{hub.server_port}/cdn/{name}"
            return self.answer(302, {"Location": target, "Content-Length": 0} | linked | fault.get("headers", {}))
        return self.send_file(data, fault)

    def send_file(self, data, fault):
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = fault.get("any_range") or self.headers.get("If-Range", etag) == etag
        start = int(asked[1]) if asked and fresh and not fault.get("no_range") else 0
        body = fault.get("body", data)[start:]
        headers = {"ETag": etag, "Content-Length": len(body), "Content-Type": "binary/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if start else 200, headers | fault.get("headers", {}), body[: fault.get("cut")])
        while fault.get("drip_every_s") and not self.server.closing.wait(fault["drip_every_s"]):
            self.wfile.write(fault.get("drip", b"x"))
        if "stall" in fault:
            self.server.closing.wait(60)
        if "then" in fault:
            fault["then"]()
        self.close_connection = "cut" in fault


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)


def make_shard(path, seed, rows=60, extra=()):
    """A parquet file of nonsense in several row groups; returns its texts."""
    words = [f"wort{number} größe" if number % 7 == 0 else f"word{number}" for number in range(200)]
    draw = random.Random(seed)
    texts = [f"{path.stem} {row}: " + " ".join(draw.choices(words, k=100)) for row in range(rows)] + list(extra)
    pq.write_table(pa.table({"text": texts, "row": range(len(texts))}), path, row_group_size=25, compression="none")
    return texts


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The upstream's files, name -> (bytes, texts); one training document is a validation document too."""
    folder = tmp_path_factory.mktemp("upstream")
    val = make_shard(folder / VAL, seed=1)
    texts = {VAL: val, FIRST: make_shard(folder / FIRST, 2, extra=val[:1]), SECOND: make_shard(folder / SECOND, 3)}
    return {name: ((folder / name).read_bytes(), found) for name, found in texts.items()}


@pytest.fixture
def hub(shards):
    server = LoopbackHub()
    server.files = {name: data for name, (data, _) in shards.items()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def climbmix(trainer_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(trainer_folder)
        import climbmix as module  # noqa: PLC0415 - it lies beside prepare.py, not on the path

        yield module
    sys.modules.pop("climbmix", None)


@pytest.fixture
def fetch(climbmix, hub, tmp_path):
    """Downloads VAL and FIRST in this process, impatiently; what differs from that is named."""

    def run(shards=1, show=lambda *_: None, **patience):
        patience = {"endpoint": hub.endpoint, "retry_wait_s": 0.01, "timeout_s": 5, "attempts": 3} | patience
        return climbmix.fetch(tmp_path / "climbmix", shards, hub=climbmix.Hub(**patience), show=show)

    run.folder = tmp_path / "climbmix"
    return run


def assert_whole(folder, hub, names=(VAL, FIRST)):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: hub.files[name] for name in names}


# What arrives


def test_the_validation_shard_and_the_first_training_shards_are_fetched_once(fetch, hub):
    told = []
    paths = fetch(2, show=lambda *numbers: told.append(numbers))
    assert [path.name for path in paths] == [VAL, FIRST, SECOND]
    assert_whole(fetch.folder, hub, [VAL, FIRST, SECOND])
    assert told[0] == (0, None)
    n_requests = len(hub.requests)
    assert fetch(2, endpoint="http://localhost:1") == paths  # nothing listens there
    assert len(hub.requests) == n_requests == 6


def test_a_cut_connection_is_resumed_with_the_bytes_that_are_missing(fetch, hub):
    hub.faults["cdn", FIRST] = [{"cut": 10_000}, {"cut": 4_000}]
    fetch()
    assert_whole(fetch.folder, hub)
    etag = f'"{hashlib.md5(hub.files[FIRST]).hexdigest()}"'
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-", "bytes=14000-"]
    assert hub.asked("cdn", FIRST, "If-Range") == [None, etag, etag]


def test_a_later_process_resumes_what_an_earlier_one_left(fetch, hub, climbmix):
    hub.faults["cdn", FIRST] = [{"cut": 10_000}]
    hub.faults["hub", FIRST] = [{}, {"status": 503}]
    with pytest.raises(climbmix.DownloadError, match="503"):
        fetch(attempts=1)
    assert (fetch.folder / f"{FIRST}.part").read_bytes() == hub.files[FIRST][:10_000]
    fetch()
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-"]


@pytest.mark.parametrize("answer", [{"no_range": True}, {"headers": {"ETag": None}}], ids=["no range", "no etag"])
def test_a_server_that_cannot_resume_is_read_from_the_start_again(fetch, hub, answer):
    hub.faults["cdn", FIRST] = [{"cut": 10_000} | answer, answer]
    hub.faults["hub", FIRST] = [{"headers": {"X-Linked-Etag": None}}] * 2  # else that would tell the version
    fetch()
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-" if "no_range" in answer else None]


def test_without_an_etag_the_sha256_tells_that_the_rest_is_of_the_same_file(fetch, hub):
    hub.faults["cdn", FIRST] = [{"cut": 10_000, "headers": {"ETag": None}}, {"headers": {"ETag": None}}]
    fetch()
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-"]


def test_a_stream_of_unannounced_length_that_ends_early_is_resumed(fetch, hub):
    hub.faults["cdn", FIRST] = [{"cut": 10_000, "headers": {"Content-Length": None}}]
    fetch()
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-"]


@pytest.mark.parametrize("any_range", [False, True], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_that_changed_between_attempts_is_read_from_the_start_again(fetch, hub, any_range):
    new = hub.files[FIRST]
    hub.files[FIRST] = hub.files[SECOND]
    changed = {"cut": 10_000, "then": lambda: hub.files.update({FIRST: new})}
    hub.faults["cdn", FIRST] = [changed, {"any_range": any_range, "cut": 12_000}]
    hub.faults["hub", FIRST] = [{"headers": {"X-Linked-Etag": None}}] * 3  # else that would find the mixture out
    fetch()
    assert_whole(fetch.folder, hub)
    assert hub.files[FIRST] == new
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-", None if any_range else "bytes=12000-"]


# What goes wrong once, and what goes wrong for ever

JUNK = {"page": b"PAR1 so it says", "type": "application/octet-stream"}
PASSING = {
    "the web page of a proxy": ("hub", {"page": b"<html>log in", "type": "text/html"}, "sent a web page"),
    "no parquet": ("hub", JUNK, "no parquet file"),
    "other bytes": ("cdn", {"body": b"PAR1" + bytes(50_000) + b"PAR1"}, "announced"),
    "another sha256": ("hub", {"headers": {"X-Linked-Etag": f'"{"0" * 64}"'}}, "sha256"),
    "a shorter body": ("cdn", {"cut": 0}, "peer closed connection"),
    "another length": ("hub", {"headers": {"X-Linked-Size": 10}}, "announced 10 and also"),
    "no length": ("cdn", {"headers": {"Content-Length": None}, "cut": None}, "announced an unknown number"),
    "an overloaded server": ("hub", {"status": 503}, "127.0.0.1 answered 503"),
    "an overloaded CDN": ("cdn", {"status": 500}, "localhost answered 500"),
    "too many requests": ("hub", {"status": 429, "headers": {"Retry-After": "0"}}, "answered 429"),
    "an unknown range": ("cdn", {"status": 416}, "shorter than it was"),
}


@pytest.mark.parametrize(("side", "fault", "message"), PASSING.values(), ids=PASSING)
def test_what_goes_wrong_once_is_tried_again_and_for_ever_is_given_up(
    fetch, hub, climbmix, capsys, side, fault, message
):
    if message == "announced an unknown number":
        hub.faults["hub", FIRST] = [{"headers": {"X-Linked-Size": None}}] * 9
    hub.faults[side, FIRST] = [fault]
    fetch()
    assert_whole(fetch.folder, hub)
    assert len(hub.asked(side, FIRST)) == 2
    assert re.search(rf"^{FIRST}: .*{message}.*; next attempt in 0\.0 s$", capsys.readouterr().out, re.MULTILINE)

    (fetch.folder / FIRST).unlink()
    hub.faults[side, FIRST] = [fault] * 9
    with pytest.raises(climbmix.DownloadError, match=rf"{FIRST}.*{message}.*3 attempts.*run it again") as failed:
        fetch()
    assert "\n" not in str(failed.value)
    assert len(hub.asked(side, FIRST)) == 2 + 3
    assert not (fetch.folder / FIRST).exists()
    assert (fetch.folder / VAL).read_bytes() == hub.files[VAL]


@pytest.mark.parametrize(("status", "advice"), [(404, "HF_ENDPOINT"), (401, "HF_TOKEN"), (403, "HF_TOKEN")])
def test_a_refusal_is_final(fetch, hub, climbmix, status, advice):
    hub.faults["hub", FIRST] = [{"status": status}]
    with pytest.raises(climbmix.DownloadError, match=rf"\({status}\).*{advice}"):
        fetch()
    assert len(hub.asked("hub", FIRST)) == 1


def test_attempts_count_only_without_progress(fetch, hub):
    hub.faults["cdn", FIRST] = [{"cut": 2_000} for _ in range(8)]
    fetch(attempts=1)
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range")[-1] == "bytes=16000-"


def test_progress_towards_wrong_bytes_does_not_go_on_for_ever(fetch, hub, climbmix):
    hub.faults["hub", FIRST] = [{"headers": {"X-Linked-Etag": f'"{"0" * 64}"'}} for _ in range(99)]
    hub.faults["cdn", FIRST] = [{"cut": 10_000}, {}] * 49
    with pytest.raises(climbmix.DownloadError, match="3 attempts"):
        fetch()
    assert len(hub.asked("cdn", FIRST)) < 9


def test_a_server_that_asks_for_patience_is_given_it(fetch, hub):
    hub.faults["hub", FIRST] = [{"status": 429, "headers": {"Retry-After": "1"}}]
    fetch()
    first, second = hub.asked("hub", FIRST, "at")
    assert 1 <= second - first < 5


def test_the_patience_asked_for_has_a_limit(fetch, hub, climbmix, monkeypatch):
    monkeypatch.setattr(climbmix, "LONGEST_WAIT_S", 0.05)
    hub.faults["hub", FIRST] = [{"status": 503, "headers": {"Retry-After": "86400"}}]
    fetch()
    assert_whole(fetch.folder, hub)


def test_patience_is_asked_for_in_seconds_or_until_a_date(climbmix):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert climbmix.retry_after_s("17") == 17
    assert 90 < climbmix.retry_after_s(date) <= 100
    assert climbmix.retry_after_s("soon") == climbmix.retry_after_s("") == 0


def test_a_silent_server_is_left_and_the_rest_asked_for_again(fetch, hub):
    hub.faults["cdn", FIRST] = [{"cut": 10_000, "stall": True}]
    fetch(timeout_s=0.3)
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-"]


def test_a_stream_that_only_drips_counts_as_no_progress(fetch, hub, climbmix):
    hub.faults["cdn", FIRST] = [{"cut": 1, "drip_every_s": 0.02} for _ in range(9)]
    with pytest.raises(climbmix.DownloadError, match=r"less than 1,000 bytes a second.*2 attempts"):
        fetch(timeout_s=0.3, attempts=2)


def test_an_endless_stream_is_left(fetch, hub, climbmix):
    endless = {"headers": {"Content-Length": None}, "drip_every_s": 0.001, "drip": bytes(50_000)}
    hub.faults["cdn", FIRST] = [endless] * 2
    with pytest.raises(climbmix.DownloadError, match="more than the"):
        fetch(attempts=2)


@pytest.mark.parametrize("endpoint", ["hf-mirror.example", "ftp://127.0.0.1", "http://hub:port"])
def test_an_endpoint_that_is_no_web_address_is_refused(fetch, climbmix, endpoint):
    with pytest.raises(climbmix.DownloadError, match=r"HF_ENDPOINT=.*no web address"):
        fetch(endpoint=endpoint)


def test_a_hub_out_of_reach_is_said(fetch, climbmix):
    with pytest.raises(climbmix.DownloadError, match=r"2 attempts.*mirror"):
        fetch(endpoint="http://127.0.0.1:1", attempts=2)


def test_the_token_goes_to_the_hub_and_nowhere_else(fetch, hub):
    fetch(token="hf_secret")
    assert hub.asked("hub", FIRST, "Authorization") == ["Bearer hf_secret"]
    assert hub.asked("cdn", FIRST, "Host") == [f"localhost:{hub.server_port}"]
    assert hub.asked("cdn", FIRST, "Authorization") == [None]


def test_a_token_that_is_none_is_refused_without_being_shown(fetch, climbmix):
    with pytest.raises(climbmix.DownloadError, match="HF_TOKEN") as refused:
        fetch(token="hf_sec\nret")
    assert "hf_sec" not in str(refused.value)


def test_a_shard_cut_by_a_power_failure_is_fetched_again(fetch, hub):
    fetch()
    (fetch.folder / FIRST).write_bytes(hub.files[FIRST][:9_000])
    fetch()
    assert_whole(fetch.folder, hub)


# Several processes


@contextlib.contextmanager
def downloading(fetch, hub, trainer_folder):
    code = (
        "import climbmix, sys\n"
        "hub = climbmix.Hub(sys.argv[2], retry_wait_s=0.01)\n"
        "climbmix.fetch(sys.argv[1], 1, hub=hub, show=lambda done, total: None)\n"
    )
    command = [sys.executable, "-B", "-u", "-c", code, str(fetch.folder), hub.endpoint]
    process = subprocess.Popen(command, cwd=trainer_folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        yield process
        process.kill()


def wait_for(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_two_processes_at_once_fetch_each_shard_once(fetch, hub, trainer_folder):
    go_on = threading.Event()
    hub.faults["cdn", VAL] = hub.faults["cdn", FIRST] = [{"hold": go_on.wait}] * 2
    with downloading(fetch, hub, trainer_folder) as one:
        wait_for(lambda: hub.asked("cdn", VAL) and hub.asked("cdn", FIRST))
        with downloading(fetch, hub, trainer_folder) as other:
            assert all("another process" in other.stdout.readline() for _ in range(2))
            go_on.set()
            assert [process.wait(timeout=20) for process in (one, other)] == [0, 0], other.stdout.read()
    assert_whole(fetch.folder, hub)
    assert len(hub.asked("cdn", VAL)) == len(hub.asked("cdn", FIRST)) == 1


def test_a_process_goes_on_where_a_killed_one_left(fetch, hub, trainer_folder):
    hub.faults["cdn", FIRST] = [{"cut": 10_000, "stall": True}]
    part = fetch.folder / f"{FIRST}.part"
    with downloading(fetch, hub, trainer_folder) as one:
        wait_for(lambda: part.exists() and part.stat().st_size == 10_000)
        with downloading(fetch, hub, trainer_folder) as other:
            assert "another process" in other.stdout.readline()
            one.kill()
            assert other.wait(timeout=20) == 0, other.stdout.read()
    assert_whole(fetch.folder, hub)
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-"]


# As the user runs it


def test_prepare_and_train_and_then_again_without_a_network(
    make_workspace, run_script, tmp_path, hub, shards, monkeypatch
):
    pytest.importorskip("torch", reason="the trainer needs torch")
    pytest.importorskip("tokenizers", reason="the trainer needs tokenizers")
    folder, cache = make_workspace(), tmp_path / "cache"
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    done = run_script(folder, "prepare.py", "--corpus", "climbmix", "--shards", 2, CACHE=cache)
    assert done.returncode == 0, done.stderr
    assert "Corpus:      climbmix for the smoke profile" in done.stdout
    manifest = json.loads((folder / "corpus.json").read_text())
    assert {name: manifest[name] for name in ("name", "source", "shards", "files", "documents")} == {
        "name": "climbmix",
        "source": "climbmix",
        "shards": 2,
        "files": 3,
        "documents": 180,
    }
    assert manifest["url"] == "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle"
    assert manifest["val_bytes"] == sum(len(text.encode()) for text in shards[VAL][1])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    again = run_script(folder, "train.py", CACHE=cache, MAX_STEPS=3)
    assert again.returncode == 0, again.stderr
    assert re.search(r"^val_bpb: +\d", again.stdout, re.MULTILINE)


@pytest.fixture
def climbmix_main(fresh, hub, monkeypatch):
    """prepare.py's command line in this process, with an empty cache and a hub on loopback."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    return fresh


def documents(prepare, corpus, split):
    tokens = np.array(corpus.tokens[split])
    starts = [*np.flatnonzero(tokens == prepare.BOS_ID), len(tokens)]
    tokenizer = prepare.Tokenizer.load(corpus.folder / "tokenizer.json")
    return [tokenizer.decode(tokens[a:b].tolist()) for a, b in itertools.pairwise(starts)]


def test_exactly_the_validation_shard_is_held_out(climbmix_main, prepare, shards):
    corpus = climbmix_main("--corpus", "climbmix", "--shards", 1)
    assert documents(prepare, corpus, "val") == shards[VAL][1]
    assert documents(prepare, corpus, "train") == shards[FIRST][1][:-1]  # its last one is held out
    assert corpus.manifest["left_out"] == {"empty or repeated": 1}


def test_a_workspace_is_rebuilt_from_the_shards_and_these_from_the_hub(climbmix_main, prepare, hub, monkeypatch):
    first = climbmix_main("--corpus", "climbmix", "--shards", 1)
    kept = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    n_requests = len(hub.requests)
    shutil.rmtree(first.folder)
    assert {path.name: path.read_bytes() for path in climbmix_main("--force").folder.iterdir()} == kept
    shutil.rmtree(first.folder)
    prepare.open_corpus.cache_clear()
    assert prepare.open_corpus().manifest == first.manifest
    assert len(hub.requests) == n_requests

    shutil.rmtree(prepare.CACHE)
    assert climbmix_main().folder == first.folder
    assert len(hub.requests) == 2 * n_requests


def test_another_number_of_shards_is_another_corpus(climbmix_main, prepare):
    one = climbmix_main("--corpus", "climbmix", "--shards", 1)
    two = climbmix_main("--shards", 2)
    assert one.folder != two.folder
    assert two.manifest["shards"] == 2
    assert climbmix_main().folder == two.folder
    assert climbmix_main("--corpus", "climbmix", "--shards", 1).folder == one.folder


def test_the_same_files_given_as_a_folder_are_another_corpus(climbmix_main, prepare):
    one = climbmix_main("--corpus", "climbmix", "--shards", 1)
    folder = climbmix_main("--corpus", prepare.CACHE / "climbmix")
    assert folder.folder != one.folder
    assert folder.manifest["documents"] == one.manifest["documents"]
    assert folder.manifest["val_tokens"] < one.manifest["val_tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "climbmix", "--shards", 0], "takes 1 to 6542"),
        (["--corpus", "climbmix", "--shards", 6543], "takes 1 to 6542"),
        (["--shards", 3], "goes with --corpus climbmix"),
        (["--corpus", "climbmix", "--shards", 3], "not found (404)"),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_one_line(climbmix_main, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        climbmix_main(*arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("package", ["httpx", "pyarrow"])
def test_a_missing_package_is_named_with_what_installs_it(climbmix_main, prepare, capsys, monkeypatch, package):
    monkeypatch.delitem(sys.modules, "climbmix", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(SystemExit) as stopped:
        climbmix_main("--corpus", "climbmix", "--shards", 1)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"the package {package}, which is missing: pip install 'loopgraph-mcp[data]'" in said


def test_progress_is_told_in_lines_where_there_is_no_terminal(climbmix_main, prepare, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "PROGRESS_EVERY_S", 0)
    climbmix_main("--corpus", "climbmix", "--shards", 2)
    line = r"^{}: \d of \d MB \(\d+%\), \d+\.\d MB/s, \d+ s left$"
    said = capsys.readouterr().out
    assert re.search(line.format("Download"), said, re.MULTILINE)
    assert re.search(line.format("Encoding"), said, re.MULTILINE)


def prepare_after(code):
    """A program that does something to its process and is prepare.py from then on.

    Popen's preexec_fn would do it, but not beside the hub's threads: from Python 3.12 on that is a warning.
    """
    return f"{code}\nimport runpy, sys\nsys.argv[0] = 'prepare.py'\nrunpy.run_path('prepare.py', run_name='__main__')"


def test_a_full_disk_is_said_in_one_line_and_keeps_what_is_complete(
    make_workspace, run_script, tmp_path, hub, monkeypatch
):
    limit = len(hub.files[FIRST]) - 5_000
    hub.files[VAL] = hub.files[VAL][: limit - 10_000] + b"PAR1"
    hub.faults["hub", FIRST] = [{"hold": lambda: wait_for((tmp_path / "climbmix" / VAL).exists)}]

    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    small_files_only = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    arguments = ("-B", "-c", prepare_after(small_files_only), "--corpus", "climbmix", "--shards", 1)
    run = run_script(make_workspace(), *arguments, CACHE=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "no space is left for the shards" in run.stderr
    assert "LOOPGRAPH_CACHE" in run.stderr
    assert run.stderr.count("\n") == 1
    assert (tmp_path / "climbmix" / VAL).read_bytes() == hub.files[VAL]
    assert (tmp_path / "climbmix" / f"{FIRST}.part").read_bytes() == hub.files[FIRST][:limit]


def test_ctrl_c_ends_the_download_at_once_and_the_next_one_resumes(make_workspace, tmp_path, hub, fetch):
    for name in (VAL, FIRST):
        hub.faults["cdn", name] = [{"cut": 10_000, "stall": True}]
    env = os.environ | {"LOOPGRAPH_PROFILE": "smoke", "LOOPGRAPH_CACHE": str(tmp_path), "HF_ENDPOINT": hub.endpoint}
    take_the_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    command = [sys.executable, "-c", prepare_after(take_the_terminal), "--corpus", "climbmix", "--shards", "1"]
    ours, theirs = pty.openpty()  # a terminal: it shows the bar, and \x03 typed into it is Ctrl-C
    process = subprocess.Popen(
        command,
        cwd=make_workspace(),
        env=env | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    parts = [tmp_path / "climbmix" / f"{name}.part" for name in (VAL, FIRST)]
    wait_for(lambda: all(part.exists() and part.stat().st_size == 10_000 for part in parts))
    shown = b""
    while b"20.0/" not in shown:  # of the bytes, in kB
        shown += os.read(ours, 4096)
    os.write(ours, b"\x03")
    typed = time.monotonic()
    with contextlib.suppress(OSError):  # the terminal's end, on Linux
        while chunk := os.read(ours, 4096):
            shown += chunk
    assert process.wait(timeout=20) == 130
    assert time.monotonic() - typed < 5  # most of it is torch going; the streams would have stalled for longer
    os.close(ours)
    assert b"Download" in shown
    assert shown.rstrip().endswith(b"prepare.py: interrupted; run it again to go on")
    assert not [path for path in (tmp_path / "climbmix").iterdir() if path.suffix not in (".part", ".lock")]
    fetch()
    assert hub.asked("cdn", FIRST, "Range") == [None, "bytes=10000-"]
    assert_whole(fetch.folder, hub)
