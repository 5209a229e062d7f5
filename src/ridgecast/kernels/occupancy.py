"""How many blocks of a kernel fit on one SM, and which resource says so.

Owns the CUDA occupancy rules. Knows no shape, no format and no time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..hardware import SmLimits

__all__ = ["OCCUPANCY_LIMITERS", "Occupancy", "occupancy"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
OCCUPANCY_LIMITERS = ("registers", "shared_memory", "threads", "blocks")


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Blocks resident on one SM; every field is an array of the broadcast shape.

    `blocks_per_sm` is 0 where a block does not fit at all, `occupancy` resident warps over the
    most an SM holds, `limiter_code` an index into OCCUPANCY_LIMITERS.
    """

    blocks_per_sm: IntArray
    occupancy: FloatArray
    limiter_code: IntArray

    @property
    def limiter(self) -> npt.NDArray[np.str_]:
        """Name of the scarcest resource."""
        return np.asarray(OCCUPANCY_LIMITERS)[self.limiter_code]


def _ceil_to(value: FloatArray, unit: float) -> FloatArray:
    return np.ceil(value / unit) * unit


def occupancy(
    sm: SmLimits,
    *,
    threads: npt.ArrayLike,
    registers: npt.ArrayLike,
    shared_bytes: npt.ArrayLike,
) -> Occupancy:
    """Return the blocks of `threads` threads that one SM holds at once.

    `registers` are 32-bit registers per thread, `shared_bytes` shared memory per block; scalars
    or arrays that broadcast. Registers are granted to whole warps in steps of `sm.register_unit`,
    shared memory in steps of `sm.shared_unit`; the fewest of the four quotients wins, ties go to
    the first of OCCUPANCY_LIMITERS. A block beyond a per-block limit gets 0.
    Source: CUDA C++ Programming Guide, "Hardware Multithreading" and "Compute Capabilities"; the
    allocation units are those of NVIDIA's CUDA_Occupancy_Calculator.

    A100: 8 warps of 128 registers take 32,768 of 65,536 registers, so two blocks fit:

    >>> from ridgecast.hardware import get
    >>> o = occupancy(get("a100_sxm").sm, threads=256, registers=128, shared_bytes=48 * 1024)
    >>> int(o.blocks_per_sm), float(o.occupancy), str(o.limiter)
    (2, 0.25, 'registers')
    """
    t, r, s = np.broadcast_arrays(
        np.asarray(threads, np.float64),
        np.asarray(registers, np.float64),
        np.asarray(shared_bytes, np.float64),
    )
    warps = np.ceil(t / sm.warp_size)
    per_warp = _ceil_to(np.maximum(r, 1.0) * sm.warp_size, sm.register_unit)
    by_registers = np.floor(np.floor(sm.registers / per_warp) / warps)
    granted = np.maximum(_ceil_to(s, sm.shared_unit), sm.shared_unit)
    by_shared = np.where(s > 0, np.floor(sm.shared_memory / granted), np.inf)
    by_threads = np.floor(np.floor(sm.max_threads / sm.warp_size) / warps)
    by_blocks = np.full_like(warps, sm.max_blocks)
    # a block that breaks a per-block limit never starts, whatever the SM has left
    by_registers = np.where(r > sm.max_registers_per_thread, 0.0, by_registers)
    by_shared = np.where(s > sm.max_shared_per_block, 0.0, by_shared)
    by_threads = np.where(t > sm.max_threads_per_block, 0.0, by_threads)
    choices = np.stack([by_registers, by_shared, by_threads, by_blocks])
    blocks = choices.min(axis=0)
    resident = blocks * warps / (sm.max_threads / sm.warp_size)
    return Occupancy(blocks.astype(np.int64), resident, choices.argmin(axis=0))
