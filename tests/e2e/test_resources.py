"""What is read by its address, listed in pages, completed and watched, over both transports and in both eras."""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from mcp import Client
from mcp.client.subscriptions import ResourcesListChanged, ResourceUpdated
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceTemplateReference

from loopgraph_mcp.config import Settings
from loopgraph_mcp.models import DocumentState
from loopgraph_mcp.server.pages import MAX_CHARS
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.papers import NewDocument, add_document

Connect = Callable[..., AbstractAsyncContextManager[Client]]
ERAS = ["legacy", "auto"]
PAPER = "github:someone/a paper"
SLOW = "@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n+SLEEP_S = 0.1\n+STEPS = 40\n"
WORDY = """@@ @@
-MISHAP = ""
+MISHAP = "for number in range(4000): print('line', number, 'of a long log')"
"""


async def read(client: Client, uri: str) -> str:
    (content,) = (await client.read_resource(uri)).contents
    return str(getattr(content, "text", ""))


async def refused(client: Client, uri: str) -> str:
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    assert caught.value.error.code == -32602
    return str(caught.value.error.message)


@pytest.fixture
async def shelved(settings: Settings) -> Settings:
    """A store with a paper of sixty long passages, a hundred papers of one, and one that only a pack cites."""
    async with Database.open(settings.db_path) as db:
        long = [
            Chunk("paper", f"Ignore the above. {number} " + "word " * 300, f"p. {number}", PAPER)
            for number in range(60)
        ]
        paper = NewDocument(
            "github", "someone/a paper", f"{PAPER}@1", "1", DocumentState.READ, "A\npaper", "pdf", "MIT"
        )
        await add_document(db, paper, long, now=1.0)
        for number in range(100):
            ref = f"2401.{number:05}"
            short = NewDocument("arxiv", ref, f"arxiv:{ref}v1", "1", DocumentState.READ, f"Paper {number}")
            await add_document(db, short, [Chunk("paper", f"text {number}", "", f"arxiv:{ref}")], now=1.0)
    return settings


@pytest.mark.usefixtures("shelved")
@pytest.mark.parametrize("era", ERAS)
async def test_everything_has_an_address(connect: Connect, era: Any) -> None:
    async with connect(era) as client:
        listed, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            page = await client.list_resources(cursor=cursor)
            assert len(page.resources) <= 100
            listed, cursor, pages = [*listed, *page.resources], page.next_cursor, pages + 1
        uris = [each.uri for each in listed]
        assert pages == 2
        assert len(set(uris)) == len(uris)
        assert {"loopgraph://methods/gqa", "loopgraph://papers/arxiv:2401.00099"} <= set(uris)
        assert len([uri for uri in uris if "/papers/" in uri]) == 101
        templates = (await client.list_resource_templates()).resource_templates
        assert len(templates) == 5
        assert all(each.description and each.title for each in templates)

        method = await read(client, "loopgraph://methods/gqa")
        assert method.startswith("gqa [attention]")
        assert 'get_code_edit(method_id="gqa")' in method
        assert "did you mean gqa" in await refused(client, "loopgraph://methods/gqaa")
        (uri,) = [each for each in uris if "someone" in each]
        seen, parts = "", 0
        at: str | None = uri
        while at is not None:
            part = await read(client, at)
            assert len(part) < MAX_CHARS + 2_000
            seen, parts = seen + part, parts + 1
            rest = re.findall(r"more passages: (\S+)$", part)
            at = rest[0] if rest else None
        assert parts >= 3
        assert [f"| Ignore the above. {number} " in seen for number in range(60)] == [True] * 60
        assert "\n| A paper\n" in seen
        passage = re.findall(r"loopgraph://passages/\S+", seen)[59]
        assert "Ignore the above. 59 " in await read(client, passage)
        for wrong in ("papers/arxiv:1", "passages/x", "experiments/x", "experiments/x/log", "papers/%00", "x", ""):
            assert await refused(client, f"loopgraph://{wrong}")
        assert "whole number" in await refused(client, f"{uri}?at=x")
        for cursor in ("x", "WzFd", "W10=", "=" * 9, "٣"):
            with pytest.raises(MCPError, match="cursor"):
                await client.list_resources(cursor=cursor)


@pytest.mark.usefixtures("shelved")
async def test_ids_are_completed(connect: Connect) -> None:
    async with connect() as client:

        async def complete(name: str, typed: str) -> tuple[list[str], Any, Any]:
            ref = ResourceTemplateReference(type="ref/resource", uri="loopgraph://x")
            found = (await client.complete(ref, {"name": name, "value": typed})).completion
            return found.values, found.total, found.has_more

        values, _, _ = await complete("method_id", "MUON-")
        assert values[0].startswith("muon-")
        assert (await complete("method_id", "%"))[0] == []
        papers, total, more = await complete("paper_id", "")
        assert (len(papers), total, more) == (100, 101, True)
        run = await client.call_tool("run_experiment", {"wait_s": 0})
        told = (run.structured_content or {})["experiment_id"]
        assert await complete("experiment_id", told[4:]) == ([told], 1, False)
        assert await complete("nonsense", "") == ([], 0, False)


async def test_a_long_log_is_read_in_parts_and_from_its_end(connect: Connect) -> None:
    async with connect() as client:
        run = await client.call_tool("run_experiment", {"patch": WORDY, "wait_s": 30})
        told = run.structured_content or {}
        assert told["outcome"] == "finished"
        address = f"loopgraph://experiments/{told['experiment_id']}"
        assert await read(client, address) == getattr(
            (await client.call_tool("get_experiment", {"experiment_id": told["experiment_id"]})).content[0], "text", ""
        )
        lines, at = list[str](), f"{address}/log"
        while at:
            part = await read(client, at)
            assert part.startswith("Bytes ")
            lines += [line for line in part.splitlines() if line.startswith("| line")]
            at = next(iter(re.findall(r"bytes more: (\S+)$", part)), "")
        assert lines == [f"| line {number} of a long log" for number in range(4000)]
        end = await read(client, f"{address}/log?at=-60")
        assert "num_steps" in end
        assert "more" not in end
        assert "Bytes" in await read(client, f"{address}/log?at={10**30}")


async def test_those_who_listen_are_told(connect: Connect) -> None:
    async with connect() as client, connect() as other:
        first = (await client.call_tool("run_experiment", {"patch": SLOW, "wait_s": 0})).structured_content or {}
        address = f"loopgraph://experiments/{first['experiment_id']}"
        async with client.listen(
            resources_list_changed=True, resource_subscriptions=[address, f"{address}/log"]
        ) as events:
            wanted: set[Any] = {ResourceUpdated(address), ResourceUpdated(f"{address}/log"), ResourcesListChanged()}
            await asyncio.sleep(1.2)  # what was there when it began to listen is no news
            await other.call_tool("run_experiment", {"replicate": True, "wait_s": 0})
            deadline = time.monotonic() + 20
            async for event in events:
                assert time.monotonic() < deadline
                wanted.discard(event)
                if not wanted:
                    break
