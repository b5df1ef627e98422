"""Whole sessions: real runs of the tiny trainer, a real MCP server, a provider that misbehaves."""

import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest

from loopgraph_mcp.agents import prompts
from loopgraph_mcp.agents.opening import open_session, resume_session
from loopgraph_mcp.agents.plan import Plan
from loopgraph_mcp.agents.repair import calls_in_text
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.cli.sessions import recall_prompt, report
from loopgraph_mcp.config import Settings, read_skill
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.store import sessions

KEY = "sk-planted-4f8a1c"
ABOUT_RUN = "Train the draft for 1 s. An improvement is kept; otherwise the change is undone."  # the tool's own words
Provide = Callable[..., Any]
AGENT = [sys.executable, "-c", "from loopgraph_mcp.cli.main import main; main()", "agent"]
MODEL = {"provider": "openai", "model": "gpt-4o-mini", "key_variable": "TEST_KEY"}


def rate(value: str, name: str = "LEARNING_RATE") -> dict[str, Any]:
    """A reply that sets a rate and runs it."""
    return {"calls": [("set_value", {"name": name, "value": value}), ("run", {"description": f"rate {value}"})]}


async def research(settings: Settings, plan: Plan) -> tuple[dict[str, Any], list[Any], list[Any]]:
    async with open_session(settings, plan, {**os.environ, "TEST_KEY": KEY}) as session:
        await session.advance(plan.experiments)
        turns = await sessions.turns_of(session._db, session.id)
        return report(session), turns, await sessions.calls_of(session._db, session.id)


async def test_a_model_that_errs_in_every_way_finishes_and_each_token_counts_once(
    settings: Settings, provide: Provide
) -> None:
    server = provide(
        {"status": 429, "headers": {"retry-after": "0"}},
        {"text": "I cannot help with that.", "stop": "content_filter"},
        {"calls": [("launch_rocket", {})]},
        {"cut": True, "text": "half a reply"},
        {"calls": [("set_values", "{'name': 'learning_rate', 'value': 0.6")]},
        {"calls": [("edit_code", '{"search": "STEPS = 3", "replace": "STE')]},
        {"calls": [("read_code", {"start": n, "lines": 3}) for n in range(1, 10)] + [("run", {"desc": "ten at once"})]},
        {"calls": [("run", {"description": "learning rate 0.9"})]},
        {
            "text": 'Now\n```json\n{"set_value": {"name": "LEARNING_RATE", "value": "0.4"}, '
            '"run": {"description": "less"}}\n```',
            "usage": None,
        },
        {"calls": [("edit_code", {"search": "SLEEP_S = 0.05", "replace": "SLEEP_S = = 1"})]},
        rate("0.7"),
    )
    plan = Plan(**MODEL, base_url=server.url, experiments=3, memory="off", menu="off")
    found, turns, calls = await research(settings, plan)
    assert found["ended"] == "3 experiments done"
    assert [run["description"] for run in found["runs"]] == ["baseline", "ten at once", "less", "rate 0.7"]
    assert found["best"] == pytest.approx(1.65)
    spent, counted = found["spent"], [turn for turn in turns if turn.number and not turn.estimated]
    assert sum(turn.prompt_tokens for turn in counted) == server.billed[0]
    assert sum(turn.completion_tokens for turn in counted) == server.billed[1]
    assert spent["cached_tokens"] == server.billed[2]
    assert spent["prompt_tokens"] == sum(turn.prompt_tokens for turn in turns)
    assert spent["estimated_turns"] == 1
    assert spent["wasted_tokens"] > 100  # the reply that was cut off
    assert spent["usd"] == pytest.approx(
        sum((t.prompt_tokens - t.cached_tokens) * 0.15 + t.cached_tokens * 0.075 + t.completion_tokens * 0.6
            for t in turns) / 1e6)  # fmt: skip
    assert [call.name for call in calls if not call.valid] == ["launch_rocket", "edit_code", "run", "edit_code"]
    results = " ".join(call.result for call in calls)
    for told in ("there is no tool", "cut off", "would not parse", "read as", "a description changes nothing"):
        assert told in results


