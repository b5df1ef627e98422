"""Prometheus metrics of the HTTP server."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from loopgraph_mcp.text import plain_line

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The counters of one server, in a registry of its own."""

    tools: Collection[str]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    responses: Counter = field(init=False)
    seconds: Histogram = field(init=False)
    live: Gauge = field(init=False)

    def __post_init__(self) -> None:
        ProcessCollector(registry=self.registry)
        made = {
            "responses": Counter("loopgraph_http_responses", "HTTP responses", ["status"], registry=self.registry),
            "seconds": Histogram(
                "loopgraph_tool_seconds", "Tool calls", ["tool", "outcome"], buckets=_BUCKETS, registry=self.registry
            ),
            "live": Gauge(
                "loopgraph_experiments",
                "Experiments queued or running",
                ["device_slot", "state"],
                registry=self.registry,
            ),
        }
        for name, each in made.items():
            object.__setattr__(self, name, each)

    async def watch(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Time a tool call; an unknown tool has no name of its own, or callers could make any number of series."""
        if ctx.method != "tools/call":
            return await call_next(ctx)
        named = (ctx.params or {}).get("name")
        tool = named if named in self.tools else "unknown"
        began, outcome = time.perf_counter(), "failed"
        try:
            result = await call_next(ctx)
            is_failed = result.get("isError") if isinstance(result, dict) else getattr(result, "is_error", False)
            outcome = "refused" if is_failed else "ok"
            return result
        finally:
            self.seconds.labels(tool, outcome).observe(time.perf_counter() - began)

    def page(self, live: Collection[tuple[str, str]]) -> bytes:
        """Return everything in Prometheus' text format; `live` has device slot and state of each experiment."""
        self.live.clear()
        for slot, state in live:
            self.live.labels(plain_line(slot), plain_line(state)).inc()
        return generate_latest(self.registry)
