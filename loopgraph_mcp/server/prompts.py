"""The prompt `research_loop`: the skill's text with a goal."""

from typing import Annotated

from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver.prompts import Prompt
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from pydantic import Field

from loopgraph_mcp.config import read_skill
from loopgraph_mcp.server.callers import Asked
from loopgraph_mcp.text import plain_line

_GOAL_CHARS = 4_000


def research_loop(
    goal: Annotated[str, Field(description="What to improve. Default: the workspace's metric")] = "",
    experiments: Annotated[str, Field(description="How many experiments to run. Default: until stopped")] = "",
) -> str:
    """Improve the training script by experiments with LoopGraph."""
    goal, experiments = plain_line(goal, limit=_GOAL_CHARS), plain_line(experiments, limit=60)
    asked = [f"Goal: {goal or 'lower the metric of the workspace, or raise it where higher is better'}."]
    asked += [f"Run {experiments} experiments, then report what was kept and why."] if experiments else []
    return "\n".join([read_skill(), "", *asked, "Start now."])


def loop_prompts() -> list[Prompt]:
    """Return the prompts that the server offers."""
    return [Prompt.from_function(research_loop, title="Research loop")]


async def check_prompt(ctx: Asked, call_next: CallNext) -> HandlerResult:
    """Refuse an unknown prompt or argument as invalid; the SDK would report an internal error."""
    if ctx.method == "prompts/get" and isinstance(name := (ctx.params or {}).get("name"), str):
        offered = {each.name: {one.name for one in each.arguments or ()} for each in loop_prompts()}
        if name not in offered:
            raise MCPError(code=INVALID_PARAMS, message=f"unknown prompt {name[:60]!r}; use {', '.join(offered)}")
        given = (ctx.params or {}).get("arguments")
        if isinstance(given, dict) and (unknown := sorted(given.keys() - offered[name])):
            message = f"{name} has no argument {unknown[0][:60]!r}; its arguments: {', '.join(sorted(offered[name]))}"
            raise MCPError(code=INVALID_PARAMS, message=message)
    return await call_next(ctx)