async def test_arms_differ_in_the_memory_alone(settings: Settings, workspace: Path, provide: Provide) -> None:
    repeat = [rate("0.4"), rate("0.4"), rate("0.6")]
    program, asked, found = (workspace / "train.py").read_text(), {}, {}
    for memory in ("off", "on"):
        (workspace / "train.py").write_text(program)
        server = provide(*repeat)
        plan = Plan(**MODEL, base_url=server.url, experiments=2, memory=memory)
        found[memory], _, _ = await research(settings, plan)
        asked[memory] = server.asked
    off, on = asked["off"][0], asked["on"][0]
    base = ["read_code", "edit_code", "set_value", "run", "undo", "record"]
    assert [tool["function"]["name"] for tool in off["tools"]] == base
    assert on["tools"][: len(base)] == off["tools"]
    remembered = [tool["function"] for tool in on["tools"][len(base) :]]
    assert {"search_methods", "get_code_edit"} <= {tool["name"] for tool in remembered}
    assert not {"run_experiment", "record_outcome"} & {tool["name"] for tool in remembered}
    assert all("workspace" not in tool["parameters"]["properties"] for tool in remembered)
    assert on["messages"][0]["content"].startswith(off["messages"][0]["content"])
    task, _, recalled = on["messages"][1]["content"].partition(f"\n\n{prompts.RECALLED}\n")
    assert task == off["messages"][1]["content"]
    assert recalled.startswith("ret_")
    assert "\n1. " in recalled
    assert "get_code_edit(" in recalled.partition("\nNext: ")[2]  # advice on a tool that is here
    assert "Next: run_experiment" not in json.dumps(asked["on"])
    # Without memory what failed is trained again and nothing is said of it; with memory it is answered from there.
    assert [run["repeated"] for run in found["off"]["runs"]] == [False, False, False]
    assert [run["repeated"] for run in found["on"]["runs"]] == [False, False, True, False]
    assert found["off"]["repeats_of_failures"] == 1
    said = json.dumps(asked["off"])
    for word in ("erdict", "Before:", "memory"):
        assert word not in said
    assert "Verdict" in json.dumps(asked["on"])


async def test_the_skill_is_told_to_a_model_with_memory_alone(settings: Settings, provide: Provide) -> None:
    server = provide(rate("0.4"))
    plan = Plan(**MODEL, base_url=server.url, experiments=1, skill=True)
    await research(settings, plan)
    told = server.asked[0]["messages"][0]["content"]
    assert told.startswith(prompts.system(memory=True))
    assert told.endswith(read_skill())
    for other in (plan.model_copy(update={"memory": "off"}), Plan(policy="greedy", experiments=1, skill=True)):
        with pytest.raises(ConfigError, match="needs a model and --memory on"):
            await research(settings, other)


async def test_without_memory_nothing_comes_from_or_goes_to_the_users_store(
    settings: Settings, provide: Provide
) -> None:
    server = provide(rate("0.4"))
    plan = Plan(**MODEL, base_url=server.url, experiments=1, memory="off")
    first, _, _ = await research(settings, plan)
    second, _, _ = await research(settings, plan)
    assert not settings.db_path.exists()
    assert not second["runs"][1]["repeated"]
    assert first["runs"][1]["experiment_id"] != second["runs"][1]["experiment_id"]


async def test_an_edit_of_the_memory_is_run_and_traced_to_its_prompt(
    settings: Settings, workspace: Path, provide: Provide
) -> None:
    (workspace / "train.py").write_text("MATRIX_LR = 0.04\n" + (workspace / "train.py").read_text())
    server = provide(
        {"calls": [("search_methods", {"query": "muon"})]},
        {"calls": [("get_code_edit", {"method_id": "muon-lr"})]},
        {"calls": [("run", {"description": ABOUT_RUN}), ("record", {"note": "no gain"})]},
    )
    found, turns, calls = await research(settings, Plan(**MODEL, base_url=server.url, experiments=1))
    run = found["runs"][1]
    assert run["description"] == "muon-lr"
    edit = next(call.result for call in calls if call.name == "get_code_edit")
    assert re.search(r"^- line 1: 0\.04 -> 0\.0\d+$", json.loads(edit)["text"], re.MULTILINE)
    assert "```" not in json.loads(edit)["text"]
    async with LoopGraph.open(settings) as graph:
        chain = {link.stage: link for link in (await graph.trace(run["experiment_id"])).before}
        costs = await graph.db.reader.execute_fetchall(
            "SELECT sum(tokens) AS tokens FROM cost WHERE source = 'agent' AND subject_id = ?", (run["experiment_id"],)
        )
    assert chain["method"].id == "muon-lr"
    assert chain["turn"].id == f"{found['session_id']}:3"
    assert next(iter(costs))["tokens"] == 330
    system, messages, reply = await recall_prompt(settings, found["session_id"], 3)
    assert [each.text for each in messages] == [each["content"] or "" for each in server.asked[2]["messages"][1:]]
    assert system == server.asked[2]["messages"][0]["content"]
    assert reply.calls[0].name == "run"
    assert all(turn.seconds >= 0 for turn in turns)
    assert calls[-1].name == "record"


