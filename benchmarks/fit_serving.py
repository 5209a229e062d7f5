"""Fit the constants of engine profiles on measured points of the training networks.

    python benchmarks/fit_serving.py [--data FILE.csv]

Aggregated points of Llama-3.1, Qwen3-32B and gpt-oss, copies dropped; each network weighs alike;
the loss is the mean |log(predicted / measured)|, for times to the first token of the points whose
protocol is published (InferenceX). Prints what scenario/engines.toml holds, the same
with one network left out at a time, and the factors between which 90 % of the points lie.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from serving_accuracy import DATA

from ridgecast.accuracy.serving import TRAIN_MODELS, network
from ridgecast.scenario.measured import answer, prepare, rows_of
from ridgecast.store import import_files, select

GRIDS = {
    "tpot": {"decode_factor": np.arange(0.9, 1.101, 0.01)},
    "ttft": {"prefill_launch": np.arange(0, 61e-6, 5e-6), "pass_wait": np.arange(0, 8.1, 0.5)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    table = import_files([a.data])
    nets = np.array([network(m) for m in table["model"]])
    use = np.isin(nets, TRAIN_MODELS) & table["valid"].astype(bool) & (table["mode"] == "agg")
    table, nets = select(table, np.flatnonzero(use)), nets[use]
    prepared = prepare(rows_of(table))
    best = fitted(prepared, table, nets, np.ones(len(nets), bool))
    print("all:", {k: round(v, 8) for k, v in best.items()})
    for left in TRAIN_MODELS:  # all InferenceX points are of two of them
        found = fitted(prepared, table, nets, nets != left)
        print(f"without {left}:", {k: round(v, 8) for k, v in found.items()})
    out = answer(*prepared, best)
    for name in ("tpot", "ttft"):
        ratio = np.log(table[f"{name}_s"] / out[f"{name}_s"])
        ends = quantiles(ratio, weights(nets), (0.05, 0.5, 0.95))
        print(f"{name}: 5, 50, 95 % of measured / predicted {np.exp(ends).round(3)}")


def fitted(prepared: Any, table: Any, nets: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Search the grids, time per token first; to the first token where the protocol is known."""
    best: dict[str, float] = {}
    known = np.array([str(c).startswith("inferencex") for c in table["collection"]])
    for name, grid in GRIDS.items():
        names = list(grid)
        points = np.stack(np.meshgrid(*grid.values(), indexing="ij"), -1).reshape(-1, len(names))
        losses = []
        for point in points:
            out = answer(*prepared, best | dict(zip(names, point.tolist(), strict=True)))
            error = np.abs(np.log(out[f"{name}_s"] / table[f"{name}_s"]))
            use = rows & known if name == "ttft" else rows
            losses.append(np.average(error[use], weights=weights(nets[use])))
        best |= dict(zip(names, points[int(np.argmin(losses))].tolist(), strict=True))
    return best


def weights(nets: np.ndarray) -> np.ndarray:
    """Return weights of rows, such that each network weighs alike."""
    names, index, counts = np.unique(nets, return_inverse=True, return_counts=True)
    return 1.0 / (counts[index] * len(names))


def quantiles(values: np.ndarray, weight: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """Weighted quantiles."""
    order = np.argsort(values)
    total = np.cumsum(weight[order]) - 0.5 * weight[order]
    return np.interp(at, total / weight.sum(), values[order])


if __name__ == "__main__":
    main()
