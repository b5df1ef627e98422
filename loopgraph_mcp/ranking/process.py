"""A Gaussian process over places on the knobs' scales, with numpy where it is installed and in plain Python elsewhere.

Both give the same numbers, for as many runs as they take; numpy is some ten times as fast.
"""

import importlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, Protocol

Point = tuple[float, ...]

_MOST_FAST, _MOST_PLAIN = 240, 120  # the time grows with the cube
_JITTER = 1e-9  # of the amplitude: keeps equal points invertible


@dataclass(frozen=True, slots=True)
class Kernel:
    """How alike the outcomes at two places are: Matern 5/2, twice differentiable, as losses over knobs are.

    Args:
        amplitude: Variance far from all runs.
        length: Steps over which an outcome changes by about one standard deviation.
        across: Correlation of the same place in two groups of runs, such as two contexts.
    """

    amplitude: float
    length: float
    across: float


class Process(Protocol):
    """A process that has seen some values."""

    @property
    def explained(self) -> float:
        """The values times the inverse of their covariance times the values: what the amplitude is estimated from."""

    def predict(self, points: Sequence[Point]) -> tuple[list[float], list[float]]:
        """Return means and standard deviations of the first group of runs at places."""


def most_runs() -> int:
    """Return how many values a process takes in a few hundredths of a second, or a good tenth without numpy."""
    return _MOST_FAST if importlib.util.find_spec("numpy") else _MOST_PLAIN


def condition(
    kernel: Kernel, points: Sequence[Point], groups: Sequence[int], values: Sequence[float], noise: Sequence[float]
) -> Process:
    """Return a process that has seen values at places.

    Args:
        kernel: How alike places are.
        points: Of each value, its place.
        groups: Of each value, its group; 0 is the one that predictions are for.
        values: What was seen.
        noise: Variance of each value's noise.
    """
    made = _Fast if importlib.util.find_spec("numpy") else _Plain
    return made(kernel, points, groups, values, noise)


def _matern(distance: float) -> float:
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled * scaled / 3) * math.exp(-scaled)


class _Plain:
    def __init__(
        self,
        kernel: Kernel,
        points: Sequence[Point],
        groups: Sequence[int],
        values: Sequence[float],
        noise: Sequence[float],
    ) -> None:
        self._kernel = kernel
        self._points = [tuple(x / kernel.length for x in point) for point in points]
        self._factors = [1.0 if group == 0 else kernel.across for group in groups]
        rows = list[list[float]]()
        for i, (point, group) in enumerate(zip(self._points, groups, strict=True)):
            row = [
                kernel.amplitude
                * _matern(math.dist(point, self._points[j]))
                * (1.0 if group == groups[j] else kernel.across)
                for j in range(i)
            ]
            rows.append([*row, kernel.amplitude * (1 + _JITTER) + noise[i]])
        self._lower = _cholesky(rows)
        self._half = _forward(self._lower, values)
        self._weights = _backward(self._lower, self._half)

    @property
    def explained(self) -> float:
        return math.fsum(x * x for x in self._half)

    def predict(self, points: Sequence[Point]) -> tuple[list[float], list[float]]:
        means, sds = list[float](), list[float]()
        amplitude, length = self._kernel.amplitude, self._kernel.length
        for point in points:
            at = tuple(x / length for x in point)
            near = [
                amplitude * factor * _matern(math.dist(at, seen))
                for seen, factor in zip(self._points, self._factors, strict=True)
            ]
            half = _forward(self._lower, near)
            means.append(sum(map(mul, near, self._weights)))
            sds.append(math.sqrt(max(amplitude - sum(map(mul, half, half)), amplitude * _JITTER)))
        return means, sds


def _cholesky(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    lower = list[list[float]]()
    for row in rows:
        done = list[float]()
        for j, above in enumerate(lower):
            done.append((row[j] - sum(map(mul, done, above))) / above[j])
        done.append(math.sqrt(max(row[-1] - sum(map(mul, done, done)), 1e-300)))
        lower.append(done)
    return lower


def _forward(lower: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    found = list[float]()
    for row, value in zip(lower, values, strict=True):
        found.append((value - sum(map(mul, row, found))) / row[-1])
    return found


def _backward(lower: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    left = list(values)
    for i in range(len(left) - 1, -1, -1):
        left[i] /= lower[i][i]
        for j in range(i):
            left[j] -= lower[i][j] * left[i]
    return left


class _Fast:
    def __init__(
        self,
        kernel: Kernel,
        points: Sequence[Point],
        groups: Sequence[int],
        values: Sequence[float],
        noise: Sequence[float],
    ) -> None:
        self._np: Any = importlib.import_module("numpy")  # an extra, and heavy
        np = self._np
        self._kernel = kernel
        self._points = np.array(points) / kernel.length
        of = np.array(groups)
        self._factors = np.where(of == 0, 1.0, kernel.across)
        alike = self._alike(self._points) * np.where(of[:, None] == of, 1.0, kernel.across)
        covariance = kernel.amplitude * (alike + _JITTER * np.eye(len(of))) + np.diag(noise)
        self._lower = np.linalg.cholesky(covariance)
        # Its inverse is taken once: numpy has no triangular solver, and hundreds of places are asked about.
        self._inverse = np.linalg.inv(self._lower)
        self._half = self._inverse @ np.array(values)
        self._weights = self._inverse.T @ self._half

    def _alike(self, points: Any) -> Any:
        np = self._np
        squares = (points**2).sum(1)[:, None] + (self._points**2).sum(1) - 2 * points @ self._points.T
        scaled = np.sqrt(5 * np.maximum(squares, 0.0))
        return (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)

    @property
    def explained(self) -> float:
        return float(self._half @ self._half)

    def predict(self, points: Sequence[Point]) -> tuple[list[float], list[float]]:
        np, amplitude = self._np, self._kernel.amplitude
        near = amplitude * self._alike(np.array(points) / self._kernel.length) * self._factors
        half = near @ self._inverse.T
        variance = np.maximum(amplitude - (half * half).sum(1), amplitude * _JITTER)
        return (near @ self._weights).tolist(), np.sqrt(variance).tolist()
