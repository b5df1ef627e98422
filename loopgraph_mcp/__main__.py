"""Starts the server, for `loopgraph-mcp` and `python -m loopgraph_mcp`."""

import gc
import os
import sys

from loopgraph_mcp.runner.kernel import hide_memory

hide_memory()  # before all else, which takes half a second: runs of earlier servers look around
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):  # noqa: PTH109, PTH120
    del sys.path[0]  # `python -m` in a workspace: its mcp.py is not the one that is imported below
gc.disable()  # while modules are imported: they stay, and looking through them takes a tenth of a start

from loopgraph_mcp.server.app import main  # noqa: E402 - once the collector is off

gc.freeze()
gc.set_threshold(100_000, 20, 100)  # syntax trees hold no cycles and are made sooner like this
gc.enable()

if __name__ == "__main__":
    main()
