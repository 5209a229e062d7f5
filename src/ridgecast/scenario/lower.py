"""From the calls of a network to times: formats given, treatments applied, one table predicted.

Owns how a call becomes rows of the batch table, and how work that no model was trained on keeps
the utilisation of its nearest relative:

    time = time of the relative * analytic(asked) / analytic(relative)

so that a technique changes bytes and operations, and never multiplies a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype
from ..errors import NoDataError, SpecError
from ..hardware import Hardware
from ..kernels.operator import analytic_time
from ..models.network import Amount, Call
from ..ops import op_class
from ..ops.base import Work
from ..predict import predict_table
from ..predict.bundle import Bundle, open_bundle
from ..techniques.treatment import Storage, Treatment
from .floor import STEP, cold_seconds, work_of
from .formats import Formats

__all__ = ["Case", "Timed", "gemm_work", "time_calls", "time_cases"]

F64 = npt.NDArray[np.float64]
BASES = ("measured", "learned", "transferred", "analytic", "bound")
_STRETCH = 0.25  # 90 % factor of a change by physics: |log ratio| * this (as predict.ladder)


@dataclass(frozen=True, slots=True)
class Timed:
    """Calls with their times on one device: arrays [calls, points].

    `time`, `low`, `high` [s] are of all repetitions of a call in a pass, `energy` [J] likewise
    (NaN where the power is not known), `count` the repetitions. `basis` holds indices of BASES.
    """

    calls: tuple[Call, ...]
    count: F64
    time: F64
    low: F64
    high: F64
    energy: F64
    basis: npt.NDArray[np.int64]
    limiter: npt.NDArray[np.object_]
    reasons: tuple[str, ...] = ()

    def total(self, parts: Sequence[str] | None = None) -> tuple[F64, F64, F64]:
        """Seconds [points] of the calls, one after another: time, low, high.

        Errors of one model are alike from call to call, so the ends of the intervals add.
        """
        chosen = [i for i, c in enumerate(self.calls) if parts is None or c.part in parts]
        return tuple(a[chosen].sum(axis=0) for a in (self.time, self.low, self.high))  # type: ignore[return-value]

    def by_part(self) -> dict[str, F64]:
        """Seconds [points] by part of the network."""
        out: dict[str, F64] = {}
        for i, call in enumerate(self.calls):
            out[call.part] = out.get(call.part, 0.0) + self.time[i]
        return out

    def weakest(self) -> tuple[str, float]:
        """Weakest basis that carries any time, and its share of the total, of all points."""
        total = max(float(self.time.sum()), 1e-300)
        for index in range(len(BASES) - 1, -1, -1):
            share = float(self.time[self.basis == index].sum()) / total
            if share > 0.0:
                return BASES[index], share
        return "analytic", 1.0

    def shares(self) -> dict[str, float]:
        """Share of the time that stands on each basis."""
        total = max(float(self.time.sum()), 1e-300)
        found = {b: float(self.time[self.basis == i].sum()) / total for i, b in enumerate(BASES)}
        return {b: s for b, s in found.items() if s > 0.0}


@dataclass(frozen=True, slots=True)
class _Row:
    """One call in the terms of the batch table; `ratio` [points] carries it to what was asked."""

    op: str
    fields: dict[str, Any]
    words: dict[str, str]
    ratio: Amount = 1.0
    changed: bool = False
    floor: Amount = 0.0
    """Seconds that what no cache can hold from pass to pass takes from memory."""


@dataclass(frozen=True, slots=True)
class Case:
    """Calls of a pass with what they run on and how.

    `skew` is how tokens spread over experts (distribution, exponent); `collections` names the
    measured collection to use by op; `engine` is whose own all-reduce runs, where it was measured.
    """

    calls: Sequence[Call]
    hardware: Hardware
    formats: Formats
    treatment: Treatment = field(default_factory=Treatment)
    skew: tuple[str, float] = ("balanced", 1.0)
    collections: Mapping[str, str] = field(default_factory=dict[str, str])
    engine: str = ""


def time_calls(case: Case, *, model: str | Path | None = None, level: float = 0.9) -> Timed:
    """Predict all calls of one pass; arrays in their fields are points.

    Raises NoDataError for a call that nothing can answer.
    """
    return time_cases([case], model=model, level=level)[0]


def time_cases(
    cases: Sequence[Case], *, model: str | Path | None = None, level: float = 0.9
) -> list[Timed]:
    """Predict the calls of many passes with one table, which costs far less than one each.

    Raises NoDataError for a call that nothing can answer.
    """
    bundle = open_bundle(model)
    lowered = [_lowered(case, bundle) for case in cases]
    table = _joined([_table(low) for low in lowered])
    devices = {case.hardware.name: case.hardware for case in cases}
    found = predict_table(table, model=model, level=level, hardware=devices)
    out, start = [], 0
    for low in lowered:
        stop = start + len(low.rows) * low.points
        out.append(_timed(low, {k: v[start:stop] for k, v in found.items()}))
        start = stop
    return out


@dataclass(frozen=True, slots=True)
class _Lowered:
    case: Case
    calls: list[Call]
    rows: list[_Row]
    points: int


def _lowered(case: Case, bundle: Bundle) -> _Lowered:
    calls = [c for c in case.calls if np.any(np.asarray(c.count) > 0)]
    calls += _quantised(calls, case)
    rows = [_grounded(_row(call, case), call, case) for call in calls]
    for row in rows:
        row.words.setdefault("collection", _collection(row, case, bundle))
    return _Lowered(case, calls, rows, _points(calls, rows))


def _collection(row: _Row, case: Case, bundle: Bundle) -> str:
    """Measured collection that a row is answered from: what was asked for, or the engine's own.

    Engines' expert layers are alike, but for those of a format that have a collection of their own.
    """
    asked, device = case.collections.get(row.op, ""), case.hardware.base_name
    if not asked and row.op == "collective" and row.words["kind"] == "all_reduce":
        return bundle.collection_of(row.op, device, case.engine)
    if not asked and row.op == "moe" and case.engine:
        return bundle.collection_of(row.op, device, f"/{case.engine}-", f"/{row.words['dtype']}")
    return asked


def _quantised(calls: Sequence[Call], case: Case) -> list[Call]:
    """Add kernels that quantise activations in blocks before products in a block format.

    The scales of fp8_block activations (1 x 128) depend on their values, and products are measured
    without that kernel; expert layers are measured with it. One a product, over its inputs.
    """
    if case.formats.linear != "fp8_block":
        return []
    found = []
    for call in calls:
        if call.op == "gemm" and call.role == "linear":
            rows = np.asarray(call.fields["m"]) * call.fields.get("batch", 1)
            fields = {"rows": rows, "cols": call.fields["k"], "stored": "fp8_e4m3",
                      "scaling": "group", "group": 128}  # fmt: skip
            found.append(Call("quantise", "quantise", fields, call.count, "other", call.phase))
    return found


def _timed(low: _Lowered, found: Mapping[str, Any]) -> Timed:
    """Gather the times of a case from its rows of the predicted table."""
    calls, rows, points = low.calls, low.rows, low.points
    _refuse(found, calls, points)
    shape = (len(calls), points)
    count = np.stack([np.broadcast_to(np.asarray(c.count, float), (points,)) for c in calls])
    ratio = np.stack([np.broadcast_to(np.asarray(r.ratio, float), (points,)) for r in rows])
    stretch = np.exp(_STRETCH * np.abs(np.log(np.maximum(ratio, 1e-12))))
    scale = count * ratio
    codes = {b: i for i, b in enumerate(BASES)}
    basis = np.array([codes.get(b, 3) for b in found["basis"].tolist()]).reshape(shape)
    changed = np.array([r.changed for r in rows])[:, None] & (basis < 2)
    least = count * np.stack([np.broadcast_to(np.asarray(r.floor, float), (points,)) for r in rows])
    return Timed(
        tuple(calls), count,
        np.maximum(found["time_s"].reshape(shape) * scale, least),
        np.maximum(found["time_low_s"].reshape(shape) * scale / stretch, least),
        np.maximum(found["time_high_s"].reshape(shape) * scale * stretch, least),
        found["energy_j"].reshape(shape) * scale,
        np.where(changed, 2, basis), found["limiter"].reshape(shape),
        _reasons(calls, found["reason"][:: max(points, 1)].tolist()),
    )  # fmt: skip


def _joined(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate tables whose columns differ: texts that are missing are "", numbers NaN."""
    if len(tables) == 1:
        return tables[0]
    out: dict[str, Any] = {}
    for name in dict.fromkeys(n for t in tables for n in t):
        kind = next(t[name].dtype for t in tables if name in t)
        empty: Any = "" if kind.kind == "O" else np.nan
        out[name] = np.concatenate(
            [t[name] if name in t else np.full(len(t["op"]), empty, dtype=kind) for t in tables]
        )
    return out


