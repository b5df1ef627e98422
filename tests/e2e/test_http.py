"""What only HTTP has: who comes in, what is refused and how, what is logged, how it ends."""

import asyncio
import ipaddress
import json
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from loopgraph_mcp.auth import Grant, Scope
from loopgraph_mcp.config import Settings
from loopgraph_mcp.store import tokens
from loopgraph_mcp.store.database import Database

SLOW = "@@ @@\n-SLEEP_S = 0.05\n-STEPS = 3\n+SLEEP_S = 0.1\n+STEPS = 50\n"
VERSION = "2026-07-28"
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
SMALL = "from loopgraph_mcp.server import http; http._HEAD_S = http._BODY_S = 1.0; "


def loopgraph(environment: dict[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", *arguments, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def call(server: Any, token: str, tool: str = "search_methods", **arguments: Any) -> httpx.Response:
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": tool, "arguments": arguments, "_meta": meta},
    }
    headers = {**JSON, "mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": tool}
    if token:
        headers["authorization"] = f"Bearer {token}"
    return httpx.post(server.url, json=body, headers=headers, timeout=30)


def read(server: Any, token: str, uri: str) -> httpx.Response:
    meta = {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": uri, "_meta": meta}}
    headers = {**JSON, "mcp-protocol-version": VERSION, "mcp-method": "resources/read", "mcp-name": uri}
    return httpx.post(server.url, json=body, headers={**headers, "authorization": f"Bearer {token}"}, timeout=30)


def words(reply: httpx.Response) -> str:
    return str(reply.json()["result"]["content"][0]["text"])


def test_doors(start_http: Callable[..., Any], environment: dict[str, str]) -> None:
    """One server, every way in; its log holds none of the secrets that were sent."""
    server = start_http(LOOPGRAPH_LOG_LEVEL="DEBUG", LOOPGRAPH_LOG_FORMAT="json", SOME_API_KEY="planted-key-1")
    assert call(server, server.token, query="planted argument").status_code == 200
    planted = [server.token, "lg_planted-wrong-token", "planted.jwt.token", "planted-key-1", "planted argument"]
    planted += ["planted-id", "planted-name"]
    assert "planted-id" in words(call(server, server.token, "get_experiment", experiment_id="planted-id"))
    assert "planted-name" in words(call(server, server.token, limit="planted-name"))
    assert read(server, server.token, "loopgraph://methods/planted-id").status_code in {200, 400}

    for wrong in ("lg_planted-wrong-token", "planted.jwt.token", server.token[:-1], server.token + "x"):
        refused = call(server, wrong)
        assert (refused.status_code, refused.json()["error"]) == (401, "invalid_token")
        assert "Bearer" in refused.headers["www-authenticate"]
    assert call(server, "").status_code == 401
    twice = [("authorization", f"Bearer {server.token}"), ("authorization", "Bearer lg_planted-wrong-token")]
    assert httpx.post(server.url, headers=[*JSON.items(), *twice], content="{}").status_code == 401
    assert httpx.post(f"{server.url}?access_token={server.token}", headers=JSON, content="{}").status_code == 401

    mine = {**JSON, "authorization": f"Bearer {server.token}"}
    assert httpx.post(server.url, headers={**mine, "host": "evil.example"}, content="{}").status_code == 421
    assert httpx.post(server.url, headers={**mine, "origin": "https://evil.example"}, content="{}").status_code == 403
    assert httpx.get(server.url.replace("/mcp", "/health"), headers={"host": "evil.example"}).status_code == 421
    assert httpx.post(server.url, headers=mine, content=b" " * (4 * 2**20 + 1)).status_code == 413

    def endless() -> Any:
        for _ in range(100):
            yield b" " * 2**16

    assert httpx.post(server.url, headers=mine, content=endless()).status_code == 413
    for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 401), ("/", 401), ("/.env", 401)):
        assert httpx.get(server.url.replace("/mcp", path)).status_code == status, path
    page = httpx.get(server.url.replace("/mcp", "/metrics"), headers=mine).text
    assert 'loopgraph_tool_seconds_count{outcome="ok",tool="search_methods"} 1.0' in page
    assert 'loopgraph_http_responses_total{status="401"}' in page

    reader = loopgraph(environment, "token", "add", "reader", "--scope", "read")["secret"]
    runner = loopgraph(environment, "token", "add", "runner", "--calls-per-minute", "7")["secret"]
    planted += [reader, runner]
    deadline = time.monotonic() + 10
    while call(server, reader).status_code != 200:
        assert time.monotonic() < deadline
    denied = call(server, reader, "run_experiment", patch=SLOW)
    assert denied.json()["result"]["isError"]
    assert "token 'reader' has the scope read" in words(denied)
    assert "needs run" in words(call(server, reader, "get_code_edit", method_id="gqa", apply=True))
    assert "needs run" in words(call(server, reader, "record_outcome", metric_value=1.0))
    assert "name a folder inside" in words(call(server, reader, workspace="/etc"))
    assert "experiment" in words(call(server, runner, "get_experiment", experiment_id="exp_x"))
    statuses = [call(server, runner).status_code for _ in range(12)]
    assert 429 in statuses
    assert 200 in statuses
    assert int(call(server, runner).headers["retry-after"]) >= 1

    rotated = loopgraph(environment, "token", "rotate", "reader")["secret"]
    planted.append(rotated)
    while call(server, reader).status_code != 401:
        assert time.monotonic() < deadline + 10
    assert call(server, rotated).status_code == 200
    subprocess.run(
        [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "token", "revoke", "reader"],
        env=environment,
        check=True,
        capture_output=True,
    )
    while call(server, rotated).status_code != 401:
        assert time.monotonic() < deadline + 20
    listed = {each["name"]: each["state"] for each in loopgraph(environment, "token", "list")}
    assert listed == {"default": "good", "reader": "revoked", "runner": "good"}

    server.process.terminate()
    server.process.wait(20)
    log = Path(server.log.name).read_text()
    assert log.count("\n") > 10
    assert all(json.loads(line)["level"] for line in log.splitlines())
    for secret in planted:
        assert secret not in log


