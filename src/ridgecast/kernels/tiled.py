"""The naive shared-memory kernel: square tiles, one thread per output element."""

from __future__ import annotations

import numpy as np

from ..hardware import Hardware
from .bound import Cache
from .config import TiledConfig
from .constants import SECTOR, WAVEFRONT, latency_of
from .cost import KernelCost, Plan, cost_of, rows_of
from .occupancy import Occupancy, occupancy
from .problem import Problem
from .tile import simt_rate, warp_issue_rate

__all__ = ["tiled", "tiled_plan"]

REGISTERS = 32  # one accumulator, addresses and counters (assumed)


def tiled_plan(c: TiledConfig, hardware: Hardware, p: Problem) -> tuple[Plan, Occupancy]:
    """Describe one block of tile x tile threads and its residency.

    Each FMA takes two shared-memory loads of one warp-wide access each, the block waits at two
    barriers per k step and nothing is prefetched; rows of a tile shorter than a 32-byte sector
    waste the rest of it. Source: CUDA C++ Programming Guide, "Shared Memory".
    """
    sms, warp = float(hardware.sm_count), float(hardware.sm.warp_size)
    tile = np.asarray(c.tile, np.float64)
    threads = tile * tile
    warps = np.ceil(threads / warp)
    shared_bytes = threads * (p.a_size + p.b_size)
    fit = occupancy(hardware.sm, threads=threads, registers=REGISTERS, shared_bytes=shared_bytes)

    rate = simt_rate(hardware, p.dtype)
    lanes = warps * warp  # idle lanes of the last warp still take their slots
    fma = 2.0 * lanes * tile / (rate / sms)
    # per step: tile x (FMA + 2 loads), then 2 loads and 2 stores to stage the next tiles
    instructions = warps * (3.0 * tile + 4.0)
    compute = np.maximum(fma, instructions / warp_issue_rate(hardware))
    traffic = warps * (2.0 * tile + 2.0) * WAVEFRONT
    latency = latency_of(hardware)
    busy_warps = np.minimum(1.0, warps / 4.0)
    size = min(p.a_size, p.b_size)
    plan = Plan(
        tile, tile, tile, fit.blocks_per_sm.astype(np.float64), compute,
        traffic / (hardware.shared.bandwidth / sms), compute / busy_warps, rate,
        # one dependent load per barrier; loads within a tile overlap after unrolling
        stall=2.0 * latency.shared / hardware.clock,
        waste=np.maximum(SECTOR / (tile * size), 1.0),
        shared_traffic=traffic, registers=float(REGISTERS), shared_bytes=shared_bytes,
    )  # fmt: skip
    return plan, fit


def tiled(p: Problem, config: TiledConfig, hardware: Hardware, cache: Cache = "hot") -> KernelCost:
    """Return the cost of the naive tiled kernel; shapes and tiles broadcast.

    >>> from ridgecast.hardware import get
    >>> from ridgecast.kernels import problem
    >>> p = problem(1024, 1024, 1024, dtype="fp32")
    >>> c = tiled(p, TiledConfig(16), get("rtx_4070"))
    >>> float(c.blocks), float(c.tile_efficiency), str(c.occupancy_limiter)
    (4096.0, 1.0, 'threads')
    """
    plan, fit = tiled_plan(config, hardware, p)
    return cost_of(rows_of(p, hardware, cache), plan, fit)
