"""Opens sessions: which store an arm sees, what its servers inherit, which researcher runs."""

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from loopgraph_mcp.agents import prompts
from loopgraph_mcp.agents.client import Server
from loopgraph_mcp.agents.messages import Researcher, ToolSpec
from loopgraph_mcp.agents.plan import Plan
from loopgraph_mcp.agents.policies import Scripted
from loopgraph_mcp.agents.prices import Price, find_price
from loopgraph_mcp.agents.providers import HttpModel, find_endpoint
from loopgraph_mcp.agents.session import OnStatus, Session
from loopgraph_mcp.agents.tools import Desk
from loopgraph_mcp.config import Settings, read_skill
from loopgraph_mcp.errors import ConfigError, NotFoundError
from loopgraph_mcp.models import Direction
from loopgraph_mcp.runner.device import choose_device
from loopgraph_mcp.runner.environment import python_path, without_secrets
from loopgraph_mcp.runner.workspace import Workspace, load_workspace
from loopgraph_mcp.store import sessions
from loopgraph_mcp.store.database import Database, new_id
from loopgraph_mcp.store.sessions import SessionRow

_TOOLS: TypeAdapter[list[ToolSpec]] = TypeAdapter(list[ToolSpec])
_FREE = Price(prompt=0, completion=0)
AGENTS_DIR = "agents"
_SMALL_CONTEXT = 16_000  # tokens; the descriptions of all tools take 4,000
_FEW_TOOLS = frozenset({"search_methods", "get_code_edit"})


class Stores(NamedTuple):
    """The settings of an arm's runner, and of the memory it may ask; None: it has none."""

    runner: Settings
    memory: Settings | None


def arrange(settings: Settings, plan: Plan, session_id: str) -> Stores:
    """Return which stores a session sees.

    With memory on both are the user's own. Every other arm has a folder of its own, where nothing lies to begin with:
    `off` may ask nothing, `outcomes` learns from its own runs with no packs and no published histories, `packs` may
    ask a store that never hears of a run.
    """
    if plan.memory == "on":
        return Stores(settings, settings)
    folder = settings.db_path.parent / AGENTS_DIR / session_id
    nothing = folder / "no-packs"
    own = dataclasses.replace(settings, db_path=folder / "loopgraph.db", packs=nothing, day_one=False)
    if plan.memory == "outcomes":
        return Stores(own, own)
    if plan.memory == "packs":
        return Stores(own, dataclasses.replace(settings, db_path=folder / "read.db"))
    return Stores(own, None)


@asynccontextmanager
async def open_session(
    settings: Settings, plan: Plan, environment: Mapping[str, str], *, on_status: OnStatus = lambda _: None
) -> AsyncIterator[Session]:
    """Begin a session.

    Raises:
        ConfigError: The plan names a provider, model or policy that cannot be had, or a skill for who cannot use it.
        WorkspaceError: There is no workspace.
    """
    if plan.skill and (plan.policy or plan.memory == "off"):
        raise ConfigError("--skill needs a model and --memory on: it is about how a model uses LoopGraph")
    session_id = new_id("ses")
    stores = arrange(settings, plan, session_id)
    where = load_workspace(settings.workspace)
    program = where.read_program()
    row = SessionRow(
        id=session_id,
        workspace_path=str(where.path),
        researcher=plan.researcher,
        memory=plan.memory,
        settings=plan.model_dump_json(),
        system=prompts.system(memory=stores.memory is not None, skill=read_skill() if plan.skill else ""),
        tools="[]",
        start=program,
        kept=program,
        draft=program,
        draft_edit=None,
        created_at=time.time(),
    )
    async with _at_work(settings, row, plan, stores, environment, on_status, new=True) as session:
        yield session


@asynccontextmanager
async def resume_session(
    settings: Settings,
    session_id: str,
    environment: Mapping[str, str],
    *,
    change: Callable[[Plan], Plan] = lambda plan: plan,
    on_status: OnStatus = lambda _: None,
) -> AsyncIterator[Session]:
    """Take up a session after a crash, Ctrl-C or a provider's failure; `change` may give it another budget.

    Raises:
        NotFoundError: There is no such session.
    """
    row = await find_session(settings, session_id)
    plan = change(Plan.model_validate_json(row.settings))
    here = dataclasses.replace(settings, workspace=Path(row.workspace_path))
    stores = arrange(here, plan, session_id)
    row = dataclasses.replace(row, ended=None)
    async with _at_work(here, row, plan, stores, environment, on_status, new=False) as session:
        yield session


async def find_session(settings: Settings, session_id: str) -> SessionRow:
    """Return a session's row, from the user's store or its own.

    Raises:
        NotFoundError: There is none.
    """
    for path in store_files(settings, session_id):
        async with Database.open(path) as db:
            if (row := await sessions.get_session(db, session_id)) is not None:
                return row
    raise NotFoundError(f"no session {session_id!r}; `loopgraph agent` prints a session's id at its start")


