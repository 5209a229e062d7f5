"""Data set A: the naive tiled kernel on an H200-class GPU, tile side 1 to 32, fp32.

Time of every tile that is bearable on every size, hot and partly cold; then energy, the powers of
two first. Rows carry registers, shared memory, blocks on an SM and occupancy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import runner
from runner import TARGET, Campaign, Point, Stage

TILES = (16, 32, 8, 4, 2, 1)
OTHER_TILES = (3, 5, 6, 7, 10, 12, 14, 20, 24, 28)
SQUARES = (512, 1024, 2048, 4096, 8192, 768, 1536, 3072, 6144)
RAGGED = (511, 513, 1000, 1023, 1025, 2047, 2049, 3000, 4095, 4097, 5000, 8191)
FLAT = ((8192, 512, 512), (512, 8192, 512), (512, 512, 8192), (4096, 4096, 512),
        (4096, 512, 4096), (2048, 8192, 1024), (1000, 3000, 2000), (100, 8192, 8192))  # fmt: skip
LONGEST = 1.0  # s that one run may take by the analytic model: a smaller size tells the same


def tiled_times(points: Sequence[Point]) -> np.ndarray:
    """Time of a run [s] by the analytic model of the tiled kernel."""
    from ridgecast.hardware import get
    from ridgecast.kernels import TiledConfig, problem, tiled

    m, n, k = (np.array([getattr(p, name) for p in points]) for name in ("m", "n", "k"))
    tiles = TiledConfig(np.array([p.config["tile"] for p in points], np.int64))
    hardware = get(TARGET.hardware)
    return np.asarray(tiled(problem(m, n, k, dtype="fp32"), tiles, hardware).time, np.float64)


def points(shapes: list[tuple[int, int, int]], tiles: tuple[int, ...], **given: Any) -> list:
    """Points of every shape and tile whose run is not too long, each shape's together."""
    made = [
        Point("tiled", *shape, "fp32", config={"tile": tile}, **given)
        for shape in shapes
        for tile in tiles
    ]
    return [p for p, t in zip(made, tiled_times(made), strict=True) if t <= LONGEST]


def campaign() -> Campaign:
    """Stages of the data set."""
    squares = [(s, s, s) for s in SQUARES]
    ragged = [(s, s, s) for s in RAGGED]
    every = squares + ragged + list(FLAT)
    some = squares[:4] + ragged[:6] + list(FLAT[:3])
    repeats = [
        p for r in range(1, 3) for p in points(squares[1:4], (8, 16, 32), energy=True, repeat=r)
    ]
    stages = [
        Stage("time", "cuda", points(every, TILES), variants=len(TILES)),
        Stage("time-other-tiles", "cuda", points(some, OTHER_TILES), variants=len(OTHER_TILES)),
        Stage("time-cold", "cuda", points(squares[:5], TILES, cache="cold")),
        Stage("energy", "cuda", points(squares, TILES, energy=True)),
        Stage("energy-repeats", "cuda", repeats),
        Stage("energy-ragged", "cuda", points(ragged + list(FLAT), (8, 16, 32), energy=True)),
    ]
    return Campaign("a_tiled", "A: tiled kernel, fp32, tile side 1..32", stages, tiled_times)


if __name__ == "__main__":
    sys.exit(runner.run(campaign()))
