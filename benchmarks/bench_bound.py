"""Rows per second of the bound and of the library model's analytic time.

Run: python benchmarks/bench_bound.py [rows] [threads]
"""

from __future__ import annotations

import itertools
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ridgecast.hardware import get
from ridgecast.kernels import bound
from ridgecast.kernels.library import library_time


def main(rows: int = 1_000_000, threads: int = 1) -> None:
    rng = np.random.default_rng(0)
    m, n, k = (np.floor(2.0 ** rng.uniform(0, 16, rows)) for _ in range(3))
    hardware = get("h200_sxm")
    edges = np.linspace(0, rows, threads + 1).astype(int)
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]

    def both(part: slice) -> None:
        library_time(m[part], n[part], k[part], hardware=hardware)

    def only_bound(part: slice) -> None:
        bound(m[part], n[part], k[part], hardware=hardware)

    for label, work in (("bound", only_bound), ("bound + library time", both)):
        seconds = []
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(3):
                start = time.perf_counter()
                list(pool.map(work, parts))
                seconds.append(time.perf_counter() - start)
        print(f"{label:22s} {rows / min(seconds):12,.0f} rows/s, {threads} thread(s)")


if __name__ == "__main__":
    main(*(int(x) for x in sys.argv[1:]))
