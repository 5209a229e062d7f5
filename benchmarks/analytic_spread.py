"""Measured over analytic time: the quantiles behind ANALYTIC_SPREAD of `predict.ladder`.

python benchmarks/analytic_spread.py [--data ../shared/data]

Library GEMMs in bf16 against `kernels.library_time`, CLBlast SGEMM configurations against
`kernels.clblast`; each device weighs alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ridgecast.hardware import get
from ridgecast.kernels import ClblastConfig, clblast, library_time, problem
from ridgecast.predict.ladder import ANALYTIC_SPREAD
from ridgecast.store import Table, import_files, select

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PROBABILITIES = (0.005, 0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975, 0.995)
ROWS = 3000


def ratios_of_library(table: Table, hardware: str) -> np.ndarray:
    _, time, _ = library_time(table["m"], table["n"], table["k"], hardware=get(hardware))
    return table["time_s"] / time


def ratios_of_clblast(table: Table, hardware: str) -> np.ndarray:
    names = [f for f in ClblastConfig.__dataclass_fields__ if f not in ("GEMMK", "KREG")]
    config = ClblastConfig(**{f: table[f.lower()].astype(np.int64) for f in names})
    p = problem(table["m"], table["n"], table["k"], dtype="fp32")
    return table["time_s"] / clblast(p, config, get(hardware)).time


def pooled(table: Table, ratios, label: str) -> None:
    """Print quantiles over devices, each with the same number of rows."""
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    for name in sorted(set(table["hardware"].tolist())):
        at = rng.permutation(np.flatnonzero(table["hardware"] == name))[:ROWS]
        found = ratios(select(table, at), name)
        found = found[np.isfinite(found)]
        parts.append(rng.choice(found, ROWS))
        print(f"  {name:18s}{np.median(found):8.3f} median")
    quantiles = np.quantile(np.concatenate(parts), PROBABILITIES).round(3)
    print(f"{label}: {quantiles.tolist()}\n  in use: {list(ANALYTIC_SPREAD[label])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args().data
    files = [
        *sorted(data.glob("silicon/*/gemm/*vllm-0.24.0.parquet")),
        *sorted(data.glob("silicon/a100_sxm/gemm/*.parquet")),
        *sorted(data.glob("silicon/b60/gemm/*.parquet")),
    ]
    table = import_files(files)
    keep = (table["dtype"] == "bf16") & np.asarray(table["valid"], bool)
    pooled(select(table, keep), ratios_of_library, "library")
    table = import_files([data / "kernel_tuner" / "gemm.parquet"])
    pooled(select(table, np.asarray(table["valid"], bool)), ratios_of_clblast, "tiles")


if __name__ == "__main__":
    main()
