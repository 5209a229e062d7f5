"""Micro-benchmarks of a CPU: memory copy and triad, reads by size, the cost of a call.

A point's m is the bytes of one array. Bytes moved are counted as STREAM counts them, without the
write-allocate reads: copy 2 m, triad 3 m, l2_read m for each pass; they are the fact
`moved_bytes` of one run.

    copy      out = first                      launch    a compiled kernel that does nothing
    triad     out = first + 3 second           l2_read   sums an array: which level it reads from
                                                         is a matter of m and the number of cores

numba's versions run on all cores, each reading and writing its own share; numpy's on one core
(`threads` says so), with `triad` as out = first + second, three arrays as well.
Source: McCalpin, STREAM, https://www.cs.virginia.edu/stream/ref.html.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..base import Point
from .cpu_device import cpu_device, last_level_cache
from .cpu_work import CpuWork, group_of
from .operands import poison, relative_frobenius, set_count

__all__ = ["FACTOR", "MOVED", "micro_refusal", "numba_micro", "numpy_micro"]

Array = npt.NDArray[Any]

MOVED = {"copy": 2, "triad": 3, "l2_read": 1, "launch": 0}  # arrays moved in one pass
FACTOR = 3.0  # of the triad
_READ_BYTES = 16 * 2**20  # a run of l2_read reads at least this much, in as many passes as it takes
_INPUTS = {"copy": 1, "triad": 2, "l2_read": 1}


def micro_refusal(point: Point) -> str:
    """Say why a micro-benchmark cannot run: it has no shape, batch or configuration."""
    if (point.n, point.k, point.batch) != (1, 1, 1):
        return f"{point.kernel}: m is the bytes of one array; n, k and batch are 1"
    if point.m < 8:
        return f"{point.kernel}: got {point.m} bytes, need 8 or more"
    if point.config:
        return f"{point.kernel} has no configuration; got {', '.join(sorted(point.config))}"
    return ""


class _Set(NamedTuple):
    """Inputs and output of one run, the call that runs it, and what it should give."""

    inputs: list[Array]
    out: Array
    call: Callable[[], object]


def _arrays(point: Point, rng: np.random.Generator, workers: int) -> tuple[list[Array], Array]:
    """Make inputs and output of one set: whole numbers for l2_read, whose sums are then exact."""
    words = point.m // 8
    if point.kernel == "l2_read":
        return [rng.integers(0, 2**31, words)], np.zeros(workers, np.int64)
    if point.kernel == "launch":
        shape = (1, 1, workers)  # what a GEMM kernel is given
        return [np.ones(shape, np.float32)], np.zeros(shape, np.float32)
    return [rng.random(words) for _ in range(_INPUTS[point.kernel])], np.zeros(words)


def _set_count(point: Point) -> int:
    if point.cache == "hot":
        return 1
    return set_count(MOVED[point.kernel] * point.m, last_level_cache(cpu_device()))


def _passes(point: Point) -> int:
    if point.kernel != "l2_read" or point.cache == "cold":
        return 1
    return max(1, _READ_BYTES // point.m)


def numba_micro(
    point: Point, rng: np.random.Generator, workers: int, begin: Callable[[], None]
) -> CpuWork:
    """Prepare a micro-benchmark on `workers` threads of compiled loops."""
    from . import numba_kernels

    passes = _passes(point)

    def call_of(inputs: list[Array], out: Array) -> Callable[[], object]:
        if point.kernel == "copy":
            return partial(numba_kernels.copy(), out, inputs[0], workers)
        if point.kernel == "triad":
            return partial(numba_kernels.triad(), out, *inputs, FACTOR, workers)
        if point.kernel == "l2_read":
            return partial(numba_kernels.read(), out, inputs[0], passes, workers)
        return partial(numba_kernels.empty(), inputs[0], inputs[0], out, workers)

    arrays = [_arrays(point, rng, workers) for _ in range(_set_count(point))]
    sets = [_Set(inputs, out, call_of(inputs, out)) for inputs, out in arrays]
    return _work(point, sets, begin, workers, FACTOR)


def numpy_micro(point: Point, rng: np.random.Generator) -> CpuWork:
    """Prepare a micro-benchmark of numpy's own loops, which run on one core."""
    passes = _passes(point)

    def read(source: Array, out: Array) -> None:
        for _ in range(passes):
            out[0] = np.add.reduce(source)

    def call_of(inputs: list[Array], out: Array) -> Callable[[], object]:
        if point.kernel == "triad":
            return lambda: np.add(inputs[0], inputs[1], out=out)
        if point.kernel == "l2_read":
            return partial(read, inputs[0], out)
        return partial(np.copyto, out, inputs[0])

    arrays = [_arrays(point, rng, 1) for _ in range(_set_count(point))]
    sets = [_Set(inputs, out, call_of(inputs, out)) for inputs, out in arrays]
    return _work(point, sets, lambda: None, 1, 1.0)


def _work(
    point: Point, sets: list[_Set], begin: Callable[[], None], workers: int, factor: float
) -> CpuWork:
    def run(index: int) -> None:
        sets[index].call()

    def check() -> float:
        inputs, out, call = sets[0]
        poison(out)
        call()
        if point.kernel == "l2_read":
            return relative_frobenius(out.sum(keepdims=True), inputs[0].sum(keepdims=True))
        wanted = inputs[0] + factor * inputs[1] if point.kernel == "triad" else inputs[0]
        return relative_frobenius(out, wanted)

    begin()
    run(0)
    cold = point.cache == "cold"
    group = 1 if cold else group_of(run)
    passes = _passes(point)
    moved = MOVED[point.kernel] * (point.m // 8) * 8 * passes
    facts = {"launch": "call", "group": group, "buffers": len(sets), "threads": workers}
    return CpuWork(
        run=run,
        check=check,
        tolerance=1e-12,
        facts={**facts, "moved_bytes": moved, "passes": passes},
        sets=len(sets),
        cold=cold,
        group=group,
        begin=begin,
    )
