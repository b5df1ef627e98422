"""Verifies access tokens of an OAuth authorization server: signature, issuer, audience, expiry."""

import asyncio
import hashlib
import json
import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt

from loopgraph_mcp.auth import Grant, Scope
from loopgraph_mcp.config import OAuth

SCOPE_PREFIX = "loopgraph:"
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]  # none with a shared secret
_TIMEOUT_S = 10.0  # the caller waits meanwhile
_KEYS_FOR_S = 300.0  # a removed key stays valid for at most this long
_ASK_AGAIN_S = 10.0  # a token with an unknown key makes us fetch the keys at most so often
_MAX_BYTES = 2**20  # of an issuer's metadata or keys, which have a few kilobytes
_NAME_CHARS = 100  # of a name in logs and answers
_PLAIN_NAME = re.compile(r"[\w.@:|/+-]+", re.ASCII)


class Issuer:
    """One authorization server and its keys, fetched when they are first needed and kept for a while."""

    def __init__(self, oauth: OAuth, clock: Callable[[], float] = time.monotonic) -> None:
        self.oauth = oauth
        self._now = clock
        self._lock = asyncio.Lock()
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._asked_at = -_KEYS_FOR_S
        self._fetched_at = -_KEYS_FOR_S
        self._trouble = ""

    async def verify(self, token: str) -> Grant | None:
        """Return what a token allows, or None where it is no good.

        Raises:
            OSError: The authorization server's keys cannot be fetched.
        """
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                issuer=self.oauth.issuer,
                audience=self.oauth.audience,
                leeway=10,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError:
            return None
        return _grant(claims)

    async def _key(self, kid: str | None) -> jwt.PyJWK | None:
        """Return a key; those of an issuer that is down are worth nothing once they are too old.

        Raises:
            OSError: They are, and newer ones cannot be fetched.
        """
        async with self._lock:
            now = self._now()
            is_old = now - self._fetched_at > _KEYS_FOR_S
            if (is_old or kid not in self._keys) and now - self._asked_at > _ASK_AGAIN_S:
                self._asked_at = now
                try:
                    found = await asyncio.to_thread(_fetch_keys, self.oauth)
                except OSError as error:
                    self._trouble = str(error)
                else:
                    self._keys = {key.key_id: key for key in found.keys if key.public_key_use in {None, "sig"}}
                    self._fetched_at, self._trouble = now, ""
                is_old = now - self._fetched_at > _KEYS_FOR_S
            if is_old:
                self._keys = {}
            if self._trouble and kid not in self._keys:  # it may be a new key: who holds it should come again
                raise OSError(self._trouble)
        return self._keys.get(kid)


def _grant(claims: dict[str, Any]) -> Grant | None:
    """Return what a token's claims allow, or None where they name none of our scopes or nobody."""
    given = claims.get("scope", claims.get("scp", ""))
    words = set(given.split() if isinstance(given, str) else map(str, given) if isinstance(given, list) else ())
    scopes = [scope for scope in Scope if SCOPE_PREFIX + scope.value in words]
    who = claims.get("sub") or claims.get("client_id") or claims.get("azp")
    if not scopes or not isinstance(who, str):
        return None
    return Grant(f"oauth:{_name(who)}", scopes[-1], expires_at=float(claims["exp"]))


def _name(who: str) -> str:
    """Return a subject as one word for logs and answers; no two subjects share a name, and with it their rights."""
    if len(who) <= _NAME_CHARS and _PLAIN_NAME.fullmatch(who):
        return who
    given = re.sub(r"[^\w.@:|/+-]+", "_", who, flags=re.ASCII)[:_NAME_CHARS]
    return f"{given}#{hashlib.sha256(who.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def _fetch_keys(oauth: OAuth) -> jwt.PyJWKSet:
    """Fetch the keys, from where the server's metadata says unless that is known.

    Raises:
        OSError: They cannot be fetched or read.
    """
    try:
        return jwt.PyJWKSet.from_dict(_fetch(oauth.jwks or _jwks_url(oauth.issuer)))
    except (ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
        raise OSError(f"{oauth.issuer}: its keys cannot be read: {error}") from error


def _jwks_url(issuer: str) -> str:
    parts = urlsplit(issuer)
    base, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    tried = (f"{base}/.well-known/oauth-authorization-server{path}", f"{base}{path}/.well-known/openid-configuration")
    for url in tried:
        try:
            metadata = _fetch(url)
        except (OSError, ValueError):
            continue
        if metadata.get("issuer") == issuer and str(metadata.get("jwks_uri", "")).startswith((base, "https://")):
            return str(metadata["jwks_uri"])
    raise OSError(f"{issuer}: no metadata at {' or '.join(tried)}; set LOOPGRAPH_OAUTH_JWKS to its keys")


def _fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - https, or this machine's http
        return json.loads(reply.read(_MAX_BYTES))