async def test_sessions_belong_to_their_token(start_http: Callable[..., Any], environment: dict[str, str]) -> None:
    server = start_http()
    other = loopgraph(environment, "token", "add", "other")["secret"]
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "0"}},
    }
    mine = {**JSON, "authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(timeout=20) as client:
        session = (await client.post(server.url, headers=mine, json=hello)).headers["mcp-session-id"]
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        inside = {**mine, "mcp-session-id": session}
        assert (await client.post(server.url, headers=inside, json=ping)).status_code == 200
        await asyncio.sleep(1.1)  # a new token is known after a second
        stolen = {**inside, "authorization": f"Bearer {other}"}
        assert (await client.post(server.url, headers=stolen, json=ping)).status_code == 404
        assert (await client.delete(server.url, headers=stolen)).status_code == 404
        assert (await client.post(server.url, headers=inside, json=ping)).status_code == 200


async def test_agents_share_a_run_and_keys_do_not_meet(
    start_http: Callable[..., Any], environment: dict[str, str]
) -> None:
    one = loopgraph(environment, "token", "add", "one")["secret"]
    two = loopgraph(environment, "token", "add", "two")["secret"]
    server = start_http()
    async with server.client(token=one) as first, server.client(token=two) as second:
        asked = {"patch": SLOW, "wait_s": 0}
        runs = await asyncio.gather(*(each.call_tool("run_experiment", asked) for each in (first, second)))
        told = [run.structured_content or {} for run in runs]
        assert told[0]["experiment_id"] == told[1]["experiment_id"]
        assert sorted(each["repeated"] for each in told) == [False, True]
        found = (await second.call_tool("search_methods", {"query": "attention"})).structured_content or {}
        assert sorted(found["running"][0]["agents"]) == ["one", "two"]
        keyed = {"replicate": True, "wait_s": 0, "idempotency_key": "k"}
        others = [(await each.call_tool("run_experiment", keyed)).structured_content or {} for each in (first, second)]
        assert others[0]["experiment_id"] != others[1]["experiment_id"]
        again = (await first.call_tool("run_experiment", keyed)).structured_content or {}
        assert again["experiment_id"] == others[0]["experiment_id"]
        refused = await second.call_tool("cancel_experiment", {"experiment_id": told[0]["experiment_id"]})
        assert "asked for by one too" in str(refused.content[0])
        for experiment in (told[0], *others):
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "from loopgraph_mcp.cli.main import main; main()",
                    "cancel",
                    experiment["experiment_id"],
                ],
                env=environment,
                check=True,
                capture_output=True,
            )


