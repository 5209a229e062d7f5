"""Robust non-negative fit of the power basis to labels.

Owns the loss, the weights of rows and the steps that lower it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .power import OVERSHOOT, Basis
from .power_rows import FloatArray, Mask, PowerRows

__all__ = ["fit_basis"]


def fit_basis(rows: PowerRows, shape: tuple[float, float]) -> tuple[Basis, float]:
    """Basis of a (gamma, sharpness) with the least weighted absolute log error, and that error.

    Iteratively reweighted least squares (weights 1 / |residual|) by Levenberg-Marquardt steps that
    are projected on the bounds: every share is 0 or more. Rows weigh one over the root of how many
    share their cell of utilisations, devices alike in all, so that the many rows at the power
    limit do not drown what tells the coefficients apart.
    """
    names = sorted(set(rows.dtype.tolist()))
    code = np.array([names.index(d) for d in rows.dtype.tolist()], dtype=np.intp)
    u = rows.work / rows.time[:, None]
    target = np.log(rows.label)
    weight = _weights(rows, u, code)
    low = np.array([0.01, 0.5, 0.0, 0.0] + [0.0] * len(names))
    high = np.array([0.5, OVERSHOOT, 10.0, 10.0] + [20.0] * len(names))
    free = np.array([True, True, True, bool(u[:, 2].any())] + [True] * len(names))
    start = np.array([0.2, 0.98, 0.5, 0.0] + [1.0] * len(names))

    def basis(values: FloatArray) -> Basis:
        flop = dict(zip(names, values[4:].tolist(), strict=True))
        idle, ceiling, memory, l2 = values[:4].tolist()
        return Basis(idle, ceiling, memory, l2, flop, shape[0], shape[1])

    def residual(values: FloatArray) -> FloatArray:
        fitted = basis(values)
        demand = fitted.demand((u[:, 0], u[:, 1], u[:, 2]), values[4:][code])
        return np.log(fitted.share(demand)) - target

    best = _minimise(residual, (start, low, high, free), weight)
    return basis(best), float((weight * np.abs(residual(best))).sum() / weight.sum())


def _weights(rows: PowerRows, u: FloatArray, code: npt.NDArray[np.intp]) -> FloatArray:
    bins = [np.digitize(u[:, 0], [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])]
    bins.append(np.digitize(u[:, 1], [0.05, 0.1, 0.2, 0.4, 0.6, 0.8]))
    _, cell = np.unique(
        np.stack([*bins, code, rows.device], axis=1), axis=0, return_inverse=True
    )  # fmt: skip
    cell = cell.reshape(-1)
    weight = 1.0 / np.sqrt(np.bincount(cell)[cell])
    per_device = np.bincount(rows.device, weights=weight)
    return weight / per_device[rows.device]


def _minimise(
    residual: Any, box: tuple[FloatArray, FloatArray, FloatArray, Mask], weight: FloatArray
) -> FloatArray:
    start, low, high, free = box
    at = start.copy()
    r = residual(at)
    loss = float((weight * np.abs(r)).sum())
    damping = 1e-2
    for _ in range(80):
        step = 1e-6
        columns = []
        for j in np.flatnonzero(free):
            moved = at.copy()
            moved[j] += step
            columns.append((residual(moved) - r) / step)
        jacobian = np.array(columns).T
        w = weight / np.maximum(np.abs(r), 1e-3)
        normal = jacobian.T @ (jacobian * w[:, None])
        gradient = jacobian.T @ (w * r)
        scale = np.diag(np.diag(normal) + 1e-12 * np.trace(normal) + 1e-300)
        for _ in range(12):
            trial = at.copy()
            trial[free] -= np.linalg.solve(normal + damping * scale, gradient)
            trial = np.clip(trial, low, high)
            new = residual(trial)
            new_loss = float((weight * np.abs(new)).sum())
            if new_loss < loss:
                break
            damping *= 4.0
        else:
            return at
        done = loss - new_loss < 1e-9 * loss
        at, r, loss = trial, new, new_loss
        damping = max(damping / 8.0, 1e-9)
        if done:
            break
    return at
