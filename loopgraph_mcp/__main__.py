"""Starts the server, for `loopgraph-mcp` and `python -m loopgraph_mcp`."""

import gc
import os
import sys

from loopgraph_mcp.runner.kernel import hide_memory

hide_memory()  # before all else, which takes half a second: runs of earlier servers look around
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH109, PTH120
    del sys.path[0]  # `python -m` in a workspace: its mcp.py is not the one that is imported below
gc.set_threshold(100_000, 20, 100)  # modules stay, and syntax trees hold no cycles: both are made sooner like this

from loopgraph_mcp.server.app import main  # noqa: E402 - once the collector looks seldom

if __name__ == "__main__":
    main()
