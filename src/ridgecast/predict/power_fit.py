"""Fitting the power basis to measured labels, calibrating its intervals, scoring both.

Owns the robust non-negative fit and the split-conformal residuals of `power`. Whole (n, k) pairs
are held out of the fit and of the calibration, and residuals come from fits that did not see the
pair (5 folds). The sensor's lag is measured, not removed: shapes come in a grid order, so a model
that may look at m, n and k learns which kernel ran before, which no user's kernel shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError, UnsupportedError
from ..hardware import Hardware, get
from ..store import Table, length, make_split, require_columns, select
from ..store.importers.aiconfigurator import POWER_FLOOR
from .power import LEVELS, OVERSHOOT, Basis, PowerModel, cell_of, cells, gemm_work

__all__ = ["fit_power", "shape_folds", "shape_pairs", "signed_residuals"]

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_SHAPES = tuple((gamma, p) for gamma in (0.5, 0.7, 1.0) for p in (4.0, 8.0, 16.0))
_FOLDS = 5
_CELL_ROWS = 100  # a cell with fewer labels takes those of its demand bin, then of its group
_TIME_ERROR = 0.05  # standard log error of time that the energy factor is calibrated at (assumed)
_Z90 = 1.6449  # half-width of a 90 % interval in standard deviations of a normal
_SETTLED = 0.1  # a label is settled where the one before lies within this log distance of ours
_SCORE_ROWS = 50  # fewer rows give no score
_SCORE_BUCKETS = ((0.0, 20e-6), (20e-6, 200e-6), (200e-6, np.inf))  # s, as the time scores have


@dataclass(frozen=True, slots=True)
class _Rows:
    """Labels of one or more devices, in the order in which they were taken."""

    device: npt.NDArray[np.intp]
    dtype: npt.NDArray[Any]
    work: FloatArray  # [rows, 3] operations over rate, bytes over bandwidth, bytes over L2's: s
    label: FloatArray  # power / board power
    before: FloatArray  # the label before it in the same collection
    time: FloatArray
    burst: FloatArray  # time of the same point in a short run; the same where not known
    usable: Mask
    pair: npt.NDArray[np.intp]  # which (n, k)
    fold: npt.NDArray[np.intp]  # of the pair; -1 is held out

    def take(self, rows: npt.NDArray[Any]) -> _Rows:
        return _Rows(*(getattr(self, f.name)[rows] for f in fields(self)))


def fit_power(
    table: Table,
    *,
    burst: Table | None = None,
    seed: int = 0,
    holdout: float = 0.1,
    shapes: Sequence[tuple[float, float]] = _SHAPES,
) -> PowerModel:
    """Fit power to measurements (canonical columns; power_w, power_valid, time_s, in file order).

    `burst` are measurements of the same points in short runs: the energy interval then covers
    what a time model of bursts misses in sustained runs. `holdout` is the share of (n, k) pairs
    kept out of the fit and of the calibration, and scored (0 = none). `shapes` lists the
    (gamma, sharpness) to choose from by training loss. Columns memory_bytes and l2_bytes, where
    present, replace the unique bytes of a GEMM and nothing at the L2.
    Raises NoDataError when no row has a usable power.
    """
    rows, hardware = _prepare(table, burst, seed, holdout)
    train = rows.take(rows.usable & (rows.fold >= 0))
    shape = min(shapes, key=lambda s: _fit(train, s)[1]) if len(shapes) > 1 else shapes[0]
    devices = {h.name: _fit(train.take(train.device == i), shape)[0] for i, h in _each(hardware)}
    pooled = _fit(train, shape)[0]
    floors = {
        h.name: POWER_FLOOR.get(h.name, float(rows.time[rows.usable & (rows.device == i)].min()))
        for i, h in _each(hardware)
    }
    power: dict[str, FloatArray] = {}
    energy: dict[str, FloatArray] = {}
    calibration = rows.fold >= 0
    own = _crossed(rows, len(hardware), shape)
    for i, h in _each(hardware):
        for name in sorted(set(rows.dtype[rows.usable & (rows.device == i)].tolist())):
            here = calibration & (rows.device == i) & (rows.dtype == name)
            power[f"{h.name}/{name}"] = _quantiles(rows, own, here, energy=False)
            energy[f"{h.name}/{name}"] = _quantiles(rows, own, here, energy=True)
    other = _left_out(rows, len(hardware), shape) if len(hardware) > 1 else own
    # one device cannot show how far another lies: its own residuals, doubled (assumed)
    widen = 1.0 if len(hardware) > 1 else 2.0
    power["transferred"] = widen * _quantiles(rows, other, calibration, energy=False)
    energy["transferred"] = widen * _quantiles(rows, other, calibration, energy=True)
    model = PowerModel(devices, pooled, power, energy, floors)
    factor = _energy_factor(model, rows, hardware, seed)
    card = _card(table, rows, hardware, (seed, holdout)) | {
        "burst_data": sorted(_texts(burst or {}, "collection", ...)),
        "sensor_memory": _sensor_memory(train, hardware, devices),
    }
    model = PowerModel(devices, pooled, power, energy, floors, factor, card)
    if not holdout:
        return model
    card["scores_crossed"] = _crossed_scores(rows, hardware, own)
    card["scores"] = _scores(model, rows, hardware, seed)
    card["scores_transferred"] = _transferred_scores(model, rows, hardware, other)
    return PowerModel(devices, pooled, power, energy, floors, factor, card)


def _each(hardware: list[Hardware]) -> list[tuple[int, Hardware]]:
    return list(enumerate(hardware))


def _prepare(
    table: Table, burst: Table | None, seed: int, holdout: float
) -> tuple[_Rows, list[Hardware]]:
    need = ("hardware", "dtype", "m", "n", "k", "time_s", "power_w", "power_valid")
    require_columns(table, need, what="power")
    before = _before(table)
    with np.errstate(invalid="ignore"):
        keep = (table["power_w"] > 0) & (table["time_s"] > 0)
    rated = np.zeros(length(table), dtype=bool)
    hardware: dict[str, Hardware] = {}
    scale = np.full((length(table), 3), np.nan)
    for name, fmt in sorted(set(zip(table["hardware"].tolist(), table["dtype"].tolist()))):  # noqa: B905
        here = (table["hardware"] == name) & (table["dtype"] == fmt)
        try:
            h = get(name)
            rate = h.rate(fmt)
        except (SpecError, UnsupportedError):
            continue
        if not (here & keep & table["power_valid"]).any():
            continue
        hardware[name] = h
        rated |= here
        scale[here] = rate, h.memory.bandwidth, h.l2.bandwidth
    keep &= rated
    if not (keep & table["power_valid"]).any():
        raise NoDataError("power: no row with a usable power_w (power_valid) on a known device")
    before, scale, table = before[keep], scale[keep], select(table, keep)
    flops, unique = gemm_work(table)
    work = [flops, table.get("memory_bytes", unique), table.get("l2_bytes", np.zeros(len(flops)))]
    names = list(hardware)
    device = np.array([names.index(h) for h in table["hardware"].tolist()], dtype=np.intp)
    board = np.array([h.board_power for h in hardware.values()])[device]
    time = table["time_s"].astype(np.float64)
    pair = shape_pairs(table)
    rows = _Rows(
        device=device,
        dtype=table["dtype"],
        work=np.stack(work, axis=1) / scale,
        label=table["power_w"] / board,
        before=before / board,
        time=time,
        burst=time if burst is None else _match(table, burst),
        usable=table["power_valid"].astype(bool),
        pair=pair,
        fold=shape_folds(table, pair, seed, holdout),
    )
    return rows, list(hardware.values())


def _before(table: Table) -> FloatArray:
    """Power of the row before in the same collection; the row's own for the first."""
    source = table["collection"] if "collection" in table else table["hardware"]
    power = table["power_w"].astype(np.float64)
    before = power.copy()
    before[1:][source[1:] == source[:-1]] = power[:-1][source[1:] == source[:-1]]
    return np.where(before > 0, before, power)


