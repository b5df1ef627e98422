"""Says what the columns of a table of experiments hold, by their names and by what is in their cells; pure."""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from loopgraph_mcp.code import programs
from loopgraph_mcp.ingest.cells import as_text, column_name, flatten
from loopgraph_mcp.ranking.directions import DIRECTION_KEYS, named
from loopgraph_mcp.ranking.knobs import ANY
from loopgraph_mcp.text import compile_later

MAX_COLUMNS = 4_096
_SLASHES = 2  # of a path
SAMPLE = 200  # cells that show what a column holds

# Names of columns by what they mean, the best first.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "commit": (
        "commit", "commit_hash", "git_commit", "git_sha", "sha", "hash", "revision", "tags.mlflow.source.git.commit",
    ),
    "status": ("decision", "verdict", "kept", "keep", "accepted", "status", "outcome", "result"),
    "state": ("state", "run_state", "trial_state", "info.status", "success", "succeeded"),
    "description": (
        "description", "desc", "change", "hypothesis", "modification", "idea", "what", "experiment", "summary",
        "message", "title", "approach", "notes", "note", "comment", "comments", "variant", "name", "run_name",
        "tags.mlflow.note.content", "tags.mlflow.runname", "info.run_name", "tag", "tags", "config_name",
    ),
    "memory_gb": ("memory_gb", "peak_memory_gb", "peak_vram_gb", "vram_gb", "mem_gb", "memory", "mem"),
    "memory_mb": ("memory_mb", "peak_memory_mb", "peak_vram_mb", "vram_mb"),
    "order": (
        "number", "trial_number", "trial_id", "trial", "_timestamp", "created", "created_at", "createdat", "start_time",
        "info.start_time", "datetime_start", "started_at",
    ),
}  # fmt: skip
METRICS = (
    "val_bpb", "bpb", "val/bpb", "val_loss", "val/loss", "eval_loss", "eval/loss", "validation_loss", "loss", "metric",
    "score", "val_accuracy", "val_acc", "accuracy", "acc", "objective_value", "objective", "value", "values_0",
)  # fmt: skip
_METRIC_PREFIXES = ("metrics.", "summary.", "summary_metrics.", "data.metrics.", "val_", "metrics/", "metric.")
_PARAMETER_PREFIX = compile_later(
    r"(?:config|params?|hparams?|hp|hyper_?param(?:eter)?s|args|data\.params)[./](?=.)|(?:params|param|hparam|hp)_(?=.)"
)
# Columns beside a metric: ids, times, counts, what is known of a run and no result of it.
_BESIDE = compile_later(
    r"#|_?(?:id|idx|index|no|num|order|exp|run|iter\w*|step\w*|date\w*|time|timestamp|runtime|relative_time\w*)|created\w*"
    r"|unnamed:?_\d+|updated\w*|duration\w*|elapsed\w*|wall\w*|(?:train(?:ing)?|total|run)_?(?:time\w*|seconds|secs?|s|minutes|min)"
    r"|\w*(?:_id|_hash|_at|_uuid)|datetime\w*|start\w*|end\w*|finish\w*|epochs?|trial\w*|number|rank|seed|mfu\w*|params\w*"
    r"|num_params\w*|n_params\w*|branch|agent|author|model|user\w*|tags?|sweep|group|host\w*|project|entity|delta\w*|gain|diff"
    r"|change|best\w*|confidence|segment|tokens(?:_m|_total)?|total_tokens\w*|cost\w*|guard|worker|tags\..*|info\..*"
    r"|system_attrs\w*|user_attrs\w*|system/.*|_wandb.*|parent\w*|base\w*|lifecycle_stage|artifact_uri|vram\w*|memory\w*|peak_\w*"
)
_PARAMETER = compile_later(
    r"(?:.*[_./])?(?:lr|learning_?rate|optimi[sz]er|scheduler|schedule|batch\w*|bs|dropout|decay|wd|momentum|betas?|beta[12_]*|eps"
    r"|epsilon|warm_?up\w*|layers?|depth|heads?|dim|width|hidden\w*|embd?|units|activation|norm|init|clip\w*|max_depth|n_estimators"
    r"|num_leaves|subsample|colsample\w*|gamma|alpha|lambda|reg_\w+|kernel\w*|temperature|top_[pk]|seq_?len\w*|block_size|rank"
    r"|precision|dtype|loss_fn|architecture|arch|backbone|augment\w*|num_boost\w*|min_child\w*|tree_method|grad_accum\w*)"
)
# Parameters that say where and under which name a run was made.
_OF_RUN = compile_later(
    r"(?:.*[._])?(?:(?:run|exp|experiment|project|group|job)_?(?:name|id)|\w*(?:dir|path|file|folder|url|uri)|notes?"
    r"|host\w*|user\w*|timestamp|date|time|git\w*|commit|wandb\w*|num_workers|logging\w*|verbose|resume|tags?"
    r"|log_(?:every|freq|interval|steps|level)\w*)|_.*"
)
_TRACKER_STATE = ("state", "run_state", "trial_state", "info.status")


