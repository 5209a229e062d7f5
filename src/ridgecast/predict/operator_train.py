"""Train the models of operations from measured tables, and the index that a folder keeps of them.

    files -> rows by operation, device and collection -> a model each, scored on whole groups held
    out -> OUT/operators/<name>/, and the list `operators` of OUT/card.json

Owns which splits an operation is scored by, and the model for devices without measurements.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, RidgecastError
from ..hardware import Hardware, get
from ..ops import op_class
from ..store.tables import Table, select
from .collective_model import CollectiveModel
from .operator_base import base_time
from .operator_fit import fit_operator
from .operator_model import (
    GROUPS,
    OperatorModel,
    OperatorRows,
    numbers_of,
    operator_rows,
    stack_columns,
)
from .operator_rows import word_fields
from .parity import sample, save_parity
from .scores import score

__all__ = ["OPERATORS", "collections_of", "held_out", "score_operator", "train_operator",
           "write_index"]  # fmt: skip

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
OPERATORS = tuple(GROUPS)
# op -> kind -> field values by any of which its rows are known; models of a kind serve it alone
KINDS: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "attention": {
        "latent": (  # of DeepSeek-V3 and Kimi-K2: absorbed, expanded
            {"shared_kv": True, "kv_heads": 1, "head_dim": 576, "v_head_dim": 512},
            {"shared_kv": False, "head_dim": 192, "v_head_dim": 128},
        ),
        # the gated delta rule of Qwen3-Next and Qwen3.5, in chunks
        "delta": ({"variant": "linear", "head_dim": 128, "v_head_dim": 128, "block": 64},),
    },
    "moe": {
        "w4a8": ({"dtype": "fp8_e4m3", "weight_dtype": "mxfp4"},),
        "fp8": ({"dtype": "fp8_e4m3", "weight_dtype": "fp8_e4m3"},),
    },
}
_FOLDS = 5
# parts of _FOLDS that are scored, where not the first alone: layers of experts and counts of
# devices are few, and one part of them says little of the others
SCORED: Mapping[str, int] = {"moe": _FOLDS, "collective": _FOLDS}


def _folds(codes: I64, seed: int) -> I64:
    kinds = int(codes.max()) + 1
    return (np.random.default_rng(seed).permutation(kinds) % min(_FOLDS, kinds))[codes]


def _take(rows: OperatorRows, at: npt.NDArray[np.bool_]) -> OperatorRows:
    """Rows at a mask, with their codes as they were."""
    return replace(
        rows, features={n: v[at] for n, v in rows.features.items()},
        terms={n: v[at] for n, v in rows.terms.items()}, bound=rows.bound[at],
        time=rows.time[at], structure=_dense(rows.structure[at]), group=_dense(rows.group[at]),
        sizes=rows.sizes[at], word_of=rows.word_of[at], positions=rows.positions[at],
        kernel=rows.kernel[at],
    )  # fmt: skip


def _dense(codes: I64) -> I64:
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int64)


def score_operator(
    rows: OperatorRows, op: str, hardware: Hardware, *, split: str, seed: int = 0,
    folds: int | None = None, level: float = 0.9,
) -> dict[str, Any]:  # fmt: skip
    """Score on held-out rows: `unseen_group`, `unseen_structure` or `frontier`.

    Whole groups (or structures) are held out of everything, intervals included; of `_FOLDS` parts
    the first `folds` are scored, pooled (SCORED of the operation, else one). Keys as
    `predict.scores.score`, and `analytic_mape`, the error of physics with one factor fitted on the
    training rows.
    """
    held = held_out(rows, op, hardware, split=split, seed=seed, folds=folds, level=level)
    return _scored(split, held)


def _scored(split: str, held: Mapping[str, F64]) -> dict[str, Any]:
    found = score(held["truth_s"], held["time_s"], held["time_low_s"], held["time_high_s"])
    error = np.abs(held["analytic_s"] / held["truth_s"] - 1.0)
    return {"split": split, **found, "analytic_mape": round(float(error.mean()), 5)}


def held_out(
    rows: OperatorRows, op: str, hardware: Hardware, *, split: str, seed: int = 0,
    folds: int | None = None, level: float = 0.9,
) -> dict[str, F64]:  # fmt: skip
    """Predictions of the rows that `score_operator` scores, by fits that never saw them.

    Columns truth_s, time_s, time_low_s, time_high_s, and analytic_s of physics with one factor.
    Raises NoDataError where nothing can be held out.
    """
    if split == "frontier":
        cut = np.quantile(rows.bound, 0.9)
        fold = np.where(rows.bound > cut, 0, 1)
    else:
        fold = _folds(rows.group if split == "unseen_group" else rows.structure, seed)
    if int(fold.max()) == 0:
        raise NoDataError(f"{op} on {hardware.name}: one group only, none can be held out")
    folds = SCORED.get(op, 1) if folds is None else folds
    parts: list[tuple[F64, F64, F64, F64, F64]] = []
    for turn in range(min(folds if split != "frontier" else 1, int(fold.max()) + 1)):
        test = fold == turn
        only = (2,) if split == "frontier" else (1, 2)
        model = fit_operator(_take(rows, ~test), op, hardware, "", seed=seed, only=only)
        held = _take(rows, test)
        time, low, high = predict_rows(model, held, level)
        factor = float(np.median(rows.time[~test] / rows.terms["together"][~test]))
        parts.append((held.time, time, low, high, held.terms["together"] * factor))
    names = ("truth_s", "time_s", "time_low_s", "time_high_s", "analytic_s")
    return {n: np.concatenate(c) for n, c in zip(names, zip(*parts, strict=True), strict=True)}


def predict_rows(
    model: OperatorModel | CollectiveModel, rows: OperatorRows, level: float
) -> tuple[F64, F64, F64]:
    """Time, low and high [s] of rows whose features are made; as the model's own `predict`."""
    if isinstance(model, CollectiveModel):
        return model.predict_rows(rows, level)
    zero = np.zeros(len(rows.time))
    found, place = dict(rows.features), np.zeros(len(rows.time), np.int64)
    family = np.full(len(rows.time), "", object)
    for number, words in enumerate(rows.words):
        at = rows.word_of == number
        place[at] = model.place_of(rows.sizes[at], rows.bound[at], words)
        family[at] = model.family(words, rows.sizes[at])
        for name, values in model.kernel_columns(words, rows.sizes[at]).items():
            found[name] = found.get(name, zero).copy()
            found[name][at] = values
    x, far = np.stack([found.get(n, zero) for n in model.names], axis=1), model.outside(rows.sizes)
    for number, words in enumerate(rows.words):
        at = np.flatnonzero(far & (rows.word_of == number))
        if len(at) and model.hardware:
            x[at] = _edge_columns(model, rows.sizes[at], words)
    value = model.head.predict(x, model.learned(place, far))
    low, high = np.empty(len(value)), np.empty(len(value))
    for number, words in enumerate(rows.words):
        at = rows.word_of == number
        low[at], high[at] = model.limits(value[at], place[at], words, level)
    base = base_time(rows.terms, family.astype(str), model.coefficients)
    time = base * np.exp(value)
    ends = (time * np.exp(np.minimum(low, 0.0)), time * np.exp(np.maximum(high, 0.0)))
    return np.maximum(time, rows.bound), np.maximum(ends[0], rows.bound), ends[1]


