"""What the learned parts see of operations other than library GEMM: numbers of shape and device.

Owns the features of any `ops.Op` on any device (seconds on each resource in units of a fixed one,
how its pieces fill the machine, its own sizes and words) and the analytic time that learned ratios
stand on. Fits nothing; knows no operation by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype as find_dtype
from ..hardware import Hardware
from ..kernels.bound import Cache, cache_capacity
from ..kernels.operator import (
    analytic_time,
    bound_of_parts,
    cached_memory_time,
    fixed_parts,
    parts_of,
)
from ..ops.base import Op, Work, resident_of

__all__ = ["Known", "Learned", "features_of", "known", "terms_of"]

F64 = npt.NDArray[np.float64]
UNIT = 1e-6
"""Seconds that parts are measured in: one for all devices, so that they stay comparable."""
_EACH = 1e-9
"""Seconds that tallies and steps are counted in; coefficients say what one really takes."""
_PARTS = ("compute", "vector", "special", "integer", "memory", "l2", "peer", "network", "host")


@dataclass(frozen=True, slots=True)
class Known:
    """Work [rows] of a column of operations on a device, its parts, bound and analytic time [s]."""

    work: Work
    parts: dict[str, F64]
    bound: F64
    analytic: F64
    rows: int
    cache: Cache = "hot"


class Learned(Protocol):
    """What the ladder asks of a model of one operation on one device."""

    @property
    def hardware(self) -> str: ...  # noqa: D102
    @property
    def collection(self) -> str: ...  # noqa: D102
    @property
    def card(self) -> Mapping[str, Any]: ...  # noqa: D102

    def knows(self, op: Op) -> bool:
        """Whether the words of `op` were measured together."""
        ...

    def reaches(self, op: Op) -> npt.NDArray[np.bool_]:
        """Rows of `op` that the measured calls could be."""
        ...

    def predict(
        self, op: Op, k: Known, hardware: Hardware, level: float
    ) -> tuple[F64, F64, F64, npt.NDArray[np.int64]]:
        """Time, low and high [s] [rows] and the index of the place (`sweep_parts.PLACES`)."""
        ...


def known(op: Op, rows: int, hardware: Hardware, cache: Cache = "hot") -> Known:
    """Work out everything that physics says. Raises UnsupportedError where a unit is missing."""
    work = op.work()
    parts = {k: _wide(v, rows) for k, v in parts_of(work, hardware, cache).items()}
    bound = _wide(bound_of_parts(parts), rows)
    time = _wide(analytic_time(work, hardware, cache), rows)
    return Known(work, parts, bound, np.maximum(time, bound), rows, cache)


def terms_of(k: Known, hardware: Hardware, op: Op | None = None) -> dict[str, F64]:
    """Non-negative terms [s] [rows] that a time may be a sum of: each resource, and fixed costs.

    Fitted coefficients (`sweep_features.fit_terms`) turn them into a device's own analytic time:
    how much of its rates the kernels of an operation reach, and what a call costs beside. Traits of
    `op` add what its tallies, streams, padded products and rounds of blocks may cost.
    """
    out = {name: _part(k, name, k.rows) for name in _PARTS if name in k.parts}
    memory = cached_memory_time(k.work, hardware, k.cache)
    out |= {"memory": _wide(memory, k.rows), "together": k.analytic}
    moved = _wide(k.work.moved, k.rows)
    out |= {"streamed": moved / hardware.memory.bandwidth, "l2": moved / hardware.l2.bandwidth}
    for name, value in fixed_parts(k.work, hardware).items():
        out[name] = _wide(value, k.rows)
    out["call"] = np.full(k.rows, UNIT)
    return out if op is None else out | _trait_terms(op, k, hardware)


def _trait_terms(op: Op, k: Known, hardware: Hardware) -> dict[str, F64]:
    """Terms [s] of what `Op.traits` names; {} where an operation has none."""
    traits, out = op.traits, {}
    for name, count in traits.tallies.items():
        out[f"each_{name}"] = _wide(count, k.rows) * _EACH
    capacity = cache_capacity(hardware)
    for name, moved in traits.streams.items():
        wide = _wide(moved, k.rows)
        near = np.where(wide < capacity, hardware.l2.bandwidth, hardware.memory.bandwidth)
        out |= {f"far_{name}": wide / hardware.memory.bandwidth, f"near_{name}": wide / near}
    compute = _part(k, "compute", k.rows)
    for name, ratio in traits.padded.items():
        out[f"padded_{name}"] = compute * _wide(ratio, k.rows)
    rounds: dict[str, F64] = {}
    for name, (blocks, steps) in traits.dealt.items():
        turns = np.maximum(np.ceil(_wide(blocks, k.rows) / hardware.sm_count), 1.0)
        kind = name.lstrip("abcdefghijklmnopqrstuvwxyz")  # kernels of one tile follow one another
        rounds[kind] = rounds.get(kind, np.zeros(k.rows)) + turns * _wide(steps, k.rows) * _EACH
    return out | {f"rounds_{kind}": value for kind, value in rounds.items()}


def features_of(op: Op, k: Known, hardware: Hardware) -> dict[str, F64]:
    """Every feature by name; arrays [rows]. A word of `op` becomes one column named field=word."""
    rows = k.rows
    out = {f"part_{name}": _log(_part(k, name, rows) / UNIT) for name in _PARTS}
    out["bound"], out["analytic"] = _log(k.bound / UNIT), _log(k.analytic / UNIT)
    moved, held = _wide(k.work.moved, rows), _wide(resident_of(k.work), rows)
    if k.work.footprint is not None:
        held = _wide(k.work.footprint, rows)
    out["streamed"] = _log(moved / hardware.memory.bandwidth / UNIT)
    out["footprint_over_cache"] = _log(held / cache_capacity(hardware))
    out["launches"] = _log(1.0 + _wide(k.work.launches, rows))
    for name, info in op.infos().items():
        value = getattr(op, name)
        if info.kind in ("choice", "flag"):
            out[f"{name}={value}"] = np.ones(rows)
        elif info.kind == "format":
            out[f"bits_{name}"] = np.full(rows, find_dtype(value).bits_with_scales)
            out[f"{name}={value}"] = np.ones(rows)
        else:
            out[f"log_{name}"] = np.log2(1.0 + np.maximum(_wide(value, rows), 0.0))
    for name, count in op.counts().items():
        waves = _wide(count, rows) / hardware.sm_count
        out[f"waves_{name}"] = _log(waves)
        out[f"tail_{name}"] = np.ceil(waves) / np.maximum(waves, 1e-12)
    return out | _trait_features(op, rows, hardware)


def _trait_features(op: Op, rows: int, hardware: Hardware) -> dict[str, F64]:
    """Logarithms of what `Op.traits` names."""
    traits, out = op.traits, {}
    for name, value in traits.sizes.items():
        out[f"own_{name}"] = _log(_wide(value, rows))
    for name, moved in traits.streams.items():
        wide = _wide(moved, rows)
        out[f"own_{name}"] = _log(wide / hardware.memory.bandwidth / UNIT)
        out[f"own_{name}_over_cache"] = _log(wide / cache_capacity(hardware))
    for name, ratio in traits.padded.items():
        out[f"padded_{name}"] = _log(_wide(ratio, rows))
    for name, (blocks, _) in traits.dealt.items():
        waves = _wide(blocks, rows) / hardware.sm_count
        out[f"waves_{name}"] = _log(waves)
        out[f"tail_{name}"] = _log(np.ceil(waves) / np.maximum(waves, 1e-12))
    return out


def _part(k: Known, name: str, rows: int) -> F64:
    return k.parts[name] if name in k.parts else np.zeros(rows)


def _wide(value: Any, rows: int) -> F64:
    return np.broadcast_to(np.asarray(value, np.float64), (rows,))


def _log(x: Any) -> F64:
    return np.log2(np.maximum(np.asarray(x, np.float64), 1e-6))
