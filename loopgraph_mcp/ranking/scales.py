"""The natural scale of a knob: a learning rate acts by its ratio, a share of the run by its difference."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

# One step of a knob is about what people try first: half as much again of a rate, a quarter of a size, one doubling.
_RATE_STEP, _SIZE_STEP, _SHARE_STEP = 0.5, 0.25, 0.1
_SHARE_ZERO = 0.01  # keeps the square root of a share finite at zero, so that 0 to .05 is a step, as .5 to .65 is
_POWERS_FROM = 16  # a smaller power of two is a count, such as 8 layers
_SMALLEST = 1e-9
_SHARE = re.compile(r"RATIO|FRAC|SHARE|DROPOUT|PROB|WARM|COOL|SMOOTH", re.IGNORECASE)
_MOMENTUM = re.compile(r"BETA|MOMENTUM|EMA", re.IGNORECASE)


class Kind(StrEnum):
    """How a knob acts."""

    DOUBLING = "doubling"
    SIZE = "size"
    RATE = "rate"
    SHARE = "share"
    MOMENTUM = "momentum"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Scale:
    """A knob's natural scale: about equal steps on it have about equal effects.

    Args:
        step: What one step is, in the knob's own unit where its kind is plain.
        whole: Whether its values are whole numbers.
    """

    kind: Kind
    step: float
    whole: bool

    @classmethod
    def of(cls, name: str, value: float) -> "Scale":
        """Return the scale of a knob by its name and a value that it had."""
        whole = isinstance(value, int)
        if whole and value >= _POWERS_FROM and value & (value - 1) == 0:  # type: ignore[operator]  # it is an int
            return cls(Kind.DOUBLING, math.log(2), whole=True)
        if whole and value > 0:
            return cls(Kind.SIZE, _SIZE_STEP, whole=True)
        if not whole and 0 <= value <= 1 and _SHARE.search(name):
            return cls(Kind.SHARE, _SHARE_STEP, whole=False)
        if not whole and 0.5 < value < 1 and _MOMENTUM.search(name):
            return cls(Kind.MOMENTUM, _RATE_STEP, whole=False)
        if not whole and value > 0:
            return cls(Kind.RATE, _RATE_STEP, whole=False)
        return cls(Kind.PLAIN, max(abs(value) / 4, 1.0 if whole else 0.1), whole=whole)

    def place(self, value: float) -> float:
        """Return where a value lies, in steps."""
        match self.kind:
            case Kind.SHARE:
                return math.sqrt(max(value, 0.0) + _SHARE_ZERO) / self.step
            case Kind.MOMENTUM:
                return -math.log(max(1 - value, _SMALLEST)) / self.step
            case Kind.PLAIN:
                return value / self.step
            case _:
                return math.log(max(value, _SMALLEST)) / self.step

    def value(self, place: float) -> float:
        """Return the value at a place that a program can hold: whole where it must be, with three digits elsewhere."""
        match self.kind:
            case Kind.DOUBLING:
                return int(2 ** max(round(place * self.step / math.log(2)), 0))
            case Kind.SHARE:
                return round(min(max((max(place, 0.0) * self.step) ** 2 - _SHARE_ZERO, 0.0), 1.0), 3)
            case Kind.MOMENTUM:
                return float(f"{1 - math.exp(-place * self.step):.3g}")
            case Kind.PLAIN:
                return round(place * self.step) if self.whole else float(f"{place * self.step:.3g}")
            case _:
                raw = math.exp(min(place * self.step, 700.0))
                return max(round(raw), 1) if self.whole else float(f"{raw:.3g}")


def scales_of(values: Mapping[str, float]) -> dict[str, Scale]:
    """Return the scales of all knobs of a program."""
    return {name: Scale.of(name, value) for name, value in values.items()}
