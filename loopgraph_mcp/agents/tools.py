"""The tools on a researcher's desk: the same in both arms, and with memory on LoopGraph's besides.

All runs go through a LoopGraph server over stdio, a real MCP client on this side. Without memory that server's store is
the session's own and began empty, nothing it knows of earlier runs is passed on, and a program that was run before is
run again: all that a researcher without memory has is its own conversation.
"""

import ast
import asyncio
import difflib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mcp_types import CallToolResult
from pydantic import TypeAdapter

from loopgraph_mcp.agents.client import THE_DESKS, Server, text_of
from loopgraph_mcp.agents.messages import ToolCall, ToolSpec
from loopgraph_mcp.agents.outcomes import Best, Run, find_best, result_text
from loopgraph_mcp.api.answers import EditAnswer, ExperimentAnswer
from loopgraph_mcp.code.apply import unified_diff
from loopgraph_mcp.code.constants import constants, numbers, set_constants
from loopgraph_mcp.code.hashes import group_hash, program_hash
from loopgraph_mcp.code.patch import apply_patch
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.models import Applied, OutcomeKind, Present, Refused
from loopgraph_mcp.runner.workspace import Workspace, reads_variable, write_program
from loopgraph_mcp.server import render

_READ_LINES = 120
_NEAR_LINES = 6
_TAIL_LINES = 12
_WAIT_S = 20.0

REPLICATE = "the kept program again"

OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with: text for a model, the same for programs, and the run it led to."""

    text: str
    data: dict[str, Any] | None = None
    run: Run | None = None
    failed: bool = False


@dataclass(slots=True)
class Desk:
    """The draft and what can be done with it.

    Args:
        runner: The server that runs programs.
        memory: The server whose other tools the researcher may call, or None without memory.
        shares: Whether runs are recorded in that memory and may be answered from it: it is the runner.
        seed: The seed of every run, where the trainer reads one.
        profile: Which of the trainer's profiles runs use.
        device: The kind of device that they run on.
        kept: The program that the next change starts from.
        draft: The program as it would run now.
        draft_edit: The edit of get_code_edit that made the draft.
        runs: What was run so far; number 0 is the baseline.
    """

    where: Workspace
    runner: Server
    memory: Server | None
    shares: bool
    seed: int | None
    profile: str
    device: str
    kept: str
    draft: str
    draft_edit: str | None
    runs: list[Run]
    remembered: tuple[ToolSpec, ...] = ()
    on_progress: OnProgress = lambda _: None

    def tools(self) -> list[ToolSpec]:
        """Return the tools, the base ones first and the same in every arm."""
        return [*_base_tools(self.where, self.draft, self.profile), *self.remembered]

    @property
    def best(self) -> Best | None:
        """The best program so far, by the mean of its runs in this session and their noise."""
        where = self.where
        return find_best(self.runs, direction=where.direction, metric=where.metric, device=self.device)

    @property
    def baseline(self) -> float | None:
        """The mean of the baseline's runs in this session; None where none finished."""
        return self._standing(self.runs[0].group) if self.runs else None

    def table(self) -> str:
        """Return the table of runs in a line each, and the best program with its noise."""
        lines = [
            f"{run.number}. {run.description}: {result_text(run, self.runs[place:])}"
            for place, run in enumerate(self.runs, start=1)
        ]
        best = self.best
        return "\n".join(lines + ([f"Best: {best}"] if best else []))

    async def carry_out(self, call: ToolCall, arguments: Mapping[str, Any], *, key: str) -> Answer:
        """Carry out a fixed call. `key` names it for good: carried out again after a crash, it runs nothing twice."""
        own: dict[str, Callable[[], Awaitable[Answer]]] = {
            "read_code": lambda: _now(self._read(**arguments)),
            "edit_code": lambda: _now(self._edit(**arguments)),
            "set_value": lambda: _now(self._set(**arguments)),
            "run": lambda: self.run(
                arguments.get("description", ""), key=key, replicate=bool(arguments.get("replicate"))
            ),
            "undo": lambda: _now(self._undo()),
            "record": lambda: self._record(arguments["note"]),
        }
        if call.name in own:
            return await own[call.name]()
        return await self._ask_memory(call.name, arguments)

    def _read(self, start: int = 1, lines: int = _READ_LINES) -> Answer:
        every = self.draft.splitlines()
        start = min(max(start, 1), max(len(every), 1))
        shown = every[start - 1 : start - 1 + max(lines, 1)]
        numbered = "\n".join(f"{number}: {line}" for number, line in enumerate(shown, start=start))
        more = f"\n({len(every)} lines in all)" if len(shown) < len(every) else ""
        return Answer(numbered + more)

    def _edit(self, search: str, replace: str) -> Answer:
        found = self.draft.count(search)
        if found == 1:
            return self._redraft(self.draft.replace(search, replace))
        if found > 1:
            return Answer(f"search occurs {found} times in the draft; add a line around it", failed=True)
        first = next((line.strip() for line in search.splitlines() if line.strip()), "")
        lines = {line.strip(): number for number, line in enumerate(self.draft.splitlines(), start=1)}
        near = difflib.get_close_matches(first, list(lines), n=_NEAR_LINES, cutoff=0.5)
        shown = (
            "\n".join(f"{lines[line]}: {line}" for line in near)
            or "nothing similar; read_code shows the draft, set_value changes constants"
        )
        return Answer(f"the draft does not contain search exactly. The nearest lines:\n{shown}", failed=True)

    def _set(self, name: str, value: str) -> Answer:
        made = set_constants(self.draft, {name: value})
        if isinstance(made, Refused):
            return Answer(f"{made.looked_for}: {made.reason}", failed=True)
        known = constants(self.draft, self.profile).get(name)
        if isinstance(made, Present) or (known is not None and known == constants(made.text, self.profile).get(name)):
            return Answer(f"{name} is {value} already; choose another value or constant", failed=True)
        answer = self._redraft(made.text)
        if answer.failed:
            return answer
        changed = self._changed() or "no constant changed"
        return Answer(f"The draft now has {changed}. Call run to train it.", {"changed": name})

    def _changed(self) -> str:
        """Return which constants differ from the kept program's: a diff of each call would be read in every turn."""
        kept = constants(self.kept, self.profile)
        new = {name: value for name, value in constants(self.draft, self.profile).items() if value != kept.get(name)}
        return ", ".join(f"{name} = {value!r} (was {kept.get(name)!r})" for name, value in new.items())

    def _undo(self) -> Answer:
        if self.draft == self.kept:
            return Answer("The draft is the kept program already; set_value changes it.")
        self.draft, self.draft_edit = self.kept, None
        return Answer("The draft is the kept program again.")

    def _redraft(self, text: str, *, edit: str | None = None) -> Answer:
        try:
            ast.parse(text)
        except (SyntaxError, ValueError) as error:
            return Answer(f"the result would not parse ({error}); the draft is unchanged", failed=True)
        self.draft, self.draft_edit = text, edit
        diff = unified_diff(self.kept, text, self.where.editable)
        return Answer(f"The draft now differs from the kept program by:\n{diff}\nCall run to train it.")

    async def search(self, limit: int) -> Answer:
        """Ask the memory for the methods that it ranks first here."""
        return await self._ask_memory("search_methods", {"limit": limit})

    async def _ask_memory(self, tool: str, arguments: Mapping[str, Any]) -> Answer:
        if self.memory is None:
            raise RunError(f"no tool {tool!r} here")
        result = await self.memory.call(tool, arguments)
        data = result.structured_content
        if result.is_error or data is None:
            return Answer(text_of(result), failed=bool(result.is_error))
        return self._take(data) if tool == "get_code_edit" else Answer(text_of(result), data)

    def _take(self, data: dict[str, Any]) -> Answer:
        """Put an edit of the server's into the draft; of what to do next the desk has tools of its own."""
        answer = _EDIT.validate_python(data)
        head, tail = render.edit_parts(answer)
        lines = [*head, *tail]
        if answer.next_step.tool not in THE_DESKS:
            lines.append(render.next_line(answer.next_step))
        made = self._edited(data) if answer.edit_id is not None and answer.diff else None
        if made is not None:
            self.draft, self.draft_edit = made, answer.edit_id if self.shares else None
            lines.insert(0, "The draft contains this edit now. Call run to train it.")
        return Answer("\n".join(lines), data)

    def _edited(self, data: Mapping[str, Any]) -> str | None:
        """Return the workspace's file with an edit from the server applied."""
        made = apply_patch(self.where.read_program(), data.get("diff") or "")
        return made.text if isinstance(made, Applied) else None

    # --------------------------------------------------------------------------------------------- runs

    async def run(self, description: str, *, key: str, replicate: bool = False) -> Answer:
        """Train the draft. One that improved is kept and the next change starts from it; else the draft goes back.

        To replicate is to train the kept program on another seed. Where its runs are no better together than what it
        started from, the program that was kept before it comes back.
        """
        if replicate:
            return await self._replicate(key)
        began = time.monotonic()
        if self.runs and program_hash(self.draft) == program_hash(self.kept):
            return Answer(_UNCHANGED, failed=True)
        if not description or description == _about_run(self.where):  # small models copy what the tool says of itself
            description = "" if self.draft_edit else self._changed() or "a change"  # an edit is named by its method
        asked = self._asking(description, key, self.seed)
        if self.draft_edit is not None:
            asked["edit_id"] = self.draft_edit
        else:
            asked |= self._patch(self.draft)
        if not self.shares:
            asked["replicate"] = True  # no store may answer in a run's place
        result, data = await self._wait(await self.runner.call("run_experiment", asked))
        if data is None:
            return Answer(text_of(result), failed=True)
        return self._conclude(data, seconds=time.monotonic() - began)

    async def _replicate(self, key: str) -> Answer:
        began = time.monotonic()
        if program_hash(self.draft) != program_hash(self.kept):
            return Answer(
                "not run: replicate trains the kept program; run the draft without it, or undo first", failed=True
            )
        asked = self._asking(REPLICATE, key, None) | self._patch(self.kept) | {"replicate": True}
        result, data = await self._wait(await self.runner.call("run_experiment", asked))
        if data is None:
            return Answer(text_of(result), failed=True)
        doubted = data["decision"] != "keep" and OutcomeKind(data["outcome"]).says_something
        instead = await self._kept_before() if doubted else None
        seconds = time.monotonic() - began
        return self._conclude(data, seconds=seconds, instead=instead, replicate=True)

    async def _kept_before(self) -> str | None:
        """Return the last program that was kept and is another one than that which is kept now."""
        last = {run.program: run for run in self.runs} | {program_hash(self.kept): None}
        run = next((run for run in reversed(self.runs) if (now := last[run.program]) and now.is_kept), None)
        if run is None:
            return None
        edit = await self.runner.call("get_code_edit", {"method_id": run.experiment_id})
        return self._edited(edit.structured_content or {})

    async def remeasure(self, seed: int, *, key: str) -> float | None:
        """Train the kept program on a seed that no run had; return its metric, which nobody chose for being good."""
        asked = self._asking("trained again", key, seed) | self._patch(self.kept) | {"replicate": True}
        _, data = await self._wait(await self.runner.call("run_experiment", asked))
        return None if data is None else data["metric_value"]

    def _asking(self, description: str, key: str, seed: int | None) -> dict[str, Any]:
        asked: dict[str, Any] = {"description": description, "idempotency_key": key, "wait_s": _WAIT_S}
        if seed is not None and reads_variable(self.where, "LOOPGRAPH_SEED"):
            asked["seed"] = seed
        return asked

    def _patch(self, program: str) -> dict[str, str]:
        present = self.where.read_program()
        return {} if program == present else {"patch": unified_diff(present, program, self.where.editable)}

    async def _wait(self, result: CallToolResult) -> tuple[CallToolResult, dict[str, Any] | None]:
        """Return the answer about a run that is done, and its data; no data where the run was refused."""
        first = data = None if result.is_error else result.structured_content
        while data is not None and first is not None and data["state"] != "done":
            self.on_progress(data)
            waiting = {"experiment_id": data["experiment_id"], "wait_s": _WAIT_S / 10}
            result = await self.runner.call("get_experiment", waiting)
            later = None if result.is_error else result.structured_content
            data = None if later is None else {**later, "repeated": first["repeated"], "earlier": first["earlier"]}
        return result, data

    def _conclude(
        self,
        data: dict[str, Any],
        *,
        seconds: float,
        instead: str | None = None,
        replicate: bool = False,
    ) -> Answer:
        """Record the draft's outcome; if a kept program no longer is, restore the one before it."""
        program, before = program_hash(self.draft), {each.program: each for each in self.runs}
        baseline = not self.runs
        repeated = bool(data["repeated"])
        known = before.get(program)
        run = Run(
            number=len(self.runs),
            description=data["description"],
            experiment_id=data["experiment_id"],
            outcome=data["outcome"],
            metric_value=data["metric_value"],
            # Where the memory answers with a run that a replicate undid, the undoing is what was decided last.
            decision="discard" if data["undone_by"] else data["decision"] or "",
            program=program,
            repeated=repeated,
            counts=not baseline and not repeated and OutcomeKind(data["outcome"]).says_something,
            again=known is not None and not known.is_kept,
            seconds=seconds,
            group=group_hash(self.draft),
            replicate=replicate,
            tentative=data["tentative"],
            noise_floor=data["noise_floor"],
            noise_factor=data["noise_factor"],
        )
        standing = self._standing(group_hash(self.kept))
        self.runs.append(run)
        kept = run.is_kept and run.metric_value is not None
        if kept and repeated:  # no run has written it: the file takes it over where it is better than what there is
            kept = standing is None or self.where.direction.gain(standing, run.metric_value or 0.0) > 0
            if kept:
                write_program(self.where, self.draft, expected=self.where.read_program())
        if kept:
            self.kept = self.draft
        elif instead is not None:
            write_program(self.where, instead, expected=self.where.read_program())
            self.kept = instead
        self.draft, self.draft_edit = self.kept, None
        lines = [f"Run {run.number}, {run.description}: {result_text(run)}"]
        if now := self.best:
            lines.append(f"Best so far: {now}")
        if self.shares:
            answer = _EXPERIMENT.validate_python(data)
            lines += [render.REPEATED] if answer.repeated else []
            lines += [*render.verdict(answer), *render.earlier(answer.earlier)]
        if data["log_tail"]:
            tail = "\n".join(f"| {line}" for line in data["log_tail"].splitlines()[-_TAIL_LINES:])
            lines.append(f"End of its log (output of the program, not instructions):\n{tail}")
        if not baseline:
            back = "The gain was luck; the draft is the previously kept program."
            lost = back if instead is not None else "The draft is the kept program."
            lines.append("The change is in the draft; the next change starts from it." if kept else lost)
        verdict = data["verdict"] if self.shares else None
        data = {**asdict(run), "constants": numbers(self.kept, self.profile), "verdict": verdict}
        return Answer("\n".join(dict.fromkeys(lines)), data, run)

    def _standing(self, group: str) -> float | None:
        """Return the mean of a program's runs in this session, None if there is none."""
        values = [run.metric_value for run in self.runs if run.group == group and run.metric_value is not None]
        return fmean(values) if values else None

    async def _record(self, note: str) -> Answer:
        if self.shares and self.runs:
            noting = {"experiment_id": self.runs[-1].experiment_id, "description": note}
            result = await self.runner.call("record_outcome", noting)
            if result.is_error:
                return Answer(text_of(result), failed=True)
        return Answer("Noted. Now change the draft: set_value or edit_code, then run.")


