"""Times a code edit through MCP, for every recipe of the shipped pack on a file of 1,000 lines, and counts its answer.

The file is the bundled trainer's with functions behind it that no recipe asks for. `cpu_ms` is what the server computes
for a call, whatever else the machine does. The targets: 100 ms, 1,500 tokens.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

import psutil
from fresh_server import fresh_server
from mcp_types import TextContent

from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.text import estimate_tokens

METHODS = [each.id for each in read_pack(Path(__file__).parents[1] / "methodpacks").methods if each.recipe is not None]
LINES = 1_000
FUNCTION = "\n\ndef unused_{number}(a, b):\n    total = a + {number} * b\n    return total\n"


def of_length(program: str, lines: int) -> str:
    """Return a program with functions behind it until it has so many lines."""
    for number in range(lines):
        if program.count("\n") >= lines:
            break
        program += FUNCTION.format(number=number)
    return program


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of an edit, its median of some calls, and the tokens of its answer, by method."""
    figures = {}
    async with fresh_server(budget_s=2) as (where, client):
        (where.path / where.editable).write_text(of_length(where.read_program(), LINES), encoding="utf-8")
        await client.list_tools()
        for method_id in METHODS:
            took, before = [], _computed_s()
            for _ in range(rounds):
                began = time.perf_counter()
                answer = await client.call_tool("get_code_edit", {"method_id": method_id})
                took.append(1e3 * (time.perf_counter() - began))
            (content,) = answer.content
            assert isinstance(content, TextContent)  # noqa: S101 - narrows the type
            if answer.is_error:
                raise SystemExit(f"{method_id}: {content.text}")
            figures[method_id] = {
                "first_ms": took[0],
                "median_ms": statistics.median(took),
                "cpu_ms": 1e3 * (_computed_s() - before) / rounds,
                "tokens": estimate_tokens(content.text),
            }
    return figures


def _computed_s() -> float:
    """Return the seconds of the processor that the server has used so far."""
    return sum(sum(each.cpu_times()[:2]) for each in psutil.Process().children(recursive=True))


def main() -> None:
    """Measure and print the median and the worst of all methods, or JSON of each."""
    parser = argparse.ArgumentParser(prog="scripts/bench edit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="calls for each method (%(default)d)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.rounds))
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{len(figures)} methods, {options.rounds} calls each, a file of {LINES:,} lines")
    for key in ("first_ms", "median_ms", "cpu_ms", "tokens"):
        worst = max(figures, key=lambda each: figures[each][key])
        middle = statistics.median(each[key] for each in figures.values())
        print(f"{key:10} median {middle:6.0f}   worst {figures[worst][key]:6.0f} ({worst})")


if __name__ == "__main__":
    main()
