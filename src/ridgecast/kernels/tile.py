"""CUTLASS-like tiled kernels, on the SIMT lanes and on the tensor cores.

Owns what one block of such a kernel costs: registers, shared memory, issue slots, on-chip
traffic. Time and waves are `cost`'s.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import UnsupportedError
from ..hardware import Hardware
from .bound import Cache
from .config import SimtConfig, TensorConfig
from .constants import latency_of, mma_rows
from .cost import KernelCost, Plan, cost_of, rows_of
from .occupancy import Occupancy, occupancy
from .problem import Problem

__all__ = ["simt", "simt_plan", "simt_rate", "tensor", "tensor_plan", "warp_issue_rate"]

FloatArray = npt.NDArray[np.float64]
_SIMT_FORMATS = ("fp64", "fp32", "fp16", "bf16")
SIMT_OVERHEAD = 26  # registers for addresses and counters (assumed)
TENSOR_OVERHEAD = 40  # registers for addresses, descriptors and counters (assumed)
FMA_LATENCY = 4.0  # cycles from FMA to dependent FMA (measured: Jia et al. 2018, Volta)
MMA_K_BYTES = 32.0  # k extent of one matrix instruction (spec: PTX ISA, mma.m16n8k16 and kin)
FRAGMENT_BUFFERS = 2.0  # fragments are double buffered (CUTLASS, "Efficient GEMM in CUDA")


def simt_rate(hardware: Hardware, dtype: str) -> float:
    """Peak [flop/s] of the SIMT lanes for a format; fp32's where the format has no own rate.

    Raises UnsupportedError for formats that the SIMT lanes do not multiply.
    """
    if hardware.units.get(dtype) == "simt":
        return hardware.rates[dtype]
    if dtype not in _SIMT_FORMATS:
        raise UnsupportedError(
            f"the SIMT lanes of {hardware.name} do not multiply {dtype}; "
            "use the tensor or the library kernel"
        )
    for name in (dtype, "fp32"):
        if hardware.units.get(name) == "simt":
            return hardware.rates[name]
        if name in hardware.other_rates:
            return hardware.other_rates[name]
        if dtype == "fp64":
            break
    raise UnsupportedError(f"{hardware.name} has no SIMT rate for {dtype}")


def warp_issue_rate(hardware: Hardware) -> float:
    """Warp instructions that one SM issues per second.

    NVIDIA: four schedulers a SM, two on P100 (spec: CUDA C++ Programming Guide, compute
    capabilities). Others issue memory and arithmetic instructions side by side: no limit.
    """
    if not hardware.isa.startswith("sm_"):
        return np.inf
    return (2.0 if hardware.isa == "sm_60" else 4.0) * hardware.clock


def _f(x: object) -> FloatArray:
    return np.asarray(x, np.float64)


def simt_plan(c: SimtConfig, hardware: Hardware, p: Problem) -> tuple[Plan, Occupancy]:
    """Describe one block of a SIMT kernel and its residency.

    A thread holds a square register tile of r^2 outputs and per k reads 2 r values from shared
    memory in 16-byte loads, so that r^2 FMAs come with 2 r size / 16 other instructions; lanes of
    a warp that want the same value share one access. Source: CUTLASS, "Efficient GEMM in CUDA".
    """
    sms, warp = float(hardware.sm_count), float(hardware.sm.warp_size)
    tm, tn, tk = _f(c.tile_m), _f(c.tile_n), _f(c.tile_k)
    warps = _f(c.warps_m) * c.warps_n
    threads = warps * warp
    size = max(p.a_size, p.b_size)
    outputs = tm * tn / threads
    r = np.sqrt(outputs)
    words = max(size / 4.0, 1.0)
    registers = np.ceil(outputs * words + FRAGMENT_BUFFERS * 2.0 * r * words + SIMT_OVERHEAD)
    shared_bytes = c.stages * tk * (tm * p.a_size + tn * p.b_size)
    fit = occupancy(hardware.sm, threads=threads, registers=registers, shared_bytes=shared_bytes)

    rate = simt_rate(hardware, p.dtype)
    fma = 2.0 * tm * tn * tk / (rate / sms)
    # packed instructions (half2, dp4a) do several multiply-adds a lane
    packed = max(rate / hardware.rates.get("fp32", rate), 1.0)
    instructions = tk * warps * (outputs / packed + 2.0 * r * size / 16.0)
    compute = np.maximum(fma, instructions / warp_issue_rate(hardware))
    # each warp reads its rows of A and columns of B, each block writes both tiles once
    read = tk * (tm * p.a_size * c.warps_n + tn * p.b_size * c.warps_m)
    traffic = read + tk * (tm * p.a_size + tn * p.b_size)
    busy_warps = np.minimum(1.0, warps * np.minimum(outputs / FMA_LATENCY, 1.0) / 4.0)
    plan = Plan(
        tm, tn, tk, fit.blocks_per_sm.astype(np.float64), compute,
        traffic / (hardware.shared.bandwidth / sms), compute / busy_warps, rate,
        stall=latency_of(hardware).shared / hardware.clock,
        stages=_f(c.stages), split_k=_f(c.split_k), stream_k=np.asarray(c.stream_k) == 1,
        cluster_m=_f(c.cluster_m), cluster_n=_f(c.cluster_n), swizzle=_f(c.swizzle),
        shared_traffic=traffic, registers=registers, shared_bytes=shared_bytes,
    )  # fmt: skip
    return plan, fit


def tensor_plan(c: TensorConfig, hardware: Hardware, p: Problem) -> tuple[Plan, Occupancy]:
    """Describe one block of a tensor-core kernel and its residency.

    Where matrix instructions read shared memory themselves (`mma_rows`), A crosses it once and B
    once per `mma_rows` rows; elsewhere every warp reads its fragments. Accumulators live in
    registers, on data-centre Blackwell in tensor memory. Source: CUTLASS, "Efficient GEMM in
    CUDA"; PTX ISA 8.7. Raises UnsupportedError where the device has no tensor unit for the format.
    """
    if hardware.unit(p.dtype) != "tensor":
        raise UnsupportedError(
            f"{hardware.name} multiplies {p.dtype} on its SIMT lanes; use the simt kernel"
        )
    sms, rate = float(hardware.sm_count), hardware.rate(p.dtype)
    tm, tn, tk = _f(c.tile_m), _f(c.tile_n), _f(c.tile_k)
    warps = _f(c.warps_m) * c.warps_n
    threads = warps * hardware.sm.warp_size
    # operands are multiplied in their compute format, whatever they are stored in
    a, b = p.a_size, max(p.b_size, DTYPES[p.dtype].bits / 8.0)
    direct = mma_rows(hardware)
    outputs = tm * tn / threads
    fragments = (tm / c.warps_m + tn / c.warps_n) * MMA_K_BYTES / 4.0 / hardware.sm.warp_size
    held = outputs * (direct < 128) + FRAGMENT_BUFFERS * fragments * (direct == 0)
    registers = np.ceil(held + TENSOR_OVERHEAD)
    shared_bytes = c.stages * tk * (tm * a + tn * p.b_size)
    fit = occupancy(hardware.sm, threads=threads, registers=registers, shared_bytes=shared_bytes)

    compute = 2.0 * tm * tn * tk / (rate / sms)
    reads_a = _f(c.warps_n) if direct == 0 else _f(1.0)
    reads_b = _f(c.warps_m) if direct == 0 else np.ceil(tm / direct)
    # a pair of blocks on data-centre Blackwell shares one B tile, half in each (cta_group::2)
    pair = np.where((_f(c.cluster_m) > 1.0) & (direct == 128), 0.5, 1.0)
    traffic = tk * (tm * a * (reads_a + 1.0) + tn * b * (reads_b + 1.0) * pair)
    plan = Plan(
        tm, tn, tk, fit.blocks_per_sm.astype(np.float64), compute,
        traffic / (hardware.shared.bandwidth / sms), compute * np.maximum(1.0, 4.0 / warps), rate,
        stall=latency_of(hardware).shared / hardware.clock,
        stages=_f(c.stages), split_k=_f(c.split_k), stream_k=np.asarray(c.stream_k) == 1,
        cluster_m=_f(c.cluster_m), cluster_n=_f(c.cluster_n), swizzle=_f(c.swizzle),
        shared_traffic=traffic, registers=registers, shared_bytes=shared_bytes,
    )  # fmt: skip
    return plan, fit


def simt(p: Problem, config: SimtConfig, hardware: Hardware, cache: Cache = "hot") -> KernelCost:
    """Return the cost of a CUTLASS-like SIMT kernel; shapes and configurations broadcast."""
    plan, fit = simt_plan(config, hardware, p)
    return cost_of(rows_of(p, hardware, cache), plan, fit)


def tensor(
    p: Problem, config: TensorConfig, hardware: Hardware, cache: Cache = "hot"
) -> KernelCost:
    """Return the cost of a CUTLASS-like tensor-core kernel; shapes and configurations broadcast.

    >>> from ridgecast.hardware import get
    >>> from ridgecast.kernels import problem
    >>> c = tensor(problem(4096, 4096, 4096), TensorConfig(128, 128, 64, stages=4), get("h200_sxm"))
    >>> float(c.blocks), bool(c.time > c.compute)
    (1024.0, True)
    """
    plan, fit = tensor_plan(config, hardware, p)
    return cost_of(rows_of(p, hardware, cache), plan, fit)
