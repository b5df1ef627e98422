"""Downloads shards of karpathy/climbmix-400b-shuffle from the Hugging Face hub, for prepare.py.

A shard arrives in `<name>.part` and gets its own name once it is whole: the length is the one announced, the
sha256 the one the hub gave (where it gave one), and both ends bear parquet's magic. What was cut short goes on
where it ended, in the next attempt or the next process.

Beside a part, `<name>.lock` says which version of the file the part is of. Whoever works on the shard holds an
flock on it: the kernel lets go of that however a process ends, so a lock never outlives its owner.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import queue
import random
import re
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

ENDPOINT = "https://huggingface.co"
DATASET = "datasets/karpathy/climbmix-400b-shuffle"
VALIDATION_SHARD = 6542  # the last one, for everybody; all before it are to train on
MAGIC = b"PAR1"
LONGEST_WAIT_S = 300  # the hub counts requests in windows of five minutes
LEAST_BYTES_PER_S = 1000  # what trickles in slower is stuck, and no progress


class DownloadError(Exception):
    """A shard cannot be had; the message is one line and names the next step."""


class AttemptFailed(Exception):  # noqa: N818 - an event on the way, and no error unless it goes on
    """The next attempt may do better; `wait_s` is what the server asked for."""

    def __init__(self, reason, wait_s=0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class PartUseless(AttemptFailed):
    """The next attempt must begin at the first byte."""


@dataclass(frozen=True)
class Hub:
    """Where the shards come from, and how patient to be with it."""

    endpoint: str = ENDPOINT
    token: str | None = None
    attempts: int = 6  # in a row without progress
    retry_wait_s: float = 1.0  # doubled each time
    timeout_s: float = 30.0

    def refuse_bad_settings(self):
        with contextlib.suppress(httpx.InvalidURL):
            if self.token and not re.fullmatch("[!-~]+", self.token):
                raise DownloadError("HF_TOKEN holds characters that no token has; set it anew, or unset it")
            if httpx.URL(self.endpoint).scheme in ("http", "https"):
                return
        raise DownloadError(f"HF_ENDPOINT={self.endpoint}: no web address; it takes one like {ENDPOINT}")

    def client(self):
        headers = {"Accept-Encoding": "identity", "User-Agent": "loopgraph-trainer"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"  # httpx drops it when redirected to another host
        return httpx.Client(headers=headers, follow_redirects=True, timeout=self.timeout_s)


@dataclass
class Shard:
    path: Path
    done: int = 0  # bytes
    size: int | None = None

    @property
    def part(self):
        return self.path.with_suffix(".parquet.part")

    @property
    def lock(self):
        return self.path.with_suffix(".parquet.lock")


@dataclass(frozen=True)
class Version:
    """What tells whether a part and the rest that a server offers belong to one file."""

    etag: str | None
    sha256: str | None
    size: int

    @classmethod
    def of(cls, response):
        """Read the headers: the hub's own are on its redirect, those of the bytes on the last response."""
        linked = {}
        for each in (*response.history, response):
            linked |= {name: value for name, value in each.headers.items() if name.startswith("x-linked-")}
        sha256 = re.fullmatch(r'"?([0-9a-f]{64})"?', linked.get("x-linked-etag", ""))
        total = response.headers.get("content-range", "").rpartition("/")[2] or response.headers.get("content-length")
        sizes = {int(size) for size in (total, linked.get("x-linked-size")) if size and size.isdecimal()}
        if len(sizes) != 1:
            said = " and also ".join(f"{size:,}" for size in sorted(sizes)) or "an unknown number of"
            raise AttemptFailed(f"{response.url.host} announced {said} bytes")
        return cls(response.headers.get("etag"), sha256 and sha256[1], sizes.pop())

    def is_of_same_file(self, other):
        return (self.sha256 or self.etag, self.size) == (other.sha256 or other.etag, other.size)

    def rest(self, start):
        """The headers that ask for the bytes from `start`, or for all where no version could be told."""
        if self.etag and not self.etag.startswith("W/"):
            return {"Range": f"bytes={start}-", "If-Range": self.etag}
        return {"Range": f"bytes={start}-"} if self.sha256 else {}


def fetch(folder, shards, *, hub, show, parallel=4):
    """Return the paths of the validation shard and then of `shards` training shards, all complete.

    What is there already needs no network. `show(done, total)` hears of the bytes; total is None at first.
    """
    every = [Shard(Path(folder, f"shard_{index:05}.parquet")) for index in (VALIDATION_SHARD, *range(shards))]
    missing = [shard for shard in every if not is_parquet(shard.path)]
    for shard in missing:
        shard.done = size_of(shard.part)
    if missing:
        hub.refuse_bad_settings()
        download(missing, hub, show, parallel)
    return [shard.path for shard in every]


def download(missing, hub, show, parallel):
    todo, events, halt = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
    for shard in missing:
        todo.put(shard)

    def work():
        try:
            with hub.client() as client, contextlib.suppress(queue.Empty):
                while not halt.is_set():
                    shard = todo.get_nowait()
                    complete(shard, hub, client, halt=halt, say=events.put)
                    events.put(shard)
        except OSError as error:
            events.put(disk_error(error, missing[0].path.parent))
        except Exception as error:  # noqa: BLE001 - the edge of a thread: the caller's thread raises it
            events.put(error)

    for _ in range(min(parallel, len(missing))):
        # Daemons: at Ctrl-C the process ends at once, whatever they wait for: a name server, a lock, a silent peer.
        threading.Thread(target=work, daemon=True).start()
    left = len(missing)
    try:
        while left:
            sizes = [shard.size for shard in missing if shard.size]
            show(sum(shard.done for shard in missing), sum(sizes) * len(missing) // len(sizes) if sizes else None)
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=0.2)
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Shard):
                    left -= 1
                else:
                    print(event, flush=True)
        done = sum(shard.done for shard in missing)
        show(done, done)
    finally:
        halt.set()


