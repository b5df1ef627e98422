"""What only a hostile or broken client sends: each line is answered, each path is followed once, no token takes all."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters

from loopgraph_mcp.server.lines import read_id, refused
from tests.e2e.test_http import JSON, call, loopgraph, words

HELLO = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}


class Wire:
    """A server over stdio, spoken to in lines as they are."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def answers_to(self, line: str) -> list[dict[str, Any]]:
        """What comes back before the answer to a request that is sent behind a line."""
        self.send(line)
        self.send('{"jsonrpc": "2.0", "id": "behind", "method": "ping"}')
        found = list[dict[str, Any]]()
        while (answer := self.receive()).get("id") != "behind":
            found.append(answer)
        return found


@pytest.fixture
def wire(environment: dict[str, str]) -> Iterator[Wire]:
    with subprocess.Popen(
        [sys.executable, "-m", "loopgraph_mcp"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
    ) as process:
        spoken = Wire(process)
        spoken.send(json.dumps(HELLO))
        assert spoken.receive()["id"] == 0
        spoken.send('{"jsonrpc": "2.0", "method": "notifications/initialized"}')
        yield spoken
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def request(number: Any, **more: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": more})


UNREADABLE: list[tuple[str, Any]] = [
    (request(7, name="search_methods", arguments={"query": "\ud800"}), 7),
    (request("seven", name="search_methods", arguments={"query": "a\udfff"}), "seven"),
    (request(8, x=0).replace('"x": 0', '"x": ' + "[" * 250 + "]" * 250), 8),
    (request(9, x=0).replace('"x": 0', '"x": ' + '{"a":' * 100_000 + "0" + "}" * 100_000), 9),
    (request(10, x="a")[:-3], 10),
    (request(11, x=0).replace('"x": 0', '"x": 1' + "0" * 5_000), 11),
    (request(12, x=0).replace('"x": 0', "'x': 0"), 12),
    ('{"jsonrpc": "2.0", "params": {"id": 5}, "id": 13, "method": "ping", "params": }', 13),
    ('{"jsonrpc": "1.0", "id": 14, "method": "ping"}', 14),
    ('{"jsonrpc": "2.0", "id": 15, "method": 5}', 15),
    ('{"jsonrpc": "2.0", "id": 16, "method": "ping", "params": [1]}', 16),
    ('{"jsonrpc": "2.0", "id": null, "method": "ping"}', None),
    ('{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', None),
    ('{"jsonrpc": "2.0", "id": true, "method": "ping"}', None),
    ('{"jsonrpc": "2.0", "id": {"a": 1}, "method": "ping"}', None),
    ('{"jsonrpc": "2.0", "id": "\\ud800", "method": "ping"}', None),
    ('{"jsonrpc": "2.0", "method": "x", "params": {"id": 3, "a": "\\ud800"}}', None),
    ('{"jsonrpc": "2.0", "id": ' + "9" * 5_000 + ', "method": "ping"}', None),
    ('[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', None),
    ('{"foo": 1}', None),
    ('{"jsonrpc": "2.0", "id": 1, "result": 5}', None),
    ('"x"', None),
    ("nonsense", None),
    ("{", None),
    ("\udcff\udcfe{}", None),
    ("\x00", None),
    ("x" * (17 * 2**20), None),
    ('{"jsonrpc": "2.0", "id": 17, "method": "ping", "params": {"a": "' + "x" * (17 * 2**20) + '"}}', 17),
]


def test_every_line_is_answered_and_the_connection_goes_on(wire: Wire) -> None:
    for line, number in UNREADABLE:
        began = time.perf_counter()
        (answer,) = wire.answers_to(line)
        assert (answer["id"], set(answer)) == (number, {"jsonrpc", "id", "error"}), line[:80]
        assert answer["error"]["code"] in {-32700, -32600}
        assert "send" in answer["error"]["message"] or "remove it" in answer["error"]["message"]
        assert "pydantic" not in answer["error"]["message"]
        assert time.perf_counter() - began < 1
    assert wire.answers_to("") == wire.answers_to("   ") == []
    assert wire.answers_to('\ufeff{"jsonrpc": "2.0", "id": 99, "method": "ping"}') == [
        {"jsonrpc": "2.0", "id": 99, "result": {}}
    ]


@limits(max_examples=300)
@given(
    identity=st.integers(-(10**30), 10**30) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    params=st.recursive(
        st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "method", "a"]), inner),
        max_leaves=6,
    ),
    cut=st.integers(0, 30),
)
def test_the_id_of_a_request_is_read_however_it_ends(identity: Any, params: Any, cut: int) -> None:
    line = json.dumps({"jsonrpc": "2.0", "method": "tools/call", "id": identity, "params": params}) + "!" * cut
    assert read_id(line) == identity
    assert read_id(line.rstrip("!")[:-1]) == identity


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "replace")))
def test_any_line_has_an_answer_or_is_a_message(line: str) -> None:
    answer = refused(line)
    assert answer is None or answer.error.message


