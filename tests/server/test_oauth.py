"""An authorization server on loopback with real keys: which of its tokens, and of others', are taken."""

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from loopgraph_mcp.auth import Scope
from loopgraph_mcp.config import OAuth
from loopgraph_mcp.server.oauth import Issuer

AUDIENCE = "https://lab.example/mcp"
KEY, OTHER_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))


class Authority(ThreadingHTTPServer):
    """Serves metadata and keys, and counts how often it is asked for the keys."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked, self.down = 0, False
        self.keys: dict[str, Any] = {"one": KEY}

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/realm"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Authority)
        if server.down:
            self.send_error(503)
            return
        if self.path == "/.well-known/oauth-authorization-server/realm":
            found: Any = {"issuer": server.issuer, "jwks_uri": f"http://127.0.0.1:{server.server_port}/keys"}
        elif self.path == "/keys":
            server.asked += 1
            found = {"keys": [jwk(key, kid) for kid, key in server.keys.items()]}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: Any) -> None:
        pass


def jwk(key: Any, kid: str) -> dict[str, Any]:
    return {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


@pytest.fixture
def authority() -> Iterator[Authority]:
    with Authority() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def token(authority: Authority, *, key: Any = KEY, kid: str = "one", algorithm: str = "RS256", **claims: Any) -> str:
    told = {
        "iss": authority.issuer,
        "aud": AUDIENCE,
        "sub": "ada",
        "exp": time.time() + 60,
        "scope": "openid loopgraph:read loopgraph:run",
        **claims,
    }
    return jwt.encode(
        {name: value for name, value in told.items() if value is not None}, key, algorithm, headers={"kid": kid}
    )


async def test_a_good_token_is_taken_for_what_it_says(authority: Authority) -> None:
    issuer = Issuer(OAuth(authority.issuer, AUDIENCE))
    grant = await issuer.verify(token(authority))
    assert grant is not None
    assert (grant.name, grant.scope) == ("oauth:ada", Scope.RUN)
    read = await issuer.verify(token(authority, scope=None, scp=["loopgraph:read"]))
    assert read is not None
    assert read.scope is Scope.READ
    assert authority.asked == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://other.example/mcp"},
        {"aud": None},
        {"iss": "https://other.example"},
        {"exp": time.time() - 60},
        {"exp": None},
        {"nbf": time.time() + 86_400},
        {"scope": "openid read run admin"},
        {"sub": None},
        {"key": OTHER_KEY},
        {"key": ec.generate_private_key(ec.SECP256R1()), "algorithm": "ES256"},
        {"key": "a shared secret that is long enough to be one", "algorithm": "HS256"},
        {"key": None, "algorithm": "none"},
        {"kid": "unknown"},
    ],
    ids=" ".join,
)
async def test_any_other_token_is_refused(authority: Authority, claims: dict[str, Any]) -> None:
    assert await Issuer(OAuth(authority.issuer, AUDIENCE)).verify(token(authority, **claims)) is None


async def test_what_is_no_token_is_refused(authority: Authority) -> None:
    issuer = Issuer(OAuth(authority.issuer, AUDIENCE))
    for text in ("", "x", "a.b.c", "....", "\x00", "é" * 1000):
        assert await issuer.verify(text) is None


async def test_new_keys_are_fetched_but_not_at_every_strangers_wish(authority: Authority) -> None:
    now = 1_000.0
    issuer = Issuer(OAuth(authority.issuer, AUDIENCE), clock=lambda: now)
    assert await issuer.verify(token(authority)) is not None
    authority.keys = {"two": OTHER_KEY}
    new = token(authority, key=OTHER_KEY, kid="two")
    for _ in range(5):
        assert await issuer.verify(new) is None
    assert authority.asked == 1
    now += 11
    assert await issuer.verify(new) is not None
    assert authority.asked == 2


async def test_an_issuer_that_does_not_answer_is_told(authority: Authority) -> None:
    with pytest.raises(OSError, match="LOOPGRAPH_OAUTH_JWKS"):
        await Issuer(OAuth(authority.issuer + "/other", AUDIENCE)).verify(token(authority))


async def test_keys_of_an_issuer_that_is_down_expire(authority: Authority) -> None:
    now = 1_000.0
    issuer = Issuer(OAuth(authority.issuer, AUDIENCE), clock=lambda: now)
    assert await issuer.verify(token(authority)) is not None
    authority.keys = {}
    authority.down = True
    now += 200
    assert await issuer.verify(token(authority)) is not None
    for seconds in (101, 1, 1, 400, 5):  # each time, and not only when they are asked for again
        now += seconds
        with pytest.raises(OSError, match="LOOPGRAPH_OAUTH_JWKS"):
            await issuer.verify(token(authority))
    authority.down, authority.keys = False, {"one": KEY}
    now += 11
    assert await issuer.verify(token(authority)) is not None
