"""class LoopGraph: the memory and the loop, one async method per verb. Tools and CLI only word what it answers."""

import asyncio
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from loopgraph_mcp.api import (
    activity,
    evidence,
    explain,
    learned_recipes,
    lookups,
    outline,
    permissions,
    precedents,
    record,
    recovery,
    trust,
    views,
)
from loopgraph_mcp.api import methods as registering
from loopgraph_mcp.api import run as launch
from loopgraph_mcp.api import search as searching
from loopgraph_mcp.api import trace as tracing
from loopgraph_mcp.api.answers import (
    BestResult,
    CodeMapAnswer,
    EditAnswer,
    ExperimentAnswer,
    ImportAnswer,
    IngestAnswer,
    MethodAnswer,
    MethodHit,
    PackExportAnswer,
    RecordAnswer,
    SearchAnswer,
    TraceAnswer,
)
from loopgraph_mcp.api.closeup import Closeup, Loss, closeup, loss_of, parent_of
from loopgraph_mcp.api.context import Inputs, Sight, Surroundings
from loopgraph_mcp.api.edit import Asked, make_edit
from loopgraph_mcp.api.incumbent import Bests, best_result
from loopgraph_mcp.api.overview import Overview, Overviews
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code.apply import ALL
from loopgraph_mcp.code.hashes import group_hash
from loopgraph_mcp.config import Settings, read_settings
from loopgraph_mcp.errors import LoopGraphError, RunError, UnwritableError, WorkspaceError
from loopgraph_mcp.ingest.pack_texts import content_hash
from loopgraph_mcp.ingest.published import read_day_one
from loopgraph_mcp.models import (
    Context,
    Decision,
    Direction,
    KnobValue,
    Method,
    Origin,
    OutcomeKind,
    Standing,
    State,
)
from loopgraph_mcp.ranking.features import Past
from loopgraph_mcp.ranking.prior import Foresight, Lesson
from loopgraph_mcp.runner.queue import Priority
from loopgraph_mcp.runner.workspace import default_timeout_s, resolved
from loopgraph_mcp.store import edits as edit_store
from loopgraph_mcp.store import experiments, imports, merge, methods, nights, retrievals, search
from loopgraph_mcp.store import learned as learned_store
from loopgraph_mcp.store.database import Database, new_id
from loopgraph_mcp.store.experiments import NewExperiment
from loopgraph_mcp.store.retrievals import Shown
from loopgraph_mcp.store.version import Newest, read_newest
from loopgraph_mcp.store.version import look as look_at
from loopgraph_mcp.text import plain_line

MAX_WAIT_S = 50.0  # most clients give up on a call after 60 s
_CANDIDATES = 50
_LARGE_PROGRAM = 2**15  # characters; a smaller one is parsed in some 20 ms
_PATIENCE_S = 1.0
_POLL_S = 0.25
_LOOK_S = 2.0  # between looks for runs whose supervisor was killed
_log = logging.getLogger(__name__)
_NO_PAST = Past()
_CANCEL_WAIT_S = 15.0


