"""The page over HTTP: who is let in and how that ends, what is escaped, what a browser may do with it."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.store import tokens
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.web.door import LINK_S, VISIT_S, Door
from tests.api.test_loop import HIGHER_RATE, run
from tests.web.test_report import HOSTILE

pytestmark = pytest.mark.skipif(find_spec("jinja2") is None, reason="the extra ui fills the page")
BROWSER = {"accept": "text/html"}


UI = ("-c", "from loopgraph_mcp.cli.main import main; main()", "ui", "--no-browser")
HTTP = ("-m", "loopgraph_mcp", "--http", "127.0.0.1:0")


def base(link: str) -> str:
    return str(httpx.URL(link).join("/"))


def test_a_link_lets_in_once_and_nothing_else_does(night: Settings, start: Callable[..., str]) -> None:
    link = start(night, *UI)
    with (
        httpx.Client(base_url=base(link), follow_redirects=True) as visitor,
        httpx.Client(base_url=base(link)) as other,
    ):
        assert other.get("/").status_code == 401
        assert other.get("/changes").status_code == 401
        assert other.get("/enter?key=guessed").status_code == 403
        page = visitor.get(link)
        assert page.status_code == 200
        assert "18 experiments" in page.text
        assert other.get(link).status_code == 403
        cookie = next(iter(visitor.cookies.jar))
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert (cookie.get_nonstandard_attr("SameSite") or "").lower() == "lax"
        assert visitor.get("/", headers={"host": "evil.example:80"}).status_code == 421
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["cache-control"] == "no-store"
        for path in ("/charts/progress", "/sections/lineage", "/now", "/changes", "/charts/cost?width=5&theme=none"):
            assert visitor.get(path).status_code == 200
        for path in (
            "/charts/nothing",
            "/sections/nothing",
            "/experiments/exp_unheard",
            "/static/page.py",
            "/?w=ws_none",
        ):
            assert visitor.get(path).status_code in {404, 200}, path
        assert visitor.get("/experiments/exp_unheard").json()["error"].startswith("no experiment")
        visitor.post("/leave")
        assert visitor.get("/changes").status_code == 401


async def test_what_changed_since_a_version_is_all_that_is_sent(
    settings: Settings, graph: LoopGraph, start: Callable[..., str]
) -> None:
    await run(graph)
    link = await asyncio.to_thread(start, settings, *UI)
    async with httpx.AsyncClient(base_url=base(link), follow_redirects=True, timeout=30) as visitor:
        assert (await visitor.get(link)).status_code == 200
        first = (await visitor.get("/changes")).json()
        assert [row["mark"] for row in first["rows"]] == ["baseline"]
        same = (await visitor.get("/changes", params={"since": first["version"]})).json()
        assert same["rows"] == []
        async with visitor.stream("GET", "/events", params={"since": first["version"]}) as events:
            await run(graph, patch=HIGHER_RATE, description=HOSTILE)
            said = ""
            async for part in events.aiter_text():
                said += part
                if "event: changed" in said:
                    break
        later = (await visitor.get("/changes", params={"since": first["version"]})).json()
        assert later["version"] != first["version"]
        assert len(later["rows"]) >= 1
        assert all(each["id"] != first["rows"][0]["id"] or each != first["rows"][0] for each in later["rows"])
        won = next(row for row in later["rows"] if row["n"] == 2)
        page = (await visitor.get("/")).text
        drawer = (await visitor.get(f"/experiments/{won['id']}")).text
    for text in (page, drawer, later["summary"]):
        assert "<script>alert" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in drawer
    assert "\x1b" not in won["tried"]


async def test_a_token_opens_the_page_of_the_http_server_until_it_ends(
    settings: Settings, graph: LoopGraph, start: Callable[..., str]
) -> None:
    await run(graph)
    async with Database.open(settings.db_path) as db:
        grant = tokens.Grant("phone", tokens.Scope.READ)
        secret = await tokens.add_token(db, grant, now=0.0)
    address = await asyncio.to_thread(start, settings, *HTTP)
    async with httpx.AsyncClient(base_url=base(address), timeout=30) as visitor:
        asked = await visitor.get("/", headers=BROWSER)
        assert (asked.status_code, "Paste one of" in asked.text) == (401, True)
        assert (await visitor.get("/changes")).status_code == 401
        assert (await visitor.get("/", headers={"accept": "application/json"})).headers[
            "content-type"
        ] == "application/json"
        wrong = await visitor.post("/enter", data={"token": "lg_wrong"})
        assert (wrong.status_code, "unknown, expired or revoked" in wrong.text) == (403, True)
        entered = await visitor.post("/enter", data={"token": secret})
        assert entered.status_code == 303
        assert secret not in str(entered.headers)
        page = await visitor.get("/", headers=BROWSER)
        assert (page.status_code, "1 experiment" in page.text) == (200, True)
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert (await visitor.post("/mcp", json=call)).status_code == 401  # a cookie is for the page alone
        linked = await visitor.post("/link", headers={"authorization": f"Bearer {secret}"})
        async with httpx.AsyncClient(base_url=base(address), follow_redirects=True) as phone:
            assert (await phone.get(linked.json()["path"])).status_code == 200
            assert (await phone.get("/changes")).status_code == 200
        assert (await visitor.post("/link")).status_code == 401
        async with visitor.stream("GET", "/events") as events:
            async with Database.open(settings.db_path) as db:
                await tokens.revoke_token(db, "phone", now=1.0)
            async for _ in events.aiter_text():
                pass  # it ends by itself
        assert (await visitor.get("/changes")).status_code == 401
        assert (await visitor.get("/", headers=BROWSER)).status_code == 401


def test_links_and_visits_end_with_time() -> None:
    at = [0.0]
    door = Door("cookie", now=lambda: at[0])
    late, soon = door.make_link(), door.make_link("secret")
    cookie = door.use_link(soon)
    assert cookie is not None
    assert door.secret(cookie) == "secret"
    assert door.use_link(soon) is None
    at[0] = LINK_S + 1
    assert door.use_link(late) is None
    assert door.secret(cookie) == "secret"
    at[0] = VISIT_S + 1
    assert door.secret(cookie) is None
    assert door.secret(None) is None


def test_a_door_keeps_a_bounded_number_of_links() -> None:
    door = Door("cookie")
    first = door.make_link()
    for _ in range(1_000):
        last = door.make_link()
    assert door.use_link(first) is None
    assert door.use_link(last) is not None


def test_templates_switch_escaping_off_for_our_own_style_alone() -> None:
    folder = Path(__file__).parents[2] / "loopgraph_mcp" / "web" / "templates"
    safe = [
        line.strip() for file in folder.glob("*.html") for line in file.read_text().splitlines() if "| safe" in line
    ]
    assert safe == ["{{ style | safe }}</style>"]


def test_the_stdio_server_imports_nothing_of_the_page(environment: dict[str, str]) -> None:
    code = "import sys, loopgraph_mcp.server.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not [each for each in loaded if each.startswith(("loopgraph_mcp.web", "jinja2", "vl_convert"))]
