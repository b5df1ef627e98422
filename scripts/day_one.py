"""Makes loopgraph_mcp/day_one.json from a folder of published histories.

The folder holds the histories and index.jsonl, which names for each its repository, commit, path, platform and licence.
"""

import argparse
import json
from pathlib import Path

from loopgraph_mcp.api.replays import replay_of
from loopgraph_mcp.ingest.histories import read_history
from loopgraph_mcp.ingest.published import DAY_ONE, PublishedHistory, write_day_one
from loopgraph_mcp.ranking.backtest import Replay
from loopgraph_mcp.ranking.prior import count_kinds


def _read(path: Path) -> Replay:
    """Return one history, its owner as the file's name says: the bundled prior is what is being made."""
    return replay_of(read_history(path.read_text(encoding="utf-8"), name=path.name))


def main() -> None:
    """Read the histories and write their counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = []
    for line in sorted((folder / "index.jsonl").read_text(encoding="utf-8").splitlines()):
        entry = json.loads(line)
        replay = _read(folder / f"{entry['id']}.tsv")
        source = PublishedHistory(
            owner=replay.owner,
            repository=entry["repo"],
            commit=entry["ref_or_commit"],
            path=entry["path"],
            platform=entry["platform"],
            licence=entry["licence"],
            rows=len(replay.trials),
            fingerprint=replay.fingerprint,
        )
        found.append((source, count_kinds(replay.trials, owner=replay.owner)))
    write_day_one(found)
    print(f"{DAY_ONE}: {sum(len(each) for _, each in found)} counts of {len(found)} histories")


if __name__ == "__main__":
    main()
