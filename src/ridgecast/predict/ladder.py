"""Which model answers: the ladder of trust for the time of GEMMs of one kind.

Owns the descent measured -> learned -> transferred (from siblings of the device, from another
format of it, from all devices) -> analytic -> bound, and what each rung does to the interval. One
call handles rows that share device, format, kernel and cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError, unknown_name
from ..hardware import Hardware, origin_of
from ..kernels.bound import CLOSEST, Cache, bound_of
from ..kernels.config import SimtConfig, TensorConfig, TiledConfig
from ..kernels.library import library_time
from ..kernels.tile import simt, tensor
from ..kernels.tiled import tiled
from .bundle import Bundle, Entry
from .conformal import DISTANCES
from .throttle import recapped, throttling
from .time_model import Shapes

if TYPE_CHECKING:
    from .prior import Prior

__all__ = ["KERNELS", "PROBABILITIES", "STRETCH", "Question", "Times", "answer"]

F64 = npt.NDArray[np.float64]
KERNELS = ("library", "tiled", "cutlass_simt", "cutlass_tensor", "clblast", "bound")
# Measured time over the analytic kernel's, as quantiles at PROBABILITIES, each device weighing
# alike. Derived (benchmarks/analytic_spread.py): "library" from the bf16 tables of nine devices
# against `kernels.library`; the others from CLBlast SGEMM configurations of six devices against
# `kernels.clblast`, the only kernels with given tiles that were measured.
PROBABILITIES = (0.005, 0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975, 0.995)
ANALYTIC_SPREAD = {
    "library": (0.751, 0.874, 0.960, 1.177, 1.375, 1.761, 2.652, 3.610, 6.608),
    "tiles": (1.032, 1.224, 1.393, 2.021, 2.386, 3.318, 8.767, 11.375, 20.139),
}
_UNKNOWN_TRANSFER = (0.25, 4.0)
"""90 % factors of a transfer between formats in a folder that measured none (assumed: about the
widest that the shipped folder shows)."""
_TWINS = {"bf16": "fp16", "fp16": "bf16"}
_TWIN = 1.1
"""Factor each way between formats of one unit, rate and width that the same kernels serve (assumed:
no table measured both)."""
STRETCH = 0.5  # of the log change that a what-if makes, added to each side (assumed)


@dataclass(frozen=True, slots=True)
class Question:
    """Rows that share everything but their sizes and tile parameters."""

    hardware: Hardware
    dtype: str
    kernel: str = "library"
    cache: Cache = "hot"
    collection: str = ""
    level: float = 0.9
    out_dtype: str = ""


@dataclass(frozen=True, slots=True)
class Times:
    """Times [s] with interval and bound, `basis` per row, and the reason of all.

    `limiter` is one a row where the kernel model knows it, else "".
    """

    time: F64
    low: F64
    high: F64
    bound: F64
    basis: npt.NDArray[np.object_]
    reason: str
    limiter: npt.NDArray[np.object_] | str = ""

    @classmethod
    def of(cls, time: F64, low: F64, high: F64, bound: F64, basis: str, reason: str) -> Times:
        """Clamp to the bound: nothing is faster than light, and no claim is quite as fast."""
        time = np.maximum(time, CLOSEST * bound)
        return cls(
            time, np.maximum(low, bound), np.maximum(high, time), bound,
            np.full(len(time), basis, dtype=object), reason,
        )  # fmt: skip


def answer(q: Question, shapes: Shapes, config: dict[str, F64], bundle: Bundle) -> Times:
    """Time of each row on the highest rung that can carry it.

    `config` holds tile parameters [rows] for kernels that have them. Raises UnsupportedError when
    the device lacks the format, SpecError for a kernel that is not one of KERNELS or parameters
    that are none of its, NoDataError when no rung answers.
    """
    p = shapes.problem(q.dtype)
    floor = bound_of(p, q.hardware, q.cache)
    if q.kernel == "bound":
        missing = np.full(len(floor), np.nan)
        text = "speed of light only: the upper end is open"
        return Times(floor, floor, missing, floor, np.full(len(floor), "bound", object), text)
    times = _uncapped(q, shapes, config, floor, bundle)
    if recapped(q.hardware) is None:
        return times
    work = (p.flops, p.bytes, p.bytes)
    slower = throttling(bundle.power(), q.hardware, q.dtype, work, times.time)
    time, low, high = times.time * slower[0], times.low * slower[1], times.high * slower[2]
    capped = Times.of(time, low, high, floor, "", times.reason)
    return replace(capped, basis=times.basis, limiter=times.limiter)


def _uncapped(
    q: Question, shapes: Shapes, config: dict[str, F64], floor: F64, bundle: Bundle
) -> Times:
    """Time of each row under the catalogue's power cap."""
    if q.kernel != "library":
        return _configured(q, shapes, config, floor)
    own = bundle.entry(q.hardware.base_name, q.dtype, q.collection)
    if own is not None:
        return _same_device(q, shapes, floor, own, bundle)
    formats = [q.dtype, *_twin(q)]
    relative = bundle.relative(q.hardware, q.dtype, q.collection)
    if relative is None or relative.dtype not in formats:
        for dtype in formats:
            near = bundle.near(origin_of(q.hardware), dtype, q.collection)
            if near:
                return _siblings(q, shapes, floor, near, bundle)
    if relative is not None:
        return _other_dtype(q, shapes, floor, relative, bundle)
    prior = bundle.prior()
    if prior is not None and not q.collection:
        return _unmeasured(q, shapes, floor, prior)
    _, time, _ = library_time(*shapes, dtype=q.dtype, hardware=q.hardware, cache=q.cache)
    return _analytic(q, time, floor, "library")


