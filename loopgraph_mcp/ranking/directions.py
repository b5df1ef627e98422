"""Finds which way a metric improves: as a file declares, as its kept rows show, or as the metric's name says; pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from loopgraph_mcp.models import Direction
from loopgraph_mcp.text import compile_later


class Origin(StrEnum):
    """Where a direction comes from, strongest first."""

    GIVEN = "given"
    DECLARED = "declared in the file"
    WORKSPACE = "the workspace's"
    KEPT = "shown by the kept rows"
    NAME = "from its name"
    DEFAULT = "nothing says which way it improves"


@dataclass(frozen=True, slots=True)
class KeptSteps:
    """How a history's kept rows moved its metric: line, value of the kept row before it, value."""

    steps: tuple[tuple[int, float, float], ...] = ()

    @property
    def shown(self) -> Direction | None:
        """The direction in which most of them went, or None."""
        for direction in Direction:
            if 2 * len(self.worse(other(direction))) > len(self.steps):
                return direction
        return None

    def worse(self, direction: Direction) -> list[tuple[int, float, float]]:
        """Return the steps that would be for the worse in a direction."""
        return [step for step in self.steps if direction.gain(step[1], step[2]) < 0]


@dataclass(frozen=True, slots=True)
class Named:
    """What a metric's name says of its direction; `sure` where no metric of that name improves the other way."""

    direction: Direction
    sure: bool


# ---------------------------------------------------------------------------------------------------- names

_UNITS_OF_WORK = (
    "tok|toks|token|tokens|it|its|iter|iters|iterations|img|imgs|image|images|sample|samples|step|steps|req|reqs|request|"
    "requests|query|queries|frame|frames|seq|seqs|sequences?|example|examples|batch|batches|op|ops|row|rows|item|items|"
    "word|words|char|chars|byte|bytes|kb|mb|gb|kib|mib|gib|flop|flops|game|games|episodes?|updates?|examples"
)
_TIMES = "s|sec|secs|second|seconds|min|mins|minute|minutes|h|hr|hour|hours|day|ms|us|ns"
_WORK_PER_TIME = compile_later(
    rf"(?:^|[^a-z])(?:{_UNITS_OF_WORK})(?:[^a-z0-9]+(?:per[^a-z0-9]*)?|per)(?:{_TIMES})(?:$|[^a-z])"
)
_TIME_PER_WORK = compile_later(
    rf"(?:^|[^a-z])(?:{_TIMES}|time)[^a-z0-9]*(?:per|/)[^a-z0-9]*(?:{_UNITS_OF_WORK})(?:$|[^a-z])"
)
# fmt: off
_HIGHER = frozenset({
    "throughput", "goodput", "qps", "rps", "tps", "fps", "iops", "bandwidth", "speedup", "speed", "mfu", "hfu",
    "utilization", "utilisation", "r2", "rsquared", "ndcg", "map", "map50", "map95", "mrr", "auc", "auroc", "roc",
    "auprc", "prauc", "ap", "f1", "f2", "fbeta", "macrof1", "microf1", "bleu", "sacrebleu", "rouge", "rouge1",
    "rouge2", "rougel", "meteor", "chrf", "recall", "precision", "accuracy", "acc", "accuracies", "top1", "top5",
    "iou", "miou", "giou", "dice", "jaccard", "kappa", "mcc", "spearman", "pearson", "kendall", "correlation",
    "corr", "psnr", "ssim", "snr", "sdr", "elo", "winrate", "win", "wins", "hit", "hits", "pass", "passed",
    "passes", "success", "successes", "solved", "reward", "rewards", "sharpe", "likelihood", "tflops", "gflops",
    "coverage", "similarity", "lift", "profit", "revenue", "sensitivity", "specificity", "saved", "savings",
    "reduction", "improvement", "acceptance", "accepted", "match", "em", "explained",
})
_LOWER = frozenset({
    "loss", "losses", "bpb", "bpc", "bpt", "bpp", "ppl", "perplexity", "err", "error", "errors", "wer", "cer",
    "ter", "mer", "rmse", "mse", "mae", "mape", "smape", "rmsle", "nll", "ce", "xent", "crossentropy", "entropy",
    "brier", "logloss", "ece", "latency", "delay", "time", "ms", "us", "ns", "s", "sec", "secs", "second",
    "seconds", "minutes", "duration", "runtime", "elapsed", "wallclock", "memory", "mem", "vram", "ram", "bytes",
    "size", "fid", "kid", "lpips", "fpr", "fnr", "eer", "regret", "cost", "costs", "price", "energy", "power",
    "watts", "joules", "violations", "failures", "failed", "fail", "failing", "bugs", "warnings", "mistakes",
    "distance", "divergence", "kl", "drawdown", "miss", "misses", "p50", "p90", "p95", "p99", "ttft", "tpot",
    "itl", "crps", "deviation", "overhead", "residual", "toxicity",
})
_MOSTLY_HIGHER = frozenset({
    "score", "scores", "fitness", "quality", "rating", "points", "return", "returns", "utility",
})
_UNITS = frozenset({
    "s", "sec", "secs", "ms", "us", "ns", "min", "bytes",
})  # that another word may be measured in
# fmt: on
_TURNED = frozenset({"neg", "negative", "minus", "inverse", "inv"})


