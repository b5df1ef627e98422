"""Makes loopgraph_mcp/day_one.json anew from a folder of published histories.

The folder holds the histories and index.jsonl, which names for each its repository, commit, path, platform and licence.
"""

import argparse
import json
from pathlib import Path

from loopgraph_mcp.api.backtest import read_replay
from loopgraph_mcp.api.replays import fingerprint
from loopgraph_mcp.ingest.published import DAY_ONE, PublishedHistory, write_day_one
from loopgraph_mcp.ranking.prior import lessons


def main() -> None:
    """Read the histories, write what they teach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = []
    for line in sorted((folder / "index.jsonl").read_text(encoding="utf-8").splitlines()):
        entry = json.loads(line)
        replay = read_replay(folder / f"{entry['id']}.tsv")
        source = PublishedHistory(
            owner=replay.owner,
            repository=entry["repo"],
            commit=entry["ref_or_commit"],
            path=entry["path"],
            platform=entry["platform"],
            licence=entry["licence"],
            rows=len(replay.tries),
            fingerprint=fingerprint(replay.tries),
        )
        found.append((source, lessons(replay.tries, owner=replay.owner, higher_is_better=replay.higher_is_better)))
    write_day_one(found)
    print(f"{DAY_ONE}: {sum(len(each) for _, each in found)} lessons of {len(found)} histories")


if __name__ == "__main__":
    main()
