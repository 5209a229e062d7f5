"""Exact Gaussian process for a few hundred rows: ARD Matern-5/2, numpy alone.

Owns the kernel, the marginal-likelihood fit of its scales, and the down-weighting of rows that
their neighbours contradict. Prediction costs one kernel evaluation per training row. Knows nothing
of GEMMs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["GaussianProcess", "fit_gp"]

F64 = npt.NDArray[np.float64]
_SIGNAL, _NOISE = float(np.log(0.15)), float(np.log(0.03))  # log prior medians (assumed)
_SCALE, _SCALE_SPREAD = 1.5, 1.0  # log length scale in standard deviations: prior (assumed)
_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """Training points already divided by their length scales, and the dual weights."""

    mean: F64
    scale: F64
    lengths: F64
    points: F64
    dual: F64
    signal: float
    offset: float

    def predict(self, x: npt.NDArray[np.floating]) -> F64:
        """Posterior mean per row of x [rows, columns]."""
        out = np.empty(len(x))
        for i in range(0, len(x), _CHUNK):
            z = np.clip((x[i : i + _CHUNK] - self.mean) / self.scale, -6.0, 6.0) / self.lengths
            out[i : i + _CHUNK] = _matern(_squared(z, self.points))[0] @ self.dual
        return out * self.signal + self.offset

    def to_arrays(self) -> dict[str, F64]:
        """State as plain arrays."""
        return {
            "mean": self.mean, "scale": self.scale, "lengths": self.lengths,
            "points": self.points, "dual": self.dual, "head": np.array([self.signal, self.offset]),
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> GaussianProcess:
        """Rebuild from `to_arrays`. Raises KeyError when an array is missing."""
        get = lambda key: np.asarray(arrays[key], np.float64)  # noqa: E731
        signal, offset = (float(v) for v in get("head"))
        return cls(
            get("mean"), get("scale"), get("lengths"), get("points"), get("dual"), signal, offset
        )


def _squared(a: F64, b: F64) -> F64:
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2.0 * a @ b.T, 0.0)


def _matern(r2: F64) -> tuple[F64, F64]:
    """Matern-5/2 and minus its derivative by r^2 (Rasmussen and Williams 2006, eq. 4.17)."""
    r = np.sqrt(5.0 * r2 + 1e-12)
    e = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * e, 5.0 / 6.0 * (1.0 + r) * e


def _maximise(z: F64, y: F64, noise: F64, start: F64, rounds: int) -> F64:
    """Log length scales, signal and noise: Adam on the marginal likelihood times their prior."""
    rows, cols = z.shape
    gaps = np.stack([(z[:, j][:, None] - z[:, j][None]) ** 2 for j in range(cols)])
    flat = gaps.reshape(cols, -1)
    centre = np.concatenate([np.full(cols, _SCALE), [_SIGNAL, _NOISE]])
    spread = np.concatenate([np.full(cols, _SCALE_SPREAD), [1.0, 1.0]])
    theta, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    best, best_theta = np.inf, start.copy()
    for t in range(1, rounds + 1):
        inverse2 = np.exp(-2.0 * theta[:cols])
        base, slope = _matern((inverse2 @ flat).reshape(rows, rows))
        signal, sigma = np.exp(2.0 * theta[cols]), np.exp(2.0 * theta[cols + 1])
        kernel = signal * base
        kernel[np.diag_indices(rows)] += sigma * noise + 1e-8
        chol = np.linalg.cholesky(kernel)
        inverse = np.linalg.inv(kernel)
        dual = inverse @ y
        loss = 0.5 * y @ dual + np.log(np.diag(chol)).sum()
        loss += 0.5 * float(np.sum(((theta - centre) / spread) ** 2))
        if loss < best:
            best, best_theta = loss, theta.copy()
        w = np.outer(dual, dual) - inverse
        grad = (theta - centre) / spread**2
        grad[:cols] -= signal * inverse2 * (flat @ (w * slope).ravel())
        grad[cols] -= signal * np.sum(w * base)
        grad[cols + 1] -= sigma * np.sum(np.diag(w) * noise)
        first, second = 0.8 * first + 0.2 * grad, 0.95 * second + 0.05 * grad * grad
        step = 0.15 * (1.0 - t / (rounds + 1)) + 0.01
        move = first / (1.0 - 0.8**t) / (np.sqrt(second / (1.0 - 0.95**t)) + 1e-9)
        theta = np.clip(theta - step * move, -6.0, 6.0)
    return best_theta


def fit_gp(
    x: npt.NDArray[np.floating],
    y: npt.NDArray[np.floating],
    rng: np.random.Generator,
    *,
    rounds: int = 60,
    most: int = 500,
) -> GaussianProcess:
    """Fit y [rows] to x [rows, columns].

    Scales come from at most `most` rows. A second pass raises the noise of rows whose
    leave-one-out residual is beyond its own uncertainty, as a Student-t noise would.
    """
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z, offset = np.asarray((x - mean) / scale, np.float64), float(np.median(y))
    target, rows, cols = np.asarray(y, np.float64) - offset, *x.shape
    some, noise = rng.permutation(rows)[:most], np.ones(rows)
    theta = np.concatenate([np.full(cols, np.log(3.0)), [_SIGNAL, _NOISE]])
    signal, dual, lengths = 1.0, target, np.ones(cols)
    for turn, n in enumerate((rounds, max(15, rounds // 3))):
        theta = _maximise(z[some], target[some], noise[some], theta, n)
        lengths = np.exp(theta[:cols])
        signal, sigma = np.exp(2.0 * theta[cols]), np.exp(2.0 * theta[cols + 1])
        kernel = signal * _matern(_squared(z / lengths, z / lengths))[0]
        kernel[np.diag_indices(rows)] += sigma * noise + 1e-8
        inverse = np.linalg.inv(kernel)
        dual = inverse @ target
        if turn == 0:  # leave-one-out residual^2 / variance = dual^2 / diag(inverse)
            noise = np.clip((4.0 + dual**2 / np.diag(inverse)) / 5.0, 1.0, 30.0)
    return GaussianProcess(mean, scale, lengths, z / lengths, dual, float(signal), offset)
