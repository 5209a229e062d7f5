"""Fit a model of one operation on one device to its measured rows, and calibrate its intervals.

Owns what is held out together: rows of one structure, and with them who runs what, the analytic
time's coefficients and the ranges of sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError
from ..hardware import Hardware
from ..ops import op_class
from .collective_model import CollectiveModel, fit_collective, several_kinds
from .operator_base import base_time, fit_base
from .operator_kernels import FLAGS, Kernels, family_name, formats_of, learn_kernels
from .operator_model import (
    GROUPS,
    LEAST_ROWS,
    NEW_BEYOND,
    RARE,
    OperatorModel,
    OperatorRows,
    is_rare,
    kernel_keys,
    numbers_of,
    ranges_of,
)
from .sweep_parts import Fitting, Folds, codes_of, fit_head, make_folds

__all__ = ["fit_operator", "kernels_of"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
_MOST = 24_000  # training rows of a fold
_MANY = 12  # structures (assumed: between collections of 9 and of 21, which it serves)
_WHOLE = ("log_inter", "log_experts", "log_tp", "log_ep")
_OF_MANY = ("_pairs", "_sums", "_odd", "_tokens_each", "_even_columns")
_INSIDE = ("tp", "ep")  # held out together with a structure where it is known otherwise


def fit_operator(
    rows: OperatorRows, op: str, hardware: Hardware | None, collection: str, *, seed: int = 0,
    facts: Mapping[str, Any] | None = None, only: Sequence[int] = (),
) -> OperatorModel | CollectiveModel:  # fmt: skip
    """Fit and calibrate on measured rows; whole groups and structures are held out for intervals.

    Collectives of several kinds on one device get a model of their own form (`collective_model`).
    With `only`, where kernels are known, intervals of those places are calibrated and no others (it
    saves time). `hardware` is None for rows of several devices. Raises NoDataError for fewer than
    LEAST_ROWS rows.
    """
    if op == CollectiveModel.op and hardware is not None and several_kinds(rows):
        return fit_collective(rows, hardware, collection, seed=seed, facts=facts)
    if len(rows.time) < LEAST_ROWS:
        raise NoDataError(f"{op}: {len(rows.time)} measured rows, need {LEAST_ROWS}")
    if op in FLAGS and hardware is not None:
        rows = _told(rows)
    names = tuple(rows.features)
    x = np.stack([rows.features[n] for n in names], axis=1)
    every = np.ones(len(rows.time), bool)
    kernels = kernels_of(rows, op, every, hardware)
    family = families_of(rows, rows.kernel if kernels else None)
    coefficients = fit_base(rows.terms, rows.time, family, rows.structure)
    base = base_time(rows.terms, family, coefficients)
    y = np.log(rows.time / base)
    if kernels is not None:
        names, x = _with_kernels(names, x, kernels, rows)

    def shift(train: npt.NDArray[np.bool_]) -> F64:
        known_then, seen = kernels_of(rows, op, train, hardware), family
        if known_then is not None:
            chosen = families_of(rows, chosen_kernels(known_then, rows, op))
            seen = np.where(train, family, chosen)
        own = {n: v[train] for n, v in rows.terms.items()}
        found = fit_base(own, rows.time[train], seen[train], rows.structure[train])
        return np.log(base_time(rows.terms, seen, found) / base)

    cls = op_class(op)
    rng = np.random.default_rng(seed)
    folds, fitting = make_folds(rows.group, rows.structure, rows.bound, rng), Fitting(shift)
    if kernels is not None:
        folds = _kernel_folds(rows, op, hardware, rng, only)
        fitting = Fitting(shift, _seen(rows, op, hardware, x, kernels), _MOST)
    head, figures = fit_head(x, y, folds, seed, fitting)
    numbers = numbers_of(cls)
    inner = [n for n in GROUPS.get(op, ((), ()))[0] if n in numbers]
    at = [numbers.index(n) for n in inner]
    domain = {
        "numbers": numbers, "low": rows.sizes.min(axis=0).tolist(),
        "high": rows.sizes.max(axis=0).tolist(),
        "bound": [float(rows.bound.min()), float(rows.bound.max())],
        "words": [list(w) for w in rows.words],
        "structures": np.unique(rows.sizes[:, at], axis=0).tolist() if at else [],
        "ranges": ranges_of(rows, cls),
    }  # fmt: skip
    card = {"rows": len(rows.time), "seed": seed, **{k: v for k, v in figures.items()
            if k != "importance"}, **(facts or {})}  # fmt: skip
    name = hardware.name if hardware else ""
    return OperatorModel(op, name, collection, names, coefficients, head, domain, card, kernels)


def _told(rows: OperatorRows) -> OperatorRows:
    """Rows with the columns that so many structures can tell the meaning of.

    Many are described by the device's part alone: numbers of the whole layer would only name them.
    Few would be named by anything, and keep what describes them least closely.
    """
    if len(np.unique(rows.structure)) >= _MANY:
        kept = {n: v for n, v in rows.features.items() if n not in _WHOLE}
        return replace(rows, features=kept)

    def plain(columns: Mapping[str, F64]) -> dict[str, F64]:
        return {n: v for n, v in columns.items() if not any(word in n for word in _OF_MANY)}

    return replace(rows, features=plain(rows.features), terms=plain(rows.terms))


def kernels_of(
    rows: OperatorRows, op: str, train: npt.NDArray[np.bool_], hardware: Hardware | None
) -> Kernels | None:
    """Who runs what, by some of the rows; None for operations whose kernels have no names."""
    if op not in FLAGS or hardware is None:
        return None
    at = np.flatnonzero(train)
    formats = [formats_of(rows.words[w]) for w in rows.word_of[at].tolist()]
    structure, flag = kernel_keys(op, rows.sizes[at])
    return learn_kernels(rows.kernel[at].tolist(), formats, structure, flag, hardware.architecture)


def _codes(kernels: Kernels, names: npt.NDArray[np.str_]) -> I64:
    """Index of each name among those of `kernels`; -1 for one that is not there."""
    order = {n: i for i, n in enumerate(kernels.names)}
    told, back = np.unique(names, return_inverse=True)
    return np.array([order.get(n, -1) for n in told.tolist()])[back.reshape(-1)]


def chosen_kernels(kernels: Kernels, rows: OperatorRows, op: str) -> npt.NDArray[np.str_]:
    """Family that `kernels` takes to run each row."""
    structure, flag = kernel_keys(op, rows.sizes)
    out = np.zeros(len(rows.time), np.int64)
    for number, words in enumerate(rows.words):
        at = rows.word_of == number
        out[at] = kernels.choose(formats_of(words), structure[at], flag[at])
    return np.array(kernels.names)[out]


def families_of(rows: OperatorRows, kernel: npt.NDArray[np.str_] | None) -> npt.NDArray[np.str_]:
    """Kernel family and formats of each row as one text; "" where kernels have no names."""
    if kernel is None:
        return np.full(len(rows.time), "")
    formats = np.array([family_name("", formats_of(w)) for w in rows.words])[rows.word_of]
    return np.char.add(kernel, formats)


def _with_kernels(
    names: tuple[str, ...], x: F64, kernels: Kernels, rows: OperatorRows
) -> tuple[tuple[str, ...], F64]:
    """Add columns of formats, one for those measured together, and of kernels, these last.

    Columns of each format alone go: four bits under eight are no slower than under sixteen.
    """
    kept = [i for i, n in enumerate(names) if not n.startswith(("dtype=", "weight_dtype="))]
    formats = [kernels.format_columns(formats_of(w), 1) for w in rows.words]
    wide = {n: np.array([f[n][0] for f in formats])[rows.word_of] for n in formats[0]}
    columns = wide | kernels.columns(_codes(kernels, rows.kernel))
    return (*(names[i] for i in kept), *columns), np.column_stack([x[:, kept], *columns.values()])


def _seen(
    rows: OperatorRows, op: str, hardware: Hardware | None, x: F64, kernels: Kernels
) -> Callable[[npt.NDArray[np.bool_]], F64]:
    """Features as they are for who knows the kernels of the training rows alone."""

    def seen(train: npt.NDArray[np.bool_]) -> F64:
        known_then = kernels_of(rows, op, train, hardware)
        if known_then is None:
            return x
        codes = _codes(kernels, chosen_kernels(known_then, rows, op))
        return np.column_stack([x[:, : -len(kernels.names)], *kernels.columns(codes).values()])

    return seen


def _kernel_folds(
    rows: OperatorRows, op: str, hardware: Hardware | None, rng: np.random.Generator,
    only: Sequence[int],
) -> Folds:  # fmt: skip
    """Folds of structures in other layouts (inside), of whole structures, and of extreme work."""
    numbers = numbers_of(op_class(op))
    layout = [rows.sizes[:, numbers.index(n)] for n in _INSIDE]
    folds = make_folds(codes_of([rows.structure, *layout]), rows.structure, rows.bound, rng,
                       configs_most=5)  # fmt: skip

    def of_places(place: int, train: npt.NDArray[np.bool_]) -> I64:
        out = np.full(len(rows.time), place)
        known_then = kernels_of(rows, op, train, hardware)
        if place == 1 and known_then is not None:
            rare = np.array([is_rare(known_then, w) for w in rows.words])[rows.word_of]
            out[rare] = RARE
            low, high = rows.sizes[train].min(axis=0), rows.sizes[train].max(axis=0)
            least, most = rows.bound[train].min(), rows.bound[train].max()
            far = ((rows.sizes < low) | (rows.sizes > high)).any(axis=1)
            out[far | (rows.bound < 0.999 * least) | (rows.bound > 1.001 * most)] = NEW_BEYOND
        return out

    parts = tuple(part for part in folds.parts if not only or part[0] in only)
    return Folds(parts, folds.kinds, of_places, rows.structure)