def store_files(settings: Settings, session_id: str) -> list[Path]:
    """Return the files that a session may be in."""
    own = settings.db_path.parent / AGENTS_DIR / Path(session_id).name / "loopgraph.db"
    return [path for path in (own, settings.db_path) if path.exists()]


@asynccontextmanager
async def _at_work(
    settings: Settings,
    row: SessionRow,
    plan: Plan,
    stores: Stores,
    environment: Mapping[str, str],
    on_status: OnStatus,
    *,
    new: bool,
) -> AsyncIterator[Session]:
    where = load_workspace(settings.workspace)
    device = choose_device(settings.device, settings.visible_gpus, where.devices_per_run)
    profile = environment.get("LOOPGRAPH_PROFILE") or device.kind
    async with AsyncExitStack() as stack:
        researcher, price = await _researcher(plan, row, profile, environment, stack, where.direction)
        _make_stores(stores)
        db = await stack.enter_async_context(Database.open(stores.runner.db_path))
        runner = await stack.enter_async_context(Server(_inherited(stores.runner, plan, environment, where)))
        memory = None
        if stores.memory is not None:
            shared = stores.memory.db_path == stores.runner.db_path
            memory = runner
            if not shared:
                memory = await stack.enter_async_context(Server(_inherited(stores.memory, plan, environment, where)))
        desk = Desk(
            where=where,
            runner=runner,
            memory=memory,
            shares=memory is runner,
            seed=plan.seed,
            profile=profile,
            device=device.kind,
            kept=row.kept,
            draft=row.draft,
            draft_edit=row.draft_edit,
            runs=[],
            remembered=() if memory is None else _taken(await memory.tools(), researcher.context_tokens),
        )
        if new:
            row = dataclasses.replace(row, tools=_TOOLS.dump_json(desk.tools()).decode())
            await sessions.add_session(db, row)
        else:
            await sessions.end_session(db, row.id, None, now=time.time())
        session = Session(db, row, desk, researcher, plan, price=price, on_status=on_status)
        await session.recall()
        yield session


def _taken(tools: Sequence[ToolSpec], context_tokens: int) -> tuple[ToolSpec, ...]:
    """Return the memory's tools that a model sees; only the first two if all would fill much of its context window."""
    small = context_tokens < _SMALL_CONTEXT
    return tuple(tool for tool in tools if not small or tool.name in _FEW_TOOLS)


async def _researcher(
    plan: Plan,
    row: SessionRow,
    profile: str,
    environment: Mapping[str, str],
    stack: AsyncExitStack,
    direction: Direction,
) -> tuple[Researcher, Price | None]:
    if plan.policy:
        lower = direction is Direction.LOWER
        return Scripted(plan.policy, row.start, profile, seed=plan.choice_seed or plan.seed or 0, lower=lower), _FREE
    endpoint = find_endpoint(
        plan.provider,
        plan.model,
        environment,
        base_url=plan.base_url,
        key_variable=plan.key_variable,
        context_tokens=plan.context_tokens,
        timeout_s=plan.timeout_s,
    )
    own = Path(plan.prices) if plan.prices else None
    price = _FREE if endpoint.free and own is None else find_price(plan.model, own)
    if plan.max_usd is not None and price is None and plan.provider != "openrouter":
        raise ConfigError(
            f"no price is known for {plan.model}, so --max-usd would have no effect; give a price with --prices FILE"
        )
    model = await stack.enter_async_context(HttpModel(endpoint))
    return model, price


def _make_stores(stores: Stores) -> None:
    for store in stores:
        if store is None:
            continue
        store.db_path.parent.mkdir(parents=True, exist_ok=True)
        if store.packs.name == "no-packs" and not store.packs.exists():
            store.packs.mkdir(parents=True)
            (store.packs / "pack.toml").write_text('name = "none"\nversion = "0"\nlicense = "CC0-1.0"\n')


def _inherited(settings: Settings, plan: Plan, environment: Mapping[str, str], where: Workspace) -> dict[str, str]:
    """Return a server's environment: ours without secrets and the key in use, but with what its runs are to get."""
    key = environment.get(plan.key_variable or "") or None
    kept = without_secrets(environment)
    kept.pop("PYTHONPATH", None)
    kept = {name: value for name, value in kept.items() if key is None or key not in value}
    kept |= python_path(environment)
    kept |= {name: environment[name] for name in where.pass_env if name in environment}
    kept |= {
        "LOOPGRAPH_HOME": str(settings.home),
        "LOOPGRAPH_DB": str(settings.db_path),
        "LOOPGRAPH_WORKSPACE": str(settings.workspace),
        "LOOPGRAPH_PACKS": str(settings.packs),
        "LOOPGRAPH_DAY_ONE": "on" if settings.day_one else "off",
        "LOOPGRAPH_LOG_LEVEL": settings.log_level,
    }
    if settings.device is not None:
        kept["LOOPGRAPH_DEVICE"] = settings.device
    return kept
