"""The prior bundled with the package: what other people's published histories show, as counts."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loopgraph_mcp.ranking.backtest import CountedHistory
from loopgraph_mcp.ranking.prior import KindCount

DAY_ONE = Path(__file__).parent.parent / "day_one.json"


@dataclass(frozen=True, slots=True)
class PublishedHistory:
    """Where counts come from.

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
    """The bundled counts with their sources; `counts[n]` comes from `histories[sources[n]]`."""

    histories: tuple[PublishedHistory, ...]
    counts: tuple[KindCount, ...]
    sources: tuple[int, ...]

    def counted(self) -> list[CountedHistory]:
        """Return the counts history by history."""
        found: dict[int, list[KindCount]] = defaultdict(list)
        for source, count in zip(self.sources, self.counts, strict=True):
            found[source].append(count)
        return [
            CountedHistory(history.owner, history.fingerprint, tuple(found[source]))
            for source, history in enumerate(self.histories)
        ]


@lru_cache(maxsize=1)
def read_day_one(path: Path = DAY_ONE) -> DayOne:
    """Return the bundled counts; `scripts/day_one` makes them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    histories = tuple(PublishedHistory(**each) for each in content["histories"])
    rows = content["counts"]
    counts = tuple(KindCount(histories[source].owner, kind, kept, trials) for source, kind, kept, trials in rows)
    return DayOne(histories, counts, tuple(source for source, *_ in rows))


def write_day_one(found: Sequence[tuple[PublishedHistory, Sequence[KindCount]]], path: Path = DAY_ONE) -> None:
    """Write counts down, one line each, the same bytes for the same histories."""
    histories = [_fields(history) for history, _ in found]
    rows = [[source, each.kind, each.kept, each.trials] for source, (_, counts) in enumerate(found) for each in counts]
    dumped = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    text = (
        '{"columns": ' + json.dumps(["history", "kind", "kept", "trials"]) + ',\n"histories": [\n'
        + ",\n".join(json.dumps(each, ensure_ascii=False, sort_keys=True) for each in histories)
        + '\n],\n"counts": [\n' + ",\n".join(dumped) + "\n]}\n"
    )  # fmt: skip
    path.write_text(text, encoding="utf-8")


def _fields(history: PublishedHistory) -> Mapping[str, Any]:
    return {name: getattr(history, name) for name in PublishedHistory.__slots__}