def _edge_columns(model: OperatorModel, sizes: F64, words: tuple[str, ...]) -> F64:
    """Features of rows of `sizes` [rows, numbers] moved into the range that was measured."""
    cls = op_class(model.op)
    fields = dict(zip(word_fields(cls), words, strict=True))
    numbers = dict(zip(numbers_of(cls), sizes.T, strict=True))
    op, _, _ = cls.of_columns({**fields, **numbers}, len(sizes))
    return model.edge_columns(op, len(sizes), get(model.hardware))


def train_operator(
    table: Table, out: Path, *, seed: int = 0, splits: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Fit a model for each operation, device and collection of a table into OUT/operators.

    Returns the lines of the index. What cannot be fitted is told and left out.
    """
    lines: list[dict[str, Any]] = []
    for keys, own in collections_of(table):
        op, device, collection = keys
        try:
            line = _train_one(own, keys, out, seed, (splits or SPLITS)[op])
        except RidgecastError as error:
            progress(f"left out {op} {device} {collection}: {error}")
            continue
        lines.append(line)
        told = ", ".join(f"{s['split']} {100 * s['mape']:.1f} %" for s in line["scores"])
        progress(f"fitted {op} {device} {collection} ({line['rows']} rows; {told})")
    return lines


def collections_of(table: Table) -> Iterator[tuple[tuple[str, str, str], Table]]:
    """(operation, device, collection) that a table holds and a model can be of, with their rows."""
    keys = [str(v) for v in zip(*(table[n].tolist() for n in _KEYS), strict=True)]
    _, first, back = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
    for number, at in enumerate(first.tolist()):
        op, device, collection = (str(table[n][at]) for n in _KEYS)
        if op in GROUPS:
            yield (op, device, collection), select(table, np.flatnonzero(back == number))


_KEYS = ("op", "hardware", "collection")
SPLITS: Mapping[str, tuple[str, ...]] = {
    "attention": ("unseen_group", "frontier"), "moe": ("unseen_group", "frontier"),
    "collective": ("unseen_group", "unseen_structure"),
}  # fmt: skip
"""Splits by which each operation is scored when it is trained."""


def _train_one(
    table: Table, keys: tuple[str, str, str], out: Path, seed: int, splits: Sequence[str]
) -> dict[str, Any]:
    op, device, collection = keys
    hardware = get(device)
    rows = operator_rows(table, op, hardware)
    scores, samples = [], []
    for split in splits:
        try:
            held = held_out(rows, op, hardware, split=split, seed=seed)
        except NoDataError:
            continue
        scores.append(_scored(split, held))
        samples.append(sample(held, split=split))
    licences = sorted({str(v) for v in table.get("licence", np.array([""])).tolist()})
    sources = sorted({str(v) for v in table.get("source_file", np.array([""])).tolist()})
    facts = {"licence": ", ".join(licences), "sources": sources, "scores": scores}
    model = fit_operator(rows, op, hardware, collection, seed=seed, facts=facts)
    name = re.sub(r"[^a-z0-9]+", "-", f"{op}-{device}-{collection}".lower()).strip("-")
    folder = out / "operators" / name
    model.save(folder)
    save_parity(folder, samples, source=collection, licence=facts["licence"], files=sources)
    return {
        "folder": f"operators/{name}", "op": op, "hardware": device, "collection": collection,
        "rows": len(rows.time), "scores": scores, "rank": _rank(op, collection), **_kind(table, op),
    }  # fmt: skip


def _kind(table: Table, op: str) -> dict[str, Any]:
    """Return the kind that all rows of a table are of, and what it is `for`; {} for all rows."""
    for kind, wanted in KINDS.get(op, {}).items():
        met = np.zeros(len(table["time_s"]), bool)
        for fields in wanted:
            if set(fields) <= set(table):
                met |= np.logical_and.reduce([table[n] == v for n, v in fields.items()])
        if met.all():
            return {"kind": kind, "for": [dict(fields) for fields in wanted]}
    return {}


def _rank(op: str, collection: str) -> int:
    """Preference among collections of one device: what graphs replay before what a host launches.

    Custom all-reduce kernels, those of TensorRT-LLM and SGLang, exchanges between experts and
    expert layers of one engine and format are asked for by name.
    """
    if "/dispatch" in collection or "/combine" in collection:
        return -3
    own = ("custom", "/trtllm", "/sglang") if op == "collective" else ("custom", "/fp8_block")
    return -2 if "eager" in collection else -1 if any(word in collection for word in own) else 0


def write_index(out: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Put the lines into OUT/card.json, in place of those of the same folder and device."""
    path = out / "card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    every = [*card.get("operators", []), *lines]
    fresh = {(line["folder"], line["hardware"]): dict(line) for line in every}
    card["operators"] = [fresh[key] for key in sorted(fresh)]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


# ------------------------------------------------------------------------------- all devices


def pool(parts: Sequence[OperatorRows], seed: int, most: int = 2000) -> tuple[OperatorRows, I64]:
    """Stack rows of several devices, at most `most` of each; also the device's index per row.

    Structures keep their codes across devices by their sizes; features that a device lacks are 0.
    """
    rng = np.random.default_rng(seed)
    some: list[OperatorRows] = []
    for rows in parts:
        chosen = np.zeros(len(rows.time), bool)
        chosen[rng.permutation(len(rows.time))[:most]] = True
        some.append(_take(rows, chosen))
    counts = [len(rows.time) for rows in some]
    features = stack_columns([rows.features for rows in some], counts)
    terms = stack_columns([rows.terms for rows in some], counts)
    words = tuple(dict.fromkeys(w for rows in some for w in rows.words))
    word_of = np.concatenate([np.array([words.index(w) for w in r.words])[r.word_of] for r in some])

    def stack(name: str) -> Any:
        return np.concatenate([getattr(r, name) for r in some])

    device = np.repeat(np.arange(len(some)), counts)
    pooled = OperatorRows(
        features, terms, stack("bound"), stack("time"), device, device, stack("sizes"),
        words, word_of, stack("positions"), stack("kernel"),
    )  # fmt: skip
    return pooled, device


def train_pooled(
    parts: Mapping[str, OperatorRows], op: str, out: Path, *, seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fit the model for devices without measurements into OUT/operators/pooled-<op>.

    Its intervals rest on whole devices held out, and so do its scores: one line a device. Raises
    NoDataError for fewer than three devices.
    """
    if len(parts) < 3:
        raise NoDataError(f"{op}: rows of {len(parts)} devices, need 3 to hold one out")
    rows, device = pool(list(parts.values()), seed)
    scores, samples = [], []
    for i, name in enumerate(parts):
        held = pooled_held_out(rows, device == i, op, seed)
        scores.append({"split": "unseen_device", "hardware": name, **score(*held.values())})
        samples.append(sample(held, split="unseen_device", hardware=name))
    model = fit_pooled(
        rows, op, seed=seed, facts={"devices": len(parts), "scores": scores, **(facts or {})}
    )
    folder = out / "operators" / f"pooled-{op}"
    model.save(folder)
    save_parity(folder, samples, source=", ".join(sorted(parts)), licence="")
    return {"op": op, "devices": sorted(parts), "scores": scores}


def pooled_held_out(
    rows: OperatorRows, test: npt.NDArray[np.bool_], op: str, seed: int
) -> dict[str, F64]:
    """Predictions of one device's rows [mask] by a fit to those of the others."""
    model = fit_pooled(_take(rows, ~test), op, seed=seed)
    held = _take(rows, test)
    names = ("truth_s", "time_s", "time_low_s", "time_high_s")
    return dict(zip(names, (held.time, *predict_rows(model, held, 0.9)), strict=True))


def fit_pooled(
    rows: OperatorRows, op: str, *, seed: int = 0, facts: Mapping[str, Any] | None = None
) -> OperatorModel | CollectiveModel:
    """Fit to rows of several devices whose `group` is the device, held out whole."""
    anywhere = replace(rows, structure=np.zeros_like(rows.structure))
    return fit_operator(anywhere, op, None, "", seed=seed, facts={"devices": 0, **(facts or {})})