async def test_a_model_that_cannot_call_tools_is_kept_in_the_loop_by_a_menu(
    settings: Settings, provide: Provide
) -> None:
    server = provide(*[{"text": "What a nice script! " * 200}] * 4, {"text": "I take number 2."})
    found, turns, _ = await research(settings, Plan(**MODEL, base_url=server.url, experiments=2, memory="off"))
    assert found["experiments"] == 2
    assert [turn.menu for turn in turns][-1]
    last = server.asked[-1]
    assert "tools" not in last
    assert "Answer with one number" in last["messages"][-1]["content"]
    assert "tools" not in last["messages"][0]["content"]  # nor is it told to call any
    told = server.asked[1]["messages"][-1]["content"]
    (value, _) = calls_in_text(told, [])
    assert json.loads(value.arguments) == {"name": "LEARNING_RATE", "value": "0.5"}


async def test_a_menus_change_is_made_to_the_kept_program(
    settings: Settings, workspace: Path, provide: Provide
) -> None:
    (workspace / "train.py").write_text("WIDTH = 2 * 16\n" + (workspace / "train.py").read_text())
    same = {"calls": [("set_value", {"name": "WIDTH", "value": "32"})]}
    begun = {"calls": [("set_value", {"name": "WIDTH", "value": "48"})]}
    server = provide(same, begun, *[{"text": "hm"}] * 4, {"text": "1"})
    found, turns, calls = await research(settings, Plan(**MODEL, base_url=server.url, experiments=1, memory="off"))
    assert [call.name for call in calls] == ["run", "set_value", "set_value", "undo", "set_value", "run"]
    assert "WIDTH is 32 already" in calls[1].result
    assert turns[-1].menu
    assert found["experiments"] == 1


def test_a_menu_offers_no_method_that_flopped_is_there_or_makes_no_edit() -> None:
    hit = {"method_id": "m", "name": "M", "summary": "s", "why": "w", "has_edit": True}
    good = {**hit, "presence": "absent", "standing": "untried"}
    others = [{**good, "presence": "present"}, {**good, "standing": "flopped"}, {**good, "has_edit": False}]
    made = prompts.choices("RATE = 0.5\n", "cpu", [*others, good], "ret_1", random.Random(1))
    assert [[name for name, _ in calls] for _, calls in made] == [["get_code_edit", "run"], *[["set_value", "run"]] * 2]


async def test_to_undo_nothing_is_no_mistake(settings: Settings, provide: Provide) -> None:
    server = provide({"calls": [("undo", {})]}, rate("0.4"))
    _, _, calls = await research(settings, Plan(**MODEL, base_url=server.url, experiments=1, memory="off"))
    assert calls[1].valid
    assert "kept program already" in calls[1].result


async def test_a_run_without_words_of_its_own_is_described_by_what_it_changes(
    settings: Settings, provide: Provide
) -> None:
    change = ("set_value", {"name": "LEARNING_RATE", "value": "0.4"})
    server = provide({"calls": [change, ("run", {"description": ABOUT_RUN})]})
    found, _, _ = await research(settings, Plan(**MODEL, base_url=server.url, experiments=1, memory="off"))
    (told,) = [
        tool["function"]["description"] for tool in server.asked[0]["tools"] if tool["function"]["name"] == "run"
    ]
    assert told == ABOUT_RUN
    assert found["runs"][1]["description"] == "LEARNING_RATE = 0.4 (was 0.5)"


async def test_a_model_that_reads_little_is_told_of_the_memorys_main_tools_alone(
    settings: Settings, provide: Provide
) -> None:
    server = provide({"text": "2"})
    await research(settings, Plan(**MODEL, base_url=server.url, experiments=1, max_turns=1, context_tokens=8_000))
    base = ["read_code", "edit_code", "set_value", "run", "undo", "record"]
    assert [tool["function"]["name"] for tool in server.asked[0]["tools"]] == [*base, "search_methods", "get_code_edit"]


