"""What the utilisation models of library GEMMs see: dimensionless numbers from shape and device.

Owns the feature list and the analytic time that every learned model corrects: the best of a few
library tiles, with split-K where blocks are fewer than SMs. Vectorised over shapes for one device;
fits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..hardware import Hardware
from ..kernels.problem import Problem

__all__ = ["NAMES", "TREE_ONLY", "Features", "gemm_features"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# (tile_m, tile_n) of a block: the sizes that cuBLAS and CUTLASS ship for tensor cores.
# Source: CUTLASS profiler's default tensor-op instances (spec).
TILES = (
    (256, 128), (128, 256), (128, 128), (64, 256), (256, 64), (128, 64), (64, 128), (64, 64),
    (32, 64), (64, 32), (16, 64), (32, 128), (128, 32),
)  # fmt: skip
_SHOWN = ((256, 128), (128, 256), (128, 128), (64, 128), (128, 64), (64, 64), (16, 64))
_ROUND = (16, 32, 64, 128, 256)
_K_STEP = 64.0  # elements of k that one main-loop step takes (assumed: 128 B rows of bf16)
_WAVE_COST = 3e-7  # s, prologue and epilogue of one wave (assumed; the learned part corrects it)
_SPLIT_COST = 1e-6  # s, the extra reduction pass of split-K (assumed, likewise)
_HALF_RATE_TILE = 64.0  # a tile reuses each operand enough at tm*tn/(tm+tn) = 64 (assumed)

NAMES: tuple[str, ...] = (
    "log_m", "log_n", "log_k", "log_flops", "log_bytes", "intensity_over_ridge",
    "all_over_l2", "b_over_l2", "a_over_l2", "out_over_l2",
    "log_mn", "m_over_k", "n_over_k", "m_over_n",
    *(f"{what}_{a}x{b}" for a, b in _SHOWN for what in ("waves", "tail", "last_wave")),
    *(f"waste_{side}{t}" for t in _ROUND for side in "mn"),
    "best_over_bound", "best_waves", "best_tail", "log_analytic", "m_even", "m_by_8",
    "best_tile", "best_split", "log_batch",
)  # fmt: skip
TREE_ONLY: tuple[str, ...] = ("best_tile", "best_split", "best_waves", "best_tail")
"""Columns that jump: trees cut on them, a smooth network is better off without."""


@dataclass(frozen=True, slots=True)
class Features:
    """`values` [rows, len(NAMES)] float32, and `analytic` [rows] seconds."""

    values: F32
    analytic: F64


def _best_tile(
    p: Problem, hw: Hardware, blocks: dict[tuple[int, int], F32], stream: F32
) -> tuple[F32, F32, F32, F32]:
    """Time [s], tile index, split and waves of the fastest tile; `stream` is the memory time.

    A block of tile (a, b) takes 2 a b k / (rate per SM) or, if larger, (a + b) k bytes through its
    share of the L2; blocks run in ceil(waves). Source: tile quantisation and wave quantisation,
    NVIDIA Matrix Multiplication Background User's Guide; the roofline, Williams et al. 2009.
    """
    per_sm = hw.rate(p.dtype) / hw.sm_count
    l2_per_sm = hw.l2.bandwidth / hw.sm_count
    k = p.k.astype(np.float32)
    size = np.float32(max(p.a_size, p.b_size))
    reduce_bytes = (8.0 / hw.l2.bandwidth * p.batch * p.m * p.n).astype(np.float32)
    rows = len(k)
    best = np.full(rows, np.inf, np.float32)
    tile = np.zeros(rows, np.float32)
    split = np.ones(rows, np.float32)
    waves = np.ones(rows, np.float32)
    for index, (a, b) in enumerate(TILES):
        w1 = blocks[a, b] / np.float32(hw.sm_count)
        reuse = min(1.0, (a * b / (a + b)) / _HALF_RATE_TILE) ** 0.5
        compute = np.float32(2.0 * a * b / per_sm / reuse)
        traffic = np.float32((a + b) * size / l2_per_sm)
        # the power of two that brings the blocks nearest to one wave, at most 32
        wanted = np.exp2(np.floor(-np.log2(np.clip(w1, 1.0 / 32.0, 1.0))))
        for s in (np.float32(1.0), wanted):
            w = w1 * s
            steps = np.ceil(k / (s * np.float32(_K_STEP))) * np.float32(_K_STEP)
            full = np.ceil(w)
            t = full * (
                steps * np.maximum(compute, traffic * np.minimum(w, np.float32(1.0)))
                + np.float32(_WAVE_COST)
            )
            if s is wanted:
                t += np.where(s > 1, s * reduce_bytes + np.float32(_SPLIT_COST), np.float32(0))
            np.maximum(t, stream, out=t)
            better = t < best
            best[better] = t[better]
            tile[better] = index
            waves[better] = w[better]
            split[better] = s[better] if s is wanted else 1.0
    return best, tile, split, waves


def gemm_features(p: Problem, hw: Hardware) -> Features:
    """Features and analytic time of GEMMs (one format) on one device.

    `p` holds float64 arrays [rows]. Raises UnsupportedError when the device lacks the format.
    """
    rate = hw.rate(p.dtype)
    ridge_flops, bandwidth, l2 = rate * hw.launch_latency, hw.memory.bandwidth, hw.l2.capacity
    a_bytes = p.batch * p.m * p.k * p.a_size
    b_bytes = p.batch * p.k * p.n * p.b_size
    out_bytes = p.batch * p.m * p.n * p.out_size
    moved = a_bytes + b_bytes + out_bytes
    flops = p.flops
    compute, stream = flops / rate, moved / bandwidth
    blocks = {
        (a, b): (p.batch * np.ceil(p.m / a) * np.ceil(p.n / b)).astype(np.float32) for a, b in TILES
    }
    best, tile, split, waves = _best_tile(p, hw, blocks, stream.astype(np.float32))
    analytic = best.astype(np.float64) + hw.launch_latency

    out = np.empty((len(NAMES), len(p.m)), np.float32)
    lm, ln, lk = (np.log2(x.astype(np.float32)) for x in (p.m, p.n, p.k))
    lf, lb = np.log2(flops.astype(np.float32)), np.log2(moved.astype(np.float32))
    l2_bits = np.float32(np.log2(l2))
    log_batch = np.log2(p.batch.astype(np.float32))
    size = [np.float32(np.log2(x)) for x in (p.a_size, p.b_size, p.out_size)]
    columns: list[F32] = [
        lm, ln, lk,
        lf - np.float32(np.log2(ridge_flops)),
        lb - np.float32(np.log2(bandwidth * hw.launch_latency)),
        lf - lb - np.float32(np.log2(rate / bandwidth)),
        lb - l2_bits,
        lk + ln + log_batch + size[1] - l2_bits,
        lm + lk + log_batch + size[0] - l2_bits,
        lm + ln + log_batch + size[2] - l2_bits,
        lm + ln, lm - lk, ln - lk, lm - ln,
    ]  # fmt: skip
    sms = np.float32(hw.sm_count)
    for shape in _SHOWN:
        w = blocks[shape] / sms
        full = np.ceil(w)
        columns += [np.log2(w), np.log2(full / w), w - np.floor(w)]
    for t in _ROUND:
        for x in (p.m, p.n):
            columns.append((np.ceil(x / t) * t / x).astype(np.float32))
    bound = np.maximum(compute, stream).astype(np.float32)
    columns += [
        np.log2(best / bound), np.log2(waves), np.log2(np.ceil(waves) / waves),
        np.log2(analytic.astype(np.float32)),
        (p.m % 2 == 0).astype(np.float32), (p.m % 8 == 0).astype(np.float32),
        tile, np.log2(split), log_batch,
    ]  # fmt: skip
    for i, column in enumerate(columns):
        out[i] = column
    return Features(np.ascontiguousarray(out.T), analytic)
