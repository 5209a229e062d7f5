"""Provider "cuda": the kernels of kernels_src compiled by nvcc, run on torch's stream and tensors.

    tiled      config tile (1..32)
    clblast    a register-blocked kernel with CLBlast's parameters: mwg nwg kwg mdimc ndimc mdima
               ndimb kwi vwm vwn strm strn sa sb; layout tn is the one it reads in whole vectors
    copy, triad, l2_read, launch

The same sources as provider "opencl". Registers, shared memory and the blocks that fit on a
multiprocessor come from the CUDA runtime. Timing, flushes, graphs and the float64 check are those
of torch_work. One library is compiled per configuration (about 2 s): `precompile` does many at
once, and compiled ones stay in a cache on disk.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import MeasurementError, MissingExtraError, RidgecastError
from ..base import BANDWIDTH_KERNELS, Point, Probe, Work
from ..kernels_src import MICRO_TOLERANCE, Limits, Plan, array_elements, plan_of, read, source
from ..kernels_src import refusal as plan_refusal
from .nvcc import NVCC_CURE, Built, build, find_nvcc
from .operands import set_count
from .torch_device import TorchGpu
from .torch_operands import Buffers
from .torch_work import TorchWork, gemm_work, sets_for

__all__ = ["Cuda", "library_source"]

_FORMATS = ("fp32", "fp64", "fp16")
_PROBE = Point("launch", 1)


def library_source(plan: Plan) -> str:
    """CUDA source of one library: the plan's kernel and the functions that Python calls."""
    return source(plan, "cuda") + "\n" + read("launch_cuda.h")


class _Library:
    """A loaded library: its launcher bound to ctypes."""

    def __init__(self, built: Built, plan: Plan) -> None:
        self.built = built
        self._name = plan.kernel
        try:
            library = ctypes.CDLL(str(built.path))
        except OSError as error:
            raise MeasurementError(f"{plan.kernel}: compiled but not loadable ({error})") from error
        numbers = ctypes.POINTER(ctypes.c_int)
        self._launch = library.ridgecast_launch
        self._launch.argtypes = [numbers] * 3 + [ctypes.c_void_p] * 4
        self._resources = library.ridgecast_resources
        self._resources.argtypes = [ctypes.c_int, numbers]
        self._error = library.ridgecast_error
        self._error.restype, self._error.argtypes = ctypes.c_char_p, [ctypes.c_int]

    def bind(self, plan: Plan, pointers: tuple[int, int, int]) -> Callable[[int], None]:
        """Return a function that launches the plan on given addresses in a given stream."""
        groups = (ctypes.c_int * 3)(*plan.groups)
        threads = (ctypes.c_int * 2)(*plan.threads)
        sizes = (ctypes.c_int * 3)(*plan.sizes)

        def launch(stream: int) -> None:
            code = self._launch(groups, threads, sizes, *pointers, stream)
            if code:
                raise MeasurementError(f"launching {self._name}: {self._told(code)}")

        return launch

    def resources(self, plan: Plan) -> dict[str, int]:
        """Return registers per thread, static shared and local bytes, blocks on one SM."""
        out = (ctypes.c_int * 4)()
        code = self._resources(plan.threads[0] * plan.threads[1], out)
        if code:
            raise MeasurementError(f"resources of {self._name}: {self._told(code)}")
        return dict(
            zip(("blocks_per_sm", "registers", "shared_bytes", "local_bytes"), out, strict=True)
        )

    def _told(self, code: int) -> str:
        text = self._error(code)
        return f"{text.decode() if text else 'unknown error'} (CUDA error {code})"


