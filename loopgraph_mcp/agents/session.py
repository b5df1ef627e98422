"""One session of a researcher, turn by turn; each turn is stored before it is acted on, so a crash loses nothing."""

import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from loopgraph_mcp.agents import prompts, repair
from loopgraph_mcp.agents.context_window import condense
from loopgraph_mcp.agents.messages import (
    ASSISTANT,
    MESSAGES,
    RESULT,
    Assistant,
    EnoughError,
    Message,
    Reply,
    Researcher,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
    User,
)
from loopgraph_mcp.agents.outcomes import Best, Run, result_text
from loopgraph_mcp.agents.plan import Plan, Spent
from loopgraph_mcp.agents.prices import Price
from loopgraph_mcp.agents.providers import ContextOverflowError
from loopgraph_mcp.agents.tools import REPLICATE, Answer, Desk
from loopgraph_mcp.code.hashes import group_hash, program_hash
from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.server.next_steps import refusal
from loopgraph_mcp.store import edits, experiments, retrievals, sessions
from loopgraph_mcp.store.database import Database
from loopgraph_mcp.store.sessions import CallRow, SessionRow, TurnRow
from loopgraph_mcp.text import estimate_tokens

RUN: TypeAdapter[Run] = TypeAdapter(Run)

_ROOM = 0.7  # of the context, for all that is sent; the rest is for the reply, and for what was estimated too low
_SHRINK, _MIN_CONTEXT = 0.6, 500  # of the estimated context window, after a refusal for length
_IDLE_HINT, _IDLE_MENU, _IDLE_END = 2, 4, 12  # turns that led nowhere
_LONG_TEXT_CHARS = 1_000  # of a reply in words; longer ones repeat themselves
_MENU_LINES = 100
_SHOWN, _OFFERED = 5, 10
_CANCEL_PATIENCE_S = 20.0  # a supervisor first lets its run end by itself, then kills it


@dataclass(frozen=True, slots=True)
class Status:
    """A session's progress, for the live view."""

    session_id: str
    researcher: str
    memory: str
    metric: str
    doing: str
    percent: float | None
    done: int
    wanted: int
    best: Best | None
    spent: Spent
    eta_s: float | None
    last: str


OnStatus = Callable[[Status], None]


