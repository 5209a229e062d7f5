"""Split-conformal residuals of the power model, and of the energy that follows from it.

Owns the predictions that did not see a label's (n, k) pair or device, and the residuals of these
that make the intervals. Bases come from `power_robust`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from .power import LEVELS, Basis, PowerModel, cell_of, cells
from .power_robust import fit_basis
from .power_rows import FOLDS, FloatArray, Mask, PowerRows

__all__ = ["PredictedShares", "crossed", "energy_factor", "energy_misses", "left_out",
           "predicted_energy", "predicted_power", "quantiles", "shares",
           "signed_residuals"]  # fmt: skip

_CELL_ROWS = 100  # a cell with fewer labels takes those of its demand bin, then of its group
_TIME_ERROR = 0.05  # standard log error of time that the energy factor is calibrated at (assumed)
_Z90 = 1.6449  # half-width of a 90 % interval in standard deviations of a normal


@dataclass(frozen=True, slots=True)
class PredictedShares:
    """Shares (and demands) predicted from the label's own time and from the burst time, by row."""

    share: FloatArray
    demand: FloatArray
    burst_share: FloatArray
    burst_demand: FloatArray


def shares(basis: Basis, rows: PowerRows) -> PredictedShares:
    """Predict every row from one basis."""
    names, code = np.unique(rows.dtype.astype(str), return_inverse=True)
    flop = np.array([basis.coefficient(str(n)) for n in names])[code]
    out = []
    for time in (rows.time, rows.burst):
        u = rows.work / time[:, None]
        demand = basis.demand((u[:, 0], u[:, 1], u[:, 2]), flop)
        out += [basis.share(demand), demand]
    return PredictedShares(*out)


def _gather(rows: PowerRows, parts: list[tuple[Mask, Basis]]) -> PredictedShares:
    out = [np.full(len(rows.label), np.nan) for _ in range(4)]
    for here, basis in parts:
        found = shares(basis, rows.take(here))
        for column, field in zip(out, fields(PredictedShares), strict=True):
            column[here] = getattr(found, field.name)
    return PredictedShares(*out)


def crossed(rows: PowerRows, shape: tuple[float, float]) -> PredictedShares:
    """Predictions of each fold from a fit to the other folds of the device."""
    parts: list[tuple[Mask, Basis]] = []
    for i in range(len(rows.hardware)):
        for fold in range(FOLDS):
            here = (rows.device == i) & (rows.fold == fold)
            seen = (rows.device == i) & (rows.fold >= 0) & (rows.fold != fold) & rows.usable
            if here.any():
                parts.append((here, fit_basis(rows.take(seen), shape)[0]))
    return _gather(rows, parts)


def left_out(rows: PowerRows, shape: tuple[float, float]) -> PredictedShares:
    """Predictions of each device from a fit to the others."""
    parts: list[tuple[Mask, Basis]] = []
    for i in range(len(rows.hardware)):
        seen = (rows.device != i) & (rows.fold >= 0) & rows.usable
        parts.append((rows.device == i, fit_basis(rows.take(seen), shape)[0]))
    return _gather(rows, parts)


def quantiles(
    rows: PowerRows, predicted: PredictedShares, here: Mask, *, energy: bool
) -> FloatArray:
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


def predicted_power(model: PowerModel, rows: PowerRows, time: FloatArray) -> dict[str, FloatArray]:
    """Answer of a model at times [s]: power_w, power_low_w, power_high_w and demand [rows]."""
    keys = ("power_w", "power_low_w", "power_high_w", "demand")
    out = {n: np.full(len(time), np.nan) for n in keys}
    for h, name, here in rows.groups():
        scale = (h.rate(name), h.memory.bandwidth, h.l2.bandwidth)
        work = (rows.work[here, j] * scale[j] for j in range(3))
        got = model.predict(h, name, *work, time=time[here])
        for key, column in out.items():
            column[here] = got[key]
    return out


def predicted_energy(model: PowerModel, rows: PowerRows, seed: int) -> dict[str, FloatArray]:
    """Energy as users get it, from burst times that a time model mispredicts.

    Columns [rows]: truth_j (label times its own time), energy_j, energy_low_j, energy_high_j.
    """
    noise = np.random.default_rng(seed).normal(0.0, _TIME_ERROR, len(rows.burst))
    time = rows.burst * np.exp(noise)
    half = np.exp(_Z90 * _TIME_ERROR)
    got = predicted_power(model, rows, time)
    keys = ("energy_j", "energy_low_j", "energy_high_j")
    out = {n: np.full(len(time), np.nan) for n in keys}
    for h, name, here in rows.groups():
        t = time[here]
        power = {"power_w": got["power_w"][here], "reason": "", "demand": got["demand"][here]}
        energy = model.energy(h, name, power, t, (t / half, t * half))
        for key, column in out.items():
            column[here] = energy[key]
    return {"truth_j": rows.label * rows.board() * rows.time, **out}


def energy_misses(energy: dict[str, FloatArray]) -> FloatArray:
    """Log error of energy over the half-width on its side: at most 1 where the label is covered."""
    error = np.log(energy["truth_j"] / energy["energy_j"])
    up = np.log(energy["energy_high_j"] / energy["energy_j"])
    down = np.log(energy["energy_j"] / energy["energy_low_j"])
    return np.where(error > 0, error / up, -error / down)


def energy_factor(model: PowerModel, rows: PowerRows, seed: int) -> float:
    """Factor on the energy's half-widths that covers 90 % of the labels that were not held out."""
    miss = energy_misses(predicted_energy(model, rows, seed))
    return float(np.quantile(miss[(rows.fold >= 0) & rows.usable & np.isfinite(miss)], 0.9))
