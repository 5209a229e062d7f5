"""Time of one prediction: warm, and the first in a process.

    python benchmarks/single.py [--model DIR] [--runs 200]

Goal, warm: 1 ms for `predict` with time, power, energy and their intervals. The shapes differ from
run to run, so that nothing can be looked up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import ridgecast as rc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--on", default="h200_sxm")
    a = parser.parse_args()
    seconds = []
    basis: dict[str, int] = {}
    for i in range(a.runs + 1):
        op = rc.Gemm(1000 + 7 * i, 4096 + 64 * (i % 50), 4096, dtype="bf16")
        start = time.perf_counter()
        p = rc.predict(op, on=a.on, model=a.model)
        seconds.append(time.perf_counter() - start)
        basis[p.basis] = basis.get(p.basis, 0) + 1
    warm = sorted(seconds[1:])
    standing = ", ".join(f"{count} {name}" for name, count in basis.items())
    print(f"predictions: {standing}")
    print(f"first in the process {1e3 * seconds[0]:8.2f} ms (reads the models)")
    print(f"warm, median         {1e3 * statistics.median(warm):8.2f} ms (goal 1)")
    print(f"warm, 9 of 10 below  {1e3 * warm[int(0.9 * len(warm))]:8.2f} ms")


if __name__ == "__main__":
    main()