def shape_pairs(table: Table) -> npt.NDArray[np.intp]:
    """Which (n, k) pair each row is of."""
    shape = np.stack([table["n"], table["k"]], axis=1)
    return np.unique(shape, axis=0, return_inverse=True)[1].reshape(-1)


def shape_folds(
    table: Table, pair: npt.NDArray[np.intp], seed: int, holdout: float
) -> npt.NDArray[np.intp]:
    """Fold of each row, whole pairs together; -1 for the share `holdout` of pairs held out."""
    order = np.random.default_rng(seed).permutation(pair.max() + 1)
    fold = (order % _FOLDS)[pair]
    if holdout:
        fold[make_split("unseen_shape", table, seed=seed, fraction=holdout).test] = -1
    return fold


def _match(table: Table, burst: Table) -> FloatArray:
    """Time of each row's point in the short runs, NaN where it is not there."""
    columns = ("hardware", "dtype", "m", "n", "k")
    keys = zip(*(burst[c].tolist() for c in columns), strict=True)
    times = dict(zip(keys, burst["time_s"].tolist(), strict=True))
    wanted = zip(*(table[c].tolist() for c in columns), strict=True)
    return np.array([times.get(key, np.nan) for key in wanted])


# ------------------------------------------------------------------------------- robust fit


