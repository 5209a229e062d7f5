"""Fit the constants of engine profiles on measured points of the training networks.

    python benchmarks/fit_serving.py [--data FILE.csv] [--model DIR]

Aggregated points of Llama-3.1, Qwen3-32B and gpt-oss, copies dropped; each network weighs alike;
the loss is the mean |log(predicted / measured)|, for times to the first token of the points whose
protocol is published (InferenceX). Host time of a prefill's kernel is fitted by engine (vLLM
compiles passes, TensorRT-LLM does not); that of a pass apart for InferenceX and for the machines
of the other campaign. Prints what scenario/engines.toml and scenario/measured.py hold, the same
with one network left out at a time and how well that serves the one left out, and the factors
between which 90 % of the points of a network lie that nothing was fitted on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from serving_accuracy import DATA

from ridgecast.accuracy.serving import TRAIN_MODELS, network
from ridgecast.scenario.measured import Row, answer, prepare, rows_of
from ridgecast.store import import_files, select

LAUNCH = np.arange(0, 81e-6, 5e-6)
EAGER = "trtllm"  # launches a prefill's kernels one by one, as other engines do but vLLM
WAIT = np.arange(0, 8.1, 0.5)
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
    fast = campaign(table)
    rows = rows_of(table)
    if a.model:
        rows = [replace(r, scenario=replace(r.scenario, trained=a.model)) if isinstance(r, Row)
                else r for r in rows]  # fmt: skip
    prepared = prepare(rows)
    best = fitted(prepared, table, nets, fast, np.ones(len(nets), bool))
    print("all:", shown(best))
    out = answers(prepared, best, table)
    unseen = {name: out[name].copy() for name in out}
    for left in TRAIN_MODELS:
        found = fitted(prepared, table, nets, fast, nets != left)
        print(f"without {left}:", shown(found))
        own = answers(prepared, found, table)
        print(*(f"  {t}: median {100 * median(own[f'{t}_s'], table[f'{t}_s'], nets == left):.1f} % "
                f"({100 * median(out[f'{t}_s'], table[f'{t}_s'], nets == left):.1f} % with it)"
                for t in ("tpot", "ttft")), sep="\n")  # fmt: skip
        for name, values in unseen.items():
            values[nets == left] = own[name][nets == left]
    for name in ("tpot", "ttft"):  # each network with the constants of the others
        ratio = np.log(table[f"{name}_s"] / unseen[f"{name}_s"])
        print(f"{name}: ends for a new network, measured / predicted {ends(ratio, nets).round(3)}")


def shown(best: dict[str, Any]) -> dict[str, Any]:
    """Constants, rounded."""
    return {k: shown(v) if isinstance(v, dict) else round(v, 8) for k, v in best.items()}


def fitted(
    prepared: Any, table: Any, nets: np.ndarray, fast: np.ndarray, rows: np.ndarray
) -> dict[str, Any]:
    """Search the grids; `local_host` is the host time of points that are not of InferenceX.

    `prefill_launch` is by engine.
    """
    best: dict[str, Any] = {}
    for _ in range(ROUNDS):
        passes = {k: best[k] for k in ("decode_factor", "pass_host") if k in best}
        best |= first_token(prepared, table, nets, rows & fast, passes)
        kept = {"pass_wait": best["pass_wait"]}
        found = []
        for factor in FACTOR:
            times = [answer(*prepared, kept | {"decode_factor": factor, "pass_host": h})["tpot_s"]
                     for h in HOST]  # fmt: skip
            ends = []
            for part in (rows & fast, rows & ~fast):
                each = [loss(t, table["tpot_s"], nets, part, rows) for t in times]
                at = int(np.argmin(each))
                ends.append((each[at], float(HOST[at])))
            found.append((ends[0][0] + ends[1][0], float(factor), ends[0][1], ends[1][1]))
        _, factor, host, local = min(found)
        best |= {"decode_factor": factor, "pass_host": host, "local_host": local}
    return best


def first_token(
    prepared: Any, table: Any, nets: np.ndarray, rows: np.ndarray, kept: dict[str, float]
) -> dict[str, Any]:
    """Search what a request waits for, and each engine's host time of a prefill's kernel."""
    engines = table["engine"].astype(str)
    found = []
    for wait in WAIT:
        times = [answer(*prepared, kept | {"prefill_launch": x, "pass_wait": wait})["ttft_s"]
                 for x in LAUNCH]  # fmt: skip
        total, launch = 0.0, {}
        for name in np.unique(engines[rows]):
            each = [loss(t, table["ttft_s"], nets, rows & (engines == name), rows) for t in times]
            total, launch[str(name)] = total + min(each), float(LAUNCH[int(np.argmin(each))])
        found.append((total, float(wait), launch))
    _, wait, launch = min(found, key=lambda each: each[0])
    return {"prefill_launch": launch, "pass_wait": wait}


def answers(prepared: Any, best: dict[str, Any], table: Any) -> dict[str, np.ndarray]:
    """Answer all rows, each with the host time of its campaign and its engine's launches."""
    engines = table["engine"].astype(str)
    fast = campaign(table)
    out = {k: np.full(len(fast), np.nan) for k in ("ttft_s", "tpot_s")}
    for name in np.unique(engines):
        for part, host in ((fast, "pass_host"), (~fast, "local_host")):
            launch = best["prefill_launch"].get(str(name), best["prefill_launch"][EAGER])
            own = answer(*prepared, {
                "pass_wait": best["pass_wait"], "decode_factor": best["decode_factor"],
                "pass_host": best[host], "prefill_launch": launch,
            })  # fmt: skip
            rows = part & (engines == name)
            for k, values in out.items():
                values[rows] = own[k][rows]
    return out


def campaign(table: Any) -> np.ndarray:
    """Tell points of InferenceX, whose protocol is published."""
    return np.array([str(c).startswith("inferencex") for c in table["collection"]])


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
