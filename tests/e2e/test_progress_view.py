"""The view inside a client: an MCP App for clients that draw one, and text for all others."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from mcp.client.extension import ClientExtension
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID

from loopgraph_mcp.api.loopgraph import LoopGraph
from tests.api.test_loop import HIGHER_RATE, run

URI = "ui://loopgraph/progress.html"


class Apps(ClientExtension):
    """Declares that its client draws MCP Apps."""

    identifier = EXTENSION_ID

    def settings(self) -> dict[str, Any]:
        return {"mimeTypes": [APP_MIME_TYPE]}


@pytest.fixture
async def searched(graph: LoopGraph) -> None:
    """A baseline and a win."""
    await run(graph, description="baseline")
    await run(graph, patch=HIGHER_RATE, description="more <b>rate</b>")


@pytest.mark.usefixtures("searched")
async def test_a_client_without_apps_gets_text_and_where_the_page_is(connect: Callable[..., Any]) -> None:
    async with connect() as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert "show_progress" in names
        assert "progress_since" not in names
        shown = await client.call_tool("show_progress", {})
    (content,) = shown.content
    assert "val_bpb 1.75 → 1.55" in content.text
    assert "beyond the noise" in content.text
    assert "2 experiments; 1 kept beyond noise" in content.text
    assert re.search(r"The page: (loopgraph ui|http://127\.0\.0\.1:\d+/)$", content.text)
    assert shown.structured_content["chart"] is None


@pytest.mark.usefixtures("searched")
async def test_a_client_with_apps_gets_one_file_and_what_it_asks_for(connect: Callable[..., Any]) -> None:
    async with connect(extensions=[Apps()]) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools["show_progress"].meta["ui"] == {"resourceUri": URI}
        assert tools["progress_since"].meta["ui"] == {"resourceUri": URI, "visibility": ["app"]}
        (html,) = (await client.read_resource(URI)).contents
        first = (await client.call_tool("progress_since", {"width": 640})).structured_content
        again = (await client.call_tool("progress_since", {"since": first["version"]})).structured_content
    assert html.mime_type == APP_MIME_TYPE
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", html.text[:20_000])
    assert ("window.vegaEmbed" in html.text) or find_spec("vl_convert") is None
    assert "<!-- what draws charts -->" not in html.text
    assert first["chart"]["layer"]
    assert again["chart"] is None
    assert again["rows"][0]["tried"] == "more <b>rate</b>"


async def test_a_search_without_experiments_says_what_to_do(connect: Callable[..., Any]) -> None:
    async with connect() as client:
        shown = await client.call_tool("show_progress", {})
    assert shown.is_error
    assert "no experiments yet" in shown.content[0].text