def _reasons(calls: Sequence[Call], told: Sequence[str]) -> tuple[str, ...]:
    """Say each reason once, with the parts that it is of; what is said of power is said there."""
    parts: dict[str, list[str]] = {}
    for call, text in zip(calls, told, strict=True):
        found = parts.setdefault(str(text).split("; power:")[0], [])
        if call.part not in found:
            found.append(call.part)
    return tuple(f"{', '.join(names)}: {text}" for text, names in parts.items())


def _points(calls: Sequence[Call], rows: Sequence[_Row]) -> int:
    sizes = {np.size(v) for r in rows for v in (*r.fields.values(), r.ratio)}
    sizes |= {np.size(c.count) for c in calls}
    sizes -= {1}
    if len(sizes) > 1:
        raise SpecError(f"points: fields have {sorted(sizes)} values; they must agree")
    return sizes.pop() if sizes else 1


def _table(low: _Lowered) -> dict[str, Any]:
    """Columns of the batch table, one row a call and point."""
    rows, points, case = low.rows, low.points, low.case
    names = list(dict.fromkeys(n for r in rows for n in r.fields))
    words = list(dict.fromkeys(n for r in rows for n in r.words))
    out: dict[str, Any] = {
        "op": np.repeat(np.array([r.op for r in rows], dtype=object), points),
        "hardware": np.full(len(rows) * points, case.hardware.name, dtype=object),
    }
    for name in words:
        column = np.array([r.words.get(name, "") for r in rows], dtype=object)
        out[name] = np.repeat(column, points)
    for name in names:
        column = np.empty((len(rows), points))
        for i, row in enumerate(rows):
            column[i] = row.fields.get(name, np.nan)
        out[name] = column.ravel()
    return out