def test_a_line_of_many_quotes_is_read_in_time() -> None:
    for line in (
        '{"id": 1, "method": "x", "a": "' + '\\"' * 2_000_000,
        '{"' * 2_000_000,
        "[" * 4_000_000,
        '"' * 4_000_000,
    ):
        began = time.perf_counter()
        refused(line)
        assert time.perf_counter() - began < 1


# ------------------------------------------------------------------------------------------------- paths and numbers


async def test_a_readers_path_is_followed_home_and_over_links_before_it_is_compared(
    start_http: Callable[..., Any], environment: dict[str, str], workspace: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "home-of-the-user"
    (outside / "~").mkdir(parents=True)
    for name in ("train.py", "prepare.py", "loopgraph.toml"):
        (outside / name).write_text((workspace / name).read_text())
        (outside / "~" / name).write_text((workspace / name).read_text())
    (outside / "notes.md").write_text("# Secret\n\nThe planted secret of the user, at length.\n")
    (outside / "run.log").write_text("val_bpb: 0.5\n")
    (workspace / "link").symlink_to(outside)
    (workspace / "link.md").symlink_to(outside / "notes.md")
    (workspace / "link.log").symlink_to(outside / "run.log")
    (workspace / "link.py").symlink_to(outside / "train.py")
    server = start_http(HOME=str(outside))
    secret = loopgraph(environment, "token", "add", "runner", "--scope", "run")["secret"]
    for path in ("~", "~/", "./~", "~/../" + outside.name, str(outside), "../" + outside.name, str(workspace / "link")):
        for tool, more in (("search_methods", {}), ("map_code", {}), ("get_code_edit", {"method_id": "gqa"})):
            said = words(call(server, secret, tool, workspace=path, **more))
            assert "name a folder inside" in said, (path, tool, said)
    for path in ("~/train.py", str(outside / "train.py"), "link/train.py", "link.py", "../" + outside.name, "link"):
        said = words(call(server, secret, "map_code", path=path))
        assert "lies outside" in said or "no Python file" in said, (path, said)
    for source in ("~/notes.md", str(outside / "notes.md"), "link.md", "link/notes.md", "link", "~", "/etc/passwd"):
        said = words(call(server, secret, "ingest", source=source))
        assert "or a file or folder inside" in said, (source, said)
        assert "planted" not in said
    missing = words(call(server, secret, "ingest", source=str(outside / "nothing.md")))
    assert "or a file or folder inside" in missing  # and not that there is none
    for log in ("link.log", "link/run.log", str(outside / "run.log"), "~/run.log"):
        said = words(call(server, secret, "record_outcome", log=log))
        assert "lies outside" in said or "no such file" in said, (log, said)
    (workspace / "own.md").write_text("# Attention\n\nGrouped-query attention shares keys and values among heads.\n")
    assert "own.md" in words(call(server, secret, "ingest", source="own.md"))


NO_PATHS = ["\0", "a\0b", "~nouser/x", "x" * 5_000, "x/" * 3_000, "\n", "a" * 300 + "/b"]


async def test_what_can_be_no_path_is_a_plain_refusal_everywhere(environment: dict[str, str]) -> None:
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment)
    async with Client(parameters) as client:
        for path in NO_PATHS:
            asked: list[tuple[str, dict[str, Any]]] = [
                ("search_methods", {"workspace": path}),
                ("run_experiment", {"workspace": path, "wait_s": 0}),
                ("map_code", {"path": path + ".py"}),
                ("ingest", {"source": (path + ".md")[:2_000]}),
                ("record_outcome", {"log": path + ".log"}),
            ]
            for tool, arguments in asked:
                if path.strip():
                    result = await client.call_tool(tool, arguments)
                    said = getattr(result.content[0], "text", "")
                    assert result.is_error, (tool, arguments)
                    assert "failed inside" not in said, (tool, path[:20], said)


