"""Time on devices that nobody measured: priors of `transfer`, with intervals and their files.

Owns which tables teach a prior, the residuals of devices and families left out that make its
intervals, and the folder prior/. The recipe itself is `transfer`'s.
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
from . import transfer
from .conformal import SIZE_EDGES
from .device_physics import Shapes as PhysicalShapes
from .features import device_of, shape_features
from .parity import sample, save_parity
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
        table = self._table(known, kind)
        size = np.searchsorted(SIZE_EDGES, time)
        tail = (1.0 - level) / 2.0
        low, high = (
            np.exp([np.interp(p, _PROBABILITIES, row) for row in table])[size]
            for p in (tail, 1.0 - tail)
        )
        relatives = "its chip family" if known else "devices of other families"
        reason = f"no measurement of {hardware.name}: utilisation carried over from {relatives}"
        if dtype not in _PREFERRED:
            # another format than the one that was taught: half as much doubt again (assumed)
            low, high = low**1.5, high**1.5
            reason += f", in {_PREFERRED[0]}"
        return time, time * low, time * high, reason

    def _table(self, known: bool, warpgroup: bool) -> F64:
        """Quantiles for the nearest relation that was calibrated, of this kind before the other."""
        relations = ["family", "none"] if known else ["none"]
        kinds = [_name(warpgroup), _name(not warpgroup)]
        keys = [f"{relation}/{kind}" for relation in relations for kind in kinds]
        return next((self.quantiles[k] for k in keys if k in self.quantiles), _UNKNOWN)


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
    scored = {name: r.take(rng.permutation(len(r.shapes))[:_SCORED]) for name, r in rows.items()}
    residuals: dict[str, list[_Residuals]] = {}
    scores: list[dict[str, Any]] = []
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
            residual = test.measured() - predicted
            key = f"{kind}/{_name(test.device.warpgroup)}"
            residuals.setdefault(key, []).append(_Residuals(name, residual, np.exp(predicted)))
            error = np.abs(np.expm1(-residual))
            scores.append({
                "hardware": name, "dtype": "bf16", "split": "unseen_device",
                "kept": "family" if kind == "family" else "no relative", "rows": len(error),
                "mape": float(error.mean()), "median": float(np.median(error)),
                "p90": float(np.quantile(error, 0.9)),
                "bias": float(np.median(np.expm1(-residual))),
            })  # fmt: skip
    quantiles = {key: _widened(_quantiles(f), _widening(f)) for key, f in residuals.items()}
    samples = _coverage(scores, residuals)
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
    """log(measured / predicted) and predicted seconds of a device that the prior did not know."""

    hardware: str
    log_ratio: F64
    time: F64

    def limits(self, table: F64) -> F64:
        """Return the 90 % interval [2, rows], in log units, of quantiles [sizes, probabilities]."""
        rows = table[np.searchsorted(SIZE_EDGES, self.time)]
        low, high = (int(np.searchsorted(_PROBABILITIES, p)) for p in (0.05, 0.95))
        return rows[:, [low, high]].T

    def coverage(self, table: F64) -> float:
        """Share of the rows inside the 90 % interval of quantiles."""
        low, high = self.limits(table)
        return float(((self.log_ratio >= low) & (self.log_ratio <= high)).mean())

    def held(self, table: F64 | None) -> dict[str, F64]:
        """Measured and predicted time [s], and the interval of quantiles where there are any."""
        found = {"truth_s": self.time * np.exp(self.log_ratio), "time_s": self.time}
        if table is None:
            return found
        low, high = self.time * np.exp(self.limits(table))
        return found | {"time_low_s": low, "time_high_s": high}


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


def _coverage(
    scores: list[dict[str, Any]], residuals: Mapping[str, list[_Residuals]]
) -> tuple[dict[str, Any], ...]:
    """Add to each score the share of its rows that the other devices' 90 % interval holds.

    Returns samples of the rows, with that interval.
    """
    samples: list[dict[str, Any]] = []
    for key, found in residuals.items():
        factor = _widening(found)
        for one in found:
            others = [f for f in found if f is not one]
            kept = "family" if key.startswith("family") else "no relative"
            line = next(s for s in scores if (s["hardware"], s["kept"]) == (one.hardware, kept))
            table = _widened(_quantiles(others), factor) if others else None
            if table is not None:
                line["coverage"] = one.coverage(table)
            split = SPLIT_OF[kept]
            samples.append(sample(one.held(table), split=split, hardware=one.hardware))
    return tuple(samples)


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
