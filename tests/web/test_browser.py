"""The page in a real browser: Debian's Chromium, driven by Playwright, which may reach nothing but this machine."""

import asyncio
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.web import view
from tests.api.test_loop import mishap
from tests.web.conftest import environment_of
from tests.web.test_page import HTTP, UI, base

playwright = pytest.importorskip("playwright.sync_api", reason="the extra dev drives the browser")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra dev holds axe")
pytest.importorskip("vl_convert", reason="the extra ui draws charts")

CHROMIUM = next(
    filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: scripts/browser, or apt install chromium")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>\x1b[31m"
LIMIT_MS = 60_000  # a busy machine


@dataclass
class Visit:
    """One visitor's window, with what it asked for and what went wrong in it."""

    page: Any
    asked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse requests that left this machine, and errors of the page's own."""
        assert {urlsplit(each).hostname for each in self.asked if not each.startswith("data:")} <= {"127.0.0.1", None}
        assert not self.wrong
        assert "broken" not in self.page.title()

    def check_reading(self) -> None:
        """Refuse what would keep somebody from reading it: axe's serious and critical findings."""
        found = axe.Axe().run(self.page).response["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]][:3])
            for each in found
            if each["impact"] in {"serious", "critical"}
        ]
        assert serious == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            # Root has no sandbox of its own in a container. No name is looked up.
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    contexts = []

    def visited(**how: Any) -> Visit:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
        context.set_default_timeout(LIMIT_MS)
        contexts.append(context)
        made = Visit(context.new_page())
        made.page.on("request", lambda request: made.asked.append(request.url))
        made.page.on("pageerror", lambda error: made.wrong.append(str(error)))
        made.page.on("dialog", lambda dialog: made.wrong.append(dialog.message))
        made.page.on("console", lambda said: said.type == "error" and made.wrong.append(said.text))
        return made

    yield visited
    for context in contexts:
        context.close()


def loopgraph(settings: Settings, *arguments: str, given: str | None = None) -> str:
    command = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", *arguments]
    done = subprocess.run(
        command,
        env=environment_of(settings),
        input=given,
        capture_output=True,
        text=True,
        check=False,
        cwd=settings.workspace,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(page: Any, chart: str) -> Any:
    figure = page.locator(f'[data-chart="{chart}"]').first
    figure.scroll_into_view_if_needed()
    figure.locator("svg.marks").wait_for()
    return figure


def test_a_night_can_be_filtered_sorted_and_opened_by_keyboard(
    night: Settings,
    visit: Callable[..., Visit],
    start: Callable[..., str],
) -> None:
    seen = visit()
    page = seen.page
    link = start(night, *UI)
    page.goto(link)
    drawn(page, "progress")
    page.locator("#count", has_text="18 experiments").wait_for()
    seen.check_reading()

    page.keyboard.press("/")
    page.keyboard.type("window")
    page.locator("#count", has_text=" of 18 experiments").wait_for()
    rows = page.locator("#table tbody tr")
    assert 0 < rows.count() < 18
    assert all("window" in text.lower() for text in rows.all_inner_texts())
    page.locator("#by-mark").select_option("failed")
    page.locator("#none").wait_for()
    page.get_by_role("button", name="Clear the filters").click()
    assert rows.count() == 18

    page.locator("thead button", has_text="Gain").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    gains = [
        float(text.replace("\u2212", "-"))
        for text in page.locator("#table tbody td:nth-child(4)").all_inner_texts()
        if text
    ]
    assert gains == sorted(gains, reverse=True)

    first = rows.first.locator("a")
    name = first.inner_text()
    first.focus()
    page.keyboard.press("Enter")
    page.locator("#drawer-title", has_text=name).wait_for()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    drawer = page.locator("#drawer")
    for part in ("Change against its parent", "Change against the baseline", "The chain", "End of its log"):
        assert drawer.get_by_text(part).count() == 1
    assert drawer.locator(".diff .add").count() > 0
    seen.check_reading()
    page.keyboard.press("Escape")
    page.locator("#drawer").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.innerText") == name
    for chart in ("families", "cost"):
        drawn(page, chart)
    page.locator("#lineage .way").first.wait_for()
    page.locator("#methods table").wait_for()
    page.get_by_text("by hour").click()
    page.locator('[data-chart="progress"] svg', has_text="hours since the first experiment").wait_for()
    seen.check_reading()
    seen.check()

    phone = visit(
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
        has_touch=True,
        is_mobile=True,
        storage_state=page.context.storage_state(),
    )
    phone.page.goto(base(link))
    drawn(phone.page, "progress")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    red, green, blue = map(
        int, re.findall(r"\d+", phone.page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 60
    phone.check_reading()
    phone.page.locator("#table tbody a").first.tap()
    phone.page.locator("#drawer-title").wait_for()
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.check()


def test_a_run_is_seen_as_it_goes_and_what_it_says_stays_text(
    settings: Settings,
    visit: Callable[..., Visit],
    start: Callable[..., str],
) -> None:
    loopgraph(settings, "run", "--trust", "-d", "baseline")
    seen = visit()
    page = seen.page
    page.goto(start(settings, *UI))
    page.locator("h1", has_text="the baseline").wait_for()
    drawn(page, "progress")
    go_on = settings.home / "go-on"
    waiting = f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.05)\n"
    patch = mishap(f"{waiting}print({HOSTILE!r}); raise SystemExit(1)")
    loopgraph(settings, "run", "--detach", "-d", HOSTILE, "--patch", "-", given=patch)
    card = page.locator("article.run")
    card.wait_for()  # without a reload
    assert "<img src=x" in card.inner_text()
    card.locator(".phase", has_text="training").wait_for()
    # A function: a text would be evaluated in the page, which its content policy forbids.
    page.wait_for_function("() => document.querySelector('article.run progress')?.value > 50")
    drawn(page, "loss")
    seen.check_reading()
    go_on.touch()
    page.locator("#table .mark.failed").wait_for()
    card.wait_for(state="detached")
    page.locator("#table tbody tr", has=page.locator(".mark.failed")).locator("a").click()
    log = page.locator("#drawer .log")
    log.wait_for()
    assert "<script>document.title" in log.inner_text()
    assert page.locator("#drawer img, #drawer script").count() == 0
    assert "<img src=x" in loopgraph(settings, "results")
    assert "\x1b" not in loopgraph(settings, "results")
    seen.check()


def test_the_page_says_that_its_token_ended(
    night: Settings,
    visit: Callable[..., Visit],
    start: Callable[..., str],
    tmp_path: Path,
) -> None:
    copied = Settings(night.home, tmp_path / "loopgraph.db", night.workspace, device="cpu")
    shutil.copy(night.db_path, copied.db_path)
    secret = loopgraph(copied, "token", "add", "phone", "--scope", "read").strip()
    address = base(start(copied, *HTTP))
    seen = visit()
    page = seen.page
    page.goto(address)
    page.get_by_label("Token").fill("lg_wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("unknown, expired or revoked").wait_for()
    seen.check_reading()
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Open the page").click()
    page.locator("#pulse-text", has_text="live").wait_for()
    assert secret not in page.content()
    loopgraph(copied, "token", "revoke", "phone")
    page.locator("#notice", has_text="You are signed out").wait_for()
    assert page.locator("#table tbody tr").count() > 0  # what was shown can still be read
    seen.wrong.clear()  # that it was refused is said on the console too
    page.get_by_role("link", name="Sign in again").click()
    page.get_by_label("Token").wait_for()
    assert {urlsplit(each).hostname for each in seen.asked if not each.startswith("data:")} == {"127.0.0.1"}


HOST = """
<iframe sandbox="allow-scripts" style="width: 620px; height: 700px; border: 0"></iframe>
<script>
  const frame = document.querySelector("iframe");
  window.heard = [];
  addEventListener("message", async (event) => {
    const said = event.data;
    heard.push(said.method || "answer");
    const reply = (result) => frame.contentWindow.postMessage({ jsonrpc: "2.0", id: said.id, result }, "*");
    if (said.method === "ui/initialize") {
      const hostInfo = { name: "test", version: "1" };
      reply({ protocolVersion: "2026-01-26", hostInfo, hostCapabilities: {}, hostContext: { theme: "dark" } });
    } else if (said.method === "tools/call") {
      reply(await callTool(said.params));
    }
  });
</script>
"""


def test_the_view_in_a_client_draws_what_its_tool_answers(
    night: Settings, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    async def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        async with LoopGraph.open(night) as graph:
            seen, first = await view.progress(graph, "loopgraph ui")
        chart = view.chart(seen, dark=True, width=600)
        return dataclasses.asdict(dataclasses.replace(first, chart=chart)), dataclasses.asdict(first)

    with ThreadPoolExecutor(1) as thread:  # the browser's driver has a loop on this one
        drawn_answer, text_answer = thread.submit(asyncio.run, ask()).result()
    called: list[dict[str, Any]] = []

    def call_tool(params: dict[str, Any]) -> dict[str, Any]:
        called.append(params)
        known = params["arguments"]["since"] == drawn_answer["version"]
        return {"content": [], "structuredContent": text_answer if known else drawn_answer}

    seen = visit()
    page = seen.page
    page.expose_function("callTool", call_tool)
    (tmp_path / "host.html").write_text(HOST)
    page.goto((tmp_path / "host.html").as_uri())
    html = view.html(night.home / "web")
    # The policy that a host gives such a file: what stands in it, and nothing from elsewhere.
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    html = html.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1)
    page.evaluate("html => { document.querySelector('iframe').srcdoc = html; }", html)
    frame = page.frame_locator("iframe")
    frame.locator("#plot svg.marks").wait_for()
    assert frame.locator("h1").inner_text() == drawn_answer["title"]
    assert frame.locator("tbody tr").count() == 12
    assert frame.locator("html").get_attribute("data-theme") == "dark"
    page.wait_for_function("() => heard.filter(each => each === 'tools/call').length > 1")  # it asks again by itself
    assert called[-1]["name"] == "progress_since"
    page.evaluate(
        "frame.contentWindow.postMessage({ jsonrpc: '2.0', id: 99, method: 'ui/resource-teardown', params: {} }, '*')"
    )
    page.wait_for_function("() => heard.includes('answer')")
    assert {"ui/notifications/initialized", "ui/notifications/size-changed"} <= set(page.evaluate("heard"))
    assert not [each for each in seen.asked if not each.startswith(("file:", "data:", "about:"))]
    assert not seen.wrong
