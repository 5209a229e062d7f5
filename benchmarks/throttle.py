"""Derive how far clocks give way to the power cap: sustained against short runs of the same GEMMs.

    python benchmarks/throttle.py [--data FOLDER]

FOLDER holds h200_sxm/gemm and b200_sxm/gemm of the AIConfigurator tables (Apache-2.0): version
0.24.0 in short runs, 0.22.0 in runs of seconds at the power cap. For rows of 30 us and longer whose
demand is above 1 and whose utilisation of the rate above 0.35, the exponent of
`ridgecast.predict.throttle` follows from each pair of times. Printed beside it: the public best
GEMMs of three pairs of devices that share a chip and differ in board power (S. Bekman, Machine
Learning Engineering, maximum achievable matmul FLOPS), which the exponent was not derived from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ridgecast.hardware import get
from ridgecast.predict.power import PowerModel
from ridgecast.predict.power_calibrate import predicted_power
from ridgecast.predict.power_rows import power_rows
from ridgecast.predict.throttle import ELASTICITY, REACHABLE, stretch
from ridgecast.store import import_files

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "silicon"
# of one chip: device, watts and best Tflop/s in bf16, then the same of the other
PAIRS = (
    ("a100_sxm", 400.0, 271.2, 300.0, 252.9),
    ("h100_sxm", 700.0, 794.5, 900.0, 828.6),
    ("b200_sxm", 1000.0, 1745.0, 1200.0, 1822.0),
)


def exponents(data: Path) -> None:
    """Print quantiles of the exponent by device and format."""
    tables = [
        [str(data / device / "gemm" / f"gemm-vllm-{version}.parquet")
         for device in ("h200_sxm", "b200_sxm")] for version in ("0.22.0", "0.24.0")
    ]  # fmt: skip
    rows = power_rows(import_files(tables[0]), import_files(tables[1]), 0, 0.0)
    demand = predicted_power(PowerModel.load(), rows, rows.burst)["demand"]
    ratio, used = rows.time / rows.burst, rows.work[:, 0] / rows.burst
    for h, name, here in rows.groups():
        if name == "fp8_block":  # its short runs hold host time
            continue
        at = here & (rows.burst > 30e-6) & (used > 0.35) & (demand > 1.0)
        share = np.minimum(used[at] / REACHABLE, 1.0)
        slower = np.sqrt(np.maximum(1.0 + (ratio[at] ** 2 - 1.0) / share**2, 0.25))
        found = np.log(slower) / np.log(demand[at])
        told = ", ".join(f"{q:.2f}" for q in np.quantile(found, (0.1, 0.25, 0.5, 0.75, 0.9)))
        print(f"{h.name} {name}: {at.sum()} rows, exponent at 10, 25, 50, 75, 90 %: {told}")


def pairs() -> None:
    """Print the best GEMMs of pairs beside what the exponent says."""
    for name, watts, best, other, rate in PAIRS:
        device, power = get(name), PowerModel.load().basis_of(get(name))
        used = np.array([best * 1e12 / device.rate("bf16")])
        demand = power.demand((used, 0.0 * used, 0.0 * used), power.coefficient("bf16"))
        capped = power.capped(other / watts)
        now = capped.demand((used, 0.0 * used, 0.0 * used), capped.coefficient("bf16"))
        told = [best / float(stretch(now, demand, used, e)[0]) for e in ELASTICITY]
        print(f"{name} at {other:.0f} W: {told[0]:.0f} Tflop/s ({min(told):.0f} to "
              f"{max(told):.0f}), public {rate:.0f}; {best:.0f} at {watts:.0f} W")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args().data
    if (data / "h200_sxm").exists():
        exponents(data)
    else:
        print(f"{data} has no tables; give --data")
    pairs()


if __name__ == "__main__":
    main()
