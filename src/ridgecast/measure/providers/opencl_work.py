"""Work on an OpenCL device: launches timed by the device's own events, hot or cold.

    hot    one buffer set; a sample is the mean of as many runs as the device's clock resolves
    cold   before each run, outside its event, a buffer of twice the cache is written; runs
           rotate through buffer sets

Knows no kernel: a plan says how it is launched. pyopencl's objects come in from the provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import MeasurementError
from ..base import F64, DeviceInfo
from ..kernels_src import Limits, Plan
from .nvcc import trimmed
from .opencl_platforms import import_pyopencl

__all__ = ["Arrays", "OpenClWork", "OpenDevice", "Prepared", "checked"]

_LEAST_FLUSH = 256 << 20  # bytes on a GPU: drivers understate the last-level cache
_RESOLUTION = 100  # a sample should last that many ticks of the device's clock
_MOST_RUNS = 64  # in a sample
_PART = 64  # runs that queue up before the host waits


@dataclass(frozen=True, slots=True)
class OpenDevice:
    """An open device: pyopencl's objects and what the device is."""

    cl: Any
    device: Any
    context: Any
    queue: Any
    info: DeviceInfo
    limits: Limits
    nvidia: bool

    @property
    def cache_bytes(self) -> int:
        """Size of the cache in bytes, as the driver says."""
        return int(self.info.facts["cache_bytes"])


@contextmanager
def checked(what: str) -> Iterator[None]:
    """Turn OpenCL's errors into MeasurementError."""
    cl = import_pyopencl()
    try:
        yield
    except cl.MemoryError as error:
        raise MeasurementError(f"{what}: out of memory on the device ({error})") from error
    except cl.Error as error:
        raise MeasurementError(f"{what}: {trimmed(str(error), lines=3)}") from error


Arrays = tuple[Any, Any, Any]  # a, b and c on the host


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a point asks for on the host.

    `arrays` are (a, b, c), one triple a buffer set; `check` returns the relative error of what a
    run left in c, at most `tolerance`.
    """

    arrays: list[Arrays]
    check: Callable[[np.ndarray], float]
    tolerance: float


class OpenClWork:
    """`measure.base.Work` on an OpenCL device; building it copies the arrays to the device."""

    def __init__(
        self,
        here: OpenDevice,
        plan: Plan,
        program: Any,
        prepared: Prepared,
        *,
        cold: bool,
        facts: Mapping[str, Any],
    ) -> None:
        arrays, self._check = prepared.arrays, prepared.check
        self.tolerance = prepared.tolerance
        self._here, self._cold = here, cold
        self._out = arrays[0][2]
        self._buffers: list[Any] = []
        self._kernels: list[Any] = []
        self._outputs: list[Any] = []
        flags = here.cl.mem_flags
        for a, b, c in arrays:
            read = flags.READ_ONLY | flags.COPY_HOST_PTR
            inputs = [here.cl.Buffer(here.context, read, hostbuf=each) for each in (a, b)]
            output = here.cl.Buffer(here.context, flags.READ_WRITE, c.nbytes)
            kernel = here.cl.Kernel(program, plan.function)
            kernel.set_args(*(np.int32(size) for size in plan.sizes), *inputs, output)
            self._buffers += [*inputs, output]
            self._outputs.append(output)
            self._kernels.append(kernel)
        self._local = (*plan.threads, 1)
        self._global = tuple(g * t for g, t in zip(plan.groups, self._local, strict=True))
        self._turn = 0
        self._flush: Any = None
        self._runs = _MOST_RUNS if plan.kernel == "launch" and not cold else self._runs_per_sample()
        self.facts: Mapping[str, float | int | str] = {
            **facts,
            "launch": "stream",
            "runs_per_sample": self._runs,
            "buffer_sets": len(arrays),
        }

    def _runs_per_sample(self) -> int:
        """Return how many runs the device's clock resolves to a hundredth."""
        if self._cold:
            return 1
        for index in range(len(self._kernels)):
            self._launch(index)
        event = self._launch(0)
        event.wait()
        once = max((event.profile.end - event.profile.start) * 1e-9, 1e-9)
        wanted = _RESOLUTION * self._here.info.facts["timer_resolution_s"] / once
        return int(np.clip(np.ceil(wanted), 1, _MOST_RUNS))

    def _launch(self, index: int) -> Any:
        here = self._here
        kernel = self._kernels[index]
        return here.cl.enqueue_nd_range_kernel(here.queue, kernel, self._global, self._local)

    def _next(self) -> Any:
        event = self._launch(self._turn)
        self._turn = (self._turn + 1) % len(self._kernels)
        return event

    def verify(self) -> float:
        """Poison each output, run, compare: the largest error of the first and the last set."""
        here, errors = self._here, [0.0]
        with checked("verifying"):
            for index in sorted({0, len(self._kernels) - 1}):
                self._out.fill(np.nan)
                here.cl.enqueue_copy(here.queue, self._outputs[index], self._out)
                self._launch(index)
                here.cl.enqueue_copy(here.queue, self._out, self._outputs[index])
                errors.append(self._check(self._out))
        return float(np.max(errors))  # NaN stays

    def sample(self, count: int) -> F64:
        """Durations of `count` runs in s, each the mean of `runs_per_sample` runs."""
        times: list[float] = []
        with checked("timing"):
            while len(times) < count:
                part = min(max(_PART // self._runs, 1), count - len(times))
                pairs = [self._cold_run() if self._cold else self._burst() for _ in range(part)]
                self._here.queue.finish()
                times += [(end.profile.end - begin.profile.start) * 1e-9 for begin, end in pairs]
        return np.array(times) / self._runs

    def _burst(self) -> tuple[Any, Any]:
        events = [self._next() for _ in range(self._runs)]
        return events[0], events[-1]

    def _cold_run(self) -> tuple[Any, Any]:
        here = self._here
        if self._flush is None:
            least = 0 if here.info.kind == "cpu" else _LEAST_FLUSH
            size = max(2 * here.cache_bytes, least, 1 << 20)
            self._flush = here.cl.Buffer(here.context, here.cl.mem_flags.READ_WRITE, size)
            self._buffers.append(self._flush)
        here.cl.enqueue_fill_buffer(here.queue, self._flush, np.uint32(0), 0, self._flush.size)
        event = self._next()
        return event, event

    def enqueue(self, count: int) -> None:
        """Launch `count` runs back to back without waiting."""
        with checked("launching"):
            for _ in range(count):
                self._next()
            self._here.queue.flush()

    def synchronize(self) -> None:
        """Wait until everything that was launched has ended."""
        with checked("waiting for the device"):
            self._here.queue.finish()

    def close(self) -> None:
        """Give the device's memory back."""
        for buffer in self._buffers:
            buffer.release()
        self._buffers, self._kernels, self._outputs, self._flush = [], [], [], None
