"""Reads the metric of a log file; with a regular expression, in a process of its own that can be ended.

Python's `re` can take longer than the age of the universe on one line, and which expression does cannot be decided by
looking at it. The expression comes with a workspace, which may be a repository that somebody else wrote.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from loopgraph_mcp.models import Direction
from loopgraph_mcp.runner import environment
from loopgraph_mcp.runner.plain_files import open_plain
from loopgraph_mcp.runner.printed import Found, NotFound, Wanted, read_log

PATTERN_TIMEOUT_S = 30.0  # 64 MiB with an ordinary expression take about a second


def read_metric(path: Path, wanted: Wanted, *, timeout_s: float = PATTERN_TIMEOUT_S) -> Found | NotFound:
    """Return the metric that a log holds, or why it holds none."""
    if wanted.pattern is not None:
        return _read_apart(path, wanted, timeout_s)
    try:
        with os.fdopen(open_plain(path), "rb") as log:
            return read_log(log, wanted)
    except OSError as error:
        return NotFound(f"the log {path} cannot be read ({error})")


def _read_apart(path: Path, wanted: Wanted, timeout_s: float) -> Found | NotFound:
    try:
        done = subprocess.run(  # the expression goes to its standard input
            [sys.executable, "-P", "-m", "loopgraph_mcp.runner.metric_log"],  # -P: never a module of the working folder
            input=json.dumps({"path": str(path), **asdict(wanted)}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**environment.for_probe(os.environ), **environment.python_path(os.environ)},
            check=True,
        )
    except subprocess.TimeoutExpired:
        return NotFound(
            f"`pattern` took over {timeout_s:g} s on this log and was stopped; "
            "simplify it in loopgraph.toml: no repeat inside a repeat"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return NotFound(f"the log could not be searched with `pattern` ({error})")
    answer = json.loads(done.stdout)
    return NotFound(answer["reason"]) if "reason" in answer else Found(**answer)


def main() -> None:
    """Read the metric that standard input asks for; print it as JSON."""
    asked = json.loads(sys.stdin.read())
    path, direction = Path(asked.pop("path")), Direction(asked.pop("direction"))
    with os.fdopen(open_plain(path), "rb") as log:
        answer = read_log(log, Wanted(**asked, direction=direction))
    sys.stdout.write(json.dumps(asdict(answer)))


if __name__ == "__main__":
    main()
