"""Proposes how to declare a folder as a workspace: from its scripts, its README, and the log of a first run."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loopgraph_mcp.models import Direction
from loopgraph_mcp.ranking import directions
from loopgraph_mcp.runner.plain_files import read_plain

_MAX_BYTES = 2**18  # of a script or README; a log's end
_MAX_FILES = 200
# How a line of a README or a script starts a program, with the program's file
_STARTS = re.compile(
    r"^\s*(?:\$\s*|>\s*|-\s+)?(?:[A-Z_]+=\S+\s+)*(?P<line>(?:uv\s+run\s+)?"
    r"(?:python3?|torchrun|accelerate\s+launch|node|npx\s+tsx|bun|deno\s+run|julia|ruby|bash|uv\s+run)\s+[^|&;<>#`]+)"
)
_FILE = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)*[\w.-]+\.(?:py|js|mjs|ts|jl|rb|sh))\b")
_MODULE = re.compile(r"\s-m\s+((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)")
_ASIDE = re.compile(
    r"test|setup\.py|prepare|download|dataset|tokenizer|tok_|sample|generate|plot|install|chat|report|cached|config|serve|deploy",
    re.IGNORECASE,
)
# A number that a program prints behind its name, and names that are worth improving
_PRINTED = re.compile(r"([A-Za-z][\w ./@-]{0,40}?)\s*[:=]\s*(?:\$?\{|%|\{\}|[-+]?\d|[\"'],)")
_GOOD = re.compile(
    r"(val|valid|test|eval)\w*[ _-]?(loss|bpb|acc\w*|error|ppl|score)|accuracy|"
    r"(?<![a-z])(?:f1|auc|r?mse|mae|r2)(?![a-z])|"
    r"score|perplexity|bpb|reward|throughput|latency|tokens?[_/ ]per|loss|error|win[_ ]rate|bleu|cost|time_ms",
    re.IGNORECASE,
)
_BEST = re.compile(r"val|test|eval|final|min|best|score", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A declaration of a folder, with where each part of it was read.

    Args:
        pattern: What finds the metric in the log, where its name alone does not.
        known_as: What kind of program it was recognised as; empty for none in particular.
    """

    command: tuple[str, ...]
    editable: str
    metric: str
    direction: Direction
    pattern: str = ""
    known_as: str = ""
    read_in: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()

    def declaration(self, budget_s: float) -> str:
        """Return the loopgraph.toml of it."""
        lines = [
            "[workspace]",
            f"editable = {json.dumps(self.editable)}",
            f"protected = {json.dumps(list(self.protected))}",
            f"command = {json.dumps(list(self.command))}",
            f"metric = {json.dumps(self.metric)}",
            *([f"pattern = {json.dumps(self.pattern)}"] if self.pattern else []),
            f'direction = "{self.direction.value}"',
            f"budget_s = {budget_s:g}",
            'on_win = "apply"  # apply, commit or leave',
        ]
        return "\n".join(lines) + "\n"


def propose(folder: Path) -> Proposal | None:
    """Return what a folder with code seems to want, or None where nothing in it can be run or read."""
    known = _known(folder)
    if known is not None:
        return replace(known, protected=tuple(each for each in known.protected if (folder / each).is_file()))
    started = list(_commands(folder))
    if not started:
        return None
    command, file, where = max(started, key=lambda each: _worth(each[1], each[2]))
    metric, seen = _metric(folder, file)
    if _ASIDE.search(file) or not metric:
        return None
    direction = directions.named(metric)
    return Proposal(
        command,
        file,
        metric,
        Direction.LOWER if direction is None else direction.direction,
        _pattern(metric),
        read_in=tuple(dict.fromkeys(each for each in (where, seen) if each)),
    )


