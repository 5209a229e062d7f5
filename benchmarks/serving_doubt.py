"""How far predictions move when the workers of a disaggregated point are those of a near recipe.

    python benchmarks/serving_doubt.py [--data FILE.csv]

Points whose recipe is known, with their layout hidden and all recipes of their own concurrency left
out, as `inferencex.assume` fills what exports do not say. Compares predictions with predictions: no
measured time is read. Prints quantiles of log(with the nearest / with the true recipe), of which
scenario/measured.py holds the ends (_NEAREST).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
from serving_accuracy import DATA

from ridgecast.scenario.measured import answer_rows, rows_of
from ridgecast.store import Table, import_files, select
from ridgecast.store.importers import inferencex
from ridgecast.store.tables import text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    table = import_files([a.data])
    small = [any(n in m.lower() for n in ("deepseek", "gpt-oss")) for m in table["model"]]
    known = (table["layout_source"] != "") & np.isfinite(table["decode_workers"]) & np.array(small)
    table = select(table, np.flatnonzero(known & table["valid"].astype(bool)))
    true, near = answer_rows(rows_of(table)), answer_rows(rows_of(_hidden(table)))
    for name in ("tpot_s", "ttft_s"):
        moved = np.log(near[name] / true[name])
        moved = moved[np.isfinite(moved)]
        ends = np.quantile(moved, (0.05, 0.5, 0.95)).round(2)
        print(f"{name}: {len(moved)} points, 5, 50, 95 % of log(near / true) {ends}")


def _hidden(table: Table) -> Table:
    """Give the table with layouts from the nearest recipe of another concurrency."""
    rows = len(table["model"])
    bare = {n: np.full(rows, np.nan) if n.startswith(("prefill_", "decode_"))
            and not n.endswith("_devices") else v for n, v in table.items()}  # fmt: skip
    bare |= {"devices": np.full(rows, np.nan), "layout_source": text("", rows)}
    every, parts = inferencex.recipes(), []
    for i in range(rows):
        one = select(bare, np.array([i]))
        load = float(one["concurrency"][0])
        others = {key: found for key, found in every.items() if key[6] != load}
        with patch.object(inferencex, "recipes", lambda others=others: others):
            parts.append(inferencex.assume(one))
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


if __name__ == "__main__":
    main()
