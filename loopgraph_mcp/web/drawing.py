"""Draws charts where there is no browser, and holds the browser's own drawing code: both offline, by vl-convert."""

import base64
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.web.themes import Spec

EXTRA = "charts, the page and the report need an extra: pip install 'loopgraph-mcp[ui]'"
_BUNDLE = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle())"
_BUNDLE_S = 120.0


def _vl_convert() -> Any:
    try:
        return importlib.import_module("vl_convert")
    except ImportError as error:
        raise ConfigError(EXTRA) from error


def version() -> str:
    """Return the version of what draws.

    Raises:
        ConfigError: The extra is not installed.
    """
    try:  # by its metadata: importing it takes memory that a server would keep
        return importlib.metadata.version("vl-convert-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(EXTRA) from error


def svg(spec: Spec) -> str:
    """Return a chart as an SVG.

    Raises:
        ConfigError: The extra is not installed.
    """
    return str(_vl_convert().vegalite_to_svg(spec))


def png(spec: Spec, *, scale: float = 2.0) -> bytes:
    """Return a chart as a PNG.

    Raises:
        ConfigError: The extra is not installed.
    """
    return bytes(_vl_convert().vegalite_to_png(spec, scale=scale))


def as_url(spec: Spec) -> str:
    """Return a chart as an image's address that holds the image: what is in it can neither run nor ask for anything."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(spec).encode()).decode()


def browser_code(folder: Path) -> Path:
    """Return the file of what draws charts in a browser, made in a folder at the first asking.

    A process of its own makes it: the engine that does takes 150 MB, which a server would keep.

    Raises:
        ConfigError: The extra is not installed, or it could not be made.
    """
    file = folder / f"vega-{version()}.js"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = subprocess.run(  # noqa: S603 - fixed code
            [sys.executable, "-I", "-c", _BUNDLE], capture_output=True, check=True, timeout=_BUNDLE_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"what draws charts in a browser could not be made: {error}") from error
    part = file.with_suffix(f".{os.getpid()}")
    part.write_bytes(made)
    part.replace(file)
    return file
