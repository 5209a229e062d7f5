"""Data set B: tensor-core configurations of Triton and CUTLASS on an H200-class GPU, bf16 and fp8.

3,000 and more (configuration, size) pairs hot, a third of them cold, sizes from decode (m = 1 to
64) to 8192 cubed; then energy of the fastest and the slowest configuration of every size and of a
spread between them, 320 in all. CUTLASS's products must be compiled first (--build-only, half an
hour of one core) or are compiled beside the measuring; without headers or nvcc its points are
refused with the reason.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import runner
from runner import SEED, Campaign, Point, Rows, Stage, bound_times

from ridgecast.measure.providers.cutlass import build_bundles
from ridgecast.measure.providers.cutlass_driver import complaint, instance_of
from ridgecast.measure.providers.triton_matmul import shared_estimate, triton_config, variant

DECODE = ((4096, 4096), (14336, 4096), (8192, 28672))  # (n, k)
SIZES = (
    *((m, n, k) for n, k in DECODE for m in (1, 4, 8, 16, 32, 64)),
    (128, 4096, 4096), (256, 14336, 4096), (512, 4096, 14336), (512, 8192, 8192),
    (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192),
    (2048, 28672, 8192), (8192, 1024, 8192), (1000, 3000, 2000), (3072, 3072, 12288),
)  # fmt: skip
DTYPES = ("bf16", "fp8_e4m3")
LAYOUT = {"bf16": "nn", "fp8_e4m3": "nt"}
PER_SIZE = 44  # Triton configurations of each size and format
MOST_SHARED = 232448
SMS = 132
ENERGY = 320
_ACCUMULATORS = (16, 256)  # fp32 sums of a thread, least and most


def triton_pool(dtype: str) -> list[dict[str, int]]:
    """Kernels that are compiled: tiles, warps, stages and grouping that fit on an SM."""
    deep = 2 if dtype == "fp8_e4m3" else 1
    made = [
        triton_config((tm, tn, tk * deep), num_warps=warps, stages=stages, group_m=group)
        for tm in (16, 32, 64, 128, 256)
        for tn in (32, 64, 128, 256)
        for tk in (32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3, 4, 5)
        for group in (1, 8)
    ]
    return [c for c in made if _fits(c, dtype)]


def _fits(config: dict[str, int], dtype: str) -> bool:
    threads = 32 * config["warps_m"] * config["warps_n"]
    sums = config["tile_m"] * config["tile_n"] / threads
    inside = _ACCUMULATORS[0] <= sums <= _ACCUMULATORS[1]
    return inside and shared_estimate(config, dtype) <= MOST_SHARED


def triton_points() -> list[Point]:
    """Of each size a sample of the pool, spread over the tiles that suit it, split where few."""
    rng = np.random.default_rng(SEED)
    made: list[Point] = []
    for dtype in DTYPES:
        pool = triton_pool(dtype)
        # one draw of the pool serves all sizes: a kernel is compiled once and runs on many
        pool = [pool[i] for i in rng.permutation(len(pool))[:240]]
        for m, n, k in SIZES:
            suits = [c for c in pool if c["tile_m"] <= max(16, 2 * m)]
            for i in rng.permutation(len(suits))[:PER_SIZE]:
                config = dict(suits[i])
                tiles = -(-m // config["tile_m"]) * -(-n // config["tile_n"])
                steps = -(-k // config["tile_k"])
                parts = [s for s in (1, 2, 4, 8, 16) if s <= max(2 * SMS / tiles, 1) and s <= steps]
                config["split_k"] = int(rng.choice(parts))
                made.append(Point("triton", m, n, k, dtype, layout=LAYOUT[dtype], config=config))
    return _shuffled(made)


def cutlass_pool(dtype: str) -> list[dict[str, int]]:
    """Products that are compiled: warp groups of both schedules, and mma.sync for bf16."""
    wide = 128 if dtype == "fp8_e4m3" else 64
    tiles = {(64, 64): (4,), (64, 128): (3, 5), (64, 256): (4,), (128, 64): (4,),
             (128, 128): (3, 5), (128, 256): (3,), (256, 128): (3,)}  # fmt: skip
    made: list[dict[str, int]] = []
    for (tm, tn), stages in tiles.items():
        clusters = ((1, 1), (2, 1), (1, 2)) if tm * tn >= 128 * 128 else ((1, 1), (2, 1))
        made += [
            {
                "tile_m": tm, "tile_n": tn, "tile_k": wide, "warps_m": warps, "warps_n": 1,
                "stages": depth, "inst_m": 64, "inst_n": tn, "inst_k": wide // 4,
                "cluster_m": cluster[0], "cluster_n": cluster[1],
            }
            for warps in (4, 8)
            if tm // warps >= 16 and tm * tn // (32 * warps) <= 256
            for cluster in clusters
            for depth in stages
        ]  # fmt: skip
    if dtype == "bf16":
        made += [
            {"tile_m": tm, "tile_n": tn, "tile_k": tk, "warps_m": wm, "warps_n": wn,
             "stages": stages, "inst_m": 16, "inst_n": 8, "inst_k": 16}
            for tm, tn, wm, wn in ((64, 64, 2, 2), (64, 128, 2, 2), (128, 128, 2, 2),
                                   (128, 256, 2, 4), (256, 128, 4, 2), (16, 128, 1, 4))
            for tk in (32, 64)
            for stages in (3, 4, 5)
        ]  # fmt: skip
    return made


def cutlass_points() -> list[Point]:
    """Every product on the sizes that suit its tile, the run-time columns drawn."""
    rng = np.random.default_rng(SEED + 1)
    made: list[Point] = []
    for dtype in DTYPES:
        for config in cutlass_pool(dtype):
            suits = [s for s in SIZES if config["tile_m"] <= max(64, 2 * s[0])]
            at = np.unique(np.linspace(0, len(suits) - 1, 9).astype(int))
            made += [_cutlass_point(suits[i], dtype, config, rng) for i in at]
    return _shuffled([p for p in made if not complaint(p)])


def _cutlass_point(
    size: tuple[int, int, int], dtype: str, config: dict[str, int], rng: np.random.Generator
) -> Point:
    m, n, k = size
    given = dict(config)
    tiles = -(-m // config["tile_m"]) * -(-n // config["tile_n"])
    grouped = config["inst_m"] == 64
    divides = not grouped or (config["warps_m"] == 8 and config["cluster_m"] == 1)
    if tiles < SMS and divides and rng.random() < 0.5:
        if grouped and rng.random() < 0.5:
            given["stream_k"] = 1
        else:
            given["split_k"] = int(rng.choice([2, 4, 8]))
    given["swizzle"] = int(rng.choice([1, 2, 4, 8])) if grouped else 1
    return Point("cutlass_tensor", m, n, k, dtype, layout=LAYOUT[dtype], config=given)


def _shuffled(points: list[Point]) -> list[Point]:
    """Points without repeats, in an order whose beginning is spread over everything."""
    unique = list({p.key: p for p in points}.values())
    return [unique[i] for i in np.random.default_rng(SEED).permutation(len(unique))]


def again(point: Point, **given: Any) -> Point:
    """Point with other demands."""
    names = ("m", "n", "k", "dtype", "layout", "config")
    return Point(point.kernel, **{**{name: getattr(point, name) for name in names}, **given})


def energy_points(rows: Rows, hot: Sequence[Point]) -> list[Point]:
    """For each size and format the fastest, the slowest, then a spread between; best value first.

    From what was measured: nothing before the time stages, the same again once they are done.
    """
    groups: dict[tuple[object, ...], list[Point]] = {}
    for point in hot:
        if point.key in rows.time:
            groups.setdefault((point.dtype, point.m, point.n, point.k), []).append(point)
    picked: dict[str, Point] = {}
    for share in (0.0, 1.0, 0.5, 0.25, 0.75, 0.1, 0.05, 0.9, 0.4, 0.6):
        for group in groups.values():
            ordered = sorted(group, key=lambda p: (rows.time[p.key], p.key))
            point = ordered[round(share * (len(ordered) - 1))]
            picked.setdefault(point.key, point)
    return [again(p, energy=True) for p in list(picked.values())[:ENERGY]]


def build(options: argparse.Namespace, stages: Sequence[Stage]) -> None:
    """Compile CUTLASS's products beside the measuring, where headers and nvcc are."""
    if options.libraries is None:
        print("CUTLASS: --libraries FOLDER says where its compiled products are", file=sys.stderr)
        return
    del stages
    try:
        wanted = [instance_of(p) for p in cutlass_points()[: options.limit]]
        report = build_bundles(
            wanted, folder=options.libraries, include=options.include, workers=options.workers
        )
    except runner.RidgecastError as error:
        print(f"CUTLASS: {error}", file=sys.stderr)
        return
    took = f", {sum(report.seconds):.0f} s of compiling" if report.seconds else ""
    print(f"CUTLASS: {report.built} built, {report.present} there{took}", file=sys.stderr)
    for symbol, reason in report.failed.items():
        print(f"CUTLASS: {symbol}: {reason.splitlines()[0]}", file=sys.stderr)


def campaign() -> Campaign:
    """Stages of the data set."""
    triton, cutlass = triton_points(), cutlass_points()
    kernels = len({variant(p) for p in triton})
    products = len({instance_of(p).symbol for p in cutlass})
    cold = [[again(p, cache="cold") for p in points[::3]] for points in (triton, cutlass)]

    def energy(kernel: str) -> runner.Chosen:
        return lambda rows: [
            p for p in energy_points(rows, [*triton, *cutlass]) if p.kernel == kernel
        ]

    stages = [
        Stage("time-triton", "triton", triton, variants=kernels),
        Stage("time-cutlass", "cutlass", cutlass, variants=products),
        Stage("cold-triton", "triton", cold[0]),
        Stage("cold-cutlass", "cutlass", cold[1]),
        Stage("energy-triton", "triton", energy("triton"), expected=ENERGY // 2),
        Stage("energy-cutlass", "cutlass", energy("cutlass_tensor"), expected=ENERGY // 2),
    ]
    title = "B: tensor-core configurations of Triton and CUTLASS, bf16 and fp8"
    return Campaign("b_tensor", title, stages, bound_times, before=build)


if __name__ == "__main__":
    sys.exit(runner.run(campaign()))
