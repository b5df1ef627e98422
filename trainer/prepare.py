"""The fixed half of the workspace: corpus, tokenizer, dataloader and metric. Agents do not edit it.

    python prepare.py                  prepare the default corpus, the Python source on this machine
    python prepare.py --corpus PATH    use a file or a folder of .txt, .md, .py, .jsonl or .parquet instead
    python prepare.py --corpus climbmix --shards 10
                                       use web text: shards of karpathy/climbmix-400b-shuffle, downloaded once
    python prepare.py --force          prepare again from what the source holds now

A line of .jsonl and a row of .parquet is a document; its text stands under "text". Only climbmix needs a network,
and that once. Token files go to the cache, one folder per content hash; `corpus.json`, beside this file, says which
of them is this workspace's.
"""

import argparse
import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# ----------------------------------------------------------------------------------------------------------
# The environment, read once


def stop(message):
    """End with one line that says what to change, and the exit code of a usage error."""
    print(f"prepare.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def read_env(name, default, parse, allowed):
    raw = os.environ.get(name, "").strip()
    if not raw:
        return default
    try:
        return parse(raw)
    except ValueError:
        stop(f"{name}={raw!r} cannot be used; it takes {allowed}")


def within(kind, least, below):
    """A parser of numbers in [least, below)."""

    def parse(raw):
        if not least <= (value := kind(raw)) < below:
            raise ValueError(raw)
        return value

    return parse


PROFILES = ("cuda", "mps", "cpu", "smoke")
DEVICES = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
USER_CACHE = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")

TIME_BUDGET = read_env("LOOPGRAPH_BUDGET_S", 300.0, within(float, 1e-3, math.inf), "seconds above 0")
SEED = read_env("LOOPGRAPH_SEED", 42, within(int, 0, 2**63), "a whole number from 0")
MAX_STEPS = read_env("LOOPGRAPH_MAX_STEPS", None, within(int, 1, 2**63), "a whole number from 1")
PROFILE = PROFILES[read_env("LOOPGRAPH_PROFILE", PROFILES.index(DEVICES[0]), PROFILES.index, ", ".join(PROFILES))]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or USER_CACHE, "loopgraph")
CACHE = read_env("LOOPGRAPH_CACHE", CACHE, Path, "a folder").expanduser().absolute()
# What torch.compile made for one run is there for the next, also for one in another folder.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(CACHE / "compiled"))


def on(*, cuda, mps, cpu, smoke):
    """The value for the present profile, so that one train.py suits an H100, a laptop and a test."""
    return {"cuda": cuda, "mps": mps, "cpu": cpu, "smoke": smoke}[PROFILE]


# ----------------------------------------------------------------------------------------------------------
# Constants: what stays equal for two runs to be comparable

DEVICE = PROFILE if PROFILE in DEVICES else "cpu"  # a GPU's profile on a CPU shows that it runs, no more
MAX_SEQ_LEN = on(cuda=2048, mps=512, cpu=256, smoke=64)  # context length in training and evaluation
VOCAB_SIZE = on(cuda=8192, mps=4096, cpu=2048, smoke=512)  # including the BOS token
EVAL_TOKENS = on(cuda=2**21, mps=2**18, cpu=2**16, smoke=2**12)  # at most; a small corpus may hold fewer

BOS_ID = VOCAB_SIZE - 1  # begins every document; no text encodes to it
VAL_FRACTION = 0.05
SPLITS = ("train", "val")
FORMAT = 1  # raise when the same source would give other token files
MANIFEST = Path(__file__).with_name("corpus.json")
CORPORA = CACHE / "corpora"
TOKENIZER_SAMPLE_BYTES = 64 * 2**20  # more text hardly moves the merges and costs minutes
LONE_FILE_BLOCK = 2**14  # bytes; a corpus of one text file is cut into these, or it could not be split
SUFFIXES = (".jsonl", ".md", ".parquet", ".py", ".txt")