OnProgress = Callable[[ExperimentAnswer], Awaitable[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """What every search in a workspace has to know, whatever it looks for.

    Args:
        shown: What was shown of late and not tried since.
        known: All methods by their ids.
        program: The workspace's file, None where there is no workspace.
        context: Where outcomes of that file are comparable, likewise.
        past: What the workspace's runs have taught.
        decided: What changes with each outcome and decision.
        learned: Methods that have a learned recipe.
    """

    shown: Shown
    known: Mapping[str, Method]
    program: str | None
    context: Context | None
    memory: evidence.Memory
    past: Past
    decided: object
    under_way: activity.UnderWay
    learned: Collection[str]


class LoopGraph:
    """The memory of one user: what was tried, what came of it, and what to try next.

    Open it with `async with LoopGraph.open() as graph`; every verb may raise a LoopGraphError that names the next
    step. `workspace` is a folder with a training loop; where it is left out, the settings' workspace is meant.
    """

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float]) -> None:
        self.db = db
        self.settings = settings
        self._now = clock
        self.session = new_id("ses")  # tells agents that share no HTTP server apart
        self._here = Surroundings(db, settings, clock)
        self._sights: dict[str | None, tuple[tuple[int, int], list[Lesson], Foresight]] = {}
        self._others = precedents.OtherSearches(db)
        self._ledger = evidence.Ledger(db)
        self._fatigue = retrievals.Fatigue()
        self._bests = Bests(db)
        self._followed = precedents.Followed(db)
        self._overviews = Overviews(db)
        self._with_recipe: tuple[tuple[int, int], Collection[str]] = ((0, 0), ())

    async def _foresight(self, context: Context | None, newest: Newest | None = None) -> Foresight:
        """Return what histories teach: those shipped (or switched off), those imported, and one's other searches.

        Lessons come with outcomes or decisions, whichever process brings them.
        """
        newest = newest or await read_newest(self.db)
        where, at = None if context is None else context.workspace_id, (newest.outcome, newest.decision)
        known = self._sights.get(where)
        if known is None or known[0] != at:
            taught = [*await imports.all_lessons(self.db), *await self._others.lessons(besides=where)]
            if known is None or taught != known[1]:
                shipped = read_day_one().lessons if self.settings.day_one else ()
                known = at, taught, Foresight([*shipped, *taught])
            self._sights[where] = known = at, taught, known[2]
        return known[2]

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings | None = None, *, clock: Callable[[], float] = time.time
    ) -> AsyncIterator["LoopGraph"]:
        """Open the store, load the method packs, and mark runs whose supervisor is gone as interrupted."""
        settings = settings or read_settings(os.environ, Path.cwd())
        await asyncio.to_thread(permissions.tighten, settings)
        async with Database.open(settings.db_path) as db:
            if not await methods.holds_pack(db, await asyncio.to_thread(content_hash, settings.packs)):
                from loopgraph_mcp.ingest import packs as ingest_packs  # noqa: PLC0415 - what reads packs is slow to import

                pack = await asyncio.to_thread(ingest_packs.read_pack, settings.packs)
                with suppress(UnwritableError):  # an earlier version's methods can still be searched
                    await methods.import_pack(db, pack, now=clock())
            with suppress(UnwritableError):
                await recovery.recover(db, settings)
            yield cls(db, settings, clock)

    async def watch_runs(self) -> None:
        """Finish runs whose supervisor was killed, for as long as this is awaited: nobody may ask for them."""
        swept = False
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await recovery.recover(self.db, self.settings)
                if not swept:
                    await recovery.sweep(self.db, self.settings)
                    swept = True
            except (LoopGraphError, OSError) as error:  # a full disk: the next look tries again
                _log.warning("runs that were left could not be finished: %s", error)

    # ------------------------------------------------------------------------------------------ search

    async def search_methods(
        self,
        query: str = "",
        *,
        workspace: str | None = None,
        limit: int = 5,
        family: str | None = None,
        standing: Standing | None = None,
        caller: Caller | None = None,
    ) -> SearchAnswer:
        """Rank methods for a query, or all of them where it is empty, and record what was shown.

        Args:
            query: Words in any language of the field; any string is safe.
            workspace: Folder whose context and present code count.
            limit: How many methods to show.
            family: Show methods of this family alone.
            standing: Show methods of this standing alone.
            caller: The agent that asks; None for a person at a terminal.
        """
        look, hits, note = await self._ranked(query, workspace, limit, family=family, standing=standing, caller=caller)
        retrieval_id = await retrievals.add_retrieval(
            self.db,
            query,
            [retrievals.ShownMethod(hit.method_id, hit.score, hit.parts) for hit in hits],
            context_id=None if look.context is None else await edit_store.context_id(self.db, look.context),
            now=self._now(),
            caller=caller,
        )
        return SearchAnswer(
            retrieval_id=retrieval_id,
            query=query,
            context=explain.context(look.context),
            methods_known=len(look.known),
            hits=hits,
            next_step=explain.after_search(hits, retrieval_id, filtered=family is not None or standing is not None),
            note=explain.unrecorded(note, self.db.unrecorded),
            running=activity.running_now(look.under_way, caller),
            best=await self._bests.other(look.memory, look.program, decided=look.decided),
        )

    async def suggestions(self, *, workspace: str | None = None, limit: int = 5) -> list[MethodHit]:
        """Return the methods that a search without words would show, without recording that they were shown."""
        return (await self._ranked("", workspace, limit))[1]

    async def _ranked(
        self,
        query: str,
        workspace: str | None,
        limit: int,
        *,
        family: str | None = None,
        standing: Standing | None = None,
        caller: Caller | None = None,
    ) -> tuple[_Look, list[MethodHit], str]:
        """Return what every search looks at, the methods that one shows, and what is to be said of it as a whole."""
        await self._here.look(workspace)
        shown, newest, sight, relevance = await self.db.search(
            lambda conn: (
                self._fatigue.shown(conn),
                look_at(conn),
                self._here.sight(workspace),
                search.find_relevance(self.db, conn, query),
            ),
            limit_s=_PATIENCE_S,
        )
        look = await self._look(shown, newest, sight)
        asked = bool(query.strip())
        if asked:
            found = search.ranked(relevance, look.known, _CANDIDATES)
        else:
            found = [(method, 1.0) for method in look.known.values()]
        running = activity.running_now(look.under_way, caller)
        choose = partial(
            searching.choose,
            [pair for pair in found if family in {None, pair[0].family}],
            look.memory,
            await self._foresight(look.context, newest),
            look.past,
            shown=look.shown,
            program=look.program,
            asked=asked,
            limit=limit,
            standing=standing,
            in_flight={each for run in running for each in run.method_ids},
        )
        large = len(look.program or "") > _LARGE_PROGRAM
        hits, note = await asyncio.to_thread(choose) if large else choose()
        if large and look.context is not None:  # what asks for the best program takes it from there
            await asyncio.to_thread(group_hash, look.program, look.context.editable)
        hits = [dataclasses.replace(hit, has_edit=True) if hit.method_id in look.learned else hit for hit in hits]
        return look, hits, note

    async def _look(self, shown: Shown, newest: Newest, sight: Sight | None) -> _Look:
        """Return what every search in a workspace has to know: little of it is read again before the store moves."""
        context = None if sight is None else await self._here.context_of(sight)
        if self._with_recipe[0] != (newest.recipe, newest.decision):
            learned = await learned_store.methods_with_recipe(self.db)
            self._with_recipe = (newest.recipe, newest.decision), learned
        return _Look(
            shown=shown,
            known=await methods.library(self.db, newest),
            program=None if sight is None else sight.program,
            context=context,
            memory=await self._ledger.recall(context, newest),
            past=_NO_PAST if context is None else (await self._followed.follow(context, newest)).past,
            decided=(newest.outcome, newest.decision),
            under_way=await activity.under_way(self.db) if newest.live else activity.NOTHING,
            learned=self._with_recipe[1],
        )

    # ------------------------------------------------------------------------------------------- edits

    async def get_code_edit(
        self,
        method_id: str,
        *,
        also: Sequence[str] = (),
        retrieval_id: str | None = None,
        knobs: Mapping[str, KnobValue] | None = None,
        companions: bool | Sequence[str] = False,
        revert: bool = False,
        apply: bool = False,
        workspace: str | None = None,
        caller: Caller | None = None,
    ) -> EditAnswer:
        """Turn methods into one edit of the workspace's present file; write it there only if asked to.

        Args:
            method_id: The method, or an experiment whose program the file is to be; with `revert` also an edit.
            also: Further methods for the same edit; their order does not matter.
            retrieval_id: The search that showed the method.
            knobs: Values for its knobs; for those of another method, `method.knob`.
            companions: Whether to make the changes that go well with it too, or which of them.
            revert: Take the method's last edit in this workspace out of the file instead.
            apply: Write the file.
            workspace: Folder to work on.
            caller: The agent that asks; None for a person at a terminal.

        Raises:
            NotFoundError: No such method, edit or retrieval.
            RunError: The arguments contradict one another.
        """
        named = frozenset({ALL} if companions is True else companions or ())
        asked = Asked((method_id, *also), dict(knobs or {}), named, retrieval_id, revert, apply)
        answer = await make_edit(
            self.db,
            self._here,
            self._ledger,
            self._followed,
            self._foresight,
            asked,
            workspace=workspace,
            now=self._now(),
        )
        running = activity.running_now(await activity.under_way(self.db), caller)
        return answer if revert else activity.told_in_edit(answer, running, set(answer.method_id.split(" + ")))

    async def map_code(
        self,
        path: str | None = None,
        *,
        query: str = "",
        budget_tokens: int = outline.DEFAULT_BUDGET,
        workspace: str | None = None,
    ) -> CodeMapAnswer:
        """Return what stands where in a program: knobs, fields, classes, parameter groups, the loop, methods present.

        Args:
            path: A Python file or a folder of the workspace; by default the editable file.
            query: Words whose places are shown first.
            budget_tokens: About how long the text may be, at least 150.
            workspace: Folder that it lies in.

        Raises:
            WorkspaceError: There is nothing there that can be read, or it lies outside.
        """
        where = await self._here.workspace(workspace)
        target = resolved(where.path / (path or where.editable))
        if not target.is_relative_to(where.path):
            raise WorkspaceError(f"{target}: lies outside of {where.path}; `loopgraph map PATH` maps any file")
        return await self.map_file(target, query=query, budget_tokens=budget_tokens)

    async def map_file(
        self, path: Path, *, query: str = "", budget_tokens: int = outline.DEFAULT_BUDGET
    ) -> CodeMapAnswer:
        """Return what stands where in any Python file, or in a folder of them; see map_code."""
        known = await methods.all_methods(self.db)
        return await outline.map_path(path, known, query=query, budget_tokens=budget_tokens)

    # ------------------------------------------------------------------------------------- experiments

    async def run_experiment(
        self,
        *,
        edit_id: str | None = None,
        patch: str | None = None,
        method_id: str | None = None,
        description: str = "",
        seed: int | None = None,
        budget_s: float | None = None,
        replicate: bool = False,
        idempotency_key: str | None = None,
        wait_s: float = 20.0,
        workspace: str | None = None,
        on_progress: OnProgress | None = None,
        priority: Priority = Priority.NORMAL,
        caller: Caller | None = None,
    ) -> ExperimentAnswer:
        """Run one exact program for the budget: an edit, a patch of the present file, or that file as it stands.

        The run outlives this call and this process. A program already run in this context returns its earlier
        outcome, unless `replicate` asks for another run of it with a new seed.

        Args:
            edit_id: The edit of get_code_edit to run.
            patch: A unified diff of the editable file to run.
            method_id: The method that a patch or the present file puts into practice.
            description: What is tried, in a few words.
            seed: The run's seed; by default 42, or the next unused one for a replicate.
            budget_s: Training seconds, where they should differ from the workspace's.
            replicate: Run it again though it was run before.
            idempotency_key: A repeated call with the same key returns the same run, unless its surroundings failed.
            wait_s: How long to wait for the outcome, at most 50 s.
            workspace: Folder to work on.
            on_progress: Awaited with each new state while waiting.
            priority: `low` runs after everybody's others, `high` before the same agent's.
            caller: The agent that asks; None for a person at a terminal.

        Raises:
            RunError: The program cannot be run: a stale edit, a patch that does not fit, a syntax error. Or the
                caller has as many experiments on their way as it may.
        """
        where = await self._here.workspace(workspace)
        if caller is not None:
            idempotency_key = caller.own_key(idempotency_key)
        if idempotency_key is not None:
            known = await launch.run_of_key(self.db, where, idempotency_key, edit_id=edit_id, patch=patch)
            if known is not None:
                return await self.get_experiment(known, wait_s=wait_s, on_progress=on_progress)
        if caller is not None:
            await asyncio.to_thread(trust.check, self.settings, where, by_agent=workspace is not None)
        launch.check_budget(where, budget_s)
        budget = budget_s or where.budget_s
        context = await self._here.context(where, budget)
        context_id = await edit_store.context_id(self.db, context)
        inputs = await self._here.inputs(where)
        plan = await launch.make_plan(
            self.db, where, context, inputs, edit_id=edit_id, patch=patch, method_id=method_id, replicate=replicate
        )
        ran = await asyncio.to_thread(inputs.identify, plan.text, where.editable)
        earlier = await experiments.runs_of(self.db, context_id, ran.run_key)
        if not replicate and (repeat := launch.worth_returning(plan, earlier, seed=seed)) is not None:
            if repeat.state is not State.DONE:
                await experiments.join_experiment(self.db, repeat.id, caller, now=self._now())
            answer = await self.get_experiment(repeat.id, wait_s=wait_s, on_progress=on_progress)
            return dataclasses.replace(answer, repeated=True)
        launch.check_held(plan, earlier)
        chosen_seed = launch.choose_seed(where, seed, {run.seed for run in earlier} if replicate else set())
        plan = await launch.as_edit(
            self.db, where, plan, workspace=await self._here.workspace_id(where), now=self._now()
        )
        program_hash = await launch.keep_program(self.db, plan.text, where.editable)
        bearing = await precedents.find_precedents(
            self.db,
            await self._followed.follow(context),
            context_id,
            ran,
            files=inputs.files,
            base_hash=launch.base_hash(plan),
            new_hash=program_hash,
            description=description,
            foresight=await self._foresight(context),
        )
        slot = (await self._here.device(where)).slot
        with launch.looked_after(self.settings) as (own_id, lock):
            run_dir, made = await launch.prepare(self.settings, own_id, plan, inputs)
            experiment_id, new = await self._queue(
                made,
                NewExperiment(
                    id=own_id,
                    run_dir=str(run_dir),
                    context_id=context_id,
                    device_slot=slot,
                    description=explain.description(description, plan.method_ids, plan.base_text),
                    seed=chosen_seed,
                    timeout_s=max(where.timeout_s, default_timeout_s(budget)) if budget_s else where.timeout_s,
                    silence_s=where.silence_s,
                    edit_id=plan.edit_id,
                    base_hash=launch.base_hash(plan),
                    program_hash=program_hash,
                    method_ids=plan.method_ids,
                    idempotency_key=idempotency_key,
                    priority=priority,
                    caller=caller,
                    ran=made.identify(plan.text, where.editable),
                    base_group_key=launch.base_group_key(plan, made, where.editable),
                    inputs_hash=made.hash,
                    shared="any_seed" if seed is None and not replicate else "same_seed",
                ),
            )
            if new:
                await launch.start(self.db, self.settings, where, experiment_id, lock, self._now())
        if not new:
            recovery.forget_lock(self.settings, own_id)
        answer = await self.get_experiment(experiment_id, wait_s=wait_s, on_progress=on_progress)
        return dataclasses.replace(answer, earlier=[] if replicate else list(bearing.earlier), repeated=not new)

    async def _queue(self, made: Inputs, new: NewExperiment) -> tuple[str, bool]:
        """Queue an experiment whose folder is made; where another one answers for it, or it is refused, that goes."""
        is_new = False
        try:
            await experiments.add_inputs(self.db, made.hash, made.files)
            experiment_id, is_new = await experiments.add_experiment(self.db, new, now=self._now())
        finally:
            if not is_new:
                await asyncio.to_thread(shutil.rmtree, new.run_dir or "", ignore_errors=True)
        return experiment_id, is_new

    async def get_experiment(
        self, experiment_id: str, *, wait_s: float = 20.0, on_progress: OnProgress | None = None
    ) -> ExperimentAnswer:
        """Return an experiment, done or on its way; wait for its outcome for a while, at most 50 s.

        Raises:
            NotFoundError: No such experiment.
        """
        deadline = time.monotonic() + min(max(0.0, wait_s), MAX_WAIT_S)
        told, can_recover = None, not self.db.read_only
        while True:
            row = await lookups.the_experiment(self.db, experiment_id)
            if can_recover and row.state is not State.DONE and recovery.is_abandoned(self.settings, row):
                try:
                    await recovery.recover(self.db, self.settings)
                except UnwritableError:  # it is shown as it was last written
                    can_recover = False
                continue
            answer = await views.view(self.db, self._ledger, row, now=self._now())
            if answer.state is State.DONE:
                return answer
            if on_progress is not None and (answer.state, answer.step) != told:
                told = (answer.state, answer.step)
                await on_progress(answer)
            left = deadline - time.monotonic()
            if left <= 0:
                return answer
            await asyncio.sleep(min(_POLL_S, left))

    async def cancel_experiment(self, experiment_id: str, *, caller: Caller | None = None) -> ExperimentAnswer:
        """End an experiment, its whole process group with it; one that is done stays as it is.

        Raises:
            NotFoundError: No such experiment.
            AccessError: Others wait for it.
        """
        row = await lookups.the_experiment(self.db, experiment_id)
        await activity.check_cancel(self.db, experiment_id, caller)
        if row.state is not State.DONE:
            await experiments.request_cancel(self.db, experiment_id, now=self._now())
        return await self.get_experiment(experiment_id, wait_s=_CANCEL_WAIT_S)

    async def overview(self, workspace_id: str | None = None, setting: str | None = None) -> Overview:
        """Return all experiments of a workspace with what they add up to; by default of the one with the newest.

        Args:
            workspace_id: Its id in the store, as `workspaces` gives it.
            setting: The id of the context that the best and the charts are of; by default the newest experiment's.

        Raises:
            NotFoundError: There are no experiments of it.
        """
        return await self._overviews.look(self._ledger, workspace_id, setting)

    async def workspaces(self) -> list[nights.WorkspaceRow]:
        """Return the workspaces that have experiments, the one with the newest first."""
        return await nights.workspaces(self.db)

    async def closeup(self, experiment_id: str) -> Closeup:
        """Return one experiment with its change, its loss, its log, runs like it, and the chain that led to it.

        Raises:
            NotFoundError: No such experiment.
        """
        return await closeup(self.db, self._ledger, self._followed, experiment_id, now=self._now())

    async def loss(self, experiment_id: str) -> Loss:
        """Return how the loss of an experiment goes, over its parent's.

        Raises:
            NotFoundError: No such experiment.
        """
        row = await lookups.the_experiment(self.db, experiment_id)
        return await loss_of(row, await parent_of(self.db, row))

    async def list_experiments(self, *, workspace: str | None = None, limit: int = 20) -> list[ExperimentAnswer]:
        """Return a workspace's newest experiments, newest first."""
        where = await self._here.workspace(workspace)
        rows = await experiments.list_experiments(self.db, await self._here.workspace_id(where), limit=limit)
        return [await views.view(self.db, self._ledger, row, now=self._now()) for row in rows]

    # -------------------------------------------------------------------------------------------- record

    async def record_outcome(
        self,
        *,
        experiment_id: str | None = None,
        method_id: str | None = None,
        metric_value: float | None = None,
        status: OutcomeKind | None = None,
        description: str = "",
        decision: Decision | None = None,
        commit: str | None = None,
        log: str | None = None,
        tokens: int | None = None,
        cost_usd: float | None = None,
        workspace: str | None = None,
        measured: bool = False,
    ) -> RecordAnswer:
        """Record what was decided on an experiment, or the outcome of a run made outside of LoopGraph.

        A report with its log counts nearly as a run of LoopGraph's own. A bare number counts little: it is no verdict,
        unless the workspace says `trust_reports`.

        Args:
            experiment_id: The experiment it is about; without one, a run made elsewhere is recorded.
            method_id: The method that run put into practice.
            metric_value: Its metric; leave it out where the run failed.
            status: How that run ended; by default finished with a metric and crashed without.
            description: What was tried, or why it was decided so.
            decision: Whether the change stays; by default, whether it gained.
            commit: The commit that holds it.
            log: For a run made elsewhere: its log, or the log's path inside the workspace.
            tokens: Tokens the agent spent on it.
            cost_usd: What they cost.
            workspace: Folder the run belongs to.
            measured: Whether `wrap` measured it.

        Raises:
            NotFoundError: No such experiment or method.
            RunError: The experiment is not done yet, there is nothing to record, or the arguments contradict one
                another.
        """
        now = self._now()
        record.check_cost(tokens, cost_usd)
        if experiment_id is None:
            report = record.Report(method_id, metric_value, status, description, log, commit, measured)
            row = await record.record_report(self.db, self._here, report, workspace=workspace, now=now)
        else:
            if any(each is not None for each in (metric_value, status, method_id, log)):
                raise RunError(
                    f"the outcome of {experiment_id} was measured; leave out metric_value, status, method_id and log"
                )
            row = await lookups.the_experiment(self.db, experiment_id)
            if row.outcome is None:
                raise RunError(f"{experiment_id} is still {row.state.value}; wait with get_experiment, then record")
        newest = await read_newest(self.db)
        judged = row.origin is not Origin.REPORTED and (row.outcome is None or row.outcome.kind.says_something)
        verdict = await self._ledger.judge(row, newest) if judged else None
        decided = decision or row.decision or (None if verdict is None else verdict.decision)
        note = plain_line(description, limit=500)
        made_by = "loopgraph" if decision is None else "agent"
        if decided is not None:
            await experiments.add_decision(
                self.db, row.id, decided, made_by=made_by, commit=commit, note=note, now=self._now()
            )
        if row.edit_id is not None:  # what one was only told of holds no patch
            await learned_recipes.learn(self.db, self._ledger, row.method_ids, now=self._now())
        if tokens is not None or cost_usd is not None:
            await self.add_cost("agent", subject_id=row.id, tokens=tokens, cost_usd=cost_usd)
        context = await edit_store.get_context(self.db, row.context_id)
        memory = await self._ledger.recall(context, newest)
        return RecordAnswer(
            experiment_id=row.id,
            metric=context.metric,
            metric_value=None if row.outcome is None else row.outcome.metric_value,
            verdict=None if verdict is None else verdict.kind,
            gain=None if verdict is None else verdict.gain,
            noise_floor=None if verdict is None else verdict.noise_floor,
            p_win=None if verdict is None else verdict.p_win,
            decision=decided,
            standings={each: memory.record(each).standing for each in row.method_ids},
            next_step=explain.after_report() if verdict is None else verdict.next_step,
            origin=row.origin or Origin.MEASURED,
            noise="" if verdict is None else explain.noise(verdict.noise),
            tentative=verdict is not None and verdict.is_tentative and decided is Decision.KEEP,
        )

    async def best_result(self, *, workspace: str | None = None) -> BestResult | None:
        """Return what ran best in a workspace, and whether it beats the noise; None where nothing was measured.

        It is the program with the best mean of its runs less their standard error.
        """
        _, _, context = await self._here.found(workspace)
        best = (await self._ledger.recall(context)).best()
        return None if best is None else await best_result(self.db, best, context)

    async def merge_store(self, other: Path) -> dict[str, int]:
        """Take in what another machine's store, or a copy of this one that went its own way, holds beside this one.

        Again adds only what is new. Returns the number of rows added, by table.

        Raises:
            StoreError: It is no store, or this one.
        """
        added = await merge.merge(self.db, other)
        self._ledger = evidence.Ledger(self.db)
        return added

    async def import_history(
        self,
        path: Path,
        *,
        repository: Path | None = None,
        device: str | None = None,
        budget_s: float | None = None,
        metric: str | None = None,
        direction: Direction | None = None,
        dry_run: bool = False,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> ImportAnswer:
        """Take somebody's results.tsv, run log or tracker export into the memory; again adds only what is new.

        Args:
            path: The file.
            repository: A checkout that holds the rows' commits; by default the one that the file lies in.
            device: What it ran on.
            budget_s: Training seconds of its runs.
            metric: The column of its metric, where it is not the usual one.
            direction: Which way that improves.
            dry_run: Only say what would be understood.
            on_progress: Called with what is being done, from any thread.

        Raises:
            HistoryError: It cannot be read, or holds no experiments.
        """
        from loopgraph_mcp.api import imports as importing  # noqa: PLC0415 - a start should not wait for what reads histories

        told = importing.Told(repository, device, budget_s, metric, direction)
        published = read_day_one().histories if self.settings.day_one else ()
        answer = await importing.import_history(
            self.db,
            path,
            told,
            shipped={each.fingerprint for each in published},
            dry_run=dry_run,
            now=self._now(),
            progress=on_progress,
        )
        self._ledger = evidence.Ledger(self.db)  # known rows may have moved to another context
        return answer

    async def ingest(
        self,
        source: str,
        *,
        query: str = "",
        sha256: str | None = None,
        offline: bool = False,
        on_step: Callable[[float, str], Awaitable[None]] | None = None,
    ) -> IngestAnswer:
        """Take a paper, repository, file, folder, pack or run history into the memory; again adds only what is new.

        Args:
            source: An arXiv id, URL, DOI or title; a GitHub URL; a path; or the URL of a pack.
            query: What the passages shown should tell; by default of the method.
            sha256: What a pack's content must hash to.
            offline: Read only what was fetched before.
            on_step: Awaited with the share that is done and what is being done.

        Raises:
            SourceError: It cannot be fetched or read.
            NotFoundError: There is no such paper, repository or file.
            PackError: A pack does not follow the format.
            HistoryError: A history holds no experiments.
        """
        from loopgraph_mcp.api import ingest as ingesting  # noqa: PLC0415 - its client takes longer to import than the rest

        async def quiet(_share: float, _words: str) -> None: ...

        if (history := ingesting.history_path(source, self.settings)) is not None:
            return ingesting.of_history(source, await self.import_history(history))
        asked = ingesting.Asked(query, sha256, offline)
        return await ingesting.Ingest(self.db, self.settings, asked, self._now(), on_step or quiet).run(source)

    async def export_pack(self, name: str, folder: Path, *, method_ids: Sequence[str] = ()) -> PackExportAnswer:
        """Write methods with their recipes and what came of them for others: those named, or all learned or local ones.

        Raises:
            NotFoundError: No such method.
            PackError: There is nothing to export, or it cannot be written.
        """
        from loopgraph_mcp.api import packs as packing  # noqa: PLC0415 - what writes packs is slow to import
        from loopgraph_mcp.ingest import packs as ingest_packs  # noqa: PLC0415 - likewise

        own = await asyncio.to_thread(ingest_packs.read_pack, self.settings.packs)
        return await packing.export_pack(
            self.db, self._ledger, name, folder, method_ids=method_ids, but_pack=own.name, now=self._now()
        )

    async def add_method(
        self,
        method_id: str,
        chunk_ids: Sequence[str],
        definition: Mapping[str, Any] | None = None,
        *,
        workspace: str | None = None,
        caller: Caller | None = None,
    ) -> MethodAnswer:
        """Register a method read in passages, amend it, or link the passages to a known one.

        Args:
            method_id: Its id: lower-case words with hyphens.
            chunk_ids: The passages it was read in.
            definition: What the file of a method pack holds, without sources and outcomes; None only links.
            workspace: Folder whose present file its recipe is tried on.
            caller: The agent that registers it; None for a person at a terminal.

        Raises:
            NotFoundError: No such passage, or no such method to link.
            PackError: The definition does not follow the format, says what no cited passage says, or names a method
                that is known.
        """
        return await registering.add_method(
            self.db,
            self._here,
            method_id,
            chunk_ids,
            definition,
            workspace=workspace,
            added_by="a person" if caller is None else caller.token or caller.client,
            now=self._now(),
        )

    async def show_method(self, method_id: str) -> MethodAnswer:
        """Return what is known of one method, with the passages that tell of it and what they report.

        Raises:
            NotFoundError: No such method.
        """
        return await registering.show_method(self.db, method_id)

    async def retire_method(self, method_id: str) -> MethodAnswer:
        """Take a registered method out of searches; its experiments stay.

        Raises:
            NotFoundError: No such method.
            PackError: A pack holds it.
        """
        return await registering.retire_method(self.db, method_id, now=self._now())

    async def trace(self, identity: str) -> TraceAnswer:
        """Return what led to a row and what came of it: from pack and paper to what an experiment taught.

        Args:
            identity: The id of an experiment, edit, turn, retrieval, method, paper, passage, recipe, pack or history.

        Raises:
            NotFoundError: No row has this id.
        """
        return await tracing.trace(self.db, identity)

    async def count(self) -> dict[str, int]:
        """Return how many methods, experiments and the like the store holds."""
        return await retrievals.count_rows(self.db)

    async def add_cost(
        self, source: str, *, subject_id: str | None, tokens: int | None, cost_usd: float | None = None
    ) -> None:
        """Record what an answer, or an agent's own work, cost."""
        await retrievals.add_cost(
            self.db, source, subject_id=subject_id, tokens=tokens, cost_usd=cost_usd, now=self._now()
        )
