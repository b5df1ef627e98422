"""A server of either kind, and clients of it: what a test asks over stdio, it asks over HTTP as well."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

SERVER = [sys.executable, "-m", "loopgraph_mcp"]
Connect = Callable[..., AbstractAsyncContextManager[Client]]


@dataclass
class HttpServer:
    """A server that listens on loopback; what it says at its start, and where its log goes."""

    process: "subprocess.Popen[str]"
    said: list[str]
    log: Any

    @property
    def url(self) -> str:
        return self.said[-1].split()[-1]

    @property
    def token(self) -> str:
        return self.said[0].split()[-1]

    @asynccontextmanager
    async def client(self, era: Any = "auto", token: str | None = None, **more: Any) -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        async with (
            create_mcp_http_client(headers=headers) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=era, **more) as client,
        ):
            yield client


@pytest.fixture
def start_http(environment: dict[str, str], tmp_path: Any) -> Iterator[Callable[..., HttpServer]]:
    with ExitStack() as stack:

        def start(*arguments: str, **variables: str) -> HttpServer:
            log = (tmp_path / "http.log").open("a+")
            process = subprocess.Popen(
                [*SERVER, "--http", "127.0.0.1:0", *arguments],
                env={**environment, **variables},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            stack.callback(log.close)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            assert process.stdout is not None
            stack.callback(process.stdout.close)
            said: list[str] = []
            while not said or "serves" not in said[-1]:
                line = process.stdout.readline()
                assert line, (tmp_path / "http.log").read_text()
                said.append(line.strip())
            return HttpServer(process, said, log)

        yield start


@pytest.fixture(params=["stdio", "http"])
def connect(request: Any, environment: dict[str, str], start_http: Callable[..., HttpServer]) -> Connect:
    """Clients of one server each over stdio, or of one HTTP server for all of them."""
    if request.param == "stdio":
        parameters = StdioServerParameters(command=SERVER[0], args=SERVER[1:], env=environment)
        return lambda era="auto", **more: Client(parameters, mode=era, **more)
    return start_http().client
