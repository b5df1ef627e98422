"""Takes the pictures of the page and the report in docs/, of a night that scripts/sample_night.py makes up.

scripts/screenshots needs a Chromium (scripts/browser gets Debian's); CHROMIUM=PATH names another one.
"""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import sample_night
import uvicorn
from playwright.async_api import Browser, async_playwright

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.web import report
from loopgraph_mcp.web.door import Door
from loopgraph_mcp.web.page import Page
from loopgraph_mcp.web.serve import HOST, application

DOCS = Path(__file__).parent.parent / "docs"
EXPERIMENTS = 84
NIGHT_S = 8.8 * 3600
# Name, width, height, colour scheme, pixels of the screen for one of the page.
PAGES = (
    ("page-day", 1280, 1000, "light", 1),
    ("page-night", 1280, 1000, "dark", 1),
    ("page-phone", 390, 844, "light", 2),
)


async def main() -> None:
    """Make up the night, serve its page, and take the pictures."""
    chromium = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if chromium is None:
        sys.exit("scripts/screenshots: no Chromium; scripts/browser gets Debian's")
    folder = Path(tempfile.mkdtemp(prefix="loopgraph-screenshots-"))
    settings = sample_night.settings_in(folder)
    night = await sample_night.fill(settings, EXPERIMENTS, began=time.time() - NIGHT_S)
    async with (
        sample_night.one_running(settings, night),
        LoopGraph.open(settings) as graph,
        async_playwright() as driver,
    ):
        browser = await driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        await _page(browser, Page(graph, Door("screenshots")))
        (folder / "report.html").write_text(report.as_html(await report.gather(graph)), encoding="utf-8")
        tab = await browser.new_page(viewport={"width": 900, "height": 1000})
        await tab.goto((folder / "report.html").as_uri())
        await tab.screenshot(path=DOCS / "report.png")
        await browser.close()
    shutil.rmtree(folder)


async def _page(browser: Browser, page: Page) -> None:
    """Serve the page and take it by day, by night, on a phone, and with an experiment open."""
    await page.warm()
    listener = socket.create_server((HOST, 0))
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(application(page), log_level="critical", lifespan="off"))
    serving = asyncio.create_task(server.serve([listener]))
    for name, width, height, scheme, scale in PAGES:
        tab = await browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            device_scale_factor=scale,
        )
        await tab.goto(f"{address}/enter?key={page.door.make_link()}")
        await tab.locator('[data-chart="loss"] svg.marks').wait_for()
        if width > 600:
            await tab.locator('[data-chart="progress"] svg.marks').wait_for()
        await tab.evaluate("document.fonts.ready")
        await tab.screenshot(path=DOCS / f"{name}.png")
        if name == "page-day":
            await tab.locator("#by-mark").select_option("kept")
            await tab.locator("#table tr:has(.mark.kept) a").first.click()
            await tab.locator('#drawer [data-chart="loss"] svg.marks').wait_for()
            await tab.screenshot(path=DOCS / "page-experiment.png")
        await tab.close()
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
