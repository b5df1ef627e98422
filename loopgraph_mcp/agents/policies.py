"""Scripted researchers of several habits: no model and no key, the same desk, prompts and runs.

Each policy proposes values of the program's constants and sees their outcomes. With memory on, it follows the same
policy and also the memory's advice: it calls search_methods before each proposal, takes the suggested values, or a
method that is likelier to be kept, by get_code_edit in place of its own idea, leaves what flopped, and trains again
what gained within the noise before it continues from there.
"""

import importlib
import importlib.util
import json
import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopgraph_mcp.agents.messages import Assistant, Message, Reply, ToolCall, ToolResult, ToolSpec, Usage
from loopgraph_mcp.agents.prompts import worth_trying
from loopgraph_mcp.code.constants import numbers, tunable, written
from loopgraph_mcp.errors import ConfigError
from loopgraph_mcp.text import estimate_tokens

_LIKELY = 0.2  # about what agents keep of all they try (EVIDENCE: 17 to 25 %)
_FACTORS = (0.5, 2.0, 0.8, 1.25)  # halve, double, and small steps for what a factor of two breaks
_FORGETFUL_MENU = 6  # few, so that repeats are certain
_POWERS_FROM = 16  # smaller powers of two are often counts, such as layers
_GREEDY_SPREAD = 0.4  # of the log of a factor: most are between two thirds and three halves
_DRAWS = 100  # after which every possibility counts as tried
_FROM_ZERO = 0.05  # a zero becomes about this: a short warmup, a low floor
_REPLICATES = 2  # of a doubtful gain; one was no better (docs/agents.md)


Knobs = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Constants with their new values as code."""

    values: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """Return it in a few words."""
        return ", ".join(f"{name} {value}" for name, value in self.values)


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a proposal: nothing where it could not be made, nothing new where the memory answered.

    Args:
        constants: The numbers of the program that is kept now, where it was run.
        doubtful: Whether it is kept for a gain that the memory judges to be within the noise.
    """

    kept: bool = False
    metric_value: float | None = None
    constants: Knobs | None = None
    doubtful: bool = False


Habit = Generator[Proposal, Heard, None]


def greedy(rng: random.Random, knobs: Callable[[], Knobs], *, lower: bool) -> Habit:
    """Multiply one knob of the kept program by a random factor, nothing twice: the script that is hard to beat."""
    del lower
    tried = set[Proposal]()
    while True:
        for _ in range(_DRAWS):
            name = rng.choice(list(knobs()))
            change = _change(name, knobs()[name], math.exp(rng.gauss(0, _GREEDY_SPREAD)))
            if change not in tried:
                break
        tried.add(change)
        if (yield change).kept:
            tried.clear()  # what failed on another program may work on this one


def at_random(rng: random.Random, knobs: Callable[[], Knobs], *, lower: bool) -> Habit:
    """Give any knob any value within a factor of four."""
    del lower
    while True:
        name = rng.choice(list(knobs()))
        yield _change(name, knobs()[name], 4 ** rng.uniform(-1, 1))


# What a textbook would have one try first on a short run, by parts of a knob's name.
_TEXTBOOK: tuple[tuple[str, float], ...] = (
    ("BATCH_SIZE", 0.5), ("LEARNING_RATE", 2.0), ("MATRIX_LR", 1.5), ("EMBEDDING_LR", 1.5), ("DEPTH", 1.25),
    ("WARMDOWN", 1.5), ("WEIGHT_DECAY", 0.5), ("UNEMBEDDING_LR", 2.0), ("SCALAR_LR", 0.5), ("ASPECT_RATIO", 1.5),
    ("HEAD_DIM", 0.5), ("LEARNING_RATE", 0.5), ("MATRIX_LR", 0.7), ("EMBEDDING_LR", 0.7), ("DEPTH", 0.75),
)  # fmt: skip


def textbook(rng: random.Random, knobs: Callable[[], Knobs], *, lower: bool) -> Habit:
    """Go through what textbooks recommend, in order, then through the same with smaller steps."""
    del rng, lower
    power = 1.0
    while True:
        for part, factor in _TEXTBOOK:
            for name, value in knobs().items():
                if part == name or name.endswith(part):
                    yield _change(name, value, factor**power)
        power *= 0.5
        for name in list(knobs()):
            yield _change(name, knobs()[name], 1.5**power)