def _twin(q: Question) -> list[str]:
    """Format that stands for the asked one on this device, where there is one."""
    twin, h = _TWINS.get(q.dtype, ""), q.hardware
    same = bool(twin) and h.supports(twin) and h.rate(twin) == h.rate(q.dtype)
    return [twin] if same and h.unit(twin) == h.unit(q.dtype) else []


def _siblings(
    q: Question, shapes: Shapes, floor: F64, near: list[tuple[Entry, float]], bundle: Bundle
) -> Times:
    """Transferred from devices much like it; a what-if keeps what they say of its origin."""
    reference = origin_of(q.hardware)
    models: list[Any] = [(bundle.time_model(entry), far) for entry, far in near]
    time, low, high = bundle.siblings().predict(models, shapes, q.dtype, reference, q.level)
    nearest, names = near[0][0], " and ".join(entry.hardware for entry, _ in near)
    reason = f"no {q.dtype} measurement of {reference.name}: carried over from {names}"
    if nearest.dtype != q.dtype:
        low, high = low / _TWIN, high * _TWIN
        reason += f" in {nearest.dtype}"
    reason += f", of its chip family ({nearest.collection})"
    return _transferred(q, shapes, floor, (time, low, high), reason)


def _unmeasured(q: Question, shapes: Shapes, floor: F64, prior: Prior) -> Times:
    """Transferred from other devices; a what-if keeps the utilisation of the device it changes."""
    reference = origin_of(q.hardware)
    time, low, high, reason = prior.predict(shapes, q.dtype, reference, q.level)
    return _transferred(q, shapes, floor, (time, low, high), reason)


def _transferred(
    q: Question, shapes: Shapes, floor: F64, known: tuple[F64, F64, F64], reason: str
) -> Times:
    """Carried times of the reference device, cache hot, as times of what is asked."""
    reference = origin_of(q.hardware)
    if q.hardware != reference or q.cache != "hot":
        known = _changed(q, shapes, reference, known)
        reason += "; cold cache by physics" if q.cache != "hot" else "; the change by physics"
    return Times.of(*known, floor, "transferred", reason)


def _changed(
    q: Question, shapes: Shapes, reference: Hardware, known: tuple[F64, F64, F64]
) -> tuple[F64, F64, F64]:
    """Carry time and interval of the reference device, cache hot, to what is asked by physics."""
    time, low, high = known
    _, new, _ = library_time(*shapes, dtype=q.dtype, hardware=q.hardware, cache=q.cache)
    _, old, _ = library_time(*shapes, dtype=q.dtype, hardware=reference, cache="hot")
    ratio = new / old
    grow = np.exp(STRETCH * np.abs(np.log(ratio))) if q.hardware != reference else 1.0
    return time * ratio, low * ratio / grow, high * ratio * grow