async def test_runs_outlive_a_server_that_is_told_to_stop(
    start_http: Callable[..., Any], environment: dict[str, str]
) -> None:
    server = start_http()
    async with server.client() as client:
        run = (await client.call_tool("run_experiment", {"patch": SLOW, "wait_s": 2})).structured_content or {}
        assert run["state"] == "running"
    server.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    server.process.wait(20)
    assert time.monotonic() - began < 10
    done = loopgraph(environment, "status", "--once")
    assert done[0]["state"] == "running"
    while loopgraph(environment, "status", "--once")[0]["state"] != "done":
        assert time.monotonic() - began < 60
    assert loopgraph(environment, "status", "--once")[0]["outcome"] == "finished"


def raw(server: Any, sent: bytes) -> bytes:
    """Send bytes as they are and return what comes back until the server closes or a second passes."""
    port = int(re.findall(r":(\d+)/", server.url)[0])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        connection.settimeout(1.0)
        got = b""
        try:
            while b"\r\n\r\n" not in got and (part := connection.recv(65_536)):
                got += part
        except TimeoutError:
            pass
        return got


def test_whatever_is_sent_is_answered_for_what_it_is(start_http: Callable[..., Any]) -> None:
    server = start_http()
    headers = st.dictionaries(
        st.sampled_from(["mcp-protocol-version", "mcp-method", "mcp-name", "mcp-session-id", "accept", "x", "host"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip),
    )
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    )
    calls = st.fixed_dictionaries(
        {
            "jsonrpc": st.sampled_from(["2.0", "1.0", 2]),
            "id": json_values,
            "method": st.sampled_from(["tools/call", "tools/list", "initialize", "server/discover", "x", ""]),
            "params": json_values | st.fixed_dictionaries({"name": json_values, "arguments": json_values}),
        }
    )
    bodies = (
        calls.map(json.dumps).map(str.encode)
        | json_values.map(json.dumps).map(str.encode)
        | st.binary(max_size=200)
        | st.just(b"[" * 100_000)
        | st.just(b"1" * 10_000)
    )

    @limits(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(headers, bodies, st.sampled_from(["POST", "GET", "DELETE", "PUT", "OPTIONS"]), st.booleans())
    def fuzz(told: dict[str, str], body: bytes, method: str, known: bool) -> None:  # noqa: FBT001 - drawn
        sent = {**JSON, **told}
        if known:
            sent["authorization"] = f"Bearer {server.token}"
        if method == "GET" and known:
            return  # a stream that stays open
        reply = httpx.request(method, server.url, headers=sent, content=body, timeout=20)
        assert reply.status_code in ({200, 202, 400, 404, 405, 406, 421} if known else {401, 421}), reply.text

    fuzz()
    assert call(server, server.token).status_code == 200

    @limits(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=1, max_size=300))
    def noise(sent: bytes) -> None:
        got = raw(server, sent + b"\r\n\r\n")
        assert not got or got.startswith(b"HTTP/1.1 4")

    noise()
    assert call(server, server.token).status_code == 200


@pytest.fixture
def hurried(environment: dict[str, str], tmp_path: Path) -> Any:
    """A server that waits a second where others wait half a minute."""
    code = (
        SMALL + "import sys; from loopgraph_mcp.__main__ import main; sys.argv[1:] = ['--http', '127.0.0.1:0']; main()"
    )
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdout is not None
        token = process.stdout.readline().split()[-1]
        url = process.stdout.readline().split()[-1]
        yield type("Server", (), {"token": token, "url": url, "process": process})
        process.terminate()


