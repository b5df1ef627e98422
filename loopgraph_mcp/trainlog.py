"""Reads a training log: the progress line while it runs, the summary block at its end. The log is untrusted text."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|[-+]?inf"
_SUMMARY_LINE = re.compile(rf"^\s*([A-Za-z_][\w./-]*)\s*[:=]\s*({_NUMBER})\s*$", re.IGNORECASE)
_STEP = re.compile(r"\bstep[ :=]+(\d{1,12})")
_PERCENT = re.compile(r"\((\d+(?:\.\d+)?)%\)")
_LOSS = re.compile(rf"\bloss[ :=]+({_NUMBER})", re.IGNORECASE)
_REMAINING = re.compile(r"\bremaining[ :=]+(\d+(?:\.\d+)?)s")
_MAX_LINE = 4_000


@dataclass(frozen=True, slots=True)
class Progress:
    """The last progress line: step, percent of the budget, smoothed loss, seconds of training that remain."""

    step: int
    percent: float | None = None
    loss: float | None = None
    remaining_s: float | None = None


def lines_of(log: str) -> list[str]:
    """Split a log at newlines and at the carriage returns with which progress lines overwrite themselves."""
    return [line[:_MAX_LINE].rstrip() for line in re.split(r"[\r\n]+", log)]


def parse_progress(tail: str) -> Progress | None:
    """Return the newest progress line in the end of a log, or None."""
    for line in reversed(lines_of(tail)):
        if (step := _STEP.search(line)) is None:
            continue
        percent, loss, remaining = _PERCENT.search(line), _LOSS.search(line), _REMAINING.search(line)
        return Progress(
            step=int(step.group(1)),
            percent=float(percent.group(1)) if percent else None,
            loss=_to_float(loss.group(1)) if loss else None,
            remaining_s=float(remaining.group(1)) if remaining else None,
        )
    return None


def parse_summary(log: str, metric: str) -> Mapping[str, float]:
    """Return the numbers by name of the last block of `name: value` lines that holds the metric.

    The block may follow a line `---`, as autoresearch prints it, or stand alone. Empty where there is no such block.
    """
    block: dict[str, float] = {}
    best: dict[str, float] = {}
    for line in lines_of(log):
        if match := _SUMMARY_LINE.match(line):
            block[match.group(1)] = _to_float(match.group(2))
            if metric in block:
                best = block
        elif line.strip():
            block = {}
    return dict(best)


def tail_lines(log: str, *, count: int) -> str:
    """Return the last lines of a log, each progress line overwritten by its last, and control characters dropped."""
    kept: list[str] = []
    for line in lines_of(log):
        text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]", "", line)
        if not text.strip():
            continue
        if kept and _STEP.search(text) and _STEP.search(kept[-1]):
            kept[-1] = text
        else:
            kept.append(text)
    return "\n".join(kept[-count:])


def looks_out_of_memory(tail: str) -> bool:
    """Return whether the end of a log tells of memory running out."""
    return bool(re.search(r"out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|std::bad_alloc", tail))


def looks_diverged(tail: str) -> bool:
    """Return whether the trainer gave up on a NaN or exploding loss (autoresearch prints FAIL)."""
    return any(line.strip() == "FAIL" for line in lines_of(tail)[-5:])


def is_finite(value: float | None) -> bool:
    """Return whether a metric can be compared at all."""
    return value is not None and math.isfinite(value)


def _to_float(text: str) -> float:
    return float(text.replace(",", ""))