class Kind(StrEnum):
    """What most cells of a column hold."""

    EMPTY = "empty"
    NUMBER = "numbers"
    ID = "ids"
    PATH = "paths"
    TIME = "times"
    WORDS = "words"


_IS_NUMBER = compile_later(
    r"[~<>=+-]*\s*[\d.,]+(?:e[-+]?\d+)?\s*(?:%|[kmgb]|[a-z]{1,3}/s|ms|s)?|[-+]?(?:nan|inf(?:inity)?)", re.IGNORECASE
)
_IS_ID = compile_later(
    r"[0-9a-f]{7,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=[a-z]*\d)[a-z0-9]{8}"
    r"|[a-z]{0,12}[-_#]?\d{1,12}[a-z]?|[a-z]{2,16}-[a-z]{2,16}-\d{1,5}|-",
    re.IGNORECASE,
)
_IS_TIME = compile_later(
    r"\d{4}-\d\d?-\d\d?(?:[t ].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}.*|(?:\d+ days?,? ?)?\d{1,3}:\d\d(?::\d\d.*)?"
    r"|(?:\d+ ?(?:d|h|m|min|s|sec|days?|hours?|minutes?|seconds?)\b[ ,]*){1,4}(?:ago)?",
    re.IGNORECASE,
)


def kind_of(cells: Iterable[str]) -> Kind:
    """Return what most of a column's cells hold."""
    found = dict.fromkeys(Kind, 0)
    for cell in cells:
        text = cell[:300].strip().strip("`*\"'")
        if not text:
            continue
        found[_kind(text)] += 1
        if sum(found.values()) >= SAMPLE:
            break
    most = max(found, key=lambda kind: found[kind])
    return most if found[most] else Kind.EMPTY


def _kind(text: str) -> Kind:
    for kind, pattern in ((Kind.NUMBER, _IS_NUMBER), (Kind.TIME, _IS_TIME), (Kind.ID, _IS_ID)):
        if pattern.fullmatch(text):
            return kind
    if " " not in text and (text.startswith(("/", "~/", "./", "../")) or "://" in text or text.count("/") >= _SLASHES):
        return Kind.PATH
    return Kind.WORDS if re.search(r"[^\W\d_]", text) else Kind.ID


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a table means what, by its place.

    Args:
        parameters: What the runs were configured with, by its short name.
        directions: Columns that may declare which way the metric improves.
        is_tracker: Whether a tracker wrote it: its states say how runs ended, not what was decided.
    """

    names: tuple[str, ...]
    metric: int
    places: Mapping[str, int]
    parameters: Mapping[int, str]
    directions: tuple[int, ...] = ()
    is_tracker: bool = False


def is_usual(name: str) -> bool:
    """Return whether a column is named like one of a table of experiments."""
    return any(name in known for known in _NAMES.values())


def metric_column(names: Sequence[str], wanted: str | None) -> int | None:
    """Return the place of the metric that is wanted, or else of the usual one."""
    if wanted is not None:
        name = column_name(wanted)
        forms = (name, *(prefix + name for prefix in _METRIC_PREFIXES[:4]))
        return next((names.index(form) for form in forms if form in names), None)
    for known in METRICS:
        for form in (known, *(prefix + known for prefix in _METRIC_PREFIXES)):
            if form in names:
                return names.index(form)
    return None


def metric_name(column: str) -> str:
    """Return a metric's name without what a tracker's export puts before it."""
    prefix = next((each for each in _METRIC_PREFIXES if each != "val_" and column.startswith(each)), "")
    return column.removeprefix(prefix)


def candidates(names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns that may be the metric of a table that has none of a usual name."""
    found = [
        name
        for name, cells in zip(names, columns, strict=True)
        if name
        and not is_usual(name)
        and not _BESIDE.fullmatch(name)
        and not _PARAMETER_PREFIX.match(name)
        and kind_of(cells) in {Kind.NUMBER, Kind.EMPTY}
    ]
    unlike_parameters = [name for name in found if not _PARAMETER.fullmatch(name) or named(name) is not None]
    telling = [name for name in unlike_parameters if named(name) is not None]
    return telling if len(telling) == 1 else unlike_parameters


