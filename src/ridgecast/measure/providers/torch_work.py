"""Work on a CUDA device through torch: launches timed by device events, hot or cold.

    launch(i)     runs the kernel once on buffer set i, on torch's current stream

    hot    one buffer set; a CUDA graph of N launches is replayed between two events: time / N.
           Where capture fails or the graph does not write the output, N stream launches instead.
    cold   before each run, outside its events, a buffer of twice the L2 is written; runs rotate
           through buffer sets. Launches queue behind an idle spin of the device, so that no event
           waits for the host.
    energy replays of the same graph back to back (cold: over the rotating sets, without flushes)

Any provider whose kernels run on torch's current stream (its own ops, Triton, ctypes or a driver
binding given `torch.cuda.current_stream().cuda_stream`) becomes measurable by handing in `launch`
and `sets`. Knows no kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..base import F64, Point
from .operands import set_count, tolerance
from .torch_device import TorchGpu
from .torch_operands import Buffers, buffer_sets, exact_limit, out_format, poison, poisoned
from .torch_operands import product_error as error_on_device

__all__ = ["TorchWork", "gemm_work", "sets_for"]

Launch = Callable[[int], None]

_REPLAY = 2e-4  # s that one graph replay should take at least, 100 times an event's resolution
_MOST_LAUNCHES = 64  # in one graph
_PART = 64  # timed runs that queue up together; a device queues about a thousand launches
_LONGEST_SPIN = 0.1  # s of idle spin before a queued part


def sets_for(gpu: TorchGpu, point: Point, rng: np.random.Generator) -> list[Buffers]:
    """Buffer sets of a GEMM point: one when hot, enough to exceed twice the L2 when cold."""
    if point.cache == "hot":
        return buffer_sets(gpu, point, rng, lambda _: 1)
    return buffer_sets(gpu, point, rng, lambda size: set_count(size, gpu.l2_bytes))


def gemm_work(
    gpu: TorchGpu,
    point: Point,
    launch: Launch,
    sets: Sequence[Buffers],
    *,
    rng: np.random.Generator,
    facts: Mapping[str, Any] | None = None,
) -> TorchWork:
    """Work of a GEMM: `launch(i)` computes `sets[i].out` = `sets[i].left` @ `sets[i].right`.

    `facts` are the provider's own columns. The tolerance is that of the point's format.
    """

    def check(index: int) -> float:
        each = sets[index]
        limit = exact_limit(gpu)
        return error_on_device(gpu.torch, each.out, each.left, each.right, rng, exact_flops=limit)

    own = {"operand_seed": sets[0].operands.seed, "out_dtype": out_format(point.dtype)}
    return TorchWork(
        gpu,
        launch,
        [each.out for each in sets],
        check,
        cache=point.cache,
        tolerance=tolerance(point.dtype, point.k),
        facts={**own, **(facts or {})},
    )


class TorchWork:
    """`measure.base.Work` on a CUDA device; see the module.

    `outputs[i]` is the tensor that `launch(i)` writes whole, `check(i)` its error against the
    reference. Building it runs the kernel a few times and captures the graph: raises
    MeasurementError when that fails.
    """

    def __init__(
        self,
        gpu: TorchGpu,
        launch: Launch,
        outputs: Sequence[Any],
        check: Callable[[int], float],
        *,
        cache: str,
        tolerance: float,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.tolerance = tolerance
        self._gpu, self._launch, self._check = gpu, launch, check
        self._outputs, self._cold = list(outputs), cache == "cold"
        self._events: list[Any] = []
        self._turn = 0
        self._graph: Any = None
        with gpu.checked("preparing the kernel"):
            once, self._enqueue_time = self._first_runs()
            self._launches = int(np.clip(np.ceil(_REPLAY / once), 1, _MOST_LAUNCHES))
            sets = len(self._outputs)
            self._launches = -(-self._launches // sets) * sets
            reason = self._capture()
        in_graph = self._graph is not None
        self.facts: Mapping[str, float | int | str] = {
            **gpu.facts(),
            **(facts or {}),
            "launch": "graph" if in_graph and not self._cold else "stream",
            "runs_per_sample": 1 if self._cold else self._launches,
            "energy_launch": "graph" if in_graph else "stream",
            "buffer_sets": sets,
            **({"graph_reason": reason} if reason else {}),
        }

    def _first_runs(self) -> tuple[float, float]:
        """Duration of a run by events, and the host's time for one launch; both in s."""
        for index in range(len(self._outputs)):
            self._launch(index)
        self._gpu.torch.cuda.synchronize(self._gpu.index)
        begin, end = self._event(0), self._event(1)
        runs = 3
        begun = time.perf_counter()
        begin.record()
        for index in range(runs):
            self._launch(index % len(self._outputs))
        end.record()
        host = (time.perf_counter() - begun) / runs
        end.synchronize()
        return max(begin.elapsed_time(end) * 1e-3 / runs, 1e-6), host

    def _capture(self) -> str:
        """Capture the launches into a graph and see it write the output; why not, or ""."""
        torch = self._gpu.torch
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(self._gpu.index)
        side.wait_stream(torch.cuda.current_stream(self._gpu.index))
        try:
            with torch.cuda.stream(side):
                self._launch(0)  # libraries allocate per stream; that must not happen in capture
                side.synchronize()
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    for turn in range(self._launches):
                        self._launch(turn % len(self._outputs))
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            torch.cuda.synchronize(self._gpu.index)  # a lost device raises here
            return f"not captured: {(str(error).splitlines() or [''])[0][:200]}"
        torch.cuda.current_stream(self._gpu.index).wait_stream(side)
        for output in self._outputs:
            poison(output)
        graph.replay()
        torch.cuda.synchronize(self._gpu.index)
        if any(poisoned(torch, output) for output in self._outputs):
            return "not captured: a replay leaves the output unwritten"
        self._graph = graph
        return ""

    def verify(self) -> float:
        """Poison the outputs, run, compare: the largest error of each way that runs are timed."""
        last = len(self._outputs) - 1
        ways: list[tuple[Callable[[], None], int]] = [
            (partial(self._launch, place), place) for place in sorted({0, last})
        ]
        if self._graph is not None:
            ways.append((self._graph.replay, 0))
        errors: list[float] = []
        with self._gpu.checked("verifying"):
            for run, place in ways:
                poison(self._outputs[place])
                run()
                self._gpu.torch.cuda.synchronize(self._gpu.index)
                errors.append(self._check(place))
        return float(np.max(errors))  # NaN stays

    def sample(self, count: int) -> F64:
        """Durations of `count` runs in s; hot ones are each the mean of `runs_per_sample` runs.

        Raises MeasurementError when another process began to compute on the device.
        """
        timed = self._sample_cold if self._cold else self._sample_hot
        with self._gpu.checked("timing"):
            parts = [timed(min(_PART, count - done)) for done in range(0, count, _PART)]
        if count > 1:
            self._gpu.check_alone()
        return np.concatenate(parts)

    def _sample_hot(self, count: int) -> F64:
        if self._graph is not None:
            burst, host = self._graph.replay, 2e-5
        else:
            burst, host = partial(self._run, self._launches), self._enqueue_time * self._launches
        self._spin(host if self._graph is not None else host * count)
        self._event(0).record()
        for index in range(1, count + 1):
            burst()
            self._event(index).record()
        self._event(count).synchronize()
        return self._differences(range(count), range(1, count + 1)) / self._launches

    def _sample_cold(self, count: int) -> F64:
        self._spin((self._enqueue_time + 3e-5) * count)
        for index in range(count):
            self._gpu.flush()
            self._event(2 * index).record()
            self._run(1)
            self._event(2 * index + 1).record()
        self._event(2 * count - 1).synchronize()
        return self._differences(range(0, 2 * count, 2), range(1, 2 * count, 2))

    def _spin(self, seconds: float) -> None:
        """Keep the device idle while the host queues work that takes it `seconds` to queue."""
        self._gpu.sleep(min(1.5 * seconds + 5e-5, _LONGEST_SPIN))

    def _run(self, count: int) -> None:
        for _ in range(count):
            self._launch(self._turn)
            self._turn = (self._turn + 1) % len(self._outputs)

    def _event(self, index: int) -> Any:
        while index >= len(self._events):
            self._events.append(self._gpu.torch.cuda.Event(enable_timing=True))
        return self._events[index]

    def _differences(self, begins: range, ends: range) -> F64:
        pairs = zip(begins, ends, strict=True)
        times = [self._events[i].elapsed_time(self._events[j]) for i, j in pairs]
        return np.array(times, np.float64) * 1e-3  # torch speaks ms

    def enqueue(self, count: int) -> None:
        """Launch `count` runs back to back; whole graphs first, the rest one by one."""
        with self._gpu.checked("launching"):
            if self._graph is not None:
                whole, count = divmod(count, self._launches)
                for _ in range(whole):
                    self._graph.replay()
            self._run(count)

    def synchronize(self) -> None:
        """Wait until everything that was launched has ended."""
        self._gpu.synchronize()

    def close(self) -> None:
        """Drop the graph, the outputs and what `launch` holds; torch keeps the memory cached."""
        self._graph, self._events, self._outputs = None, [], []
        self._launch = self._check = _closed


def _closed(index: int) -> Any:
    raise RuntimeError(f"work was closed; buffer set {index} is gone")
