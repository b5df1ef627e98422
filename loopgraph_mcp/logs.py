"""Logs to stderr: lines for people, or one JSON object a line for programs."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from loopgraph_mcp.config import Settings
from loopgraph_mcp.text import plain, plain_line, quoted, visible

_MOST_CHARS = 4_000  # of one record: what others send may be long

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
            "message": plain_line(record.getMessage(), limit=_MOST_CHARS),
            **plain(getattr(record, "fields", {})),
        }
        if record.exc_info:
            line["traceback"] = visible(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class _Lines(logging.Formatter):
    """One line a record; what others sent is in it as words, and a traceback's lines begin with a mark."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname} {record.name}: {plain_line(record.getMessage(), limit=_MOST_CHARS)}"
        trace = [] if not record.exc_info else quoted(self.formatException(record.exc_info), "  | ")
        return "\n".join([line, *trace])


def handler_of(settings: Settings, target: TextIO) -> logging.Handler:
    """Return what writes records as the settings say."""
    handler = logging.StreamHandler(target)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Lines())
    return handler


def set_up(settings: Settings) -> None:
    """Send this process's log to stderr, as the settings say."""
    logging.basicConfig(level=settings.log_level, handlers=[handler_of(settings, sys.stderr)])
    for name, least in _LEAST.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