async def test_of_a_long_reply_the_calls_alone_are_sent_back(settings: Settings, provide: Provide) -> None:
    call = {"name": "set_value", "arguments": {"name": "LEARNING_RATE", "value": "0.4"}}
    server = provide({"text": f"<tools>\n{json.dumps(call)}\n</tools>\n" + "# Tools " * 500}, rate("0.4"))
    await research(settings, Plan(**MODEL, base_url=server.url, experiments=1, memory="off"))
    (said,) = [each["content"] for each in server.asked[1]["messages"] if each["role"] == "assistant"]
    assert said == prompts.written_call(call["name"], call["arguments"])


async def test_endless_repetition_and_silence_end(settings: Settings, provide: Provide) -> None:
    same = provide({"calls": [("read_code", {"start": 1})]})
    found, _, _ = await research(settings, Plan(**MODEL, base_url=same.url, experiments=1, memory="off", menu="off"))
    assert "without progress" in found["ended"]
    assert any("same call as before" in json.dumps(each) for each in same.asked)
    noting = provide(
        *({"calls": [("set_value", {"name": "val_bpb", "value": f"1.{n}"}), ("record", {"note": f"1.{n} is better"})]}
          for n in range(30))
    )  # fmt: skip
    found, _, _ = await research(settings, Plan(**MODEL, base_url=noting.url, experiments=1, memory="off", menu="off"))
    assert found["ended"] == "12 turns without progress: the calls fail or repeat"
    mute = provide({"text": ""})
    found, _, _ = await research(settings, Plan(**MODEL, base_url=mute.url, experiments=1, memory="off"))
    assert found["ended"] == "no call in 12 turns"


async def test_one_who_runs_the_same_program_for_ever_is_told_and_ended(settings: Settings, provide: Provide) -> None:
    rounds = [
        [{"calls": [("record", {"note": f"run {number} was luck"})]}, {"calls": [("undo", {})]}, rate("0.4")]
        for number in range(30)
    ]
    server = provide(rate("0.4"), *(each for one in rounds for each in one))
    found, turns, _ = await research(settings, Plan(**MODEL, base_url=server.url, experiments=3, menu="off"))
    assert "without progress" in found["ended"]
    assert sum(run["repeated"] for run in found["runs"]) >= 3
    assert any("Nothing new was learned" in json.dumps(each) for each in server.asked)
    assert len(turns) < 20


async def test_a_conversation_that_outgrows_the_model_is_condensed(settings: Settings, provide: Provide) -> None:
    read = {"calls": [("read_code", {"start": 1})]}
    too_long = {"status": 400, "body": "maximum context length exceeded"}
    server = provide(rate("0.4"), read, too_long, rate("0.45"), read, read, rate("0.6"))
    plan = Plan(**MODEL, base_url=server.url, experiments=3, memory="off", context_tokens=2_000)
    found, _, _ = await research(settings, plan)
    assert found["experiments"] == 3
    last = server.asked[-1]["messages"]
    assert any("rate 0.4: 1.800000, not kept" in str(each["content"]) for each in last)
    assert len(str(last)) < 2_000 * 5


@pytest.mark.parametrize(
    ("cap", "told"), [({"max_tokens": 150}, "tokens are spent"), ({"max_usd": 0.00001}, "are spent"),
                      ({"budget_s": 0.001}, "budget"), ({"max_turns": 2}, "2 turns")],
)  # fmt: skip
async def test_caps_end_a_session(settings: Settings, provide: Provide, cap: dict[str, Any], told: str) -> None:
    server = provide({"calls": [("read_code", {})]}, {"calls": [("undo", {})]})
    plan = Plan(**MODEL, base_url=server.url, experiments=5, memory="off", **cap)
    found, _, _ = await research(settings, plan)
    assert told in found["ended"]
    assert found["experiments"] == 0


async def test_a_dollar_cap_without_a_price_is_refused(settings: Settings, provide: Provide) -> None:
    plan = Plan(provider="openai", model="unheard-of", base_url=provide({}).url, experiments=1, max_usd=1)
    with pytest.raises((ConfigError, ExceptionGroup), match="--prices"):
        await research(settings, plan)


