"""The models that a study compares: the original's recipe, a tuned forest, ridgecast's own.

Owns how each is fitted to a table of measured rows of one device and asked for others. Knows no
split and no score. scikit-learn is imported in the functions that fit forests.

    original    multi-output random forest on raw sizes, tile, intensity, bytes, operations;
                raw runtime, power and energy as targets, library defaults
    tuned       forests on engineered features and log targets, chosen by a small search over
                folds of whole (n, k) groups
    ridgecast   predict.sweep_model: physical terms, learned ratio, intervals
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MissingExtraError, NoDataError
from ..hardware import Hardware
from ..predict.sweep_features import column, device_of, raw_features
from ..predict.sweep_model import SweepModel, collapse, fit_sweep_model, usable
from ..predict.sweep_parts import codes_of, informative
from ..store.tables import Table, factorize, is_text, length, select

__all__ = ["MODELS", "TARGETS", "Fitted", "ModelSpec", "fit_original", "fit_ours", "fit_tuned",
           "recipe_columns", "target_values"]  # fmt: skip

F64 = npt.NDArray[np.float64]
Predicted = dict[str, F64]
TARGETS = {"time": "time_s", "power": "power_w", "energy": "energy_j"}
_LEAST = 12  # rows with a target under which it is not learned
_LAYOUTS = ("nn", "nt", "tn", "tt")
_TREES = 100
_SEARCH_TREES = 40
_SEARCH_ROWS = 1500  # the search looks at no more rows than these
_RECIPE = ("m", "n", "k", "tile", "tile_m", "tile_n", "tile_k", "stages", "req_tb_m", "req_tb_n",
           "req_tb_k", "req_stages", "alpha", "beta", "mwg", "nwg", "kwg")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted model: `predict(table)` gives time [s], power [W], energy [J] and any intervals.

    `importance` is the share of each input in what the model learned of time; `settings` what a
    search chose.
    """

    predict: Callable[[Table], Predicted]
    importance: Mapping[str, float]
    settings: Mapping[str, Any]
    model: SweepModel | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Name, one line of what it is, and how it is fitted: fit(table, hardware, seed)."""

    name: str
    what: str
    fit: Callable[[Table, Hardware | None, int], Fitted]


def target_values(table: Table, target: str) -> F64:
    """Values of a target [rows]; NaN where missing, not positive or marked as not valid."""
    values = column(table, TARGETS[target])
    good = values > 0
    flag = f"{target}_valid"
    if target == "power" or flag in table:
        good &= column(table, flag, 0.0) == 1.0
    return np.where(good, values, np.nan)


def _sklearn() -> Any:
    try:
        from sklearn import ensemble
    except ImportError as error:
        raise MissingExtraError(
            "the study's forests need scikit-learn: pip install 'ridgecast[study]'"
        ) from error
    return ensemble


# --------------------------------------------------------------------------- the original's


def recipe_columns(table: Table) -> dict[str, F64]:
    """Return the inputs of the original's recipe, raw as it took them."""
    out = {name: column(table, name, 0.0) for name in _RECIPE if name in table}
    if "layout" in table and is_text(table["layout"]):
        codes, found = factorize(table["layout"])
        order = [_LAYOUTS.index(str(f)) if f in _LAYOUTS else -1 for f in found]
        out["layout"] = np.asarray(order, np.float64)[codes]
    m, n, k = out["m"], out["n"], out["k"]
    out["operations"] = 2.0 * m * n * k
    out["bytes"] = 4.0 * (m * k + k * n + m * n)
    out["intensity"] = out["operations"] / out["bytes"]
    return out


def fit_original(table: Table, hardware: Hardware | None = None, seed: int = 0) -> Fitted:
    """Fit one multi-output forest of library defaults on raw targets, as the original did.

    Power and energy share the forest on the rows that have all three; where there are too few of
    them, runtime alone is learned.
    """
    del hardware
    ensemble = _sklearn()
    inputs = recipe_columns(table)
    names = list(inputs)
    x = np.stack([inputs[name] for name in names], axis=1)
    y = np.stack([target_values(table, target) for target in TARGETS], axis=1)
    timed, all_known = np.isfinite(y[:, 0]), np.isfinite(y).all(axis=1)
    if timed.sum() < _LEAST:
        raise NoDataError(f"{int(timed.sum())} rows with a time, need {_LEAST}")
    together = all_known.sum() >= _LEAST
    forests: list[tuple[Any, tuple[str, ...]]] = []
    if not (together and all_known.sum() == timed.sum()):
        forests.append((_forest(ensemble, x[timed], y[timed, :1], seed), ("time",)))
    if together:
        wanted = tuple(TARGETS) if not forests else ("power", "energy")
        at = [list(TARGETS).index(target) for target in wanted]
        forests.append((_forest(ensemble, x[all_known], y[all_known][:, at], seed), wanted))

    def predict(rows: Table) -> Predicted:
        given = recipe_columns(rows)
        zero = np.zeros(length(rows))
        z = np.stack([given.get(name, zero) for name in names], axis=1)
        out: Predicted = {}
        for forest, targets in forests:
            values = np.asarray(forest.predict(z), np.float64).reshape(len(z), -1)
            out |= {target: values[:, i] for i, target in enumerate(targets)}
        return out

    weights = dict(zip(names, map(float, forests[0][0].feature_importances_), strict=True))
    settings = {"trees": _TREES, "targets": "raw", "outputs": [t for f in forests for t in f[1]]}
    return Fitted(predict, weights, settings)