def named(metric: str) -> Named | None:
    """Return what a metric's name says; of several telling words, the last one is what it measures."""
    name = re.sub(r"(?<=[a-z\d])(?=[A-Z][a-z])", "_", metric[:200]).casefold()
    if _TIME_PER_WORK.search(name):
        return Named(Direction.LOWER, sure=True)
    if _WORK_PER_TIME.search(name):
        return Named(Direction.HIGHER, sure=True)
    words = re.findall(r"[a-z]+\d*", name)
    telling = [word for word in words if word in _HIGHER or word in _LOWER or word in _MOSTLY_HIGHER]
    telling = [word for word in telling if word not in _UNITS] or telling
    if not telling:
        return None
    last = telling[-1]
    ways = {word in _LOWER for word in telling}
    direction = Direction.LOWER if last in _LOWER else Direction.HIGHER
    if words[:2] == ["time", "to"]:
        direction = Direction.LOWER
    if _TURNED & set(words):
        direction = other(direction)
    return Named(direction, sure=len(ways) == 1 and last not in _MOSTLY_HIGHER)


def other(direction: Direction) -> Direction:
    """Return the opposite direction."""
    return Direction.LOWER if direction is Direction.HIGHER else Direction.HIGHER


# ---------------------------------------------------------------------------------------------- declarations

_UP, _DOWN = (
    r"high(?:er|est)?|max(?:imi[sz](?:e|ed|ing|ation)|imum)?",
    r"low(?:er|est)?|min(?:imi[sz](?:e|ed|ing|ation)|imum)?",
)
_KEY = (
    r"(?:(?:metric|best|optimi[sz]ation|objective|study|metric[_ -]?name)[_ -]?)?"
    r"(?:direction|directions|goal|objective|optimi[sz]e|optimi[sz]ation|mode|better|improves)"
)
_FLAGS = {
    **dict.fromkeys(
        ("higherisbetter", "greaterisbetter", "biggerisbetter", "largerisbetter", "maximize", "maximise"), True
    ),
    **dict.fromkeys(("lowerisbetter", "smallerisbetter", "lessisbetter", "minimize", "minimise"), False),
}
DIRECTION_KEYS = frozenset(
    {"direction", "metricdirection", "bestdirection", "optimizationdirection", "objectivedirection", "studydirection"}
    | {"directions", "better", "goal", "metricgoal", "optimize", "optimise", *_FLAGS}
)
_KEYED = compile_later(
    rf"(?<![a-z]){_KEY}[\"'\])]*\s*(?:\([^()]{{0,60}}\)\s*)?(?:[:=]|\bis\b)\s*[\[\"'(]*(?:studydirection\.)?(?:(?P<up>{_UP})|(?P<down>{_DOWN}))(?![a-z])"
)
_IS_BETTER = compile_later(
    r"(?:(?P<up>higher|bigger|larger|greater|more|maximum)|(?P<down>lower|smaller|less|fewer|minimum))[ _-]"
    r"(?:values? )?(?:is|are)[ _-](?:the[ _-])?better(?P<no>[\"']?\s*[:=]\s*[\"']?(?:false|no|0)\b)?"
)
_FLAGGED = compile_later(
    r"(?<![a-z])(?:(?P<up>maximi[sz]e)|(?P<down>minimi[sz]e))[\"']?\s*[:=]\s*[\"']?(?:(?P<yes>true|yes|1\b)|false|no\b|0\b)"
)
_MAX_COMMENT = 500


def declared_in(line: str) -> Direction | None:
    """Return the direction that a comment or a line of settings declares."""
    text = line[:_MAX_COMMENT].casefold()
    if (keyed := _KEYED.search(text)) is not None:
        return Direction.HIGHER if keyed["up"] else Direction.LOWER
    if (words := _IS_BETTER.search(text)) is not None:
        way = Direction.HIGHER if words["up"] else Direction.LOWER
        return other(way) if words["no"] else way
    if (flag := _FLAGGED.search(text)) is not None:
        way = Direction.HIGHER if flag["up"] else Direction.LOWER
        return way if flag["yes"] else other(way)
    return None


def declared_by(key: str, value: str) -> Direction | None:
    """Return the direction that a setting or a cell declares, such as `direction` and `MAXIMIZE`."""
    name = re.sub(r"[^a-z]", "", key[:100].casefold().rsplit(".", 1)[-1])
    said = re.sub(r"[^a-z\d]", "", value[:100].casefold().rsplit(".", 1)[-1])
    if name in _FLAGS:
        if said in {"true", "yes", "1", "10", "y", "t"}:
            return Direction.HIGHER if _FLAGS[name] else Direction.LOWER
        if said in {"false", "no", "0", "00", "n", "f"}:
            return Direction.LOWER if _FLAGS[name] else Direction.HIGHER
        return None
    if name not in DIRECTION_KEYS:
        return None
    said = said.removesuffix("isbetter").removesuffix("better")
    if re.fullmatch(_UP, said):
        return Direction.HIGHER
    return Direction.LOWER if re.fullmatch(_DOWN, said) else None


def agreed(values: Iterable[Direction | None]) -> Direction | None:
    """Return the one direction that all values say, or None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


_MARKED = compile_later(
    r"\s*[\[(]?\s*(?:(?P<up>[\u2191\u25b2\u2b06]|(?:higher|max\w*)(?: is better)?)"
    r"|(?P<down>[\u2193\u25bc\u2b07]|(?:lower|min\w*)(?: is better)?))\ufe0f?\s*[\])]?\s*$"
)


def marked(column: str) -> tuple[str, Direction | None]:
    """Return a column's name and the direction that it is marked with: `acc ↑`, `loss (lower is better)`."""
    found = _MARKED.search(column[:200].casefold())
    bare = found is not None and (found[0].strip()[:1] in "[(" or not found[0].strip()[:1].isalpha())
    if found is None or not bare or not found.start():
        return column, None
    return column[: found.start()], Direction.HIGHER if found["up"] else Direction.LOWER
