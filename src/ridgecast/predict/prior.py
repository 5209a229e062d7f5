"""Time on devices that nobody measured: priors of `transfer`, with intervals and their files.

Owns which tables teach a prior, the residuals of devices and families left out that make its
intervals, and the folder prior/. The recipe itself is `transfer`'s.

What a prior says of a device may lie near its speed of light, or beyond it, where no time can be.
The residuals then hold only for the times that can be: they are conditioned on no time below the
bound, and the middle moves by as much as their median. Held-out devices are scored in that way too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import SpecError
from ..hardware import Hardware, get
from ..kernels.bound import CLOSEST, bound_of
from . import transfer
from .conformal import SIZE_EDGES
from .device_physics import Shapes as PhysicalShapes
from .features import device_of, shape_features
from .parity import sample, save_parity
from .scores import score
from .time_model import Shapes, at_least_halves, read_card

__all__ = ["Prior", "family_of", "fit_prior", "load_prior", "rows_of", "save_prior"]

F64 = npt.NDArray[np.float64]
_PROBABILITIES = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99,
                           0.995])  # fmt: skip
_SCORED = 2500  # rows of each left-out device that calibrate the intervals
_PREFERRED = ("bf16", "fp16")
# one chip family teaches nothing of how families differ: a factor of five each way (assumed)
_UNKNOWN = np.tile(np.log([0.2, 5.0])[[0] * 6 + [1] * 7], (len(SIZE_EDGES) + 1, 1))
_COVERED = 0.9
_WIDENINGS = np.arange(1.0, 2.01, 0.05)
SPLIT_OF = {"no relative": "unseen_device", "family": "unseen_device (family known)"}
"""Split that a score counts as, by what was kept of the device's chip family."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A measured table that teaches the prior."""

    hardware: str
    dtype: str
    shapes: Shapes
    time: F64


@dataclass(frozen=True, slots=True)
class Prior:
    """Priors by kind of tensor core, and quantiles of log(measured / predicted).

    `priors` maps warpgroup (True, False) to a fitted prior; `quantiles` maps "family" (the
    device's family was measured) and "none", each for a kind of tensor core ("family/warpgroup",
    "none/warp" ...), to [sizes, probabilities]; `families` names the chip families that were
    taught; `card` tells devices and scores. `samples` are held-out points behind these scores, of
    a prior that was just fitted.
    """

    priors: Mapping[bool, transfer.Prior]
    quantiles: Mapping[str, F64]
    families: tuple[str, ...]
    card: Mapping[str, Any]
    samples: tuple[dict[str, Any], ...] = ()

    def predict(
        self, shapes: Shapes, dtype: str, hardware: Hardware, level: float = 0.9
    ) -> tuple[F64, F64, F64, str]:
        """Time, lower, upper [s] per row, and the reason why it is a transfer."""
        family = family_of(hardware)
        rows = rows_of(shapes, dtype, hardware, family)
        kind = rows.device.warpgroup
        prior = self.priors.get(kind) or next(iter(self.priors.values()))
        time = np.exp(prior.predict(rows))
        at_least_halves(
            time, shapes, lambda s: np.exp(prior.predict(rows_of(s, dtype, hardware, family)))
        )
        known = family in self.families
        floor = bound_of(shapes.problem(dtype), hardware, "hot")
        time, low, high = _possible(time, floor, self._table(known, kind), level)
        relatives = "its chip family" if known else "devices of other families"
        reason = f"no measurement of {hardware.name}: utilisation carried over from {relatives}"
        if dtype not in _PREFERRED:
            # another format than the one that was taught: half as much doubt again (assumed)
            low, high = time * (low / time) ** 1.5, time * (high / time) ** 1.5
            reason += f", in {_PREFERRED[0]}"
        return time, low, high, reason

    def _table(self, known: bool, warpgroup: bool) -> F64:
        """Quantiles for the nearest relation that was calibrated, of this kind before the other."""
        relations = ["family", "none"] if known else ["none"]
        kinds = [_name(warpgroup), _name(not warpgroup)]
        keys = [f"{relation}/{kind}" for relation in relations for kind in kinds]
        return next((self.quantiles[k] for k in keys if k in self.quantiles), _UNKNOWN)


def _possible(time: F64, floor: F64, table: F64, level: float) -> tuple[F64, F64, F64]:
    """Time and interval [s] from residuals' quantiles [sizes, probabilities], above the bound.

    With P the residuals' probability of a time below CLOSEST of the bound, the quantile at p
    becomes that at P + (1 - P) p, and the time moves as the median does.
    """
    tail = (1.0 - level) / 2.0
    size = np.searchsorted(SIZE_EDGES, time)
    moves = np.empty((3, len(time)))
    for s in np.unique(size):
        here, row = size == s, table[s]
        nearest = np.log(CLOSEST * floor[here] / time[here])
        # beyond that the residuals do not tell how wrong the prior is: their slowest tenth
        beyond = np.minimum(np.interp(nearest, row, _PROBABILITIES) - _PROBABILITIES[0], 0.9)
        middle, low, high = (
            np.interp(beyond + (1.0 - beyond) * p, _PROBABILITIES, row)
            for p in (0.5, tail, 1.0 - tail)
        )
        moves[:, here] = middle - np.interp(0.5, _PROBABILITIES, row), low, high
    moved = np.exp(moves) * time
    time = np.maximum(moved[0], CLOSEST * floor)
    return time, np.clip(moved[1], floor, time), np.maximum(moved[2], time)


