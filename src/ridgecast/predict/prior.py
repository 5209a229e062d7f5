"""Time on devices that nobody measured: priors of `transfer`, with intervals and their files.

Owns which tables teach a prior, the residuals of devices and families left out that make its
intervals, and the folder prior/. The recipe itself is `transfer`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import SpecError
from ..hardware import Hardware, get, reference_of
from ..kernels.bound import bound_of
from . import transfer
from .device_physics import Shapes as PhysicalShapes
from .device_spread import SCORED, UNKNOWN, Residuals, calibrated, possible, scored
from .features import device_of, shape_features
from .parity import save_parity
from .time_model import Shapes, at_least_halves, read_card

__all__ = ["Prior", "fit_prior", "load_prior", "rows_of", "save_prior"]

F64 = npt.NDArray[np.float64]
_PREFERRED = ("bf16", "fp16")
_OTHER_FORMAT = 1.5
"""Power that the interval's factors are raised to in another format than was taught (assumed)."""
_OTHER_UNIT = 2.0
"""The same on another unit than tensor cores, which taught the prior. Derived: 78 batched GEMMs in
fp32 on V100, T4 and P100 (NeuSight, MIT; benchmarks/published_ops.csv) lie in intervals so widened
for 90 % of the points, and for 62 % at the power of another format.
"""
_STRANGER = 3.0
"""The same on devices of a vendor that taught nothing. Derived: the tables of Intel's Arc Pro B60,
asked of the prior of NVIDIA devices, lie in intervals so widened for 89 % of bf16 and 88 % of fp8
rows, and for 65 and 62 % without; half of those below 0.1 ms take twice as long, or longer.
"""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A measured table that teaches the prior."""

    hardware: str
    dtype: str
    shapes: Shapes
    time: F64


@dataclass(frozen=True)
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
        family = hardware.family
        rows = rows_of(shapes, dtype, hardware, family)
        kind = rows.device.warpgroup
        prior = self.priors.get(kind) or next(iter(self.priors.values()))
        time = np.exp(prior.predict(rows))
        at_least_halves(
            time, shapes, lambda s: np.exp(prior.predict(rows_of(s, dtype, hardware, family)))
        )
        known = family in self.families
        floor = bound_of(shapes.problem(dtype), hardware, "hot")
        tensor = hardware.unit(dtype) == "tensor"
        # how devices of a family differ beside the tensor cores is not known
        time, low, high = possible(time, floor, self._table(known and tensor, kind), level)
        relatives = "its chip family" if known else "devices of other families"
        reason = f"no measurement of {hardware.name}: utilisation carried over from {relatives}"
        doubt = 1.0
        if dtype not in _PREFERRED:
            doubt = _OTHER_FORMAT
            reason += f", in {_PREFERRED[0]}"
        if not tensor:
            doubt = _OTHER_UNIT
            reason += " on tensor cores"
        if hardware.vendor not in self.vendors:
            doubt = _STRANGER
            told = "its vendor is not given" if hardware.vendor == "unknown" else hardware.vendor
            reason += f"; nothing like it was measured ({told})"
        return time, time * (low / time) ** doubt, time * (high / time) ** doubt, reason

    @cached_property
    def vendors(self) -> frozenset[str]:
        """Vendors of the devices that were taught, as far as the catalogue knows them."""
        known = (reference_of(name) for name in self.card.get("devices", ()))
        return frozenset(device.vendor for device in known if device is not None)

    def _table(self, known: bool, warpgroup: bool) -> F64:
        """Quantiles for the nearest relation that was calibrated, of this kind before the other."""
        relations = ["family", "none"] if known else ["none"]
        kinds = [_name(warpgroup), _name(not warpgroup)]
        keys = [f"{relation}/{kind}" for relation in relations for kind in kinds]
        return next((self.quantiles[k] for k in keys if k in self.quantiles), UNKNOWN)


def _name(warpgroup: bool) -> str:
    return "warpgroup" if warpgroup else "warp"


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
    picked = {name: rng.permutation(len(r.shapes))[:SCORED] for name, r in rows.items()}
    tested = {name: r.take(picked[name]) for name, r in rows.items()}
    dtypes = {t.hardware: t.dtype for t in teachers}
    floors = {t.hardware: bound_of(t.shapes.problem(t.dtype), get(t.hardware)) for t in teachers}
    residuals: dict[str, list[Residuals]] = {}
    for name, test in tested.items():
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
            missed = Residuals(
                name, dtypes[name], test.measured() - predicted, np.exp(predicted),
                floors[name][picked[name]],
            )  # fmt: skip
            residuals.setdefault(key, []).append(missed)
    quantiles = {key: calibrated(f) for key, f in residuals.items()}
    scores: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for key, found in residuals.items():
        kept = "family" if key.startswith("family") else "no relative"
        more, points = scored(found, kept)
        scores, samples = scores + more, samples + points
    everything = list(rows.values())
    kinds = {r.device.warpgroup for r in everything}
    priors = {k: p for k in kinds if (p := _fit(everything, k, seed)) is not None}
    families = tuple(sorted({r.family for r in everything}))
    card = {"devices": sorted(rows), "families": list(families), "seed": seed, "scores": scores}
    return Prior(priors, quantiles, families, card, tuple(samples))


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
    return rows_of(t.shapes, t.dtype, device, device.family, t.time)


def _fit(tables: list[transfer.Rows], warpgroup: bool, seed: int) -> transfer.Prior | None:
    """Fit a prior of the kind, or of the other kind where no device of this one was measured."""
    kinds = {t.device.warpgroup for t in tables}
    kind = warpgroup if warpgroup in kinds else next(iter(kinds), None)
    return None if kind is None else transfer.fit_prior(tables, warpgroup=kind, seed=seed)


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