# ------------------------------------------------------------------------------------- the command, its end and its key


def start(environment: dict[str, str], workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*AGENT, *arguments], env=environment, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def slow(workspace: Path) -> None:
    """Make a run take long enough to be broken off."""
    train = workspace / "train.py"
    train.write_text(train.read_text().replace("SLEEP_S = 0.05", "SLEEP_S = 0.05 if LEARNING_RATE == 0.5 else 30"))


def trainers(workspace: Path) -> list[psutil.Process]:
    home = str(workspace.parent)
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        and ("train.py" in str(process.info["cmdline"]) or "loopgraph_mcp" in str(process.info["cmdline"]))
        and home in _folder(process)
    ]  # fmt: skip


def _folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


async def until(found: Callable[[], Any]) -> Any:
    async with asyncio.timeout(30):
        while not (value := found()):  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(0.05)
    return value


async def test_ctrl_c_leaves_nothing_running_and_the_session_goes_on(
    environment: dict[str, str], settings: Settings, workspace: Path, provide: Provide
) -> None:
    slow(workspace)
    server = provide(rate("0.6"))
    options = ["--provider", "openai", "--model", "gpt-4o-mini", "--base-url", server.url, "-n", "1", "--memory", "off"]
    process = start(environment, workspace, *options)
    await until(lambda: [each for each in trainers(workspace) if "code" in _folder(each) and len(server.asked) > 0])
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=40)
    assert process.returncode == 130
    assert not trainers(workspace)
    session_id = told.split("session ")[1].split(":")[0]
    (workspace / "train.py").write_text((workspace / "train.py").read_text().replace("else 30", "else 0.01"))
    async with resume_session(settings, session_id, os.environ) as session:
        session.desk.draft = session.desk.draft.replace("else 30", "else 0.01")
        await session.advance(1)
        assert session.counted == 1
        assert [run.outcome for run in session.runs] == ["finished", "finished"]
    assert len(server.asked) == 1  # the reply was there already


async def test_a_session_goes_on_with_a_server_that_listens_elsewhere_now(
    environment: dict[str, str], workspace: Path, provide: Provide
) -> None:
    gone, server = "http://127.0.0.1:9/v1", provide(rate("0.6"))
    options = ["--provider", "llama.cpp", "--model", "m", "--memory", "off", "-n", "1"]
    first = start(environment, workspace, *options, "--base-url", gone)
    told = await asyncio.to_thread(lambda: first.stderr.readline() if first.stderr else "")
    first.kill()
    first.communicate(timeout=10)
    session_id = told.split("session ")[1].split(":")[0]
    again = start(environment, workspace, "--resume", session_id, "--base-url", server.url, "--json")
    out, told = await asyncio.to_thread(again.communicate, timeout=60)
    assert again.returncode == 0, told
    assert json.loads(out)["experiments"] == 1


async def test_a_killed_agent_goes_on_with_the_run_that_it_began(
    environment: dict[str, str], settings: Settings, workspace: Path, provide: Provide
) -> None:
    train = workspace / "train.py"
    train.write_text(train.read_text().replace("SLEEP_S = 0.05", "SLEEP_S = 0.05 if LEARNING_RATE == 0.5 else 1"))
    server = provide(rate("0.6"), rate("0.7"))
    options = ["--provider", "openai", "--model", "gpt-4o-mini", "--base-url", server.url, "-n", "2"]
    process = start(environment, workspace, *options)
    await until(lambda: [each for each in trainers(workspace) if "code" in _folder(each) and len(server.asked) > 0])
    process.kill()
    told = process.communicate(timeout=10)[1]
    session_id = told.split("session ")[1].split(":")[0]
    async with resume_session(settings, session_id, os.environ) as session:
        await session.advance(2)
        found = report(session)
        calls = await sessions.calls_of(session._db, session.id)
        turns = await sessions.turns_of(session._db, session.id)
    assert [run["description"] for run in found["runs"]] == ["baseline", "rate 0.6", "rate 0.7"]
    assert len({run["experiment_id"] for run in found["runs"]}) == 3
    assert [(call.turn, call.name) for call in calls] == [
        (0, "run"), (1, "set_value"), (1, "run"), (2, "set_value"), (2, "run"),
    ]  # fmt: skip
    assert found["spent"]["prompt_tokens"] == server.billed[0] == 200
    assert len(turns) == 3


