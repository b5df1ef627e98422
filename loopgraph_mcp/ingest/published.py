"""What other people's published histories teach, shipped with the package: weak evidence from the first search on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loopgraph_mcp.ranking.prior import Lesson

DAY_ONE = Path(__file__).parent.parent / "day_one.json"
_DIGITS = 4
_OF_TRIES = (0, None, None)  # the last columns of a row, which leaves them out where no tries are told


@dataclass(frozen=True, slots=True)
class PublishedHistory:
    """Where lessons come from.

    Args:
        repository: Its owner and name.
        commit: The commit that was read.
        path: The file in it.
        platform: What it ran on, in its author's words.
        licence: Of its data.
        rows: How many rows it has.
        fingerprint: Of its metric values; the history under another name is still its owner's.
    """

    owner: str
    repository: str
    commit: str
    path: str
    platform: str
    licence: str
    rows: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class DayOne:
    """Lessons with their sources; `lessons[n]` comes from `histories[sources[n]]`."""

    histories: tuple[PublishedHistory, ...]
    lessons: tuple[Lesson, ...]
    sources: tuple[int, ...]


@lru_cache(maxsize=1)
def read_day_one(path: Path = DAY_ONE) -> DayOne:
    """Return the shipped lessons; nothing of them is worked out here, `scripts/day_one` does that."""
    content = json.loads(path.read_text(encoding="utf-8"))
    histories = tuple(PublishedHistory(**each) for each in content["histories"])
    rows = content["lessons"]
    lessons = tuple(_lesson(histories[row[0]].owner, row[1:]) for row in rows)
    return DayOne(histories, lessons, tuple(row[0] for row in rows))


def write_day_one(found: Sequence[tuple[PublishedHistory, Sequence[Lesson]]], path: Path = DAY_ONE) -> None:
    """Write lessons down, one line each, the same bytes for the same histories."""
    histories = [_fields(history) for history, _ in found]
    rows = [[index, *_row(lesson)] for index, (_, lessons) in enumerate(found) for lesson in lessons]
    dumped = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    columns = ["history", "about", "level", "expected", "kept", "tries", "values", "gains"]
    text = (
        '{"columns": ' + json.dumps(columns) + ',\n"histories": [\n'
        + ",\n".join(json.dumps(each, ensure_ascii=False, sort_keys=True) for each in histories)
        + '\n],\n"lessons": [\n' + ",\n".join(dumped) + "\n]}\n"
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")


def _fields(history: PublishedHistory) -> Mapping[str, Any]:
    return {name: getattr(history, name) for name in PublishedHistory.__slots__}


def _row(lesson: Lesson) -> list[Any]:
    row = [
        lesson.about,
        _rounded(lesson.level),
        round(lesson.expected, _DIGITS),
        round(lesson.kept, _DIGITS),
        lesson.tries,
        lesson.values,
        None if lesson.gains is None else [float(f"{gain:.3g}") for gain in lesson.gains],
    ]
    return row if lesson.tries else row[: -len(_OF_TRIES)]


def _lesson(owner: str, row: Sequence[Any]) -> Lesson:
    about, level, expected, kept, *of_tries = row
    tries, values, gains = of_tries or _OF_TRIES
    return Lesson(owner, about, _pair(level), expected, kept, tries, _pair(values), _pair(gains))


def _pair(value: Sequence[float] | None) -> tuple[float, float] | None:
    return None if value is None else (value[0], value[1])


def _rounded(pair: tuple[float, float] | None) -> list[float] | None:
    return None if pair is None else [round(each, _DIGITS) for each in pair]