def understand(names: Sequence[str], columns: Sequence[Sequence[str]], metric: int) -> Columns:
    """Return what the columns of a table mean.

    Args:
        names: The columns' names, as `cells.column_name` gives them.
        columns: The columns' first cells.
        metric: The place of the metric.
    """
    kinds = [kind_of(cells) for cells in columns]
    places: dict[str, int] = {}
    for meaning in _NAMES:
        free = {name: at for at, name in reversed(list(enumerate(names))) if at != metric and at not in places.values()}
        found = [free[name] for name in _NAMES[meaning] if name in free]
        if (chosen := _chosen(meaning, found, kinds, names)) is not None:
            places[meaning] = chosen
    taken = {metric, *places.values()}
    directions = tuple(
        at for at, name in enumerate(names) if at not in taken and re.sub(r"[^a-z]", "", name) in DIRECTION_KEYS
    )
    is_tracker = any(name in names for name in _TRACKER_STATE) or any(map(_PARAMETER_PREFIX.match, names))
    free_places = [at for at in range(len(names)) if at not in taken and at not in directions]
    parameters = {
        at: _short(names[at])
        for at in free_places
        if _PARAMETER_PREFIX.match(names[at])
        and kinds[at] not in {Kind.PATH, Kind.TIME, Kind.EMPTY}
        and not _OF_RUN.fullmatch(_short(names[at]))
    }
    if not parameters:
        loose = is_tracker or "description" not in places
        parameters = {
            at: names[at] for at in free_places if _is_parameter(names[at], kinds[at], columns[at], loose=loose)
        }
    if "description" not in places:
        other = [
            at for at in free_places if at not in parameters and kinds[at] is Kind.WORDS and _is_prose(columns[at])
        ]
        if other and not parameters:
            places["description"] = other[0]
    return Columns(tuple(names), metric, places, parameters, directions, is_tracker)


def _chosen(meaning: str, found: Sequence[int], kinds: Sequence[Kind], names: Sequence[str]) -> int | None:
    """Return which of the columns of a name for a meaning also holds what it means."""
    if meaning == "description":
        words = [at for at in found if kinds[at] is Kind.WORDS]
        named_so = [at for at in found if names[at] == "description"]  # there is no doubt of what it is meant to be
        return next(iter([*words, *named_so]), None)
    if meaning == "status":
        flags = {"kept", "keep", "accepted"}
        found = [at for at in found if kinds[at] is not Kind.NUMBER or names[at] in flags]
    return next(iter(found), None)


def _short(name: str) -> str:
    """Return a parameter's name without what says that it is one."""
    return _PARAMETER_PREFIX.sub("", name, count=1)


def _is_parameter(name: str, kind: Kind, cells: Sequence[str], *, loose: bool) -> bool:
    """Return whether a column of no telling prefix holds what runs were configured with, and no result of theirs."""
    if not name or kind in {Kind.EMPTY, Kind.TIME, Kind.PATH} or is_usual(name):
        return False
    if name == "seed" or (_PARAMETER.fullmatch(name) and "loss" not in name and name != "rank"):
        return True
    if _BESIDE.fullmatch(name) or named(name) is not None:
        return False
    if _is_knob(name):
        return True
    filled = [cell for cell in cells if cell.strip()]
    return loose and not _is_prose(cells) and 1 < len(set(filled)) <= len(filled) / 2


def _is_knob(name: str) -> bool:
    found = re.search(ANY, name.replace("_", " "))
    return found is not None and len(found[0]) >= len(name) / 2


def _is_prose(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell.strip()]
    return bool(filled) and sum(len(cell.split()) > 2 for cell in filled) > len(filled) / 2


# ------------------------------------------------------------------------------------------------ nested cells

_MAX_NESTED = 50_000
_NOT_A_NUMBER = compile_later(r"(?<=[:\[ ,])nan(?=[,}\] ])")


def nested_in(columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the columns whose cells hold objects."""
    return [at for at, cells in enumerate(columns) if _holds_objects(cells)]


def _holds_objects(cells: Sequence[str]) -> bool:
    filled = [cell.strip() for cell in cells if cell.strip()]
    return bool(filled) and all(cell[0] == "{" and cell[-1] == "}" for cell in filled)


def read_object(cell: str) -> Mapping[str, Any]:
    """Return the object that a cell holds, as JSON or as Python prints one; an empty one where it cannot be read."""
    text = cell.strip()[:_MAX_NESTED]
    if text.endswith("}") and "'" in text:
        text = _NOT_A_NUMBER.sub("None", text)
    for read in (json.loads, _literal):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def _literal(text: str) -> object:
    return ast.literal_eval(programs.parse(text, "eval"))


def unnest(name: str, cell: str) -> Iterator[tuple[str, str]]:
    """Yield the values of a cell that holds an object, named as tracker exports name their columns."""
    for key, value in flatten({name: read_object(cell)}):
        yield column_name(key), as_text(value)