def _name(warpgroup: bool) -> str:
    return "warpgroup" if warpgroup else "warp"


def family_of(hardware: Hardware) -> str:
    """Chip family: architecture without its refresh, and kind of memory."""
    memory = (hardware.memory.kind or "").lower()
    return f"{hardware.architecture.removesuffix('_ultra')}-{'hbm' if 'hbm' in memory else 'gddr'}"


def rows_of(
    shapes: Shapes, dtype: str, hardware: Hardware, family: str, time: F64 | None = None
) -> transfer.Rows:
    """Rows as `transfer` wants them: the device in this format, physical shapes, features."""
    p = shapes.problem(dtype)
    physical = PhysicalShapes(p.m, p.n, p.k, 0.5 * (p.a_size + p.b_size), p.batch)
    logs = None if time is None else np.log(time)
    features = shape_features(p, hardware)
    return transfer.Rows(device_of(hardware, dtype), physical, features, logs, family)


def fit_prior(tables: Sequence[tuple[str, str, Shapes, F64]], *, seed: int = 0) -> Prior:
    """Fit priors to tables of (hardware, dtype, shapes, time [s]) and calibrate their intervals.

    One table for each device, bf16 where there is one. Intervals rest on predictions of each
    family by a prior that was fitted without it ("none") and of each device by one that kept its
    family ("family"), of devices with the same kind of tensor core.
    """
    teachers = _teachers([Teacher(*t) for t in tables])
    rng = np.random.default_rng(seed)
    rows = {t.hardware: _taught(t) for t in teachers}
    picked = {name: rng.permutation(len(r.shapes))[:_SCORED] for name, r in rows.items()}
    scored = {name: r.take(picked[name]) for name, r in rows.items()}
    dtypes = {t.hardware: t.dtype for t in teachers}
    floors = {t.hardware: bound_of(t.shapes.problem(t.dtype), get(t.hardware)) for t in teachers}
    residuals: dict[str, list[_Residuals]] = {}
    for name, test in scored.items():
        others = {n: r for n, r in rows.items() if n != name}
        apart = {n: r for n, r in others.items() if r.family != test.family}
        for kind, left in (("none", apart), ("family", others)):
            if not left or (kind == "family" and len(left) == len(apart)):
                continue
            prior = _fit(list(left.values()), test.device.warpgroup, seed)
            if prior is None:
                continue
            predicted = prior.predict(transfer.Rows(
                test.device, test.shapes, test.features, None, test.family
            ))  # fmt: skip
            key = f"{kind}/{_name(test.device.warpgroup)}"
            found = _Residuals(
                name, dtypes[name], test.measured() - predicted, np.exp(predicted),
                floors[name][picked[name]],
            )  # fmt: skip
            residuals.setdefault(key, []).append(found)
    quantiles = {key: _widened(_quantiles(f), _widening(f)) for key, f in residuals.items()}
    scores, samples = _scored(residuals)
    everything = list(rows.values())
    kinds = {r.device.warpgroup for r in everything}
    priors = {k: p for k in kinds if (p := _fit(everything, k, seed)) is not None}
    families = tuple(sorted({r.family for r in everything}))
    card = {"devices": sorted(rows), "families": list(families), "seed": seed, "scores": scores}
    return Prior(priors, quantiles, families, card, samples)


def _teachers(tables: Sequence[Teacher]) -> list[Teacher]:
    """One table for each device: the preferred format that most devices share."""
    best: dict[str, Teacher] = {}
    for t in tables:
        rank = (t.dtype in _PREFERRED, -abs(np.log2(DTYPES[t.dtype].bits / 16.0)), len(t.time))
        old = best.get(t.hardware)
        if old is None or rank > (
            old.dtype in _PREFERRED, -abs(np.log2(DTYPES[old.dtype].bits / 16.0)), len(old.time)
        ):  # fmt: skip
            best[t.hardware] = t
    return list(best.values())


def _taught(t: Teacher) -> transfer.Rows:
    device = get(t.hardware)
    return rows_of(t.shapes, t.dtype, device, family_of(device), t.time)


def _fit(tables: list[transfer.Rows], warpgroup: bool, seed: int) -> transfer.Prior | None:
    """Fit a prior of the kind, or of the other kind where no device of this one was measured."""
    kinds = {t.device.warpgroup for t in tables}
    kind = warpgroup if warpgroup in kinds else next(iter(kinds), None)
    return None if kind is None else transfer.fit_prior(tables, warpgroup=kind, seed=seed)