# The standard library's tests are two thirds of its text, and much of that is tables, generated cases and
# files broken on purpose; `encodings` is one table a hundred times over, which would leak across the split.
SKIPPED_FOLDERS = {"__pycache__", "dist-packages", "encodings", "idle_test", "site-packages", "test", "tests"}
SKIPPED_FILES = "_sysconfigdata"  # differs between two builds of the same Python
SMOKE_FOLDERS = ("asyncio", "email")  # enough to train on for ten steps

# ----------------------------------------------------------------------------------------------------------
# Corpus: files, then documents, then one stream of tokens per split

CLIMBMIX = "climbmix"  # as --corpus and in the manifest; a folder of that name is ./climbmix
CLIMBMIX_URL = "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle"  # a mirror's shards are these too
MAX_SHARDS = 6542  # to train on; one more is pinned as the held-out text
DEFAULT_SHARDS = 10
PARQUET_BATCH = 1024  # rows
ENCODED_AHEAD = 4  # batches of 256 documents: two are encoded, on all cores, while others are read and written
PROGRESS_EVERY_S = 10


def python_source():
    """Yield (name, path) of the default corpus: the standard library, and on a GPU what is installed.

    The installed packages join only there, where a run sees more tokens than the standard library holds.
    """
    roots = [("stdlib", Path(sysconfig.get_path("stdlib")))]
    if PROFILE in ("cuda", "mps"):
        roots.append(("site-packages", Path(sysconfig.get_path("purelib"))))
    for label, root in roots:
        for path in root.rglob("*.py"):
            name = path.relative_to(root)
            unwanted = SKIPPED_FOLDERS.intersection(name.parts[:-1]) or name.name.startswith(SKIPPED_FILES)
            wanted = path.is_file() and (PROFILE != "smoke" or name.parts[0] in SMOKE_FOLDERS)
            if wanted and not unwanted:
                yield f"{label}/{name.as_posix()}", path


def climbmix_files(shards):
    """(name, path) of the pinned validation shard, then of the training shards; downloads what is missing.

    The validation shard comes first: a document that is repeated elsewhere stays held out. No file in a folder can
    have such a name, so the same shards given as a path are another corpus, with another split.
    """
    try:
        import climbmix  # noqa: PLC0415 - no other corpus takes its packages
    except ModuleNotFoundError as error:
        stop_for_package(error.name, "--corpus climbmix")
    hub = climbmix.Hub(
        endpoint=os.environ.get("HF_ENDPOINT", "").strip() or climbmix.ENDPOINT,
        token=os.environ.get("HF_TOKEN", "").strip() or None,
    )
    try:
        with progress("Download") as show:
            paths = climbmix.fetch(CACHE / CLIMBMIX, shards, hub=hub, show=show)
    except climbmix.DownloadError as error:
        stop(error)
    return [(f"{CLIMBMIX_URL}/{path.name}", path) for path in paths]


def stop_for_package(package, wanted_by):
    stop(f"{wanted_by} takes the package {package}, which is missing: pip install 'loopgraph-mcp[data]'")


@contextlib.contextmanager
def progress(label):
    """Yield show(done, total), in bytes: a bar on a terminal, else a line about every ten seconds."""
    try:
        from rich import progress as rich  # noqa: PLC0415 - the trainer runs without it
    except ImportError:
        rich = None
    if rich and sys.stdout.isatty():
        numbers = (rich.TaskProgressColumn(), rich.DownloadColumn(), rich.TransferSpeedColumn())
        with rich.Progress(label, rich.BarColumn(), *numbers, rich.TimeRemainingColumn()) as bar:
            task = bar.add_task(label, total=None, visible=False)  # often there is nothing to do
            yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
        return
    first, began, shown = None, time.perf_counter(), time.perf_counter()

    def show(done, total):
        nonlocal first, shown
        first = done if first is None else first  # what an earlier process did is not this one's speed
        now = time.perf_counter()
        if total and done > first and now - shown >= PROGRESS_EVERY_S:
            shown, rate = now, (done - first) / (now - began)
            pace = f"{rate / 1e6:.1f} MB/s, {max(total - done, 0) / rate:.0f} s left"
            print(f"{label}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({done / total:.0%}), {pace}", flush=True)

    yield show


