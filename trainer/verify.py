"""Evaluates what a run trained once more, out of reach of the run's own code. Agents do not edit it.

    python verify.py               evaluate LOOPGRAPH_STATE_DIR/state.pt (or ./state.pt), print val_bpb

train.py builds the model in a process of its own, which gets tokens and gives logits. The held-out text, the targets
and the loss are here: whatever train.py replaces in its process, this one does not see it. Each batch is asked for a
second time with other text behind a random place of each row, in random order: a model that looks ahead answers the
two with different losses, and cannot know which of them counts.
"""

import contextlib
import ctypes
import mmap
import os
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# isort: split
from prepare import BOS_ID, DEVICE, MANIFEST, MAX_SEQ_LEN, VOCAB_SIZE, evaluate_bpb, held_out_hash, open_corpus

SHAPE = struct.Struct("qq")  # rows at once, and logits for each token
MAX_ROWS = 4096
MAX_VOCAB = 16 * VOCAB_SIZE  # a model may have more logits than tokens; this bounds the memory for them
MOVED = 0.5  # nats that the loss of one token moves with later ones; rounding moves it by hundredths
NEAR = 16  # tokens before the place where a text is changed: there, a model that looks ahead loses what it gained
LEAKED = 0.02  # nats that these lose together in the mean; rounding goes both ways


def stop(message):
    print(f"verify.py: {message}", flush=True)
    raise SystemExit(1)


# ----------------------------------------------------------------------------------------------------------
# What both processes share


class Exchange:
    """Memory for the tokens of a batch and for its logits, seen by both processes."""

    def __init__(self, file, rows, vocab):
        tokens, logits = rows * MAX_SEQ_LEN * 8, rows * MAX_SEQ_LEN * vocab * 4
        self.memory = mmap.mmap(file, tokens + logits)
        self.tokens = self._part(np.int64, 0, (rows, MAX_SEQ_LEN))
        self.logits = self._part(np.float32, tokens, (rows, MAX_SEQ_LEN, vocab))
        if DEVICE == "cuda":  # locked pages copy several times as fast
            with contextlib.suppress(RuntimeError, AttributeError):
                torch.cuda.cudart().cudaHostRegister(self.logits.data_ptr(), logits, 0)

    @staticmethod
    def size(rows, vocab):
        return rows * MAX_SEQ_LEN * (8 + 4 * vocab)

    def _part(self, dtype, offset, shape):
        array = np.frombuffer(self.memory, dtype, count=int(np.prod(shape)), offset=offset)
        return torch.from_numpy(array.reshape(shape))


# ----------------------------------------------------------------------------------------------------------
# In the process of train.py


@torch.no_grad()
def answer(model, rows, autocast, files):
    """Give the model's logits for the tokens in the shared memory, until nobody asks any more."""
    asked, answered, shared = map(int, files.split(","))
    model.eval()
    call = torch.compile(model, dynamic=False) if DEVICE == "cuda" else model

    def logits(tokens):
        with autocast():
            return call(tokens.to(DEVICE)).float()

    while True:
        try:
            vocab = logits(torch.zeros(rows, MAX_SEQ_LEN, dtype=torch.long)).size(-1)
            break
        except RuntimeError as error:
            if rows == 1 or "out of memory" not in str(error).lower():
                raise
        rows //= 2
    os.write(answered, SHAPE.pack(rows, vocab))
    if os.read(asked, 1):
        exchange = Exchange(shared, rows, vocab)
        os.write(answered, b".")
        while os.read(asked, 1):
            exchange.logits.copy_(logits(exchange.tokens))
            os.write(answered, b".")


# ----------------------------------------------------------------------------------------------------------
# In the process that evaluates


