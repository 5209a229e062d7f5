"""From blocks to time: waves, traffic per memory level, overlap and fixed costs.

Owns the one formula set that every kernel model shares; a model only describes its block
(`Plan`). Knows no parameter names of any kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..hardware import Hardware
from .bound import Cache, check_cache
from .constants import latency_of
from .occupancy import OCCUPANCY_LIMITERS, Occupancy
from .problem import Problem

__all__ = ["LIMITERS", "KernelCost", "Plan", "Rows", "Times", "cost_of", "rows_of", "times_of"]

FloatArray = npt.NDArray[np.float64]
Numbers = FloatArray | float
LIMITERS = ("compute", "memory", "l2", "shared", "latency", "tail", "fixup", "launch")
PARTIAL_BYTES = 2.0 * 4.0  # a partial sum is fp32 (the libraries' default), written and read


@dataclass(frozen=True, slots=True)
class Plan:
    """What one block does, in numbers or arrays that broadcast with the problem.

    `compute` and `shared` are the seconds that one k step of one block keeps a whole SM's
    arithmetic or shared memory busy, `alone` the least time of the step when no other block
    helps to hide it, `stall` exposed waiting in each step besides the loads (barriers, on-chip
    latency), `waste` L2 bytes fetched per byte wanted, `blocks_per_sm` residency (0: does not
    fit), `rate` the unit's peak [flop/s].
    """

    tile_m: Numbers
    tile_n: Numbers
    tile_k: Numbers
    blocks_per_sm: Numbers
    compute: Numbers
    shared: Numbers
    alone: Numbers
    rate: float
    stall: Numbers = 0.0
    stages: Numbers = 1.0
    split_k: Numbers = 1.0
    stream_k: Numbers | bool = False
    cluster_m: Numbers = 1.0
    cluster_n: Numbers = 1.0
    swizzle: Numbers = 1.0
    waste: Numbers = 1.0
    shared_traffic: Numbers = 0.0
    registers: Numbers = 0.0
    shared_bytes: Numbers = 0.0


@dataclass(frozen=True, slots=True)
class Rows:
    """What depends on the shape and the device alone, so that candidate tiles can share it."""

    p: Problem
    hardware: Hardware
    a_bytes: FloatArray
    b_bytes: FloatArray
    out_bytes: FloatArray
    unique: FloatArray
    first_touch: FloatArray
    a_lost: FloatArray
    b_lost: FloatArray
    load_latency: FloatArray


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each part and the counts that they come from, as arrays."""

    time: FloatArray
    compute: FloatArray
    memory: FloatArray
    l2: FloatArray
    shared: FloatArray
    busy: FloatArray
    unquantised: FloatArray
    fixup: FloatArray
    prologue: Numbers
    tiles: FloatArray
    steps: FloatArray
    blocks: FloatArray
    memory_bytes: FloatArray
    l2_bytes: FloatArray
    fixup_bytes: FloatArray


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Cost of a kernel on GEMMs; every field is an array of the broadcast shape.

    `flops` counts the tile padding, `useful_flops` does not; `memory_bytes`, `l2_bytes` and
    `shared_traffic` are bytes moved at each level, `fixup_bytes` those of split-K or stream-K
    partial sums (within l2). `waves` is blocks / (SMs x blocks per SM), `tail_efficiency` waves
    over waves rounded up, `tile_efficiency` useful over padded work, `arithmetic_intensity`
    useful flops per unique byte. Times in s: `compute`, `memory`, `l2`, `shared` overlap;
    `latency`, `tail`, `prologue`, `fixup` and `launch` add to the largest of them. `time` is NaN
    where the block does not fit on the device (`feasible` is False).
    """

    flops: FloatArray
    useful_flops: FloatArray
    memory_bytes: FloatArray
    l2_bytes: FloatArray
    shared_traffic: FloatArray
    fixup_bytes: FloatArray
    blocks: FloatArray
    blocks_per_sm: FloatArray
    waves: FloatArray
    tail_efficiency: FloatArray
    tile_efficiency: FloatArray
    arithmetic_intensity: FloatArray
    occupancy: FloatArray
    occupancy_limiter_code: npt.NDArray[np.int64]
    registers: FloatArray
    shared_bytes: FloatArray
    compute: FloatArray
    memory: FloatArray
    l2: FloatArray
    shared: FloatArray
    latency: FloatArray
    tail: FloatArray
    prologue: FloatArray
    fixup: FloatArray
    launch: FloatArray
    time: FloatArray

    @property
    def feasible(self) -> npt.NDArray[np.bool_]:
        """Whether at least one block fits on an SM."""
        return np.asarray(self.blocks_per_sm >= 1)

    @property
    def overlapped(self) -> FloatArray:
        """Time of the slowest of the four units that work side by side [s]."""
        return np.maximum(np.maximum(self.compute, self.memory), np.maximum(self.l2, self.shared))

    def parts(self) -> dict[str, FloatArray]:
        """Return disjoint times [s] that sum to `time`.

        Of the four overlapped units only the slowest is exposed; the others are 0.
        """
        whole = self.overlapped
        parts: dict[str, FloatArray] = {}
        taken = np.zeros(whole.shape, bool)
        for name in LIMITERS[:4]:
            here = (getattr(self, name) == whole) & ~taken
            taken |= here
            parts[name] = np.where(here, whole, 0.0)
        for name in ("latency", "tail", "fixup", "prologue", "launch"):
            parts[name] = getattr(self, name)
        return parts

    @property
    def limiter(self) -> npt.NDArray[np.str_]:
        """Name of the largest exposed part; the prologue counts with the launch."""
        parts = self.parts()
        parts["launch"] = parts["launch"] + parts.pop("prologue")
        stacked = np.stack([np.broadcast_to(parts[n], self.time.shape) for n in LIMITERS])
        return np.asarray(LIMITERS)[stacked.argmax(axis=0)]

    @property
    def occupancy_limiter(self) -> npt.NDArray[np.str_]:
        """Name of the resource that bounds the resident blocks."""
        return np.asarray(OCCUPANCY_LIMITERS)[self.occupancy_limiter_code]


def rows_of(p: Problem, hardware: Hardware, cache: Cache) -> Rows:
    """Return the bytes of each operand and what of them the caches lose.

    Cold runs fetch every unique byte. Hot runs fetch none while all of it fits in the last-level
    cache and all of it from twice that capacity on (a cyclic walk under LRU keeps nothing;
    between the two the share is linear, assumed). An operand re-read by later waves is fetched
    again but for the share that the cache holds, min(1, capacity / size). Blocks of a wave walk k
    together, so each step waits for its slowest load: the memory latency on first touch, else
    that of the L2.
    """
    check_cache(cache)
    a = p.batch * p.m * p.k * p.a_size
    b = p.batch * p.n * p.k * p.b_size
    out = p.batch * p.m * p.n * (p.out_size + p.c_size) + p.epilogue_bytes
    unique = a + b + out
    room = hardware.last_level_cache.capacity
    touch = unique
    if cache == "hot":
        touch = unique * np.clip(unique * (1.0 / room) - 1.0, 0.0, 1.0)
    keep = room * p.batch
    latency = latency_of(hardware)
    near, far = latency.l2 / hardware.clock, latency.memory / hardware.clock
    return Rows(
        p, hardware, a, b, out, unique, touch,
        a_lost=np.maximum(a - keep, 0.0),
        b_lost=np.maximum(b - keep, 0.0),
        load_latency=near + (far - near) * (touch / unique),
    )  # fmt: skip


def _traffic(
    rows: Rows, plan: Plan, tiles_m: FloatArray, tiles_n: FloatArray, resident: Numbers
) -> tuple[FloatArray, FloatArray]:
    """Bytes from L2 and from memory.

    L2: each tile row of A is read once per tile column, m n k (1/tile_n + 1/tile_m) elements in
    all (Goto, van de Geijn 2008, ACM TOMS 34(3)); a cluster shares one read (CUTLASS, multicast).
    Memory: the blocks of one wave cover r x c tiles, so A passes by tiles_n / c times and B
    tiles_m / r times; only what the last-level cache loses between passes is fetched again.
    """
    cm, cn = plan.cluster_m, plan.cluster_n
    reads_a = tiles_n if isinstance(cn, float) and cn == 1.0 else np.ceil(tiles_n / cn)
    reads_b = tiles_m if isinstance(cm, float) and cm == 1.0 else np.ceil(tiles_m / cm)
    l2 = (rows.a_bytes * reads_a + rows.b_bytes * reads_b) * plan.waste + rows.out_bytes
    r = np.minimum(tiles_m, np.maximum(resident / tiles_n, plan.swizzle))
    columns = resident / r
    again_a = np.maximum(tiles_n / columns - 1.0, 0.0)
    again_b = tiles_m / r - 1.0
    memory = rows.first_touch + rows.a_lost * again_a + rows.b_lost * again_b
    return l2, memory


def times_of(rows: Rows, plan: Plan) -> Times:
    """Return the time of each part of a kernel [s].

    A block alone needs `alone` per k step plus the load latency divided by the stages that hide
    it; q blocks on one SM need q times the busiest unit's share, so a wave of q blocks takes
    steps x max(q x unit, alone, (latency + alone) / stages) (Volkov 2016, Understanding Latency
    Hiding on GPUs, UCB/EECS-2016-143; Hong, Kim 2009, ISCA). Full waves hold
    `blocks_per_sm` blocks per SM, the last one ceil(rest / SMs). Stream-K deals single k steps
    to as many blocks as fit and then joins a partial tile per block, where that is the faster way
    (Osama et al. 2023, PPoPP); split-K writes and reads one partial tile per split.
    """
    p, hw = rows.p, rows.hardware
    sms = float(hw.sm_count)
    tiles_m, tiles_n = np.ceil(p.m / plan.tile_m), np.ceil(p.n / plan.tile_n)
    tiles = tiles_m * tiles_n * p.batch
    steps = np.ceil(p.k / plan.tile_k)
    resident = np.maximum(plan.blocks_per_sm, 1.0) * sms
    l2_bytes, memory_bytes = _traffic(rows, plan, tiles_m, tiles_n, resident)

    load, far = rows.load_latency, latency_of(hw).memory / hw.clock
    unit = np.maximum(plan.compute, plan.shared)
    least = np.maximum(plan.alone, (load + (plan.stall + plan.alone)) / plan.stages)

    per_split = steps
    blocks = tiles
    split = np.asarray(plan.split_k, np.float64)
    splits = bool(np.any(split > 1.0))
    if splits:
        split = np.minimum(split, steps)
        per_split = np.ceil(steps / split)
        blocks = tiles * split
    waves = blocks / resident
    full = np.floor(waves)
    rest = np.ceil((blocks - full * resident) * (1.0 / sms))
    packed = np.maximum(resident * (1.0 / sms) * unit, least)
    last = np.where(rest > 0.0, np.maximum(rest * unit, least), 0.0)
    quantised = per_split * (full * packed + last)
    smooth = per_split * waves * packed
    work = tiles * steps * (1.0 / sms)
    compute, shared = work * plan.compute, work * plan.shared
    memory, l2 = memory_bytes * (1.0 / hw.memory.bandwidth), l2_bytes * (1.0 / hw.l2.bandwidth)
    feeding = np.maximum(memory, l2)
    busy = np.maximum(quantised, feeding)
    fixup_bytes = fixup = np.zeros_like(tiles)
    if splits:
        fixup_bytes = np.where(split > 1.0, split * p.batch * p.m * p.n, 0.0) * PARTIAL_BYTES
        fixup = _fixup(hw, fixup_bytes, far)
    if plan.stream_k is True or np.any(plan.stream_k):
        even = np.maximum(np.ceil(tiles * steps / resident) * packed, feeding)
        # every resident block leaves one partial tile to its neighbour
        tile = np.minimum(plan.tile_m, p.m) * np.minimum(plan.tile_n, p.n)
        joined_bytes = np.minimum(resident, tiles * steps) * tile * PARTIAL_BYTES
        joined = _fixup(hw, joined_bytes, far)
        better = np.logical_and(plan.stream_k, even + joined < busy)
        busy = np.where(better, even, busy)
        fixup_bytes = np.where(better, joined_bytes, fixup_bytes)
        fixup = np.where(better, joined, fixup)
    # the last k step of a pipelined kernel has no load left to hide behind
    prologue = np.where(np.asarray(plan.stages) > 1.0, unit, 0.0)
    time = busy + (fixup + (prologue + hw.launch_latency))
    return Times(
        time, compute, memory, l2, shared, busy, smooth, fixup, prologue,
        tiles, steps, blocks, memory_bytes, l2_bytes, fixup_bytes,
    )  # fmt: skip


def _fixup(hardware: Hardware, moved: FloatArray, latency: float) -> FloatArray:
    """Seconds to write and read back partial sums: through the L2, beyond its size from memory."""
    spilt = np.maximum(moved - hardware.l2.capacity, 0.0) * (1.0 / hardware.memory.bandwidth)
    moving = np.maximum(moved * (1.0 / hardware.l2.bandwidth), spilt)
    return np.where(moved > 0.0, moving + latency, 0.0)


def cost_of(rows: Rows, plan: Plan, fit: Occupancy) -> KernelCost:
    """Return the full cost of a kernel whose blocks `plan` describes and whose residency is `fit`.

    Parts that sum: time = max(compute, memory, l2, shared) + latency + tail + fixup + prologue +
    launch; `tail` is what rounding blocks up to whole waves costs, `latency` the rest of the
    waiting that no other work hides.
    """
    p, hw, t = rows.p, rows.hardware, times_of(rows, plan)
    shape = np.broadcast(t.time, fit.occupancy).shape

    def wide(x: Numbers) -> FloatArray:
        return np.broadcast_to(np.asarray(x, np.float64), shape)

    resident = np.maximum(plan.blocks_per_sm, 1.0) * float(hw.sm_count)
    waves = t.blocks / resident
    fits = np.broadcast_to(np.asarray(plan.blocks_per_sm) >= 1, shape)
    whole = np.maximum(np.maximum(t.compute, t.memory), np.maximum(t.l2, t.shared))
    waiting = np.maximum(t.busy - whole, 0.0)
    tail = np.minimum(waiting, np.maximum(t.busy - np.maximum(t.unquantised, whole), 0.0))
    padded = 2.0 * t.tiles * plan.tile_m * plan.tile_n * t.steps * plan.tile_k
    useful = wide(p.flops)
    return KernelCost(
        flops=wide(padded),
        useful_flops=useful,
        memory_bytes=wide(t.memory_bytes),
        l2_bytes=wide(t.l2_bytes + t.fixup_bytes),
        shared_traffic=wide(t.tiles * t.steps * plan.shared_traffic),
        fixup_bytes=wide(t.fixup_bytes),
        blocks=wide(t.blocks),
        blocks_per_sm=wide(plan.blocks_per_sm),
        waves=wide(waves),
        tail_efficiency=wide(waves / np.ceil(waves)),
        tile_efficiency=wide(useful / padded),
        arithmetic_intensity=wide(useful / rows.unique),
        occupancy=wide(fit.occupancy),
        occupancy_limiter_code=np.broadcast_to(fit.limiter_code, shape),
        registers=wide(plan.registers),
        shared_bytes=wide(plan.shared_bytes),
        compute=wide(t.compute),
        memory=wide(t.memory),
        l2=wide(t.l2),
        shared=wide(t.shared),
        latency=wide(waiting - tail),
        tail=wide(tail),
        prologue=wide(t.prologue),
        fixup=wide(t.fixup),
        launch=wide(hw.launch_latency),
        time=np.where(fits, wide(t.time), np.nan),
    )