async def test_a_number_that_cannot_be_stored_stores_nothing(environment: dict[str, str]) -> None:
    parameters = StdioServerParameters(command=sys.executable, args=["-m", "loopgraph_mcp"], env=environment)
    async with Client(parameters) as client:
        wrong = [{"tokens": 2**63}, {"tokens": 2**62}, {"tokens": -1}, {"cost_usd": 1e300}, {"cost_usd": -0.1}]
        wrong += [{"metric_value": 1e200}, {"metric_value": -1e31}]
        for each in wrong:
            result = await client.call_tool("record_outcome", {"metric_value": 0.9, "description": "x", **each})
            said = getattr(result.content[0], "text", "")
            assert result.is_error, each
            assert "failed inside" not in said
    done = subprocess.run(
        [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "results", "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == []


# ----------------------------------------------------------------------------------------------------------- places


def open_session(server: Any, token: str) -> httpx.Response:
    return httpx.post(server.url, json=HELLO, headers={**JSON, "authorization": f"Bearer {token}"}, timeout=30)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, start_http: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A server with few places: the same code, other numbers."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('NARROW'):\n"
        "    from loopgraph_mcp.server import http\n"
        "    exec(os.environ['NARROW'])\n"
    )
    monkeypatch.delenv("NARROW", raising=False)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return lambda code: start_http(NARROW=code, PYTHONPATH=path)


def test_no_token_opens_all_sessions(narrow: Callable[..., Any], environment: dict[str, str]) -> None:
    server = narrow("http._SESSIONS_PER_TOKEN = 5")
    reader = loopgraph(environment, "token", "add", "reader", "--scope", "read")["secret"]
    opened = [open_session(server, reader) for _ in range(8)]
    assert [each.status_code for each in opened] == [200] * 5 + [429] * 3
    assert "DELETE" in opened[-1].json()["error_description"]
    assert "retry-after" in opened[-1].headers
    assert open_session(server, server.token).status_code == 200  # another token's places are its own
    assert call(server, reader).status_code == 200  # without a session one needs no place
    session = {**JSON, "authorization": f"Bearer {reader}", "mcp-session-id": opened[0].headers["mcp-session-id"]}
    assert httpx.delete(server.url, headers=session).status_code == 200
    assert open_session(server, reader).status_code == 200


def test_idle_sessions_end(narrow: Callable[..., Any], environment: dict[str, str]) -> None:
    server = narrow("http._SESSIONS_PER_TOKEN, http._SESSION_IDLE_S = 1, 0.2")
    reader = loopgraph(environment, "token", "add", "reader", "--scope", "read")["secret"]
    assert open_session(server, reader).status_code == 200
    until = time.monotonic() + 60
    while (answer := open_session(server, reader)).status_code == 429 and time.monotonic() < until:
        pass
    assert answer.status_code == 200


def test_readers_leave_places_for_an_administrator(narrow: Callable[..., Any], environment: dict[str, str]) -> None:
    server = narrow("http._MAX_SESSIONS, http._SESSIONS_FOR_ADMINS = 6, 2")
    secrets = [loopgraph(environment, "token", "add", name, "--scope", "read")["secret"] for name in ("a", "b")]
    opened = [open_session(server, secret).status_code for secret in secrets * 3]
    assert opened == [200, 200, 200, 200, 429, 429]
    assert open_session(server, server.token).status_code == 200


def test_a_thousand_refused_sessions_leave_no_memory_behind(
    narrow: Callable[..., Any], environment: dict[str, str]
) -> None:
    server = narrow("")
    reader = loopgraph(environment, "token", "add", "reader", "--scope", "read")["secret"]
    with httpx.Client(headers={**JSON, "authorization": f"Bearer {reader}"}, timeout=30) as client:
        counted = [client.post(server.url, json=HELLO).status_code for _ in range(150)]
        before = psutil.Process(server.process.pid).memory_info().rss
        counted += [client.post(server.url, json=HELLO).status_code for _ in range(1_000)]
    assert counted.count(200) == 100
    assert psutil.Process(server.process.pid).memory_info().rss - before < 10 * 2**20


def test_idle_connections_of_strangers_give_way(narrow: Callable[..., Any]) -> None:
    server = narrow("http._CROWDED, http._MAX_CONNECTIONS = 20, 25")
    host, port = server.url.removeprefix("http://").split("/")[0].split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(60)]
    try:
        for _ in range(5):
            assert call(server, server.token).status_code == 200
        assert httpx.get(server.url.replace("/mcp", "/health"), timeout=10).status_code == 200
    finally:
        for each in held:
            each.close()


