"""How the pages of this folder become a site: scripts/docs."""

from loopgraph_mcp import __version__

project = "LoopGraph"
release = version = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"LoopGraph {__version__}"
exclude_patterns = ["_build"]
suppress_warnings = [
    "myst.xref_missing",
    "misc.highlighting_failure",
]  # pages also link to code, for who reads them there
