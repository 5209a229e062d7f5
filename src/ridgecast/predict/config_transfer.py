"""A few measured points turn the models of other devices into a model of a new one.

Owns the Gaussian process that corrects what relatives predict, and the choice of the points to
measure. Works in log(time / bound); knows no file, no device name and no kernel.

Model: log(time / bound) = base + c + w . (relatives - base) + v . linear + g(x) + noise, where
`base` is the mean of the relatives' predictions, c, w, v have normal priors and g is a Matern 3/2
process over standardised features (Rasmussen & Williams 2006, chapters 2.7 and 5.4). The scales
are averaged over the best of a grid by marginal likelihood.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Correction", "Inputs", "fit_correction", "spread_points"]

FloatArray = npt.NDArray[np.float64]

# Prior scales of log(time / bound), chosen on devices left out one at a time (benchmarks/
# clblast_configs.py): offset, weight on each relative, weight on the base itself.
_OFFSET, _RELATIVE, _SLOPE = 1.0, 0.3, 0.2
_LINEAR = (0.02, 0.05, 0.15)
_AMPLITUDE = (0.05, 0.1, 0.2, 0.4)
_LENGTH = (0.5, 1.0, 2.0, 4.0)
_NOISE = (0.02, 0.06)
_KEPT = 6
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the correction sees of some configurations, one row each.

    `base` is the mean prediction of the relatives, `relatives` each of theirs (rows, devices),
    `linear` and `position` standardised features (rows, features).
    """

    base: FloatArray
    relatives: FloatArray
    linear: FloatArray
    position: FloatArray

    def __getitem__(self, rows: npt.NDArray[np.int64] | slice) -> Inputs:
        """Return some of the rows."""
        return Inputs(self.base[rows], self.relatives[rows], self.linear[rows], self.position[rows])

    @property
    def trend(self) -> FloatArray:
        """Columns of the linear part with unit prior weight: offset, slope, relatives."""
        shifted = self.relatives - self.base[:, None]
        ones = np.full((len(self.base), 1), _OFFSET)
        return np.concatenate([ones, _SLOPE * (self.base - 2.0)[:, None], _RELATIVE * shifted], 1)


@dataclass(frozen=True, slots=True)
class Correction:
    """A fitted correction: weighted members of the grid and the points they were fitted on."""

    points: Inputs
    members: tuple[tuple[float, float, float, float, float], ...]
    """(weight, linear, amplitude, length, noise) of each member."""
    inverses: FloatArray
    weights: FloatArray
    scale: float
    """Rms of the leave-one-out errors over their predicted deviations, 0.5 or more."""

    def predict(self, at: Inputs) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of log(time / bound) at some configurations."""
        count = len(at.base)
        parts = [self._predict(at[slice(i, i + _CHUNK)]) for i in range(0, count, _CHUNK)]
        if not parts:
            return np.zeros(0), np.zeros(0)
        mean, deviation = (np.concatenate(column) for column in zip(*parts, strict=True))
        return mean, deviation

    def _predict(self, at: Inputs) -> tuple[FloatArray, FloatArray]:
        trend = at.trend @ self.points.trend.T
        own = (at.trend**2).sum(1)
        linear = at.linear @ self.points.linear.T
        own_linear = (at.linear**2).sum(1)
        distance = _distance(at.position, self.points.position)
        mean, second = np.zeros(len(at.base)), np.zeros(len(at.base))
        for i, (weight, lin, amp, length, noise) in enumerate(self.members):
            cross = trend + lin**2 * linear + amp**2 * _matern(distance / length)
            value = cross @ self.weights[i]
            prior = own + lin**2 * own_linear + amp**2 + noise**2
            left = np.maximum(prior - ((cross @ self.inverses[i]) * cross).sum(1), noise**2)
            mean += weight * value
            second += weight * (left + value**2)
        spread = np.sqrt(np.maximum(second - mean**2, 1e-12))
        return at.base + mean, self.scale * spread


def _distance(a: FloatArray, b: FloatArray) -> FloatArray:
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return np.sqrt(np.maximum(square, 0.0))


def _matern(distance: FloatArray) -> FloatArray:
    scaled = np.sqrt(3.0) * distance
    return (1.0 + scaled) * np.exp(-scaled)


def fit_correction(points: Inputs, log_ratio: FloatArray) -> Correction:
    """Fit the correction to measured log(time / bound) at some points (2 or more).

    All members of the grid are factorised at once; those with the highest marginal likelihood are
    kept, weighted by it.
    """
    target = log_ratio - points.base
    grid = np.array(list(itertools.product(_LINEAR, _AMPLITUDE, _LENGTH, _NOISE)))
    lin, amp, length, noise = (grid[:, i, None, None] for i in range(4))
    trend = points.trend @ points.trend.T
    linear = points.linear @ points.linear.T
    distance = _distance(points.position, points.position)
    kernel = trend + lin**2 * linear + amp**2 * _matern(distance / length)
    kernel = kernel + noise**2 * np.eye(len(target))
    lower = np.linalg.cholesky(kernel)
    inverse = np.linalg.inv(kernel)
    weights = inverse @ target
    diagonal = np.diagonal(lower, axis1=1, axis2=2)
    likelihood = -0.5 * weights @ target - np.log(diagonal).sum(1)
    best = np.argsort(-likelihood, kind="stable")[:_KEPT]
    share = np.exp(likelihood[best] - likelihood[best[0]])
    share /= share.sum()
    members = tuple(
        (float(s), *(float(v) for v in grid[i])) for s, i in zip(share, best, strict=True)
    )
    variance = 1.0 / np.diagonal(inverse[best], axis1=1, axis2=2)
    left_out = (weights[best] * variance) / np.sqrt(variance)
    scale = float(np.sqrt((share[:, None] * left_out**2).sum() / len(target)))
    return Correction(points, members, inverse[best], weights[best], max(0.5, scale))  # type: ignore[arg-type]


def spread_points(inputs: Inputs, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows to measure first: spread over the features, chosen without seeing a time.

    Each next point is the farthest of eight random candidates from those chosen already.
    """
    total = len(inputs.base)
    count = min(count, total)
    where = np.concatenate([inputs.position, 0.3 * inputs.base[:, None]], axis=1)
    chosen = [int(rng.integers(total))]
    nearest = ((where - where[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count:
        candidates = rng.choice(total, min(8, total), replace=False)
        pick = int(candidates[np.argmax(nearest[candidates])])
        if pick in chosen:
            pick = int(np.argmax(nearest))
        chosen.append(pick)
        nearest = np.minimum(nearest, ((where - where[pick]) ** 2).sum(1))
    return np.asarray(chosen, np.int64)
