"""Learned times of CLBlast Xgemm configurations: load, predict, calibrate.

Owns the model whose rows are tile configurations. One LightGBM model a device predicts
log(time / bound) from the features of `config_features`; a device without its own is predicted by
its relatives, and by `config_transfer` once a few of its points are measured. Reads and writes
LightGBM text and `card.json`; never a pickle.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, RidgecastError, SpecError
from ..hardware import Hardware, get
from ..store.tables import Table, length, numeric, select
from .config_features import CONFIG, FEATURES, canonical_config
from .config_rows import Rows, kernel_ids, keys, prepare, read_params, take
from .config_transfer import Correction, Inputs, fit_correction, spread_points

__all__ = ["GRID", "ConfigModel", "bucket_of", "load", "run_booster"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SHIPPED = Path(__file__).parent / "trained" / "clblast_sgemm"
CARD_VERSION = 1
GRID = np.linspace(0.0, 1.0, 201)
_HOPE = 1.5  # deviations below the mean at which a point is worth measuring
_LINEAR = (
    "accumulators", "tile_intensity", "threads", "mwi", "nwi", "kwg", "sa", "sb", "strm", "strn",
    "vwm", "vwn", "thread_intensity", "traffic_over_flops", "lines_over_fma", "sectors_over_fma",
    "shared_over_fma", "issue_over_fma", "occupancy", "waves", "sum_over_fma",
    "requests_over_fma", "thread_aspect", "tile_aspect", "stores_over_fma", "direct_over_l1",
    "tail",
)  # fmt: skip
_POSITION = (
    "nwg", "mwg", "kwg", "mwi", "nwi", "vwm", "vwn", "sa", "sb", "strm", "strn", "threads",
    "occupancy", "shared_over_fma", "lines_over_fma", "sectors_over_fma", "sum_over_fma",
    "issue_over_fma", "wavefronts_a", "wavefronts_b", "mdima", "ndimb", "direct_over_l1",
    "requests_over_fma",
)  # fmt: skip
_OK, _BAD = "ok", "no_answer"


def bucket_of(value: FloatArray, edges: list[float]) -> IntArray:
    """Return the interval bucket of predicted log(time / bound)."""
    return np.searchsorted(np.asarray(edges), value).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Calibration:
    """Points measured on a device that has no model of its own."""

    points: Table
    correction: Correction
    ids: frozenset[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ConfigModel:
    """Predicts the time of CLBlast Xgemm configurations in fp32.

    `boosters` holds one LightGBM model for each measured device, `card` everything else that a
    prediction needs: domain, intervals, standardisation, and where the numbers come from.
    """

    boosters: Mapping[str, Any]
    card: Mapping[str, Any]
    calibrations: Mapping[str, _Calibration] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices with a model of their own."""
        return tuple(self.boosters)

    def predict_batch(
        self, table: Table, *, level: float = 0.9, hardware: Mapping[str, Hardware] | None = None
    ) -> Table:
        """Predict a table of configurations; one row in, one row out.

        Needs columns hardware, m, n, k and CLBlast's parameters in lower case; `hardware` adds
        devices that the catalogue lacks. Adds time_s, time_low_s, time_high_s, bound_s, basis,
        status and reason; a row without an answer has status "no_answer", a reason and NaN.
        Raises SpecError for missing columns or a level outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise SpecError(f"level: got {level}, need a number between 0 and 1")
        params, sizes, good = read_params(table)
        rows = length(table)
        out: Table = {name: np.full(rows, np.nan) for name in
                      ("time_s", "time_low_s", "time_high_s", "bound_s")}  # fmt: skip
        for name in ("basis", "status", "reason"):
            out[name] = np.full(rows, "", dtype=object)
        out["status"][~good] = _BAD
        out["reason"][~good] = "not a configuration that CLBlast builds, or a size below 1"
        wrong = np.zeros(rows, bool)
        if "dtype" in table:
            wrong = good & (table["dtype"] != "fp32")
            out["status"][wrong] = _BAD
            out["reason"][wrong] = "this model knows fp32 only"
        names = table["hardware"].astype(str)
        for name in np.unique(names[good & ~wrong]):
            at = np.flatnonzero((names == name) & good & ~wrong)
            try:
                device = (hardware or {}).get(name) or get(name)
                prepared = prepare(device, {p: v[at] for p, v in params.items()}, sizes[at])
            except RidgecastError as error:
                out["status"][at], out["reason"][at] = _BAD, str(error)
                continue
            self._fill(out, at, prepared, level)
        return {**table, **out}

    def _fill(self, out: Table, at: IntArray, rows: Rows, level: float) -> None:
        name = rows.hardware.name
        low_p, high_p = (1.0 - level) / 2.0, (1.0 + level) / 2.0
        basis = np.full(len(at), "transferred", dtype=object)
        reason = np.full(len(at), "", dtype=object)
        if name in self.calibrations:
            mean, low, high = self._calibrated(rows, low_p, high_p)
            reason[:] = f"relatives corrected by {len(self.calibrations[name].ids)} points"
        elif name in self.boosters:
            mean, low, high = self._own(rows, low_p, high_p)
            inside = self._in_domain(rows)
            basis[inside] = "learned"
            if not inside.all():
                outside = np.flatnonzero(~inside)
                part = take(rows, outside)
                mean[outside], low[outside], high[outside] = self._relatives(part, low_p, high_p)
                reason[outside] = f"parameters or sizes never measured on {name}"
        else:
            mean, low, high = self._relatives(rows, low_p, high_p)
            reason[:] = f"no measurement of {name}: mean of {', '.join(self._family(rows))}"
        floor = rows.sizes.prod(axis=1) * 2.0 / rows.hardware.rate("fp32")
        for column, value in (("time_s", mean), ("time_low_s", low), ("time_high_s", high)):
            out[column][at] = np.maximum(rows.bound * np.exp(value), floor)
        if name in self.calibrations:
            self._exact(out, at, rows, basis)
        out["bound_s"][at], out["basis"][at] = floor, basis
        out["status"][at], out["reason"][at] = _OK, reason

    def _own(
        self, rows: Rows, low: float, high: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        name = rows.hardware.name
        mean = run_booster(self.boosters[name], rows.features)
        spread = self.card["intervals"]["learned"][name]
        grid = np.asarray(spread["residuals"])
        bucket = bucket_of(mean, spread["edges"])
        ends = [np.array([np.interp(p, GRID, row) for row in grid])[bucket] for p in (low, high)]
        return mean, mean + ends[0], mean + ends[1]

    def _relatives(
        self, rows: Rows, low: float, high: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        name = rows.hardware.name
        family = self._family(rows)
        mean = np.mean([run_booster(self.boosters[d], rows.features) for d in family], axis=0)
        mean = mean + self.card["offsets"].get(name, 0.0)
        near = self.card["vendors"][family[0]] == rows.hardware.vendor
        grid = self.card["intervals"]["transferred" if near else "foreign"]
        ends = [float(np.interp(p, GRID, grid)) for p in (low, high)]
        return mean, mean + ends[0], mean + ends[1]

    def _calibrated(
        self, rows: Rows, low: float, high: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        mean, spread = self.calibrations[rows.hardware.name].correction.predict(self.inputs(rows))
        grid = self.card["intervals"]["calibrated"]
        ends = [float(np.interp(p, GRID, grid)) for p in (low, high)]
        return mean, mean + ends[0] * spread, mean + ends[1] * spread

    def _exact(self, out: Table, at: IntArray, rows: Rows, basis: npt.NDArray[Any]) -> None:
        """Put measured points back as they were measured."""
        known = self.calibrations[rows.hardware.name]
        params, sizes, _ = read_params(known.points)
        known_keys = keys(canonical_config(params), sizes)
        times = dict(zip(known_keys, known.points["time_s"].tolist(), strict=True))
        for i, key in enumerate(keys(rows.params, rows.sizes)):
            if key in times:
                for column in ("time_s", "time_low_s", "time_high_s"):
                    out[column][at[i]] = times[key]
                basis[i] = "measured"

    def _family(self, rows: Rows) -> list[str]:
        """Devices of the same vendor; all of them where there is none."""
        others = [d for d in self.boosters if d != rows.hardware.name]
        vendors = self.card["vendors"]
        return [d for d in others if vendors[d] == rows.hardware.vendor] or others or [
            rows.hardware.name
        ]  # fmt: skip

    def _in_domain(self, rows: Rows) -> npt.NDArray[np.bool_]:
        domain = self.card["domain"][rows.hardware.name]
        inside = np.ones(len(rows.sizes), np.bool_)
        for column in rows.sizes.T:
            inside &= np.isin(column, domain["sizes"])
        for name in CONFIG:
            inside &= np.isin(rows.params[name], domain[name])
        return inside

    def inputs(self, rows: Rows) -> Inputs:
        """Return what the correction for a new device sees of some configurations."""
        others = [d for d in self.boosters if d != rows.hardware.name]
        every = {d: run_booster(self.boosters[d], rows.features) for d in others}
        base = np.mean([every[d] for d in self._family(rows)], axis=0)
        centre, width = (np.asarray(self.card["standard"][key]) for key in ("centre", "width"))
        scaled = np.clip((rows.features - centre) / width, -3.0, 3.0)
        linear = scaled[:, [FEATURES.index(f) for f in _LINEAR]]
        position = scaled[:, [FEATURES.index(f) for f in _POSITION]] / np.sqrt(len(_POSITION))
        return Inputs(base, np.stack([every[d] for d in others], axis=1), linear, position)

    def calibrate(self, points: Table, *, hardware: Hardware | None = None) -> ConfigModel:
        """Return this model with a device corrected by points measured on it.

        `points` needs the columns of `predict_batch` and time_s [s], all of one device; two or
        more points, fifty do well. Raises SpecError for points of several devices and
        NoDataError for too few.
        """
        names = np.unique(points["hardware"].astype(str))
        if len(names) != 1:
            raise SpecError(f"hardware: points of {len(names)} devices; calibrate one at a time")
        params, sizes, good = read_params(points)
        time, _ = numeric(points, "time_s")
        good &= np.isfinite(time) & (time > 0)
        if good.sum() < 2:
            raise NoDataError(f"{good.sum()} usable points; calibration needs 2 or more")
        device = hardware or get(str(names[0]))
        rows = prepare(device, {p: v[good] for p, v in params.items()}, sizes[good])
        correction = fit_correction(self.inputs(rows), np.log(time[good] / rows.bound))
        kept = ["hardware", "m", "n", "k", "time_s", *CONFIG]
        small = select({c: points[c] for c in kept}, good)
        small["hardware"] = np.full(int(good.sum()), device.name, dtype=object)
        known = _Calibration(small, correction, frozenset(keys(rows.params, rows.sizes)))
        return dataclasses.replace(self, calibrations={**self.calibrations, device.name: known})

    def next_points(
        self, space: Table, count: int, *, seed: int = 0, hardware: Hardware | None = None
    ) -> IntArray:
        """Rows of `space` (one device) to measure next.

        Before any calibration: points spread over the space, chosen without a time. After it:
        those not measured yet that may be fastest (lowest mean - 1.5 deviations), which is how the
        best is found.
        """
        params, sizes, good = read_params(space)
        at = np.flatnonzero(good)
        if not len(at):
            raise NoDataError("no row is a configuration that CLBlast builds")
        device = hardware or get(str(space["hardware"][at[0]]))
        rows = prepare(device, {p: v[at] for p, v in params.items()}, sizes[at])
        _, first = np.unique(kernel_ids(select(space, good)), return_index=True)
        first = np.sort(first)
        inputs = self.inputs(take(rows, first))
        known = self.calibrations.get(device.name)
        if known is None:
            picked = spread_points(inputs, count, np.random.default_rng(seed))
            return at[first[picked]]
        mean, spread = known.correction.predict(inputs)
        hope = mean - _HOPE * spread + np.log(rows.bound[first])
        distinct = take(rows, first)
        known_keys = keys(distinct.params, distinct.sizes)
        fresh = [i for i, key in enumerate(known_keys) if key not in known.ids]
        order = np.asarray(fresh, np.int64)[np.argsort(hope[fresh], kind="stable")]
        return at[first[order[:count]]]

    def save(self, out_dir: str | os.PathLike[str]) -> None:
        """Write `card.json` and one LightGBM text a device."""
        folder = Path(out_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, booster in self.boosters.items():
            _write(folder / f"{name}.txt", _compact(booster.model_to_string()))
        card = {**self.card, "calibrations": {
            name: {c: v.tolist() for c, v in known.points.items()}
            for name, known in self.calibrations.items()}}  # fmt: skip
        _write(folder / "card.json", json.dumps(card, indent=1, allow_nan=False) + "\n")


def run_booster(booster: Any, features: FloatArray) -> FloatArray:
    """Predict log(time / bound) from features (rows, len(FEATURES)), on one thread."""
    return np.asarray(booster.predict(features, num_threads=1), np.float64)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


_DROPPED = ("split_gain", "internal_value", "internal_weight", "internal_count", "leaf_weight",
            "leaf_count", "tree_sizes")  # fmt: skip


def _compact(text: str) -> str:
    """LightGBM text without statistics that a prediction never reads, numbers to 8 digits."""
    lines: list[str] = []
    for line in text.split("\n"):
        key, _, value = line.partition("=")
        if key in _DROPPED:
            continue
        if key in ("threshold", "leaf_value"):
            line = f"{key}=" + " ".join(f"{float(v):.8g}" for v in value.split())  # noqa: PLW2901
        lines.append(line)
    body = "\n".join(lines)
    return body.split("\nfeature_importances:")[0] + "\n"


def load(path: str | os.PathLike[str] | None = None) -> ConfigModel:
    """Read a model folder; without a path, the one that ships with the package.

    Raises NoDataError where there is none and SpecError where it is damaged.
    """
    import lightgbm as lgb

    folder = Path(path) if path is not None else SHIPPED
    if not (folder / "card.json").is_file():
        raise NoDataError(f"{folder}: no card.json; train one with train_config_model")
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if card["card_version"] > CARD_VERSION:
            raise SpecError(f"card_version {card['card_version']} is newer than {CARD_VERSION}")
        if tuple(card["features"]) != FEATURES:
            raise SpecError("features: the card's differ from this version's; train again")
        boosters = {
            name: lgb.Booster(model_str=(folder / f"{name}.txt").read_text(encoding="utf-8"))
            for name in card["devices"]
        }
        model = ConfigModel(boosters, card)
        for columns in card.get("calibrations", {}).values():
            points = {c: np.asarray(v, object if c == "hardware" else np.float64)
                      for c, v in columns.items()}  # fmt: skip
            model = model.calibrate(points)
    except (OSError, KeyError, TypeError, ValueError, lgb.basic.LightGBMError) as error:
        if isinstance(error, RidgecastError):
            raise
        raise SpecError(f"{folder}: damaged model ({type(error).__name__}: {error})") from None
    return model