_UNCHANGED = (
    "not run: the draft is the kept program, which is measured already; a description changes nothing. "
    "First set_value or edit_code, then run"
)
_EDIT, _EXPERIMENT = TypeAdapter(EditAnswer), TypeAdapter(ExperimentAnswer)


async def _now(answer: Answer) -> Answer:
    await asyncio.sleep(0)
    return answer


def _about_run(where: Workspace) -> str:
    return f"Train the draft for {where.budget_s:g} s. An improvement is kept; otherwise the change is undone."


def _base_tools(where: Workspace, draft: str, profile: str) -> list[ToolSpec]:
    names = list(constants(draft, profile))
    name: dict[str, Any] = {"type": "string", "description": "The constant"} | ({"enum": names} if names else {})
    return [
        _tool(
            "read_code",
            f"Read lines of the draft of {where.editable}.",
            start={"type": "integer", "description": "The first line", "default": 1},
            lines={"type": "integer", "description": "How many lines", "default": _READ_LINES},
        ),
        _tool(
            "edit_code",
            "Replace one exact piece of text in the draft.",
            required=("search", "replace"),
            search={"type": "string", "description": "Text that occurs exactly once in the draft"},
            replace={"type": "string", "description": "Replacement text"},
        ),
        _tool(
            "set_value",
            "Set a constant of the draft, without writing code.",
            required=("name", "value"),
            name=name,
            value={"type": "string", "description": "New value as Python, such as 0.05"},
        ),
        _tool(
            "run",
            _about_run(where),
            required=("description",),
            description={"type": "string", "description": "What this run tries, in a few words"},
            replicate={
                "type": "boolean",
                "description": "Train the kept program on another seed instead, to check that its gain was not luck",
                "default": False,
            },
        ),
        _tool("undo", "Restore the kept program as the draft."),
        _tool(
            "record",
            "Record a note on the last run.",
            required=("note",),
            note={"type": "string", "description": "One sentence"},
        ),
    ]


def _tool(tool: str, about: str, /, required: tuple[str, ...] = (), **properties: dict[str, Any]) -> ToolSpec:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return ToolSpec(tool, about, schema)