def list_files(source, shards=None):
    """(name, path) of a corpus, sorted; `source` is None for the default, else climbmix, a file or a folder."""
    if source is None:
        return sorted(python_source())
    if source == CLIMBMIX:
        return climbmix_files(shards)
    source = Path(source)
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        stop(f"--corpus {source}: no such file or folder")
    found = [path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    files = sorted((path.relative_to(source).as_posix(), path) for path in found)
    files = [(name, path) for name, path in files if not f"/{name}".count("/.")]  # .git, .venv and their like
    return files or stop(f"--corpus {source}: holds no {', '.join(SUFFIXES)} file")


def content_hash(files):
    """What the token files depend on: every file's name and bytes, the vocabulary and the format."""
    total = hashlib.sha256(f"format {FORMAT} vocab {VOCAB_SIZE}\n".encode())
    for name, path in files:
        with path.open("rb") as file:
            file_hash = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(file_hash.encode() + os.fsencode(f" {name}\n"))
    return total.hexdigest()


@contextlib.contextmanager
def parquet_file(path):
    """Open a parquet file that holds a column of text; whatever is wrong with it ends the program by name."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - no other format takes it
        from pyarrow import parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        stop_for_package(error.name, path)
    try:
        with parquet.ParquetFile(path) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            kind = types.get("text", pa.null())
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                held = ", ".join(f"{column} ({type_})" for column, type_ in types.items())
                stop(f"{path}: needs a column text of strings, and holds {held}; rename or convert the one you mean")
            yield file
    except (pa.ArrowException, OSError) as error:
        stop(f"{path}: cannot be read as parquet ({str(error).partition(chr(10))[0]}); get it anew or take it out")


def text_size(path):
    """About how many bytes of text a file holds, for the progress shown."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    with parquet_file(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")


def split_file(name, path, *, lone):
    """Yield (key, bytes or None) of a file's documents: lines of .jsonl, rows of .parquet, else it as it is."""
    if path.suffix == ".parquet":
        with parquet_file(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=PARQUET_BATCH, columns=["text"]):
                for data in batch.column(0).cast("large_binary").to_pylist():  # strings may hold what is not UTF-8
                    yield f"{name}:{row}", data or b""
                    row += 1
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    yield f"{name}:{number}", json.loads(line)["text"].encode()
                except (AttributeError, KeyError, TypeError, ValueError):
                    yield f"{name}:{number}", None
    elif lone:
        with path.open("rb") as file:
            for number, lines in enumerate(iter(functools.partial(file.readlines, LONE_FILE_BLOCK), [])):
                yield f"{name}:{number}", b"".join(lines)
    else:
        yield name, path.read_bytes()


def read_documents(files, left_out):
    """Yield (key, text) of each document, counting those it leaves out.

    A repeated document is left out, so that none stands on both sides of the split. So is one that is not
    UTF-8: replacing its bytes would change their number, and the metric is per byte.
    """
    seen = set()
    for name, path in files:
        for key, data in split_file(name, path, lone=len(files) == 1):
            if data is None:
                left_out["lines without JSON text"] += 1
                continue
            digest = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")  # big corpora have millions of these
            if not data or digest in seen:
                left_out["empty or repeated"] += 1
                continue
            seen.add(digest)
            try:
                yield key, data.decode()
            except UnicodeDecodeError:
                left_out["not UTF-8"] += 1


def split_rank(key):
    """A number in [0, 1) that depends on a document's name alone, so adding files moves no other."""
    return int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:6], "big") / 2**48


def val_limit(files):
    """The rank up to which a document is held out: VAL_FRACTION, or more if that held out none.

    None for climbmix, whose validation shard is the held-out text. Reads no further than to the first document
    below VAL_FRACTION, or to the end where there is none.
    """
    if files[0][0].startswith(CLIMBMIX_URL):
        return None
    lowest = []
    for key, _ in read_documents(files, Counter()):
        lowest = sorted([*lowest, split_rank(key)])[:2]
        if len(lowest) == 2 and lowest[0] <= VAL_FRACTION:
            break
    if len(lowest) < 2:
        stop("the corpus holds fewer than two documents, so none can be held out; add files or lines to it")
    return max(VAL_FRACTION, lowest[0])


