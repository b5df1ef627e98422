"""Words what is to be done next, for a model: why, and the call that does it."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

from loopgraph_mcp.errors import LoopGraphError
from loopgraph_mcp.models import Advice, NextStep
from loopgraph_mcp.text import plain, said

# `{call}` is the call as a reader writes it, other names are of NextStep.about.
WORDS = {
    Advice.MAKE_EDIT: "{call}",
    Advice.SET_VALUES: "Set the values that are suggested first: {call}",
    Advice.REPLICATE_BEST: "The lead of the best program may be luck; run it again: {call}",
    Advice.OTHER_WORDS: "Nothing matches. Use other words, or an empty query to see what ranks first over all.",
    Advice.NO_FILTER: "No method of that family and standing matches: leave them out.",
    Advice.ALL_PRESENT: "Everything shown is in the file already; change a knob of it, or search for something else.",
    Advice.ALL_FLOPPED: "All that makes an edit flopped here; search for something else, or with no query.",
    Advice.OTHER_VALUES: "Ask for other knob values, or try another method.",
    Advice.BY_HAND: "Make the change by hand near these lines and run it: {call}",
    Advice.TAKE_PARTS: "Take what you want of it as a patch of your own file: {call}",
    Advice.WRITE_IT: (
        "Write the change yourself as a unified diff of {file} and run it: {call}. If it wins, LoopGraph learns its "
        "recipe."
    ),
    Advice.GO_ON: "Go on from here: {call}",
    Advice.APPLY_WHOLE: "{call} writes it; then go on from there.",
    Advice.RUN_EDIT: "{call}",
    Advice.READ_EARLIER: "Read what came of earlier runs like it, above; then {call}",
    Advice.RAN_BEFORE: (
        "This very program was run before ({experiment_id}: {outcome}); try another value or method, or {call}"
    ),
    Advice.WAIT_FOR_OTHER: "Another run tries this method now: wait with {call}, or take another method.",
    Advice.POLL: "{call} in {seconds} s; the run goes on by itself.",
    Advice.FIX_OR_DISCARD: "Discard it, or fix what failed and run it again as a new change.",
    Advice.RUN_BASELINE: "Run the unchanged program to have something to compare with: {call}",
    Advice.FIX_PARENT: (
        "The program without the change fails too, so this says nothing of the change: fix that first, then run the "
        "unchanged program: {call}"
    ),
    Advice.FIX_BASELINE: (
        "The unchanged program fails: fix that first, then run it again. No method is charged with it."
    ),
    Advice.REPLICATE_BASELINE: (
        "Baseline measured in {runs} of 3 runs. Replicate it for a better noise floor, or search for a method to try."
    ),
    Advice.SEARCH: "Baseline measured in {runs} runs. Search for a method to try.",
    Advice.BUILD_ON_IT: "Keep it and build on it.",
    Advice.REVERT: "Revert it and try another method.",
    Advice.REVERT_UNMEASURABLE: "Revert it.",
    Advice.KEEP_IF_SIMPLER: "Keep it if it is simpler; it is not measurably better.",
    Advice.REPLICATE_CHANGE: "The gain is inside the noise: replicate the change with another seed first.",
    Advice.REPLICATE_PARENT: "The gain is inside the noise: replicate its parent with another seed first.",
    Advice.REPLICATE_WHEN_QUIET: (
        "Other work shared the device with it or its parent: replicate both when the device is quiet."
    ),
    Advice.USE_LEARNED: "LoopGraph generalised this edit into a recipe; {call} can apply it to later versions.",
    Advice.NAME_METHOD: (
        "It counts for no method: name it with add_method, then replicate it with {call}, and its edit is learned as "
        "that method's recipe."
    ),
    Advice.IGNORE_FILES: (
        "Since {parent} ran the parent, {files} changed, which a run can see; name what no run reads under `ignore` in "
        "loopgraph.toml."
    ),
    Advice.SEND_LOG: (
        "It is recorded as reported and counts little: report it with its log (and commit), or run it: {call}"
    ),
    Advice.RUN_AGAIN: "Nothing was measured; run it again.",
    Advice.FIX_SURROUNDINGS: (
        "Nothing was measured and no method is charged: fix what the reason names, then make the same call again."
    ),
    Advice.NOTHING_LEFT_OUT: "Nothing is left out.",
    Advice.SHOW_MORE: "{call} shows more.",
    Advice.CHOOSE_SOURCE: "{call}",
    Advice.OTHER_FORM: "Give its text another way: a local file of it, or another version.",
    Advice.REGISTER_METHOD: (
        "Register what is new with add_method, citing the passages it was read in, such as {passages}; search_methods "
        "ranks the methods that are known."
    ),
    Advice.FIND_METHODS: "{call} finds methods.",
    Advice.IMPORT_IT: "Leave out --dry-run to import it.",
    Advice.COUNTED: "{call} counts it, at a discount.",
    Advice.BRING_BACK: "It is in no search; {call} with its definition brings it back.",
    Advice.AMEND: "Fix the definition, then {call} again: it makes a new version.",
    Advice.CHECK_PACK: "Read what goes out, set version and license in pack.toml, then check {folder}.",
    Advice.READ_REASONS: "Look at the reasons, or check it against the files it is meant for.",
    Advice.NOTHING: "It is valid.",
    Advice.MAKE_EDIT_FIRST: "{call} makes one and returns its id",
    Advice.MAKE_EDIT_AGAIN: "make it again: {call}",
    Advice.MAKE_PATCH_AGAIN: "make the patch again",
    Advice.START_RUN: "{call} starts one and returns its id",
    Advice.RUN_FILE: "{call} runs the file as it is",
    Advice.LEAVE_OUT: "leave it out, or use the id that {call} returned",
    Advice.WAIT: "wait: {call}",
    Advice.INGEST: "{call} shows the passages of a source with their ids",
    Advice.LINK: "to link the passages to it, {call} without a definition",
}


class _Facts(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "…"


def as_call(step: NextStep) -> str:
    """Return a step's call as a model reads it: the tool with its arguments; those it fills in are `…`."""
    given = (
        f"{name}={'…' if value == '…' else json.dumps(value, ensure_ascii=False)}"
        for name, value in step.arguments.items()
    )
    return f"{step.tool}({', '.join(given)})"


def word(
    step: NextStep, call: Callable[[NextStep], str] = as_call, words: Mapping[Advice, str] = MappingProxyType({})
) -> str:
    """Return a step as one sentence; `words` come before ours, for a reader who does not make calls."""
    template = words.get(step.reason) or WORDS[step.reason]
    return template.format_map(_Facts(plain(step.about), call=call(step)))


def refusal(error: LoopGraphError, word_step: Callable[[NextStep], str] = word) -> str:
    """Return an error's words, with the way on behind its first line."""
    words = said(str(error))
    if error.next_step is None:
        return words
    first, line, rest = words.partition("\n")
    return f"{first}; {word_step(error.next_step)}{line}{rest}"
