"""GEMM time where measurements are few: none of the device, some hundred points, one small table.

Owns three recipes on plain arrays: `fit_prior` learns from other devices what their constants
leave over, `calibrate` bends a prior to a device with a few measured points, `fit_small` needs no
other device. All predict log seconds. Needs lightgbm when it fits or loads. Knows no tables, no
splits and no intervals.

Feature columns that a caller adds (`Rows.features`) must be computed with one launch time for
all devices (2 us): a device without measurements has none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .device_physics import (
    CONSTANTS,
    Device,
    Shapes,
    coordinates,
    fit_constants,
    fit_device,
    physical_features,
    physical_time,
)  # fmt: skip
from .gp import GaussianProcess, fit_gp
from .mlp import Mlp, MlpOptions, fit_mlp
from .trees import Trees, slim

__all__ = [
    "Calibrated", "Prior", "Rows", "Small", "calibrate", "choose_points", "fit_prior", "fit_small",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]

ASSUMED_LAUNCH = 2e-6  # s, of an unmeasured warpgroup device: between Hopper's and Blackwell's
_OTHER_KIND = 0.1  # weight of devices that run the other kind of kernel (chosen on held-out chips)
_DRAWS = 5  # one draw leaves rate and power limit, or step and prologue, to chance
_CALIBRATION_SPREAD = 1.5  # how far 200 points may pull a device's constants, in SPREAD
_NARROW = (0, 1, 2, 3, 4, 5, 6, 14, 16)  # coordinates of the second process: no tile jumps
_NET = MlpOptions(hidden=(96, 96, 48), epochs=10, decay=1e-3, clip=3.0)
_TREES = {
    "objective": "l2", "num_leaves": 63, "learning_rate": 0.07, "min_data_in_leaf": 30,
    "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.4,
}  # fmt: skip
_SMALL_TREES = {
    "objective": "l2", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 4,
    "bagging_fraction": 0.8, "bagging_freq": 1, "feature_fraction": 0.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rows:
    """Shapes on one device, the caller's features [rows, any], and log seconds if measured."""

    device: Device
    shapes: Shapes
    features: F32
    log_time: F64 | None = None
    family: str = ""

    def take(self, rows: npt.NDArray[np.integer]) -> Rows:
        """Return the given rows."""
        y = None if self.log_time is None else self.log_time[rows]
        return Rows(self.device, self.shapes[rows], self.features[rows], y, self.family)

    def measured(self) -> F64:
        """Log seconds. Raises ValueError when the rows carry none."""
        if self.log_time is None:
            raise ValueError("rows without log_time cannot be learned from; pass Rows(log_time=)")
        return self.log_time


@dataclass(frozen=True, slots=True)
class _View:
    """What the learned parts see of rows under one set of constants."""

    log_time: F64
    features: F32
    coordinates: F64


def _view(rows: Rows, theta: F64) -> _View:
    time, parts = physical_time(rows.shapes, rows.device, theta)
    own = physical_features(rows.device, time, parts)
    features = np.concatenate([own, rows.features.astype(np.float32)], 1)
    return _View(np.log(time), features, coordinates(rows.shapes, rows.device, time, parts))


def _boost(
    x: F32, y: F64, weight: F64 | None, options: Mapping[str, Any], rounds: int, seed: int
) -> Trees:
    import lightgbm

    fixed = {"num_threads": 1, "verbosity": -1, "seed": seed, "deterministic": True}
    data = lightgbm.Dataset(x, y, weight=weight)
    text = lightgbm.train({**options, **fixed}, data, num_boost_round=rounds).model_to_string()
    return Trees.of(slim(text))


def _text(trees: Trees) -> npt.NDArray[np.generic]:
    return np.frombuffer(trees.text.encode(), np.uint8)


def _trees(text: npt.NDArray[np.generic]) -> Trees:
    return Trees.of(np.asarray(text, np.uint8).tobytes().decode())


