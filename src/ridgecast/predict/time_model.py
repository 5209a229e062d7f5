"""The time model of one device, format and collection: utilisation, domain and intervals as one.

Owns how the halves are mixed per distance class, how a model is calibrated on held-out folds, and
its folder on disk. Knows one device at a time; which model answers a question is `ladder`'s.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError
from ..hardware import Hardware
from ..kernels.bound import bound_of
from ..kernels.problem import Problem, problem
from . import device_physics
from .conformal import DISTANCES, Conformal, fit_conformal
from .domain import Domain, folds
from .features import device_of, gemm_features
from .scores import derating
from .trees import pack_booster, unpack_booster
from .utilisation import (
    FitOptions,
    Utilisation,
    fit_utilisation,
    rebuild,
)

__all__ = [
    "Shapes",
    "TimeModel",
    "at_least_halves",
    "cross_validate",
    "fit_middle",
    "fit_time_model",
    "load_time_model",
    "save_time_model",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SPLIT_OF = {
    "seen_pair": "random", "unseen_pair": "unseen_shape", "one_off_grid": "off_grid",
    "off_grid": "off_grid", "frontier": "frontier", "outside": "off_grid",
}  # fmt: skip
_PHYSICS_ROWS = 800
_SHORT = 40e-6  # s
_SLOW_PICK = 1.2
"""A half-size kernel slower than this is a slow pick of the library and stands (chosen on the bf16
tables: some L40S and A100 rows below 20 us are up to five times slower than twice their sizes).
"""
LEAST_ROWS = 24
"""Rows under which no model is fitted: too few to hold any out."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes as float64 arrays [rows]."""

    m: F64
    n: F64
    k: F64
    batch: F64

    def __iter__(self) -> Iterator[F64]:
        return iter((self.m, self.n, self.k, self.batch))

    def take(self, rows: Any) -> Shapes:
        """Rows by mask or position."""
        return Shapes(*(x[rows] for x in self))

    def problem(self, dtype: str) -> Problem:
        """As the kernels room wants them."""
        return problem(*self, dtype=dtype)


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Predicts time of library GEMMs of one format on one device, with intervals.

    `constants` are the device's physical constants (log, see `device_physics`), fitted first.
    `tree_share` [len(DISTANCES)] weighs the trees against the smooth half, chosen on held-out
    folds. `card` says what it was fitted on.
    """

    constants: F64
    utilisation: Utilisation
    domain: Domain
    conformal: Conformal
    tree_share: F64
    card: dict[str, Any]

    def predict(
        self, shapes: Shapes, dtype: str, hardware: Hardware, level: float = 0.9
    ) -> tuple[F64, F64, F64, I64]:
        """Time, lower, upper [s] and distance class of each row.

        Doubling every size is never faster: a short kernel takes at least as long as the kernel of
        half its sizes, and of a quarter, as far as the halves are whole. The exception is where the
        measured tables say so: a library that picks a far slower kernel for the smaller shape.
        """
        distance = self.domain.distance(*shapes)
        time, spread = self._raw(shapes, dtype, hardware, distance)

        def raw(part: Shapes) -> F64:
            return self._raw(part, dtype, hardware, self.domain.distance(*part))[0]

        at_least_halves(time, shapes, raw)
        low, high = self.conformal.interval(time, distance, spread, level)
        far = distance >= DISTANCES.index("frontier")
        if far.any():
            # beyond the calibrated reach the interval opens by its own width per doubling (assumed)
            grow = 1.0 + np.maximum(self.domain.excess(*shapes.take(far)) - 1.0, 0.0)
            low[far] = time[far] * (low[far] / time[far]) ** grow
            high[far] = time[far] * (high[far] / time[far]) ** grow
        return time, low, high, distance

    def _raw(
        self, shapes: Shapes, dtype: str, hardware: Hardware, distance: I64
    ) -> tuple[F64, F64]:
        """Time [s] and disagreement of the model's halves, row by row on its own.

        Sizes below half the smallest that were measured count as that half: a tile is no faster
        for being emptier, and farther out the learned parts are blind.
        """
        sizes = zip(shapes, (*self.domain.low, 1.0), strict=True)
        shapes = Shapes(*(np.maximum(x, max(1.0, low / 2)) for x, low in sizes))
        features = gemm_features(shapes.problem(dtype), hardware, self.constants)
        trees, smooth = self.utilisation.predict(features.values)
        share = self.tree_share[distance]
        time = features.analytic * np.exp(smooth + share * (trees - smooth))
        return time, np.abs(trees - smooth)


def at_least_halves(time: F64, shapes: Shapes, raw: Callable[[Shapes], F64]) -> None:
    """Raise short times [s], in place, to what `raw` gives for the halved shapes.

    Only short ones: once work fills the device, eight times the operations and four times the
    bytes outweigh any error of the model.
    """
    rows = np.flatnonzero(time < _SHORT)
    part = shapes.take(rows)
    while True:
        whole = np.all([x % 2 == 0 for x in (part.m, part.n, part.k)], axis=0)
        rows, part = rows[whole], part.take(whole)
        if not len(rows):
            return
        part = Shapes(part.m / 2, part.n / 2, part.k / 2, part.batch)
        half = raw(part)
        slow_pick = half > _SLOW_PICK * time[rows]
        time[rows] = np.where(slow_pick, time[rows], np.maximum(time[rows], half))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Predictions of rows that the predicting fit never saw, all folds stacked."""

    split: npt.NDArray[np.str_]
    row: I64
    trees: F64
    smooth: F64
    analytic: F64
    distance: I64
    truth: F64
    both_new: Mask
    roofline: F64
    derated: F64