def _same_device(q: Question, shapes: Shapes, floor: F64, entry: Entry, bundle: Bundle) -> Times:
    """Measured or learned; transferred where the device was changed by a what-if."""
    model = bundle.time_model(entry)
    reference = origin_of(q.hardware)
    time, low, high, distance = model.predict(shapes, q.dtype, reference, q.level)
    # before any ratio: a counterfactual starts from the time that it is compared with
    time, low, high, hit = _measured(bundle, entry, shapes, (time, low, high))
    if q.hardware != reference or q.cache != "hot":
        moved = _changed(q, shapes, reference, (time, low, high))
        reason = f"utilisation of {entry.hardware} ({entry.collection}) kept, physics re-predicted"
        return Times.of(*moved, floor, "transferred", reason)
    times = Times.of(time, low, high, floor, "learned", f"collection {entry.collection}")
    times.time[hit] = time[hit]  # as measured, be it below our bound
    times.basis[hit] = "measured"
    batched = (distance == DISTANCES.index("outside")) & (shapes.batch > 1) & ~hit
    times.basis[batched] = "transferred"  # no batched row was measured
    return times


def _measured(
    bundle: Bundle, entry: Entry, shapes: Shapes, learned: tuple[F64, F64, F64]
) -> tuple[F64, F64, F64, npt.NDArray[np.bool_]]:
    """Put measured times in place of learned ones, their intervals moved along; and where."""
    time, low, high = learned
    exact = bundle.measured(entry)
    if exact is None:
        return time, low, high, np.zeros(len(time), bool)
    found = exact.find(shapes)
    hit = np.isfinite(found)
    now = np.where(hit, found, time)
    scale = now / time
    return now, np.minimum(low * scale, now), np.maximum(high * scale, now), hit


def _other_dtype(q: Question, shapes: Shapes, floor: F64, entry: Entry, bundle: Bundle) -> Times:
    """Transferred from another format on the same device: its utilisation, this format's physics.

    The features are those of the asked format, so that rate and bytes are its own; the interval
    is widened by the shift that such transfers showed (`spread` of the bundle's card).
    """
    model = bundle.time_model(entry)
    reference = origin_of(q.hardware)
    time, low, high, _ = model.predict(shapes, q.dtype, reference, q.level)
    same = (q.hardware.unit(q.dtype) == q.hardware.unit(entry.dtype)) and (
        shapes.problem(q.dtype).a_size == shapes.problem(entry.dtype).a_size
    )
    spread = bundle.card.get("dtype_transfer", {}).get("same_width" if same else "other_width")
    down, up = (spread["low"], spread["high"]) if spread else _UNKNOWN_TRANSFER
    # the card states the spread at 90 %; log-normal tails carry it to other levels (assumed)
    reach = NormalDist().inv_cdf((1.0 + q.level) / 2.0) / NormalDist().inv_cdf(0.95)
    if entry.dtype in _twin(q):
        low, high = low / _TWIN, high * _TWIN
    else:
        low, high = np.minimum(low, time * down**reach), np.maximum(high, time * up**reach)
    if q.hardware != reference or q.cache != "hot":
        time, low, high = _changed(q, shapes, reference, (time, low, high))
    reason = f"no {q.dtype} measurement of {entry.hardware}: utilisation of {entry.dtype} there"
    return Times.of(time, low, high, floor, "transferred", reason)


_CONFIGS = {"tiled": TiledConfig, "cutlass_simt": SimtConfig, "cutlass_tensor": TensorConfig}


def _configured(q: Question, shapes: Shapes, config: dict[str, F64], floor: F64) -> Times:
    """Time kernels with given tiles by physics alone."""
    if q.kernel not in _CONFIGS:
        raise SpecError(unknown_name("kernel", q.kernel, KERNELS))
    kind = _CONFIGS[q.kernel]
    known = [name for name in kind.__dataclass_fields__ if name in config]
    columns = {name: config[name].astype(np.int64) for name in known}
    value = kind(**columns)
    p = shapes.problem(q.dtype)
    if isinstance(value, TiledConfig):
        cost = tiled(p, value, q.hardware, q.cache)
    elif isinstance(value, TensorConfig):
        cost = tensor(p, value, q.hardware, q.cache)
    else:
        cost = simt(p, value, q.hardware, q.cache)
    times = _analytic(q, np.asarray(cost.time, float), floor, q.kernel)
    return replace(times, limiter=np.asarray(cost.limiter, dtype=object))


def _analytic(q: Question, time: F64, floor: F64, kernel: str) -> Times:
    spread = ANALYTIC_SPREAD["library" if kernel == "library" else "tiles"]
    tail = (1.0 - q.level) / 2.0
    fast, middle, slow = np.exp(np.interp((tail, 0.5, 1.0 - tail), PROBABILITIES, np.log(spread)))
    reason = f"physics of the {kernel} kernel; no measurement of it on {q.hardware.name}"
    return Times.of(time * middle, time * fast, time * slow, floor, "analytic", reason)
