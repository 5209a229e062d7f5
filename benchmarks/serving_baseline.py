"""A learned baseline on measured serving points: LightGBM on the configuration fields.

What gradient boosting on the plain fields of a row (model name, device, engine, version, layout,
lengths, concurrency) is worth: with rows held out at random; with whole series (a layout at all
its concurrencies), so that no neighbour in concurrency is left; and on networks that training
never saw, which is what a model from first principles is scored on. Five fold each, logs of TTFT
and TPOT as targets; how far two measurements of one configuration differ is printed beside.

    python benchmarks/serving_baseline.py [--data serving_end_to_end.csv]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import lightgbm as lgb
import numpy as np

from ridgecast.accuracy.serving import (
    CONFIGURATION,
    network,
    repeats,
    score,
    unseen_network,
)
from ridgecast.store import Table, import_files
from ridgecast.store.tables import factorize, is_text, map_text, select

DATA = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "silicon" / "serving_end_to_end.csv"
)
FOLDS = 5
TARGETS = ("tpot_s", "ttft_s")
SETTINGS = {
    "n_estimators": 300, "learning_rate": 0.05, "num_leaves": 31, "min_child_samples": 5,
    "subsample": 0.8, "subsample_freq": 1, "colsample_bytree": 0.8, "verbose": -1, "n_jobs": 2,
    "objective": "l1",
}  # fmt: skip


def inputs(table: Table) -> tuple[np.ndarray, list[int]]:
    """Matrix of the configuration fields, and which of its columns are categories."""
    names = [*CONFIGURATION, "engine_version", "devices"]
    columns, categories = [], []
    for i, name in enumerate(names):
        column = map_text(table[name], network) if name == "model" else table[name]
        if is_text(column):
            categories.append(i)
            columns.append(factorize(column)[0].astype(float))
        else:
            columns.append(column.astype(float))
    return np.column_stack(columns), categories


def series(table: Table) -> np.ndarray:
    """Group number per row: rows of one group agree in all but concurrency and repetition."""
    names = [name for name in CONFIGURATION if name != "concurrency"]
    codes = np.column_stack([factorize(table[name])[0] for name in names])
    return np.unique(codes, axis=0, return_inverse=True)[1].ravel()


def fitted(
    x: np.ndarray, y: np.ndarray, categories: list[int], train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Predictions of a model of log y on the test rows."""
    model = lgb.LGBMRegressor(**SETTINGS)
    model.fit(x[train], np.log(y[train]), categorical_feature=categories)
    return np.exp(np.asarray(model.predict(x[test]), dtype=float))


def crossed(table: Table, target: str, groups: np.ndarray) -> np.ndarray:
    """Predictions of all rows, each by a model that saw no row of its group."""
    x, categories = inputs(table)
    out = np.full(len(x), np.nan)
    fold = np.random.default_rng(0).integers(0, FOLDS, groups.max() + 1)[groups]
    for i in range(FOLDS):
        test = fold == i
        out[test] = fitted(x, table[target], categories, ~test, test)
    return out


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    table = import_files(parser.parse_args().data)
    table = select(table, table["valid"].astype(bool))
    rows = len(table["isl"])
    split = unseen_network(table)
    x, categories = inputs(table)
    warnings.filterwarnings("ignore", module="lightgbm")
    warnings.filterwarnings("ignore", module="sklearn")
    for target in TARGETS:
        y = table[target]
        print(f"{target}, median / mean relative error:")
        print(f"  random rows held out        {score(y, crossed(table, target, np.arange(rows)))}")
        print(f"  whole series held out       {score(y, crossed(table, target, series(table)))}")
        unseen = fitted(x, y, categories, split.train, split.test)
        print(f"  networks never seen         {score(y[split.test], unseen)}")
        print(f"  two of one configuration    {repeats(table, target)}")
        same = repeats(table, target, beside=("engine_version",))
        print(f"  and of one version          {same}")
        for mode in ("agg", "disagg"):
            part = select(table, table["mode"] == mode)
            print(f"  two of one, {mode:<6}          {repeats(part, target)}")


if __name__ == "__main__":
    main()
