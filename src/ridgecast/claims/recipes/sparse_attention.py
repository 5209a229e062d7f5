"""Kernels of block-sparse attention that choose blocks for each query."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...hardware import Hardware
from ..verdict import Finding, Found, NotModelled, Property
from .kit import device, gemm_work, reached, span, time_of

__all__ = ["flash_sparse_attention"]

_TOKENS, _HEADS, _DIM = 65536, 32, 128
_FEWEST = 16  # rows of the smallest product that the matrix unit runs
_GROUPS = (1, 2, 4, 8)  # query heads that share a head of keys, as in the source
_BLOCKS = ((64, 16), (128, 8))  # tokens of a block, blocks that a query picks


def _kernels(hw: Hardware, group: int, block: int, picks: int) -> tuple[float, float]:
    """Seconds of one layer's selected attention: queries outside, and blocks outside.

    Queries outside: each query of a group fetches its blocks (through the L2) and multiplies them
    by rows padded to 16. Blocks outside: the queries that picked a block fill its tiles; each pair
    of query and block reads the query (16 bits), writes a partial result and reads it again (fp32).
    """
    kv = _HEADS // group
    pairs = _TOKENS * kv * picks * 1.0
    rate = hw.rate("bf16")
    each = 4.0 * block * _DIM / rate
    fetched = pairs * block * 2.0 * _DIM * 2.0
    l2: Any = hw.l2.bandwidth
    outer = max(pairs * max(group, _FEWEST) * each, fetched / l2)
    moved = pairs * group * _DIM * (2.0 + 4.0 + 4.0) + _TOKENS * kv * 2.0 * _DIM * 2.0
    inner = max(pairs * group * each, moved / hw.memory.bandwidth)
    return outer, inner + 2.0 * hw.launch_latency


def flash_sparse_attention() -> list[Found]:
    """Swap the loops of native sparse attention; 64K tokens, 32 heads, H100 and H200."""
    kernel: dict[str, float] = {}
    prefill: dict[str, float] = {}
    wide: dict[int, list[float]] = {64: [], 128: []}
    for on in ("h100_sxm", "h200_sxm"):
        hw = device(on)
        for block, picks in _BLOCKS:
            for group in (*_GROUPS, 16):
                width = (_HEADS + 2 * _HEADS // group) * _DIM
                shapes = ((width, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
                rest = sum(float(time_of(gemm_work(_TOKENS, n, k), hw)) for n, k in shapes)
                outer, inner = _kernels(hw, group, block, picks)
                if group == 16:
                    wide[block].append(outer / inner)
                    continue
                place = f"groups of {group}, blocks of {block}, {on}"
                kernel[place] = outer / inner
                prefill[place] = (rest + outer) / (rest + inner)
    where = "64K tokens, 1 to 8 query heads a head of keys, blocks of 64 and 128, H100 and H200"
    note = "all fetches of the baseline go at the speed of the L2 here, so that few heads a group "
    note += "lose more than published"
    means = [float(np.exp(np.mean(np.log(list(found.values()))))) for found in (kernel, prefill)]
    return [
        Finding(0, span(list(kernel.values())), at=reached(list(kernel.values()), 3.5, kernel),
                range=where),
        Finding(1, means[0], at="geometric mean of all", range=where, note=note),
        NotModelled(2, "a training run"),
        NotModelled(3, "a training run"),
        Finding(4, span(list(prefill.values())), at=reached(list(prefill.values()), 1.36, prefill),
                range=where + "; a layer of an 8B model"),
        Finding(5, means[1], at="geometric mean of all", range=where, note=note),
        Property("with 16 heads a group and blocks of 64 nothing is gained", max(wide[64]) < 1.0,
                 f"{min(wide[64]):.3g} to {max(wide[64]):.3g}; {min(wide[128]):.3g} to "
                 f"{max(wide[128]):.3g} with blocks of 128"),
    ]  # fmt: skip
