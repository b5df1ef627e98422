"""Measures which share of a device other processes use during a run: it makes the budget worth less."""

import os
import resource
import time
from dataclasses import dataclass
from typing import Self

import psutil

from loopgraph_mcp.runner.device import Device, command_output

MIN_S = 10.0  # a shorter run is mostly start-up and end, so its load says nothing
SETTLE_S = 1.5  # nvidia-smi reports the last second


@dataclass(frozen=True, slots=True)
class LoadMeter:
    """What was used when the run began.

    Args:
        gpu: The share of the GPU in use before the run; None for another device.
        busy_s: CPU seconds used by all processes since boot.
        own_s: CPU seconds used by this process's ended children.
        began: Seconds on the monotonic clock.
    """

    device: Device
    gpu: float | None
    busy_s: float
    own_s: float
    began: float

    @classmethod
    def start(cls, device: Device) -> Self:
        """Look at a device just before a run."""
        return cls(device, _gpu_in_use(device), _busy_s(), _own_s(), time.monotonic())

    def read(self) -> float | None:
        """Return the share of the device (0 to 1) that others used, once the run and all it started has ended.

        Returns None where it cannot be measured: on MPS, without `nvidia-smi`, or after less than ten seconds.
        """
        elapsed = time.monotonic() - self.began
        if elapsed < MIN_S:
            return None
        if self.device.kind == "cpu":
            own = _own_s() - self.own_s
            return others_share(_busy_s() - self.busy_s, own, elapsed, os.cpu_count() or 1)
        if self.gpu is None:
            return None
        time.sleep(SETTLE_S)
        after = _gpu_in_use(self.device)
        return max(self.gpu, after or 0.0)


def others_share(busy_s: float, own_s: float, elapsed_s: float, cores: int) -> float:
    """Return which share of the cores' time others had, from CPU seconds of all processes and of the run's own."""
    return min(max((busy_s - own_s) / (elapsed_s * cores), 0.0), 1.0)


def _busy_s() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice already
    return float(sum(times) - idle - guest)


def _own_s() -> float:
    """Return the CPU seconds of the children that were waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _gpu_in_use(device: Device) -> float | None:
    """Return the share in use of the GPU, or of the busiest of several: the slowest sets the pace of all."""
    if device.kind != "cuda":
        return None
    seen = list[float]()
    for card in device.cards or device.ids:
        query = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", card)
        printed = command_output("nvidia-smi", *query).strip()
        seen += [int(printed) / 100] if printed.isdecimal() else []
    return max(seen, default=None)
