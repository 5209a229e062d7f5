"""Prepared work on a CPU: the clock around calls, grouping, cold runs, preemption.

The clock is `time.perf_counter` around one call that returns when the work is done. What makes
such times repeatable: operands are written before (first touch), the garbage collector rests
while samples are taken, calls shorter than 20 us are timed in groups and divided, and a run of
0.2 to 50 ms during which the system kept one of our threads waiting for a core is tried up to
3 times.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..base import F64, Point
from .cpu_device import CacheFlush, cpu_device, last_level_cache
from .operands import (
    Operands,
    copies,
    make_operands,
    poison,
    product_error,
    set_count,
    stored_as,
    tolerance,
)

__all__ = ["GROUP_FLOOR", "CpuWork", "GemmSets", "gemm_sets", "gemm_work", "group_of"]

GROUP_FLOOR = 20e-6  # s; shorter calls are timed in groups
_TRIES = 3
# s; of shorter runs so few are preempted that the median does not see them, longer ones average it
_WATCHED = (200e-6, 50e-3)
_WAITED = 0.01  # share of a run's time that a thread may have waited for a core


class _RunDelay:
    """Seconds that this process' threads waited for a core, from /proc; 0 where it is not told.

    Source: Linux, Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat, second field.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        for path in Path("/proc/self/task").glob("*/schedstat"):
            try:
                self._files.append(os.open(path, os.O_RDONLY))
            except OSError:  # the thread has ended
                continue

    def __call__(self) -> float:
        total = 0
        for file in self._files:
            try:
                total += int(os.pread(file, 64, 0).split()[1])
            except (OSError, IndexError, ValueError):
                continue
        return total * 1e-9

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = []


def group_of(run: Callable[[int], None]) -> int:
    """Return how many calls make up one sample: 1, or enough for 20 us. Runs the call 3 times."""
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        run(0)
        times.append(time.perf_counter() - start)
    return max(1, int(np.ceil(GROUP_FLOOR / max(min(times), 1e-8))))


@dataclass(slots=True)
class CpuWork:
    """`Work` whose runs are calls: `run(i)` computes with operand set i of `sets`, then returns.

    `check` poisons the output, runs set 0 and returns the relative error. `begin` is called before
    samples and energy windows (thread counts). `group` calls make one sample, cold runs are single.
    """

    run: Callable[[int], None]
    check: Callable[[], float]
    tolerance: float
    facts: Mapping[str, float | int | str]
    sets: int = 1
    cold: bool = False
    group: int = 1
    begin: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None
    _next: int = 0
    _flush: CacheFlush | None = None
    _delay: _RunDelay | None = field(default=None)

    def verify(self) -> float:
        """Poison the output, run once, return the relative Frobenius error against float64."""
        self.begin()
        return self.check()

    def sample(self, count: int) -> F64:
        """Return the durations of `count` runs in seconds; cold runs are flushed beforehand."""
        if self.cold and self._flush is None:
            self._flush = CacheFlush()
        if self._delay is None:
            self._delay = _RunDelay()
        self.begin()
        collecting = gc.isenabled()
        gc.disable()
        try:
            return np.array([self._settled() for _ in range(count)])
        finally:
            if collecting:
                gc.enable()

    def _settled(self) -> float:
        """Duration of a run that had its cores, or of the least disturbed of the tries."""
        assert self._delay is not None
        best, least = 0.0, np.inf
        for _ in range(_TRIES):
            before = self._delay()
            duration = self._timed()
            if not _WATCHED[0] <= duration <= _WATCHED[1]:
                return duration
            waited = self._delay() - before
            if waited < least:
                best, least = duration, waited
            if waited <= _WAITED * duration:
                break
        return best

    def _timed(self) -> float:
        if self._flush is not None:
            self._flush()
            which = self._advance()
            start = time.perf_counter()
            self.run(which)
            return time.perf_counter() - start
        run = self.run
        start = time.perf_counter()
        for _ in range(self.group):
            run(0)
        return (time.perf_counter() - start) / self.group

    def _advance(self) -> int:
        self._next = (self._next + 1) % self.sets
        return self._next

    def enqueue(self, count: int) -> None:
        """Run `count` times; a CPU has no queue, so this returns when they are done."""
        self.begin()
        for _ in range(count):
            self.run(self._advance() if self.cold else 0)

    def synchronize(self) -> None:
        """Do nothing: calls return when their work is done."""

    def close(self) -> None:
        """Give back operands, threads and files."""
        for held in (self._flush, self._delay):
            if held is not None:
                held.close()
        self._flush = self._delay = None
        self.run = self.check = _closed
        self.finish()
        self.finish = lambda: None


def _closed(*_: object) -> Any:
    raise RuntimeError("work is closed; prepare the point again")


@dataclass(frozen=True, slots=True)
class GemmSets:
    """Operand sets of a GEMM point and one output for each, all of shape (batch, rows, columns)."""

    operands: list[Operands]
    outputs: list[np.ndarray]


def gemm_sets(point: Point, rng: np.random.Generator) -> GemmSets:
    """Make one set for hot runs; for cold ones as many as exceed twice the last-level cache."""
    first = make_operands(point, rng)
    shape = (point.batch, point.m, point.n)
    count = 1
    if point.cache == "cold":
        out_bytes = point.batch * point.m * point.n * stored_as(point.dtype).itemsize
        count = set_count(
            first.a.nbytes + first.b.nbytes + out_bytes, last_level_cache(cpu_device())
        )
    outputs = [np.zeros(shape, stored_as(point.dtype)) for _ in range(count)]
    return GemmSets(copies(first, count), outputs)


def gemm_work(
    point: Point,
    sets: GemmSets,
    run: Callable[[int], None],
    rng: np.random.Generator,
    *,
    facts: Mapping[str, float | int | str],
    begin: Callable[[], None] = lambda: None,
    finish: Callable[[], None] = lambda: None,
) -> CpuWork:
    """Wrap a GEMM that `run(i)` computes into `sets.outputs[i]`, with its check and its facts."""
    first, out = sets.operands[0], sets.outputs[0]

    def check() -> float:
        poison(out)
        run(0)
        return product_error(out, first.left, first.right, rng)

    begin()
    run(0)  # pages, threads and code are there before the first clock
    cold = point.cache == "cold"
    group = 1 if cold else group_of(run)
    return CpuWork(
        run=run,
        check=check,
        tolerance=tolerance(point.dtype, point.k),
        facts={"launch": "call", "group": group, "buffers": len(sets.operands), **facts},
        sets=len(sets.operands),
        cold=cold,
        group=group,
        begin=begin,
        finish=finish,
    )