async def test_a_key_is_nowhere_but_in_the_header(
    environment: dict[str, str], workspace: Path, provide: Provide
) -> None:
    train = workspace / "train.py"
    train.write_text(train.read_text().replace('MISHAP = ""', 'MISHAP = "print(sorted(os.environ.items()))"'))
    server = provide(
        {"status": 500, "body": f"your key {KEY} is fine, we are not"},
        {"text": f"the key is {KEY}", "calls": [("read_code", {})]},
        rate("0.6"),
    )
    options = ["--provider", "openai", "--model", "m", "--base-url", server.url, "--key-variable", "MY_OPENAI"]
    shell = {**environment, "MY_OPENAI": KEY, "OPENAI_API_KEY": KEY, "LOOPGRAPH_LOG_LEVEL": "DEBUG"}
    process = start(shell, workspace, *options, "-n", "1", "--json")
    out, told = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, told
    assert server.heads[-1]["authorization"] == f"Bearer {KEY}"
    assert KEY not in out + told
    files = [file for file in workspace.parent.rglob("*") if file.is_file()]
    assert any(b"LOOPGRAPH_SEED" in file.read_bytes() for file in files)  # the trainer did print its environment
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []


# ------------------------------------------------------------------------------------------------------------ policies


@pytest.mark.parametrize("memory", ["on", "off"])
async def test_a_gain_that_was_luck_is_found_out_by_a_replicate_and_undone(
    settings: Settings, workspace: Path, provide: Provide, memory: str
) -> None:
    program = (workspace / "train.py").read_text()
    value = "prepare.evaluate(LEARNING_RATE)"
    lucky = {"search": value, "replace": f"{value} - (0.1 if prepare.SEED == 3 else -0.2)"}
    again = {"description": "was it luck?", "replicate": True}
    server = provide(
        {"calls": [("edit_code", lucky), ("run", again), ("run", {"description": "lucky"})]},
        {"calls": [("run", again)]},
        {"text": "Done."},
    )
    plan = Plan(**MODEL, base_url=server.url, experiments=2, memory=memory, seed=3)
    found, _, calls = await research(settings, plan)
    assert [(call.name, bool(call.valid)) for call in calls][1:3] == [("edit_code", True), ("run", False)]
    assert [(run["decision"], run["counts"]) for run in found["runs"]] == [
        ("keep", False),
        ("keep", True),
        ("discard", True),
    ]
    assert found["runs"][2]["program"] == found["runs"][1]["program"]
    assert "luck" in calls[-1].result
    assert (workspace / "train.py").read_text() == program
    # The headline is the baseline: a lucky run whose replicate undid it is none, and is listed as undone.
    assert (found["best"], found["best_run"], found["best_beats_noise"]) == (found["baseline"], 0, False)
    assert found["headline"].endswith("the baseline; nothing measured here beats it.")
    assert [run["undone_by"] for run in found["runs"]] == [None, 2, None]
    assert found["runs"][1]["decided"] == "kept, undone by run 2"
    assert "Best so far" in calls[-1].result
    assert "the baseline; nothing measured here beats it" in calls[-1].result


async def test_a_run_that_a_replicate_undid_is_not_kept_again_when_the_memory_answers_with_it(
    settings: Settings, workspace: Path, provide: Provide
) -> None:
    program = (workspace / "train.py").read_text()
    value = "prepare.evaluate(LEARNING_RATE)"
    edit = {"search": value, "replace": f"{value} - (0.1 if prepare.SEED == 3 else -0.2)"}
    lucky = [("edit_code", edit), ("run", {"description": "lucky"})]
    again = ("run", {"description": "", "replicate": True})
    server = provide({"calls": lucky}, {"calls": [again]}, {"calls": lucky}, rate("0.4"))
    plan = Plan(**MODEL, base_url=server.url, experiments=2, seed=3)
    await research(settings, plan)
    found, _, _ = await research(settings, plan.model_copy(update={"experiments": 1}))
    assert [(run["repeated"], run["decision"]) for run in found["runs"]][1:] == [(True, "discard"), (False, "discard")]
    assert found["runs"][1]["metric_value"] < found["runs"][0]["metric_value"]  # by itself it would have been better
    assert (workspace / "train.py").read_text() == program


