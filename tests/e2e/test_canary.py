"""No request stops the others: while one is busy with hostile input, another client's search answers as before."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from mcp import Client

_LIMIT_S = (
    1.0  # no busy machine holds an answer up for so long three times; each fault of this kind did, for 2 to 100 s
)
_BUSY_S = 8.0  # for so long a hostile call is watched; most end long before
_DENSE = "".join(f"x{n} = f(a, b)\n" for n in range(6_000))  # near the most that is parsed
_WORDS = "We propose gated rotation of attention heads, which improves the loss by {} points. "


async def canary(client: Client) -> float:
    """Return how long a short search and a trivial tool take, the longer of the two."""
    took = []
    for tool, arguments in (("search_methods", {"query": "muon"}), ("get_experiment", {"experiment_id": "none"})):
        start = time.perf_counter()
        answer = await client.call_tool(tool, arguments)
        took.append(time.perf_counter() - start)
        assert answer.is_error is (tool == "get_experiment"), answer.content
    return max(took)


async def slowest_beside(client: Client, busy: "asyncio.Future[Any]") -> float:
    """Return the slowest canary while a call is on its way."""
    slowest, until = 0.0, time.perf_counter() + _BUSY_S
    while not busy.done() and time.perf_counter() < until:
        slowest = max(slowest, await canary(client))
    return slowest


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "train.py")


def device(folder: Path) -> None:
    (folder / "train.py").symlink_to("/dev/zero")


def program(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "train.py").write_text(text) and None


def declaration(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def declare(folder: Path) -> None:
        (folder / "train.py").write_text("EMBEDDING_LR = 0.6\n")
        (folder / "loopgraph.toml").unlink()
        make(folder / "loopgraph.toml")

    return declare


PROGRAMS: dict[str, Callable[[Path], None]] = {
    "a pipe": pipe,
    "a device": device,
    "a declaration that is a pipe": declaration(os.mkfifo),
    "a declaration that is a device": declaration(lambda file: file.symlink_to("/dev/zero")),
    "a declaration of many keys": declaration(lambda file: file.write_text("[workspace]\n" + "a.a." * 15_000) and None),
    "an endless sum": program("x = " + "1+" * 450_000 + "1\n"),
    "as much as is parsed": program("EMBEDDING_LR = 0.6\n" + _DENSE),
    "blank lines": program("\n" * 40_000 + "EMBEDDING_LR = 0.6\n"),
    "spaces": program("EMBEDDING_LR = 0.6\n" + (" " * 100 + "\n") * 8_000),
    "fields of a string": program("x = f'" + "{a}" * 80_000 + "'\n"),
    "brackets": program("x = " + "(" * 200_000 + "\n"),
    "a number": program("EMBEDDING_LR = " + "*".join(["64**64"] * 5_000) + "\nX = round(5, -20000000)\n"),
    "no end of a string": program("x = '''" + "a b\n" * 200_000),
    "many alike lines": program("EMBEDDING_LR = 0.6\n" + "".join(f"x = {n % 60}\n" for n in range(12_000))),
}
DOCUMENTS = {
    "comment.html": lambda: "<p>Text.</p><!--" + "".join(_WORDS.format(n) for n in range(60_000)),
    "word.md": lambda: "a" * 2_000_000,
    "stops.md": lambda: "." * 1_000_000 + "x" * 500_000,
    "brackets.html": lambda: "<a " * 500_000,
    "table.md": lambda: "|a" * 500_000,
    "braces.py": lambda: "x = f'" + "{a}" * 60_000 + "'\n",
}


@asynccontextmanager
async def two(start_http: Callable[..., Any]) -> AsyncIterator[tuple[Any, Client, Client]]:
    """Give a server and two clients of it: one that sends hostile input, and one that must not notice."""
    server = start_http()
    async with server.client() as one, server.client() as other:
        await canary(one)
        yield server, one, other


async def test_a_search_answers_while_hostile_programs_are_read(start_http: Callable[..., Any], tmp_path: Path) -> None:
    async with two(start_http) as (_, client, hostile):
        slow = {}
        for number, (name, make) in enumerate(PROGRAMS.items()):
            folder = tmp_path / f"hostile-{number}"
            folder.mkdir()
            (folder / "prepare.py").write_text("TIME_BUDGET = 1\n")
            (folder / "loopgraph.toml").write_text('[workspace]\ncommand = ["true"]\n')
            make(folder)
            for tool, arguments in (
                ("search_methods", {"query": "muon"}),
                ("get_code_edit", {"method_id": "embedding-lr"}),
                ("map_code", {}),
                ("run_experiment", {"wait_s": 0}),
            ):
                for _ in range(3):  # what another process of this machine did is not there each time
                    call = asyncio.ensure_future(hostile.call_tool(tool, {"workspace": str(folder), **arguments}))
                    took = await slowest_beside(client, call)
                    answer = await asyncio.wait_for(call, 60)
                    if took <= _LIMIT_S:
                        break
                if took > _LIMIT_S:
                    slow[f"{name}, {tool}"] = took
                if name.endswith(("a pipe", "a device")):
                    assert answer.is_error
                    assert any(word in answer.content[0].text for word in ("plain file", "outside", "trust")), (
                        answer.content
                    )
        assert not slow, f"over {_LIMIT_S:.1f} s"


async def test_a_search_answers_while_hostile_documents_are_read(
    start_http: Callable[..., Any], tmp_path: Path
) -> None:
    async with two(start_http) as (_, client, hostile):
        slow = {}
        for name, make in DOCUMENTS.items():
            file = tmp_path / name
            file.write_text(make())
            for _ in range(3):
                call = asyncio.ensure_future(hostile.call_tool("ingest", {"source": str(file)}))
                took = await slowest_beside(client, call)
                await asyncio.wait_for(call, 120)
                if took <= _LIMIT_S:
                    break
            if took > _LIMIT_S:
                slow[name] = took
        assert not slow, f"over {_LIMIT_S:.1f} s"


async def test_a_folder_of_many_files_says_how_far_it_is(start_http: Callable[..., Any], tmp_path: Path) -> None:
    async with two(start_http) as (_, client, hostile):
        folder = tmp_path / "notes"
        folder.mkdir()
        for number in range(200):
            (folder / f"n{number:03}.md").write_text(f"# Note {number}\n\n{_WORDS.format(number)}\n")
        told: list[float] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            told.append(progress)

        call = asyncio.ensure_future(
            hostile.call_tool("ingest", {"source": str(folder)}, progress_callback=on_progress)
        )
        await slowest_beside(client, call)
        answer = await asyncio.wait_for(call, 120)
        assert not answer.is_error
        assert len(set(told)) >= 150
        assert told == sorted(told)


async def test_memory_is_given_back_after_a_program_of_any_size(start_http: Callable[..., Any], tmp_path: Path) -> None:
    async with two(start_http) as (server, _, hostile):
        process = psutil.Process(server.process.pid)

        async def ask(name: str, text: str) -> None:
            folder = tmp_path / name
            folder.mkdir()
            (folder / "prepare.py").write_text("TIME_BUDGET = 1\n")
            (folder / "train.py").write_text(text)
            for tool, arguments in (("search_methods", {"query": "muon"}), ("map_code", {})):
                await hostile.call_tool(tool, {"workspace": str(folder), **arguments})

        await ask("first", "EMBEDDING_LR = 0.6\n" + _DENSE)  # what the allocator keeps for good after the first one
        before = process.memory_info().rss
        for number in range(3):
            await ask(f"sum-{number}", "x = " + f"{number}+" * 450_000 + "1\n")
            await ask(f"dense-{number}", f"EMBEDDING_LR = {number}\n" + _DENSE)
        assert process.memory_info().rss - before < 20 * 2**20
