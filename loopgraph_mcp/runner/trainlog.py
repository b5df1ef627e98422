"""Reads a training log as a terminal would show it: its lines, its progress, its end. The log is untrusted text."""

import math
import re
from dataclasses import dataclass

from loopgraph_mcp.text import compile_later

_STEP = compile_later(r"\b(?:step|iter(?:ation)?)[\"' :=]+([0-9]{1,12})", re.IGNORECASE)
_PERCENT = compile_later(r"\(([0-9]{1,3}(?:\.[0-9]+)?)%\)")
_LOSS = compile_later(
    r"\bloss[\"' :=]+([-+]?(?:[0-9]{1,20}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?|nan|[-+]?inf)", re.IGNORECASE
)
_REMAINING = compile_later(r"\bremaining[ :=]+([0-9]{1,12}(?:\.[0-9]+)?)s")
# tqdm: `45%|####5     | 450/1000 [00:30<00:37, 14.8it/s, loss=2.31]`
_BAR = compile_later(r"([0-9]{1,3})%\|[^|\n]{0,300}\| *([0-9]{1,12})/[0-9]{1,12} \[[0-9:]{1,12}<([0-9:]{1,12})")
_MAX_LINE = 4_000  # characters; longer lines are data
# Colours, titles and links vanish; what moves the cursor begins another line, as it overwrites what was there.
_STYLE = compile_later(r"\x1b(?:\[[0-9;:]*[mK]|\[\?[0-9;]*[hl]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|[()][0-9A-Za-z])")
_MOVE = compile_later(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|[@-Z^-~=>78])|\x08+")
_CONTROLS = compile_later(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Progress:
    """The last progress line: step, percent of the budget, smoothed loss, seconds of training that remain."""

    step: int
    percent: float | None = None
    loss: float | None = None
    remaining_s: float | None = None


def plain(log: str) -> str:
    """Return a log without colour codes, each state of a line that was overwritten as a line of its own."""
    if "\x1b" in log:
        log = _STYLE.sub("", log)
    if "\x1b" in log or "\x08" in log:
        log = _MOVE.sub("\n", log)
    return log.replace("\r\n", "\n").replace("\r", "\n") if "\r" in log else log


def lines_of(log: str) -> list[str]:
    """Split a log at newlines and at the carriage returns with which progress lines overwrite themselves."""
    return [line[:_MAX_LINE].rstrip() for line in re.split(r"\n+", plain(log))]


def parse_progress(tail: str) -> Progress | None:
    """Return the newest progress line in the end of a log, or None."""
    return next((found for line in reversed(lines_of(tail)) if (found := _progress(line)) is not None), None)


def all_progress(log: str) -> list[Progress]:
    """Return every progress line of a log, oldest first."""
    return [found for line in lines_of(log) if (found := _progress(line)) is not None]


def _progress(line: str) -> Progress | None:
    loss = _LOSS.search(line)
    if bar := _BAR.search(line):
        return Progress(
            step=int(bar.group(2)),
            percent=float(bar.group(1)),
            loss=float(loss.group(1)) if loss else None,
            remaining_s=_seconds(bar.group(3)),
        )
    if step := _STEP.search(line):
        percent, remaining = _PERCENT.search(line), _REMAINING.search(line)
        return Progress(
            step=int(step.group(1)),
            percent=float(percent.group(1)) if percent else None,
            loss=float(loss.group(1)) if loss else None,
            remaining_s=float(remaining.group(1)) if remaining else None,
        )
    return None


def _seconds(clock: str) -> float:
    """Return the seconds of `1:02:03`, `02:03` or `03`."""
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part or 0)
    return float(seconds)


def shows_progress(line: str) -> bool:
    """Return whether a line says how far the training is."""
    return bool(_BAR.search(line) or _STEP.search(line))


def tail_lines(log: str, *, count: int) -> str:
    """Return the last lines of a log, each progress line overwritten by its last, and control characters dropped."""
    kept: list[str] = []
    for line in lines_of(log):
        text = _CONTROLS.sub("", line)
        if not text.strip():
            continue
        if kept and _STEP.search(text) and _STEP.search(kept[-1]):
            kept[-1] = text
        else:
            kept.append(text)
    return "\n".join(kept[-count:])


def looks_out_of_memory(tail: str) -> bool:
    """Return whether the end of a log reports that memory ran out."""
    return bool(re.search(r"out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|std::bad_alloc", tail))


def looks_diverged(tail: str) -> bool:
    """Return whether the trainer gave up on a NaN or exploding loss (autoresearch prints FAIL)."""
    return any(line.strip() == "FAIL" for line in lines_of(tail)[-5:])


def is_finite(value: float | None) -> bool:
    """Return whether a metric can be compared at all."""
    return value is not None and math.isfinite(value)