def is_held_out(key, limit):
    if limit is None:
        return key.startswith(f"{CLIMBMIX_URL}/shard_{MAX_SHARDS:05}.")
    return split_rank(key) <= limit


# ----------------------------------------------------------------------------------------------------------
# Tokenizer


class Tokenizer:
    """Byte-level BPE, in which any text goes to ids and back unchanged.

    BOS is no string of the vocabulary but an id beyond it, so a text that spells it is only text.
    """

    def __init__(self, bpe):
        self.bpe = bpe

    @classmethod
    def train(cls, texts):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # nothing here forks after using it
        import tokenizers as hf  # noqa: PLC0415 - a run on a prepared corpus does without it

        bpe = hf.Tokenizer(hf.models.BPE())
        bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = hf.decoders.ByteLevel()
        alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
        trainer = hf.trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE - 1, initial_alphabet=alphabet, min_frequency=2, show_progress=False
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    @classmethod
    def load(cls, path):
        import tokenizers as hf  # noqa: PLC0415

        return cls(hf.Tokenizer.from_file(str(path)))

    def token_bytes(self):
        """How many bytes each id stands for: ByteLevel writes one byte as one character, whole or not."""
        table = np.zeros(VOCAB_SIZE, dtype=np.int32)
        for token, index in self.bpe.get_vocab().items():
            table[index] = len(token)
        return table

    def encode(self, text):
        return self.bpe.encode(text).ids

    def decode(self, ids):
        return self.bpe.decode([index for index in ids if index != BOS_ID])


# ----------------------------------------------------------------------------------------------------------
# Prepared corpora: <cache>/corpora/<hash>/


@dataclass(frozen=True)
class Corpus:
    folder: Path
    manifest: dict
    tokens: dict  # split -> memory-mapped uint16
    token_bytes: torch.Tensor  # (VOCAB_SIZE,)

    @classmethod
    def open(cls, manifest):
        folder = CORPORA / manifest["hash"]
        tokens = {split: np.memmap(folder / f"{split}.bin", dtype=np.uint16, mode="r") for split in SPLITS}
        return cls(folder, manifest, tokens, torch.from_numpy(np.load(folder / "token_bytes.npy")))


def read_manifest(path):
    """The manifest at `path`, or None if there is none that this version can use."""
    with contextlib.suppress(OSError, ValueError):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest, dict) and manifest.get("format") == FORMAT:
            return manifest
    return None


def is_for_this_profile(manifest):
    return manifest["profile"] == PROFILE and manifest["vocab_size"] == VOCAB_SIZE


def is_complete(manifest):
    """Whether the token files are there in full; after a power cut a file may be shorter than it was."""
    folder = CORPORA / manifest["hash"]
    with contextlib.suppress(OSError):
        sizes = [(folder / f"{split}.bin").stat().st_size for split in SPLITS]
        return sizes == [2 * manifest[f"{split}_tokens"] for split in SPLITS]
    return False


def is_ready(manifest):
    return is_for_this_profile(manifest) and is_complete(manifest)


