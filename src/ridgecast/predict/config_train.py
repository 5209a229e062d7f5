"""Train the model of CLBlast configurations and calibrate its intervals on held-out kernels.

Owns everything that is fitted to measured rows. `config_model` predicts with the result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError
from ..hardware import get
from ..store.tables import Table, length, numeric, select
from .config_features import CONFIG, FEATURES
from .config_model import CARD_VERSION, GRID, ConfigModel, bucket_of, run_booster
from .config_rows import Rows, kernel_ids, prepare, read_params, take, usable_rows
from .config_transfer import fit_correction, spread_points
from .parity import sample, save_parity

__all__ = ["train_config_model"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_PARAMETERS: dict[str, Any] = {
    "objective": "huber", "alpha": 0.1, "num_leaves": 63, "learning_rate": 0.15,
    "min_data_in_leaf": 5, "feature_fraction": 0.5, "num_threads": 1, "deterministic": True,
    "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
_TREES = 150
_FOLDS = 5
_BUCKETS = 3  # intervals apart for the fast, middle and slow third of each device's predictions
_SIMULATED_POINTS = 50
_SIMULATED_ROWS = 2000


def _quantiles(values: FloatArray) -> list[float]:
    return [float(f"{v:.5g}") for v in np.quantile(values, GRID)]


def _fit(
    features: FloatArray, target: FloatArray, weight: FloatArray, seed: int, trees: int
) -> Any:
    import lightgbm as lgb

    data = lgb.Dataset(
        features, target, weight=weight, feature_name=list(FEATURES),
        params={"verbosity": -1, "min_data_in_leaf": _PARAMETERS["min_data_in_leaf"]},
    )  # fmt: skip
    return lgb.train({**_PARAMETERS, "seed": seed}, data, num_boost_round=trees)


@dataclass(frozen=True, slots=True)
class _Training:
    """One device's distinct kernels with their median log(time / bound)."""

    rows: Rows
    target: FloatArray
    weight: FloatArray
    kernels: IntArray
    table: Table
    row_target: FloatArray
    row_of: IntArray


def _device_data(table: Table, ids: IntArray, name: str) -> _Training:
    own = table["hardware"] == name
    part, codes = select(table, own), ids[own]
    params, sizes, _ = read_params(part)
    rows = prepare(get(name), params, sizes)
    every = np.log(numeric(part, "time_s")[0] / rows.bound)
    kernels, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(every[order], np.cumsum(np.bincount(inverse))[:-1])
    target = np.array([np.median(group) for group in groups])
    weight = np.exp(0.5 * (target.min() - target))  # the fast end is what a tuner needs
    return _Training(take(rows, first), target, weight, kernels, part, every, inverse)


def train_config_model(
    table: Table,
    out_dir: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    trees: int = _TREES,
    folds: int = _FOLDS,
) -> ConfigModel:
    """Train on canonical measurement rows (see `ridgecast.store`) and calibrate the intervals.

    Rows that compile to one kernel count once (their median). Intervals come from `folds`
    cross-fitted models whose folds are whole kernels, so no interval rests on a fitted point.
    With `out_dir` the model is written there. Raises NoDataError without usable rows, SpecError
    for fewer than two folds.
    """
    if folds < 2:
        raise SpecError(f"folds: got {folds}, need 2 or more")
    table = usable_rows(table)
    ids = kernel_ids(table)
    names = sorted(set(table["hardware"].astype(str).tolist()))
    data = {name: _device_data(table, ids, name) for name in names}
    fold = np.random.default_rng(seed).integers(folds, size=int(ids.max()) + 1)
    boosters, learned, scores = {}, {}, {}
    samples: list[dict[str, Any]] = []
    for name, d in data.items():
        boosters[name] = _fit(d.rows.features, d.target, d.weight, seed, trees)
        held = np.zeros(len(d.target))
        for i in range(folds):
            test = fold[d.kernels] == i
            if test.all() or not test.any():
                raise NoDataError(f"{name}: {len(test)} kernels are too few for {folds} folds")
            part = _fit(d.rows.features[~test], d.target[~test], d.weight[~test], seed, trees)
            held[test] = run_booster(part, d.rows.features[test])
        learned[name], scores[name] = _intervals(d, held)
        points = _held_points(d, held[d.row_of], seed)
        samples.append(sample(points, split="unseen_config", hardware=name))
    card = _card(table, data, seed, trees)
    card["intervals"] = {"learned": learned}
    card["scores_unseen_kernel"] = scores
    model = ConfigModel(boosters, card)
    _transfer_statistics(model, data, seed)
    if out_dir is not None:
        model.save(out_dir)
        source, licence = (", ".join(card[key]) for key in ("collections", "licence"))
        save_parity(out_dir, samples, source=source, licence=licence, seed=seed)
    return model


