"""LoopGraph: the memory layer for autonomous ML research."""

import gc
import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("LoopGraph runs on Linux and macOS; on Windows use WSL")

if TYPE_CHECKING:
    from loopgraph_mcp.api.loopgraph import LoopGraph
    from loopgraph_mcp.api.wrap import wrap

__version__ = "0.1.0"
__all__ = ["LoopGraph", "__version__", "wrap"]


_SDK = {"LoopGraph": "loopgraph_mcp.api.loopgraph", "wrap": "loopgraph_mcp.api.wrap"}


def __getattr__(name: str) -> Any:
    """Import the SDK when it is first asked for: most that import the package need only a part of it."""
    if name not in _SDK:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    was_enabled = gc.isenabled()
    gc.disable()  # modules stay, and looking through them takes a tenth of the import
    try:
        return getattr(importlib.import_module(_SDK[name]), name)
    finally:
        if was_enabled:
            gc.enable()
