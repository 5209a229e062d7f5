"""Provider "torch": the vendor's library (cuBLAS, cuBLASLt) and micro-benchmarks through torch.

    library   fp64, fp32 (TF32 off), tf32, fp16, bf16: mm and bmm in every layout, by strides
              fp8_e4m3: _scaled_mm, bf16 out, layout nt; one scale a tensor, or one a row
              int8: _int_mm, int32 out
    copy      y = x                m bytes read and m written
    triad     y = x + 3 z          2 m read, m written
    l2_read   sum of x             m bytes read in one pass: a lower bound of the cache's rate
    launch    one element written  the cost of an almost empty kernel

The library picks its kernel; its name is a fact (`kernel_source`) of the share of points that is
profiled. Global settings of torch are as found after each launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...dtypes import dtype as find_dtype
from ...errors import SpecError
from ..base import BANDWIDTH_KERNELS, Point, Probe, Work
from .operands import set_count
from .torch_device import TorchGpu
from .torch_operands import Buffers
from .torch_work import TorchWork, gemm_work, sets_for

__all__ = ["MOVED", "TorchLibrary"]

_FORMATS = ("fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "int8")
_SCALINGS = ("tensor", "row")
MOVED = {"copy": 2, "triad": 3, "l2_read": 1, "launch": 0}  # bytes moved over bytes of an array
_MICRO_TOLERANCE = {"copy": 0.0, "triad": 1e-6, "l2_read": 1e-5, "launch": 0.0}


class TorchLibrary:
    """Library GEMM and micro-benchmarks on one CUDA device.

    `index` is the device, `scaling` how fp8 operands are scaled ("tensor" or "row"; all scales
    are 1), `fast_accumulation` lets fp8 tensor cores keep partial sums at their own width,
    `profile` is the share of points whose kernel is looked up by name, `allow_shared` measures
    beside other processes. Raises SpecError for an unknown scaling or a share outside 0 to 1.
    """

    name = "torch"

    def __init__(
        self,
        *,
        index: int = 0,
        scaling: str = "tensor",
        fast_accumulation: bool = True,
        profile: float = 0.0,
        allow_shared: bool = False,
        gpu: TorchGpu | None = None,
    ) -> None:
        if scaling not in _SCALINGS:
            raise SpecError(f"torch.scaling: got {scaling!r}, need one of {', '.join(_SCALINGS)}")
        if not 0 <= profile <= 1:
            raise SpecError(f"torch.profile: got {profile!r}, need a share from 0 to 1")
        self.gpu = gpu or TorchGpu(index, allow_shared=allow_shared)
        self._scaling, self._fast, self._profile = scaling, fast_accumulation, profile

    def probe(self) -> Probe:
        """Whether the device answers and multiplies."""
        return self.gpu.probe()

    def refusal(self, point: Point) -> str:
        """Why the library cannot run a point, or ""."""
        if point.kernel in BANDWIDTH_KERNELS:
            if point.kernel != "launch" and point.m % 4:
                return f"{point.kernel}: m is bytes of fp32, got {point.m}; need a multiple of 4"
            return self.gpu.refusal()
        if point.kernel != "library":
            allowed = ", ".join(("library", *BANDWIDTH_KERNELS))
            return f"provider torch has no kernel {point.kernel!r}; one of {allowed}"
        name = find_dtype(point.dtype).name
        if name not in _FORMATS:
            return f"torch multiplies no {name}; one of {', '.join(_FORMATS)}"
        return _shape_refusal(point, name) or self.gpu.refusal()

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Operands on the device and the library's call on them."""
        if point.kernel in BANDWIDTH_KERNELS:
            return _micro_work(self.gpu, point, rng)
        sets = sets_for(self.gpu, point, rng)
        name = find_dtype(point.dtype).name
        facts: dict[str, Any] = {}
        if name == "fp8_e4m3":
            calls = [self._scaled(each) for each in sets]
            facts = {"scaling": self._scaling, "fast_accumulation": int(self._fast)}
        elif name == "int8":
            calls = [_call(self.gpu.torch._int_mm, each, 1) for each in sets]
        elif point.batch > 1:
            calls = [_call(self.gpu.torch.bmm, each, point.batch) for each in sets]
        else:
            calls = [_call(self.gpu.torch.mm, each, 1) for each in sets]

        def launch(index: int) -> None:
            with _precision(self.gpu.torch, name):
                calls[index]()

        if int(point.key[:8], 16) < self._profile * 2**32:
            with self.gpu.checked("profiling"):
                facts |= _kernel_name(self.gpu.torch, lambda: launch(0))
        return gemm_work(self.gpu, point, launch, sets, rng=rng, facts=facts)

    def _scaled(self, each: Buffers) -> Any:
        torch, device = self.gpu.torch, self.gpu.device
        left, right, out = each.left[0], each.right[0], each.out[0]
        rows, columns = (left.shape[0], right.shape[1]) if self._scaling == "row" else (1, 1)
        shapes = ((rows, 1), (1, columns)) if self._scaling == "row" else ((), ())
        scales = [torch.ones(shape, device=device, dtype=torch.float32) for shape in shapes]
        fast = {"use_fast_accum": self._fast, "out_dtype": out.dtype, "out": out}
        return lambda: torch._scaled_mm(left, right, *scales, **fast)