class Cuda:
    """The kernels on one CUDA device.

    `index` and `allow_shared` are TorchGpu's; `arch` is the architecture to compile for, "" for
    the device's own ("sm_90a" compiles for the one chip alone).
    """

    name = "cuda"

    def __init__(
        self,
        *,
        index: int = 0,
        arch: str = "",
        allow_shared: bool = False,
        gpu: TorchGpu | None = None,
    ) -> None:
        self.gpu = gpu or TorchGpu(index, allow_shared=allow_shared)
        self._arch = arch
        self._libraries: dict[str, _Library] = {}
        self._compiling: dict[str, Future[Built]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def probe(self) -> Probe:
        """Whether nvcc is here, and a kernel that it built runs on the device."""
        found = self.gpu.probe()
        if not found.ok:
            return found
        if find_nvcc() is None:
            return Probe(False, "nvcc was not found; it compiles the kernels", NVCC_CURE)
        try:
            torch, plan = self.gpu.torch, plan_of(_PROBE)
            with self.gpu.checked("a first kernel"):
                written = torch.zeros(1, device=self.gpu.device, dtype=torch.float32)
                self._runner(plan, (written, written, written))()
                if float(written.item()) != 1.0:
                    return Probe(False, "a kernel built by nvcc ran but wrote nothing", NVCC_CURE)
        except MissingExtraError as error:
            return Probe(False, str(error), NVCC_CURE)
        except RidgecastError as error:
            return Probe(False, str(error), "check that nvcc and the driver fit together")
        return found

    def refusal(self, point: Point) -> str:
        """Why the kernels or the device cannot run a point, or ""."""
        try:
            limits = Limits(memory=self.gpu.info.memory, dtypes=_FORMATS)
        except RidgecastError as error:
            return str(error)
        return plan_refusal(point, limits) or self.gpu.refusal()

    def precompile(self, points: Iterable[Point], workers: int) -> int:
        """Begin to compile the points' kernels, `workers` at once; how many are under way.

        Points that cannot run are passed over. `prepare` waits for its own kernel and raises what
        its compiler said. Call `close` at the end.
        """
        arch = self._architecture()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="nvcc")
        for point in points:
            if plan_refusal(point, Limits(dtypes=_FORMATS)):
                continue
            plan = plan_of(point)
            text = library_source(plan)
            if text not in self._libraries and text not in self._compiling:
                self._compiling[text] = self._pool.submit(
                    build, text, name=plan.function, arch=arch
                )
        return len(self._compiling)

    def close(self) -> None:
        """Stop compiling ahead; what is compiled stays in the cache."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._compiling.clear()

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Operands, the compiled kernel and its launch; raises MeasurementError when it fails."""
        reason = plan_refusal(point, Limits(dtypes=_FORMATS))
        if reason:
            raise MeasurementError(reason)
        plan = plan_of(point)
        facts = self._facts(plan)
        if point.kernel in BANDWIDTH_KERNELS:
            return self._micro(point, plan, rng, facts)
        sets = sets_for(self.gpu, point, rng)
        if plan.columns_first:
            sets = [_columns_first(each) for each in sets]
        runs = [self._runner(plan, (e.operands.a, e.operands.b, e.out)) for e in sets]
        return gemm_work(self.gpu, point, lambda i: runs[i](), sets, rng=rng, facts=facts)

    def _architecture(self) -> str:
        if self._arch:
            return self._arch
        capability = str(self.gpu.info.facts["compute_capability"])
        return f"sm_{capability.replace('.', '')}"

    def _library(self, plan: Plan) -> _Library:
        """Return the plan's library, compiled now or ahead."""
        text = library_source(plan)
        if text not in self._libraries:
            future = self._compiling.pop(text, None)
            built = (
                future.result()
                if future is not None
                else build(text, name=plan.function, arch=self._architecture())
            )
            self._libraries[text] = _Library(built, plan)
        return self._libraries[text]

    def _runner(self, plan: Plan, tensors: Sequence[Any]) -> Callable[[], None]:
        """Return the launch of a plan on three tensors, in whatever stream is torch's current."""
        a, b, c = tensors
        launch = self._library(plan).bind(plan, (a.data_ptr(), b.data_ptr(), c.data_ptr()))
        cuda, index = self.gpu.torch.cuda, self.gpu.index

        def run() -> None:
            with cuda.device(index):
                launch(cuda.current_stream(index).cuda_stream)

        return run

    def _facts(self, plan: Plan) -> dict[str, Any]:
        """Columns of a row: what the compiler made of the kernel and how it fills the device."""
        library = self._library(plan)
        with self.gpu.checked("resources"):
            self.gpu.torch.zeros(1, device=self.gpu.device)  # opens the device's context
            with self.gpu.torch.cuda.device(self.gpu.index):
                taken: dict[str, int] = library.resources(plan)
        blocks, threads = int(np.prod(plan.groups)), plan.threads[0] * plan.threads[1]
        facts: dict[str, Any] = {
            "kernel_source": f"kernels_src/{plan.function} (CUDA)",
            "arch": self._architecture(),
            "threads": threads,
            "blocks": blocks,
            **taken,
        }
        if taken["blocks_per_sm"]:
            places = taken["blocks_per_sm"] * int(self.gpu.info.facts["sm_count"])
            facts["waves"] = blocks / places
        spills = library.built.resources.get(plan.function)
        if spills is not None:
            facts["spilt_bytes"] = spills.spill_stores
        return facts

    def _micro(
        self, point: Point, plan: Plan, rng: np.random.Generator, facts: dict[str, Any]
    ) -> TorchWork:
        """Make a micro-benchmark over fp32 arrays of point.m bytes with the point's pattern."""
        torch = self.gpu.torch
        elements = array_elements(point, plan)
        count = 1
        if point.cache == "cold":
            count = set_count(4 * sum(elements), self.gpu.l2_bytes)
        seed = int(rng.integers(2**31))
        with self.gpu.checked("making arrays"):
            generator = torch.Generator(device=self.gpu.device)
            generator.manual_seed(seed)
            sets = [
                [_filled(self.gpu, size, plan, point, generator) for size in elements]
                for _ in range(count)
            ]
        runs = [self._runner(plan, each) for each in sets]
        return TorchWork(
            self.gpu,
            lambda i: runs[i](),
            [c for _, _, c in sets],
            lambda i: _micro_error(torch, plan, *sets[i]),
            cache=point.cache,
            tolerance=MICRO_TOLERANCE,
            facts={**facts, "moved_bytes": plan.moved_bytes, "operand_seed": seed},
        )