def forgetful(rng: random.Random, knobs: Callable[[], Knobs], *, lower: bool) -> Habit:
    """Pick from the few ideas it always has, whatever came of them before."""
    del lower
    ideas = [(name, factor) for name in list(knobs()) for factor in _FACTORS]
    ideas = rng.sample(ideas, min(_FORGETFUL_MENU, len(ideas)))
    while True:
        name, factor = rng.choice(ideas)
        yield _change(name, knobs()[name], factor)


def tpe(rng: random.Random, knobs: Callable[[], Knobs], *, lower: bool) -> Habit:
    """Let Optuna's tree-structured Parzen estimator choose all knobs at once, within a factor of four of the start."""
    optuna = importlib.import_module("optuna")  # an extra, and heavy
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=rng.randrange(2**31), n_startup_trials=5)
    study = optuna.create_study(direction="minimize" if lower else "maximize", sampler=sampler)
    start = {name: value for name, value in knobs().items() if value}
    while True:
        trial = study.ask()
        values = tuple((name, _scaled(value, 4 ** trial.suggest_float(name, -1, 1))) for name, value in start.items())
        heard = yield Proposal(values)
        failed = optuna.trial.TrialState.FAIL
        study.tell(trial, heard.metric_value, state=failed if heard.metric_value is None else None)


HABITS: Mapping[str, Callable[..., Habit]] = {
    "greedy": greedy,
    "random": at_random,
    "textbook": textbook,
    "forgetful": forgetful,
    "tpe": tpe,
}


def check_policies(policies: Sequence[str]) -> None:
    """Refuse to begin what would end for want of a package.

    Raises:
        ConfigError: A policy is Optuna's, and Optuna is not there.
    """
    if "tpe" in policies and importlib.util.find_spec("optuna") is None:
        raise ConfigError("tpe needs Optuna: pip install 'loopgraph-mcp[bench]'")


def _change(name: str, value: float, factor: float) -> Proposal:
    """Return a knob scaled, to another value than it has also where that is whole and small."""
    if not value and isinstance(value, float):
        return Proposal(((name, written(_FROM_ZERO * factor, whole=False)),))
    new = _scaled(value, factor)
    if new == str(value):
        new = (
            _scaled(value, 2 if factor > 1 else 0.5)
            if _is_power(value)
            else str(max(value + (1 if factor > 1 else -1), 1))
        )
    return Proposal(((name, new),))


def _scaled(value: float, factor: float) -> str:
    """Return a value times a factor as code; a larger power of two stays one, as devices want heads and batches."""
    if _is_power(value):
        return str(2 ** max(round(math.log2(value * factor)), 0))
    return written(value * factor, whole=isinstance(value, int))


def _is_power(value: float) -> bool:
    return isinstance(value, int) and value >= _POWERS_FROM and value & (value - 1) == 0


# ---------------------------------------------------------------------------------------------- the researcher

_Calls = Generator[ToolCall, ToolResult, None]


class Scripted:
    """A researcher that follows a habit. Its state is the conversation: the same messages lead to the same state.

    Args:
        policy: The habit's name.
        program: The program at the start, whose constants it turns.
        profile: Which of a constant's values counts on this device.
        seed: Of its choices.
        lower: Whether the metric is to fall.

    Raises:
        ConfigError: No such habit.
    """

    def __init__(self, policy: str, program: str, profile: str, *, seed: int, lower: bool) -> None:
        if policy not in HABITS:
            raise ConfigError(f"no policy {policy!r}; use one of {', '.join(HABITS)}")
        check_policies([policy])
        self.name = f"policy:{policy}"
        self.context_tokens = 10**9  # it reads all of it
        self._policy = policy
        self._knobs = {name: value for name, value in numbers(program, profile).items() if tunable(name)}
        if not self._knobs:
            raise ConfigError("the program has no constants that a policy could change; name a model instead")
        self._rng = random.Random(seed)  # noqa: S311 - a script's choices
        self._lower = lower
        self._script: _Calls | None = None
        self._next: ToolCall | None = None
        self._results = 0

    async def reply(
        self, system: str, messages: Sequence[Message], tools: Sequence[ToolSpec], on_text: Callable[[str], None]
    ) -> Reply:
        """Return the habit's next call. Tokens are estimated: the messages since its last call, each counted once."""
        if self._script is None:
            memory = any(tool.name == "search_methods" for tool in tools)
            self._script = self._research(memory=memory)
            self._next = next(self._script)
        results = [message for message in messages if isinstance(message, ToolResult)]
        for result in results[self._results :]:
            self._next = self._script.send(result)
        heard = results[self._results :] if self._results else messages
        self._results = len(results)
        assert self._next is not None  # noqa: S101 - habits go on for ever
        read = sum(estimate_tokens(message.text) for message in heard)
        read += 0 if self._results else estimate_tokens(system + json.dumps([tool.schema for tool in tools]))
        said = estimate_tokens(self._next.name + self._next.arguments)
        on_text(self._next.name)
        return Reply(Assistant("", [self._next]), Usage(read, said, cost_usd=0.0, estimated=True), "calls")

    def _research(self, *, memory: bool) -> _Calls:
        knobs = dict(self._knobs)
        habit = HABITS[self._policy](self._rng, lambda: knobs, lower=self._lower)
        heard, tried = None, set[str]()

        def follow(constants: Knobs | None) -> None:
            knobs.update({name: value for name, value in (constants or {}).items() if name in knobs})

        while True:
            if memory:
                follow((yield from _heed(tried)))
            proposal = next(habit) if heard is None else habit.send(heard)
            heard = yield from _try(proposal)
            if memory:
                heard = yield from _believe(heard)
            follow(heard.constants)


