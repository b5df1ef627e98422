"""Counts the kernel's kills for memory, to distinguish them from kills by another process."""

import re
import sys
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d{1,18})$", re.MULTILINE)


def count_memory_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes were killed for memory so far; None where the kernel does not say.

    Of this process's own control group where that is counted, else of the whole machine.
    """
    if sys.platform != "linux":
        return None
    for file in (*_of_own_group(proc, cgroups), proc / "vmstat"):
        try:
            match = _COUNT.search(file.read_text(encoding="ascii", errors="replace"))
        except OSError:
            continue
        if match is not None:
            return int(match.group(1))
    return None


def _of_own_group(proc: Path, cgroups: Path) -> list[Path]:
    """Return the files that may count for the group of this process, in version 2 and 1 of control groups."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        place = path.strip("/")
        if number == "0":
            found += [cgroups / place / "memory.events", cgroups / "unified" / place / "memory.events"]
        elif "memory" in controllers.split(","):
            found.append(cgroups / "memory" / place / "memory.oom_control")
    return found
