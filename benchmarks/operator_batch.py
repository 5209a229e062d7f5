"""Rows a second of batch tables that mix GEMM and other operations, with intervals.

    python benchmarks/operator_batch.py [--rows 200000] [--model DIR]

One table of GEMM, decode and prefill attention, MoE and collectives on one device; best of five
calls, models loaded before. Goal: 100 thousand rows a second on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import ridgecast as rc


def table_of(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows: half GEMM, a quarter attention, an eighth each MoE and collectives."""
    rng = np.random.default_rng(seed)
    op = rng.choice(["gemm", "attention", "moe", "collective"], rows, p=[0.5, 0.25, 0.125, 0.125])
    out: dict[str, np.ndarray] = {
        "op": op.astype(object), "hardware": np.full(rows, "h200_sxm", object),
        "dtype": np.where(op == "collective", "fp16", "bf16").astype(object),
    }  # fmt: skip
    decode = rng.random(rows) < 0.5
    kv = np.round(2.0 ** rng.uniform(4, 14, rows))
    heads = 2.0 ** rng.integers(0, 4, rows)
    fields = {
        "gemm": {n: np.round(2.0 ** rng.uniform(5, 13, rows)) for n in "mnk"},
        "attention": {
            "batch": 2.0 ** rng.integers(0, 5, rows), "q_len": np.where(decode, 1.0, kv),
            "kv_len": kv, "kv_heads": heads, "q_heads": heads * 4, "head_dim": np.full(rows, 128.0),
        },
        "moe": {
            "num_tokens": 2.0 ** rng.integers(0, 14, rows), "hidden": np.full(rows, 4096.0),
            "inter": np.full(rows, 1536.0), "experts": np.full(rows, 128.0),
            "top_k": np.full(rows, 8.0), "ep": 2.0 ** rng.integers(0, 4, rows),
        },
        "collective": {"bytes": 2.0 ** rng.integers(10, 28, rows),
                       "gpus": 2.0 ** rng.integers(1, 4, rows)},
    }  # fmt: skip
    for name, columns in fields.items():
        for key, values in columns.items():
            known = out.get(key, np.full(rows, np.nan))
            out[key] = np.where(op == name, values, known)
    words = {"kind": ("collective", "all_reduce")}
    return out | {k: np.where(op == n, v, "").astype(object) for k, (n, v) in words.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--model", type=Path)
    a = parser.parse_args()
    table = table_of(a.rows)
    rc.predict_table({k: v[:1000] for k, v in table.items()}, model=a.model)
    best = np.inf
    for _ in range(5):
        begun = time.perf_counter()
        done = rc.predict_table(table, model=a.model)
        best = min(best, time.perf_counter() - begun)
    for name in np.unique(table["op"].astype(str)):
        rows = table["op"] == name
        basis, counts = np.unique(done["basis"][rows].astype(str), return_counts=True)
        good = (done["status"][rows] == "ok").mean()
        print(f"{name:12s}{rows.sum():8d} rows, {100 * good:.1f} % answered: "
              f"{dict(zip(basis.tolist(), counts.tolist(), strict=True))}")  # fmt: skip
    print(f"{a.rows / best:,.0f} rows/s with intervals, best of five")


if __name__ == "__main__":
    main()
