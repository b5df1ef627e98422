"""Fills the templates of the page, the report and the view in a client: all text is escaped."""

from pathlib import Path
from typing import Any

from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.text import plain_line, visible
from loopgraph_mcp.web import drawing, words

TEMPLATES = Path(__file__).parent / "templates"


class Templates:
    """The templates, read at their first use.

    Raises:
        ConfigError: The extra is not installed.
    """

    def __init__(self) -> None:
        try:
            import jinja2  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigError(drawing.EXTRA) from error
        made = self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,  # a name that is not there is an error
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.globals.update(words=words, visible=visible, plain_line=plain_line)
        made.filters["plain_line"] = plain_line
        made.tests["match_added"] = lambda line: line.startswith("+") and not line.startswith("+++")
        made.tests["match_removed"] = lambda line: line.startswith("-") and not line.startswith("---")

    def fill(self, template: str, **values: Any) -> str:
        """Return a template with its values."""
        return self._environment.get_template(template).render(**values)
