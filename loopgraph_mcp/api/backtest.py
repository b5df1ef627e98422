"""Runs `loopgraph backtest`: files in, the report out."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from loopgraph_mcp.api.replays import replay_of
from loopgraph_mcp.ingest.files import expand, read_file
from loopgraph_mcp.ingest.histories import read_history
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.ranking import backtest
from loopgraph_mcp.ranking.backtest import Replay, Report


def read_replay(path: Path) -> Replay:
    """Return the history in a file.

    Raises:
        HistoryError: It holds none.
    """
    replay = replay_of(read_history(read_file(path), name=path.name))
    published = {each.fingerprint: each.owner for each in read_day_one().histories}
    return dataclasses.replace(replay, owner=published.get(replay.fingerprint, replay.owner))


def run(
    files: Sequence[Path],
    memory: Sequence[Path],
    *,
    bundled: bool,
    held_out: bool = False,
    own_searches: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Replay the histories in files; see `backtest.run`.

    Args:
        files: Histories to be predicted.
        memory: Histories to learn from.
        bundled: Whether to learn from the histories bundled with LoopGraph as well.
        held_out: Whether to replay only histories of owners that were set aside to judge the prior.
        own_searches: Whether an owner's other histories are known too, as the owner's other searches.
        progress: Called with each history's name as its turn comes.

    Raises:
        HistoryError: A file cannot be read.
    """
    replays = [read_replay(path) for path in expand(files)]
    learned = [backtest.counted(read_replay(path)) for path in expand(memory)]
    if bundled:
        given = {each.fingerprint for each in learned}
        learned += [each for each in read_day_one().counted() if each.fingerprint not in given]
    judged = [each for each in replays if backtest.is_held_out(each.owner) or not held_out]
    return backtest.run(judged, learned, own_searches=own_searches, progress=progress)