def _refuse(found: Mapping[str, Any], calls: Sequence[Call], points: int) -> None:
    bad = np.flatnonzero(found["status"] != "ok")
    if len(bad):
        call = calls[int(bad[0]) // points]
        raise NoDataError(f"{call.part} ({call.op}): {found['reason'][bad[0]]}")


# ------------------------------------------------------------------ from calls to rows


def _row(call: Call, case: Case) -> _Row:
    """Give formats by role, and apply what the treatment does to the work."""
    if call.op == "gemm":
        return _gemm(call, case)
    if call.op == "moe":
        return _moe(call, case)
    if call.op == "attention":
        return _attention(call, case)
    fields, words = _sorted_out(call)
    if call.op == "collective":
        fields["bytes"] = np.maximum(fields["bytes"] * (case.treatment.comm_bits / 16.0), 1.0)
    if "dtype" in op_class(call.op).infos() and "dtype" not in words:
        words["dtype"] = case.formats.wide
    return _Row(call.op, fields, words)


def _grounded(row: _Row, call: Call, case: Case) -> _Row:
    """Add how long a step's weights, cache or states take from memory; states are never at hand."""
    f = case.formats
    row.words["cache"] = "cold" if row.words.get("variant") == "step" else "hot"
    stored = f.kv if row.op == "attention" else f.storage(call.role)
    if call.phase == "encoder" or (row.op == "attention" and case.treatment.kv.elements != 1.0):
        return row
    return replace(row, floor=cold_seconds(row.op, row.fields, row.words, stored, case.hardware))


def _sorted_out(call: Call) -> tuple[dict[str, Any], dict[str, str]]:
    """Numbers and words of a call's fields."""
    fields = {k: v for k, v in call.fields.items() if not isinstance(v, str | bool)}
    words = {k: str(v).lower() for k, v in call.fields.items() if isinstance(v, str | bool)}
    return fields, words


def gemm_work(
    m: Amount, n: Amount, k: Amount, compute: str, storage: Storage, wide: str = "bf16"
) -> Work:
    """Operations and bytes of activations [m, k] times stored weights [k, n].

    Weights are converted once for each block of rows (64: Marlin's largest, arXiv:2408.11743,
    section 3), or once where `rebuild` writes a 16-bit copy of them and reads it again; outliers
    are multiplied on the lanes.
    """
    m, n, k = (np.asarray(x, np.float64) for x in (m, n, k))
    cells = n * k
    product = compute if not dtype(compute).weight_only else dtype(compute).compute
    passes = 1.0 if storage.rebuild else np.ceil(m / storage.rows)
    lanes = storage.unpack * cells * passes * storage.density + 2.0 * m * cells * storage.outliers
    inputs = dtype(product if dtype(product).bits >= 8 else wide).bytes_of(1.0)
    read = inputs * m * k + storage.bytes_each * cells
    written = 2.0 * m * n
    if storage.rebuild:
        read, written = read + 2.0 * cells, written + 2.0 * cells
    launches = 2.0 if storage.rebuild else 1.0
    flops = {product: 2.0 * m * cells * storage.products, "vector": lanes}
    return Work(flops, read, written, launches=launches)


_ALIKE = 0.1  # bytes of a storage and a format that the same kernels serve (other scale groups)


def _twin(storage: Storage, name: str) -> bool:
    """Whether a format's own kernels do the work of this storage: its bits, whatever its groups."""
    plain = Storage.of(name)
    odd = storage.outliers > 0 or storage.density < 1 or storage.rebuild
    near = abs(storage.bits_each / plain.bits_each - 1.0) <= _ALIKE
    return not odd and near and storage.bits == plain.bits and storage.unpack <= plain.unpack


def _gemm(call: Call, case: Case) -> _Row:
    fields, words = _sorted_out(call)
    f, name = case.formats, case.formats.compute(call.role)
    name = _no_unit(name, case)
    words["dtype"] = name
    storage = f.storage(call.role)
    if _twin(storage, name):
        return _Row("gemm", fields, words)
    base = Storage.of(name)
    m, n, k = (fields[x] for x in ("m", "n", "k"))
    asked = analytic_time(gemm_work(m, n, k, name, storage, f.wide), case.hardware, "cold")
    known = analytic_time(gemm_work(m, n, k, name, base, f.wide), case.hardware, "cold")
    return _Row("gemm", fields, words, asked / known, True)


def _no_unit(name: str, case: Case) -> str:
    """mxfp4 products run in 16 bits where the device has no unit for them."""
    if name == "mxfp4" and not case.hardware.supports("mxfp4"):
        return "int4_wo"
    return name


def _moe(call: Call, case: Case) -> _Row:
    fields, words = _sorted_out(call)
    f, name = case.formats, case.formats.expert
    stored = name
    if name == "mxfp4":  # W4A16 where there is no unit for fp4, else activations at 8 bits
        name = "fp8_e4m3" if case.hardware.supports("nvfp4") else f.wide
    words |= {"dtype": name, "weight_dtype": stored}
    words.setdefault("distribution", case.skew[0])
    fields.setdefault("exponent", case.skew[1])
    storage = f.expert_storage
    if _twin(storage, stored):
        return _Row("moe", fields, words)
    ratio = _reread(call.op, fields, words, "weight_dtype", storage, case)
    return _Row("moe", fields, words, ratio, True)


def _attention(call: Call, case: Case) -> _Row:
    """Attention with what the treatment keeps, reads and computes of it."""
    fields, words = _sorted_out(call)
    f, t = case.formats, case.treatment
    part = bool(np.all(np.asarray(fields["q_len"]) * 4 <= np.asarray(fields["kv_len"])))
    decode = part and bool(np.all(np.asarray(fields["q_len"]) <= STEP))
    words.setdefault("dtype", f.wide)
    words.setdefault("kv_dtype", f.kv_dtype if call.phase != "encoder" else f.wide)
    if words.get("shared_kv") == "true" and words["kv_dtype"] == "fp8_e4m3":
        # kernels of a latent cache in fp8 multiply in fp8, where the device can
        words["dtype"] = "fp8_e4m3" if case.hardware.supports("fp8_e4m3") else words["dtype"]
    if part and call.phase != "encoder" and "window" not in fields:
        kept = np.asarray(fields["kv_len"], np.float64) * t.kv.keep
        if t.kv.budget:
            kept = np.minimum(kept, t.kv.budget)
        if decode:
            fields["kv_len"] = np.ceil(np.maximum(kept * t.kv.read, fields["q_len"]))
        elif not t.kv.peak:  # a chunk of a prompt sees what earlier chunks left, and itself
            fields["kv_len"] = np.minimum(np.ceil(kept) + fields["q_len"], fields["kv_len"])
    ratio: Amount = 1.0
    density = t.reduction.prefill_density if not decode else 1.0
    stored = f.kv if call.phase != "encoder" else Storage.of(f.wide)
    if t.kv.elements != 1.0 and decode:  # what is read for each element of keys and values
        stored = Storage(stored.bits_each * t.kv.elements, unpack=stored.unpack * t.kv.elements)
    if not _twin(stored, words["kv_dtype"]):
        plain = np.minimum(t.kv.recent / np.maximum(fields["kv_len"], 1.0), 1.0)
        ratio = _reread(call.op, fields, words, "kv_dtype", stored, case, plain)
    if density < 1.0 or (t.attention == "standard" and words.get("variant", "flash") == "flash"):
        changed = dict(fields) | ({"density": density} if density < 1.0 else {})
        other = dict(words) | ({"variant": "standard"} if t.attention == "standard" else {})
        ratio = ratio * _analytic(call.op, changed, other, case) / _analytic(
            call.op, fields, words, case)  # fmt: skip
    return _Row("attention", fields, words, ratio, not np.all(np.asarray(ratio) == 1.0))


def _analytic(op: str, fields: Mapping[str, Any], words: Mapping[str, str], case: Case) -> F64:
    return analytic_time(work_of(op, fields, words), case.hardware, "cold")


def _reread(
    op: str,
    fields: Mapping[str, Any],
    words: Mapping[str, str],
    name: str,
    storage: Storage,
    case: Case,
    plain: Amount = 0.0,
) -> F64:
    """Analytic time with an operand stored otherwise, over that with its plain format.

    The share `plain` of it is in 16 bits.
    The elements that are read of the operand follow from two formats that differ by one byte.
    """
    wide = work_of(op, fields, {**words, name: "int8"})
    narrow = work_of(op, fields, {**words, name: "bf16"})
    elements = np.asarray(narrow.read) - np.asarray(wide.read)
    known = work_of(op, fields, words)
    coded, base = elements * (1.0 - plain), Storage.of(words[name]).bytes_each
    lanes = np.asarray(known.flops.get("vector", 0.0)) + storage.unpack * coded
    extra = coded * storage.bytes_each + (elements - coded) * 2.0 - elements * base
    again = 2.0 * coded * (1.0 if storage.rebuild else 0.0)
    asked = replace(
        known, flops={**known.flops, "vector": lanes}, read=known.read + extra + again,
        written=known.written + again, footprint=None, resident=None,
    )  # fmt: skip
    known = replace(known, footprint=None, resident=None)
    return analytic_time(asked, case.hardware, "cold") / analytic_time(known, case.hardware, "cold")
