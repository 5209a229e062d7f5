"""Fitting the energy basis of one device to energy-counter rows, and scoring it honestly.

Owns the robust non-negative fit of `power_basis`, its held-out groups and the repeat floor. A row's
error is relative: the fit weighs a 1 mJ kernel like a 10 J one. Knows no meter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError
from ..store import CONFIG_COLUMNS, Table, factorize, length, require_columns, select
from .power import gemm_work
from .power_basis import BYTE_LEVELS, PowerBasis
from .power_calibrate import signed_residuals
from .power_rows import shape_folds, shape_pairs
from .scores import score

__all__ = ["fit_basis", "repeat_floor"]

F64 = npt.NDArray[np.float64]

_HUBER = 1.345  # 95 % efficient on normal errors (Huber 1981)
_MAX_SLOPE = 1.5  # kappa: V may fall faster than f, but not by half again (assumed)
_CLOCK_SPREAD = 0.005  # clocks whose relative deviation is less tell nothing of the voltage
_LEAST_PAIRS = 6  # five folds, and one held out
_IDENTITY = ("hardware", "dtype", "m", "n", "k", "batch", "layout", "kernel", "cache", "pattern",
             *CONFIG_COLUMNS)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Rows:
    """Energy rows of one device: work, time, clock over the reference, labels."""

    dtype: npt.NDArray[np.intp]
    flops: F64
    moved: F64  # [rows, levels], bytes
    time: F64
    phi: F64
    energy: F64
    pair: npt.NDArray[np.intp]

    def take(self, rows: npt.NDArray[Any]) -> _Rows:
        return _Rows(*(getattr(self, name)[rows] for name in _Rows.__slots__))


@dataclass(frozen=True, slots=True)
class _Names:
    """What the columns of a fit stand for."""

    hardware: str
    dtypes: tuple[str, ...]
    levels: tuple[str, ...]
    clock: float  # reference [Hz], NaN where no row has one
    idle: float  # measured [W], NaN where it must be fitted

    @property
    def varies(self) -> bool:
        """Whether the clocks of the rows differ."""
        return np.isfinite(self.clock)


def fit_basis(table: Table, *, seed: int = 0, holdout: float = 0.2) -> PowerBasis:
    """Fit the basis to energy rows of one device (energy_j, energy_valid, sustained_time_s ...).

    Non-negative least squares of the relative error, Huber weights against bad windows, kappa by
    golden section. Where every row has idle_power_w, P_idle is its median and P_clock is fitted;
    elsewhere P_idle is fitted, and P_clock too where the clocks (clock_mean_hz) vary. Whole (n, k)
    groups are held out: a share `holdout` is scored and never seen, the rest gives residuals in 5
    folds. Columns of BYTE_LEVELS, where present, are the bytes; unique bytes else.
    Raises NoDataError for too few usable rows, SpecError for several devices.
    """
    rows, names = _prepare(table)
    need = 3 * (3 + len(names.dtypes) + len(names.levels))
    pairs = len(np.unique(rows.pair))
    if len(rows.time) < need or pairs < _LEAST_PAIRS:
        raise NoDataError(
            f"power basis: got {len(rows.time)} usable energy rows in {pairs} (n, k) groups, need "
            f"{need} in {_LEAST_PAIRS}; measure more points with energy = true"
        )
    fold = shape_folds(_used(table), rows.pair, seed, holdout)
    kept = np.flatnonzero(fold >= 0)
    parts: list[F64] = []
    residual = np.full(len(fold), np.nan)
    for part in np.unique(fold[kept]):
        fitted = _fit(rows.take((fold >= 0) & (fold != part)), names)
        here = fold == part
        residual[here] = np.log(rows.energy[here] / _predict(rows.take(here), fitted))
        parts.append(fitted)
    whole = _fit(rows.take(kept), names)
    group = np.zeros(len(kept), np.intp)
    units = _independent(residual[kept], rows.pair[kept])
    basis = _named(whole, names, signed_residuals(residual[kept], group, units))
    card = {
        "kind": "fitted",
        "data": sorted({str(c) for c in table.get("collection", np.array([])).tolist() if c}),
        "split": f"unseen_shape: {holdout:.0%} of (n, k) groups held out; the rest in 5 folds",
        "seed": seed,
        "rows": {"fitted": len(kept), "held_out": int((fold < 0).sum()),
                 "unusable": length(table) - len(fold)},
        "idle_power": "measured" if np.isfinite(names.idle) else "fitted",
        "spread_over_folds": _spread(parts, whole, names),
        "repeat_floor": repeat_floor(_used(table)),
    }  # fmt: skip
    if holdout:
        test = rows.take(fold < 0)
        predicted = _predict(test, whole)
        card["scores"] = {"unseen_shape": score(test.energy, predicted, *basis.interval(predicted))}
    return replace(basis, card=card)


def _independent(residual: F64, pair: npt.NDArray[np.intp]) -> float:
    """How many independent errors the rows hold: those of a pair may err together.

    rows / (1 + (rows a pair - 1) rho) with the intraclass correlation rho of a one-way analysis of
    variance. Source: Kish, Survey Sampling, 1965, design effect of clusters.
    """
    code, count = np.unique(pair, return_inverse=True, return_counts=True)[1:]
    code, rows, pairs = code.reshape(-1), len(residual), len(count)
    mean = np.bincount(code, weights=residual) / count
    between = float((count * (mean - residual.mean()) ** 2).sum()) / max(pairs - 1, 1)
    within = float(((residual - mean[code]) ** 2).sum()) / max(rows - pairs, 1)
    size = (rows - float((count**2).sum()) / rows) / max(pairs - 1, 1)
    total = between + (size - 1.0) * within
    rho = float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 1.0
    return rows / (1.0 + (size - 1.0) * rho)


def repeat_floor(table: Table) -> dict[str, Any] | None:
    """How far repeats of the same point lie apart; None where no point has a valid repeat.

    `mape` is the mean error that a perfect model shows against single labels: of n repeats, the
    mean of |x - mean| sqrt(n / (n - 1)) / mean. `spread` is the median over points of the largest
    over the smallest repeat, less 1. `repeats` counts rows, `points` what they repeat.
    """
    names = [name for name in _IDENTITY if name in table]
    keys = np.stack([factorize(table[name].astype(str))[0] for name in names], axis=1)
    group = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    count = np.bincount(group)
    energy = table["energy_j"].astype(np.float64)
    several = np.isin(group, np.flatnonzero(count > 1))
    if not several.any():
        return None
    mean = (np.bincount(group, weights=energy) / count)[group]
    n = count[group].astype(np.float64)
    error = (np.abs(energy / mean - 1.0) * np.sqrt(n / np.maximum(n - 1.0, 1.0)))[several]
    order = np.argsort(energy)
    first, last = np.zeros(len(count)), np.zeros(len(count))
    first[group[order[::-1]]], last[group[order]] = energy[order[::-1]], energy[order]
    points = count > 1
    return {
        "mape": round(float(error.mean()), 5),
        "spread": round(float(np.median(last[points] / first[points] - 1.0)), 5),
        "repeats": int(several.sum()),
        "points": int(points.sum()),
    }


def _used(table: Table) -> Table:
    """Rows with a valid energy."""
    require_columns(table, ("energy_j", "dtype", "m", "n", "k", "hardware"), what="power basis")
    flag = "energy_valid" if "energy_valid" in table else "power_valid"
    require_columns(table, (flag,), what="power basis")
    energy, time = table["energy_j"].astype(np.float64), _time(table)
    with np.errstate(invalid="ignore"):
        good = table[flag].astype(bool) & (energy > 0) & (time > 0)
    return select(table, good)


def _time(table: Table) -> F64:
    """Sustained time of a run where it was measured, else its time in a burst."""
    time = table["time_s"].astype(np.float64) if "time_s" in table else np.nan
    if "sustained_time_s" not in table:
        require_columns(table, ("time_s",), what="power basis")
        return np.asarray(time)
    sustained = table["sustained_time_s"].astype(np.float64)
    return np.where(sustained > 0, sustained, time)


def _prepare(table: Table) -> tuple[_Rows, _Names]:
    table = _used(table)
    devices = sorted(set(table["hardware"].tolist()))
    if len(devices) > 1:
        raise SpecError(f"power basis: got rows of {', '.join(devices)}; fit one device at a time")
    if not devices:
        raise NoDataError("power basis: no row with a valid energy_j")
    flops, unique = gemm_work(table)
    levels = ["memory"]
    moved = [_column(table, BYTE_LEVELS["memory"], unique)]
    for level, column in BYTE_LEVELS.items():
        if level != "memory" and column in table and np.isfinite(_column(table, column)).all():
            levels.append(level)
            moved.append(_column(table, column))
    names = sorted(set(table["dtype"].tolist()))
    clock = _column(table, "clock_mean_hz")
    known = bool(np.isfinite(clock).all())
    reference = float(clock.max()) if known else np.nan
    varies = known and float(np.std(clock / reference)) > _CLOCK_SPREAD
    idle = _column(table, "idle_power_w")
    rows = _Rows(
        dtype=np.array([names.index(d) for d in table["dtype"].tolist()], np.intp),
        flops=flops,
        moved=np.stack(moved, axis=1),
        time=_time(table),
        phi=clock / reference if varies else np.ones(len(flops)),
        energy=table["energy_j"].astype(np.float64),
        pair=shape_pairs(table),
    )
    measured = float(np.median(idle)) if np.isfinite(idle).all() else np.nan
    return rows, _Names(
        devices[0], tuple(names), tuple(levels), reference if varies else np.nan, measured
    )


def _column(table: Table, name: str, default: Any = np.nan) -> F64:
    """Column as numbers; `default` where it is absent or not a number."""
    fallback = np.broadcast_to(np.asarray(default, np.float64), (length(table),))
    if name not in table:
        return fallback.copy()
    values = table[name].astype(np.float64)
    return np.where(np.isfinite(values), values, fallback)


# Coefficients are a vector: idle, clock power, formats ..., levels ..., kappa.


def _design(rows: _Rows, kappa: float, formats: int) -> F64:
    """Columns [rows, coefficients] whose sum with the coefficients is the energy."""
    s = (1.0 + kappa * (rows.phi - 1.0)) ** 2
    columns = [rows.time, rows.time * rows.phi * s]
    columns += [np.where(rows.dtype == d, s * rows.flops, 0.0) for d in range(formats)]
    columns += [rows.moved[:, i] * (1.0 if i == 0 else s) for i in range(rows.moved.shape[1])]
    return np.stack(columns, axis=1)


def _predict(rows: _Rows, values: F64) -> F64:
    formats = len(values) - 3 - rows.moved.shape[1]
    return _design(rows, float(values[-1]), formats) @ values[:-1]


def _fit(rows: _Rows, names: _Names) -> F64:
    if not names.varies:
        return np.append(_solve(rows, names, 0.0)[0], 0.0)
    kappa = _golden(lambda k: _solve(rows, names, k)[1], 0.0, _MAX_SLOPE)
    return np.append(_solve(rows, names, kappa)[0], kappa)


def _solve(rows: _Rows, names: _Names, kappa: float) -> tuple[F64, float]:
    """Coefficients at a given kappa and their Huber loss: reweighted non-negative least squares."""
    design = _design(rows, kappa, len(names.dtypes)) / rows.energy[:, None]
    target = np.ones(len(rows.energy))
    fixed = np.isfinite(names.idle)
    free = np.ones(design.shape[1], bool)
    if fixed:
        target = target - names.idle * design[:, 0]
        free[0] = False
    elif not names.varies:
        free[1] = False  # with one clock, idle and clock power are the same column
    values, weight = np.zeros(design.shape[1]), np.ones(len(target))
    loss = np.inf
    for _ in range(50):
        root = np.sqrt(weight)
        values[free] = _nnls(design[:, free] * root[:, None], target * root)
        residual = design @ values - target
        # scale of the errors by their median, not below what a counter resolves
        scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-4)
        reach = np.abs(residual) / (_HUBER * scale)
        weight = 1.0 / np.maximum(reach, 1.0)
        # Huber's function with its scale, so that kappa cannot win by a wider scale
        new = float(np.mean(np.where(reach <= 1, 0.5 * reach**2, reach - 0.5)))
        new = (new + 0.5) * scale
        if abs(loss - new) < 1e-9 * new:
            break
        loss = new
    if fixed:
        values[0] = names.idle
    return values, loss


def _nnls(a: F64, b: F64) -> F64:
    """Least squares with every coefficient 0 or more, by active sets.

    Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.
    """
    scale = np.linalg.norm(a, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    a = a / scale
    x, active = np.zeros(a.shape[1]), np.zeros(a.shape[1], bool)
    for _ in range(3 * a.shape[1]):
        gradient = a.T @ (b - a @ x)
        if active.all() or gradient[~active].max() <= 1e-10 * np.linalg.norm(b):
            break
        active[np.flatnonzero(~active)[np.argmax(gradient[~active])]] = True
        while active.any():
            trial = np.zeros(a.shape[1])
            trial[active] = np.linalg.lstsq(a[:, active], b, rcond=None)[0]
            if trial[active].min() > 0:
                break
            falling = active & (trial <= 0)
            step = float(np.min(x[falling] / np.maximum(x[falling] - trial[falling], 1e-300)))
            x = x + step * (trial - x)
            active &= x > 1e-14
            x = np.where(active, x, 0.0)
        else:
            trial = np.zeros(a.shape[1])
        x = trial
    return x / scale


def _golden(loss: Callable[[float], float], low: float, high: float) -> float:
    """Minimum of a function of one number between `low` and `high`, to 1e-3 of the range."""
    ratio = 0.5 * (np.sqrt(5.0) - 1.0)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    end = 1e-3 * (high - low)
    while high - low > end:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = loss(b)
    return 0.5 * (low + high)


def _named(values: F64, names: _Names, residuals: F64) -> PowerBasis:
    formats = len(names.dtypes)
    by_format = values[2 : 2 + formats].tolist()
    by_level = values[2 + formats : -1].tolist()
    return PowerBasis(
        hardware=names.hardware,
        idle_power=float(values[0]),
        clock_power=float(values[1]),
        flop_energy=dict(zip(names.dtypes, by_format, strict=True)),
        byte_energy=dict(zip(names.levels, by_level, strict=True)),
        voltage_slope=float(values[-1]),
        clock=names.clock,
        residuals=residuals,
    )


def _spread(parts: Sequence[F64], whole: F64, names: _Names) -> dict[str, float]:
    """Largest relative distance of each coefficient over the folds: what the data cannot tell."""
    labels = ["idle_power", "clock_power", *names.dtypes, *names.levels, "voltage_slope"]
    stack = np.array(parts)
    out: dict[str, float] = {}
    for i, label in enumerate(labels):
        if whole[i] > 0:
            out[label] = round(float(np.abs(stack[:, i] / whole[i] - 1.0).max()), 4)
    return out
