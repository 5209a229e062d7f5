"""Rows a second of `predict_table`, with intervals and features included, beside plain LightGBM.

    python benchmarks/batch.py [--rows 300000] [--model DIR] [--repeats 3]

Random bf16 GEMMs on an H200. The LightGBM is what a plain predictor of time would run: 1,000 trees
of 63 leaves on the same features (not counted), with as many threads. Speeds vary with the
machine, the ratio does not much. Goals on two cores: 300 thousand rows/s, bound alone 1.5 million.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import lightgbm as lgb
import numpy as np

from ridgecast import predict_table
from ridgecast.hardware import get
from ridgecast.kernels import bound
from ridgecast.predict.bundle import open_bundle
from ridgecast.predict.features import Features, gemm_features
from ridgecast.predict.time_model import Shapes

DEVICE = "h200_sxm"
TRAIN_ROWS = 20_000


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Least wall time [s] of several runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def plain_lightgbm(features: np.ndarray, target: np.ndarray) -> lgb.Booster:
    settings = {"num_leaves": 63, "learning_rate": 0.05, "verbosity": -1, "min_data_in_leaf": 5}
    return lgb.train(settings, lgb.Dataset(features, target), 1000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    m, n, k = (np.floor(2.0 ** rng.uniform(4, 15, a.rows)) for _ in range(3))
    text = {"op": "gemm", "hardware": DEVICE, "dtype": "bf16"}
    table = {key: np.full(a.rows, value, dtype=object) for key, value in text.items()}
    table |= {"m": m, "n": n, "k": k}
    bounds = {**table, "kernel": np.full(a.rows, "bound", dtype=object)}
    done = predict_table(table, model=a.model)
    basis, counts = np.unique(done["basis"].astype(str), return_counts=True)
    standing = ", ".join(f"{c} {b}" for b, c in zip(basis, counts, strict=True))
    print(f"{a.rows} rows on {os.cpu_count()} cores: {standing}")
    shapes = Shapes(m, n, k, np.ones(a.rows))
    bundle = open_bundle(a.model)
    entry = bundle.entry(DEVICE, "bf16")
    if entry is None:
        parser.error(f"{bundle.path} holds no bf16 model of {DEVICE}")
    constants = bundle.time_model(entry).constants

    def features() -> Features:
        return gemm_features(shapes.problem("bf16"), get(DEVICE), constants)

    x = features().values
    booster = plain_lightgbm(x[:TRAIN_ROWS], np.log(done["time_s"][:TRAIN_ROWS]))
    cases: list[tuple[str, Callable[[], object], float | None]] = [
        ("predict_table, with intervals", lambda: predict_table(table, model=a.model), 3e5),
        ("predict_table, bound only", lambda: predict_table(bounds, model=a.model), None),
        ("kernels.bound", lambda: bound(m, n, k, hardware=get(DEVICE)), 1.5e6),
        ("features alone", features, None),
        ("LightGBM 1,000 x 63, no features", lambda: booster.predict(x), None),
    ]  # fmt: skip
    rates = {name: a.rows / best_s(work, a.repeats) for name, work, _ in cases}
    plain = rates["LightGBM 1,000 x 63, no features"]
    print(f"{'':42s}{'rows/s':>12s}{'goal':>12s}{'x LightGBM':>12s}")
    for name, _, goal in cases:
        print(f"{name:42s}{rates[name]:12,.0f}{goal or '-':>12}{rates[name] / plain:12.1f}")


if __name__ == "__main__":
    main()