def _columns_first(each: Buffers) -> Buffers:
    """Return the same buffers with C stored as (batch, n, m), seen as (batch, m, n)."""
    batch, m, n = each.out.shape
    return replace(each, out=each.out.view(batch, n, m).transpose(1, 2))


def _filled(gpu: TorchGpu, size: int, plan: Plan, point: Point, generator: Any) -> Any:
    torch = gpu.torch
    options = {"device": gpu.device, "dtype": torch.float32}
    if point.pattern == "zeros":
        return torch.zeros(size, **options)
    values = torch.randn(size, generator=generator, **options)
    if point.pattern == "sparse":
        values.mul_(torch.rand(size, generator=generator, **options) >= 0.5)
    # sums must not be small differences of large numbers
    return values.abs_() if plan.kernel == "l2_read" else values


def _micro_error(torch: Any, plan: Plan, a: Any, b: Any, c: Any) -> float:
    """Relative error of a micro-benchmark's output in float64, as kernels_src.micro_error."""
    wide = c.to(torch.float64)
    if not bool(torch.isfinite(wide).all()):
        return float("inf")
    if plan.kernel == "launch":
        return abs(float(wide[0]) - 1.0)
    left = a.to(torch.float64)
    if plan.kernel == "l2_read":
        wide, expected = wide.sum().reshape(1), plan.sizes[1] * left.sum().reshape(1)
    else:
        expected = left if plan.kernel == "copy" else 3.0 * left + b.to(torch.float64)
    size, error = float(expected.norm()), float((wide - expected).norm())
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size