def encode_splits(files, limit, tokenizer, folder):
    """Write train.bin and val.bin; return the counts of the manifest."""
    token_bytes = tokenizer.token_bytes()
    left_out, counts = Counter(), Counter()
    pending = {split: [] for split in SPLITS}
    ahead = deque()  # (split, encodings to come), in order
    encode = functools.partial(tokenizer.bpe.encode_batch_fast, add_special_tokens=False)
    total = sum(text_size(path) for _, path in files)
    with contextlib.ExitStack() as stack:
        out = {split: stack.enter_context((folder / f"{split}.bin").open("wb")) for split in SPLITS}
        encoders = ThreadPoolExecutor(ENCODED_AHEAD // 2)
        stack.callback(encoders.shutdown, cancel_futures=True)  # at Ctrl-C, what waits is not worth waiting for
        show = stack.enter_context(progress("Encoding"))
        show(0, total)

        def flush(split):
            counts[f"{split}_tokens"] += 0
            ahead.append((split, encoders.submit(encode, pending[split])))
            pending[split] = []

        def write():
            split, encodings = ahead.popleft()
            for encoding in encodings.result():
                ids = np.fromiter((BOS_ID, *encoding.ids), dtype=np.uint16)
                out[split].write(ids.tobytes())
                counts[f"{split}_tokens"] += len(ids)
                counts["covered"] += int(token_bytes[ids].sum())
            show(counts["train_bytes"] + counts["val_bytes"], total)

        for key, text in read_documents(files, left_out):
            split = "val" if is_held_out(key, limit) else "train"
            counts["documents"] += 1
            counts[f"{split}_bytes"] += len(text.encode())
            pending[split].append(text)
            if len(pending[split]) == 256:
                flush(split)
            if len(ahead) > ENCODED_AHEAD:
                write()
        flush("train")
        flush("val")
        while ahead:
            write()
        show(total, total)
    if counts.pop("covered") != counts["train_bytes"] + counts["val_bytes"]:
        raise AssertionError("the tokens do not stand for the corpus's bytes, so the metric would lie")
    return dict(counts) | {"left_out": dict(left_out)}


def write_corpus(files, source, digest, folder):
    """Fill an empty folder with a prepared corpus and return its manifest."""
    started = time.perf_counter()
    limit = val_limit(files)
    print(f"Tokenizer: learning {VOCAB_SIZE:,} tokens from {len(files):,} files", flush=True)

    def sample():
        room = TOKENIZER_SAMPLE_BYTES
        for key, text in read_documents(files, Counter()):
            if not is_held_out(key, limit):
                room -= len(text)
                yield text
            if room <= 0:
                return

    tokenizer = Tokenizer.train(sample())
    print(f"Corpus: encoding, {time.perf_counter() - started:.1f} s so far", flush=True)
    name = Path(source).name if source else f"python-{sys.version_info.major}.{sys.version_info.minor}"
    manifest = {"format": FORMAT, "name": name, "hash": digest, "profile": PROFILE, "vocab_size": VOCAB_SIZE}
    manifest |= {"source": source, "files": len(files)}
    if source == CLIMBMIX:
        manifest |= {"shards": len(files) - 1, "url": CLIMBMIX_URL}
    manifest |= encode_splits(files, limit, tokenizer, folder)
    for split in SPLITS:
        if (found := manifest[f"{split}_tokens"]) <= MAX_SEQ_LEN:
            stop(f"{found} tokens for {split} do not fill a window of {MAX_SEQ_LEN}; take a larger corpus")
    (folder / "tokenizer.json").write_text(tokenizer.bpe.to_str(), encoding="utf-8")
    np.save(folder / "token_bytes.npy", tokenizer.token_bytes())
    manifest["held_out"] = held_out_hash(folder)
    (folder / "corpus.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    print(f"Corpus: ready after {time.perf_counter() - started:.1f} s", flush=True)
    return manifest


def held_out_hash(folder):
    """What the held-out tokens and the bytes that they stand for are known by."""
    files = ("val.bin", "token_bytes.npy")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in files)).hexdigest()


def prepared(source, digest):
    """The manifest of what the cache holds under this hash, or None."""
    manifest = read_manifest(CORPORA / digest / "corpus.json")
    if manifest and is_complete(manifest):
        return manifest | {"source": source, "profile": PROFILE}  # another path may hold the same files
    return None


def build(files, source, digest):
    """Prepare in a folder aside and move it in by one rename: a reader finds all of a corpus or nothing."""
    folder = CORPORA / digest
    try:
        CORPORA.mkdir(parents=True, exist_ok=True)
        for old in CORPORA.glob(".part-*"):  # left by a preparation that was killed
            if time.time() - old.stat().st_mtime > 86_400:
                shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=CORPORA, ignore_cleanup_errors=True) as part:
            new = Path(part, "new")
            new.mkdir()
            manifest = write_corpus(files, source, digest, new)
            if folder.exists() and not prepared(source, digest):
                folder.rename(Path(part, "broken"))
            with contextlib.suppress(OSError):  # another process was first, with the same files
                new.rename(folder)
            if not prepared(source, digest):
                new.rename(folder)  # it was not that: say what it is
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cause = "no space is left for the token files" if full else error.strerror
        stop(f"{error.filename or CORPORA}: {cause}; mend it, or set LOOPGRAPH_CACHE to another folder")
    return manifest