def _shape_refusal(point: Point, name: str) -> str:
    """Return what cuBLASLt and torch ask of 8-bit shapes, or ""."""
    if name not in ("fp8_e4m3", "int8"):
        return ""
    if point.batch > 1:
        return f"{name}: torch multiplies no batches of it, got batch {point.batch}"
    if name == "fp8_e4m3":
        if point.layout != "nt":
            return f"fp8_e4m3: layout nt only (A by rows, B by columns), got {point.layout}"
        if point.n % 16 or point.k % 16:
            return f"fp8_e4m3: n and k must be multiples of 16, got {point.n} and {point.k}"
    elif point.m <= 16 or point.n % 8 or point.k % 8:
        return f"int8: m above 16, n and k multiples of 8; got {point.m}x{point.n}x{point.k}"
    return ""


def _call(multiply: Any, each: Buffers, batch: int) -> Any:
    """Return the call on one buffer set, its views made once."""
    if batch > 1:
        left, right, out = each.left, each.right, each.out
    else:
        left, right, out = each.left[0], each.right[0], each.out[0]
    return lambda: multiply(left, right, out=out)


@contextmanager
def _precision(torch: Any, name: str) -> Iterator[None]:
    """Let fp32 products run as tf32 or as fp32 inside the block."""
    if name not in ("fp32", "tf32"):
        yield
        return
    settings = torch.backends.cuda.matmul
    if hasattr(settings, "fp32_precision"):  # torch 2.9 and later
        field, value = "fp32_precision", "tf32" if name == "tf32" else "ieee"
    else:
        field, value = "allow_tf32", name == "tf32"
    before = getattr(settings, field)
    setattr(settings, field, value)
    try:
        yield
    finally:
        setattr(settings, field, before)


def _kernel_name(torch: Any, run: Any) -> dict[str, Any]:
    """Name of the longest kernel of a run, by torch's profiler; a reason where it sees none."""
    run()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=activities) as seen:
            run()
            torch.cuda.synchronize()
        kernels = [e for e in seen.events() if "CUDA" in str(e.device_type)]
    except RuntimeError as error:
        return {"kernel_source_reason": f"profiler: {(str(error).splitlines() or [''])[0][:200]}"}
    if not kernels:
        return {"kernel_source_reason": "profiler: no kernel seen"}
    longest = max(kernels, key=lambda e: e.time_range.elapsed_us())
    return {"kernel_source": str(longest.name)[:200], "kernels_per_run": len(kernels)}


def _micro_work(gpu: TorchGpu, point: Point, rng: np.random.Generator) -> TorchWork:
    """Make a micro-benchmark over fp32 arrays of `point.m` bytes, uniform random from 0 to 1."""
    torch = gpu.torch
    elements = max(point.m // 4, 1)
    reads = {"copy": 1, "triad": 2, "l2_read": 1, "launch": 0}[point.kernel]
    whole = point.kernel in ("copy", "triad")
    size = point.m * MOVED[point.kernel]
    count = 1 if point.cache == "hot" else set_count(size, gpu.l2_bytes)
    seed = int(rng.integers(2**31))
    with gpu.checked("making arrays"):
        generator = torch.Generator(device=gpu.device)
        generator.manual_seed(seed)
        options = {"device": gpu.device, "dtype": torch.float32}
        inputs = [
            [torch.rand(elements, generator=generator, **options) for _ in range(reads)]
            for _ in range(count)
        ]
        outputs = [torch.empty(elements if whole else 1, **options) for _ in range(count)]

    def launch(index: int) -> None:
        out = outputs[index]
        if point.kernel == "copy":
            out.copy_(inputs[index][0])
        elif point.kernel == "triad":
            torch.add(*inputs[index], alpha=3.0, out=out)
        elif point.kernel == "l2_read":
            torch.sum(inputs[index][0], dim=0, keepdim=True, out=out)
        else:
            out.fill_(1.0)

    def check(index: int) -> float:
        wide = [each.to(torch.float64) for each in inputs[index]]
        expected = {
            "copy": lambda: wide[0],
            "triad": lambda: wide[0] + 3.0 * wide[1],
            "l2_read": lambda: wide[0].sum().reshape(1),
            "launch": lambda: torch.ones(1, device=gpu.device, dtype=torch.float64),
        }[point.kernel]()
        error = (outputs[index].to(torch.float64) - expected).norm() / expected.norm()
        return float(error)

    return TorchWork(
        gpu,
        launch,
        outputs,
        check,
        cache=point.cache,
        tolerance=_MICRO_TOLERANCE[point.kernel],
        facts={"moved_bytes": size, "operand_seed": seed},
    )
