"""The batch contract for operations other than library GEMM: the same ladder, one engine.

    learned      a model of this operation on this device (`operator_model`)
    transferred  a device changed by a what-if, a format or variant that was not measured there, or
                 the pooled model of other devices
    analytic     physics alone (`kernels.operator`)

Owns the descent and what each rung does to the interval. Knows no operation by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import NoDataError, RidgecastError, SpecError, UnsupportedError
from ..hardware import Hardware, get, names, origin_of, reference_of, resolve
from ..kernels.bound import CLOSEST, Cache, check_cache
from ..kernels.operator import assumed_links, link_of
from ..ops import op_class
from ..ops.base import Op, resident_of
from ..store.tables import Table
from .bundle import Bundle
from .chunks import CHUNK, on_all_cores
from .ladder import PROBABILITIES, STRETCH
from .operator_features import Known, Learned, known
from .operator_model import NEW_BEYOND
from .operator_rows import Part, op_parts
from .throttle import recapped, throttling

__all__ = ["Answer", "answer_operator", "fill_operators"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
# Quantiles of measured over analytic time, at 0.005 0.025 0.05 0.25 0.5 0.75 0.95 0.975 0.995
# (derived: benchmarks/operator_spread.py, attention, MoE and collectives of nine devices)
ANALYTIC_SPREAD = (0.644, 0.909, 1.078, 1.566, 2.497, 5.099, 10.429, 16.127, 35.667)
# The same of collectives alone, seven devices (the rows of that benchmark under "collective")
COLLECTIVE_SPREAD = (0.262, 0.536, 0.704, 1.251, 1.749, 2.661, 6.768, 13.68, 26.66)
# The same of kernels that stream arrays once: static fp8 quantisation on nine devices, two
# frameworks each (derived: benchmarks/operator_spread.py --streaming)
STREAMING_SPREAD = (0.342, 0.579, 0.621, 1.062, 1.274, 1.648, 2.460, 2.713, 3.832)
_OTHER_WORDS = 2.0  # 90 % factor of a transfer between formats or variants (assumed)
_SWITCHED = {"nvlink", "xgmi", "xe_link"}  # over PCIe the board decides, not the device
_NEAR = 2.0  # factor between devices that stand for one another (assumed)
# 90 % factor of such a transfer: benchmarks/sibling_operators.py, collectives of four devices
_SIBLING = 1.54
_KIN = 3  # devices of a vendor that make a relative (assumed)


@dataclass(frozen=True, slots=True)
class Answer:
    """Times [s] of a column of operations, with interval, basis and reason per row."""

    time: F64
    low: F64
    high: F64
    basis: npt.NDArray[np.object_]
    reason: npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class _Run:
    """What all parts of one call share: the output table, models, level, added devices."""

    out: Table
    bundle: Bundle
    level: float
    devices: Mapping[str, Hardware]


def fill_operators(
    out: Table,
    columns: Table,
    rows_of: Mapping[str, I64],
    bundle: Bundle,
    level: float,
    devices: Mapping[str, Hardware],
) -> None:
    """Answer the rows of each operation into `out`; bad ones get a status and a reason."""
    run = _Run(out, bundle, level, devices)
    for name, rows in rows_of.items():
        try:
            cls = op_class(name)
        except (RidgecastError, ImportError) as error:
            out["status"][rows], out["reason"][rows] = "invalid", str(error)
            continue
        parts = op_parts(cls, columns, rows, ("hardware", "cache", "collection"), most=CHUNK)
        on_all_cores(partial(_part, run), parts)


def _part(run: _Run, part: Part) -> None:
    """Mark the bad rows of one part and answer the others."""
    bad, told = part.rows[part.bad], part.reason
    run.out["status"][bad] = "invalid"
    run.out["reason"][bad] = told if isinstance(told, str) else told[part.bad]
    if part.op is not None and not part.bad.all():
        _fill(run, part.op, part.rows, ~part.bad, part.words)


def _fill(
    run: _Run, op: Op, rows: I64, good: npt.NDArray[np.bool_], words: Mapping[str, str]
) -> None:
    """Answer one part: all of its rows at once, those that are good kept."""
    out = run.out
    at = rows[good]
    try:
        name = words["hardware"]
        device = run.devices[name] if name in run.devices else resolve(name)
        cache = words.get("cache") or "hot"
        check_cache(cache)
        k = known(op, len(rows), device, cast(Cache, cache))
        found = answer_operator(
            op, k, device, run.bundle, run.level, cache=cast(Cache, cache),
            collection=words.get("collection", ""),
        )  # fmt: skip
    except (RidgecastError, OSError) as error:
        kind = "invalid" if isinstance(error, SpecError) else "no_answer"
        out["status"][at], out["reason"][at] = kind, str(error)
        return
    finite = np.isfinite(found.time) & np.isfinite(found.high) & np.isfinite(k.bound)
    lost = rows[good & ~finite]
    out["status"][lost] = "invalid"
    out["reason"][lost] = f"{op.name}: its sizes together are beyond what numbers can hold"
    none = rows[good & (found.basis == "")]
    out["status"][none] = "no_answer"
    out["reason"][none] = found.reason[good & (found.basis == "")]
    good = good & finite
    at = rows[good]
    if not len(at):
        return
    out["status"][at] = "ok"
    out["reason"][at] = found.reason[good] + assumed_links(k.work, device)
    out["time_s"][at], out["bound_s"][at] = found.time[good], k.bound[good]
    out["time_low_s"][at], out["time_high_s"][at] = found.low[good], found.high[good]
    out["basis"][at] = found.basis[good]
    out["limiter"][at] = limiters(k, device)[good]
    resident = np.broadcast_to(np.asarray(resident_of(k.work), float), (len(rows),))
    out["memory_bytes"][at] = resident[good]
    _power(run, op, k, device, rows, good)


def limiters(k: Known, device: Hardware) -> npt.NDArray[np.object_]:
    """Name the busiest resource per row; "launch" where none reaches the launch latency."""
    kinds = list(k.parts)
    stack = np.stack([k.parts[kind] for kind in kinds])
    out = np.array(kinds, dtype=object)[stack.argmax(axis=0)]
    out[stack.max(axis=0) < device.launch_latency] = "launch"
    return out


def answer_operator(
    op: Op, k: Known, device: Hardware, bundle: Bundle, level: float, *,
    cache: Cache = "hot", collection: str = "",
) -> Answer:  # fmt: skip
    """Time of each row on the highest rung that can carry it.

    Raises NoDataError for a collection that has no model for any row; where it has for some, the
    others come back without a basis.
    """
    found: list[tuple[Answer, npt.NDArray[np.bool_]]] = []
    for model, rows in bundle.operators(op, k.rows, device.base_name, collection):
        if model is not None:
            answer = _measured(op, k, device, model, level, cache)
        elif not collection:
            answer = _unmeasured(op, k, device, bundle, level, cache)
        else:
            told = (f"no collection {collection!r} of such {op.name} on {device.base_name} was "
                    "measured; leave the column empty")  # fmt: skip
            if rows.all():
                raise NoDataError(told)
            answer = _refused(k.rows, told)
        found.append((answer, rows))
    first = found[0][0]
    for answer, rows in found[1:]:
        _put(first, answer, rows)
    return first if recapped(device) is None else _capped(first, k, device, bundle)


def _put(into: Answer, answer: Answer, rows: npt.NDArray[np.bool_]) -> None:
    """Take some rows of another answer."""
    for name in ("time", "low", "high", "basis", "reason"):
        getattr(into, name)[rows] = getattr(answer, name)[rows]


def _capped(answer: Answer, k: Known, device: Hardware, bundle: Bundle) -> Answer:
    """Carry times to another power cap, where the operation computes in a format of the device."""
    flops, moved = (np.broadcast_to(np.asarray(value, np.float64), (k.rows,))
                    for value in (k.work.all_flops, k.work.moved))  # fmt: skip
    try:
        slower = throttling(
            bundle.power(), device, _format(k), (flops, moved, moved), answer.time
        )  # fmt: skip
    except UnsupportedError as error:
        told = answer.reason + f"; the power cap changes no time: {error}"
        return replace(answer, reason=told)
    time, low, high = answer.time * slower[0], answer.low * slower[1], answer.high * slower[2]
    clamped = _clamped(time, low, high, k, answer.basis, "")
    return replace(clamped, reason=answer.reason)


def _format(k: Known) -> str:
    """Format that an operation computes in, as the power model names it."""
    return next((unit for unit in k.work.flops if unit in DTYPES), "fp32")


def _refused(rows: int, reason: str) -> Answer:
    """No time, and no basis."""
    nothing = np.full(rows, np.nan)
    empty, told = np.full(rows, "", dtype=object), np.full(rows, reason, dtype=object)
    return Answer(nothing, nothing, nothing, empty, told)


def _measured(
    op: Op, k: Known, device: Hardware, model: Learned, level: float, cache: Cache
) -> Answer:
    """Time by a model of this operation on this device, or on the one that it was changed from."""
    own = model.hardware == device.base_name
    reference = origin_of(device) if own else reference_of(model.hardware) or device
    base = k if device == reference and cache == "hot" else known(op, k.rows, reference)
    time, low, high, place = model.predict(op, base, reference, level)
    basis = np.full(k.rows, "learned", dtype=object)
    reason = f"collection {model.collection}"
    if not model.knows(op):
        basis[:] = "transferred"
        low, high = low / _OTHER_WORDS, high * _OTHER_WORDS
        reason += "; these formats or this variant were not measured there"
    basis[(place == 2) | (place == NEW_BEYOND)] = "transferred"
    if base is not k:
        time, low, high = _moved(time, low, high, k, base, known(op, k.rows, device))
        basis[:] = "transferred"
        reason = f"utilisation of {model.hardware} ({model.collection}) kept, physics re-predicted"
    return _clamped(time, low, high, k, basis, reason)


def _moved(
    time: F64, low: F64, high: F64, asked: Known, base: Known, hot: Known
) -> tuple[F64, F64, F64]:
    """Carry times from the device (and hot cache) that they are of to those that are asked.

    Another device scales them by physics; a cold cache adds what physics says that it takes.
    """
    ratio = hot.analytic / base.analytic
    colder = np.maximum(asked.analytic - hot.analytic, 0.0)
    grow = np.exp(STRETCH * np.abs(np.log(ratio)))
    new = time * ratio + colder
    return new, low * ratio / grow + 0.5 * colder, high * ratio * grow + 2.0 * colder


def _kin(pooled: Learned, device: Hardware) -> bool:
    """Whether at least three devices of the same vendor taught the model of other devices.

    Left out with no relative, the one Intel device was held by 28 % of its 90 % intervals: what was
    learned does not cross vendors.
    """
    taught = {str(s["hardware"]) for s in pooled.card.get("scores", ())}
    return sum(get(n).vendor == device.vendor for n in taught if n in names()) >= _KIN


def _unmeasured(
    op: Op, k: Known, device: Hardware, bundle: Bundle, level: float, cache: Cache
) -> Answer:
    pooled = bundle.pooled_operator(op.name)
    basis = np.full(k.rows, "analytic", dtype=object)
    if pooled is not None and pooled.knows(op) and _kin(pooled, device):
        reference = origin_of(device)
        base = k if device == reference and cache == "hot" else known(op, k.rows, reference)
        time, low, high, _ = pooled.predict(op, base, reference, level)
        basis[:] = "transferred"
        reason = f"transferred from {pooled.card['devices']} other devices"
        if base is not k:
            time, low, high = _moved(time, low, high, k, base, known(op, k.rows, device))
        return _clamped(time, low, high, k, basis, reason)
    tail = (1.0 - level) / 2.0
    links = COLLECTIVE_SPREAD if op.name == "collective" else ANALYTIC_SPREAD
    spread = STREAMING_SPREAD if op.streams else links
    fast, middle, slow = np.exp(np.interp((tail, 0.5, 1.0 - tail), PROBABILITIES, np.log(spread)))
    reason = f"physics of {op.name}; no measurement of it on {device.name}"
    t = k.analytic
    answer = _clamped(t * middle, t * fast, t * slow, k, basis, reason)
    bus = "peer" in k.work.links and not _SWITCHED & set(device.links)
    for model, rows in () if pooled is not None or bus else _siblings(op, k.rows, device, bundle):
        near = _measured(op, k, device, model, level, cache)
        reason = f"{model.hardware} is the nearest device measured ({model.collection})"
        carried = np.full(k.rows, "transferred", dtype=object)
        limits = near.low / _SIBLING, near.high * _SIBLING
        _put(answer, _clamped(near.time, *limits, k, carried, reason), rows)
    return answer


def _siblings(
    op: Op, rows: int, device: Hardware, bundle: Bundle
) -> Iterator[tuple[Learned, npt.NDArray[np.bool_]]]:
    """Yield the models of the most similar measured device, where one is similar enough, by rows.

    Similar: the same vendor, and bf16 rate (but of collectives), memory bandwidth and link to peers
    each within a factor of _NEAR; the nearest in those logarithms comes first. A what-if keeps the
    neighbour of the device that it changes.
    """
    own = _scale(origin_of(device))
    near: list[tuple[float, str]] = []
    for name in {str(e["hardware"]) for e in bundle.card.get("operators", ())
                 if e["op"] == op.name}:  # fmt: skip
        other = get(name) if name in names() else None
        if other is None or other.vendor != device.vendor:
            continue
        far = [abs(float(np.log(a / b))) for a, b in
               zip(_scale(other), own, strict=True)]  # fmt: skip
        far = far[1:] if op.name == "collective" else far  # which multiplies nothing
        if max(far) <= np.log(_NEAR):
            near.append((sum(far), name))
    for _, name in sorted(near)[:1]:
        for model, mine in bundle.operators(op, rows, name):
            if model is not None and model.knows(op):
                yield model, mine


def _scale(device: Hardware) -> tuple[float, float, float]:
    """Rate, bandwidth and link that make devices similar."""
    rate = device.rates.get("bf16") or device.rates.get("fp16") or max(device.rates.values())
    try:
        peer = link_of(device, "peer").bandwidth
    except RidgecastError:
        peer = 1.0
    return rate, device.memory.bandwidth, peer


def _clamped(
    time: F64, low: F64, high: F64, k: Known, basis: npt.NDArray[np.object_], reason: str
) -> Answer:
    time = np.maximum(time, CLOSEST * k.bound)
    low, high = np.maximum(low, k.bound), np.maximum(high, time)
    told = np.full(k.rows, reason, dtype=object)
    return Answer(time, np.minimum(low, time), high, basis, told)


def _power(
    run: _Run, op: Op, k: Known, device: Hardware, rows: I64, good: npt.NDArray[np.bool_]
) -> None:
    """Power and energy by the shared model, where the operation computes in a format it knows."""
    out, at = run.out, rows[good]
    dtype = _format(k)

    def wide(value: Any) -> F64:
        return np.broadcast_to(np.asarray(value, np.float64), (k.rows,))[good]

    flops, moved, time = wide(k.work.all_flops), wide(k.work.moved), out["time_s"][at]
    power = run.bundle.power()
    try:
        drawn = power.predict(device, dtype, flops, moved, moved, time, run.level)
    except RidgecastError as error:
        drawn = {"power_w": None, "reason": str(error)}
    if drawn["power_w"] is None:
        out["reason"][at] += f"; power: {drawn['reason']}"
        return
    out["reason"][at] += "; power: as a GEMM of these operations and bytes, not checked for this"
    for name in ("power_w", "power_low_w", "power_high_w"):
        out[name][at] = drawn[name]
    limits = (out["time_low_s"][at], out["time_high_s"][at])
    energy = power.energy(device, dtype, drawn, time, limits, run.level)
    for name in ("energy_j", "energy_low_j", "energy_high_j"):
        out[name][at] = energy[name]
