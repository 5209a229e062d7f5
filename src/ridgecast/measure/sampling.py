"""Which point next: spread over the feature space, then where a model is least sure; and order.

Owns the features that points are compared by, maximin selection, and selection by the predictive
variance of a Gaussian process. Knows no device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from .base import F64, Point

__all__ = ["choose", "farthest", "in_order", "least_sure", "point_features", "predictive_variance"]

LEARN_FROM = 40  # measured points before a model has a say
_MOST_CANDIDATES = 4000  # chosen from that many at random, where there are more
_FIT_ROWS, _FIT_ROUNDS = 160, 30
_LEAST_NOISE = 0.01  # of the logarithm: no time is known better than 1 %

_Ints = npt.NDArray[np.int64]


def point_features(points: Sequence[Point]) -> F64:
    """Standardised features [points, columns] by which points are near or far.

    Logarithms of sizes, operations, operations per byte and every configuration column, and one
    column for each further value of the texts (kernel, dtype ...). Columns that are the same
    everywhere are left out.
    """
    config = sorted({name for point in points for name in point.config})
    rows: list[list[float]] = []
    for p in points:
        width = DTYPES[p.dtype].bits_with_scales / 8.0
        moved = width * p.batch * (p.m * p.k + p.k * p.n + p.m * p.n)
        work = 2.0 * p.batch * p.m * p.n * p.k
        sizes = (p.m, p.n, p.k, p.batch, work, work / moved)
        rows.append([np.log2(v) for v in sizes] + [np.log2(1 + p.config.get(c, 0)) for c in config])
    x = np.asarray(rows, np.float64)
    texts = ("kernel", "dtype", "layout", "cache", "pattern", "energy")
    extra = [
        np.array([getattr(p, name) == value for p in points], np.float64)
        for name in texts
        for value in sorted({str(getattr(p, name)) for p in points})[1:]
        if name != "energy"
    ]
    extra.append(np.array([p.energy for p in points], np.float64))
    x = np.column_stack([x, *extra])
    x = x[:, np.ptp(x, axis=0) > 0]
    if not x.shape[1]:
        return np.zeros((len(points), 1))
    return (x - x.mean(0)) / x.std(0)


def _squared(a: F64, b: F64) -> F64:
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2.0 * a @ b.T, 0.0)


def farthest(x: F64, taken: _Ints, candidates: _Ints, count: int) -> list[int]:
    """Greedy maximin: of `candidates`, each next one lies farthest from all that are taken.

    Starts at the candidate nearest to the centre when none is taken.
    Source: Gonzalez 1985, Theoretical Computer Science 38; Johnson, Moore, Ylvisaker 1990.
    """
    chosen: list[int] = []
    gap = np.full(len(candidates), np.inf)
    for block in range(0, len(taken), 512):
        gap = np.minimum(gap, _squared(x[candidates], x[taken[block : block + 512]]).min(1))
    if not len(taken):
        centre = int(np.argmin((x[candidates] ** 2).sum(1)))
        gap = _squared(x[candidates], x[candidates[[centre]]])[:, 0]
        chosen, gap[centre] = [int(candidates[centre])], -1.0
    while len(chosen) < min(count, len(candidates)):
        best = int(np.argmax(gap))
        chosen.append(int(candidates[best]))
        gap = np.minimum(gap, _squared(x[candidates], x[candidates[[best]]])[:, 0])
        gap[best] = -1.0  # also where it lies on a taken point
    return chosen


def predictive_variance(
    x: F64, y: F64, at: F64, rng: np.random.Generator, *, count: int = 1
) -> tuple[F64, list[int]]:
    """Variance of a Gaussian process at rows of `at`, and the `count` rows where it is largest.

    The process has the length scales and the signal that fit y at x, on the residual of a linear
    trend. Each row is chosen as if those before it were measured already, which the variance
    allows: it depends on where is measured, not on what comes out.
    Source: Rasmussen and Williams 2006, eq. 2.26; Seo et al. 2000 (active learning MacKay).
    """
    from ..predict.gp import fit_gp

    trend = np.column_stack([np.ones(len(x)), x])
    ridge = 1e-3 * len(x) * np.eye(trend.shape[1])
    rest = y - trend @ np.linalg.solve(trend.T @ trend + ridge, trend.T @ y)
    gp = fit_gp(x, rest, rng, rounds=_FIT_ROUNDS, most=_FIT_ROWS)
    noise = max(float(np.mean((rest - gp.predict(x)) ** 2)), _LEAST_NOISE**2)
    a = (x - gp.mean) / gp.scale / gp.lengths
    b = (at - gp.mean) / gp.scale / gp.lengths
    known = gp.signal * _matern(a, a) + noise * np.eye(len(a))
    across = gp.signal * _matern(a, b)
    weights = np.linalg.solve(np.linalg.cholesky(known), across)
    variance = np.maximum(gp.signal - (weights**2).sum(0), 0.0)
    first, chosen = variance.copy(), list[int]()
    for _ in range(min(count, len(at))):
        best = int(np.argmax(np.where(np.isin(np.arange(len(at)), chosen), -1.0, variance)))
        chosen.append(best)
        shared = gp.signal * _matern(b[[best]], b)[0] - weights[:, best] @ weights
        row = shared / np.sqrt(variance[best] + noise)
        weights = np.vstack([weights, row])
        variance = np.maximum(variance - row**2, 0.0)
    return first, chosen


def _matern(a: F64, b: F64) -> F64:
    """Matern-5/2 correlation (Rasmussen and Williams 2006, eq. 4.17)."""
    r = np.sqrt(5.0 * _squared(a, b))
    return (1.0 + r + r * r / 3.0) * np.exp(-r)


def least_sure(
    x: F64, log_time: F64, candidates: _Ints, count: int, rng: np.random.Generator
) -> list[int]:
    """Of `candidates`, those where a model of `log_time` (NaN: not measured) is least sure."""
    measured = np.flatnonzero(np.isfinite(log_time))[-_FIT_ROWS * 3 :]
    found = predictive_variance(x[measured], log_time[measured], x[candidates], rng, count=count)
    return [int(candidates[i]) for i in found[1]]


def choose(
    x: F64, taken: _Ints, log_time: F64, count: int, rng: np.random.Generator, *, allowed: F64
) -> list[int]:
    """Next `count` points to measure: rows of the features `x` that are `allowed` (bool).

    Spread alone (`farthest`) until 40 points have a time; from then on every second one is where
    the model is least sure of log(time over the analytic guess).
    """
    mask = np.asarray(allowed, bool).copy()
    mask[taken] = False
    candidates = np.flatnonzero(mask)
    if len(candidates) > _MOST_CANDIDATES:
        candidates = np.sort(rng.choice(candidates, _MOST_CANDIDATES, replace=False))
    if not len(candidates):
        return []
    if np.isfinite(log_time).sum() < LEARN_FROM:
        return farthest(x, taken, candidates, count)
    unsure = least_sure(x, log_time, candidates, (count + 1) // 2, rng)
    rest = candidates[~np.isin(candidates, unsure)]
    seen = np.concatenate([taken, np.asarray(unsure, np.int64)])
    return unsure + farthest(x, seen, rest, count - len(unsure))


def in_order(points: Sequence[Point]) -> list[Point]:
    """Points in the order to run them: pass by pass, energy last, neighbours of similar power.

    Board power follows the data, the kernel and how much it computes for each byte, so energy
    points are sorted by those. Points without energy keep their order; repeats of a point are
    whole passes apart, so that they are measurements of their own.
    """

    def rank(point: Point) -> tuple[object, ...]:
        if not point.energy:
            return (point.repeat, False)
        moved = point.m * point.k + point.k * point.n + point.m * point.n
        intensity = round(float(np.log2(point.m * point.n * point.k / moved)))
        config = tuple(sorted(point.config.items()))
        return (point.repeat, True, point.pattern, point.dtype, point.kernel, config, point.cache,
                intensity, point.flops)  # fmt: skip

    return sorted(points, key=rank)