@dataclass(frozen=True, slots=True)
class _Residuals:
    """log(measured / predicted), predicted and least seconds of a device that a prior missed."""

    hardware: str
    dtype: str
    log_ratio: F64
    time: F64
    floor: F64

    def coverage(self, table: F64) -> float:
        """Share of the rows inside the 90 % interval of quantiles [sizes, probabilities]."""
        held = self.held(table)
        inside = (held["time_low_s"] <= held["truth_s"]) & (held["truth_s"] <= held["time_high_s"])
        return float(inside.mean())

    def held(self, table: F64 | None) -> dict[str, F64]:
        """Measured and predicted time [s], and the interval of quantiles where there are any."""
        found = {"truth_s": self.time * np.exp(self.log_ratio), "time_s": self.time}
        if table is None:
            return found
        time, low, high = _possible(self.time, self.floor, table, 0.9)
        return found | {"time_s": time, "time_low_s": low, "time_high_s": high}


def _quantiles(found: Sequence[_Residuals]) -> F64:
    """Quantiles [sizes, probabilities] of residuals; a thin size takes those of all."""
    residual = np.concatenate([f.log_ratio for f in found])
    size = np.searchsorted(SIZE_EDGES, np.concatenate([f.time for f in found]))
    everywhere = np.quantile(residual, _PROBABILITIES)
    return np.array([
        np.quantile(residual[size == s], _PROBABILITIES) if (size == s).sum() >= 300 else everywhere
        for s in range(len(SIZE_EDGES) + 1)
    ])  # fmt: skip


def _widened(table: F64, factor: float) -> F64:
    """Quantiles moved away from their median by a factor in log units."""
    median = table[:, len(_PROBABILITIES) // 2, None]
    return median + factor * (table - median)


def _widening(found: Sequence[_Residuals]) -> float:
    """Least factor for which a device is covered by the others' 90 % interval as promised.

    Pooled residuals of few devices tell too little of how devices differ; the mean coverage of
    each device by the rest says how much wider the interval must be.
    """
    if len(found) < 2:
        return float(_WIDENINGS[-1])
    rest = [_quantiles([f for f in found if f is not one]) for one in found]

    def covered(factor: float) -> float:
        each = [f.coverage(_widened(q, factor)) for f, q in zip(found, rest, strict=True)]
        return float(np.mean(each))

    return next((float(f) for f in _WIDENINGS if covered(f) >= _COVERED), float(_WIDENINGS[-1]))


def _scored(
    residuals: Mapping[str, list[_Residuals]],
) -> tuple[list[dict[str, Any]], tuple[dict[str, Any], ...]]:
    """Scores of each device by the other devices' quantiles, and samples of its rows.

    A device without others of its kind is scored as the prior predicts it, without an interval.
    """
    scores: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for key, found in residuals.items():
        factor = _widening(found)
        kept = "family" if key.startswith("family") else "no relative"
        for one in found:
            others = [f for f in found if f is not one]
            table = _widened(_quantiles(others), factor) if others else None
            held = one.held(table)
            part = score(held["truth_s"], held["time_s"], held.get("time_low_s"),
                         held.get("time_high_s"))  # fmt: skip
            names = ("rows", "mape", "median", "p90", "bias", "coverage")
            scores.append({
                "hardware": one.hardware, "dtype": one.dtype, "split": "unseen_device",
                "kept": kept, **{name: part[name] for name in names if name in part},
            })  # fmt: skip
            samples.append(sample(held, split=SPLIT_OF[kept], hardware=one.hardware))
    return scores, tuple(samples)


def save_prior(prior: Prior, folder: Path) -> None:
    """Write warpgroup.npz and/or warp.npz and card.json into an existing folder."""
    for kind, one in prior.priors.items():
        arrays: dict[str, Any] = one.to_arrays()
        np.savez_compressed(folder / _file(kind), **arrays)
    card = {
        **prior.card,
        "quantiles": {k: np.round(v, 4).tolist() for k, v in prior.quantiles.items()},
    }
    (folder / "card.json").write_text(json.dumps(card, separators=(",", ":")))
    taught = ", ".join(prior.card.get("devices", ()))
    save_parity(folder, prior.samples, source=f"the time models of {taught}", licence="")


def _file(warpgroup: bool) -> str:
    return "warpgroup.npz" if warpgroup else "warp.npz"


@lru_cache(maxsize=4)
def load_prior(folder: Path) -> Prior:
    """Undo `save_prior`. Raises SpecError when a file is missing or damaged."""
    card = read_card(folder / "card.json")
    priors: dict[bool, transfer.Prior] = {}
    try:
        for kind in (True, False):
            path = folder / _file(kind)
            if path.exists():
                with np.load(path, allow_pickle=False) as arrays:
                    priors[kind] = transfer.Prior.from_arrays({k: arrays[k] for k in arrays.files})
        quantiles = {k: np.asarray(v, float) for k, v in card["quantiles"].items()}
        families = tuple(card["families"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise SpecError(f"prior in {folder} is damaged: {error!r}; train it again") from error
    if not priors:
        raise SpecError(f"prior in {folder} holds no model; train it again")
    return Prior(priors, quantiles, families, card)
