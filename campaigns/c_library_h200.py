"""Data set C: the vendor's library on an H200-class GPU, over shapes, formats and layouts.

Time of 1,500 and more (shape, format) pairs hot and a third of them cold; energy of 300 and more,
each measured twice for the noise floor; zeros and sparse operands on 20 of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import runner
from runner import SEED, Campaign, Point, Stage, bound_times

# (n, k) of projections of published dense and MoE transformers, hidden sizes 2,048 to 16,384
WEIGHTS = (
    (4096, 4096), (6144, 4096), (14336, 4096), (28672, 4096), (4096, 14336), (8192, 8192),
    (10240, 8192), (28672, 8192), (8192, 28672), (12288, 4096), (11008, 4096), (4096, 11008),
    (5120, 5120), (13824, 5120), (5120, 13824), (2048, 2048), (7168, 2048), (2048, 7168),
    (7168, 16384), (1536, 7168), (24576, 1536), (3072, 3072), (16384, 16384), (128256, 4096),
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CUBES = (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288)
RAGGED = ((127, 129, 131), (500, 500, 500), (1000, 1000, 1000), (1023, 1025, 1027),
          (17, 4096, 4096),
          (3000, 3000, 3000), (4095, 4097, 4099), (100, 5000, 7000), (8191, 8191, 8191),
          (333, 8192, 1111), (2050, 2050, 2050), (6000, 1000, 9000))  # fmt: skip
DEEP = ((64, 64, 65536), (256, 256, 32768), (1024, 1024, 32768), (128, 8192, 65536),
        (16384, 16384, 64), (32768, 1024, 128), (65536, 256, 256), (8192, 8192, 16))  # fmt: skip
BATCHED = tuple(
    (batch, m, n, k)
    for batch in (8, 32, 128)
    for m, n, k in ((512, 512, 64), (1024, 1024, 128), (64, 2048, 128), (2048, 128, 2048),
                    (1, 4096, 128), (256, 256, 256))
)  # fmt: skip
LONGEST = 0.08  # s: beyond it nothing new is learned
ENERGY, PATTERNS = 320, 20


def gemm(shape: tuple[int, int, int], dtype: str, layout: str = "", **given: Any) -> Point:
    """Point of the library; 8-bit formats want B by columns."""
    layout = layout or ("nt" if dtype in ("fp8_e4m3", "int8") else "nn")
    return Point("library", *shape, dtype, layout=layout, **given)


def allowed(point: Point) -> bool:
    """Whether torch's library calls take the shape (see providers.torch_library)."""
    if point.dtype == "fp8_e4m3":
        return point.n % 16 == 0 and point.k % 16 == 0
    if point.dtype == "int8":
        return point.m > 16 and point.n % 8 == 0 and point.k % 8 == 0
    return True


def time_points() -> list[Point]:
    """Every (shape, format), in an order in which any beginning is spread over all of them."""
    weights = [(m, n, k) for n, k in WEIGHTS for m in ROWS]
    cubes = [(s, s, s) for s in CUBES]
    made = [gemm(s, d) for d in ("bf16", "fp8_e4m3") for s in weights]
    made += [gemm(s, d) for d in ("fp16", "int8", "tf32", "fp32") for s in weights[::2]]
    made += [gemm(s, "fp64") for s in weights[::6]]
    others = cubes + list(RAGGED) + list(DEEP)
    dtypes = ("bf16", "fp8_e4m3", "fp16", "int8", "tf32", "fp32", "fp64")
    made += [gemm(s, d) for d in dtypes for s in others]
    made += [gemm(s, d, layout) for d in ("bf16", "fp32") for s in weights[3::9]
             for layout in ("nt", "tn", "tt")]  # fmt: skip
    made += [Point("library", m, n, k, d, batch=b) for d in ("bf16", "fp16", "tf32", "fp32")
             for b, m, n, k in BATCHED]  # fmt: skip
    made = [p for p in made if allowed(p)]
    kept = [p for p, t in zip(made, bound_times(made), strict=True) if t <= LONGEST]
    return [kept[i] for i in np.random.default_rng(SEED).permutation(len(kept))]


def energy_points(points: list[Point]) -> list[Point]:
    """Spread points over the operations, formats in turn; each repeat comes 20 points later."""
    short = [p for p, t in zip(points, bound_times(points), strict=True) if t <= 0.02]
    dtypes = sorted({p.dtype for p in short})
    per = -(-ENERGY // len(dtypes))
    groups = []
    for dtype in dtypes:
        mine = sorted((p for p in short if p.dtype == dtype), key=lambda p: (p.flops, p.key))
        at = np.unique(np.linspace(0, len(mine) - 1, per).astype(int))
        groups.append([mine[i] for i in np.random.default_rng(SEED).permutation(at)])
    picked = [g[i] for i in range(per) for g in groups if i < len(g)][:ENERGY]
    ordered: list[Point] = []
    for start in range(0, len(picked), 20):  # a repeat comes 20 points after its first
        block = picked[start : start + 20]
        ordered += [again(p, repeat=r, energy=True) for r in range(2) for p in block]
    return ordered


def again(point: Point, **given: Any) -> Point:
    """Point with other demands."""
    same = {name: getattr(point, name) for name in ("m", "n", "k", "dtype", "batch", "layout")}
    return Point(point.kernel, **{**same, **given})


def pattern_points() -> list[Point]:
    """Return the same 20 products with normal, zero and half-zero operands."""
    shapes = [(s, s, s) for s in (1024, 2048, 4096, 8192)] + [(64, 8192, 8192)]
    picked = [gemm(s, d) for d in ("bf16", "fp8_e4m3", "fp32", "int8") for s in shapes][:PATTERNS]
    patterns = ("zeros", "sparse", "normal")
    return [again(p, energy=True, pattern=w, repeat=2) for p in picked for w in patterns]


def campaign() -> Campaign:
    """Stages of the data set."""
    points = time_points()
    micro = [Point(kernel, 1 << size, cache=cache) for kernel in ("copy", "triad")
             for size in (24, 28, 32) for cache in ("hot", "cold")]  # fmt: skip
    micro += [Point("l2_read", 1 << size) for size in (20, 22, 24, 25)] + [Point("launch", 4)]
    stages = [
        Stage("ceilings", "torch", micro),
        Stage("time", "torch", points, {"profile": 0.1}),
        Stage("time-cold", "torch", [again(p, cache="cold") for p in points[::3]]),
        Stage("energy-patterns", "torch", pattern_points()),
        Stage("energy", "torch", energy_points(points)),
    ]
    return Campaign("c_library", "C: library GEMM over shapes and formats", stages, bound_times)


if __name__ == "__main__":
    sys.exit(runner.run(campaign()))