def complete(shard, hub, client, *, halt, say):
    """Download one shard, in as many attempts as it takes while they make progress."""
    url = f"{hub.endpoint.rstrip('/')}/{DATASET}/resolve/main/{shard.path.name}"
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    with shard.lock.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{shard.path.name}: another process is downloading it; waiting for that one")
            fcntl.flock(lock, fcntl.LOCK_EX)
        failures, furthest = 0, size_of(shard.part)
        while not is_parquet(shard.path):  # it is, where another process was faster
            began = time.monotonic()
            try:
                receive(shard, client, url, lock=lock, timeout_s=hub.timeout_s, halt=halt)
                shard.part.replace(shard.path)
                break
            except (AttemptFailed, httpx.HTTPError) as error:
                reason, asked_s = str(error) or type(error).__name__, getattr(error, "wait_s", 0.0)
                if isinstance(error, PartUseless):
                    shard.part.unlink(missing_ok=True)
            gained = size_of(shard.part) - furthest
            furthest += max(gained, 0)
            failures = 0 if gained > LEAST_BYTES_PER_S * (time.monotonic() - began) else failures + 1
            if failures >= hub.attempts:
                raise DownloadError(
                    f"{url}: {reason} ({failures} attempts without progress); run it again later to go on from "
                    "what is there, or set HF_ENDPOINT to a mirror"
                )
            wait_s = hub.retry_wait_s * 2**failures * random.uniform(0.5, 1)  # noqa: S311 - no secret, only spread
            wait_s = min(max(wait_s, asked_s), LONGEST_WAIT_S)
            say(f"{shard.path.name}: {reason}; next attempt in {wait_s:.1f} s")
            if halt.wait(wait_s):
                return
        shard.done = shard.size = size_of(shard.path)
        shard.lock.unlink(missing_ok=True)  # who still waits for it will find the shard complete


def receive(shard, client, url, *, lock, timeout_s, halt):
    """Fill the part to its end and check it, or raise what was wrong."""
    lock.seek(0)
    try:
        known = Version(**json.loads(lock.read()))
    except (TypeError, ValueError):
        known = None
    start = size_of(shard.part)
    with client.stream("GET", url, headers=known.rest(start) if known and start else {}) as response:
        check_status(response, url)
        version = Version.of(response)
        if response.status_code != 206:
            start = 0
            shard.part.write_bytes(b"")
            lock.truncate(0)  # only now: a part is never beside the version of another
            lock.write(json.dumps(asdict(version)))
            lock.flush()
        elif not version.is_of_same_file(known) or not response.headers["content-range"].startswith(f"bytes {start}-"):
            raise PartUseless("the file changed on the server")
        shard.done, shard.size = start, version.size
        with shard.part.open("ab") as part:
            slow_since, slow_done = time.monotonic(), start
            for chunk in response.iter_raw():
                part.write(chunk)
                shard.done += len(chunk)
                if halt.is_set() or shard.done > version.size:
                    break
                if (now := time.monotonic()) - slow_since > timeout_s:
                    if shard.done - slow_done < LEAST_BYTES_PER_S * timeout_s:
                        raise AttemptFailed(f"{response.url.host} sent less than {LEAST_BYTES_PER_S:,} bytes a second")
                    slow_since, slow_done = now, shard.done
            part.flush()
            os.fsync(part.fileno())  # or a power cut could leave a complete name on incomplete bytes
    check(shard, version)


def check_status(response, url):
    status, host = response.status_code, response.url.host
    if status in (401, 403):
        raise DownloadError(f"{url}: {host} refused access ({status}); set HF_TOKEN to a token that may read it")
    if status == 404:
        raise DownloadError(f"{url}: not found (404); check HF_ENDPOINT, or take another mirror")
    if status == 416:
        raise PartUseless("the file is shorter than it was")
    if status in (408, 429) or status >= 500:
        raise AttemptFailed(f"{host} answered {status}", retry_after_s(response.headers.get("retry-after", "")))
    if status not in (200, 206):
        raise DownloadError(f"{url}: {host} answered {status}; check HF_ENDPOINT, or take another mirror")
    if response.headers.get("content-type", "").startswith("text/"):
        raise AttemptFailed(f"{host} sent a web page instead of the file")


def retry_after_s(raw):
    """The header's seconds, or the seconds until its date; 0 where it says neither."""
    if raw.isdecimal():
        return float(raw)
    try:
        return (parsedate_to_datetime(raw).replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds()
    except ValueError:
        return 0.0


def check(shard, version):
    """Raise unless the part is what the server said it would be."""
    found = size_of(shard.part)
    if found < version.size:
        raise AttemptFailed(f"the transfer ended after {found:,} of {version.size:,} bytes")
    if found > version.size:
        raise PartUseless(f"the server sent more than the {version.size:,} bytes it announced")
    with shard.part.open("rb") as part:
        if version.sha256 and hashlib.file_digest(part, "sha256").hexdigest() != version.sha256:
            raise PartUseless("the sha256 is not the one the hub gave")
    if not is_parquet(shard.part):
        raise PartUseless("what was sent is no parquet file")


def is_parquet(path):
    """Whether the file is there and both its ends bear the magic."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        first = file.read(len(MAGIC))
        file.seek(-len(MAGIC), os.SEEK_END)
        return first == file.read() == MAGIC
    return False


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def disk_error(error, folder):
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cause = "no space is left for the shards" if full else error.strerror
    return DownloadError(
        f"{error.filename or folder}: {cause}; mend it, or set LOOPGRAPH_CACHE to another folder (complete shards stay)"
    )