def point_here(manifest):
    """Write corpus.json beside this file; without write access a run still works, and starts slower."""
    draft = MANIFEST.with_name(f".corpus.json.{os.getpid()}")
    try:
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        draft.replace(MANIFEST)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        print(f"{MANIFEST} was not written ({error.strerror}): each run will hash the corpus again")


@functools.cache
def open_corpus():
    """The workspace's corpus, prepared first if nobody has."""
    known = read_manifest(MANIFEST)
    if known and is_ready(known):
        return Corpus.open(known)
    source = known and known["source"]
    files = list_files(source, known and known.get("shards"))
    digest = content_hash(files)
    if known and is_for_this_profile(known) and known["hash"] != digest:
        stop(
            f"{MANIFEST} names a corpus that is gone from the cache, and its source has changed since: new "
            "results would not compare with old ones. To go on all the same: python prepare.py --force"
        )
    manifest = prepared(source, digest)
    if manifest is None:
        print(f"Preparing a corpus for the {PROFILE} profile in {CORPORA}, once", flush=True)
        manifest = build(files, source, digest)
    if known is None:  # else it is for another profile, by somebody's choice
        point_here(manifest)
    return Corpus.open(manifest)


# ----------------------------------------------------------------------------------------------------------
# Dataloader


def windows(n_tokens, seq_len, seed):
    """Endlessly yield (start, epoch): an epoch is all windows at a random phase, in random order.

    Each token is seen once an epoch, and the order depends on the seed alone, not on the batch size.
    """
    epoch = 1
    while True:
        rng = np.random.default_rng((seed, epoch))
        phase = rng.integers(min(seq_len, n_tokens - seq_len))
        for start in rng.permutation(np.arange(phase, n_tokens - seq_len, seq_len)):
            yield int(start), epoch
        epoch += 1


def gather(tokens, starts, seq_len, device):
    """Inputs and targets, both (len(starts), seq_len), of the windows that begin at `starts`."""
    rows = torch.from_numpy(np.stack([tokens[s : s + seq_len + 1] for s in starts]).astype(np.int64))
    if torch.device(device).type == "cuda":
        rows = rows.pin_memory().to(device, non_blocking=True)
    rows = rows.to(device)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def make_dataloader(split, batch_size, seq_len, seed, device):
    """Endlessly yield (inputs, targets, epoch); the same arguments give the same batches again."""
    tokens = open_corpus().tokens[split]
    if len(tokens) <= seq_len:
        stop(f"the {split} text has {len(tokens):,} tokens, fewer than one window of {seq_len:,}")

    def batches():
        order = windows(len(tokens), seq_len, seed)
        while True:
            starts, epochs = zip(*(next(order) for _ in range(batch_size)), strict=True)
            yield *gather(tokens, starts, seq_len, device), epochs[-1]

    return batches()


# ----------------------------------------------------------------------------------------------------------
# The metric


def check_causality(model, x, logits):
    """Raise ValueError if the logits of the first half of `x` change with the tokens of the second."""
    half = x.size(1) // 2
    other = x.clone()
    other[:, half:] = (x[:, half:] + 1) % BOS_ID
    moved = (model(other)[:, :half] - logits[:, :half]).abs().mean(dim=-1).max().item()
    if moved >= 0.1:  # rounding moves a logit by hundredths, the next token by whole numbers
        raise ValueError(f"the model sees tokens that it should predict: logits move by {moved:.2g} with later ones")


