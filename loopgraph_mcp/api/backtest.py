"""Runs `loopgraph backtest`: files in, the report out."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from loopgraph_mcp.api.replays import fingerprint, replay_of
from loopgraph_mcp.ingest.files import expand, read_file
from loopgraph_mcp.ingest.histories import read_history
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.ranking import backtest
from loopgraph_mcp.ranking.backtest import Ranker, Replay, Report


def read_replay(path: Path) -> Replay:
    """Return the history in a file.

    Raises:
        HistoryError: It holds none.
    """
    replay = replay_of(read_history(read_file(path), name=path.name))
    published = {each.fingerprint: each.owner for each in read_day_one().histories}
    return dataclasses.replace(replay, owner=published.get(fingerprint(replay.tries), replay.owner))


def run(
    files: Sequence[Path], memory: Sequence[Path], *, day_one: bool, progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Replay the histories in files against what others teach.

    An owner's shipped lessons give way to the owner's own files where they are given, and lessons of a history's owner
    never count for it.

    Raises:
        HistoryError: A file cannot be read.
    """
    histories = [read_replay(path) for path in expand(files)]
    others = [read_replay(path) for path in expand(memory)]
    given = {each.owner for each in others}
    shipped = [lesson for lesson in read_day_one().lessons if lesson.owner not in given] if day_one else []
    extra: dict[str, Ranker] = {}
    if importlib.util.find_spec("auto_steer") is not None:  # its categories are all it says of a change
        classify = importlib.import_module("auto_steer").classify_experiment
        extra["autosteer: category win rate here"] = backtest.by_category(lambda text: classify(text, ""))
    taught = [*shipped, *backtest.taught_by(others)]
    return backtest.run(histories, taught, others=others, extra=extra, progress=progress)
