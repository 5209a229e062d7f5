"""Provider "opencl": the kernels of kernels_src on any OpenCL device, GPU or CPU.

    tiled      config tile (1..32)
    clblast    a register-blocked kernel with CLBlast's parameters: mwg nwg kwg mdimc ndimc mdima
               ndimb kwi vwm vwn strm strn sa sb; layout tn is the one it reads in whole vectors
    copy, triad, l2_read, launch

Time is the device's own, by event profiling. hot: runs follow each other on one buffer set, a
sample is `runs_per_sample` of them where the clock of the device is coarse. cold: before each run
a buffer of twice the cache is written, outside the run's events, and runs rotate through buffer
sets. `launch` is the time from one launch to the next.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ...dtypes import dtype as find_dtype
from ...errors import MeasurementError, MissingExtraError, RidgecastError
from ..base import BANDWIDTH_KERNELS, DeviceInfo, Point, Probe, Work
from ..kernels_src import MICRO_TOLERANCE, Limits, Plan, micro_arrays, micro_error, plan_of, source
from ..kernels_src import refusal as plan_refusal
from .nvcc import parse_ptxas, trimmed
from .opencl_platforms import (
    DRIVER_CURE,
    EXTRA_CURE,
    Candidate,
    choose,
    explain,
    import_pyopencl,
    self_test,
    survey,
)
from .opencl_work import Arrays, OpenClWork, OpenDevice, Prepared, checked
from .operands import copies, make_operands, product_error, set_count, tolerance
from .torch_device import catalogue_name

__all__ = ["OpenCl"]

_OPTIONS = ("-cl-mad-enable",)  # a * b + c in one rounding, as every GEMM does
_KEPT_PROGRAMS = 64
_UNLIMITED = 2**31 - 1  # OpenCL has no limit on groups along y and z


class OpenCl:
    """The kernels on the first OpenCL device that works, GPUs before CPUs.

    `platform` picks by part of a platform's name or version, `device` by kind ("gpu", "cpu") or
    part of a device's name; `timeout` [s] limits the survey of the platforms, which runs in
    another process.
    """

    name = "opencl"

    def __init__(self, *, platform: str = "", device: str = "", timeout: float = 60.0) -> None:
        self._platform, self._device, self._timeout = platform, device, timeout
        self._open: OpenDevice | None = None
        self._failed: Probe | None = None
        self._programs: dict[str, tuple[Any, str]] = {}

    def probe(self) -> Probe:
        """Survey all platforms once; from then on run a small kernel on the chosen device."""
        if self._failed is not None:
            return self._failed
        try:
            if self._open is None:
                self._open = self._choose()
        except MissingExtraError as error:
            self._failed = Probe(False, str(error), EXTRA_CURE)
            return self._failed
        except MeasurementError as error:
            self._failed = Probe(False, str(error), DRIVER_CURE)
            return self._failed
        reason = self_test(self._open.device)
        if reason:
            return Probe(False, f"{self._open.info.name} {reason}", DRIVER_CURE, self._open.info)
        return Probe(True, self._open.info.facts["platforms"], device=self._open.info)

    def _choose(self) -> OpenDevice:
        found = survey(self._timeout)
        chosen = choose(found, self._platform, self._device)
        with checked("opening the device"):
            return _open(chosen, explain(found))

    def _ready(self) -> OpenDevice:
        if self._open is None:
            probe = self.probe()
            if self._open is None:
                cure = f"; {probe.cure}" if probe.cure and probe.cure not in probe.reason else ""
                raise MeasurementError(f"opencl: {probe.reason}{cure}")
        return self._open

    def refusal(self, point: Point) -> str:
        """Why the kernels or the device cannot run a point, or ""."""
        try:
            here = self._ready()
        except RidgecastError as error:
            return str(error)
        if point.kernel == "l2_read" and here.info.kind == "cpu":
            return "l2_read on a CPU measures the loop of a work-item, not the cache"
        return plan_refusal(point, here.limits)

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Arrays on the device and the built kernel; raises MeasurementError when that fails."""
        here = self._ready()
        reason = plan_refusal(point, here.limits)
        if reason:
            raise MeasurementError(reason)
        plan = plan_of(point)
        program, log = self._build(here, plan)
        with checked("preparing the kernel"):
            facts = _facts(here, plan, program, log)
            micro = point.kernel in BANDWIDTH_KERNELS
            prepared = (_micro if micro else _gemm)(here, point, plan, rng)
            cold = point.cache == "cold"
            return OpenClWork(here, plan, program, prepared, cold=cold, facts=facts)

    def _build(self, here: OpenDevice, plan: Plan) -> tuple[Any, str]:
        """Build a plan's program, or find it among the last ones; with the compiler's log."""
        text = source(plan, "opencl")
        if text in self._programs:
            self._programs[text] = self._programs.pop(text)  # last used goes last
            return self._programs[text]
        options = [*_OPTIONS, *(["-cl-nv-verbose"] if here.nvidia else [])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyopencl warns of any compiler output
            program = here.cl.Program(here.context, text)
            try:
                # cached binaries come without a log, which holds the registers
                program.build(options, cache_dir=False if here.nvidia else None)
            except here.cl.Error as error:
                raise MeasurementError(
                    f"{plan.kernel} does not build on {here.info.name}: {trimmed(str(error))}"
                ) from error
        with checked("reading the build log"):
            log = program.get_build_info(here.device, here.cl.program_build_info.LOG) or ""
        while len(self._programs) >= _KEPT_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        self._programs[text] = (program, log)
        return program, log


def _open(chosen: Candidate, platforms: str) -> OpenDevice:
    """Open a device that the survey found to work."""
    cl = import_pyopencl()
    device = cl.get_platforms()[chosen.platform].get_devices()[chosen.device]
    context = cl.Context([device])
    queue = cl.CommandQueue(context, properties=cl.command_queue_properties.PROFILING_ENABLE)
    has = set(device.extensions.split())
    dtypes = ("fp32", *(["fp64"] if "cl_khr_fp64" in has else []),
              *(["fp16"] if "cl_khr_fp16" in has else []))  # fmt: skip
    name = chosen.device_name
    if "cl_amd_device_attribute_query" in has:
        name = device.board_name_amd.strip() or name
    info = DeviceInfo(
        name=name,
        kind="cpu" if chosen.kind == "cpu" else "gpu",
        hardware="" if chosen.kind == "cpu" else catalogue_name(name),
        memory=int(device.global_mem_size),
        facts={
            "driver": device.driver_version.strip(),
            "platform": f"{chosen.platform_name} {chosen.version}",
            "platforms": platforms,
            "pyopencl": str(cl.VERSION_TEXT),
            "compute_units": int(device.max_compute_units),
            "cache_bytes": int(device.global_mem_cache_size),
            "local_memory_bytes": int(device.local_mem_size),
            "timer_resolution_s": device.profiling_timer_resolution * 1e-9,
        },
    )
    limits = Limits(
        threads=int(device.max_work_group_size),
        shared_bytes=int(device.local_mem_size),
        groups_y=_UNLIMITED,
        memory=int(device.global_mem_size),
        array_bytes=int(device.max_mem_alloc_size),
        dtypes=dtypes,
    )
    nvidia = "cl_nv_compiler_options" in has
    return OpenDevice(cl, device, context, queue, info, limits, nvidia)


def _gemm(here: OpenDevice, point: Point, plan: Plan, rng: np.random.Generator) -> Prepared:
    """Operand sets of a GEMM, as the device stores them, and the check of its output."""
    ops = make_operands(point, rng)
    stored = np.float16 if plan.dtype == "fp16" else ops.a.dtype
    shape = (point.batch, point.m, point.n)
    shape = (shape[0], shape[2], shape[1]) if plan.columns_first else shape
    size = find_dtype(plan.dtype).bytes_of(ops.a.size + ops.b.size + point.m * point.n)
    count = 1 if point.cache == "hot" else set_count(size, here.cache_bytes)
    arrays: list[Arrays] = [
        (each.a.astype(stored, copy=False), each.b.astype(stored, copy=False),
         np.empty(shape, stored))
        for each in copies(ops, count)
    ]  # fmt: skip

    def check(out: np.ndarray) -> float:
        made = out.swapaxes(1, 2) if plan.columns_first else out
        return product_error(made, ops.left, ops.right, rng)

    return Prepared(arrays, check, tolerance(point.dtype, point.k))


def _micro(here: OpenDevice, point: Point, plan: Plan, rng: np.random.Generator) -> Prepared:
    """Array sets of a micro-benchmark and the check of its output."""
    a, b, c = micro_arrays(point, plan, rng)
    size = a.nbytes + b.nbytes + c.nbytes
    count = 1 if point.cache == "hot" else set_count(size, here.cache_bytes)
    arrays: list[Arrays] = [(a, b, np.empty_like(c)) for _ in range(count)]
    return Prepared(arrays, lambda out: micro_error(plan, a, b, out), MICRO_TOLERANCE)


def _facts(here: OpenDevice, plan: Plan, program: Any, log: str) -> dict[str, Any]:
    """Columns of a row: the device, and what the compiler made of the kernel."""
    ask = here.cl.kernel_work_group_info
    kernel = here.cl.Kernel(program, plan.function)

    def told(what: Any) -> int:
        return int(kernel.get_work_group_info(what, here.device))

    threads, most = plan.threads[0] * plan.threads[1], told(ask.WORK_GROUP_SIZE)
    if threads > most:
        raise MeasurementError(
            f"{plan.kernel} wants {threads} threads in a group; as built, the device allows {most}"
        )
    facts: dict[str, Any] = {
        "device": here.info.name,
        "hardware": here.info.hardware,
        **{name: here.info.facts[name] for name in ("driver", "platform", "pyopencl")},
        "kernel_source": f"kernels_src/{plan.function} (OpenCL)",
        "threads": threads,
        "blocks": int(np.prod(plan.groups)),
        "shared_bytes": told(ask.LOCAL_MEM_SIZE),
        "private_bytes": told(ask.PRIVATE_MEM_SIZE),
        "thread_multiple": told(ask.PREFERRED_WORK_GROUP_SIZE_MULTIPLE),
    }
    if plan.moved_bytes:
        facts["moved_bytes"] = plan.moved_bytes
    resources = parse_ptxas(log).get(plan.function)
    if resources is not None:
        facts |= {"registers": resources.registers, "spilt_bytes": resources.spill_stores}
    return facts