@torch.no_grad()
def evaluate_bpb(model, batch_size):
    """Bits per byte of held-out text: comparable between vocabularies, independent of the batch size.

    The model is asked for logits, (rows, tokens, vocabulary), and the loss is taken here: label smoothing or
    an auxiliary loss in the model's own loss does not count. The same windows are read in every case, spread
    evenly over the held-out text. The last batch is filled up with rows that do not count, so that a
    compiled model sees one shape. Tokens that stand for no byte (BOS) count in neither sum. A model that
    looks ahead is refused with a ValueError.
    """
    corpus = open_corpus()
    tokens = corpus.tokens["val"]
    device = next(model.parameters()).device
    available = (len(tokens) - 1) // MAX_SEQ_LEN
    wanted = min(EVAL_TOKENS // MAX_SEQ_LEN, available)
    starts = (np.arange(wanted) * available // wanted) * MAX_SEQ_LEN
    total_nats, total_bytes = 0.0, 0
    for first in range(0, wanted, batch_size):
        chosen = starts[first : first + batch_size]
        filled = np.pad(chosen, (0, batch_size - len(chosen)), mode="edge")
        x, y = gather(tokens, filled, MAX_SEQ_LEN, device)
        logits = model(x)
        if logits.shape[:2] != x.shape or logits.size(-1) < VOCAB_SIZE:
            raise ValueError(f"model(x) gave {tuple(logits.shape)}, not logits of {(*x.shape, VOCAB_SIZE)}")
        if first == 0:
            check_causality(model, x, logits)
        rows = zip(logits[: len(chosen)], y, strict=False)  # row by row: the batch in fp32 may not fit again
        nats = torch.stack([F.cross_entropy(row.float(), target, reduction="none") for row, target in rows])
        n_bytes = corpus.token_bytes[y[: len(chosen)].cpu()]
        total_nats += nats.cpu().double()[n_bytes > 0].sum().item()
        total_bytes += int(n_bytes.sum())
    return total_nats / (math.log(2) * total_bytes)


# ----------------------------------------------------------------------------------------------------------


def wanted_source(args, known):
    """(source, shards or None) that the command line asks for; what it leaves open is as in the manifest."""
    source = known and known["source"]
    if args.corpus:
        source = CLIMBMIX if args.corpus == CLIMBMIX else str(Path(args.corpus).resolve())
    if source != CLIMBMIX:
        return (source, None) if args.shards is None else stop("--shards goes with --corpus climbmix")
    kept = known["shards"] if known and known["source"] == CLIMBMIX and not args.corpus else DEFAULT_SHARDS
    shards = kept if args.shards is None else args.shards
    return (source, shards) if 1 <= shards <= MAX_SHARDS else stop(f"--shards {shards}: takes 1 to {MAX_SHARDS}")


def main():
    parser = argparse.ArgumentParser(description="Prepare the corpus and tokenizer that train.py reads.")
    parser.add_argument(
        "--corpus", metavar="PATH", help="climbmix, or a file or folder of .txt, .md, .py, .jsonl or .parquet"
    )
    parser.add_argument(
        "--shards",
        metavar="N",
        type=int,
        help=f"of climbmix to train on, 1 to {MAX_SHARDS}, {DEFAULT_SHARDS} unless set",
    )
    parser.add_argument("--force", action="store_true", help="prepare again from what the source holds now")
    args = parser.parse_args()
    known = read_manifest(MANIFEST)
    source, shards = wanted_source(args, known)
    same = known and (known["source"], known.get("shards")) == (source, shards)
    if not args.force and same and is_ready(known):
        manifest = known
        print("Already prepared")
    else:
        print(f"Reading {source or 'the Python source on this machine'}", flush=True)
        files = list_files(source, shards)
        digest = content_hash(files)
        if args.force:
            shutil.rmtree(CORPORA / digest, ignore_errors=True)
        manifest = prepared(source, digest) or build(files, source, digest)
        point_here(manifest)
    tokens = manifest["train_tokens"] + manifest["val_tokens"]
    size = manifest["train_bytes"] + manifest["val_bytes"]
    print(f"Corpus:      {manifest['name']} for the {PROFILE} profile, in {CORPORA / manifest['hash']}")
    print(f"Files:       {manifest['files']:,}; documents: {manifest['documents']:,}")
    for reason, count in manifest["left_out"].items():
        print(f"Left out:    {count:,} {reason}")
    print(f"Tokens:      {manifest['train_tokens']:,} to train on, {manifest['val_tokens']:,} held out")
    print(f"Bytes/token: {size / tokens:.2f}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("prepare.py: interrupted; run it again to go on", file=sys.stderr)
        raise SystemExit(130) from None
