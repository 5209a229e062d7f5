"""Fitting the power model to measured labels: basis, intervals and scores.

    measured table -> power_rows -> power_robust (basis) -> power_calibrate (residuals)
    -> power_scores (card, held-out points) -> `PowerModel`

Owns the order of these steps. Whole (n, k) pairs are held out of the fit and of the calibration,
and residuals come from fits that did not see the pair (5 folds). The sensor's lag is measured, not
removed: shapes come in a grid order, so a model that may look at m, n and k learns which kernel
ran before, which no user's kernel shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..store import Table
from ..store.importers.aiconfigurator import POWER_FLOOR
from .parity import save_parity
from .power import PowerModel
from .power_calibrate import crossed, energy_factor, left_out, quantiles
from .power_robust import fit_basis
from .power_rows import FloatArray, power_rows
from .power_scores import (
    crossed_scores,
    describe,
    held_out_scores,
    sensor_memory,
    transferred_scores,
)

__all__ = ["fit_power", "save_power"]

_SHAPES = tuple((gamma, p) for gamma in (0.5, 0.7, 1.0) for p in (4.0, 8.0, 16.0))


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
    rows = power_rows(table, burst, seed, holdout)
    train = rows.take(rows.usable & (rows.fold >= 0))
    shape = min(shapes, key=lambda s: fit_basis(train, s)[1]) if len(shapes) > 1 else shapes[0]
    devices = {
        h.name: fit_basis(train.take(train.device == i), shape)[0]
        for i, h in enumerate(rows.hardware)
    }
    pooled = fit_basis(train, shape)[0]
    floors = {
        h.name: POWER_FLOOR.get(h.name, float(rows.time[rows.usable & (rows.device == i)].min()))
        for i, h in enumerate(rows.hardware)
    }
    power: dict[str, FloatArray] = {}
    energy: dict[str, FloatArray] = {}
    calibration = rows.fold >= 0
    own = crossed(rows, shape)
    for h, name, here in rows.groups():
        if (here & rows.usable).any():
            power[f"{h.name}/{name}"] = quantiles(rows, own, calibration & here, energy=False)
            energy[f"{h.name}/{name}"] = quantiles(rows, own, calibration & here, energy=True)
    several = len(rows.hardware) > 1
    other = left_out(rows, shape) if several else own
    # one device cannot show how far another lies: its own residuals, doubled (assumed)
    widen = 1.0 if several else 2.0
    power["transferred"] = widen * quantiles(rows, other, calibration, energy=False)
    energy["transferred"] = widen * quantiles(rows, other, calibration, energy=True)
    model = PowerModel(devices, pooled, power, energy, floors)
    card = describe(table, burst, rows, (seed, holdout))
    card["sensor_memory"] = sensor_memory(train, devices)
    model = replace(model, energy_factor=energy_factor(model, rows, seed), card=card)
    if not holdout:
        return model
    card["scores_crossed"], points = crossed_scores(rows, own)
    card["scores"], energies = held_out_scores(model, rows, seed)
    strangers = []
    if several:
        card["scores_transferred"], strangers = transferred_scores(model, rows, other)
    return replace(model, card=card, samples=(*points, *strangers, *energies))


def save_power(model: PowerModel, folder: Path) -> None:
    """Write card.json, and parity.json where the model has held-out points, into a new folder."""
    folder.mkdir()
    model.save(folder / "card.json")
    data, licences = (", ".join(model.card.get(key, ())) for key in ("data", "licence"))
    save_parity(folder, model.samples, source=data, licence=licences)