def _try(proposal: Proposal) -> Generator[ToolCall, ToolResult, Heard]:
    """Change the draft as proposed and run it."""
    for name, value in proposal.values:
        result = yield _call("set_value", name=name, value=value)
        if len(proposal.values) == 1 and result.data is None:
            return Heard()
    return _heard((yield _call("run", description=str(proposal))))


def _believe(heard: Heard) -> Generator[ToolCall, ToolResult, Heard]:
    """Train what is kept for a doubtful gain again, as verdicts advise; it is undone where that was luck."""
    for _ in range(_REPLICATES):
        if not heard.doubtful:
            break
        heard = _heard((yield _call("run", description="", replicate=True)))
    return heard


def _heed(tried: set[str]) -> Generator[ToolCall, ToolResult, Knobs | None]:
    """Ask the memory: go on from the best program it knows, and try its methods first that are worth more than a guess.

    Returns the constants of the program that is kept then, where anything was run.
    """
    heard = Heard()
    while True:
        found = (yield _call("search_methods", query="")).data or {}
        best = found.get("best")
        if best is not None and best["experiment_id"] not in tried:
            tried.add(best["experiment_id"])
            edit = yield _call("get_code_edit", method_id=best["experiment_id"])
            if edit.data is not None and edit.data.get("edit_id") is not None:
                heard = _heard((yield _call("run", description="the best program known")))
                if heard.constants is not None and best["runs"] == 1:
                    heard = _heard((yield _call("run", description="", replicate=True)))
                continue
        hits = [each for each in found.get("hits", []) if worth_trying(each)]
        hit = next((each for each in hits if each["method_id"] not in tried), None)
        values = next(
            (each for each in found.get("values", []) if each["runs"] and str(each["knobs"]) not in tried), None
        )
        if values is not None and (hit is None or (hit["p_keep"] or 0) < values["p_improves"]):
            tried.add(str(values["knobs"]))
            if (yield from _set_values(values)):
                heard = yield from _believe(_heard((yield _call("run", description=values["changes"]))))
            continue
        if hit is None:
            return heard.constants
        tried.add(hit["method_id"])
        edit = yield _call("get_code_edit", method_id=hit["method_id"], retrieval_id=found["retrieval_id"])
        if edit.data is None or edit.data.get("edit_id") is None:
            continue
        p_keep, earlier = edit.data.get("p_keep"), edit.data.get("earlier", [])
        doubted = hit["standing"] != "proven" and p_keep is not None and p_keep < _LIKELY
        if doubted or any(run["decision"] == "discard" for run in earlier):
            yield _call("undo")
            continue
        heard = yield from _believe(_heard((yield _call("run", description=str(hit["name"])))))


def _set_values(values: Mapping[str, Any]) -> Generator[ToolCall, ToolResult, bool]:
    """Set suggested values; without any, the best program is run once more."""
    if not values["knobs"]:
        yield _call("run", description="", replicate=True)
        return False
    edit = yield _call("get_code_edit", method_id="set-values", knobs=values["knobs"])
    return edit.data is not None and edit.data.get("edit_id") is not None


def _heard(result: ToolResult) -> Heard:
    data = result.data or {}
    kept = data.get("decision") == "keep" and not data.get("repeated")
    doubtful = kept and data.get("verdict") == "within_noise"
    return Heard(kept, data.get("metric_value"), data.get("constants"), doubtful)


def _call(tool: str, /, **arguments: Any) -> ToolCall:
    return ToolCall("", tool, json.dumps(arguments))
