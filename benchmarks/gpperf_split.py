"""GPPerf's 16,128 rows (CUTLASS SIMT sgemm 128x128x8, RTX 4070): a leaking split and honest ones.

The file holds 36 shapes x 4 layouts, each measured 112 times under settings that did nothing. A
random split of the rows therefore tests on fitted points. This script prints that score for a
random forest in the style of the publication, then the scores with whole (m, n, k, layout) groups
and with whole shapes held out, five folds each. Nothing fitted here is kept: the data has no
licence.

    python benchmarks/gpperf_split.py [--data gpperf/cutlass_rtx4070.parquet]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightgbm as lgb
import numpy as np

from ridgecast.hardware import Hardware, get
from ridgecast.store import Table, factorize, read_table

DATA = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "gpperf" / "cutlass_rtx4070.parquet"
)
TILE_M, TILE_N, TILE_K = 128, 128, 8
FOLDS = 5


def kernel_time(hardware: Hardware, table: Table) -> np.ndarray:
    """Tiled SIMT kernel: waves of whole tiles at the fp32 rate, memory, and one launch [s].

    Blocks share their SM, so the last wave costs ceil(blocks / SMs) tiles, whatever fits at once.
    """
    m, n, k = (table[name].astype(float) for name in "mnk")
    blocks = np.ceil(m / TILE_M) * np.ceil(n / TILE_N)
    tiles = np.ceil(blocks / hardware.sm_count)
    per_sm = hardware.rate("fp32") / hardware.sm_count
    compute = tiles * 2.0 * TILE_M * TILE_N * np.ceil(k / TILE_K) * TILE_K / per_sm
    moved = 4.0 * (m * k + k * n + (1.0 + (table["beta"] != 0)) * m * n)
    return np.maximum(compute, moved / hardware.memory.bandwidth) + hardware.launch_latency


def roofline(hardware: Hardware, table: Table) -> np.ndarray:
    """Largest of operations over the fp32 rate and unique bytes over the bandwidth [s]."""
    m, n, k = (table[name].astype(float) for name in "mnk")
    moved = 4.0 * (m * k + k * n + (1.0 + (table["beta"] != 0)) * m * n)
    return np.maximum(2.0 * m * n * k / hardware.rate("fp32"), moved / hardware.memory.bandwidth)


def features(hardware: Hardware, table: Table, base: np.ndarray) -> np.ndarray:
    """Dimensionless inputs of the residual: waves, k-iterations, bytes over flops, footprint."""
    m, n, k = (table[name].astype(float) for name in "mnk")
    blocks = np.ceil(m / TILE_M) * np.ceil(n / TILE_N) / hardware.sm_count
    footprint = 4.0 * (m * k + k * n + 2.0 * m * n)
    return np.column_stack([
        np.log2(blocks), np.log2(k / TILE_K), np.log2(n / k),
        np.log2(footprint / hardware.l2.capacity), np.log2(footprint / hardware.memory.capacity),
        np.log2(base / hardware.launch_latency), table["beta"].astype(float) != 0,
        table["alpha"].astype(float),
    ])  # fmt: skip


def raw_columns(table: Table) -> np.ndarray:
    """Columns that the publication's forest sees: sizes, layout, requested tile, alpha, beta."""
    layout, _ = factorize(table["layout"])
    names = ("m", "n", "k", "req_tb_m", "req_tb_n", "req_tb_k", "req_stages", "alpha", "beta")
    return np.column_stack([*(table[c].astype(float) for c in names), layout])


def forest(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Random forest by LightGBM's rf mode on raw times, as in the publication's recipe."""
    settings = {
        "boosting": "rf", "objective": "l2", "num_leaves": 1023, "min_data_in_leaf": 1,
        "bagging_fraction": 0.63, "bagging_freq": 1, "min_sum_hessian_in_leaf": 0.0,
        "verbosity": -1, "num_threads": 1, "seed": 0, "deterministic": True,
    }  # fmt: skip
    # in us: gains of squared seconds fall below LightGBM's smallest split gain
    data = lgb.Dataset(x, y * 1e6, params={"min_data_in_leaf": 1, "verbosity": -1})
    return 1e-6 * lgb.train(settings, data, num_boost_round=100).predict(at)


def residual(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Small boosted model of log(measured / kernel model)."""
    settings = {
        "objective": "huber", "alpha": 0.1, "num_leaves": 8, "min_data_in_leaf": 100,
        "learning_rate": 0.1, "feature_fraction": 0.8, "verbosity": -1, "num_threads": 1,
        "seed": 0, "deterministic": True,
    }  # fmt: skip
    return lgb.train(settings, lgb.Dataset(x, y), num_boost_round=200).predict(at)


def line(title: str, time: np.ndarray, got: np.ndarray) -> None:
    error = 100.0 * np.abs(got / time - 1.0)
    print(f"{title:66s}{error.mean():8.2f}{np.median(error):8.2f}{np.quantile(error, 0.9):8.2f}")


def folds(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fold of each row; rows of one code share theirs, folds are equal in codes."""
    count = int(codes.max()) + 1
    order = np.random.default_rng(seed).permutation(count)
    return (order % FOLDS)[codes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    table = read_table(parser.parse_args().data)
    hardware = get("rtx_4070")
    time = table["latency_ms"].astype(float) * 1e-3
    base = kernel_time(hardware, table)
    raw, x, y = raw_columns(table), features(hardware, table, base), np.log(time / base)
    shape = np.unique(np.column_stack([table[c] for c in "mnk"]), axis=0, return_inverse=True)[1]
    shape = shape.ravel()
    layout, _ = factorize(table["layout"])
    group = np.unique(shape * 10 + layout, return_inverse=True)[1]
    print(f"{len(time)} rows, {group.max() + 1} (m,n,k,layout) groups, {shape.max() + 1} shapes")
    print(f"{'error of time, %':66s}{'mean':>8s}{'median':>8s}{'p90':>8s}")
    middle = np.array([np.median(time[group == g]) for g in range(group.max() + 1)])
    line("label floor: a row against the median of its own group", time, middle[group])
    line("plain roofline", time, roofline(hardware, table))
    line("kernel model alone, nothing fitted", time, base)
    splits = {
        "random rows (LEAKS: 112 repeats a point)": np.random.default_rng(0).integers(
            FOLDS, size=len(time)
        ),
        "(m,n,k,layout) groups": folds(group),
        "(m,n,k) shapes, all four layouts held out": folds(shape),
    }
    for name, fold in splits.items():
        got, theirs = np.zeros(len(time)), np.zeros(len(time))
        for i in range(FOLDS):
            test = fold == i
            theirs[test] = forest(raw[~test], time[~test], raw[test])
            got[test] = base[test] * np.exp(residual(x[~test], y[~test], x[test]))
        line(f"random forest on raw columns, {name}", time, theirs)
        line(f"kernel model + residual, {name}", time, got)


if __name__ == "__main__":
    main()