def _under(prefix: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def _named(prefix: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    return {prefix + k: v for k, v in arrays.items()}


@dataclass(frozen=True, slots=True)
class Prior:
    """Shared constants of one kind of device, and the correction learned on all others.

    `families` maps a chip family to its constants; a device of an unknown family takes `theta`.
    """

    warpgroup: bool
    theta: F64
    families: Mapping[str, F64]
    trees: tuple[Trees, ...]
    net: Mlp

    def constants(self, device: Device, family: str = "") -> F64:
        """Log constants for a device: its family's, or the kind's with an assumed launch."""
        if family in self.families:
            return self.families[family]
        theta = self.theta.copy()
        if self.warpgroup:
            thousand_clocks = (ASSUMED_LAUNCH - 1e-6) * device.clock / 1e3
            theta[CONSTANTS.index("launch")] = np.log(thousand_clocks)
        return theta

    def correction(self, features: F32) -> F64:
        """Learned log(time / physical time) from `_View.features`: mean of trees and net."""
        total = self.net.predict(features).astype(np.float64)
        for trees in self.trees:
            total += trees.predict(features)
        return total / (len(self.trees) + 1)

    def predict(self, rows: Rows) -> F64:
        """Log seconds per row, for a device without measurements."""
        view = _view(rows, self.constants(rows.device, rows.family))
        return view.log_time + self.correction(view.features)

    def to_arrays(self) -> Arrays:
        """State as plain arrays; booster texts as bytes."""
        arrays: Arrays = {"theta": self.theta, "warpgroup": np.array([self.warpgroup])}
        arrays |= _named("family/", self.families) | _named("net/", self.net.to_arrays())
        return arrays | {f"trees/{i}": _text(b) for i, b in enumerate(self.trees)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Prior:
        """Rebuild from `to_arrays`. Raises KeyError when an array is missing."""
        families = {k: np.asarray(v, np.float64) for k, v in _under("family/", arrays).items()}
        texts = sorted(_under("trees/", arrays).items())
        return cls(
            bool(np.asarray(arrays["warpgroup"])[0]), np.asarray(arrays["theta"], np.float64),
            families, tuple(_trees(v) for _, v in texts), Mlp.from_arrays(_under("net/", arrays)),
        )  # fmt: skip


def _constants(same: Sequence[Rows], rng: np.random.Generator) -> tuple[F64, list[F64]]:
    """Shared and own constants of devices of one kind, from 400 rows of each."""
    some = [t.take(rng.permutation(len(t.shapes))[:400]) for t in same]
    tables = [(t.shapes, t.measured(), t.device) for t in some]
    return fit_constants(tables, [t.family for t in same])


def fit_prior(tables: Sequence[Rows], *, warpgroup: bool, seed: int = 0, most: int = 6000) -> Prior:
    """Learn a prior for devices of one kind (see `Device.warpgroup`) from measured tables.

    Constants, shared within a kind, are the mean of fits to several draws of 400 rows a device;
    the correction learns from at most `most` rows of each device of both kinds, families weighing
    alike and the other kind a tenth.
    Raises ValueError when no table is of the wanted kind.
    """
    if not any(t.device.warpgroup == warpgroup for t in tables):
        raise ValueError(f"no table of a device with warpgroup={warpgroup} to learn a prior from")
    rng, shared, own, order = np.random.default_rng(seed), {}, [], []
    for kind in sorted({t.device.warpgroup for t in tables}):
        same = [t for t in tables if t.device.warpgroup == kind]
        draws = [_constants(same, rng) for _ in range(_DRAWS)]
        shared[kind] = np.mean([d[0] for d in draws], axis=0)
        own += [np.mean(each, axis=0) for each in zip(*(d[1] for d in draws), strict=True)]
        order += same
    xs, ys, ws = list[F32](), list[F64](), list[F64]()
    counts = [sum(o.family == t.family for o in order) for t in order]
    for table, theta, count in zip(order, own, counts, strict=True):
        rows = table.take(rng.permutation(len(table.shapes))[:most])
        view = _view(rows, theta)
        xs.append(view.features)
        ys.append(rows.measured() - view.log_time)
        weight = (1.0 if table.device.warpgroup == warpgroup else _OTHER_KIND) / count
        ws.append(np.full(len(ys[-1]), weight))
    x, y, w = np.concatenate(xs), np.concatenate(ys), np.concatenate(ws)
    trees = tuple(
        _boost(x, y, w / w.mean(), {**_TREES, "extra_trees": extra}, 200, seed)
        for extra in (False, True)
    )
    drawn = rng.choice(len(y), len(y), p=w / w.sum())
    net = Mlp.from_arrays(fit_mlp(x[drawn], y[drawn], rng, _NET).to_arrays())  # as it loads
    families = {
        t.family: theta
        for t, theta in zip(order, own, strict=True)
        if t.family and t.device.warpgroup == warpgroup
    }
    return Prior(warpgroup, shared[warpgroup], families, trees, net)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A prior bent to one device: its constants before and after, and four processes."""

    prior: Prior
    before: F64
    theta: F64
    processes: tuple[GaussianProcess, ...]

    def predict(self, rows: Rows) -> F64:
        """Log seconds per row: the mean of four views of what is left over."""
        return np.mean(self.members(rows), axis=0)

    def members(self, rows: Rows) -> list[F64]:
        """Log seconds per row by each of the four views."""
        bases, inputs = _four_views(self.prior, rows, self.before, self.theta)
        return [b + p.predict(x) for b, x, p in zip(bases, inputs, self.processes, strict=True)]

    def to_arrays(self) -> Arrays:
        """State without the prior, which is stored once."""
        arrays: Arrays = {"before": self.before, "theta": self.theta}
        for i, process in enumerate(self.processes):
            arrays |= _named(f"process{i}/", process.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]], prior: Prior) -> Calibrated:
        """Rebuild from `to_arrays` and the prior. Raises KeyError when an array is missing."""
        processes = tuple(
            GaussianProcess.from_arrays(_under(f"process{i}/", arrays)) for i in range(4)
        )
        before, theta = (np.asarray(arrays[k], np.float64) for k in ("before", "theta"))
        return cls(prior, before, theta, processes)


def _four_views(prior: Prior, rows: Rows, before: F64, theta: F64) -> tuple[list[F64], list[F64]]:
    """Baselines [rows] and process inputs [rows, any] of the four processes.

    Calibrated physics alone; with the prior's correction (all coordinates, then few); and the
    prior as it was.
    """
    new, old = _view(rows, theta), _view(rows, before)
    c_new, c_old = prior.correction(new.features), prior.correction(old.features)
    wide = np.column_stack([new.coordinates, c_new])
    narrow = wide[:, _NARROW]
    # the old view keeps the new coordinates, and learns from how far calibration moved the time
    shift = new.log_time - old.log_time
    was = np.column_stack([old.coordinates, c_old])[:, _NARROW]
    bases = [new.log_time, new.log_time + c_new, new.log_time + c_new, old.log_time + c_old]
    return bases, [new.coordinates, wide, narrow, np.column_stack([was, shift])]


def calibrate(prior: Prior, points: Rows, *, seed: int = 0) -> Calibrated:
    """Fit a device's constants and four Gaussian processes to its measured points (50 to 1,000).

    Raises ValueError for rows without times or of the other kind of device.
    """
    if points.device.warpgroup != prior.warpgroup:
        raise ValueError(
            f"prior is for warpgroup={prior.warpgroup} devices, the points come from one with "
            f"warpgroup={points.device.warpgroup}; fit a prior of that kind"
        )
    y, rng = points.measured(), np.random.default_rng(seed)
    before = prior.constants(points.device, points.family)
    theta = fit_device(
        points.shapes, y, points.device, before, tight=_CALIBRATION_SPREAD, rounds=12
    )
    bases, inputs = _four_views(prior, points, before, theta)
    processes = tuple(fit_gp(x, y - b, rng) for b, x in zip(bases, inputs, strict=True))
    return Calibrated(prior, before, theta, processes)


@dataclass(frozen=True, slots=True)
class Small:
    """Constants, a Gaussian process and trees from one small table alone."""

    theta: F64
    process: GaussianProcess
    trees: tuple[Trees, ...]

    def predict(self, rows: Rows) -> F64:
        """Log seconds per row: physical time, corrected by the mean of process and trees."""
        return np.mean(self.members(rows), axis=0)

    def members(self, rows: Rows) -> list[F64]:
        """Log seconds per row by the process and by the mean of the trees."""
        view = _view(rows, self.theta)
        x = _small_input(view)
        boosted = np.mean([b.predict(x) for b in self.trees], axis=0)
        return [view.log_time + self.process.predict(view.coordinates), view.log_time + boosted]

    def to_arrays(self) -> Arrays:
        """State as plain arrays; booster texts as bytes."""
        arrays: Arrays = {"theta": self.theta, **_named("process/", self.process.to_arrays())}
        return arrays | {f"trees/{i}": _text(b) for i, b in enumerate(self.trees)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Small:
        """Rebuild from `to_arrays`. Raises KeyError when an array is missing."""
        texts = sorted(_under("trees/", arrays).items())
        process = GaussianProcess.from_arrays(_under("process/", arrays))
        theta = np.asarray(arrays["theta"], np.float64)
        return cls(theta, process, tuple(_trees(v) for _, v in texts))


def _small_input(view: _View) -> F32:
    return np.column_stack([view.coordinates, view.features]).astype(np.float32)


def fit_small(rows: Rows, *, seed: int = 0, members: int = 4) -> Small:
    """Learn one device from its own 100 to 2,000 rows and physics, without any other device.

    `members` boosted models of different seeds are averaged. Raises ValueError without times.
    """
    y, rng = rows.measured(), np.random.default_rng(seed)
    theta = fit_device(rows.shapes, y, rows.device, rounds=20)
    view = _view(rows, theta)
    left = y - view.log_time
    process = fit_gp(view.coordinates, left, rng)
    x = _small_input(view)
    trees = tuple(
        _boost(x, left, None, {**_SMALL_TREES, "extra_trees": i % 2 == 1}, 300, seed + i)
        for i in range(members)
    )
    return Small(theta, process, trees)


def choose_points(
    prior: Prior, pool: Rows, count: int, *, rng: np.random.Generator, most: int = 3000
) -> npt.NDArray[np.intp]:
    """Pick indices into `pool` of the points to measure, chosen without any time of the device.

    Greedy k-medoids on the physical coordinates: each pick lowers the mean distance from the pool
    to its nearest pick the most.
    """
    some = rng.permutation(len(pool.shapes))[:most]
    view = _view(pool.take(some), prior.constants(pool.device, pool.family))
    z = view.coordinates[:, :13]
    z = np.clip((z - z.mean(0)) / (z.std(0) + 1e-9), -2.5, 2.5)
    z = z * np.concatenate([np.full(3, 1.5), np.ones(4), np.full(6, 0.5)])
    goal = z[:2000]
    square = (z**2).sum(1)[:, None] + (goal**2).sum(1)[None] - 2.0 * z @ goal.T
    distance = np.sqrt(np.maximum(square, 0.0)).astype(np.float32)
    nearest, picks = np.full(len(goal), np.inf, np.float32), list[int]()
    for _ in range(min(count, len(some))):
        after = np.minimum(distance, nearest[None]).mean(1)
        after[picks] = np.inf
        picks.append(int(np.argmin(after)))
        nearest = np.minimum(nearest, distance[picks[-1]])
    return some[np.array(picks, np.intp)]
