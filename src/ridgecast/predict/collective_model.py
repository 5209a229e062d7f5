"""The learned time of collectives on one device: a physical base times what kinds and counts share.

    t(kind, n, S) = base(kind, n, S) * exp(g(kind, n, S))

`collective_basis` is the base, `collective_gp` the process g. Owns the curves over the buffer,
which never fall, what lies beyond the measured sizes, intervals from whole groups and whole
(kind, count) held out, and the model's folder: `card.json` and npz.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError
from ..hardware import Hardware
from ..kernels.operator import link_of
from ..ops.base import Op
from ..ops.collective import Collective
from .collective_basis import Calls, Fabric, balance, base, calls_of, fabric_of, fit_base
from .collective_gp import Points, Process, fit_process
from .operator_features import Known
from .operator_model import CARD_VERSION, LEAST_ROWS, OperatorRows, width_of
from .operator_rows import word_fields
from .sweep_parts import Intervals, codes_of, fit_intervals, make_folds

__all__ = ["CollectiveModel", "fit_collective", "several_kinds"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
_MOST = 1200  # training rows; beyond, as many drawn at random
_MOST_STRUCTURES = 16  # that are left out one by one; beyond, in as many parts
_NETWORK_LATENCY = 5e-6  # s a message between nodes (assumed, as `kernels.operator`)
_STEP = 0.25  # octaves between the knots of a curve
_CURVES = 1024  # that are kept
_WORDS = word_fields(Collective)


@dataclass(frozen=True, slots=True)
class CollectiveModel:
    """Predicts collectives on the device that it was fitted on.

    `coefficients` are those of the base's terms, `domain` holds the words and structures (label,
    gpus, nodes) that were measured and the ranges of bytes and gpus; `intervals` are of residuals
    over the process's own deviation.
    """

    op: ClassVar[str] = "collective"
    hardware: str
    collection: str
    fabric: Fabric
    coefficients: Mapping[str, float]
    process: Process
    intervals: Intervals
    domain: Mapping[str, Any]
    card: Mapping[str, Any]
    kept: dict[tuple[str | float, ...], tuple[F64, F64, F64]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def predict(
        self, op: Op, k: Known, hardware: Hardware, level: float
    ) -> tuple[F64, F64, F64, I64]:
        """Time, low and high [s] [rows] and the index of PLACES; `k` is of this very device.

        Where no measured call left its node, one that does takes the time of its part in a node
        and, on top, that of physics for what goes to other nodes (0.5 to 2 times as much).
        """
        op = cast(Collective, op)
        zero = np.zeros(k.rows)
        network = k.parts.get("network", zero)
        calls = calls_of(op, k.rows, network)
        far = calls.nodes > 1.0
        if self.domain["nodes"] > 1.0 or not far.any():
            return self.answer(calls, level)
        gpus = np.maximum(calls.gpus / calls.nodes, 2.0)
        local = replace(calls, gpus=gpus, nodes=zero + 1.0, network=zero)
        time, low, high, place = self.answer(local, level)
        hops = np.asarray(k.work.hops.get("network", 0.0), np.float64)
        added = network + hops * (link_of(hardware, "network").latency or _NETWORK_LATENCY)
        place[far] = 2
        return time + added, low + 0.5 * added, high + 2.0 * added, place

    def predict_rows(self, rows: OperatorRows, level: float) -> tuple[F64, F64, F64]:
        """Time, low and high [s] of measured rows; as `predict`, and none below the bound."""
        time, low, high, _ = self.answer(calls_of_rows(rows), level)
        return np.maximum(time, rows.bound), np.maximum(low, rows.bound), np.maximum(high, low)

    def answer(self, calls: Calls, level: float) -> tuple[F64, F64, F64, I64]:
        """Time, low and high [s] [rows], and the index of PLACES."""
        value, spread = self.log_time(calls)
        place = self._place(self._alike(calls))
        low, high = self.intervals.limits(value, place, level)
        return (np.exp(value), np.exp(value + np.minimum(low, 0.0) * spread),
                np.exp(value + np.maximum(high, 0.0) * spread), place)  # fmt: skip

    def log_time(self, calls: Calls) -> tuple[F64, F64]:
        """Logarithm of the time [s] and its deviation [rows].

        Beyond the measured sizes and counts the ratio to the base is that of the edge.
        """
        calls = self._alike(calls)
        size = np.clip(calls.bytes, *self.domain["bytes"])
        edge = replace(calls, bytes=size, network=calls.network * size / calls.bytes)
        value, spread = self.curves(edge)
        ends = (base(c, self.fabric, self.coefficients) for c in (calls, edge))
        return value + np.subtract(*map(np.log, ends)), spread

    def curves(self, calls: Calls) -> tuple[F64, F64]:
        """Logarithm of the time [s], never falling over the bytes, and its deviation [rows].

        Both are interpolated between knots; a curve that falls somewhere is replaced by the middle
        of the least rising one above it and the greatest below it.
        """
        rate = calls.network / calls.bytes
        codes = codes_of([calls.label, calls.format, calls.gpus, calls.nodes, _round(rate)])
        value, spread, x = np.empty(len(calls)), np.empty(len(calls)), np.log2(calls.bytes)
        for row in np.unique(codes, return_index=True)[1].tolist():
            at = codes == codes[row]
            knots, mean, deviation = self._curve(calls.at(np.array([row])))
            value[at] = np.interp(x[at], knots, mean)
            spread[at] = np.interp(x[at], knots, deviation)
        return value, spread

    def _curve(self, one: Calls) -> tuple[F64, F64, F64]:
        """Knots (log2 bytes), logarithm of the time [s] and its deviation of one call's curve.

        Curves are kept: whole models ask for the same few again and again.
        """
        rate = float(_round(one.network / one.bytes)[0])
        key = (str(one.label[0]), str(one.format[0]), float(one.gpus[0]), float(one.nodes[0]), rate)
        found = self.kept.get(key)
        if found is None:
            lowest, highest = np.log2(self.domain["bytes"])
            knots = np.arange(np.floor(lowest), np.ceil(highest) + _STEP, _STEP)
            size = 2.0**knots
            some = replace(one.at(np.zeros(len(knots), np.int64)), bytes=size, network=rate * size)
            near = replace(some, gpus=np.clip(some.gpus, *self.domain["gpus"]))
            mean, deviation = self.process.predict(_points(near, self.fabric, self.coefficients))
            mean = _rising(mean + np.log(base(some, self.fabric, self.coefficients)))
            if len(self.kept) >= _CURVES:
                self.kept.clear()
            found = self.kept[key] = knots, mean, deviation
        return found

    def _alike(self, calls: Calls) -> Calls:
        """Name calls by measured words: an algorithm's own or any, a format of the same width."""
        labels = {label for label, *_ in self.domain["structures"]}
        formats = [str(words[_WORDS.index("dtype")]) for words in self.domain["words"]]
        kept = np.isin(calls.label, list(labels))
        form = calls.format.copy()
        for own in np.unique(form):
            same = [f for f in formats if width_of(f) == width_of(own)]
            if own not in formats and same:
                form = np.where(form == own, same[0], form)
        return replace(calls, label=np.where(kept, calls.label, calls.kind), format=form)

    def _place(self, calls: Calls) -> I64:
        """Index of PLACES: structure measured, new, or a size beyond those measured."""
        seen = {tuple(structure) for structure in self.domain["structures"]}
        keys = zip(calls.label.tolist(), calls.gpus.tolist(), calls.nodes.tolist(), strict=True)
        out = np.array([key not in seen for key in keys], np.int64)
        (low, high), (few, many) = self.domain["bytes"], self.domain["gpus"]
        far = (calls.bytes < low) | (calls.bytes > high) | (calls.gpus < few) | (calls.gpus > many)
        return np.where(far, 2, out)

    def knows(self, op: Op) -> bool:
        """Whether the words of `op` were measured together; formats of one width count as one."""
        asked = tuple(width_of(str(getattr(op, n))) for n in _WORDS)
        return asked in {tuple(map(width_of, words)) for words in self.domain["words"]}

    def reaches(self, op: Op) -> npt.NDArray[np.bool_]:
        """All rows of `op`: a library sends wherever there is a link."""
        return np.asarray(True)

    def save(self, folder: Path) -> None:
        """Write card.json and smooth.npz; a model of another form goes from the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        card = {
            "card_version": CARD_VERSION, "form": FORM, "op": self.op, "hardware": self.hardware,
            "collection": self.collection, "fabric": asdict(self.fabric),
            "coefficients": dict(self.coefficients), "intervals": self.intervals.to_dict(),
            "domain": dict(self.domain), **self.card,
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **cast(Any, self.process.to_arrays()))
        text = (json.dumps(card, allow_nan=False) + "\n").encode()
        for name, data in (("smooth.npz", buffer.getvalue()), ("card.json", text)):
            draft = folder / f".{name}.{os.getpid()}"
            draft.write_bytes(data)
            draft.replace(folder / name)
        (folder / "model.txt.xz").unlink(missing_ok=True)


FORM = "process"
_OWN = ("card_version", "form", "op", "hardware", "collection", "fabric", "coefficients",
        "intervals", "domain")  # fmt: skip


def from_card(card: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> CollectiveModel:
    """Undo `CollectiveModel.save`. Raises KeyError or TypeError for a gap."""
    fabric = Fabric(**card["fabric"])
    return CollectiveModel(
        card["hardware"], card["collection"], fabric, dict(card["coefficients"]),
        Process.from_arrays(arrays, fabric), Intervals.from_dict(card["intervals"]),
        card["domain"], {k: v for k, v in card.items() if k not in _OWN},
    )  # fmt: skip


def _round(x: F64) -> F64:
    """Ten digits of x >= 0, so that one rate computed from two sizes is one."""
    unit = 10.0 ** (np.floor(np.log10(np.maximum(x, 1e-300))) - 9.0)
    return np.where(x > 0.0, np.round(x / unit) * unit, 0.0)


def _rising(y: F64) -> F64:
    above, below = np.maximum.accumulate(y), np.minimum.accumulate(y[::-1])[::-1]
    return 0.5 * (above + below)


def _points(calls: Calls, fabric: Fabric, coefficients: Mapping[str, float]) -> Points:
    return Points(calls, balance(calls, fabric, coefficients), fabric)


def calls_of_rows(rows: OperatorRows) -> Calls:
    """Read measured rows of collectives as columns."""
    words = np.array([list(w) for w in rows.words], dtype=str)[rows.word_of]
    kind, algorithm, form = (words[:, _WORDS.index(n)] for n in ("kind", "algorithm", "dtype"))
    label = np.where(algorithm == "auto", kind, np.char.add(np.char.add(kind, "/"), algorithm))
    size, gpus, near = rows.sizes.T
    network = rows.terms.get("network", np.zeros(len(size)))
    return Calls(kind, label, form, size, gpus, gpus / np.minimum(near, gpus), network)


# ------------------------------------------------------------------------------------- the fit


def _left(calls: Calls, time: F64, fabric: Fabric) -> tuple[dict[str, float], Points, F64]:
    """Fit the base; its coefficients, the points, and what the base leaves of log time."""
    found = fit_base(calls, time, fabric)
    return found, _points(calls, fabric, found), np.log(time / base(calls, fabric, found))


def several_kinds(rows: OperatorRows) -> bool:
    """Whether there is a kind to learn another's count from: what the process is better at.

    Of one kind (engines' own all-reduces, exchanges of experts) held-out counts were missed by
    18.4 % instead of 17.4 %, and held by 64 % of the intervals instead of 82 %.
    """
    return len({rows.words[w][_WORDS.index("kind")] for w in np.unique(rows.word_of)}) > 1


def fit_collective(
    rows: OperatorRows, hardware: Hardware, collection: str, *, seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> CollectiveModel:  # fmt: skip
    """Fit and calibrate on measured rows; whole groups and structures are held out for intervals.

    The held-out rows of a fold are held out of the base and of the process; the process's variances
    are those of all rows, so that deviations mean the same in every fold. At most _MOST rows count.
    Raises NoDataError for fewer than LEAST_ROWS rows.
    """
    if len(rows.time) < LEAST_ROWS:
        raise NoDataError(f"collective: {len(rows.time)} measured rows, need {LEAST_ROWS}")
    fabric, rng = fabric_of(hardware), np.random.default_rng(seed)
    at = np.sort(rng.permutation(len(rows.time))[:_MOST])
    calls, time, words = calls_of_rows(rows).at(at), rows.time[at], [list(w) for w in rows.words]
    found, points, left = _left(calls, time, fabric)
    process = fit_process(points, left)
    whole = CollectiveModel(
        hardware.name, collection, fabric, found, process, Intervals(np.empty(0), ()),
        _domain(calls) | {"words": words}, {"rows": len(rows.time), "seed": seed, **(facts or {})},
    )  # fmt: skip
    parts: list[tuple[int, I64, F64, F64]] = []
    structure = codes_of([rows.structure[at]])
    folds = make_folds(codes_of([rows.group[at]]), structure, rows.bound[at], rng,
                       few_most=_MOST_STRUCTURES)  # fmt: skip
    for place, train, test in folds:
        some, own = calls.at(train), _left(calls.at(train), time[train], fabric)
        then = Process(own[1], own[2], process.noise[train], process.variance)
        domain = _domain(some) | {"words": words}
        fitted = replace(whole, coefficients=own[0], process=then, domain=domain)
        value, spread = fitted.log_time(calls.at(test))
        parts.append((place, np.flatnonzero(test), (np.log(time[test]) - value) / spread, value))
    place = np.concatenate([np.full(len(part[1]), part[0]) for part in parts])
    row, z, value = (np.concatenate(c) for c in list(zip(*parts, strict=True))[1:])
    if not (place == 0).any():
        place = np.where(place == 1, 0, place)
    intervals = fit_intervals(z, value, place, folds.kinds, together=structure[row])
    return replace(whole, intervals=intervals)


def _domain(calls: Calls) -> dict[str, Any]:
    """Tell what was measured: structures, ranges of bytes and devices, most nodes."""
    structures = sorted(set(zip(calls.label.tolist(), calls.gpus.tolist(), calls.nodes.tolist(),
                                strict=True)))  # fmt: skip
    return {
        "structures": [list(s) for s in structures],
        "bytes": [float(calls.bytes.min()), float(calls.bytes.max())],
        "gpus": [float(calls.gpus.min()), float(calls.gpus.max())],
        "nodes": float(calls.nodes.max()),
    }
