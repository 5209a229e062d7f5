"""CLBlast's Xgemm kernel: what its fourteen parameters cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..hardware import Hardware
from .bound import Cache
from .config import ClblastConfig
from .constants import WAVEFRONT, latency_of
from .cost import KernelCost, Plan, cost_of, rows_of
from .occupancy import Occupancy, occupancy
from .problem import Problem
from .tile import FMA_LATENCY, simt_rate, warp_issue_rate

__all__ = ["clblast", "clblast_plan"]

FloatArray = npt.NDArray[np.float64]
REGISTERS = 26.0  # addresses and counters (assumed, as for the SIMT kernel)
SPILL_COST = 2.0  # a spilt access takes a tag and a data pass of the L1 (assumed)
BANKS = 32.0  # shared-memory banks of 4 bytes (spec: CUDA C++ Programming Guide)
VECTOR_BYTES = 16.0  # widest load of one thread (spec: PTX ISA, ld.v4.f32)
L1_COST = (
    1.0  # an L1 hit against a shared access: one data path (spec: sm_70 and later whitepapers)
)


def _f(x: object) -> FloatArray:
    return np.asarray(x, np.float64)


def _wavefronts(rows: FloatArray, stride: FloatArray, vector: FloatArray) -> FloatArray:
    """Shared-memory cycles of one warp-wide vector load.

    `rows` threads of the warp want different vectors, `stride` words apart; the rest repeat
    them. Banks covered: those that a stride reaches, 32 / gcd(stride, 32), times the vector.
    """
    reach = BANKS / np.gcd(stride.astype(np.int64), 32)
    banks = np.minimum(np.minimum(reach, rows) * vector, BANKS)
    return np.maximum(rows * vector / banks, np.ceil(rows * vector / BANKS))


def clblast_plan(c: ClblastConfig, hardware: Hardware, p: Problem) -> tuple[Plan, Occupancy]:
    """Describe one work-group of Xgemm and its residency.

    A thread keeps MWG/MDIMC x NWG/NDIMC outputs and per k one vector column of A and row of B,
    read from shared memory (SA, SB = 1) or through the L1; without STRM or STRN neighbours read
    MWI or NWI words apart, which conflicts in the banks. Nothing is prefetched: each KWG step
    waits for its loads, and each KWI group for the on-chip latency. Outputs that do not fit in
    255 registers spill, a load and a store per FMA. Source: Nugteren 2018, CLBlast (IWOCL),
    kernel files xgemm_part1 to xgemm_part3. Raises UnsupportedError for GEMMK = 1.
    """
    if np.any(np.asarray(c.GEMMK) != 0):
        raise UnsupportedError("clblast.GEMMK: only kernel 0 (the regular one) has a model")
    sms, warp = float(hardware.sm_count), float(hardware.sm.warp_size)
    mwg, nwg, kwg = _f(c.MWG), _f(c.NWG), _f(c.KWG)
    mdim, ndim, vwm, vwn = _f(c.MDIMC), _f(c.NDIMC), _f(c.VWM), _f(c.VWN)
    sa, sb = _f(c.SA), _f(c.SB)
    threads = mdim * ndim
    warps = np.ceil(threads / warp)
    mwi, nwi = mwg / mdim, nwg / ndim
    words = p.a_size / 4.0
    wanted = (mwi * nwi + mwi + nwi) * np.maximum(words, 1.0) + REGISTERS
    registers = np.minimum(np.ceil(wanted), hardware.sm.max_registers_per_thread)
    spilt = np.maximum(wanted - registers, 0.0)
    shared_bytes = kwg * (sa * mwg * p.a_size + sb * nwg * p.b_size)
    fit = occupancy(hardware.sm, threads=threads, registers=registers, shared_bytes=shared_bytes)

    rate = simt_rate(hardware, p.dtype)
    fma = 2.0 * warps * warp * mwi * nwi * kwg / (rate / sms)
    wide_m = np.minimum(vwm, VECTOR_BYTES / p.a_size)
    wide_n = np.minimum(vwn, VECTOR_BYTES / p.b_size)
    stage_a, stage_b = sa * mwg * kwg / threads / wide_m, sb * nwg * kwg / threads / wide_n
    loads_a, loads_b = kwg * mwi / wide_m, kwg * nwi / wide_n
    spills = 2.0 * kwg * spilt
    instructions = warps * (
        kwg * mwi * nwi + loads_a + loads_b + 2.0 * (stage_a + stage_b) + spills
        + 4.0 * kwg / _f(c.KWI)
    )  # fmt: skip
    compute = np.maximum(fma, instructions / warp_issue_rate(hardware))

    rows_a = np.minimum(mdim, warp)
    rows_b = np.maximum(warp / mdim, 1.0)
    step_a = np.where(_f(c.STRM) == 1.0, vwm, mwi) * np.maximum(words, 1.0)
    step_b = np.where(_f(c.STRN) == 1.0, vwn, nwi) * np.maximum(words, 1.0)
    cycles = loads_a * _wavefronts(rows_a, step_a, wide_m) * np.where(sa == 1.0, 1.0, L1_COST)
    cycles = cycles + loads_b * _wavefronts(rows_b, step_b, wide_n) * np.where(
        sb == 1.0, 1.0, L1_COST
    )
    cycles = cycles + (stage_a * wide_m + stage_b * wide_n) * (1.0 + L1_COST)
    traffic = warps * (cycles + SPILL_COST * spills) * WAVEFRONT

    latency = latency_of(hardware)
    on_chip = (latency.shared * (sa + sb) + latency.l1 * (2.0 - sa - sb)) / 2.0
    stall = (on_chip * kwg / _f(c.KWI) + latency.shared) / hardware.clock
    free = np.minimum(1.0, warps * np.minimum(mwi * nwi / FMA_LATENCY, 1.0) / 4.0)
    plan = Plan(
        mwg, nwg, kwg, fit.blocks_per_sm.astype(np.float64), compute,
        traffic / (hardware.shared.bandwidth / sms), compute / free, rate,
        stall=stall, shared_traffic=traffic, registers=registers, shared_bytes=shared_bytes,
    )  # fmt: skip
    return plan, fit


def clblast(
    p: Problem, config: ClblastConfig, hardware: Hardware, cache: Cache = "hot"
) -> KernelCost:
    """Return the cost of CLBlast's Xgemm; shapes and configurations broadcast.

    >>> from ridgecast.hardware import get
    >>> from ridgecast.kernels import problem
    >>> c = clblast(problem(4096, 4096, 4096, dtype="fp32"), ClblastConfig(), get("rtx_4070"))
    >>> float(c.blocks), float(c.registers)
    (4096.0, 106.0)
    """
    plan, fit = clblast_plan(config, hardware, p)
    return cost_of(rows_of(p, hardware, cache), plan, fit)