def _fit(rows: _Rows, shape: tuple[float, float]) -> tuple[Basis, float]:
    """Basis with the least weighted absolute log error, and that error.

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


def _weights(rows: _Rows, u: FloatArray, code: npt.NDArray[np.intp]) -> FloatArray:
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


# ------------------------------------------------------------------------------ calibration


@dataclass(frozen=True, slots=True)
class _Predicted:
    """Shares (and demands) predicted from the label's own time and from the burst time, by row."""

    share: FloatArray
    demand: FloatArray
    burst_share: FloatArray
    burst_demand: FloatArray


def _share(basis: Basis, rows: _Rows) -> _Predicted:
    names, code = np.unique(rows.dtype.astype(str), return_inverse=True)
    flop = np.array([basis.coefficient(str(n)) for n in names])[code]
    out = []
    for time in (rows.time, rows.burst):
        u = rows.work / time[:, None]
        demand = basis.demand((u[:, 0], u[:, 1], u[:, 2]), flop)
        out += [basis.share(demand), demand]
    return _Predicted(*out)


def _gather(rows: _Rows, parts: list[tuple[Mask, Basis]]) -> _Predicted:
    out = [np.full(len(rows.label), np.nan) for _ in range(4)]
    for here, basis in parts:
        found = _share(basis, rows.take(here))
        for column, field in zip(out, fields(_Predicted), strict=True):
            column[here] = getattr(found, field.name)
    return _Predicted(*out)


def _crossed(rows: _Rows, devices: int, shape: tuple[float, float]) -> _Predicted:
    """Predictions of each fold from a fit to the other folds of the device."""
    parts: list[tuple[Mask, Basis]] = []
    for i in range(devices):
        for fold in range(_FOLDS):
            here = (rows.device == i) & (rows.fold == fold)
            seen = (rows.device == i) & (rows.fold >= 0) & (rows.fold != fold) & rows.usable
            if here.any():
                parts.append((here, _fit(rows.take(seen), shape)[0]))
    return _gather(rows, parts)


def _left_out(rows: _Rows, devices: int, shape: tuple[float, float]) -> _Predicted:
    """Predictions of each device from a fit to the others."""
    parts: list[tuple[Mask, Basis]] = []
    for i in range(devices):
        seen = (rows.device != i) & (rows.fold >= 0) & rows.usable
        parts.append((rows.device == i, _fit(rows.take(seen), shape)[0]))
    return _gather(rows, parts)


