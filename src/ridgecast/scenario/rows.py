"""A call of a network as a row of the batch table: formats given, treatments applied.

Owns how work that no model was trained on keeps the utilisation of its nearest relative:

    time = time of the relative * analytic(asked) / analytic(relative)

so that a technique changes bytes and operations, and never multiplies a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import dtype
from ..hardware import Hardware
from ..kernels.operator import analytic_time
from ..models.network import Amount, Call
from ..ops import op_class
from ..ops.base import Work
from ..techniques.treatment import Storage, Treatment
from .floor import STEP, cold_seconds, work_of
from .formats import Formats

__all__ = ["Case", "Row", "gemm_work", "quantised", "row_of"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Row:
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
    measured collection to use by op; `engine` is whose own kernels run, where they were measured,
    and `release` the last release of it whose measured all-reduces count ("": all).
    """

    calls: Sequence[Call]
    hardware: Hardware
    formats: Formats
    treatment: Treatment = field(default_factory=Treatment)
    skew: tuple[str, float] = ("balanced", 1.0)
    collections: Mapping[str, str] = field(default_factory=dict[str, str])
    engine: str = ""
    release: str = ""


def quantised(calls: Sequence[Call], case: Case) -> list[Call]:
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


def row_of(call: Call, case: Case) -> Row:
    """Give formats by role, and apply what the treatment does to the work; ground it in memory."""
    return _grounded(_plain(call, case), call, case)


def _plain(call: Call, case: Case) -> Row:
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
    return Row(call.op, fields, words)


def _grounded(row: Row, call: Call, case: Case) -> Row:
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


def _gemm(call: Call, case: Case) -> Row:
    fields, words = _sorted_out(call)
    f, name = case.formats, case.formats.compute(call.role)
    name = _no_unit(name, case)
    words["dtype"] = name
    storage = f.storage(call.role)
    if _twin(storage, name):
        return Row("gemm", fields, words)
    base = Storage.of(name)
    m, n, k = (fields[x] for x in ("m", "n", "k"))
    asked = analytic_time(gemm_work(m, n, k, name, storage, f.wide), case.hardware, "cold")
    known = analytic_time(gemm_work(m, n, k, name, base, f.wide), case.hardware, "cold")
    return Row("gemm", fields, words, asked / known, True)


def _no_unit(name: str, case: Case) -> str:
    """mxfp4 products run in 16 bits where the device has no unit for them."""
    if name == "mxfp4" and not case.hardware.supports("mxfp4"):
        return "int4_wo"
    return name


def _moe(call: Call, case: Case) -> Row:
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
        return Row("moe", fields, words)
    ratio = _reread(call.op, fields, words, "weight_dtype", storage, case)
    return Row("moe", fields, words, ratio, True)


def _attention(call: Call, case: Case) -> Row:
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
    return Row("attention", fields, words, ratio, not np.all(np.asarray(ratio) == 1.0))


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
