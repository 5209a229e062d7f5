"""Scores of the serving model on measured points, networks never seen.

    python benchmarks/serving_accuracy.py [--data FILE.csv] [--out DIR]

Split unseen_network: constants of engines are fitted on Llama-3.1, Qwen3-32B and gpt-oss alone, all
other networks are scored. Copies are dropped. Rows whose workers nobody stated are answered with
the nearest published recipe (assumed) and scored too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ridgecast.accuracy.serving import TRAIN_MODELS, network
from ridgecast.scenario.measured import answer_rows, rows_of
from ridgecast.store import import_files, select, write_table
from ridgecast.store.importers.inferencex import assume

DATA = Path(__file__).resolve().parents[2] / "shared/data/silicon/serving_end_to_end.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    table = import_files([a.data])
    table = select(table, np.flatnonzero(table["valid"].astype(bool)))
    known = np.isfinite(np.where(table["mode"] == "agg", table["tp"], table["decode_tp"]))
    table = assume(table)
    found = answer_rows(rows_of(table))
    train = np.isin([network(m) for m in table["model"]], TRAIN_MODELS)
    agg = table["mode"] == "agg"
    told = np.isfinite(found["tpot_s"])
    print(f"rows {len(told)} after copies, answered {told.mean():.1%}")
    for reason in sorted(set(found["reason"][~told].tolist()))[:8]:
        print("  no answer:", reason[:150], int((found["reason"] == reason).sum()))
    parts = {
        "all networks": train | ~train, "train networks": train, "unseen_network": ~train,
        "unseen_network, aggregated": ~train & agg,
        "unseen_network, layout stated or published": ~train & known,
        "unseen_network, prefill and decode apart": ~train & ~agg,
    }  # fmt: skip
    for name in ("tpot", "ttft"):
        truth = table[f"{name}_s"]
        for part, rows in parts.items():
            show(f"{name} {part}", truth, found, name, rows & told)
        for engine in ("vllm", "sglang", "trtllm"):
            rows = ~train & agg & told & (table["engine"] == engine)
            show(f"{name} unseen_network, aggregated, {engine}", truth, found, name, rows)
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        both = {**table, **{f"our_{k}": v for k, v in found.items()}}
        write_table(a.out / "serving.parquet", both)


def show(title: str, truth: np.ndarray, found: dict, name: str, rows: np.ndarray) -> None:
    """Print median, MAPE, p90, bias and coverage of the 90 % intervals."""
    t, p = truth[rows], found[f"{name}_s"][rows]
    low, high = found[f"{name}_low_s"][rows], found[f"{name}_high_s"][rows]
    error = np.abs(p / t - 1.0)
    inside = (t >= low) & (t <= high)
    print(f"{title:58s} rows {len(t):5d}  median {np.median(error):6.1%}  MAPE {error.mean():6.1%}"
          f"  p90 {np.quantile(error, 0.9):6.1%}  bias {np.median(np.log(p / t)):+.3f}"
          f"  covered {inside.mean():6.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
