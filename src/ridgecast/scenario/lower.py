"""From the calls of passes to times: their rows (`rows`) predicted as one batch table.

Owns the table of all cases, which collection answers a row, and how its answers become times of
calls with their intervals and reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError
from ..models.network import Call
from ..predict import predict_table
from ..predict.bundle import Bundle, open_bundle
from .rows import Case, Row, quantised, row_of

__all__ = ["Timed", "time_calls", "time_cases"]

F64 = npt.NDArray[np.float64]
BASES = ("measured", "learned", "transferred", "analytic", "bound")
_STRETCH = 0.25  # 90 % factor of a change by physics: |log ratio| * this (as predict.ladder)


@dataclass(frozen=True, slots=True)
class Timed:
    """Calls with their times on one device: arrays [calls, points].

    `time`, `low`, `high` [s] are of all repetitions of a call in a pass, `energy` [J] likewise
    (NaN where the power is not known), `count` the repetitions, `least` [s] what a step's weights,
    cache or states take from memory. `basis` holds indices of BASES.
    """

    calls: tuple[Call, ...]
    count: F64
    time: F64
    low: F64
    high: F64
    energy: F64
    basis: npt.NDArray[np.int64]
    limiter: npt.NDArray[np.object_]
    least: F64
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
    rows: list[Row]
    points: int


def _lowered(case: Case, bundle: Bundle) -> _Lowered:
    calls = [c for c in case.calls if np.any(np.asarray(c.count) > 0)]
    calls += quantised(calls, case)
    rows = [row_of(call, case) for call in calls]
    for row in rows:
        row.words.setdefault("collection", _collection(row, case, bundle))
    return _Lowered(case, calls, rows, _points(calls, rows))


_EXCHANGE = ("/dispatch", "/combine")  # what moves tokens to their experts and back


def _collection(row: Row, case: Case, bundle: Bundle) -> str:
    """Measured collection that a row is answered from: what was asked for, or the engine's own.

    Engines' expert layers are alike, but for those of a format that have a collection of their own.
    """
    asked, device = case.collections.get(row.op, ""), case.hardware.base_name
    if asked or not case.engine:
        return asked
    own = f"/{case.engine}-"
    if row.op == "collective" and row.words["kind"] == "all_reduce":
        return bundle.collection_of(row.op, device, own, but=_EXCHANGE, until=case.release)
    if row.op == "moe":
        return bundle.collection_of(row.op, device, own, f"/{row.words['dtype']}")
    if row.op == "gemm":
        return bundle.gemm_collection_of(device, row.words["dtype"], own)
    if row.op == "attention" and _dense(row):
        return bundle.collection_of(row.op, device, own, "/dense")
    return ""


def _dense(row: Row) -> bool:
    """Whether attention is of keys and values of one size, each stored: not latent, not linear."""
    latent = row.words.get("shared_kv") == "true" or "v_head_dim" in row.fields
    return not latent and row.words.get("variant") != "linear"


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
        np.where(changed, 2, basis), found["limiter"].reshape(shape), least,
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


def _points(calls: Sequence[Call], rows: Sequence[Row]) -> int:
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
