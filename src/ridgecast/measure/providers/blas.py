"""The BLAS behind numpy: what a vendor's library reaches on this CPU.

    kernel "library"                          numpy.matmul into a given output, fp32 and fp64
    kernels copy, triad, l2_read, launch      numpy's own loops, one core (see `micro_cpu`)

Whether the output skips an element is checked as for every provider. Needs numpy alone;
threadpoolctl, where installed, tells and sets the number of BLAS threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import MeasurementError, SpecError
from ..base import BANDWIDTH_KERNELS, Point, Probe, Work
from .cpu_device import cpu_device, usable_cores
from .cpu_work import gemm_sets, gemm_work
from .micro_cpu import micro_refusal, numpy_micro
from .operands import relative_frobenius

__all__ = ["Blas", "blas_name"]

_LAYOUTS = ("nn", "nt", "tn", "tt")


def blas_name() -> str:
    """Return the BLAS that numpy was built with, such as "scipy-openblas 0.3.30"."""
    with suppress(Exception):  # older numpy has no mode="dicts"; the name is only a note
        shown: Any = np.show_config(mode="dicts")  # type: ignore[call-overload]
        found = shown["Build Dependencies"]["blas"]
        return f"{found['name']} {found['version']}".strip()
    return "unknown"


class Blas:
    """numpy's matrix multiplication on this CPU. `threads` needs threadpoolctl; None leaves it."""

    name = "blas"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise SpecError(f"blas.threads: got {threads}, need 1 or more")
        self._threads = threads
        self._probe: Probe | None = None

    def probe(self) -> Probe:
        """Multiply two small matrices for real; facts name the BLAS and its threads."""
        if self._probe is None:
            self._probe = self._try()
        return self._probe

    def _try(self) -> Probe:
        if self._threads is not None and _pools() is None:
            reason = "without threadpoolctl the number of BLAS threads cannot be set"
            return Probe(False, reason, "pip install threadpoolctl")
        a = np.arange(64.0).reshape(8, 8)
        error = relative_frobenius(a @ a, np.einsum("ij,jk->ik", a, a))
        if not error < 1e-12:
            return Probe(False, f"numpy multiplies wrongly here: relative error {error:.3g}")
        info = cpu_device()
        facts = {**info.facts, "blas": blas_name(), "threads": self._count()}
        return Probe(True, device=replace(info, facts=facts))

    def _count(self) -> int:
        """Threads that the BLAS uses at most."""
        if self._threads is not None:
            return self._threads
        pools = _pools()
        known = [p["num_threads"] for p in pools.info() if p["user_api"] == "blas"] if pools else []
        return max(known, default=usable_cores())

    def refusal(self, point: Point) -> str:
        """Say why the point cannot run: kernel, format, layout, configuration."""
        if point.kernel in BANDWIDTH_KERNELS:
            return micro_refusal(point)
        if point.kernel != "library":
            return (
                f"blas runs the kernel library, copy, triad, l2_read or launch, not {point.kernel}"
            )
        if point.dtype not in ("fp32", "fp64"):
            return f"a CPU's BLAS multiplies fp32 and fp64, not {point.dtype}"
        if point.layout not in _LAYOUTS:
            return f"layout {point.layout!r} is none of {', '.join(_LAYOUTS)}"
        if point.config:
            return f"the library picks its own tile; got {', '.join(sorted(point.config))}"
        return ""

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Make operands and outputs; products are written into them without temporaries."""
        refused = self.refusal(point)
        if refused:
            raise MeasurementError(refused)
        if point.kernel in BANDWIDTH_KERNELS:
            return numpy_micro(point, rng)
        sets = gemm_sets(point, rng)
        views = [
            (ops.left[0], ops.right[0], out[0]) if point.batch == 1 else (ops.left, ops.right, out)
            for ops, out in zip(sets.operands, sets.outputs, strict=True)
        ]

        def run(index: int) -> None:
            left, right, out = views[index]
            np.matmul(left, right, out=out)

        facts = {"threads": self._count(), "kernel_source": blas_name()}
        begin, finish = self._limits()
        return gemm_work(point, sets, run, rng, facts=facts, begin=begin, finish=finish)

    def _limits(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return what sets the number of threads for a work, and what restores it."""
        pools = _pools()
        if self._threads is None or pools is None:
            return _nothing, _nothing
        limiter = pools.limit(limits=self._threads, user_api="blas")
        return _nothing, limiter.restore_original_limits


def _nothing() -> None:
    pass


def _pools() -> Any:
    """Return threadpoolctl's view of the libraries loaded, None where it is not installed."""
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-not-found]
    except ImportError:
        return None
    return ThreadpoolController()