async def test_streams_of_a_revoked_token_end(start_http: Callable[..., Any], environment: dict[str, str]) -> None:
    server = start_http()
    secret = loopgraph(environment, "token", "add", "guest", "--scope", "read")["secret"]
    opened = open_session(server, secret)
    headers = {
        "authorization": f"Bearer {secret}",
        "accept": "text/event-stream",
        "mcp-session-id": opened.headers["mcp-session-id"],
    }
    async with httpx.AsyncClient(timeout=30) as client:
        async with client.stream("GET", server.url, headers=headers) as stream:
            assert stream.status_code == 200
            reading = asyncio.create_task(stream.aread())
            done, _ = await asyncio.wait({reading}, timeout=2.5)
            assert not done  # it goes on while the token is good
            await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "token", "revoke", "guest"],
                env=environment,
                check=True,
                capture_output=True,
            )
            await asyncio.wait_for(reading, 10)
        assert (await client.get(server.url, headers=headers)).status_code == 401
    assert call(server, server.token).status_code == 200
    server.log.flush()
    assert "Traceback" not in await asyncio.to_thread(Path(server.log.name).read_text)


# ------------------------------------------------------------------------------------------------------ permissions


def test_what_a_server_and_a_run_write_is_its_users_alone(environment: dict[str, str], workspace: Path) -> None:
    (workspace / "train.py").chmod(0o644)
    old = os.umask(0o022)
    try:
        home = Path(environment["LOOPGRAPH_HOME"])
        (home / "runs").mkdir(parents=True)
        done = subprocess.run(
            [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "run", "-d", "baseline"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    shown = {path.relative_to(home).as_posix(): path.stat().st_mode & 0o077 for path in home.iterdir()}
    assert set(shown.values()) == {0}, shown
    run = next((home / "runs").iterdir())
    assert {path.name: path.stat().st_mode & 0o077 for path in run.glob("*.log")}.popitem()[1] == 0
    results, until = workspace / "results.tsv", time.monotonic() + 20
    while not (results.exists() and results.stat().st_size) and time.monotonic() < until:
        pass  # the row follows the outcome
    assert results.stat().st_mode & 0o777 == 0o644
