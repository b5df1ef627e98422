"""LoopGraph: the memory layer for autonomous ML research."""

import sys

if sys.platform == "win32":
    raise ImportError("LoopGraph runs on Linux and macOS; on Windows use WSL")

__version__ = "0.1.0"