def _held_out(
    shapes: Shapes, time: F64, dtype: str, hardware: Hardware, options: FitOptions
) -> HeldOut:
    p = shapes.problem(dtype)
    roofline = bound_of(p, hardware, "cold")
    rng = np.random.default_rng(options.seed)
    parts: list[tuple[Any, ...]] = []
    for fold in folds(shapes.m, shapes.n, shapes.k, shapes.batch, rng):
        inner = shapes.take(fold.train)
        constants = fit_physics(inner, time[fold.train], dtype, hardware, options.seed)
        features = gemm_features(p, hardware, constants)
        y = np.log(time[fold.train] / features.analytic[fold.train])
        fitted = fit_utilisation(features.values[fold.train], y, options)
        trees, smooth = fitted.predict(features.values[fold.test], options.threads)
        inside = Domain.of(*inner)
        distance = inside.distance(*shapes.take(fold.test))
        if fold.split == "unseen_shape":  # a lone n or k value also counts as this split
            distance = np.maximum(distance, 1)
        rows = np.flatnonzero(fold.test)
        new_n = ~np.isin(shapes.n[rows], inside.n)
        both_new = new_n & ~np.isin(shapes.k[rows], inside.k)
        parts.append(
            (np.full(len(rows), fold.split), rows, trees, smooth,
             features.analytic[rows], distance, time[rows], both_new, roofline[rows],
             roofline[rows] * derating(time[fold.train], roofline[fold.train]))
        )  # fmt: skip
    return HeldOut(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def fit_physics(shapes: Shapes, time: F64, dtype: str, hardware: Hardware, seed: int) -> F64:
    """Physical constants (log) of the device from at most a few hundred of the rows."""
    p = shapes.problem(dtype)
    some = np.random.default_rng(seed).permutation(len(time))[:_PHYSICS_ROWS]
    points = device_physics.Shapes(
        p.m[some], p.n[some], p.k[some], 0.5 * (p.a_size + p.b_size), p.batch[some]
    )
    return device_physics.fit_device(points, np.log(time[some]), device_of(hardware, dtype))


def _shares(held: HeldOut) -> F64:
    """Weight of the trees per distance class that has the least held-out absolute error."""
    share = np.full(len(DISTANCES), 0.5)
    log_truth = np.log(held.truth / held.analytic)
    for d, name in enumerate(DISTANCES):
        rows = (held.split == _SPLIT_OF[name]) & (held.distance == d)
        if rows.sum() < 20:
            if d:
                share[d] = share[d - 1]
            continue
        errors: list[float] = []
        for s in _SHARES:
            mix = s * held.trees[rows] + (1.0 - s) * held.smooth[rows]
            errors.append(float(np.abs(np.expm1(mix - log_truth[rows])).mean()))
        share[d] = _SHARES[int(np.argmin(errors))]
    return share


def fit_time_model(
    shapes: Shapes, time: F64, dtype: str, hardware: Hardware, options: FitOptions | None = None
) -> tuple[TimeModel, dict[str, npt.NDArray[Any]]]:
    """Fit and calibrate on measured times [s]; return the model and its held-out predictions.

    Folds inside the training rows imitate each distance class; their residuals choose the mix,
    calibrate the intervals and make the card's scores. The held-out table has a row per scored
    point: split, row (index into `shapes`), time_s, time_low_s, time_high_s, truth_s, distance,
    both_new, and roofline_s and derated_s of the baselines (the factor fitted on the fold's
    training rows). Its intervals come from calibrating on the other half of the (n, k) pairs.
    Raises NoDataError for fewer than LEAST_ROWS rows.
    """
    o = options or FitOptions()
    if len(time) < LEAST_ROWS:
        raise NoDataError(
            f"{hardware.name} {dtype}: {len(time)} rows, need at least {LEAST_ROWS} to hold any out"
        )
    share, conformal, table = cross_validate(shapes, time, dtype, hardware, o)
    return _fitted(shapes, time, dtype, hardware, o, share, conformal), table


def fit_middle(
    shapes: Shapes, time: F64, dtype: str, hardware: Hardware, options: FitOptions | None = None
) -> TimeModel:
    """Fit on measured times [s] without folds: its halves weigh alike, its interval means nothing.

    A tenth of the work of `fit_time_model`, for those who calibrate times on other devices.
    """
    none = np.zeros(1)
    conformal = fit_conformal(none, none, np.ones(1, np.int64), none)
    share = np.full(len(DISTANCES), 0.5)
    return _fitted(shapes, time, dtype, hardware, options or FitOptions(), share, conformal)


def _fitted(
    shapes: Shapes, time: F64, dtype: str, hardware: Hardware, o: FitOptions, share: F64,
    conformal: Conformal,
) -> TimeModel:  # fmt: skip
    """Fit all rows; mix and intervals are given."""
    constants = fit_physics(shapes, time, dtype, hardware, o.seed)
    features = gemm_features(shapes.problem(dtype), hardware, constants)
    roofline = bound_of(shapes.problem(dtype), hardware, "cold")
    fitted = fit_utilisation(features.values, np.log(time / features.analytic), o)
    return TimeModel(
        constants, fitted, Domain.of(*shapes), conformal, share,
        {"dtype": dtype, "hardware": hardware.name, "rows": len(time), "seed": o.seed,
         "derating": round(derating(time, roofline), 5)},
    )  # fmt: skip


def cross_validate(
    shapes: Shapes, time: F64, dtype: str, hardware: Hardware, options: FitOptions
) -> tuple[F64, Conformal, dict[str, npt.NDArray[Any]]]:
    """Share of the trees, intervals, and the held-out table of `fit_time_model`: all but its fit.

    Every prediction in the table is of a row that the predicting fit never saw.
    """
    held = _held_out(shapes, time, dtype, hardware, options)
    share = _shares(held)
    mix = held.smooth + share[held.distance] * (held.trees - held.smooth)
    predicted = held.analytic * np.exp(mix)
    residual = np.log(held.truth / predicted)
    spread = np.abs(held.trees - held.smooth)
    right = np.array([_SPLIT_OF[name] for name in DISTANCES])[held.distance] == held.split
    calibration = _Calibration(residual, predicted, held.distance, spread)
    conformal = calibration.fit(right)
    low, high = _cross_calibrated(calibration, right, shapes.n[held.row], shapes.k[held.row])
    table = {
        "split": held.split, "row": held.row, "time_s": predicted, "time_low_s": low,
        "time_high_s": high,
        "truth_s": held.truth, "distance": held.distance, "both_new": held.both_new,
        "roofline_s": held.roofline, "derated_s": held.derated,
    }  # fmt: skip
    return share, conformal, table


@dataclass(frozen=True, slots=True)
class _Calibration:
    """Held-out residuals and what sorts them into buckets; see `fit_conformal`."""

    residual: F64
    time: F64
    distance: I64
    spread: F64

    def fit(self, rows: Mask) -> Conformal:
        return fit_conformal(
            self.residual[rows], self.time[rows], self.distance[rows], self.spread[rows]
        )


def _cross_calibrated(c: _Calibration, right: Mask, n: F64, k: F64) -> tuple[F64, F64]:
    """Intervals of each half of the (n, k) pairs from the residuals of the other half."""
    low = np.full(len(n), np.nan)
    high = np.full(len(n), np.nan)
    pair = np.unique(n * 2.0**31 + k, return_inverse=True)[1]
    half = np.random.default_rng(1).random(int(pair.max()) + 1)[pair] < 0.5
    for test in (half, ~half):
        others = right & ~test
        if others.sum() < 20:
            others = right
        fitted = c.fit(others)
        low[test], high[test] = fitted.interval(c.time[test], c.distance[test], c.spread[test])
    return low, high


def save_time_model(model: TimeModel, folder: Path) -> None:
    """Write model.txt.xz, smooth.npz and card.json into an existing folder."""
    (folder / "model.txt.xz").write_bytes(pack_booster(model.utilisation.trees.text))
    buffer = io.BytesIO()
    arrays: dict[str, Any] = model.utilisation.to_arrays()
    np.savez_compressed(buffer, **arrays)
    (folder / "smooth.npz").write_bytes(buffer.getvalue())
    card = {
        **model.card,
        "domain": model.domain.to_dict(),
        "conformal": model.conformal.to_dict(),
        "constants": dict(zip(device_physics.CONSTANTS, model.constants.tolist(), strict=True)),
        "tree_share": model.tree_share.tolist(),
    }
    (folder / "card.json").write_text(json.dumps(card, separators=(",", ":")))


def load_time_model(folder: Path) -> TimeModel:
    """Undo `save_time_model`. Raises SpecError that names the damaged file."""
    card = read_card(folder / "card.json")
    try:
        text = unpack_booster((folder / "model.txt.xz").read_bytes())
        with np.load(folder / "smooth.npz", allow_pickle=False) as arrays:
            utilisation = rebuild(text, {key: arrays[key] for key in arrays.files})
        parts: Mapping[str, Any] = card
        return TimeModel(
            np.array([parts["constants"][name] for name in device_physics.CONSTANTS], float),
            utilisation,
            Domain.from_dict(parts["domain"]),
            Conformal.from_dict(parts["conformal"]),
            np.asarray(parts["tree_share"], float),
            {k: v for k, v in card.items() if k not in ("domain", "conformal")},
        )
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        if isinstance(error, SpecError):
            raise SpecError(f"model folder {folder}: {error}") from error
        raise SpecError(
            f"model folder {folder} is damaged ({type(error).__name__}: {error}); train it again "
            "with `ridgecast train`"
        ) from error


def read_card(path: Path) -> dict[str, Any]:
    """Read a card. Raises SpecError when it is missing or is not a JSON object."""
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise SpecError(f"{path.parent} is not a model folder: it has no card.json") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    if not isinstance(card, dict):
        raise SpecError(f"{path} does not hold a JSON object")
    return card
