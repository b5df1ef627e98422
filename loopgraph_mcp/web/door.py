"""Who may see the page: a link that is good once is changed for a cookie. Kept in memory: a restart asks again."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from loopgraph_mcp.store.database import text_hash

SECRET = "loopgraph.secret"  # noqa: S105 - where a request's ASGI scope holds that of the token it came with
LINK_S = 10 * 60.0
VISIT_S = 7 * 86_400.0
_MOST = 1_000  # links and visits that are kept, the newest


@dataclass(slots=True)
class Door:
    """Changes links for cookies, and knows the token behind a cookie.

    Args:
        cookie: The cookie's name: ports of one host share their cookies.
        secure: Whether it is sent over TLS alone.
        now: The clock.
    """

    cookie: str
    secure: bool = False
    now: Callable[[], float] = time.time
    _links: dict[str, tuple[float, str]] = field(default_factory=dict)
    _visits: dict[str, tuple[float, str]] = field(default_factory=dict)

    def make_link(self, secret: str = "") -> str:
        """Return the key of a link that is good once, for ten minutes; it represents a token's secret, or none."""
        return self._add(self._links, secret, LINK_S)

    def use_link(self, key: str) -> str | None:
        """Return a cookie for a link's key, or None where it is no good or was used."""
        until, secret = self._links.pop(text_hash(key), (0.0, ""))
        return self.visit(secret) if until > self.now() else None

    def visit(self, secret: str) -> str:
        """Return a cookie that represents a token's secret, or none."""
        return self._add(self._visits, secret, VISIT_S)

    def secret(self, cookie: str | None) -> str | None:
        """Return the secret of a cookie; None if the cookie is invalid."""
        until, secret = self._visits.get(text_hash(cookie or ""), (0.0, ""))
        return secret if until > self.now() else None

    def leave(self, cookie: str | None) -> None:
        """Forget a cookie."""
        self._visits.pop(text_hash(cookie or ""), None)

    def _add(self, known: dict[str, tuple[float, str]], secret: str, lasts_s: float) -> str:
        made = secrets.token_urlsafe(32)
        while len(known) >= _MOST:
            known.pop(next(iter(known)))
        known[text_hash(made)] = self.now() + lasts_s, secret
        return made
