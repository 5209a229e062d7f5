"""Fit the constants of engine profiles on measured points of the training networks.

    python benchmarks/fit_serving.py [--data FILE.csv] [--model DIR]

Aggregated points of Llama-3.1, Qwen3-32B and gpt-oss, copies dropped; each network weighs alike;
the loss is the mean |log(predicted / measured)|, for times to the first token of the points whose
protocol is published (InferenceX). Host time of a pass is fitted apart for InferenceX and for the
machines of the other campaign. Prints what scenario/engines.toml and scenario/measured.py hold, the
same with one network left out at a time and how well that serves the one left out, and the factors
between which 90 % of the points lie when their network was left out.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from serving_accuracy import DATA

from ridgecast.accuracy.serving import TRAIN_MODELS, network
from ridgecast.scenario.measured import Row, answer, prepare, rows_of
from ridgecast.store import import_files, select

FIRST = {
    "prefill_launch": np.arange(0, 61e-6, 5e-6),
    "pass_wait": np.arange(0, 8.1, 0.5),
}
FACTOR = np.arange(0.9, 1.101, 0.01)
HOST = np.arange(0, 1.61e-3, 0.1e-3)
_T95 = {3: 2.920, 4: 2.353, 5: 2.132}  # 95 % of Student's t by number of networks
ROUNDS = 2  # of fitting time to the first token, then time per token: each changes the other a bit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path)
    a = parser.parse_args()
    table = import_files([a.data])
    nets = np.array([network(m) for m in table["model"]])
    use = np.isin(nets, TRAIN_MODELS) & table["valid"].astype(bool) & (table["mode"] == "agg")
    table, nets = select(table, np.flatnonzero(use)), nets[use]
    fast = np.array([str(c).startswith("inferencex") for c in table["collection"]])
    rows = rows_of(table)
    if a.model:
        rows = [replace(r, scenario=replace(r.scenario, trained=a.model)) if isinstance(r, Row)
                else r for r in rows]  # fmt: skip
    prepared = prepare(rows)
    best = fitted(prepared, table, nets, fast, np.ones(len(nets), bool))
    print("all:", {k: round(v, 8) for k, v in best.items()})
    out = answers(prepared, best, fast)
    unseen = {name: out[name].copy() for name in out}
    for left in TRAIN_MODELS:
        found = fitted(prepared, table, nets, fast, nets != left)
        print(f"without {left}:", {k: round(v, 8) for k, v in found.items()})
        own = answers(prepared, found, fast)
        print(*(f"  {t}: median {100 * median(own[f'{t}_s'], table[f'{t}_s'], nets == left):.1f} % "
                f"({100 * median(out[f'{t}_s'], table[f'{t}_s'], nets == left):.1f} % with it)"
                for t in ("tpot", "ttft")), sep="\n")  # fmt: skip
        for name, values in unseen.items():
            values[nets == left] = own[name][nets == left]
    for name in ("tpot", "ttft"):  # each network with the constants of the others
        ratio = np.log(table[f"{name}_s"] / unseen[f"{name}_s"])
        print(f"{name}: ends for a new network, measured / predicted {ends(ratio, nets).round(3)}")


def fitted(
    prepared: Any, table: Any, nets: np.ndarray, fast: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """Search the grids; `local_host` is the host time of points that are not of InferenceX."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        kept = {k: v for k, v in best.items() if k not in FIRST and k != "local_host"}
        points = [dict(zip(FIRST, p, strict=True)) for p in product(*FIRST.values())]
        chosen = rows & fast
        losses = [loss(answer(*prepared, kept | p)["ttft_s"], table["ttft_s"], nets, chosen)
                  for p in points]  # fmt: skip
        best |= points[int(np.argmin(losses))]
        kept = {k: best[k] for k in FIRST}
        found = []
        for factor in FACTOR:
            times = [answer(*prepared, kept | {"decode_factor": factor, "pass_host": h})["tpot_s"]
                     for h in HOST]  # fmt: skip
            ends = []
            for part in (rows & fast, rows & ~fast):
                each = [loss(t, table["tpot_s"], nets, part, rows) for t in times]
                at = int(np.argmin(each))
                ends.append((each[at], float(HOST[at])))
            total = ends[0][0] + ends[1][0]
            found.append((total, float(factor), ends[0][1], ends[1][1]))
        _, factor, host, local = min(found)
        best |= {"decode_factor": factor, "pass_host": host, "local_host": local}
    return best


def answers(prepared: Any, best: dict[str, float], fast: np.ndarray) -> dict[str, np.ndarray]:
    """Answer all rows, each with the host time of its campaign."""
    shared = {k: v for k, v in best.items() if k != "local_host"}
    here = answer(*prepared, shared)
    there = answer(*prepared, shared | {"pass_host": best["local_host"]})
    return {k: np.where(fast, here[k], there[k]) for k in ("ttft_s", "tpot_s")}


def loss(
    times: np.ndarray,
    measured: np.ndarray,
    nets: np.ndarray,
    part: np.ndarray,
    whole: np.ndarray | None = None,
) -> float:
    """Weighted mean |log error| of a part of the rows, as its share of the whole's."""
    weight = np.zeros(len(nets))
    rows = part if whole is None else whole
    weight[rows] = weights(nets[rows])
    return float((np.abs(np.log(times / measured)) * weight)[part].sum())


def median(times: np.ndarray, measured: np.ndarray, rows: np.ndarray) -> float:
    """Median relative error of some rows."""
    return float(np.median(np.abs(times / measured - 1.0)[rows]))


def weights(nets: np.ndarray) -> np.ndarray:
    """Return weights of rows, such that each network weighs alike."""
    names, index, counts = np.unique(nets, return_inverse=True, return_counts=True)
    return 1.0 / (counts[index] * len(names))


def ends(ratio: np.ndarray, nets: np.ndarray) -> np.ndarray:
    """Factors that hold 90 % of the points of a network that nothing was fitted on.

    Points scatter about their network (5 and 95 % quantiles), and a new network about all: by
    Student's t with one degree of freedom less than networks, times the spread of their medians.
    """
    names = np.unique(nets)
    middle = np.array([np.median(ratio[nets == n]) for n in names])
    within = quantiles(ratio - middle[np.searchsorted(names, nets)], weights(nets), (0.05, 0.95))
    between = _T95[len(names)] * middle.std(ddof=1) * np.sqrt(1.0 + 1.0 / len(names))
    return np.exp(middle.mean() + np.sign(within) * np.hypot(within, between))


def quantiles(values: np.ndarray, weight: np.ndarray, at: tuple[float, ...]) -> np.ndarray:
    """Weighted quantiles."""
    order = np.argsort(values)
    total = np.cumsum(weight[order]) - 0.5 * weight[order]
    return np.interp(at, total / weight.sum(), values[order])


if __name__ == "__main__":
    main()
