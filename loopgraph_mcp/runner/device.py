"""Finds the devices to train on without importing torch."""

import os
import platform
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from loopgraph_mcp.errors import ConfigError

_PROBE_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its kind (`cuda`, `mps`, `cpu`), its index among its kind, its marketing name."""

    kind: str
    index: int
    name: str

    @property
    def label(self) -> str:
        """What makes two devices equal for a comparison: kind and name, not the slot."""
        return f"{self.kind}: {self.name}"

    @property
    def slot(self) -> str:
        """What only one run may hold at a time."""
        return f"{self.kind}-{self.index}"

    def environment(self) -> dict[str, str]:
        """Variables that show a training process this device alone."""
        return {"CUDA_VISIBLE_DEVICES": str(self.index) if self.kind == "cuda" else ""}


@cache
def find_devices() -> tuple[Device, ...]:
    """Return the devices of this machine, the fastest kind first; the CPU is always among them."""
    found = [*_nvidia(), *_apple(), Device("cpu", 0, _cpu_name())]
    return tuple(found)


def choose_device(wanted: str | None, visible_gpus: Collection[int] | None = None) -> Device:
    """Return the device named by `cpu`, `mps`, `cuda` or `cuda:N`, or the first one where none is named.

    Args:
        wanted: The name.
        visible_gpus: Indices of the GPUs that may be used; None for all.

    Raises:
        ConfigError: This machine has no such device.
    """
    devices = [
        device
        for device in find_devices()
        if device.kind != "cuda" or visible_gpus is None or device.index in visible_gpus
    ]
    if wanted is None:
        return devices[0]
    kind, _, index = wanted.strip().lower().partition(":")
    for device in devices:
        if device.kind == kind and index in {"", str(device.index)}:
            return device
    have = ", ".join(f"{device.kind}:{device.index}" for device in devices)
    raise ConfigError(f"no device {wanted!r} on this machine; it has {have} (LOOPGRAPH_DEVICE names one)")


def _nvidia() -> list[Device]:
    printed = command_output("nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader")
    rows = [line.split(",", 1) for line in printed.splitlines() if "," in line]
    return [Device("cuda", int(index), name.strip()) for index, name in rows if index.strip().isdigit()]


def _apple() -> list[Device]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    return [Device("mps", 0, command_output("sysctl", "-n", "machdep.cpu.brand_string").strip() or "Apple silicon")]


def _cpu_name() -> str:
    cores = os.cpu_count() or 1
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        name = found.group(1).strip() if found else platform.machine()
    except OSError:
        name = command_output("sysctl", "-n", "machdep.cpu.brand_string").strip() or platform.machine()
    return f"{name} x{cores}"


def command_output(*command: str) -> str:
    """Return what a command of this machine prints, or nothing where there is none or it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, no shell
            command,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
