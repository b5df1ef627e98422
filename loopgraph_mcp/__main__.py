"""Starts the server: what `loopgraph-mcp` and `python -m loopgraph_mcp` run."""

import gc


def main() -> None:
    """Serve; see `loopgraph-mcp --help`."""
    gc.set_threshold(100_000, 20, 100)  # modules stay, and syntax trees hold no cycles: both are made sooner like this
    from loopgraph_mcp import server  # noqa: PLC0415 - once the collector looks seldom

    server.main()


if __name__ == "__main__":
    main()
