"""Finds training devices without importing torch; a run gets only those that its user allows."""

import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loopgraph_mcp.errors import ConfigError, WorkspaceError
from loopgraph_mcp.runner.environment import for_probe

_PROBE_TIMEOUT_S = 10  # nvidia-smi takes seconds without persistence mode
_UUID = re.compile(r"(?:GPU|MIG)-[\w./-]{1,120}", re.ASCII)
_INDEX = re.compile(r"\d{1,4}", re.ASCII)
_NO_FILE_NAME = re.compile(r"[^\w.-]")
_CARD = re.compile(r"GPU \d+: (?P<name>.+?) \(UUID: ")
_SLICE = re.compile(r"\s+(?P<name>MIG \S+)\s+Device\s+\d+: \(UUID: (?P<uuid>[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Device:
    """What a run trains on: the CPU, or one or several GPUs.

    Args:
        kind: `cuda`, `mps` or `cpu`.
        ids: Its indices or UUIDs, as CUDA_VISIBLE_DEVICES names them.
        name: What its makers call it, with its number where there are several.
        cards: The same by the index that nvidia-smi shows, where it knows them: one card is one, however it is named.
        uuid: Of one GPU, where nvidia-smi shows it.
    """

    kind: str
    ids: tuple[str, ...]
    name: str
    cards: tuple[str, ...] = ()
    uuid: str = ""

    @property
    def label(self) -> str:
        """What makes two devices equal for a comparison: kind, name and number, not which of several equal ones."""
        return f"{self.kind}: {self.name}"

    @property
    def slot(self) -> str:
        """The queue that its runs wait in; `device_at` makes a device of it again."""
        return f"{self.kind}-{'+'.join(self.ids)}"

    @property
    def locks(self) -> tuple[str, ...]:
        """The locks that a run holds while it has it, one for each card, in the order in which all take them."""
        return tuple(sorted({f"{self.kind}-{_NO_FILE_NAME.sub('_', card)}" for card in self.cards or self.ids}))

    def environment(self) -> dict[str, str]:
        """Variables that show a training process this device alone."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.ids) if self.kind == "cuda" else ""}


@cache
def find_devices() -> tuple[Device, ...]:
    """Return the devices of this machine, the fastest kind first; the CPU is always among them."""
    gpus = parse_gpus(command_output("nvidia-smi", "--query-gpu=index,name,uuid", "--format=csv,noheader"))
    return (*gpus, *_apple(), Device("cpu", ("0",), _cpu_name()))


def choose_device(wanted: str | None, visible_gpus: Collection[str] | None = None, count: int | None = None) -> Device:
    """Return what a run gets: the device that is named, or the first ones that the user has given.

    Args:
        wanted: `cpu`, `mps`, `cuda`, `cuda:N`, several as `cuda:2,3`, a UUID as `cuda:GPU-…`, or `all` GPUs given.
        visible_gpus: Indices or UUIDs of the GPUs that may be used (CUDA_VISIBLE_DEVICES); None for all.
        count: GPUs that one run gets (`devices_per_run`); None for what `wanted` names, else for all that
            CUDA_VISIBLE_DEVICES lists, else for one.

    Raises:
        ConfigError: There is no such device, or it is hidden.
        WorkspaceError: There are fewer than a run of this workspace gets.
    """
    listed = [each.ids[0] for each in find_devices() if each.kind == "cuda"]
    given = _each_once(listed if visible_gpus is None else visible_gpus)
    wanted = (wanted or "").strip()
    kind, _, names = (wanted or ("cuda" if given else "")).partition(":")
    kind = kind.lower()
    if kind in {"cuda", "all"} and not (kind == "all" and names):
        pool = _named(names, given, wanted, visible_gpus) if names else given
        if not pool:
            raise ConfigError(_no_device(wanted, visible_gpus))
        listed_all = visible_gpus is not None and not wanted  # handed on as the user wrote it
        several = len(pool) if names or kind == "all" or listed_all else 1
        return _some(pool, several if count is None else count)
    others = [each for each in find_devices() if each.kind != "cuda" and (not kind or each.kind == kind)]
    if not others or names not in {"", *others[0].ids}:
        raise ConfigError(_no_device(wanted, visible_gpus))
    if count is not None and count > 1:
        _some((), count)
    return others[0]


def device_at(slot: str) -> Device:
    """Return the device of a slot, in any process: what is known of it, and the ids that it was given by."""
    kind, _, ids = slot.partition("-")
    if kind == "cuda":
        return _gpus(ids.split("+"))
    return next((each for each in find_devices() if each.slot == slot), Device(kind, (ids,), ids))


def slots_beside(slot: str, others: Iterable[str]) -> list[str]:
    """Return the slots whose runs wait for one another: those that share a card with it, or with one that does."""
    cards = {each: frozenset(device_at(each).locks) for each in {slot, *others}}
    found, reached = {slot}, cards[slot]
    while more := {each for each in cards.keys() - found if reached & cards[each]}:
        found |= more
        reached = reached.union(*(cards[each] for each in more))
    return sorted(found)


# ---------------------------------------------------------------------------------------------- choosing


def _named(names: str, given: Sequence[str], wanted: str, visible_gpus: Collection[str] | None) -> tuple[str, ...]:
    """Return the GPUs that are named, each as CUDA_VISIBLE_DEVICES names it where that is set."""
    found = list[str]()
    for name in (each.strip() for each in names.split(",")):
        same = [each for each in given if _is_same(each, name)]
        if same:
            found.append(name if visible_gpus is None else same[0])
        elif visible_gpus is None and _UUID.fullmatch(name):
            found.append(name)  # nvidia-smi may show no UUIDs, and CUDA knows its own
        else:
            raise ConfigError(_no_device(wanted, visible_gpus))
    return _each_once(found)


def _each_once(ids: Iterable[str]) -> tuple[str, ...]:
    """Return ids without those of a card that an earlier one names: two locks of one card are never free together."""
    found = dict[tuple[str, ...], str]()
    for each in ids:
        found.setdefault(_gpus([each]).locks, each)
    return tuple(found.values())


def _is_same(given: str, name: str) -> bool:
    """Return whether two ids are of one card, a shortened UUID being one too."""
    shortened = _UUID.fullmatch(name) is not None and given.startswith(name)
    return shortened or _gpus([given]).locks == _gpus([name]).locks


def _some(pool: Sequence[str], count: int) -> Device:
    if len(pool) < count:
        have = f"only GPU {', '.join(pool)}" if pool else "no GPU"
        raise WorkspaceError(
            f"devices_per_run is {count}, but a run can get {have}; lower devices_per_run in loopgraph.toml, "
            "or provide more GPUs by CUDA_VISIBLE_DEVICES and LOOPGRAPH_DEVICE"
        )
    return _gpus(pool[:count])


def _no_device(wanted: str, visible_gpus: Collection[str] | None) -> str:
    have = ", ".join(f"{each.kind}:{each.ids[0]}" for each in find_devices())
    if visible_gpus is not None and wanted.strip().lower().startswith(("cuda", "all")):
        return (
            f"LOOPGRAPH_DEVICE is {wanted!r} and CUDA_VISIBLE_DEVICES is {','.join(visible_gpus)!r}, which hides it; "
            "change one of them"
        )
    return f"no device {wanted!r} on this machine; it has {have} (LOOPGRAPH_DEVICE names one)"


def _gpus(ids: Sequence[str]) -> Device:
    """Return GPUs as one device: their names where nvidia-smi knows them."""
    cards = [_card(each) for each in ids]
    names = list(dict.fromkeys(card.name for card in cards))
    number = f" x{len(cards)}" if len(cards) > 1 and len(names) == 1 else ""
    name = " + ".join(card.name for card in cards) if len(names) > 1 else f"{names[0]}{number}"
    return Device("cuda", tuple(ids), name, tuple(card.cards[0] for card in cards))


def _card(identity: str) -> Device:
    """Return the one card, or slice of a card, that an index or UUID names; of an unknown one, its id is all."""
    known = [each for each in find_devices() if each.kind == "cuda"]
    alike = [each for each in known if identity in each.ids]
    if not alike and identity.startswith("GPU-"):
        alike = [each for each in known if each.uuid.casefold().startswith(identity.casefold())]
    if len(alike) == 1:
        return alike[0]
    if identity.startswith("MIG-"):
        slices = {uuid: name for uuid, name in _slices(tuple(known)) if uuid.startswith(identity)}
        if len(slices) == 1:
            (uuid, name), *_ = slices.items()
            return Device("cuda", (identity,), name, (uuid,))
    name = f"GPU {identity}" if identity.isdigit() else identity
    return Device("cuda", (identity,), name, (identity,))


# ---------------------------------------------------------------------------------------------- probing


def parse_gpus(printed: str) -> list[Device]:
    """Read what nvidia-smi prints for `index,name,uuid`; older ones print no UUID."""
    found = list[Device]()
    for line in printed.splitlines():
        index, _, rest = (part.strip() for part in line.partition(","))
        name, _, uuid = (part.strip() for part in rest.rpartition(","))
        if not _UUID.fullmatch(uuid):
            name, uuid = rest, ""
        if _INDEX.fullmatch(index) and name:
            found.append(Device("cuda", (index,), name, (index,), uuid))
    return found


def parse_slices(printed: str) -> list[tuple[str, str]]:
    """Read the MIG slices that `nvidia-smi -L` prints: the UUID of each, and its name after that of its card."""
    found, card = list[tuple[str, str]](), ""
    for line in printed.splitlines():
        if heading := _CARD.match(line):
            card = heading["name"]
        elif one := _SLICE.match(line):
            found.append((one["uuid"], f"{card} {one['name']}".strip()))
    return found


@cache
def _slices(_cards: tuple[Device, ...]) -> list[tuple[str, str]]:
    return parse_slices(command_output("nvidia-smi", "-L"))


def _apple() -> list[Device]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    name = command_output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    return [Device("mps", ("0",), name or "Apple silicon")]


def _cpu_name() -> str:
    cores = os.cpu_count() or 1
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        name = found.group(1).strip() if found else platform.machine()
    except OSError:
        name = command_output("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return f"{name} x{cores}"


def command_output(*command: str) -> str:
    """Return what a command of this machine prints, or nothing if there is none or it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, no shell
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
            env=for_probe(os.environ),
            cwd="/",  # a path that is relative names nothing of a workspace
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
