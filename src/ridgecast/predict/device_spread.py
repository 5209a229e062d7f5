"""How wrong a time is that was carried over to a device nobody measured, and its interval.

Owns the residuals of devices that a carrying model did not know, the quantiles that they give, and
what the speed of light makes of them. Knows nothing of how the times were carried.

A carried time may lie near the device's speed of light, or beyond it, where no time can be. The
residuals then hold only for the times that can be: they are conditioned on no time below the bound,
and the middle moves by as much as their median. Held-out devices are scored in that way too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.bound import CLOSEST
from .conformal import SIZE_EDGES
from .parity import sample
from .scores import score

__all__ = [
    "PROBABILITIES", "SCORED", "SPLIT_OF", "UNKNOWN", "Residuals", "calibrated", "possible",
    "scored",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
PROBABILITIES = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99,
                          0.995])  # fmt: skip
SCORED = 2500
"""Rows of each left-out device that calibrate the intervals."""
# one chip family teaches nothing of how families differ: a factor of five each way (assumed)
UNKNOWN = np.tile(np.log([0.2, 5.0])[[0] * 6 + [1] * 7], (len(SIZE_EDGES) + 1, 1))
SPLIT_OF = {"no relative": "unseen_device", "family": "unseen_device (family known)"}
"""Split that a score counts as, by what was kept of the device's chip family."""
_COVERED = 0.9
_WIDENINGS = np.arange(1.0, 2.01, 0.05)


@dataclass(frozen=True, slots=True)
class Residuals:
    """log(measured / predicted), predicted and least seconds of a device that a model missed."""

    hardware: str
    dtype: str
    log_ratio: F64
    time: F64
    floor: F64

    def coverage(self, table: F64) -> float:
        """Share of the rows inside the 90 % interval of quantiles [sizes, probabilities]."""
        held = self.held(table)
        inside = (held["time_low_s"] <= held["truth_s"]) & (held["truth_s"] <= held["time_high_s"])
        return float(inside.mean())

    def held(self, table: F64 | None) -> dict[str, F64]:
        """Measured and predicted time [s], and the interval of quantiles where there are any."""
        found = {"truth_s": self.time * np.exp(self.log_ratio), "time_s": self.time}
        if table is None:
            return found
        time, low, high = possible(self.time, self.floor, table, 0.9)
        return found | {"time_s": time, "time_low_s": low, "time_high_s": high}


def possible(time: F64, floor: F64, table: F64, level: float) -> tuple[F64, F64, F64]:
    """Time and interval [s] from residuals' quantiles [sizes, probabilities], above the bound.

    With P the residuals' probability of a time below CLOSEST of the bound, the quantile at p
    becomes that at P + (1 - P) p, and the time moves as the median does.
    """
    tail = (1.0 - level) / 2.0
    size = np.searchsorted(SIZE_EDGES, time)
    moves = np.empty((3, len(time)))
    for s in np.unique(size):
        here, row = size == s, table[s]
        nearest = np.log(CLOSEST * floor[here] / time[here])
        # beyond that the residuals do not tell how wrong the time is: their slowest tenth
        beyond = np.minimum(np.interp(nearest, row, PROBABILITIES) - PROBABILITIES[0], 0.9)
        middle, low, high = (
            np.interp(beyond + (1.0 - beyond) * p, PROBABILITIES, row)
            for p in (0.5, tail, 1.0 - tail)
        )
        moves[:, here] = middle - np.interp(0.5, PROBABILITIES, row), low, high
    moved = np.exp(moves) * time
    time = np.maximum(moved[0], CLOSEST * floor)
    return time, np.clip(moved[1], floor, time), np.maximum(moved[2], time)


def calibrated(found: Sequence[Residuals]) -> F64:
    """Quantiles [sizes, probabilities] of residuals, as wide as devices need that are not there.

    Pooled residuals of few devices tell too little of how devices differ; the mean coverage of
    each device by the rest says how much wider the interval must be.
    """
    return _widened(_quantiles(found), _widening(found))


def scored(
    found: Sequence[Residuals], kept: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of each device by the other devices' quantiles, and samples of its rows.

    `kept` is one of SPLIT_OF. Where there are no others, a device is scored as it was predicted,
    without an interval.
    """
    factor = _widening(found)
    scores: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for one in found:
        others = _without(found, one)
        held = one.held(_widened(_quantiles(others), factor) if others else None)
        part = score(held["truth_s"], held["time_s"], held.get("time_low_s"),
                     held.get("time_high_s"))  # fmt: skip
        names = ("rows", "mape", "median", "p90", "bias", "coverage")
        scores.append({
            "hardware": one.hardware, "dtype": one.dtype, "split": "unseen_device", "kept": kept,
            **{name: part[name] for name in names if name in part},
        })  # fmt: skip
        samples.append(sample(held, split=SPLIT_OF[kept], hardware=one.hardware, dtype=one.dtype))
    return scores, samples


def _without(found: Sequence[Residuals], one: Residuals) -> list[Residuals]:
    """Residuals of all other devices: a device's other formats would tell of it."""
    return [f for f in found if f.hardware != one.hardware]


def _quantiles(found: Sequence[Residuals]) -> F64:
    """Quantiles [sizes, probabilities] of residuals; a thin size takes those of all."""
    residual = np.concatenate([f.log_ratio for f in found])
    size = np.searchsorted(SIZE_EDGES, np.concatenate([f.time for f in found]))
    everywhere = np.quantile(residual, PROBABILITIES)
    return np.array([
        np.quantile(residual[size == s], PROBABILITIES) if (size == s).sum() >= 300 else everywhere
        for s in range(len(SIZE_EDGES) + 1)
    ])  # fmt: skip


def _widened(table: F64, factor: float) -> F64:
    """Quantiles moved away from their median by a factor in log units."""
    median = table[:, len(PROBABILITIES) // 2, None]
    return median + factor * (table - median)


def _widening(found: Sequence[Residuals]) -> float:
    """Least factor for which a device is covered by the others' 90 % interval as promised."""
    rest = [(one, _without(found, one)) for one in found]
    tables = [(one, _quantiles(others)) for one, others in rest if others]
    if not tables:
        return float(_WIDENINGS[-1])

    def covered(factor: float) -> float:
        return float(np.mean([one.coverage(_widened(q, factor)) for one, q in tables]))

    return next((float(f) for f in _WIDENINGS if covered(f) >= _COVERED), float(_WIDENINGS[-1]))
