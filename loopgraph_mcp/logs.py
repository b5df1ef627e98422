"""Logs to stderr: lines for people, or one JSON object a line for programs."""

import json
import logging
import sys
from datetime import UTC, datetime

from loopgraph_mcp.config import Settings

# Below these levels they write down every statement with its values, every answer, or what a refused call asked for.
_LEAST = {
    "aiosqlite": logging.INFO,
    "asyncio": logging.INFO,
    "httpcore2": logging.INFO,
    "httpx2": logging.INFO,
    "mcp.server.mcpserver": logging.WARNING,
    "sse_starlette": logging.INFO,
}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(settings: Settings) -> None:
    """Send this process's log to stderr, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    json_lines = settings.log_format == "json"
    handler.setFormatter(_Json() if json_lines else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    for name, least in _LEAST.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
