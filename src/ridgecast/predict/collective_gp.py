"""What physics leaves of a collective's time: a Gaussian process that shares kinds and counts.

    log(t / base) = sum of processes over bytes, each common to all collectives, to those of one
    class or of one kind, and to all counts of devices or to near ones alone

So a kind on a count that was never measured takes what its kind does on other counts and what other
kinds do on this count (multi-task Gaussian processes: Bonilla, Chai, Williams 2008, NIPS 20). Owns
the kernel, its fit by marginal likelihood, and mean and deviation at new calls. Knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .collective_basis import Calls, Fabric

__all__ = ["Process", "fit_process"]

F64 = npt.NDArray[np.float64]
_WIDE, _NEAR = 8.0, 2.0  # octaves over which what is common to sizes changes
_COUNTS = 4.0  # octaves of devices over which what a count does fades
_HOSTS = 4.0  # octaves that the step beyond a host is worth
# (all of these by inner folds of structures on all devices: 1.5 to 8, 1 to 8, 0 to 8 tried)
_PRIOR, _NOISE = float(np.log(0.1)), float(np.log(0.03))  # log deviations: prior medians (assumed)
_ROUNDS = (30, 10)  # steps of the fit, before and after rows that do not fit get more noise
_JITTER = 1e-8


def _matern(a: F64, b: F64, length: float) -> F64:
    """Matern-5/2 (Rasmussen and Williams 2006, eq. 4.17) of all pairs [len(a), len(b)]."""
    r: F64 = 5.0**0.5 * np.abs(a[:, None] - b[None]) / length
    return (1.0 + r + r * r / 3.0) * np.exp(-r)


def _same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> F64:
    return (a[:, None] == b[None]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Points:
    """Calls beside their balance of bytes and fixed costs (`collective_basis.balance`)."""

    calls: Calls
    balance: F64
    fabric: Fabric

    @property
    def count(self) -> F64:
        """Octaves of devices, those beyond a host or a node set apart."""
        c = self.calls
        beyond = (c.gpus > self.fabric.host).astype(np.float64) + (c.nodes > 1.0)
        return np.log2(c.gpus) + _HOSTS * beyond

    def at(self, rows: npt.NDArray[np.bool_]) -> Points:
        """Take some of the rows."""
        return Points(self.calls.at(rows), self.balance[rows], self.fabric)


def kernels(a: Points, b: Points) -> F64:
    """Each part of the kernel, of unit variance [parts, rows of a, rows of b].

    Over the buffer, smooth and less so: common, of a class (all-to-alls, others), of a kind; each
    for all counts and for near ones. Over the bytes for each device and over the balance: common,
    of a class, of a kind. Over the buffer: of one format, where elements are added.
    """
    p, q = a.calls, b.calls
    kind, group = _same(p.label, q.label), _same(p.exchange, q.exchange)
    one = np.ones_like(kind)
    near = np.exp(-np.abs(a.count[:, None] - b.count[None]) / _COUNTS)
    x, y = np.log2(p.bytes), np.log2(q.bytes)
    wide, narrow = _matern(x, y, _WIDE), _matern(x, y, _NEAR)
    out = [k * who * when for k in (wide, narrow) for who in (one, group, kind)
           for when in (one, near)]  # fmt: skip
    each = _matern(x - np.log2(p.gpus), y - np.log2(q.gpus), _NEAR)
    balance = _matern(a.balance, b.balance, _NEAR)
    out += [k * who for k in (each, balance) for who in (one, group, kind)]
    added = np.outer(p.reduction, q.reduction)
    out.append(wide * _same(p.format, q.format) * added)
    return np.asarray(np.stack(out), np.float64)


@dataclass(frozen=True)
class Process:
    """A fitted process: training points, targets y [rows], noise factors, variances of the parts.

    `variance` [parts + 1] ends with the noise.
    """

    points: Points
    y: F64
    noise: F64
    variance: F64

    @cached_property
    def _inverse(self) -> F64:
        covariance = _covariance(kernels(self.points, self.points), self)
        return np.asarray(np.linalg.inv(covariance), np.float64)

    def predict(self, points: Points) -> tuple[F64, F64]:
        """Mean and standard deviation (of a measurement) per row."""
        cross = np.tensordot(self.variance[:-1], kernels(points, self.points), 1)
        own = self.variance[:-1].sum() - self.variance[-2] * ~points.calls.reduction
        spread = own - ((cross @ self._inverse) * cross).sum(axis=1)
        mean = cross @ (self._inverse @ self.y)
        return mean, np.sqrt(np.maximum(spread, 0.0) + self.variance[-1])

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """State as plain arrays; words as Unicode."""
        c = self.points.calls
        return {f"calls_{name}": getattr(c, name) for name in c.__slots__} | {
            "balance": self.points.balance, "y": self.y, "noise": self.noise,
            "variance": self.variance,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], fabric: Fabric) -> Process:
        """Rebuild from `to_arrays`. Raises KeyError when an array is missing."""
        calls = Calls(*(arrays[f"calls_{name}"] for name in Calls.__slots__))
        points = Points(calls, arrays["balance"], fabric)
        return cls(points, arrays["y"], arrays["noise"], arrays["variance"])


def _covariance(parts: F64, process: Process) -> F64:
    out = np.tensordot(process.variance[:-1], parts, 1)
    out[np.diag_indices(len(out))] += process.variance[-1] * process.noise + _JITTER
    return out


def fit_process(points: Points, y: F64) -> Process:
    """Fit y [rows], a logarithm, to points: variances of greatest posterior (Adam on their logs).

    A second pass raises the noise of rows whose leave-one-out residual is beyond its own
    uncertainty, as a Student-t noise would.
    """
    parts = kernels(points, points)
    centre = np.append(np.full(len(parts), _PRIOR), _NOISE)
    theta, noise = centre.copy(), np.ones(len(y))
    for turn, rounds in enumerate(_ROUNDS):
        theta = _maximise(parts, Process(points, y, noise, np.exp(2.0 * theta)), centre, rounds)
        if turn == 0:  # leave-one-out residual^2 / variance = dual^2 / diag(inverse)
            now = Process(points, y, noise, np.exp(2.0 * theta))
            inverse = np.linalg.inv(_covariance(parts, now))
            noise = np.clip((4.0 + (inverse @ y) ** 2 / np.diag(inverse)) / 5.0, 1.0, 30.0)
    return Process(points, y, noise, np.exp(2.0 * theta))


def _maximise(parts: F64, start: Process, centre: F64, rounds: int) -> F64:
    """Log deviations of greatest posterior; their prior is a unit normal about `centre`."""
    theta = 0.5 * np.log(start.variance)
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    best, best_theta = np.inf, theta
    for t in range(1, rounds + 1):
        now = Process(start.points, start.y, start.noise, np.exp(2.0 * theta))
        covariance = _covariance(parts, now)
        inverse = np.linalg.inv(covariance)
        dual = inverse @ start.y
        loss = 0.5 * (start.y @ dual + np.linalg.slogdet(covariance)[1])
        loss += 0.5 * float(np.sum((theta - centre) ** 2))
        if loss < best:
            best, best_theta = loss, theta
        w = np.outer(dual, dual) - inverse
        slope = np.append(np.tensordot(parts, w, 2), np.diag(w) @ start.noise)
        grad = (theta - centre) - slope * now.variance
        first, second = 0.8 * first + 0.2 * grad, 0.95 * second + 0.05 * grad * grad
        step = 0.2 * (1.0 - t / (rounds + 1)) + 0.01
        move = first / (1.0 - 0.8**t) / (np.sqrt(second / (1.0 - 0.95**t)) + 1e-9)
        theta = np.clip(theta - step * move, -8.0, 2.0)
    return best_theta