def _forest(ensemble: Any, x: F64, y: F64, seed: int) -> Any:
    forest = ensemble.RandomForestRegressor(n_estimators=_TREES, random_state=seed, n_jobs=1)
    # scaled, so that runtimes in seconds do not vanish beside watts in the shared split criterion
    return _Scaled(forest, y.std(axis=0) + 1e-300).fit(x, y)


class _Scaled:
    """A forest on targets divided by their spread, answering in their units."""

    def __init__(self, forest: Any, scale: F64) -> None:
        self._forest, self._scale = forest, scale

    def fit(self, x: F64, y: F64) -> _Scaled:
        target = y / self._scale
        self._forest.fit(x, target if target.shape[1] > 1 else target[:, 0])
        return self

    def predict(self, x: F64) -> F64:
        return np.asarray(self._forest.predict(x)).reshape(len(x), -1) * self._scale

    @property
    def feature_importances_(self) -> F64:
        return self._forest.feature_importances_


# ----------------------------------------------------------------------------- tuned forest


def fit_tuned(table: Table, hardware: Hardware | None = None, seed: int = 0) -> Fitted:
    """Fit forests on the engineered features and log targets, settings by a small search."""
    _sklearn()
    points = collapse(select(table, usable(table)))
    if length(points) < _LEAST:
        raise NoDataError(f"{length(points)} points with a time, need {_LEAST}")
    time = target_values(points, "time")
    best = float((2.0 * points["m"] * points["n"] * points["k"] / time).max())
    dtype = str(points["dtype"][0]) if "dtype" in points else "fp32"
    device = device_of(hardware, dtype, best)
    found = raw_features(points, device)
    names = list(found)
    x = np.stack([found[name] for name in names], axis=1)
    kept = informative(x)
    names, x = [names[i] for i in kept], x[:, kept]
    groups = codes_of([points["n"], points["k"]])
    settings = _search(x, np.log(time), groups, seed)
    forests: dict[str, Any] = {}
    for target in TARGETS:
        value = target_values(points, target)
        rows = np.isfinite(value)
        if rows.sum() >= _LEAST:
            forests[target] = _tree_model(settings, _TREES, seed).fit(x[rows], np.log(value[rows]))

    def predict(rows: Table) -> Predicted:
        given = raw_features(rows, device)
        zero = np.zeros(length(rows))
        z = np.stack([given.get(name, zero) for name in names], axis=1)
        return {target: np.exp(forest.predict(z)) for target, forest in forests.items()}

    weights = map(float, forests["time"].feature_importances_)
    return Fitted(predict, dict(zip(names, weights, strict=True)), settings)


def _tree_model(settings: Mapping[str, Any], trees: int, seed: int) -> Any:
    ensemble = _sklearn()
    kind = getattr(ensemble, settings["kind"])
    return kind(
        n_estimators=trees, max_features=settings["max_features"],
        min_samples_leaf=settings["min_samples_leaf"], random_state=seed, n_jobs=1,
    )  # fmt: skip


def _search(x: F64, y: F64, groups: npt.NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Choose settings by mean absolute log error over three folds of whole groups."""
    rng = np.random.default_rng(seed)
    some = rng.permutation(len(y))[:_SEARCH_ROWS]
    x, y, groups = x[some], y[some], groups[some]
    fold = (rng.permutation(int(groups.max()) + 1) % 3)[groups]
    best: tuple[float, dict[str, Any]] | None = None
    for kind in ("RandomForestRegressor", "ExtraTreesRegressor"):
        for share in (0.4, 1.0):
            settings = {"kind": kind, "max_features": share, "min_samples_leaf": 1}
            errors: list[float] = []
            for i in range(3):
                test = fold == i
                if test.any() and not test.all():
                    model = _tree_model(settings, _SEARCH_TREES, seed).fit(x[~test], y[~test])
                    errors += np.abs(model.predict(x[test]) - y[test]).tolist()
            loss = float(np.mean(errors)) if errors else 0.0
            if best is None or loss < best[0]:
                best = (loss, settings)
    assert best is not None
    return best[1]


# -------------------------------------------------------------------------------- ridgecast


def fit_ours(table: Table, hardware: Hardware | None = None, seed: int = 0) -> Fitted:
    """Fit ridgecast's sweep model; its predictions carry 90 % intervals."""
    model = fit_sweep_model(table, hardware, seed=seed)

    def predict(rows: Table) -> Predicted:
        found = model.predict(rows)
        out = {key: value for key, value in found.items() if key not in ("low", "high", "place")}
        return {**out, "time_low": found["low"], "time_high": found["high"]}

    families = model.card["families"]
    found = {k: f["heads"]["time"]["held_out_error"] for k, f in families.items()}
    errors = {k: None if e is None else round(e, 5) for k, e in found.items()}
    settings = {"kernels": list(families), "held_out_error": errors}
    return Fitted(predict, model.importance(), settings, model)


MODELS: dict[str, ModelSpec] = {
    "original": ModelSpec(
        "original", "multi-output random forest on raw columns and raw targets", fit_original
    ),
    "tuned": ModelSpec(
        "tuned", "forest on engineered features and log targets, settings searched", fit_tuned
    ),
    "ridgecast": ModelSpec(
        "ridgecast", "physical terms times a learned ratio, with calibrated intervals", fit_ours
    ),
}
