"""Split-conformal intervals, Mondrian by where a point lies.

Owns the buckets (distance to the training data x size x disagreement of the model's halves) and
the residual quantiles in each. A bucket with too few residuals borrows those of its parent. Knows
nothing of how the residuals were made, only that their points were held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DISTANCES", "SIZE_EDGES", "Conformal", "fit_conformal"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

DISTANCES = ("seen_pair", "unseen_pair", "one_off_grid", "off_grid", "frontier", "outside")
"""How far a shape is from the training shapes, nearest first: its (n, k) pair was seen; both
values but not the pair; one value unseen; both unseen; more work or another m than any; an n, a
k or a batch beyond those seen."""

SIZE_EDGES = (5e-6, 20e-6, 200e-6)
"""Seconds that part the size buckets, by predicted time."""

_SPREAD_BINS = 4
_LEAST = 80  # residuals under which a bucket borrows from its parent
PROBABILITIES = np.array(
    [0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.375, 0.5]
)
PROBABILITIES = np.concatenate([PROBABILITIES, 1.0 - PROBABILITIES[-2::-1]])


@dataclass(frozen=True, slots=True)
class Conformal:
    """Quantiles of log(measured / predicted) per bucket.

    `quantiles` [distances, sizes, spreads, len(PROBABILITIES)], `spread_edges`
    [distances, spreads - 1] in log units, `counts` of residuals that each bucket's quantiles
    rest on.
    """

    quantiles: F64
    spread_edges: F64
    counts: I64

    def interval(
        self, time: F64, distance: I64, spread: F64, level: float = 0.9
    ) -> tuple[F64, F64]:
        """Lower and upper time [s] that hold the truth with probability `level`."""
        size = np.searchsorted(SIZE_EDGES, time)
        edges = self.spread_edges[distance]
        bin_ = (spread[:, None] > edges).sum(1)
        flat = (distance * (len(SIZE_EDGES) + 1) + size) * _SPREAD_BINS + bin_
        low, high = self._limits(level)
        return time * low[flat], time * high[flat]

    def _limits(self, level: float) -> tuple[F64, F64]:
        """Factors on the time per flat bucket."""
        tail = (1.0 - level) / 2.0
        table = self.quantiles.reshape(-1, len(PROBABILITIES))
        # finite-sample rank (n + 1) of split conformal; Vovk et al. 2005, Lei et al. 2018
        reach = tail * self.counts.ravel() / (self.counts.ravel() + 1.0)
        return np.exp(_interpolate(table, reach)), np.exp(_interpolate(table, 1.0 - reach))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for a card; residuals rounded to 1e-4."""
        return {
            "quantiles": np.round(self.quantiles, 4).tolist(),
            "spread_edges": np.round(self.spread_edges, 5).tolist(),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Conformal:
        """Undo `to_dict`."""
        return cls(
            np.asarray(state["quantiles"], float),
            np.asarray(state["spread_edges"], float),
            np.asarray(state["counts"], np.int64),
        )


def _interpolate(table: F64, reach: F64) -> F64:
    """Quantile of each row of `table` [rows, len(PROBABILITIES)] at its own probability."""
    at = np.interp(reach, PROBABILITIES, np.arange(len(PROBABILITIES)))
    left = np.minimum(at.astype(np.int64), len(PROBABILITIES) - 2)
    rows = np.arange(len(table))
    share = at - left
    return table[rows, left] * (1.0 - share) + table[rows, left + 1] * share


def fit_conformal(residual: F64, time: F64, distance: I64, spread: F64) -> Conformal:
    """Collect held-out residuals log(measured / predicted) [rows] into buckets.

    `time` is the predicted time [s], `distance` an index of DISTANCES, `spread` the absolute
    difference of the model's halves in log units. A distance without residuals takes the next
    farther one's, else the next nearer one's.
    """
    size = np.searchsorted(SIZE_EDGES, time)
    shape = (len(DISTANCES), len(SIZE_EDGES) + 1, _SPREAD_BINS)
    quantiles = np.zeros((*shape, len(PROBABILITIES)))
    counts = np.zeros(shape, np.int64)
    edges = np.zeros((len(DISTANCES), _SPREAD_BINS - 1))
    present = [d for d in range(len(DISTANCES)) if (distance == d).sum() >= 20]
    if not present:
        present, distance = [1], np.ones_like(distance)
    for d in range(len(DISTANCES)):
        farther = [q for q in present if q >= d]
        rows_d = distance == (min(farther) if farther else max(present))
        edges[d] = np.quantile(spread[rows_d], np.arange(1, _SPREAD_BINS) / _SPREAD_BINS)
        bin_ = (spread[:, None] > edges[d]).sum(1)
        for s in range(shape[1]):
            rows_s = rows_d & (size == s)
            for b in range(_SPREAD_BINS):
                chosen = next(
                    rows
                    for rows in (rows_s & (bin_ == b), rows_s, rows_d & (bin_ == b), rows_d)
                    if rows.sum() >= _LEAST or rows is rows_d
                )
                values = residual[chosen]
                quantiles[d, s, b] = np.quantile(values, PROBABILITIES)
                counts[d, s, b] = len(values)
    return Conformal(quantiles, edges, counts)