class Session:
    """A researcher at its desk. Made by `opening.open_session`."""

    def __init__(
        self,
        db: Database,
        row: SessionRow,
        desk: Desk,
        researcher: Researcher,
        plan: Plan,
        *,
        price: Price | None,
        on_status: OnStatus,
    ) -> None:
        self.id = row.id
        self.plan = plan
        self.desk = desk
        self.spent = Spent()
        self.ended: str | None = row.ended
        self._db = db
        self._system = row.system
        self._researcher = researcher
        self._price = price
        self._on_status = on_status
        self._talk: list[Message] = []
        self._sent: list[Message] = []  # the prompt of the last turn
        self._number = 0
        self._pending: list[tuple[int, ToolCall]] = []
        self._context = researcher.context_tokens
        self._idle = 0  # turns since one led anywhere
        self._seen = set[tuple[str, str, str, int]]()  # calls, with the draft and how many runs were trained by then
        self._menu = plan.menu == "on"
        self._note = ""
        self._wrote = ("", 0.0)
        self._answer = ""  # what was heard of the answer to a menu
        self._unbilled = (0, 0.0)  # tokens and dollars since the last run
        desk.on_progress = self._progress

    @property
    def counted(self) -> int:
        """How many of the experiments asked for are done."""
        return sum(run.counts for run in self.desk.runs)

    @property
    def runs(self) -> list[Run]:
        """What was run so far, the baseline first."""
        return self.desk.runs

    # -------------------------------------------------------------------------------------------- going on

    async def recall(self) -> None:
        """Take up a session where its rows say it was."""
        turns = await sessions.turns_of(self._db, self.id)
        calls = await sessions.calls_of(self._db, self.id)
        done = {(call.turn, call.place): call for call in calls}
        for turn in turns:
            self.spent.add_turn(turn)
            self._sent = self._sent[: turn.kept] + MESSAGES.validate_json(turn.prompt)
        for call in calls:
            self.spent.add_call(call)
            self.desk.runs += [await self._recalled(call.run)] if call.run else []
        if not turns:
            return
        last = turns[-1]
        self._number, self._menu = last.number, self._menu or last.menu
        reply = ASSISTANT.validate_json(last.reply)
        self._talk = list(self._sent) if last.number else []
        if last.number:
            self._talk.append(_sendable(reply))
        for place, each in enumerate(reply.calls):
            if (known := done.get((last.number, place))) is None:
                self._pending.append((place, each))
            elif last.number:
                self._talk.append(RESULT.validate_json(known.result))

    async def _recalled(self, text: str) -> Run:
        """Return a run as it was written down; one of an older session gets the hashes that are compared now."""
        run = RUN.validate_json(text)
        row = None if run.group else await experiments.get_experiment(self._db, run.experiment_id)
        if row is None or row.program_hash is None:
            return run if run.group else dataclasses.replace(run, group=run.program)
        program = await edits.program_text(self._db, row.program_hash)
        return dataclasses.replace(
            run,
            program=program_hash(program),
            group=group_hash(program),
            replicate=run.description == REPLICATE,
        )

    async def advance(self, experiments_done: int) -> bool:
        """Go on until so many experiments are done; return False where the session has ended."""
        while self.ended is None:
            reason = self.spent.over(self.plan, self.counted)
            if reason is not None:
                await self.end(reason)
                break
            if self.counted >= experiments_done:
                return True
            await self._turn()
        return False

    async def begin(self) -> None:
        """Run the baseline, if that is not done yet."""
        if not self.desk.runs and self.ended is None:
            await self._turn()

    async def end(self, reason: str) -> None:
        """End the session for good."""
        self.ended = reason
        await sessions.end_session(self._db, self.id, reason, now=time.time())
        self._show(f"ended: {reason}")

    async def _turn(self) -> None:
        if not self.desk.runs and not self._pending:
            await self._begin()
        elif self._pending:
            await self._carry_out(self._pending)
        else:
            await self._ask()

    async def _begin(self) -> None:
        """Run the baseline: the harness does it, at no cost to the researcher, in every arm."""
        call = ToolCall("baseline", "run", json.dumps({"description": "baseline"}))
        await self._write(Reply(Assistant("", [call]), Usage(0, 0), attempts=0), [], 0.0, number=0)
        await self._carry_out([(0, call)])

    async def _check_baseline(self, answer: Answer) -> None:
        if answer.run is None or answer.run.metric_value is None:
            await self.end(f"the baseline failed, so nothing can be compared: {answer.text}")

    # --------------------------------------------------------------------------------------------- asking

    async def _ask(self) -> None:
        began, options, tools = time.monotonic(), list[prompts.Choice](), list[ToolSpec]()
        if self._menu:
            options, prompt = await self._offer()
        else:
            tools, prompt = self.desk.tools(), self._talk or [User(await self._task())]
        self._show("thinking")
        reply, prompt = await self._reply(prompt, tools)
        if self._menu:
            place = prompts.chosen(repair.without_thoughts(reply.message.text), len(options))
            calls = [] if place is None else _calls(options[place], begun=self.desk.draft != self.desk.kept)
        else:
            calls = reply.message.calls or repair.calls_in_text(reply.message.text, tools)
        named = [
            ToolCall(f"t{self._number + 1}c{place}", call.name, call.arguments) for place, call in enumerate(calls)
        ]
        message = Assistant(reply.message.text, named, as_text=not reply.message.calls and bool(calls))
        await self._write(dataclasses.replace(reply, message=message), prompt, time.monotonic() - began)
        self._talk = [*prompt, _sendable(message)]
        if calls:
            await self._carry_out(list(enumerate(message.calls)))
        else:
            await self._went_idle(reply)

    async def _task(self) -> str:
        """Return the first message: the task, and what the memory says before anybody asked it."""
        desk = self.desk
        task = prompts.task(desk.where, desk.kept, desk.profile, self.plan.experiments, desk.table())
        return task if desk.memory is None else f"{task}\n\n{prompts.RECALLED}\n{(await desk.search(_SHOWN)).text}"

    async def _reply(self, prompt: list[Message], tools: list[ToolSpec]) -> tuple[Reply, list[Message]]:
        """Ask the researcher, with less of the conversation where it does not fit."""
        while True:
            system = prompts.MENU if self._menu else self._system
            fixed_tokens = estimate_tokens(system + json.dumps([dataclasses.asdict(tool) for tool in tools]))
            fits = condense(prompt, limit=int(self._context * _ROOM) - fixed_tokens, runs=self.desk.table())
            self._answer = ""
            try:
                return await self._researcher.reply(system, fits, tools, self._hear), fits
            except ContextOverflowError:
                self._context = int(self._context * _SHRINK)
                if self._context < _MIN_CONTEXT:
                    raise
                self._show("the conversation is too long: removing the oldest turns")

    async def _offer(self) -> tuple[list[prompts.Choice], list[Message]]:
        """Return a menu in place of the conversation: its options and the question."""
        desk, hits, retrieval_id = self.desk, [], ""
        if desk.memory is not None:
            found = (await desk.search(_OFFERED)).data or {}
            hits, retrieval_id = found.get("hits", []), found.get("retrieval_id", "")
        rng = random.Random(f"{self.plan.seed}:{self._number}")  # noqa: S311 - which constants are offered
        options = prompts.choices(desk.kept, desk.profile, hits, retrieval_id, rng)
        return options, [User(prompts.menu([line for line, _ in options], desk.table(), desk.where))]

    async def _write(self, reply: Reply, prompt: list[Message], seconds: float, *, number: int | None = None) -> None:
        """Write down a turn before anything is done about it."""
        self._number = self._number + 1 if number is None else number
        kept = next(
            (place for place, (old, new) in enumerate(zip(self._sent, prompt, strict=False)) if old != new),
            min(len(self._sent), len(prompt)),
        )
        usage = reply.usage
        cost = 0.0 if not usage.prompt else None if self._price is None else self._price.cost_usd(usage)
        row = TurnRow(
            session_id=self.id,
            number=self._number,
            kept=kept,
            prompt=MESSAGES.dump_json(prompt[kept:]).decode(),
            reply=ASSISTANT.dump_json(reply.message).decode(),
            menu=self._menu,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            written_tokens=usage.written,
            completion_tokens=usage.completion,
            wasted_tokens=reply.wasted,
            estimated=usage.estimated,
            cost_usd=usage.cost_usd if cost is None else cost,
            seconds=seconds,
            attempts=reply.attempts,
            created_at=time.time(),
        )
        await sessions.add_turn(self._db, row)
        self._sent = list(prompt)
        self.spent.add_turn(row)
        self._unbilled = (self._unbilled[0] + row.tokens, self._unbilled[1] + (row.cost_usd or 0.0))

    async def _went_idle(self, reply: Reply) -> None:
        """Say what to do to a researcher that called nothing; offer a menu to one that cannot, and end at last."""
        self._idle += 1
        if self._idle >= _IDLE_END:
            await self.end(f"no call in {self._idle} turns" + (", it refuses" if reply.stop == "refusal" else ""))
            return
        if self._idle >= _IDLE_MENU:
            self._offer_menus()
        last = self._talk[-1]
        if len(last.text) > _LONG_TEXT_CHARS:  # a reply that repeated itself to its limit would do so again
            self._talk[-1] = dataclasses.replace(last, text=last.text[:_LONG_TEXT_CHARS] + " …")
        cut = "Your reply was cut off: be brief. " if reply.stop == "length" else ""
        self._talk.append(User(cut + prompts.idle(self.desk.draft, self.desk.profile)))

    def _offer_menus(self) -> None:
        self._menu = self._menu or self.plan.menu == "auto"

    # -------------------------------------------------------------------------------------------- calling

    async def _carry_out(self, calls: list[tuple[int, ToolCall]]) -> None:
        """Carry out calls in order, each written down with what it made of the draft."""
        self._pending = []
        moved = False
        for place, call in calls:
            fixed = repair.fix(call, self.desk.tools())
            began = time.monotonic()
            if isinstance(fixed, repair.Refused):
                answer = Answer(fixed.reason, failed=True)
            elif fixed.call.name == "run" and self.desk.runs and self.spent.over(self.plan, self.counted):
                answer = Answer("not run: the budget is spent", failed=True)
            else:
                answer, new = await self._do(fixed, place)
                moved |= new
            await self._note_call(call, fixed, answer, place, time.monotonic() - began)
            if not self._number:
                await self._check_baseline(answer)
        self._idle = 0 if moved else self._idle + 1
        if self._number and self._idle >= _IDLE_MENU:
            self._offer_menus()
        if self._idle >= _IDLE_END:
            await self.end(f"{self._idle} turns without progress: the calls fail or repeat")

    async def _do(self, fixed: repair.Fixed, place: int) -> tuple[Answer, bool]:
        """Carry out one call; return its answer, and whether it led anywhere: what repeats, or is a note, does not."""
        call = fixed.call
        trained = sum(not run.repeated for run in self.desk.runs)
        state = (call.name, call.arguments, self.desk.draft, trained)
        same = state in self._seen
        self._seen.add(state)
        self._show(f"running: {fixed.arguments.get('description', '')}" if call.name == "run" else call.name)
        key = f"{self.id}:{self._number}:{place}"
        try:
            if call.name == "run":
                key = await self._fresh(key)
            answer = await self.desk.carry_out(call, fixed.arguments, key=key)
        except asyncio.CancelledError:
            await asyncio.shield(self._cancel(key))
            raise
        except LoopGraphError as error:
            answer = Answer(refusal(error), failed=True)
        repeated = answer.run is not None and answer.run.repeated
        new = not (same or repeated or answer.failed or call.name == "record")
        if self._idle >= _IDLE_HINT and (repeated or (same and answer.run is None)):
            words = f"{answer.text}\n{prompts.KNOWN}" if repeated else prompts.AGAIN
            answer = dataclasses.replace(answer, text=words, failed=True)
        if fixed.note:
            answer = dataclasses.replace(answer, text=f"({fixed.note})\n{answer.text}")
        return answer, new

    async def _note_call(
        self, call: ToolCall, fixed: repair.Fixed | repair.Refused, answer: Answer, place: int, seconds: float
    ) -> None:
        run, desk = answer.run, self.desk
        result = ToolResult(call.id, fixed.call.name, answer.text, answer.data)
        row = CallRow(
            session_id=self.id,
            turn=self._number,
            place=place,
            name=call.name,
            arguments=call.arguments,
            valid=not answer.failed,
            result=RESULT.dump_json(result).decode(),
            run=None if run is None else RUN.dump_json(run).decode(),
            experiment_id=None if run is None else run.experiment_id,
            seconds=seconds,
        )
        await sessions.add_call(self._db, row, kept=desk.kept, draft=desk.draft, draft_edit=desk.draft_edit)
        self.spent.add_call(row)
        if self._number:
            self._talk.append(result)
        if run is not None:
            self._note = f"{run.description}: {result_text(run)}"
            tokens, usd = self._unbilled
            await retrievals.add_cost(
                self._db, "agent", subject_id=run.experiment_id, tokens=tokens, cost_usd=usd, now=time.time()
            )
            self._unbilled = (0, 0.0)
        self._show("")

    async def _fresh(self, key: str) -> str:
        """Return a run's key, another one where the run of that key was cancelled or lost: that one says nothing."""
        for number in range(100):
            each = f"{key}:{number}" if number else key
            known = await experiments.find_by_key(self._db, each)
            row = None if known is None else await experiments.get_experiment(self._db, known)
            if row is None or row.outcome is None or row.outcome.kind.says_something:
                return each
        return key

    async def _cancel(self, key: str) -> None:
        """End the run of a call that was broken off; its supervisor ends all it started."""
        deadline = time.monotonic() + _CANCEL_PATIENCE_S
        while time.monotonic() < deadline:
            known = await experiments.find_by_key(self._db, key)
            row = None if known is None else await experiments.get_experiment(self._db, known)
            if row is None or row.outcome is not None:
                return
            if not row.cancel_requested:
                await experiments.request_cancel(self._db, row.id, now=time.time())
            await asyncio.sleep(0.1)

    # ------------------------------------------------------------------------------------------- watching

    def _hear(self, text: str) -> None:
        words, when = self._wrote
        self._wrote = ((words + text)[-80:], when)
        if time.monotonic() - when > 0.2:
            self._wrote = (self._wrote[0], time.monotonic())
            self._show(f"writes: {' '.join(self._wrote[0].split())[-60:]}")
        if self._menu:
            self._answer += text
            first, more, _ = repair.without_thoughts(self._answer).partition("\n")
            if more and prompts.chosen(first, _MENU_LINES) is not None:
                raise EnoughError  # a small model goes on, about nothing, to the limit of its reply

    def _progress(self, answer: dict[str, object]) -> None:
        percent = answer.get("percent")
        self._show(f"running: {answer.get('description')}", percent=percent if isinstance(percent, float) else None)

    def _show(self, doing: str, *, percent: float | None = None) -> None:
        plan, best, each = self.plan, self.desk.best, self.spent.seconds / max(self.counted, 1)
        self._on_status(
            Status(
                session_id=self.id,
                researcher=self._researcher.name,
                memory=plan.memory,
                metric=self.desk.where.metric,
                doing=doing,
                percent=percent,
                done=self.counted,
                wanted=plan.experiments,
                best=best,
                spent=self.spent,
                eta_s=each * (plan.experiments - self.counted) if self.counted else None,
                last=self._note,
            )
        )


def _sendable(message: Assistant) -> Assistant:
    """Return a reply as it may be sent back: without thoughts, and with arguments that servers can parse.

    Of a long one that holds calls as text these alone are left, in the form that models are trained on.
    """
    calls = [
        call
        if _is_object(call.arguments)
        else dataclasses.replace(call, arguments=json.dumps(repair.read_object(call.arguments) or {}))
        for call in message.calls
    ]
    text = repair.without_thoughts(message.text)
    if message.as_text and len(text) > _LONG_TEXT_CHARS:
        text = "\n".join(prompts.written_call(call.name, json.loads(call.arguments)) for call in calls)
    return dataclasses.replace(message, text=text, calls=calls)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _calls(choice: prompts.Choice, *, begun: bool) -> list[ToolCall]:
    """Return the calls of a menu's line, which changes the kept program: a draft that was begun is put away first."""
    first = [("undo", dict[str, str]())] if begun else []
    return [ToolCall("", name, json.dumps(arguments)) for name, arguments in [*first, *choice[1]]]
