"""The report: what a search came to, as one file that needs nothing: HTML, Markdown, or a card to share."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loopgraph_mcp import __version__
from loopgraph_mcp.api import explain
from loopgraph_mcp.api import overview as overviews
from loopgraph_mcp.api.answers import MethodHit
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.api.overview import Line, Mark, Overview, Record, Spared, Step
from loopgraph_mcp.errors import ConfigError, WorkspaceError
from loopgraph_mcp.models import Presence
from loopgraph_mcp.store import nights
from loopgraph_mcp.text import plain_line
from loopgraph_mcp.web import charts, curve, drawing, themes, words
from loopgraph_mcp.web.filling import Templates

_NEXT, _LOOKED_AT = 5, 20  # methods to try next, and those that they are chosen from
_DOUBTFUL = 12
_STYLE = Path(__file__).parent / "static" / "report.css"


@dataclass(frozen=True, slots=True)
class Report:
    """A search as it is reported.

    Args:
        steps: What the best program is made of.
        families: How the changes of each family ended.
        doubtful: What a further run would decide.
        following: What to try next.
        spared: What was not run again.
        at: When it was written.
    """

    seen: Overview
    steps: Sequence[Step]
    families: Sequence[Record]
    doubtful: Sequence[Line]
    following: Sequence[MethodHit]
    spared: Sequence[Spared]
    at: float

    @property
    def headline(self) -> words.Headline:
        """What it came to."""
        return words.headline(self.seen)

    @property
    def noise(self) -> float | None:
        """The noise of one run."""
        return None if self.seen.noise is None else self.seen.noise.sd

    @property
    def account(self) -> str:
        """What was done, how long it took and what it cost, in sentences."""
        marks = [line.mark for line in self.seen.lines]
        kept = marks.count(Mark.KEPT) + marks.count(Mark.TENTATIVE)
        ends = [line.finished_at for line in self.seen.lines if line.finished_at is not None]
        took = f" in {words.duration(max(ends) - self.seen.lines[0].created_at)}" if ends else ""
        said = [
            f"{words.plural(len(marks), 'experiment')}{took}: {kept} kept, {marks.count(Mark.KEPT)} of them beyond the "
            f"noise; {marks.count(Mark.FAILED)} failed."
        ]
        if self.seen.hours:
            said.append(f"They trained for {words.duration(3600 * self.seen.hours)}.")
        if self.seen.tokens or self.seen.cost_usd:
            spent = [f"{words.count(self.seen.tokens)} tokens"] if self.seen.tokens else []
            spent += [words.dollars(self.seen.cost_usd)] if self.seen.cost_usd else []
            said.append(f"Agents report {' and '.join(spent)} spent.")
        if self.spared:
            times, seconds = sum(each.times for each in self.spared), sum(each.seconds for each in self.spared)
            said.append(
                f"{words.plural(times, 'run')} asked for again {'was' if times == 1 else 'were'} answered from memory, "
                f"which spared {words.duration(seconds)}."
            )
        return " ".join(said)

    @property
    def made_of(self) -> str:
        """What the best program is made of, in a sentence."""
        if not self.steps:
            return ""
        sure = [step for step in self.steps if not step.tentative]
        total = math.fsum(step.gain or 0.0 for step in sure)
        if not sure:
            return "None of its changes is distinguishable from noise by itself."
        of = (
            "All of its changes are"
            if len(sure) == len(self.steps)
            else f"{len(sure)} of its {len(self.steps)} changes"
        )
        verb = "" if len(sure) == len(self.steps) else " is" if len(sure) == 1 else " are"
        return f"{of}{verb} beyond the noise; together these gained {words.value(total, self.noise)}."

    @property
    def failed(self) -> str:
        """What did not work, in a sentence."""
        lost = [each for each in self.families if each.tries >= 2 and each.kept == 0]
        if not lost:
            return ""
        named = ", ".join(f"{plain_line(each.name)} ({each.tries} tried)" for each in lost)
        return f"Nothing was kept of {named}."

    @property
    def noise_told(self) -> str:
        """Where the noise of one run comes from."""
        if self.seen.noise is None:
            return "The noise of one run is not known yet."
        return (
            f"One run of a program differs from another by {words.value(self.seen.noise.sd, self.seen.noise.sd)} "
            f"(standard deviation, {explain.noise(self.seen.noise)}). A gain counts as beyond the noise where the "
            "chance that it is real is 90 % or more."
        )


async def gather(graph: LoopGraph, workspace_id: str | None = None, *, now: float | None = None) -> Report:
    """Return a workspace's report; by default of the one with the newest experiment.

    Raises:
        NotFoundError: There are no experiments of it.
    """
    seen = await graph.overview(workspace_id)
    following: list[MethodHit] = []
    if not seen.workspace.is_imported:
        try:
            shown = await graph.suggestions(workspace=seen.workspace.path, limit=_LOOKED_AT)
            following = [hit for hit in shown if hit.presence is not Presence.PRESENT][:_NEXT]
        except WorkspaceError:  # its folder is gone: what was measured there can be reported all the same
            following = []
    return Report(
        seen,
        overviews.steps_to_best(seen),
        overviews.records_by_family(seen),
        overviews.doubtful(seen)[:_DOUBTFUL],
        following,
        overviews.spared(seen, await nights.asked_again(graph.db, seen.workspace.id)),
        time.time() if now is None else now,
    )


def write(report: Report, file: Path) -> None:
    """Write a report in the form that a file's name asks for.

    Raises:
        ConfigError: It asks for another form, or the extra is not installed.
    """
    match file.suffix.lower():
        case ".md":
            file.write_text(as_markdown(report), encoding="utf-8")
        case ".html" | ".htm":
            file.write_text(as_html(report), encoding="utf-8")
        case ".png":
            file.write_bytes(drawing.png(card(report)))
        case other:
            raise ConfigError(f"{file}: a report is written as .html, .md or .png, and not as {other or 'no form'}")


# --------------------------------------------------------------------------------------------------- HTML


def as_html(report: Report) -> str:
    """Return the report as one page that asks nothing of anybody.

    Raises:
        ConfigError: The extra is not installed.
    """
    return Templates().fill(
        "report.html",
        report=report,
        seen=report.seen,
        noise=report.noise,
        style=_STYLE.read_text(encoding="utf-8"),
        version=__version__,
        pictures={name: _picture(report, name) for name in ("progress", "families", "cost")},
    )


def _picture(report: Report, name: str) -> dict[str, str] | None:
    """Return a chart by day and by night, with what it shows in words."""
    made = dict[str, str]()
    for theme, colours in themes.THEMES.items():
        spec = _spec(report, name, colours)
        if spec is None:
            return None
        spec["background"] = "transparent"
        made[theme] = drawing.as_url(spec)
        made["said"] = str(spec["description"])
    return made


def _spec(report: Report, name: str, theme: themes.Theme) -> themes.Spec | None:
    seen, metric = report.seen, report.seen.setting.context.metric
    match name:
        case "progress":
            return curve.progress(seen, theme=theme, width=860, height=360)
        case "families":
            if not report.families:
                return None
            return charts.families(report.families, metric, noise=report.noise, theme=theme, width=760)
        case _:
            return charts.cost(seen, theme=theme, width=760, height=220)


# ----------------------------------------------------------------------------------------------- Markdown


def as_markdown(report: Report) -> str:
    """Return the report as Markdown; other people's words in it are text."""
    noise, headline = report.noise, report.headline
    parts = [
        f"# {_escaped(headline.title)}",
        f"{_escaped(headline.sentence)}",
        _escaped(report.account),
        "## What the best program is made of",
    ]
    if report.steps:
        rows = [
            [
                words.gain(step.gain, noise),
                _escaped(step.description),
                "" if step.low is None else f"{words.gain(step.low, noise)} to {words.gain(step.high, noise)}",
                str(step.runs),
                "within noise" if step.tentative else "beyond noise",
            ]
            for step in report.steps
        ]
        parts += [report.made_of, _table(["gain", "change", "95 % interval", "runs", "how sure"], rows, right={0, 3})]
    else:
        parts.append("The unchanged program, or one whose parents were not run here.")
    parts.append("## What was tried, by family")
    parts += [report.failed] if report.failed else []
    rows = [
        [
            _escaped(each.name),
            *(str(count) for count in (each.tries, each.better, each.same, each.worse, each.failed)),
            words.gain(each.mean, noise),
            "" if each.low is None else f"{words.gain(each.low, noise)} to {words.gain(each.high, noise)}",
        ]
        for each in report.families
    ]
    head = ["family", "tried", "better", "within noise", "worse", "failed", "mean gain", "95 % interval"]
    parts.append(_table(head, rows, right=set(range(1, 7))) if rows else "Nothing but the baseline.")
    if report.doubtful:
        parts.append("## What is doubtful")
        parts.append("Another run of each would decide:")
        parts.append("\n".join(f"- {_doubt(line, noise)}" for line in report.doubtful))
    if report.following:
        parts.append("## What to try next")
        parts.append(
            "\n".join(
                f"{place}. **{_escaped(hit.name)}** (`{hit.method_id}`): {_escaped(hit.summary)} {_escaped(hit.why)}."
                for place, hit in enumerate(report.following, start=1)
            )
        )
    parts += [
        "## How it was measured",
        f"{_escaped(words.setting(report.seen.setting.context))}. {report.noise_told}",
        f"LoopGraph {__version__}, {words.moment(report.at)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _doubt(line: Line, noise: float | None) -> str:
    stays = "in the file" if line.stays else "not kept"
    return (
        f"{_escaped(line.description)}: {words.gain(line.gain, noise)}, {stays}; the chance that it improves is "
        f"{words.percent(line.p_win)} (`loopgraph run --replicate`, {line.experiment_id})"
    )


_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


def _escaped(text: str) -> str:
    """Return other people's words as text of Markdown: no markup, no HTML, one line."""
    return _MARKUP.sub(r"\\\1", plain_line(text, limit=600)).replace("&", "&amp;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: set[int]) -> str:
    lines = [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("---:" if place in right else "---" for place in range(len(head))) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


# --------------------------------------------------------------------------------------------------- card


def card(report: Report) -> themes.Spec:
    """Return the card to share: what it came to, four figures and the curve."""
    seen = report.seen
    marks = [line.mark for line in seen.here]
    figures = [
        (str(len(marks)), "experiments"),
        (str(marks.count(Mark.KEPT)), "gains beyond noise"),
        (words.duration(3600 * seen.hours) if seen.hours else "", "of training"),
        (words.dollars(seen.cost_usd) if seen.cost_usd else "", "spent by agents"),
    ]
    return curve.card(
        seen,
        title=report.headline.title,
        sentence=report.headline.sentence,
        figures=[(value, name) for value, name in figures if value],
    )
