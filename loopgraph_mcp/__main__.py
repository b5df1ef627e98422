"""Starts the server: what `loopgraph-mcp` and `python -m loopgraph_mcp` run."""

import gc

gc.set_threshold(100_000, 20, 100)  # modules stay, and syntax trees hold no cycles: both are made sooner like this

from loopgraph_mcp.server import main  # noqa: E402 - once the collector looks seldom

if __name__ == "__main__":
    main()
