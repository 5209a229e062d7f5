"""The time model of one device and format from the few points that a calibration measures.

Owns the choice between two recipes of `transfer` (a prior bent to the device, and physics with a
process from the points alone), their intervals, and the folder on disk. It answers as a
`time_model.TimeModel` does. Knows no measuring.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError
from ..hardware import Hardware
from . import transfer
from .conformal import DISTANCES, Conformal, fit_conformal
from .domain import Domain
from .prior import Prior, rows_of
from .time_model import LEAST_ROWS, Shapes, read_card

__all__ = ["CalibratedModel", "fit_calibrated", "load_calibrated", "save_calibrated"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
FILE = "calibrated.npz"
_FOLDS = 5
_INSIDE = DISTANCES.index("unseen_pair")
_FRONTIER = DISTANCES.index("frontier")


@dataclass(frozen=True, slots=True)
class CalibratedModel:
    """Predicts time of library GEMMs of one format on the device that was calibrated.

    `model` is a prior bent to the device (`transfer.Calibrated`) or a fit to its points alone
    (`transfer.Small`), whichever had the smaller error on points left out; `card` says which.
    """

    model: transfer.Calibrated | transfer.Small
    domain: Domain
    conformal: Conformal
    card: dict[str, Any]

    def predict(
        self, shapes: Shapes, dtype: str, hardware: Hardware, level: float = 0.9
    ) -> tuple[F64, F64, F64, I64]:
        """Time, lower, upper [s] and distance class of each row.

        Shapes inside the measured range share one class: a calibration has no grid to be off.
        """
        rows = rows_of(shapes, dtype, hardware, hardware.family)
        mean, spread = _parts(self.model, rows)
        distance = self.domain.distance(*shapes)
        distance = np.where(distance < _FRONTIER, _INSIDE, distance)
        time = np.exp(mean)
        low, high = self.conformal.interval(time, distance, spread, level)
        # beyond the calibrated reach the interval opens by its own width per doubling (assumed)
        grow = 1.0 + self.domain.excess(*shapes)
        return time, time * (low / time) ** grow, time * (high / time) ** grow, distance


def _parts(model: transfer.Calibrated | transfer.Small, rows: transfer.Rows) -> tuple[F64, F64]:
    """Log seconds and the disagreement of the model's members, per row."""
    members = model.members(rows)
    return np.mean(members, axis=0), np.std(members, axis=0)


def fit_calibrated(
    shapes: Shapes,
    time: F64,
    dtype: str,
    hardware: Hardware,
    *,
    prior: Prior | None = None,
    seed: int = 0,
) -> CalibratedModel:
    """Fit the measured times [s] of a device by both recipes and keep the better one.

    Each fifth of the points is predicted by fits without it; these errors choose the recipe and
    make the interval. The prior serves where it knows this kind of tensor core.
    Raises NoDataError for fewer than LEAST_ROWS points.
    """
    if len(time) < LEAST_ROWS:
        raise NoDataError(
            f"{hardware.name} {dtype}: {len(time)} points, need at least {LEAST_ROWS}; "
            "measure more, or raise the budget"
        )
    rows = rows_of(shapes, dtype, hardware, hardware.family, time)
    carried = None if prior is None else prior.priors.get(rows.device.warpgroup)
    recipes = ["alone"] if carried is None else ["alone", "carried"]

    def fit(recipe: str, part: transfer.Rows) -> transfer.Calibrated | transfer.Small:
        if recipe == "carried" and carried is not None:
            return transfer.calibrate(carried, part, seed=seed)
        return transfer.fit_small(part, seed=seed)

    fold = np.random.default_rng(seed).permutation(len(time)) % _FOLDS
    found: dict[str, tuple[F64, F64]] = {}
    for recipe in recipes:
        mean, spread = np.empty(len(time)), np.empty(len(time))
        for i in range(_FOLDS):
            left, held = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
            mean[held], spread[held] = _parts(fit(recipe, rows.take(left)), rows.take(held))
        found[recipe] = mean, spread
    errors = {r: float(np.abs(np.expm1(m - np.log(time))).mean()) for r, (m, _) in found.items()}
    best = min(recipes, key=lambda r: errors[r])
    mean, spread = found[best]
    inside = np.full(len(time), _INSIDE)
    conformal = fit_conformal(np.log(time) - mean, np.exp(mean), inside, spread)
    card = {
        "hardware": hardware.name, "dtype": dtype, "rows": len(time), "seed": seed,
        "recipe": best, "left_out_mape": {r: round(e, 5) for r, e in errors.items()},
    }  # fmt: skip
    return CalibratedModel(fit(best, rows), Domain.of(*shapes), conformal, card)


def save_calibrated(model: CalibratedModel, folder: Path) -> None:
    """Write calibrated.npz and card.json into an existing folder; the prior travels along."""
    arrays: dict[str, Any] = {f"model/{k}": v for k, v in model.model.to_arrays().items()}
    if isinstance(model.model, transfer.Calibrated):
        arrays |= {f"prior/{k}": v for k, v in model.model.prior.to_arrays().items()}
    np.savez_compressed(folder / FILE, **arrays)
    card = {
        **model.card, "domain": model.domain.to_dict(), "conformal": model.conformal.to_dict(),
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card, separators=(",", ":")))


def load_calibrated(folder: Path) -> CalibratedModel:
    """Undo `save_calibrated`. Raises SpecError when a file is missing or damaged."""
    card = read_card(folder / "card.json")
    try:
        with np.load(folder / FILE, allow_pickle=False) as arrays:
            own, taught = (_under(p, arrays) for p in ("model/", "prior/"))
        model: transfer.Calibrated | transfer.Small
        if taught:
            model = transfer.Calibrated.from_arrays(own, transfer.Prior.from_arrays(taught))
        else:
            model = transfer.Small.from_arrays(own)
        return CalibratedModel(
            model, Domain.from_dict(card["domain"]), Conformal.from_dict(card["conformal"]),
            {k: v for k, v in card.items() if k not in ("domain", "conformal")},
        )  # fmt: skip
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise SpecError(
            f"calibration in {folder} is damaged ({type(error).__name__}: {error}); run "
            "`ridgecast calibrate` again"
        ) from error


def _under(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