async def test_slow_and_silent_clients_are_let_go_and_the_others_served(hurried: Any) -> None:
    port = int(re.findall(r":(\d+)/", hurried.url)[0])
    auth = f"Authorization: Bearer {hurried.token}\r\nHost: 127.0.0.1:{port}\r\n"
    slow_body = f"POST /mcp HTTP/1.1\r\n{auth}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    slow_head = "POST /mcp HTTP/1.1\r\nX: "
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4_096, most), most))
    before = psutil.Process(hurried.process.pid).memory_info().rss
    open_now = []
    for number in range(1_000):
        open_now.append(await asyncio.open_connection("127.0.0.1", port))
        open_now[-1][1].write((slow_body if number % 3 == 0 else slow_head if number % 3 == 1 else "").encode())
    reply = await asyncio.to_thread(call, hurried, hurried.token)
    assert reply.status_code == 200
    answers = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in open_now)), 60)
    told = {answer[:12] for answer in answers[0::3]}
    assert {b"HTTP/1.1 408"} <= told <= {b"HTTP/1.1 408", b""}  # nothing to whose head came too late on a busy machine
    assert set(answers[1::3]) | set(answers[2::3]) <= {b""}
    for _, writer in open_now:
        writer.close()
    assert call(hurried, hurried.token).status_code == 200
    assert psutil.Process(hurried.process.pid).num_fds() < 60
    assert psutil.Process(hurried.process.pid).memory_info().rss < before + 50 * 2**20


async def test_an_expired_token_is_refused_and_a_stolen_one_after_its_rotation(
    start_http: Callable[..., Any], settings: Settings
) -> None:
    async with Database.open(settings.db_path) as db:
        grant = Grant("short", Scope.READ, expires_at=time.time() + 6)
        short = await tokens.add_token(db, grant, now=time.time())
    server = start_http()
    assert (await asyncio.to_thread(call, server, short)).status_code == 200
    while (replayed := await asyncio.to_thread(call, server, short)).status_code == 200:
        assert time.time() < (grant.expires_at or 0) + 1
    assert (replayed.status_code, replayed.json()["error"]) == (401, "invalid_token")


def test_tls_by_flag(start_http: Callable[..., Any], tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = start_http("--tls-cert", str(cert_file), "--tls-key", str(key_file))
    assert server.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=str(cert_file))
    health = server.url.replace("/mcp", "/health")
    assert httpx.get(health, verify=trusting).status_code == 200
    mine = {**JSON, "authorization": f"Bearer {server.token}"}
    assert httpx.post(server.url, headers=mine, content="{}", verify=trusting).status_code == 400
    with pytest.raises(httpx.ConnectError):
        httpx.get(health)
    with pytest.raises(httpx.HTTPError):
        httpx.get(health.replace("https", "http"))


def test_names_are_checked_on_all_interfaces_too(start_http: Callable[..., Any]) -> None:
    server = start_http("--http", "0.0.0.0:0", "--allow-host", "gpu1.lab", "--allow-origin", "https://board.lab")
    port = int(re.findall(r":(\d+)/", server.url)[0])
    mine = {**JSON, "authorization": f"Bearer {server.token}", "host": f"gpu1.lab:{port}"}

    def status(**other: str) -> int:
        return httpx.post(f"http://127.0.0.1:{port}/mcp", headers={**mine, **other}, content="{}").status_code

    assert status() == status(origin="https://board.lab") == 400  # let in, and told that the body is no request
    assert status(host="evil.example") == 421
    assert status(origin="https://evil.example") == 403
    assert status(authorization="Bearer lg_wrong") == 401


def test_stdio_imports_nothing_of_http() -> None:
    code = (
        "import sys, loopgraph_mcp.server.app; "
        "print([name for name in ('loopgraph_mcp.server.http', 'prometheus_client', 'loopgraph_mcp.server.oauth') "
        "if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--http", "0.0.0.0:0"], "--allow-host"),
        (["--http", "203.0.113.1:0", "--no-auth"], "--no-auth"),
        (["--http", "nonsense:port"], "HOST:PORT"),
        (["--http", "--tls-cert", "x.pem"], "need each other"),
        (["--http", "127.0.0.1:0", "--tls-cert", "/none", "--tls-key", "/none"], "--tls-cert"),
    ],
)
def test_a_server_that_may_not_start_says_why(environment: dict[str, str], arguments: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loopgraph_mcp", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
