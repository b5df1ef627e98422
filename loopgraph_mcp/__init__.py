"""LoopGraph: the memory layer for autonomous ML research."""

__version__ = "0.1.0"
