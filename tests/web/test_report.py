"""The report: one file that needs nothing, with the figures of `results --json` and other people's words as text."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.web import report, words
from tests.api.test_loop import HIGHER_RATE, run
from tests.web.conftest import environment_of
from tests.web.test_overview import results

HOSTILE = '<script>alert(1)</script> & "quotes" | `code` [x](javascript:alert(2)) \x1b[31mred\u202e'
DRAWN = pytest.mark.skipif(find_spec("vl_convert") is None, reason="the extra ui draws the report")


class Page(HTMLParser):
    """Collects a page's tags, the addresses it names and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.text = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@DRAWN
async def test_the_page_asks_nothing_of_anybody_and_its_figures_are_those_of_results(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        told = await report.gather(graph)
    page = Page(report.as_html(told))
    assert not {"script", "link", "iframe", "form"} & set(page.tags)
    assert page.addresses
    assert all(each.startswith("data:image/svg+xml;base64,") for each in page.addresses)
    shown, text = results(night), " ".join(page.text)
    best = told.seen.best
    assert best is not None
    assert words.value(shown[best.experiment_id]["metric_value"], best.noise_floor) in text
    for step in told.steps:
        gain = shown[step.experiment_id]["gain"]
        assert words.gain(gain, best.noise_floor) in text
    kept = [each for each in shown.values() if each["decision"] == "keep" and each["verdict"] != "baseline"]
    assert f"{sum(each['undone_by'] is None for each in kept)} kept" in text


async def test_markdown_and_page_say_the_same(night: Settings) -> None:
    async with LoopGraph.open(night) as graph:
        told = await report.gather(graph)
    text = report.as_markdown(told).replace("\\", "")
    assert told.headline.sentence in text
    assert told.account in text
    for hit in told.following:
        assert hit.method_id in text
    rows = re.findall(r"^\| [+\u2212]", text, re.MULTILINE)
    assert len(rows) == len(told.steps)


async def test_other_peoples_words_stay_text(graph: LoopGraph) -> None:
    await run(graph)
    await run(graph, patch=HIGHER_RATE, description=HOSTILE)
    told = await report.gather(graph)
    text = report.as_markdown(told)
    assert "<script>" not in text
    assert "\\`code\\`" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    table = next(row for row in text.splitlines() if "quotes" in row and row.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", table)) == 6
    if find_spec("vl_convert") is not None:
        page = report.as_html(told)
        assert "script" not in Page(page).tags
        assert "&lt;script&gt;" in page
        assert "\x1b" not in page


async def test_a_gain_within_the_noise_is_not_called_one_beyond_it(graph: LoopGraph) -> None:
    await run(graph)
    await run(graph, patch="@@ @@\n-LEARNING_RATE = 0.5\n+LEARNING_RATE = 0.52\n", description="a little more")
    told = await report.gather(graph)
    assert "not distinguishable from noise" in told.headline.sentence
    assert told.made_of == "None of its changes is distinguishable from noise by itself."
    assert "0 of them beyond the noise" in told.account


async def test_a_form_that_is_none_is_refused(graph: LoopGraph, tmp_path: Path) -> None:
    await run(graph)
    told = await report.gather(graph)
    with pytest.raises(ConfigError, match=r"\.html, \.md or \.png"):
        report.write(told, tmp_path / "report.docx")


def command(settings: Settings, script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"{script}\nfrom loopgraph_mcp.cli.main import main; main()", *arguments],
        env=environment_of(settings),
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_the_extra_the_commands_name_it(night: Settings, tmp_path: Path) -> None:
    missing = "import sys; sys.modules.update(jinja2=None, vl_convert=None)"
    for arguments in (
        ("report", str(tmp_path / "r.html")),
        ("report", str(tmp_path / "r.png")),
        ("ui", "--no-browser"),
    ):
        done = command(night, missing, *arguments)
        assert done.returncode == 1
        assert "pip install 'loopgraph-mcp[ui]'" in done.stderr
    done = command(night, missing, "report", str(tmp_path / "r.md"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.md").read_text().startswith("# val")


def test_a_folder_without_experiments_says_what_to_do(night: Settings, tmp_path: Path) -> None:
    done = command(night, "", "report", str(tmp_path / "r.md"), "-w", str(tmp_path))
    assert done.returncode == 1
    assert "no experiments yet" in done.stderr
    assert not (tmp_path / "r.md").exists()