def _held_points(d: _Training, predicted: FloatArray, seed: int) -> dict[str, FloatArray]:
    """Measured rows beside held-out predictions of log(time / bound), in seconds.

    The 90 % intervals of one half of the kernels rest on the other half.
    """
    truth = numeric(d.table, "time_s")[0]
    time = truth * np.exp(predicted - d.row_target)
    half = (np.random.default_rng(seed).random(len(d.target)) < 0.5)[d.row_of]
    low, high = np.full(len(time), np.nan), np.full(len(time), np.nan)
    for test in (half, ~half):
        if test.any() and not test.all():
            residual, known = d.row_target[~test] - predicted[~test], predicted[~test]
            edges = np.quantile(known, np.arange(1, _BUCKETS) / _BUCKETS).tolist()
            own, others = bucket_of(predicted[test], edges), bucket_of(known, edges)
            parts = [residual[others == b] for b in range(_BUCKETS)]
            ends = np.array([np.quantile(p if len(p) else residual, (0.05, 0.95)) for p in parts])
            low[test], high[test] = time[test] * np.exp(ends[own].T)
    return {"truth_s": truth, "time_s": time, "time_low_s": low, "time_high_s": high}


def _intervals(d: _Training, held: FloatArray) -> tuple[dict[str, Any], dict[str, float]]:
    """Residual quantiles per bucket of the prediction, over measured rows, and the scores."""
    predicted = held[d.row_of]
    residual = d.row_target - predicted
    edges = [float(v) for v in np.quantile(predicted, np.arange(1, _BUCKETS) / _BUCKETS)]
    bucket = bucket_of(predicted, edges)
    grids = [_quantiles(residual[bucket == b]) for b in range(_BUCKETS) if (bucket == b).any()]
    error = np.abs(np.expm1(-residual))
    scores = {
        "mape": float(error.mean()),
        "median": float(np.median(error)),
        "p90": float(np.quantile(error, 0.9)),
    }
    grids += [grids[-1]] * (_BUCKETS - len(grids))
    rounded = {key: float(f"{value:.4g}") for key, value in scores.items()}
    return {"edges": edges, "residuals": grids}, rounded


def _card(table: Table, data: Mapping[str, _Training], seed: int, trees: int) -> dict[str, Any]:
    features = np.concatenate([d.rows.features for d in data.values()])
    domain = {
        name: {
            "sizes": np.unique(d.rows.sizes).tolist(),
            **{p: np.unique(d.rows.params[p]).tolist() for p in CONFIG},
        }
        for name, d in data.items()
    }

    def texts(column: str) -> list[str]:
        return sorted(set(table[column].astype(str).tolist())) if column in table else []

    return {
        "card_version": CARD_VERSION,
        "name": "clblast_sgemm",
        "what": "log(time / bound) of CLBlast Xgemm (kernel 0) in fp32, one model a device",
        "devices": list(data),
        "rows": int(length(table)),
        "kernels": {name: len(d.target) for name, d in data.items()},
        "collections": texts("collection"),
        "licence": texts("licence"),
        "split": "whole compiled kernels held out on every device at once, 5 folds",
        "seed": seed,
        "trees": trees,
        "parameters": dict(_PARAMETERS),
        "features": list(FEATURES),
        "vendors": {name: d.rows.hardware.vendor for name, d in data.items()},
        "domain": domain,
        "standard": {
            "centre": [float(f"{v:.8g}") for v in features.mean(0)],
            "width": [float(f"{v:.8g}") for v in np.maximum(features.std(0), 1e-3)],
        },
        "offsets": {},
    }


def _transfer_statistics(model: ConfigModel, data: Mapping[str, _Training], seed: int) -> None:
    """Leave each device out in turn: what its relatives miss, bare and after 50 points.

    Writes the offsets and the interval grids into the card; every device counts the same. Where
    no other vendor was measured, three times the spread between relatives is assumed for one.
    """
    rng = np.random.default_rng(seed)
    near, foreign, corrected = [], [], []
    card: Any = model.card
    vendors = card["vendors"]
    for name, d in data.items():
        if len(data) == 1:
            break
        inputs = model.inputs(d.rows)
        others = [other for other in data if other != name]
        kin = np.array([vendors[other] == vendors[name] for other in others])
        for same, into in ((kin, near), (~kin, foreign)):
            if same.any():
                into.append(np.quantile(d.target - inputs.relatives[:, same].mean(1), GRID))
        residual = d.target - inputs.base
        card["offsets"][name] = float(f"{np.median(residual):.5g}")
        points = spread_points(inputs, min(_SIMULATED_POINTS, len(residual) // 2), rng)
        rest = np.setdiff1d(np.arange(len(residual)), points)
        rest = rng.choice(rest, min(_SIMULATED_ROWS, len(rest)), replace=False)
        fitted = fit_correction(inputs[points], d.target[points])
        mean, spread = fitted.predict(inputs[rest])
        corrected.append(np.quantile((d.target[rest] - mean) / spread, GRID))
    near = near or foreign or [np.array([-1.0, 1.0])]  # nothing to learn from: a factor e (assumed)
    foreign = foreign or [3.0 * values for values in near]
    corrected = corrected or [np.array([-3.0, 3.0])]  # assumed too
    card["intervals"]["transferred"] = _quantiles(np.concatenate(near))
    card["intervals"]["foreign"] = _quantiles(np.concatenate(foreign))
    card["intervals"]["calibrated"] = _quantiles(np.concatenate(corrected))
