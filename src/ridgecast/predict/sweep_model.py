"""A sweep's own model: time, power and energy of configured kernels on one device.

    t = t_analytic * exp(f(x)),   t_analytic = sum of physical terms, coefficients >= 0

Owns the fit to a table of measured rows, one family (kernel) at a time, the place of a row
relative to the training rows, and the model's folder: LightGBM text, npz and `card.json`, never a
pickle. Learned ratios, features and analytic terms are those of `sweep_features`.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, RidgecastError, SpecError
from ..hardware import Hardware
from ..store.schema import CONFIG_COLUMNS
from ..store.tables import Table, length, numeric, require_columns, select
from .sweep_device import hardware_from_dict, hardware_to_dict
from .sweep_features import Device, analytic, column, device_of, fit_terms, raw_features, terms_of
from .sweep_parts import PLACES, Head, codes_of, fit_head, make_folds

__all__ = ["LEAST_ROWS", "SweepModel", "collapse", "fit_sweep_model", "load_sweep_model",
           "point_codes", "usable"]  # fmt: skip

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
LEAST_ROWS = 12
"""Points of one kernel under which it gets no model: too few to hold any out."""
_CARD_VERSION = 1
_TARGETS = {"time": "time_s", "power": "power_w", "energy": "energy_j"}
_IDENTITY = ("kernel", "m", "n", "k", "batch", "dtype", "layout", "cache", "pattern", "alpha",
             "beta", "threads", *CONFIG_COLUMNS)  # fmt: skip


def usable(table: Table) -> npt.NDArray[np.bool_]:
    """Rows whose time may be used: a finite time above 0, not marked as failed or not valid."""
    require_columns(table, ["m", "n", "k", "time_s"], what="sweep table")
    time, _ = numeric(table, "time_s")
    good = np.isfinite(time) & (time > 0)
    if "valid" in table:
        good &= np.asarray(table["valid"], np.float64) == 1.0
    if "status" in table:
        good &= (table["status"] == "ok") | (table["status"] == "")
    return good


def point_codes(table: Table) -> I64:
    """Code per row, equal for repeats of one point: same shape, format and configuration."""
    names = [name for name in _IDENTITY if name in table]
    columns = [np.nan_to_num(c, nan=-1.0) if c.dtype.kind == "f" else c
               for c in (table[name] for name in names)]  # fmt: skip
    return codes_of(columns)


def collapse(table: Table) -> Table:
    """One row per point: medians of time, power and energy over its repeats, `repeats` counted.

    Power and energy count only where they are valid; other columns come from the first repeat.
    """
    codes = point_codes(table)
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    out = select(table, first)
    order = np.argsort(codes, kind="stable")
    for target, name in _TARGETS.items():
        if name in table:
            values = _target(table, target)
            parts = np.split(values[order], np.cumsum(counts)[:-1])
            out[name] = np.array([_median(part) for part in parts])
    if "power_w" in out:
        out["power_valid"] = np.isfinite(out["power_w"])
    out["repeats"] = counts.astype(np.int64)
    return out


def _median(values: F64) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _target(table: Table, target: str) -> F64:
    """Values of one target; NaN where missing, not positive or marked as not valid."""
    name = _TARGETS[target]
    if name not in table:
        return np.full(length(table), np.nan)
    values, _ = numeric(table, name)
    good = np.isfinite(values) & (values > 0)
    if target == "power":  # a power counts where it is said to be valid, as in the store
        good &= column(table, "power_valid", 0.0) == 1.0
    if target == "energy" and "energy_valid" in table:
        good &= column(table, "energy_valid", 0.0) == 1.0
    return np.where(good, values, np.nan)


@dataclass(frozen=True, slots=True)
class Family:
    """Model of one kernel: feature names, coefficients of its analytic time, heads by target.

    `scales` are the unit of each head's ratio: 1 for time, W for power, J/s for energy. `domain`
    holds the range of log2 m, n, k and work, and the configurations seen.
    """

    device: Device
    dtype: str
    best_rate: float
    names: tuple[str, ...]
    coefficients: Mapping[str, float]
    heads: Mapping[str, Head]
    scales: Mapping[str, float]
    domain: Mapping[str, Any]

    def features(self, table: Table) -> F64:
        """Columns [rows, names]; a level that training never saw is 0."""
        found = raw_features(table, self.device)
        zero = np.zeros(length(table))
        return np.stack([found.get(name, zero) for name in self.names], axis=1)

    def place(self, table: Table) -> I64:
        """Index of PLACES per row."""
        sizes = _sizes(table)
        low, high = np.asarray(self.domain["low"]), np.asarray(self.domain["high"])
        out = np.zeros(length(table), np.int64)
        seen = {tuple(c) for c in self.domain["configs"]}
        rows = _config_rows(table, self.domain["config_columns"])
        out[np.array([tuple(r) not in seen for r in rows.tolist()], bool)] = 1
        out[((sizes < low - 0.01) | (sizes > high + 0.01)).any(axis=1)] = 2
        return out

    def predict(self, table: Table, level: float) -> dict[str, F64]:
        """Return target, target_low and target_high per head, in SI units."""
        base = analytic(terms_of(table, self.device), self.coefficients)
        x, place = self.features(table), self.place(table)
        out: dict[str, F64] = {}
        for target, head in self.heads.items():
            value = head.predict(x, place)
            low, high = head.intervals.limits(value, place, level)
            scale = self.scales[target] * (1.0 if target == "power" else base)
            out[target] = scale * np.exp(value)
            out[f"{target}_low"] = scale * np.exp(value + np.minimum(low, 0.0))
            out[f"{target}_high"] = scale * np.exp(value + np.maximum(high, 0.0))
        return out


def _sizes(table: Table) -> F64:
    m, n, k, batch = (column(table, name, 1.0) for name in ("m", "n", "k", "batch"))
    return np.log2(np.stack([m, n, k, m * n * k * batch], axis=1))


def _config_rows(table: Table, names: list[str]) -> F64:
    columns = [column(table, name, -1.0) for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((length(table), 0))


@dataclass(frozen=True, slots=True)
class SweepModel:
    """Predicts configured kernels of one device; `families` by kernel name.

    `card` says what it was fitted on, its held-out errors and the seed.
    """

    families: Mapping[str, Family]
    card: Mapping[str, Any]

    def predict(self, table: Table, *, level: float = 0.9) -> dict[str, npt.NDArray[Any]]:
        """Time, low and high [s] per row; power [W] and energy [J] likewise where learned.

        Keys: time, low, high, power, power_low, power_high, energy, ...; `place` names where each
        row lies (PLACES, or "unknown_kernel" with NaN everywhere). Raises SpecError for missing
        columns or a level outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise SpecError(f"level: got {level}, need a number between 0 and 1")
        require_columns(table, ["m", "n", "k"], what="sweep table")
        rows = length(table)
        kernels = _kernels(table, next(iter(self.families)))
        targets = [t for t in _TARGETS if any(t in f.heads for f in self.families.values())]
        keys = [f"{t}{end}" for t in targets for end in ("", "_low", "_high")]
        out: dict[str, npt.NDArray[Any]] = {key: np.full(rows, np.nan) for key in keys}
        place = np.full(rows, "unknown_kernel", dtype=object)
        for name, family in self.families.items():
            at = np.flatnonzero(kernels == name)
            if len(at):
                part = select(table, at)
                place[at] = np.asarray(PLACES, dtype=object)[family.place(part)]
                for key, values in family.predict(part, level).items():
                    out[key][at] = values
        out["low"], out["high"] = out.pop("time_low"), out.pop("time_high")
        return {**out, "place": place}

    def importance(self, target: str = "time") -> dict[str, float]:
        """Share of the trees' gain per feature, averaged over families by rows; sums to 1."""
        total: dict[str, float] = {}
        weight = 0.0
        for name, family in self.families.items():
            facts = self.card["families"][name]["heads"].get(target)
            if facts is None:
                continue
            weight += facts["rows"]
            for feature, share in zip(family.names, facts["importance"], strict=True):
                total[feature] = total.get(feature, 0.0) + share * facts["rows"]
        return {k: v / weight for k, v in total.items() if v > 0}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write card.json and, for each head, LightGBM text and an npz."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        card: dict[str, Any] = {**self.card, "card_version": _CARD_VERSION, "models": {}}
        for name, family in self.families.items():
            stem = re.sub(r"[^a-z0-9_]+", "_", name.lower())
            heads: dict[str, Any] = {}
            for target, head in family.heads.items():
                state, found = head.to_state()
                arrays: dict[str, Any] = found
                heads[target] = {**state, "file": f"{stem}.{target}"}
                _write(root / f"{stem}.{target}.txt", head.text.encode())
                buffer = io.BytesIO()
                np.savez_compressed(buffer, **arrays)
                _write(root / f"{stem}.{target}.npz", buffer.getvalue())
            card["models"][name] = {
                "best_rate": family.best_rate, "units": family.device.units, "dtype": family.dtype,
                "names": list(family.names),
                "coefficients": dict(family.coefficients), "scales": dict(family.scales),
                "domain": dict(family.domain), "heads": heads,
            }  # fmt: skip
        _write(root / "card.json", (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())


def _kernels(table: Table, default: str) -> npt.NDArray[Any]:
    if "kernel" not in table:
        return np.full(length(table), default, dtype=object)
    return table["kernel"].astype(str).astype(object)


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def fit_sweep_model(table: Table, hardware: Hardware | None = None, *, seed: int = 0) -> SweepModel:
    """Fit and calibrate on the measured rows of one device, repeats of a point counted once.

    `hardware` gives ceilings and caches; without it the best measured rate stands in for the peak
    and features without ceilings are used. Intervals rest on whole (n, k) groups, configurations
    and extremes that were held out. Kernels with fewer than LEAST_ROWS points are left out and
    named in card["skipped"]. Raises NoDataError when no kernel has enough.
    """
    points = collapse(select(table, usable(table)))
    kernels = _kernels(points, "tiled")
    families: dict[str, Family] = {}
    facts: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in sorted(set(kernels.tolist())):
        own = select(points, kernels == name)
        if length(own) < LEAST_ROWS:
            skipped[name] = f"{length(own)} points, need {LEAST_ROWS}"
            continue
        families[name], facts[name] = _fit_family(own, hardware, seed)
    if not families:
        told = ", ".join(f"{k}: {v}" for k, v in skipped.items()) or "no row has a valid time"
        raise NoDataError(f"no kernel has enough measured points to learn from ({told})")
    card = {
        "what": "log(time / analytic time) of configured kernels on one device",
        "hardware": hardware_to_dict(hardware) if hardware is not None else None,
        "points": length(points),
        "seed": seed,
        "families": facts,
        "skipped": skipped,
        "split": "whole (n, k) groups, whole configurations, largest and smallest work held out",
    }
    return SweepModel(families, card)


def _fit_family(table: Table, hardware: Hardware | None, seed: int) -> tuple[Family, Any]:
    time, _ = numeric(table, "time_s")
    m, n, k, batch = (column(table, name, 1.0) for name in ("m", "n", "k", "batch"))
    best = float((2.0 * batch * m * n * k / time).max())
    dtype = str(table["dtype"][0]) if "dtype" in table else "fp32"
    device = device_of(hardware, dtype, best, float(column(table, "threads", 0.0).max()))
    terms = terms_of(table, device)
    coefficients = fit_terms(terms, time)
    base = analytic(terms, coefficients)
    found = raw_features(table, device)
    names = tuple(found)
    x = np.stack([found[name] for name in names], axis=1)
    config_columns = [c for c in CONFIG_COLUMNS if c in table]
    configs = _config_rows(table, config_columns)
    groups = codes_of([n, k])
    if groups.max() == 0:  # one (n, k) pair: m is all that can be held out
        groups = codes_of([m])
    heads: dict[str, Head] = {}
    facts: dict[str, Any] = {"points": length(table), "heads": {}}
    scales: dict[str, float] = {}
    for target in _TARGETS:
        value = _target(table, target)
        rows = np.isfinite(value)
        if rows.sum() < LEAST_ROWS:
            continue
        ratio = value if target == "power" else value / base
        scales[target] = 1.0 if target == "time" else float(np.median(ratio[rows]))
        codes = [codes_of(list(c)) for c in ([groups[rows]], list(configs[rows].T))]
        if not len(codes[1]):
            codes[1] = np.zeros(int(rows.sum()), np.int64)
        folds = make_folds(codes[0], codes[1], base[rows], np.random.default_rng(seed))
        if not folds.parts:
            raise NoDataError(
                "every point has one shape and one configuration: nothing to hold out"
            )
        y = np.log(ratio[rows] / scales[target])
        shift = None if target == "power" else _Shift(terms, time, base, rows)
        heads[target], facts["heads"][target] = fit_head(x[rows], y, folds, seed, shift)
    sizes = _sizes(table)
    domain = {
        "low": sizes.min(axis=0).tolist(), "high": sizes.max(axis=0).tolist(),
        "config_columns": config_columns, "configs": np.unique(configs, axis=0).tolist(),
    }  # fmt: skip
    return Family(device, dtype, best, names, coefficients, heads, scales, domain), facts


@dataclass(frozen=True, slots=True)
class _Shift:
    """Logarithm of the analytic time fitted to some `rows`, over that of all; see fit_head."""

    terms: Mapping[str, F64]
    time: F64
    base: F64
    rows: npt.NDArray[np.bool_]

    def __call__(self, train: npt.NDArray[np.bool_]) -> F64:
        at = np.flatnonzero(self.rows)
        own = {name: value[at[train]] for name, value in self.terms.items()}
        found = fit_terms(own, self.time[at[train]])
        part = {name: value[at] for name, value in self.terms.items()}
        return np.log(analytic(part, found) / self.base[at])


def load_sweep_model(
    folder: str | os.PathLike[str], hardware: Hardware | None = None
) -> SweepModel:
    """Undo `SweepModel.save`; `hardware` replaces the device that the card holds.

    Raises NoDataError when there is no model, SpecError that names what is damaged.
    """
    root = Path(folder)
    if not (root / "card.json").is_file():
        raise NoDataError(f"{root}: no card.json, so no sweep model; fit one first")
    try:
        card = json.loads((root / "card.json").read_text(encoding="utf-8"))
        if card["card_version"] != _CARD_VERSION:
            raise SpecError(f"{root}: card_version {card['card_version']}, need {_CARD_VERSION}")
        if hardware is None and card["hardware"] is not None:
            hardware = hardware_from_dict(card["hardware"])
        families = {name: _load_family(root, m, hardware) for name, m in card["models"].items()}
    except (OSError, KeyError, TypeError, ValueError, BadZipFile) as error:
        if isinstance(error, RidgecastError):
            raise
        what = f"{type(error).__name__}: {error}"
        raise SpecError(f"model folder {root} is damaged ({what}); fit it again") from error
    return SweepModel(families, {k: v for k, v in card.items() if k != "models"})


def _load_family(root: Path, card: Mapping[str, Any], hardware: Hardware | None) -> Family:
    heads: dict[str, Head] = {}
    for target, state in card["heads"].items():
        text = (root / f"{state['file']}.txt").read_text(encoding="utf-8")
        with np.load(root / f"{state['file']}.npz", allow_pickle=False) as arrays:
            heads[target] = Head.from_state(state, {k: arrays[k] for k in arrays.files}, text)
    best = float(card["best_rate"])
    device = device_of(hardware, str(card["dtype"]), best, float(card["units"]))
    return Family(
        device, str(card["dtype"]), best, tuple(card["names"]), card["coefficients"], heads,
        card["scales"], card["domain"],
    )  # fmt: skip
