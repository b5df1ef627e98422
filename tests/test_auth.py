import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.api.activity import check_cancel, running_now, under_way
from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.auth import Allowance, Caller, Grant, Scope
from loopgraph_mcp.config import HttpOptions, Settings, read_address, read_settings
from loopgraph_mcp.errors import AccessError, ConfigError, NotFoundError, RunError
from loopgraph_mcp.models import Context, Direction, Outcome, OutcomeKind, WhatRan
from loopgraph_mcp.server.http import check
from loopgraph_mcp.store import agents, edits, experiments, tokens
from loopgraph_mcp.store.database import Database, text_hash
from loopgraph_mcp.store.experiments import NewExperiment

ALICE = Caller("claude", "s1", Grant("alice", Scope.RUN, runs_at_once=2))
BOB = Caller("codex", "s2", Grant("bob", Scope.RUN))
READER = Caller("codex", "s3", Grant("reader", Scope.READ))
LOCAL = Caller("cursor", "s4")


@given(st.integers(1, 600), st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_no_token_calls_more_often_than_it_may(calls_per_minute: int, waits: list[float]) -> None:
    allowance, now, taken = Allowance(calls_per_minute, now=0.0), 0.0, 0
    for wait in waits:
        now += wait
        taken += allowance.take(now=now) == 0
    assert taken <= calls_per_minute + now * calls_per_minute / 60 + 1e-6


def test_an_allowance_says_when_to_come_back() -> None:
    allowance = Allowance(2, now=0.0)
    assert [allowance.take(now=0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    assert allowance.take(now=30.0) == 0.0


def test_scopes_hold_what_is_below_them() -> None:
    READER.check(Scope.READ)
    LOCAL.check(Scope.ADMIN)
    with pytest.raises(AccessError, match="'reader' has the scope read, but this call needs run"):
        READER.check(Scope.RUN)
    with pytest.raises(AccessError, match="needs admin"):
        BOB.check(Scope.ADMIN)


def test_agents_differ_by_token_client_and_session() -> None:
    grant = Grant("a", Scope.RUN)
    told = [Caller("c", "s"), Caller("c", "t"), Caller("d", "s"), Caller("c", "s", grant)]
    assert len({each.id for each in told}) == 4
    assert told[3].own_key("k") != told[0].own_key("k")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", ("127.0.0.1", 8848)),
        ("9000", ("127.0.0.1", 9000)),
        (":9000", ("127.0.0.1", 9000)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
        ("lab.example", ("lab.example", 8848)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert read_address(text) == address


@pytest.mark.parametrize("text", ["::1:80", "host:port", "a:99999", "http://x:1"])
def test_wrong_addresses_teach(text: str) -> None:
    with pytest.raises(ConfigError):
        read_address(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (HttpOptions("192.168.1.5", auth=False), "--no-auth"),
        (HttpOptions("lab.example", auth=False), "--no-auth"),
        (HttpOptions("0.0.0.0"), "--allow-host"),
        (HttpOptions("::"), "--allow-host"),
        (HttpOptions(tls_cert=Path("x")), "need each other"),
    ],
)
def test_no_door_is_left_open(options: HttpOptions, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(options)


def test_loopback_may_do_without_tokens() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check(HttpOptions(host, auth=False))


def test_oauth_urls_are_https(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https"):
        read_settings(
            {"LOOPGRAPH_OAUTH_ISSUER": "http://idp.example", "LOOPGRAPH_OAUTH_AUDIENCE": "https://x"}, tmp_path
        )
    with pytest.raises(ConfigError, match="both"):
        read_settings({"LOOPGRAPH_OAUTH_ISSUER": "https://idp.example"}, tmp_path)


@pytest.fixture
async def db(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with Database.open(tmp_path / "x.db") as database:
        yield database


async def test_a_secret_is_kept_by_nobody(db: Database) -> None:
    secret = await tokens.add_token(db, ALICE.grant or Grant("x", Scope.RUN), now=1.0)
    (stored,) = await tokens.all_tokens(db)
    assert stored.hash == text_hash(secret)
    assert stored.grant == ALICE.grant
    await db.reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert secret.encode() not in db.path.read_bytes()
    rotated = await tokens.rotate_token(db, "alice")
    assert rotated != secret
    assert (await tokens.all_tokens(db))[0].hash == text_hash(rotated)
    with pytest.raises(AccessError, match="rotate"):
        await tokens.add_token(db, Grant("alice", Scope.ADMIN), now=2.0)
    await tokens.revoke_token(db, "alice", now=3.0)
    assert (await tokens.all_tokens(db))[0].revoked_at == 3.0
    with pytest.raises(NotFoundError, match="token list"):
        await tokens.revoke_token(db, "nobody", now=3.0)


async def queue_up(db: Database, caller: Caller | None, program: str, **more: object) -> tuple[str, bool]:
    workspace = await edits.workspace_id(db, "/somewhere", now=1.0)
    context = await edits.context_id(db, Context(workspace, "cpu: x", 30.0, "d", "h", "val_bpb", Direction.LOWER))
    new = NewExperiment(
        context,
        "cpu-0",
        program,
        more.pop("seed", 42),  # type: ignore[arg-type]
        60.0,
        30.0,
        program_hash=await edits.add_program(db, program, f"tree of {program}"),
        ran=WhatRan(program, program),
        caller=caller,
        **more,  # type: ignore[arg-type]
    )
    return await experiments.add_experiment(db, new, now=time.time())


async def test_two_who_ask_for_the_same_share_one_run(db: Database) -> None:
    first, new = await queue_up(db, ALICE, "a = 1", shared="any_seed")
    assert new
    assert await queue_up(db, BOB, "a = 1", shared="any_seed") == (first, False)
    assert await queue_up(db, BOB, "a = 1", shared="same_seed") == (first, False)
    assert [each.name for each in (await agents.askers(db, [first]))[first]] == ["alice", "bob"]
    other, new = await queue_up(db, BOB, "a = 1", seed=43, shared="same_seed")
    assert new
    assert other != first
    await experiments.finish(db, first, Outcome(OutcomeKind.CANCELLED, None, "", {}), now=3.0)
    await experiments.request_cancel(db, other, now=3.0)
    assert (await queue_up(db, BOB, "a = 1", shared="any_seed"))[1]


async def test_a_token_has_so_many_runs_on_their_way_and_no_more(db: Database) -> None:
    first, _ = await queue_up(db, ALICE, "a = 1")
    await queue_up(db, Caller("other", "session", ALICE.grant), "a = 2")
    with pytest.raises(RunError, match="alice has 2 experiments queued or running"):
        await queue_up(db, ALICE, "a = 3")
    assert (await queue_up(db, BOB, "a = 3"))[1]
    await experiments.finish(db, first, Outcome(OutcomeKind.CANCELLED, None, "", {}), now=3.0)
    assert (await queue_up(db, ALICE, "a = 4"))[1]
    for number in range(40):
        await queue_up(db, None, f"b = {number}")


async def test_only_who_asked_may_cancel(db: Database) -> None:
    shared, _ = await queue_up(db, ALICE, "a = 1", shared="any_seed")
    await check_cancel(db, shared, ALICE)
    with pytest.raises(AccessError, match="asked for by alice"):
        await check_cancel(db, shared, BOB)
    await queue_up(db, BOB, "a = 1", shared="any_seed")
    with pytest.raises(AccessError, match="asked for by bob"):
        await check_cancel(db, shared, ALICE)
    await check_cancel(db, shared, Caller("x", "s", Grant("boss", Scope.ADMIN)))
    await check_cancel(db, shared, LOCAL)


async def test_others_are_told_what_runs(db: Database) -> None:
    assert running_now(await under_way(db), BOB) == []
    shared, _ = await queue_up(db, ALICE, "a = 1")
    (told,) = running_now(await under_way(db), BOB)
    assert (told.experiment_id, told.agents, told.yours) == (shared, ["alice"], False)
    assert (running_now(await under_way(db), ALICE))[0].yours


async def test_a_method_that_runs_is_told_and_put_behind(settings: Settings, workspace: Path) -> None:
    (workspace / "train.py").write_text(
        "MATRIX_LR = 0.04\nEMBEDDING_LR = 0.6\nUNEMBEDDING_LR = 0.004\n" + (workspace / "train.py").read_text()
    )
    slow = workspace / "train.py"
    slow.write_text(slow.read_text().replace("STEPS = 3", "STEPS = 400"))
    async with LoopGraph.open(settings) as graph:
        top = "muon-lr"
        before = await graph.search_methods("learning rate", limit=60, caller=BOB)
        edit = await graph.get_code_edit(top, caller=ALICE)
        run = await graph.run_experiment(edit_id=edit.edit_id, caller=ALICE, wait_s=0, description="mine")
        after = await graph.search_methods("learning rate", limit=60, caller=BOB)
        assert [each.experiment_id for each in after.running] == [run.experiment_id]
        ranks = [[*(hit.method_id for hit in each.hits), top].index(top) for each in (before, after)]
        assert ranks[1] > ranks[0]
        told = await graph.get_code_edit(top, caller=BOB)
        assert told.running[0].agents == ["alice"]
        assert told.next_step.arguments == {"experiment_id": run.experiment_id}
        again = await graph.run_experiment(edit_id=told.edit_id, caller=BOB, wait_s=0)
        assert (again.experiment_id, again.repeated) == (run.experiment_id, True)
        with pytest.raises(AccessError):
            await graph.cancel_experiment(run.experiment_id, caller=ALICE)
        await graph.cancel_experiment(run.experiment_id)
