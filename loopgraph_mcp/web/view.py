"""The view inside a client (an MCP App): one HTML file with all it needs, and what it and a client's text show."""

from pathlib import Path

from loopgraph_mcp.api.answers import ProgressAnswer, ProgressRow
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.overview import Mark, Overview, per_hour
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.models import RunState
from loopgraph_mcp.text import plain_line
from loopgraph_mcp.web import curve, drawing, themes, words

_FILE = Path(__file__).parent / "static" / "view.html"
_ROWS = 12
_MARKER = "<!-- what draws charts -->"


async def progress(graph: LoopGraph, page: str) -> tuple[Overview, ProgressAnswer]:
    """Return how the search in the memory's own workspace goes, or where that has none, the newest.

    Raises:
        NotFoundError: There are no experiments yet.
    """
    own = [each.id for each in await graph.workspaces() if each.path == str(graph.settings.workspace)]
    seen = await graph.overview(own[0] if own else None)
    headline = words.headline(seen)
    live = [line for line in seen.lines if line.state is not RunState.DONE]
    answer = ProgressAnswer(
        version=f"{graph.session}.{seen.workspace.id}.{seen.version}",
        title=headline.title,
        sentence=headline.sentence,
        account=_account(seen, len(live)),
        rows=[_row(seen, number) for number in range(len(seen.lines) - 1, max(-1, len(seen.lines) - 1 - _ROWS), -1)],
        page=page,
    )
    return seen, answer


def _account(seen: Overview, live: int) -> str:
    marks = [line.mark for line in seen.lines]
    pace = per_hour(seen)
    parts = [
        words.plural(len(marks), "experiment"),
        f"{marks.count(Mark.KEPT)} kept beyond noise, {marks.count(Mark.TENTATIVE)} within it",
        f"{marks.count(Mark.FAILED)} failed",
        *([f"{live} on the way"] if live else []),
        *([f"{pace:.1f} an hour"] if pace else []),
    ]
    return "; ".join(parts)


def _row(seen: Overview, place: int) -> ProgressRow:
    line = seen.lines[place]
    noise = None if line.noise is None else line.noise.sd
    return ProgressRow(
        line.experiment_id,
        plain_line(line.description, limit=120),
        words.value(line.metric_value, noise),
        words.gain(line.gain, noise),
        words.mark(line),
        line.mark.name.lower(),
    )


def as_text(answer: ProgressAnswer) -> str:
    """Return how a search goes for a client that shows text alone."""
    rows = [
        " ".join(part for part in (f"{row.experiment_id} {row.tried}:", row.value, row.gain, row.result) if part)
        for row in answer.rows[:5]
    ]
    newest = "\n".join(f"- {row}" for row in rows)
    return f"{answer.title}\n{answer.sentence}\n{answer.account}\nNewest:\n{newest}\nThe page: {answer.page}"


def chart(seen: Overview, *, dark: bool, width: int) -> themes.Spec:
    """Return the curve for the view."""
    spec = curve.progress(seen, theme=themes.DARK if dark else themes.LIGHT, width=width, height=280)
    return {**spec, "background": "transparent"}


def html(folder: Path) -> str:
    """Return the view's one file; without the extra it shows the table and no curve.

    Args:
        folder: Where what draws charts in a browser is kept.
    """
    text = _FILE.read_text(encoding="utf-8")
    try:
        code = drawing.browser_code(folder).read_text(encoding="utf-8")
    except ConfigError:
        return text.replace(_MARKER, "")
    return text.replace(_MARKER, "<script>" + code.replace("</script", "<\\/script") + "</script>")
