"""How far measured operations lie from their analytic time: the spread of basis `analytic`.

    python benchmarks/operator_spread.py [--data DIR]

Quantiles of measured / `kernels.operator.analytic_time` over the tables of attention, MoE and
collectives, each device and operation weighing alike; predict.operators holds the last line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ship_operators import DATA, FOLDERS, files_of

from ridgecast.hardware import get
from ridgecast.predict.operator_model import operator_rows
from ridgecast.store import import_files

PROBABILITIES = (0.005, 0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975, 0.995)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    rng, parts = np.random.default_rng(0), []
    for op in FOLDERS:
        for paths in files_of(a.data, op).values():
            table = import_files([p for p in paths if "custom" not in p])
            device = str(table["hardware"][0])
            rows = operator_rows(table, op, get(device))
            ratio = rows.time / rows.terms["together"]
            parts.append(rng.choice(ratio, 2000))
            found = np.quantile(ratio, PROBABILITIES).round(3)
            print(f"{op:12s}{device:14s}{len(ratio):8d}  {found}", flush=True)
    print(tuple(np.quantile(np.concatenate(parts), PROBABILITIES).round(3).tolist()))


if __name__ == "__main__":
    main()
