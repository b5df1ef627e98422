"""The prompt of the loop: the skill's text with a goal, for clients that offer prompts."""

from typing import Annotated

from mcp.server.mcpserver.prompts import Prompt
from pydantic import Field

from loopgraph_mcp.config import SKILL


def research_loop(
    goal: Annotated[str, Field(description="What to improve, in your words; by default the workspace's metric")] = "",
    experiments: Annotated[str, Field(description="How many experiments to make; by default until stopped")] = "",
) -> str:
    """Improve the training script by experiments, with the memory."""
    _, _, text = SKILL.read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")
    asked = [f"Goal: {goal or 'lower the metric of the workspace, or raise it where higher is better'}."]
    asked += [f"Make {experiments} experiments, then report what was kept and why."] if experiments else []
    return "\n".join([text.strip(), "", *asked, "Begin now."])


def loop_prompts() -> list[Prompt]:
    """Return the prompts that the server offers."""
    return [Prompt.from_function(research_loop, title="Research loop")]