def _quantiles(rows: _Rows, predicted: _Predicted, here: Mask, *, energy: bool) -> FloatArray:
    """Signed log residuals [time bin, demand bin, level, (low, high)] that cover at each level.

    Split-conformal, half of the miss on either side; (device, format) pairs count
    alike. Bins whose labels are unusable hold the labels as they are.
    """
    time, share, demand = rows.time, predicted.share, predicted.demand
    if energy:
        time, share, demand = rows.burst, predicted.burst_share, predicted.burst_demand
    with np.errstate(invalid="ignore"):
        residual = np.log(rows.label * rows.time / (share * time))
    here = here & np.isfinite(residual)
    bins, demands = cells()
    cell = np.where(here, cell_of(np.nan_to_num(time), np.nan_to_num(demand)), -1)
    group = np.unique(np.stack([rows.device, _codes(rows.dtype)]), axis=1, return_inverse=True)[1]
    group = group.reshape(-1)
    out = np.empty((bins, demands, len(LEVELS), 2))
    for b in range(bins):
        in_bin = here & (cell // demands == b)
        usable = rows.usable if (in_bin & rows.usable).any() else ~rows.usable
        for d in range(demands):
            chosen = here & (cell == b * demands + d)
            alike = here & (cell % demands == d)
            for wider in (alike & usable, in_bin, here & usable, here):
                if chosen.sum() >= _CELL_ROWS:
                    break
                chosen = wider
            pairs = len(np.unique(rows.pair[chosen]))
            out[b, d] = signed_residuals(residual[chosen], group[chosen], pairs)
    return out


def _codes(column: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    return np.unique(column.astype(str), return_inverse=True)[1]


def signed_residuals(residual: FloatArray, group: npt.NDArray[np.intp], units: float) -> FloatArray:
    """Residuals [LEVELS, (low, high)] that cover at each level, half of the miss on either side.

    Groups count alike; `units` is how many independent errors stand behind the residuals.
    """
    order = np.argsort(residual)
    weight = 1.0 / np.bincount(group)[group[order]]
    # labels of a pair err together, so the unseen mass, which may lie anywhere, is that of one more
    # pair, not of one more row (Lee, Barber, Willett 2023, conformal for hierarchical data)
    total = weight.sum() * (1.0 + 1.0 / units)
    below = np.cumsum(weight) / total
    above = np.cumsum(weight[::-1]) / total
    out = np.empty((len(LEVELS), 2))
    for i, level in enumerate(LEVELS):
        keep = 0.5 + level / 2.0
        last = len(residual) - 1
        out[i, 1] = residual[order][min(int(np.searchsorted(below, keep)), last)]
        out[i, 0] = residual[order][::-1][min(int(np.searchsorted(above, keep)), last)]
    return out


def _predict(
    model: PowerModel, rows: _Rows, hardware: list[Hardware], time: FloatArray
) -> dict[str, FloatArray]:
    """Model's answer for rows of several devices and formats, as shares of the board power."""
    keys = ("power_w", "power_low_w", "power_high_w", "demand")
    out = {n: np.full(len(time), np.nan) for n in keys}
    for i, h in _each(hardware):
        for name in sorted(set(rows.dtype[rows.device == i].tolist())):
            here = (rows.device == i) & (rows.dtype == name)
            scale = (h.rate(name), h.memory.bandwidth, h.l2.bandwidth)
            work = (rows.work[here, j] * scale[j] for j in range(3))
            got = model.predict(h, name, *work, time=time[here])
            for key, column in out.items():
                column[here] = got[key] / (1.0 if key == "demand" else h.board_power)
    return out


def _noisy(rows: _Rows, seed: int) -> FloatArray:
    """Burst times with the error of a time model."""
    noise = np.random.default_rng(seed).normal(0.0, _TIME_ERROR, len(rows.burst))
    return rows.burst * np.exp(noise)


def _energy_misses(
    model: PowerModel, rows: _Rows, hardware: list[Hardware], seed: int
) -> FloatArray:
    """Log error of energy over the half-width on its side: at most 1 where the label is covered."""
    time = _noisy(rows, seed)
    miss = np.full(len(time), np.nan)
    half = np.exp(_Z90 * _TIME_ERROR)
    got = _predict(model, rows, hardware, time)
    for i, h in _each(hardware):
        for name in sorted(set(rows.dtype[rows.device == i].tolist())):
            here = (rows.device == i) & (rows.dtype == name)
            t = time[here]
            power = {"power_w": got["power_w"][here] * h.board_power, "reason": "",
                     "demand": got["demand"][here]}  # fmt: skip
            e = model.energy(h, name, power, t, (t / half, t * half))
            error = np.log(rows.label[here] * h.board_power * rows.time[here] / e["energy_j"])
            up = np.log(e["energy_high_j"] / e["energy_j"])
            down = np.log(e["energy_j"] / e["energy_low_j"])
            miss[here] = np.where(error > 0, error / up, -error / down)
    return miss


def _energy_factor(model: PowerModel, rows: _Rows, hardware: list[Hardware], seed: int) -> float:
    miss = _energy_misses(model, rows, hardware, seed)
    miss = miss[(rows.fold >= 0) & rows.usable & np.isfinite(miss)]
    return float(np.quantile(miss, 0.9))


# ------------------------------------------------------------------------------- the card


def _card(
    table: Table, rows: _Rows, hardware: list[Hardware], split: tuple[int, float]
) -> dict[str, Any]:
    keep = np.isin(table["hardware"], [h.name for h in hardware])
    counts: dict[str, dict[str, int]] = {}
    for i, h in _each(hardware):
        for name in sorted(set(rows.dtype[rows.device == i].tolist())):
            here = (rows.device == i) & (rows.dtype == name)
            counts[f"{h.name}/{name}"] = {
                "fitted": int((here & rows.usable & (rows.fold >= 0)).sum()),
                "held_out": int((here & rows.usable & (rows.fold < 0)).sum()),
                "too_short": int((here & ~rows.usable).sum()),
            }
    return {
        "kind": "fitted",
        "data": sorted(_texts(table, "collection", keep)),
        "licence": sorted(_texts(table, "licence", keep)),
        "labels": "sensor means over windows of 0.3-1 s; they lag and do not repeat: two "
        "collections of the same points are reported to differ by 27-63 % (median) at equal time",
        "split": f"unseen_shape: {split[1]:.0%} of (n, k) pairs held out of fit and calibration",
        "seed": split[0],
        "counts": counts,
    }


def _texts(table: Table, column: str, keep: Any) -> set[str]:
    if column not in table:
        return set()
    return {str(v) for v in table[column][keep].tolist() if v}


def _sensor_memory(
    rows: _Rows, hardware: list[Hardware], devices: dict[str, Basis]
) -> dict[str, dict[str, float]]:
    """Share of the row before in each label, fitted on top of the basis; and what it explains.

    label = (1 - memory) predicted + memory before, least absolute log error over a grid.
    """
    out: dict[str, dict[str, float]] = {}
    for i, h in _each(hardware):
        for name in sorted(set(rows.dtype[rows.device == i].tolist())):
            part = rows.take((rows.device == i) & (rows.dtype == name))
            share = _share(devices[h.name], part).share
            errors = {
                memory: np.abs(np.log(((1 - memory) * share + memory * part.before) / part.label))
                for memory in np.arange(0.0, 1.0, 0.05).round(2).tolist()
            }
            best = min(errors, key=lambda memory: float(errors[memory].mean()))
            out[f"{h.name}/{name}"] = {
                "memory": best,
                "mean_log_error_without": round(float(errors[0.0].mean()), 4),
                "mean_log_error_with": round(float(errors[best].mean()), 4),
            }
    return out


def _score(label: FloatArray, predicted: FloatArray) -> dict[str, float]:
    error = np.abs(predicted / label - 1.0)
    return {
        "rows": len(label),
        "mape": round(float(error.mean()), 4),
        "median": round(float(np.median(error)), 4),
        "p90": round(float(np.quantile(error, 0.9)), 4),
        "bias": round(float(np.median(predicted / label) - 1.0), 4),
    }


def _buckets(rows: _Rows, hardware: list[Hardware]) -> Iterator[tuple[str, Mask, Mask]]:
    """Name, rows to score and whole group of each device and format, then by time."""
    for i, h in _each(hardware):
        for name in sorted(set(rows.dtype[rows.device == i].tolist())):
            group = (rows.device == i) & (rows.dtype == name) & rows.usable
            yield f"{h.name}/{name}", group, group
            for low, high in _SCORE_BUCKETS:
                here = group & (rows.time > low) & (rows.time <= high)
                yield f"{h.name}/{name} {low * 1e6:g}-{high * 1e6:g} us", here, group


def _scores(
    model: PowerModel, rows: _Rows, hardware: list[Hardware], seed: int
) -> dict[str, dict[str, float]]:
    """Scores on the held-out pairs, by device and format and by time, beside plain baselines."""
    got = _predict(model, rows, hardware, rows.time)
    burst = _predict(model, rows, hardware, rows.burst)
    covered, covered_burst = (
        (answer["power_low_w"] <= rows.label) & (rows.label <= answer["power_high_w"])
        for answer in (got, burst)
    )
    miss = _energy_misses(model, rows, hardware, seed + 1)
    settled = np.abs(np.log(rows.before / got["power_w"])) < _SETTLED
    out: dict[str, dict[str, float]] = {}
    for name, bucket, group in _buckets(rows, hardware):
        here = bucket & (rows.fold < 0)
        if here.sum() < _SCORE_ROWS:
            continue
        label, predicted = rows.label[here], got["power_w"][here]
        median = float(np.median(rows.label[group & (rows.fold >= 0)]))
        calm = settled[here]
        width = got["power_high_w"][here] / got["power_low_w"][here]
        score = _score(label, predicted) | {
            "mape_constant_median": _score(label, np.full(len(label), median))["mape"],
            "mape_board_power": _score(label, np.ones(len(label)))["mape"],
            "rows_settled": int(calm.sum()),
            "covered_90": round(float(covered[here].mean()), 4),
            "median_high_over_low": round(float(np.median(width)), 3),
        }
        if calm.any():
            score["mape_settled"] = _score(label[calm], predicted[calm])["mape"]
        known = here & np.isfinite(miss)
        if known.any():
            score["covered_90_at_burst_time"] = round(float(covered_burst[known].mean()), 4)
            score["energy_covered_90"] = round(float((miss[known] <= 1.0).mean()), 4)
        out[name] = score
    return out


def _crossed_scores(
    rows: _Rows, hardware: list[Hardware], own: _Predicted
) -> dict[str, dict[str, float]]:
    """Scores with every (n, k) pair held out once: fit and calibrated on the other folds.

    One split holds few pairs, and labels of a pair err together, so its coverage scatters.
    """
    covered = np.zeros(len(rows.label), dtype=bool)
    known = rows.fold >= 0
    residual = np.log(rows.label / own.share)
    for _, group, whole in _buckets(rows, hardware):
        if group is not whole:
            continue
        for fold in range(_FOLDS):
            test = group & (rows.fold == fold)
            others = group & known & (rows.fold != fold)
            if not test.any() or not others.any():
                continue
            table = _quantiles(rows, own, others, energy=False)
            low, high = _ninety(table, rows.time[test], own.demand[test])
            covered[test] = (low <= residual[test]) & (residual[test] <= high)
    out: dict[str, dict[str, float]] = {}
    for name, bucket, _ in _buckets(rows, hardware):
        here = bucket & known
        if here.sum() >= _SCORE_ROWS:
            score = _score(rows.label[here], own.share[here])
            out[name] = score | {"covered_90": round(float(covered[here].mean()), 4)}
    return out


def _ninety(table: FloatArray, time: FloatArray, demand: FloatArray) -> tuple[FloatArray, ...]:
    at = table[:, :, LEVELS.index(0.9)].reshape(-1, 2)[cell_of(time, demand)]
    return np.minimum(at[:, 0], 0.0), np.maximum(at[:, 1], 0.0)


def _transferred_scores(
    model: PowerModel, rows: _Rows, hardware: list[Hardware], other: _Predicted
) -> dict[str, dict[str, float]]:
    """Scores of each device, predicted from the other devices alone.

    Their intervals were calibrated on these very devices, all alike: no further one has labels.
    """
    low, high = _ninety(model.residuals["transferred"], rows.time, other.demand)
    residual = np.log(rows.label / other.share)
    covered = (low <= residual) & (residual <= high)
    out: dict[str, dict[str, float]] = {}
    for name, bucket, whole in _buckets(rows, hardware):
        here = bucket & (rows.fold < 0)
        if bucket is whole and here.any():
            out[name] = _score(rows.label[here], other.share[here]) | {
                "covered_90": round(float(covered[here].mean()), 4)
            }
    mean = float(np.mean([score["covered_90"] for score in out.values()]))
    out["mean over devices and formats"] = {"covered_90": round(mean, 4)}
    return out