def _known(folder: Path) -> Proposal | None:
    """Return the declaration of a checkout that people have many of."""
    if (folder / "nanochat" / "gpt.py").is_file() and (folder / "scripts" / "base_train.py").is_file():
        return Proposal(
            ("{python}", "-m", "scripts.base_train", "--run", "dummy"),
            "nanochat/gpt.py",
            "val_bpb",
            Direction.LOWER,
            r"[Vv]alidation bpb: ([0-9.]+)",
            "nanochat",
            ("scripts/base_train.py",),
            ("nanochat/loss_eval.py", "nanochat/dataloader.py", "nanochat/tokenizer.py"),
        )
    train = _text(folder / "train.py")
    if (folder / "model.py").is_file() and "configurator.py" in train:
        return Proposal(
            ("{python}", "train.py"),
            "model.py",
            "val_loss",
            Direction.LOWER,
            r"val loss ([0-9.]+)",
            "nanoGPT",
            ("train.py",),
            ("configurator.py",),
        )
    if (folder / "train_gpt.py").is_file():
        made = next(((c, f, w) for c, f, w in _commands(folder) if f == "train_gpt.py"), None)
        command = made[0] if made else ("torchrun", "--standalone", "--nproc_per_node=1", "train_gpt.py")
        return Proposal(
            command,
            "train_gpt.py",
            "val_loss",
            Direction.LOWER,
            r"val_loss:\s*([0-9.]+)",
            "modded-nanogpt",
            (made[2] if made else "train_gpt.py",),
        )
    return None


def _commands(folder: Path) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield the commands that a folder's README, scripts and package.json hold, with the file each runs."""
    texts = [*sorted(folder.glob("README*")), *sorted(folder.glob("*.md")), *sorted(folder.glob("*.sh"))]
    for place in [*dict.fromkeys(texts), folder / "Makefile"]:
        for line in _text(place).splitlines():
            if (match := _STARTS.match(line)) is not None:
                yield from _command(folder, match.group("line"), place.name)
    try:
        scripts = json.loads(_text(folder / "package.json") or "{}").get("scripts", {})
    except (ValueError, AttributeError, RecursionError):
        scripts = {}
    for name, line in scripts.items() if isinstance(scripts, dict) else ():
        if isinstance(line, str):
            yield from _command(folder, line, f"package.json ({name})")
    for file in sorted(folder.iterdir())[:_MAX_FILES]:
        runner = {".py": "{python}", ".js": "node", ".mjs": "node", ".jl": "julia", ".rb": "ruby"}.get(file.suffix)
        if runner and file.is_file() and not _ASIDE.search(file.name):
            yield (runner, file.name), file.name, ""
    sources = [each for each in sorted(folder.iterdir())[:_MAX_FILES] if each.suffix in {".cpp", ".cc", ".c"}]
    if sources and (folder / "Makefile").is_file():
        made = re.search(r"-o\s+([\w.-]+)", _text(folder / "Makefile"))
        yield ("bash", "-c", f"make -s && ./{made.group(1) if made else 'main'}"), sources[0].name, "Makefile"


def _command(folder: Path, line: str, where: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
    found = [each for each in _FILE.findall(line) if (folder / each).is_file()]
    found += [each.replace(".", "/") + ".py" for each in _MODULE.findall(line)]
    found = [each for each in found if (folder / each).is_file()]
    if not found:
        return
    try:
        parts = shlex.split(line.strip())
    except ValueError:
        return
    if parts[0] in {"python", "python3"}:
        parts[0] = "{python}"
    yield tuple(parts), found[0], where


def _worth(file: str, where: str) -> tuple[bool, bool, bool, bool]:
    name = file.rpartition("/")[2]
    trains = re.search(r"train|main|run|bench|eval|solve|optimi[sz]e", name, re.IGNORECASE) is not None
    return not _ASIDE.search(name), trains, bool(where), not name.endswith(".sh")


def _metric(folder: Path, file: str) -> tuple[str, str]:
    """Return the metric that a program prints, and where its name was read: a log of a run counts before the code."""
    logs = sorted((each for each in folder.glob("*.log") if each.is_file()), key=lambda each: each.stat().st_mtime)
    for place in [*reversed(logs), folder / file]:
        named = [match.group(1).strip(" -|./") for match in _PRINTED.finditer(_text(place))]
        named = [each for each in named if _GOOD.search(each)]
        if named:
            return max(named, key=lambda each: (bool(_BEST.search(each)), -len(each))), place.name
    return "", ""


def _pattern(metric: str) -> str:
    """Return what finds a metric whose name is several words; one word is found by itself."""
    if re.fullmatch(r"\w+", metric):
        return ""
    return rf"{re.escape(metric)}\s*[:=]\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"


def _text(path: Path) -> str:
    """Return the end of a text that may be there."""
    try:
        return read_plain(path).decode("utf-8", "replace")[-_MAX_BYTES:] if path.is_file() else ""
    except OSError:
        return ""
