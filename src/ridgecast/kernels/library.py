"""A vendor library's GEMM: the best of the tiles it ships, with or without splitting k.

Splitting is modelled as stream-K, the even deal of k steps that split-K approaches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..hardware import Hardware
from .bound import CHUNK, Cache, bound_of
from .config import LibraryConfig, SimtConfig, TensorConfig
from .constants import mma_rows
from .cost import KernelCost, Plan, Rows, cost_of, rows_of, times_of
from .occupancy import Occupancy
from .problem import Problem, problem
from .tile import simt_plan, tensor_plan

__all__ = ["LibraryCost", "candidates", "library", "library_time"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
# tile_m, tile_n, warps_m, warps_n: tiles that CUTLASS's profiler builds by default for sm_80/sm_90
# (spec: NVIDIA CUTLASS, python/cutlass_library/generator.py)
_TENSOR_TILES = (
    (256, 128, 4, 2), (128, 256, 2, 4), (128, 128, 2, 2), (256, 64, 4, 1), (64, 256, 1, 4),
    (128, 64, 2, 2), (64, 128, 2, 2), (64, 64, 2, 2),
)  # fmt: skip
_SIMT_TILES = (
    (256, 128, 4, 2), (128, 256, 2, 4), (128, 128, 4, 2), (128, 64, 2, 2), (64, 128, 2, 2),
    (128, 32, 2, 1), (64, 64, 2, 1), (32, 128, 1, 2),
)  # fmt: skip
_NO_ASYNC_COPY = ("sm_60", "sm_61", "sm_70", "sm_75")
_FIELDS = tuple(f.name for f in fields(Plan) if f.name != "rate")


@dataclass(frozen=True, slots=True)
class LibraryCost:
    """Cost of the chosen kernel per row and the configuration that was chosen, as arrays."""

    cost: KernelCost
    config: TensorConfig | SimtConfig


def _stages(stage_bytes: float, tile: int, hardware: Hardware) -> int:
    """Pipeline stages: what fits, two blocks a SM for tiles below 128 x 128, four at most."""
    if hardware.isa in _NO_ASYNC_COPY:
        return 2
    room = hardware.sm.max_shared_per_block
    if tile < 128 * 128:
        room = min(room, hardware.sm.shared_memory // 2 - 1024)
    return int(min(max(room // stage_bytes, 2), 4))


def candidates(p: Problem, hardware: Hardware) -> TensorConfig | SimtConfig:
    """Return the tiles a library would try for this format on this device, as one value.

    Raises UnsupportedError where no unit multiplies the format.
    """
    on_tensor = hardware.unit(p.dtype) == "tensor"
    direct = mma_rows(hardware) > 0
    # one row of a tile is as long as a shared-memory swizzle atom: 128 bytes, before Hopper 64
    tile_k = int((128 if direct else 64) / max(p.a_size, p.b_size)) if on_tensor else 8
    kind = TensorConfig if on_tensor else SimtConfig
    narrow = max(32 // hardware.sm.warp_size, 1)
    rows: list[tuple[int, ...]] = []
    for tile in _TENSOR_TILES if on_tensor else _SIMT_TILES:
        tm, tn, wm, wn = tile
        stages = _stages(tile_k * (tm * p.a_size + tn * p.b_size), tm * tn, hardware)
        cluster = 2 if direct and tm * tn >= 128 * 128 else 1
        # narrower warps (Intel's 16 lanes) come in larger numbers
        rows.append((tm, tn, tile_k, wm * narrow, wn, stages, cluster))
    columns = [np.asarray(x, np.int64) for x in zip(*rows, strict=True)]
    tm, tn, tk, wm, wn, stages, cluster = columns
    # walk as many tile rows together as make a wave square in elements
    swizzle = np.maximum(np.sqrt(hardware.sm_count * tn / tm), 1.0).astype(np.int64)
    return kind(tm, tn, tk, wm, wn, stages=stages, cluster_m=cluster, swizzle=swizzle)


@dataclass(frozen=True, slots=True)
class _Choices:
    config: TensorConfig | SimtConfig
    plans: tuple[Plan, ...]
    fits: Occupancy
    columns: dict[str, FloatArray]


@lru_cache(maxsize=64)
def _choices(
    hardware: Hardware, dtype: str, a_size: float, b_size: float, out: float, split: bool
) -> _Choices:
    one = np.ones(1)
    p = Problem(one, one, one, one, a_size, b_size, out, 0.0, 0.0, dtype)
    config = candidates(p, hardware)
    plan, fit = (
        tensor_plan(config, hardware, p)
        if isinstance(config, TensorConfig)
        else simt_plan(config, hardware, p)
    )
    keep = fit.blocks_per_sm >= 1
    if not bool(keep.any()):
        raise UnsupportedError(f"no library tile for {dtype} fits on an SM of {hardware.name}")
    count = len(config)
    wide = {
        name: np.broadcast_to(np.asarray(getattr(plan, name), np.float64), (count,))[keep]
        for name in _FIELDS
    }
    plans = tuple(
        Plan(rate=plan.rate, **{**{n: float(v[i]) for n, v in wide.items()}, "stream_k": split})
        for i in range(int(keep.sum()))
    )
    fits = Occupancy(fit.blocks_per_sm[keep], fit.occupancy[keep], fit.limiter_code[keep])
    return _Choices(config.take(keep), plans, fits, wide)


def _choices_for(p: Problem, hardware: Hardware, split: bool) -> _Choices:
    return _choices(hardware, p.dtype, p.a_size, p.b_size, p.out_size, split)


def _pick(rows: Rows, choices: _Choices) -> tuple[FloatArray, IntArray]:
    """Best time per row and which candidate it is."""
    best = times_of(rows, choices.plans[0]).time
    which = np.zeros(best.shape, np.int64)
    for index, plan in enumerate(choices.plans[1:], start=1):
        time = times_of(rows, plan).time
        which[time < best] = index
        best = np.minimum(best, time)
    return best, which


def library(
    p: Problem,
    hardware: Hardware,
    cache: Cache = "hot",
    config: LibraryConfig | None = None,
) -> LibraryCost:
    """Return the cost of the fastest candidate tile of each row and the tile itself.

    Choosing by the very time that is returned keeps it monotone: more bandwidth, rate or cache
    never slows it. Rows are the flattened problem. Raises UnsupportedError without a unit.

    >>> from ridgecast.hardware import get
    >>> from ridgecast.kernels import problem
    >>> out = library(problem([16, 4096], 4096, 4096), get("h200_sxm"))
    >>> out.cost.limiter
    array(['l2', 'compute'], dtype='<U7')
    """
    split = (config or LibraryConfig()).may_split
    choices = _choices_for(p, hardware, split)
    rows = rows_of(p.flat(), hardware, cache)
    _, which = _pick(rows, choices)
    columns = {name: values[which] for name, values in choices.columns.items()}
    plan = Plan(rate=choices.plans[0].rate, **{**columns, "stream_k": split})
    fits = choices.fits
    fit = Occupancy(fits.blocks_per_sm[which], fits.occupancy[which], fits.limiter_code[which])
    cost = cost_of(rows, plan, fit)
    streamed = (cost.fixup > 0.0).astype(np.int64)
    return LibraryCost(cost, replace(choices.config.take(which), stream_k=streamed))


def library_time(
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    batch: npt.ArrayLike = 1,
    *,
    dtype: str = "bf16",
    hardware: Hardware,
    cache: Cache = "hot",
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Return (bound [s], time [s], candidate index) of one-dimensional rows, fast.

    Works in chunks so that the temporaries stay in the CPU's cache; the times equal those of
    `library`, the index counts the rows of `candidates` that fit the device.
    """
    p = problem(m, n, k, batch, dtype=dtype)
    shape = p.m.shape
    p = p.flat()
    choices = _choices_for(p, hardware, True)
    least, time, which = np.empty(p.m.size), np.empty(p.m.size), np.empty(p.m.size, np.int64)
    for start in range(0, p.m.size, CHUNK):
        part = slice(start, start + CHUNK)
        rows = rows_of(p[part], hardware, cache)
        least[part] = bound_of(p[part], hardware, cache)
        time[part], which[part] = _pick(rows, choices)
    return least.reshape(shape), time.reshape(shape), which.reshape(shape)
