"""Tells what changed between two runs from the parameters that a tracker's export gives for each; pure."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.ingest.cells import clean
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.descriptions import read_moves

_SEEDS = frozenset({"seed", "random_seed", "random_state", "rng_seed", "manual_seed"})
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
_FLAGS: Mapping[str, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHOWN = 6
_MAX_SHOWN_VALUE = 40
_MAX_MOVES = 40


@dataclass(frozen=True, slots=True)
class Difference:
    """One parameter with its value before and after; an empty one was not given."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        """Return the difference in a few words."""
        return f"{self.name} {self.old[:_MAX_SHOWN_VALUE] or 'unset'} -> {self.new[:_MAX_SHOWN_VALUE] or 'unset'}"


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    """Return the parameters that differ between two runs, in the order of the later one; the seed is none."""
    names = [*new, *(name for name in old if name not in new)]
    return [
        Difference(name, old.get(name, "").strip(), new.get(name, "").strip())
        for name in names
        if name.rsplit(".", 1)[-1] not in _SEEDS and not _same(old.get(name, ""), new.get(name, ""))
    ]


def is_other_seed(old: Mapping[str, str], new: Mapping[str, str]) -> bool:
    """Return whether two runs differ in their seed alone."""
    seeds = [name for name in new if name.rsplit(".", 1)[-1] in _SEEDS]
    return bool(seeds) and any(not _same(old.get(name, ""), new[name]) for name in seeds) and not differences(old, new)


def in_words(found: Sequence[Difference]) -> str:
    """Return differences as a description of what was done."""
    words = ", ".join(map(str, found[:_SHOWN]))
    return clean(words + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""))


def moves_of(found: Sequence[Difference]) -> tuple[Move, ...]:
    """Return a move for each parameter that differs: its knob where we know it, or else its own name."""
    made: dict[str, Move] = {}
    for each in found[:_MAX_MOVES]:
        move = _move(each)
        made.setdefault(move.knob, move)
    return tuple(made.values())


def knobs_of(names: Iterable[str]) -> set[str]:
    """Return the knobs that parameters of these names turn."""
    return {_knob(Difference(name, "", ""))[0] for name in names}


def _move(each: Difference) -> Move:
    old, new = _number(each.old), _number(each.new)
    knob, word = _knob(each)
    if new is not None:
        way = 0 if old is None else (new > old) - (new < old)
        return Move(knob, way, new, old)
    flag = _FLAGS.get(each.new.casefold())
    if flag is not None:
        return Move(knob, 1 if flag else -1)
    if not each.new or each.new.casefold() in {"none", "null"}:
        return Move(knob, -1, old=old)
    return Move(knob, 0, old=old, word=word)


def _knob(each: Difference) -> tuple[str, str]:
    """Return the knob that a parameter turns, and the word that it is set to."""
    leaf = each.name.rsplit(".", 1)[-1]
    words = " ".join(re.split(r"[\W_]+", leaf))
    plain = clean(each.new).casefold()[:_MAX_SHOWN_VALUE]
    found = read_moves(f"{words} {plain}" if words in {"activation", "act", "act fn"} else words)
    if words == "activation" and found[0].knob == "activation":
        return "activation", found[0].word or plain
    if len(found) == 1 and found[0].knob not in {"other", "activation", "systems"}:
        if found[0].knob == "window" and _number(each.new) is None:
            return "window", plain
        return found[0].knob, plain
    name = re.sub(r"[^a-z0-9_.]+", "_", each.name.casefold()).strip("_.")[:_MAX_SHOWN_VALUE]
    return name or "other", plain


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    left, right = _number(one), _number(other)
    if left is not None or right is not None:
        return left == right
    return one.strip().casefold() == other.strip().casefold()


def _number(text: str) -> float | None:
    if len(text) > _MAX_SHOWN_VALUE or not _NUMBER.fullmatch(text.strip()):
        return None
    value = float(text)
    return value if math.isfinite(value) else None