class Apart(nn.Module):
    """A model in another process, which is trusted with nothing but its logits."""

    def __init__(self, process, ask, answers, shared):
        super().__init__()
        self.process, self.ask, self.answers = process, ask, answers
        self.place = nn.Parameter(torch.zeros((), device=DEVICE), requires_grad=False)  # says on which device it is
        rows, vocab = SHAPE.unpack(self._answer(SHAPE.size))
        if not (0 < rows <= MAX_ROWS and VOCAB_SIZE <= vocab <= MAX_VOCAB):
            stop(f"train.py offers {rows} rows of {vocab} logits; at most {MAX_ROWS} and {MAX_VOCAB} can be taken")
        os.ftruncate(shared, Exchange.size(rows, vocab))
        self.rows = rows
        self.leaked = []
        self.exchange = Exchange(shared, rows, vocab)
        self._go()

    def _answer(self, size):
        got = b""
        while len(got) < size:
            part = os.read(self.answers, size - len(got))
            if not part:
                stop("train.py could not answer with the state that the run left")
            got += part
        return got

    def _go(self):
        with contextlib.suppress(BrokenPipeError):
            os.write(self.ask, b".")
        self._answer(1)

    def _logits(self, x):
        self.exchange.tokens.copy_(x)
        self._go()
        return self.exchange.logits.to(DEVICE, copy=True)  # a copy: the other process can write to the original

    def forward(self, x):
        cut = torch.randint(1, x.size(1), (x.size(0), 1), device=x.device)
        behind = torch.arange(x.size(1), device=x.device) >= cut
        foreign = x.roll(1, 0) if x.size(0) > 1 else (x + 1) % BOS_ID
        both = [x, torch.where(behind, foreign, x)]
        swapped = bool(secrets.randbelow(2))
        first, second = map(self._logits, both[::-1] if swapped else both)
        logits, other = (second, first) if swapped else (first, second)
        for row, end in enumerate(cut.flatten().tolist()):  # row by row: the batch may not fit a third time
            known, target = slice(None, end), x[row, 1 : end + 1]
            nats = [F.cross_entropy(each[row, known], target, reduction="none") for each in (logits, other)]
            lost = nats[1] - nats[0]
            if not lost.abs().max().item() < MOVED:
                stop(f"the model sees tokens that it should predict: a loss moves by {lost.abs().max():.2g} with them")
            self.leaked.append(lost[-NEAR:].sum().item())
        return logits


def shared_file():
    if hasattr(os, "memfd_create"):
        return os.memfd_create("logits")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def hide():
    """Keep processes without privileges from this one's memory and open files."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE


def check_text():
    """Stop if the held-out text in the cache is not the one that corpus.json names."""
    corpus = open_corpus()
    known = corpus.manifest.get("held_out")
    if known and known != held_out_hash(corpus.folder):
        stop(f"{corpus.folder}: not the held-out text that {MANIFEST} names; remove it, then: python prepare.py")


def main():
    here = Path(__file__).resolve().parent
    # A module that is imported only from here on must not be one that train.py leaves in this folder.
    sys.path[:] = [path for path in sys.path if path and Path(path).resolve() != here]
    check_text()
    hide()
    shared = shared_file()
    asked, ask = os.pipe()
    answers, answered = os.pipe()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - the workspace's own program
            [sys.executable, "train.py", "--answer", f"{asked},{answered},{shared}"],
            cwd=here,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            pass_fds=(asked, answered, shared),
            start_new_session=True,
        )
        os.close(asked)
        os.close(answered)
        try:
            model = Apart(process, ask, answers, shared)
            val_bpb = evaluate_bpb(model, model.rows)
            if not fmean(model.leaked) < LEAKED:
                stop(
                    f"the model sees tokens that it should predict: they are worth {fmean(model.leaked):.2g} nats to it"
                )
        except SystemExit:
            process.kill()
            process.wait()
            size = said.seek(0, os.SEEK_END)
            said.seek(max(0, size - 2000))
            for line in said.read().decode("utf-8", "replace").splitlines()[-5:]:
                print(f"train.py | {ascii(line)[1:-1]}", file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print("---")
    print(f"{'val_bpb:':<17} {val_bpb:.6f}", flush=True)


if __name__ == "__main__":
    main()
