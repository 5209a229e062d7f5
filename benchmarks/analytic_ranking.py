"""What physics alone is worth when it ranks configurations: measured CLBlast timings against it.

For every device of the Kernel Tuner table: how far log(measured / analytic) spreads around the
device's own median (ANALYTIC_ERROR of `predict.tune`), the measured time of the configuration that
the physics ranks first over the best (ANALYTIC_LOSS), and the quantiles of measured / analytic
(what ANALYTIC_SPREAD of `predict.ladder` must hold). Run:

    python benchmarks/analytic_ranking.py ../shared/data/kernel_tuner/gemm.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ridgecast.hardware import get
from ridgecast.kernels import ClblastConfig, clblast, problem
from ridgecast.predict.config_rows import usable_rows
from ridgecast.store import import_files, select

PARAMETERS = [name for name in ClblastConfig.__dataclass_fields__ if name not in ("GEMMK", "KREG")]


def device_scores(table: dict, device: str) -> dict[str, float]:
    """Scores of one device's rows; shares and ratios, all dimensionless."""
    config = ClblastConfig(**{p: table[p.lower()].astype(np.int64) for p in PARAMETERS})
    p = problem(table["m"], table["n"], table["k"], dtype="fp32")
    analytic = clblast(p, config, get(device)).time
    keep = np.isfinite(analytic)
    time, analytic = table["time_s"][keep], analytic[keep]
    ratio = np.log(time / analytic)
    low, middle, high = np.exp(np.quantile(ratio, (0.05, 0.5, 0.95)))
    return {
        "rows": len(time),
        "error": float(np.median(np.abs(ratio - np.median(ratio)))),
        "loss": float(time[np.argmin(analytic)] / time.min()),
        "p05": float(low),
        "p50": float(middle),
        "p95": float(high),
    }


def main(path: Path) -> None:
    """Print a line a device, then the medians."""
    table = usable_rows(import_files([path]))
    names = table["hardware"].astype(str)
    found = {d: device_scores(select(table, names == d), d) for d in np.unique(names)}
    print(f"{'device':16} {'rows':>7} {'error':>6} {'loss':>6}   measured / analytic p5 p50 p95")
    for device, s in found.items():
        spread = " ".join(f"{s[q]:5.2f}" for q in ("p05", "p50", "p95"))
        print(f"{device:16} {s['rows']:7} {s['error']:6.3f} {s['loss']:6.2f}   {spread}")
    errors, losses = ([s[k] for s in found.values()] for k in ("error", "loss"))
    print(f"rows {sum(s['rows'] for s in found.values())}, median error {np.median(errors):.3f}")
    print(f"loss: least {min(losses):.2f}, median {np.median(losses):.2f}, most {max(losses):.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
