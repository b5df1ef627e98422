"""class LoopGraph: the memory and the loop, one async method per verb; each verb is a module of this folder."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopgraph_mcp.api import (
    edit,
    experiment,
    incumbent,
    methods,
    outline,
    permissions,
    record,
    recovery,
    run,
    search,
    trace,
)
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
from loopgraph_mcp.api.experiment import OnProgress
from loopgraph_mcp.api.state import State
from loopgraph_mcp.auth import Caller
from loopgraph_mcp.code.apply import ALL
from loopgraph_mcp.config import Settings, read_settings
from loopgraph_mcp.errors import LoopGraphError, UnwritableError
from loopgraph_mcp.ingest.pack_texts import content_hash
from loopgraph_mcp.models import Decision, Direction, KnobValue, OutcomeKind, Standing
from loopgraph_mcp.runner.queue import Priority
from loopgraph_mcp.store import merge, nights, retrievals
from loopgraph_mcp.store import methods as method_store
from loopgraph_mcp.store.database import Database, new_id

if TYPE_CHECKING:
    from loopgraph_mcp.api.closeup import Closeup, Loss
    from loopgraph_mcp.api.overview import Overview, Overviews

_LOOK_S = 2.0  # between looks for runs whose supervisor was killed
_log = logging.getLogger(__name__)


class LoopGraph:
    """The memory of one user: what was tried, what came of it, and what to try next.

    Open it with `async with LoopGraph.open() as graph`; every verb may raise a LoopGraphError that names the next
    step. `workspace` is a folder with a training loop; where it is left out, the settings' workspace is meant.
    """

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], float]) -> None:
        self.state = State(db, settings, clock)
        self._overviews: Overviews | None = None  # read once somebody looks
        self.session = new_id("ses")  # tells agents that share no HTTP server apart

    @property
    def db(self) -> Database:
        """The store."""
        return self.state.db

    @property
    def settings(self) -> Settings:
        """Where everything lies."""
        return self.state.settings

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings | None = None, *, clock: Callable[[], float] = time.time
    ) -> AsyncIterator["LoopGraph"]:
        """Open the store, load the method packs, and mark runs whose supervisor is gone as interrupted."""
        settings = settings or read_settings(os.environ, Path.cwd())
        await asyncio.to_thread(permissions.tighten, settings)
        async with Database.open(settings.db_path) as db:
            if not await method_store.holds_pack(db, await asyncio.to_thread(content_hash, settings.packs)):
                from loopgraph_mcp.ingest import packs as ingest_packs  # noqa: PLC0415 - what reads packs is slow to import

                pack = await asyncio.to_thread(ingest_packs.read_pack, settings.packs)
                with suppress(UnwritableError):  # an earlier version's methods can still be searched
                    await method_store.import_pack(db, pack, now=clock())
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
        return await search.search_methods(
            self.state, query, workspace=workspace, limit=limit, family=family, standing=standing, caller=caller
        )

    async def suggestions(self, *, workspace: str | None = None, limit: int = 5) -> list[MethodHit]:
        """Return the methods that a search without words would show, without recording that they were shown."""
        return await search.suggestions(self.state, workspace=workspace, limit=limit)

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
        asked = edit.Asked((method_id, *also), dict(knobs or {}), named, retrieval_id, revert, apply)
        return await edit.get_code_edit(self.state, asked, workspace=workspace, caller=caller)

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
        return await outline.map_code(self.state, path, query=query, budget_tokens=budget_tokens, workspace=workspace)

    async def map_file(
        self, path: Path, *, query: str = "", budget_tokens: int = outline.DEFAULT_BUDGET
    ) -> CodeMapAnswer:
        """Return what stands where in any Python file, or in a folder of them; see map_code."""
        return await outline.map_file(self.state, path, query=query, budget_tokens=budget_tokens)

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
        asked = run.Asked(
            edit_id, patch, method_id, description, seed, budget_s, replicate, idempotency_key, priority, caller
        )
        return await run.run_experiment(self.state, asked, workspace=workspace, wait_s=wait_s, on_progress=on_progress)

    async def get_experiment(
        self, experiment_id: str, *, wait_s: float = 20.0, on_progress: OnProgress | None = None
    ) -> ExperimentAnswer:
        """Return an experiment, done or on its way; wait for its outcome for a while, at most 50 s.

        Raises:
            NotFoundError: No such experiment.
        """
        return await experiment.get_experiment(self.state, experiment_id, wait_s=wait_s, on_progress=on_progress)

    async def cancel_experiment(self, experiment_id: str, *, caller: Caller | None = None) -> ExperimentAnswer:
        """End an experiment, its whole process group with it; one that is done stays as it is.

        Raises:
            NotFoundError: No such experiment.
            AccessError: Others wait for it.
        """
        return await experiment.cancel_experiment(self.state, experiment_id, caller=caller)

    async def overview(self, workspace_id: str | None = None, setting: str | None = None) -> "Overview":
        """Return all experiments of a workspace with what they add up to; by default of the one with the newest.

        Args:
            workspace_id: Its id in the store, as `workspaces` gives it.
            setting: The id of the context that the best and the charts are of; by default the newest experiment's.

        Raises:
            NotFoundError: There are no experiments of it.
        """
        from loopgraph_mcp.api.overview import Overviews  # noqa: PLC0415 - a server's start should not wait for it

        if self._overviews is None:
            self._overviews = Overviews(self.db)
        return await self._overviews.look(self.state, workspace_id, setting)

    async def workspaces(self) -> list[nights.WorkspaceRow]:
        """Return the workspaces that have experiments, the one with the newest first."""
        return await nights.workspaces(self.db)

    async def closeup(self, experiment_id: str) -> "Closeup":
        """Return one experiment with its change, its loss, its log, runs like it, and the chain that led to it.

        Raises:
            NotFoundError: No such experiment.
        """
        from loopgraph_mcp.api import closeup  # noqa: PLC0415 - a server's start should not wait for it

        return await closeup.closeup(self.state, experiment_id)

    async def loss(self, experiment_id: str) -> "Loss":
        """Return how the loss of an experiment goes, over its parent's.

        Raises:
            NotFoundError: No such experiment.
        """
        from loopgraph_mcp.api import closeup  # noqa: PLC0415 - a server's start should not wait for it

        return await closeup.loss(self.state, experiment_id)

    async def list_experiments(self, *, workspace: str | None = None, limit: int = 20) -> list[ExperimentAnswer]:
        """Return a workspace's newest experiments, newest first."""
        return await experiment.list_experiments(self.state, workspace=workspace, limit=limit)

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
        report = record.Report(method_id, metric_value, status, description, log, commit, measured)
        return await record.record_outcome(
            self.state,
            report,
            experiment_id=experiment_id,
            decision=decision,
            tokens=tokens,
            cost_usd=cost_usd,
            workspace=workspace,
        )

    async def best_result(self, *, workspace: str | None = None) -> BestResult | None:
        """Return what ran best in a workspace, and whether it beats the noise; None where nothing was measured.

        It is the program with the best mean of its runs less their standard error.
        """
        return await incumbent.best_result(self.state, workspace=workspace)

    async def merge_store(self, other: Path) -> dict[str, int]:
        """Take in what another machine's store, or a copy of this one that went its own way, holds beside this one.

        Again adds only what is new. Returns the number of rows added, by table.

        Raises:
            StoreError: It is no store, or this one.
        """
        added = await merge.merge(self.db, other)
        self.state.read_again()
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
        from loopgraph_mcp.api import imports  # noqa: PLC0415 - a start should not wait for what reads histories

        told = imports.Told(repository, device, budget_s, metric, direction)
        return await imports.import_history(self.state, path, told, dry_run=dry_run, progress=on_progress)

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
        from loopgraph_mcp.api import ingest  # noqa: PLC0415 - its client takes longer to import than the rest

        return await ingest.ingest(self.state, source, ingest.Asked(query, sha256, offline), on_step)

    async def export_pack(self, name: str, folder: Path, *, method_ids: Sequence[str] = ()) -> PackExportAnswer:
        """Write methods with their recipes and what came of them for others: those named, or all learned or local ones.

        Raises:
            NotFoundError: No such method.
            PackError: There is nothing to export, or it cannot be written.
        """
        from loopgraph_mcp.api import packs  # noqa: PLC0415 - what reads and writes packs is slow to import

        return await packs.export_pack(self.state, name, folder, method_ids=method_ids)

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
        return await methods.add_method(
            self.state, method_id, chunk_ids, definition, workspace=workspace, caller=caller
        )

    async def show_method(self, method_id: str) -> MethodAnswer:
        """Return what is known of one method, with the passages that tell of it and what they report.

        Raises:
            NotFoundError: No such method.
        """
        return await methods.show_method(self.state, method_id)

    async def retire_method(self, method_id: str) -> MethodAnswer:
        """Take a registered method out of searches; its experiments stay.

        Raises:
            NotFoundError: No such method.
            PackError: A pack holds it.
        """
        return await methods.retire_method(self.state, method_id)

    async def trace(self, identity: str) -> TraceAnswer:
        """Return what led to a row and what came of it: from pack and paper to what an experiment taught.

        Args:
            identity: The id of an experiment, edit, turn, retrieval, method, paper, passage, recipe, pack or history.

        Raises:
            NotFoundError: No row has this id.
        """
        return await trace.trace(self.state, identity)

    async def count(self) -> dict[str, int]:
        """Return how many methods, experiments and the like the store holds."""
        return await retrievals.count_rows(self.db)

    async def add_cost(
        self, source: str, *, subject_id: str | None, tokens: int | None, cost_usd: float | None = None
    ) -> None:
        """Record what an answer, or an agent's own work, cost."""
        await retrievals.add_cost(
            self.db, source, subject_id=subject_id, tokens=tokens, cost_usd=cost_usd, now=self.state.clock()
        )
