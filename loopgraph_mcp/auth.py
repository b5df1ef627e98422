"""Who asks and what they may do: agents by token, client and session; scopes; call rates of tokens."""

import hashlib
import json
import math
from dataclasses import dataclass
from enum import StrEnum

from loopgraph_mcp.errors import AccessError

CALLS_PER_MINUTE = 3_000  # 50 a second: no agent needs more, and a loop gone wild is stopped
RUNS_AT_ONCE = 16  # a night's queue; more would hide the others' runs


class Scope(StrEnum):
    """What a token is for; each allows what those before it allow."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"

    def allows(self, needed: "Scope") -> bool:
        """Return whether this scope includes another."""
        ranks = list(Scope)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True, slots=True)
class Grant:
    """What one bearer token allows.

    Args:
        name: Whose it is; never the token itself.
        calls_per_minute: How often it may call.
        runs_at_once: Experiments that it may have queued or running.
        expires_at: Epoch seconds after which it is worth nothing; None for never.
    """

    name: str
    scope: Scope
    calls_per_minute: int = CALLS_PER_MINUTE
    runs_at_once: int = RUNS_AT_ONCE
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """One agent, identified by its client program, its session, and the token it came with.

    Without a token it is a program of this user on this machine and may do anything.
    """

    client: str
    session: str
    grant: Grant | None = None

    @property
    def token(self) -> str:
        """The name of its token, or nothing."""
        return "" if self.grant is None else self.grant.name

    @property
    def id(self) -> str:
        """The hash that identifies the agent."""
        identity = json.dumps([self.token, self.client, self.session])
        return "agt_" + hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:16]

    @property
    def is_admin(self) -> bool:
        """Whether it may touch what others asked for."""
        return self.grant is None or self.grant.scope is Scope.ADMIN

    @property
    def runs_at_once(self) -> int:
        """Experiments that it may have queued or running."""
        return RUNS_AT_ONCE if self.grant is None else self.grant.runs_at_once

    def own_key(self, idempotency_key: str | None) -> str | None:
        """Return a key that no other token's call can meet."""
        return f"{self.token}:{idempotency_key}" if self.token and idempotency_key is not None else idempotency_key

    def check(self, needed: Scope) -> None:
        """Refuse what the token is not for.

        Raises:
            AccessError: It is not.
        """
        if self.grant is not None and not self.grant.scope.allows(needed):
            raise AccessError(
                f"token {self.token!r} has the scope {self.grant.scope.value}, but this call needs {needed.value}; "
                f"ask the server's administrator for `loopgraph token add NAME --scope {needed.value}`"
            )


class Allowance:
    """Calls that a token has left: they come back evenly, and a minute's worth can be saved up."""

    def __init__(self, calls_per_minute: int, *, now: float) -> None:
        self._most = calls_per_minute
        self._left = float(calls_per_minute)
        self._at = now

    def take(self, *, now: float) -> float:
        """Take one call and return 0, or return the seconds until there is one."""
        per_second = self._most / 60
        self._left = min(self._most, self._left + max(0.0, now - self._at) * per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / per_second if per_second else math.inf
        self._left -= 1
        return 0.0
