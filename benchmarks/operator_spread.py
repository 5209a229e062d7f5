"""How far measured operations lie from their analytic time: the spread of basis `analytic`.

    python benchmarks/operator_spread.py [--data DIR]
    python benchmarks/operator_spread.py --streaming [--data ROOT of aiconfigurator-core's tables]

Quantiles of measured / `kernels.operator.analytic_time` over the tables of attention, MoE and
collectives, each device and operation weighing alike; predict.operators holds the last line.
--streaming: the same of kernels that stream arrays once (static fp8 quantisation: 2 bytes read and
1 written an element), each device and framework weighing alike. SGLang's rows are left out: they
are 14 to 22 times slower than the memory, a fall-back that no engine would serve with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ship_operators import DATA, FOLDERS, files_of

from ridgecast.hardware import get, resolve
from ridgecast.kernels.operator import analytic_time
from ridgecast.ops.base import Work
from ridgecast.predict.operator_model import operator_rows
from ridgecast.store import import_files

PROBABILITIES = (0.005, 0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975, 0.995)


def streaming(root: Path) -> None:
    """Spread of `scale_matrix` rows."""
    import pyarrow.parquet as pq

    rng, parts = np.random.default_rng(0), []
    for path in sorted(root.glob("*/quantize/*/*/scale_matrix_perf.parquet")):
        device, framework = path.relative_to(root).parts[0], path.parts[-3]
        if framework == "sglang":
            continue
        table = pq.read_table(path)
        cells = np.multiply(table["m"].to_numpy(), table["k"].to_numpy(), dtype=np.float64)
        work = Work({"vector": 2.0 * cells}, 2.0 * cells, cells)
        ratio = table["latency"].to_numpy() * 1e-3 / analytic_time(work, resolve(device))
        parts.append(rng.choice(ratio, 1500))
        print(f"{framework:8s}{device:20s}{len(ratio):6d}  {quantiles(ratio)}", flush=True)
    print(tuple(quantiles(np.concatenate(parts)).tolist()))


def quantiles(ratio: np.ndarray) -> np.ndarray:
    return np.quantile(ratio, PROBABILITIES).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--streaming", action="store_true")
    a = parser.parse_args()
    if a.streaming:
        return streaming(a.data)
    rng, parts = np.random.default_rng(0), []
    for op in FOLDERS:
        devices = len(files_of(a.data, op))
        for paths in files_of(a.data, op).values():
            table = import_files([p for p in paths if "custom" not in p])
            device = str(table["hardware"][0])
            rows = operator_rows(table, op, get(device))
            ratio = rows.time / rows.terms["together"]
            parts.append(rng.choice(ratio, 2000))
            print(f"{op:12s}{device:14s}{len(ratio):8d}  {quantiles(ratio)}", flush=True)
        print(op, tuple(quantiles(np.concatenate(parts[-devices:])).tolist()), flush=True)
    print(tuple(quantiles(np.concatenate(parts)).tolist()))
    return None


if __name__ == "__main__":
    main()
