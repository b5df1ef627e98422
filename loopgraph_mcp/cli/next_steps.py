"""Words what is to be done next, for a person: why, and the command that does it."""

import shlex

from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.models import Advice, NextStep
from loopgraph_mcp.server import next_steps

_COMMANDS = {
    "search_methods": ("search", ""),
    "get_code_edit": ("edit", "method_id"),
    "run_experiment": ("run", ""),
    "get_experiment": ("status", ""),
    "ingest": ("ingest", "source"),
    "add_method": ("method add", "method_id"),
    "map_code": ("map", ""),
}
_OPTIONS = {
    "edit_id": "--edit",
    "patch": "--patch",
    "method_id": "--method",
    "replicate": "--replicate",
    "apply": "--apply",
    "budget_tokens": "--budget",
    "query": "--query",
}
_WORDS = {
    Advice.POLL: "{call} follows it; the run goes on by itself",
    Advice.NAME_METHOD: (
        "It counts for no method: name it with `loopgraph method add`, then {call}, and its edit is learned as that "
        "method's recipe."
    ),
    Advice.FIX_SURROUNDINGS: (
        "Nothing was measured and no method is charged: fix what the reason names, then run it again."
    ),
    Advice.REGISTER_METHOD: (
        "`loopgraph method add` registers what is new, citing passages such as {passages}; `loopgraph search` ranks "
        "methods that are known."
    ),
    Advice.CHECK_PACK: "Read what goes out, set version and license in pack.toml, then: loopgraph pack check {folder}",
    Advice.READ_REASONS: "Look at the reasons, or give the files it is meant for with --against.",
}


def as_command(step: NextStep) -> str:
    """Return a step's call as a person types it; what is to be filled in is `…`."""
    command, first = _COMMANDS.get(step.tool, ("", ""))
    words = ["loopgraph", *command.split()]
    words += [_typed(step.arguments[first])] if first in step.arguments else []
    for name, value in step.arguments.items():
        if name != first and name in _OPTIONS and value is not False:
            words += [_OPTIONS[name]] if value is True else [_OPTIONS[name], _typed(value)]
    return " ".join(words)


def _typed(value: object) -> str:
    return "…" if value == "…" else shlex.quote(str(value))


def word(step: NextStep) -> str:
    """Return a step as one sentence, or as the command alone where that says it all."""
    if next_steps.WORDS[step.reason] == "{call}":
        return as_command(step)
    return next_steps.word(step, lambda each: f"`{as_command(each)}`", _WORDS)


def refusal(error: LoopGraphError) -> str:
    """Return an error's words, with the way on behind its first line."""
    return next_steps.refusal(error, word)