async def test_a_session_in_which_nothing_beats_the_noise_says_so_and_so_does_an_older_one(
    settings: Settings, provide: Provide
) -> None:
    server = provide(rate("0.55"), {"calls": [("run", {"description": "", "replicate": True})]})
    plan = Plan(**MODEL, base_url=server.url, experiments=2, memory="off", seed=3)
    found, _, calls = await research(settings, plan)
    assert [run["decided"] for run in found["runs"]] == ["kept", *["kept, not yet distinguishable from noise"] * 2]
    assert (found["best_run"], found["best_runs"], found["best_beats_noise"]) == (2, 2, False)
    assert found["best"] == pytest.approx(fmean(run["metric_value"] for run in found["runs"][1:]))
    assert found["best_standard_error"] == pytest.approx(found["noise_floor"] / 2**0.5)
    assert "Nothing measured here beats the noise yet." in found["headline"]
    assert "kept, not yet distinguishable from noise" in calls[-1].result
    # A session that was written down before a run said what its noise is.
    folder = settings.db_path.parent / "agents" / found["session_id"]
    new = ("group", "replicate", "tentative", "noise_floor", "noise_factor")
    with closing(sqlite3.connect(folder / "loopgraph.db")) as db, db:
        db.execute("DROP TRIGGER tool_call_append_only")
        paths = ", ".join(f"'$.{name}'" for name in new)
        db.execute(f"UPDATE tool_call SET run = json_set(json_remove(run, {paths}), '$.program', 'old')")
    async with resume_session(
        settings, found["session_id"], {**os.environ, "TEST_KEY": KEY, "LOOPGRAPH_PROFILE": "smoke"}
    ) as session:
        again = report(session)
        table = session.desk.table()
    assert [run["program"] for run in again["runs"]] == [run["program"] for run in found["runs"]]
    assert (again["best"], again["best_run"], again["best_runs"]) == (found["best"], 2, 2)
    assert not again["best_beats_noise"]
    assert "Nothing measured here beats the noise yet." in table


@pytest.mark.parametrize("policy", ["greedy", "random", "textbook", "forgetful"])
async def test_every_habit_researches_without_memory(settings: Settings, policy: str) -> None:
    found, _, calls = await research(settings, Plan(policy=policy, experiments=1, memory="off", seed=3))
    assert {call.name for call in calls} <= {"set_value", "run"}
    assert found["spent"]["estimated_turns"] == found["spent"]["turns"]


async def test_a_habit_heeds_the_memory_where_there_is_one(settings: Settings, workspace: Path) -> None:
    (workspace / "train.py").write_text("UNEMBEDDING_LR = 0.004\n" + (workspace / "train.py").read_text())
    found, _, calls = await research(settings, Plan(policy="forgetful", experiments=3, seed=1))
    names = [call.name for call in calls]
    assert names[1] == "search_methods"
    assert "get_code_edit" in names
    assert found["experiments"] == 3
    # It would repeat itself; the memory answers, and no experiment is spent on a repeat.
    assert found["repeats_of_failures"] == 0


async def test_a_habit_goes_on_from_the_best_program_that_the_memory_knows(settings: Settings, workspace: Path) -> None:
    file = workspace / "train.py"
    program = file.read_text()
    first, _, _ = await research(settings, Plan(policy="textbook", experiments=2, seed=1))
    assert first["best"] < first["baseline"]
    best = file.read_text()
    file.write_text(program)
    again, _, _ = await research(settings, Plan(policy="textbook", experiments=1, seed=1))
    taken = again["runs"][1]
    assert (taken["repeated"], taken["metric_value"]) == (True, first["best"])
    assert again["best"] <= first["best"]
    assert again["experiments"] == 1  # what the memory answers is no experiment
    assert file.read_text() == best or again["runs"][-1]["decision"] == "keep"


async def test_a_scripted_session_goes_on_where_it_was(settings: Settings, workspace: Path) -> None:
    program = (workspace / "train.py").read_text()
    plan = Plan(policy="random", experiments=3, memory="off", seed=5)
    whole, _, _ = await research(settings, plan)
    (workspace / "train.py").write_text(program)
    async with open_session(settings, plan, os.environ) as session:
        await session.advance(1)
        session_id = session.id
    async with resume_session(settings, session_id, os.environ) as session:
        await session.advance(3)
        again = report(session)
    told = [[(run["description"], run["metric_value"]) for run in each["runs"]] for each in (whole, again)]
    assert told[0] == told[1]
