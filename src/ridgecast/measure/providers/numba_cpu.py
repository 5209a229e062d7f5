"""Tiled kernels compiled with numba: what runs on any machine that has pip.

    kernel "tiled"       the naive shared-memory kernel, config `tile` 1 to 32
    kernel "clblast"     register-blocked, with CLBlast's parameters as far as a CPU has them
    copy, triad, l2_read, launch      see `micro_cpu`

What a GPU has, a core has thus: a block is one iteration of a loop that the cores share, so a core
holds one block at a time; shared memory is a small buffer that stays in the level 1 cache; the
threads of a block are lanes of vectors and iterations; a barrier is the order of statements.
Parameters of "clblast":

    mwg nwg kwg     tile of C of a work-group, and the depth of A and B that it handles at a time
    mdimc ndimc     threads: each holds mwg/mdimc x nwg/ndimc outputs in vector registers while it
                    runs through kwg; what does not fit in the registers spills, as on a GPU
    vwn             lanes of the vectors in which a thread holds its row of outputs
    kwi             steps of depth in one loop body
    sa sb           1: the tile of A (turned) or of B is packed into a buffer first; 0: read in
                    place, but for tiles that the matrix's edge cuts, which are packed with zeros
    vwm mdima ndimb checked, without effect: values of A are broadcast one by one, and one loop
                    packs a tile (mdima and ndimb default to mdimc and ndimc)
    strm strn gemmk kreg    refused unless 0 0 0 1: they order the accesses of neighbouring threads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from ...errors import MeasurementError, MissingExtraError, SpecError
from ...kernels.config import ClblastConfig, TiledConfig
from ..base import BANDWIDTH_KERNELS, Point, Probe, Work
from .cpu_device import cpu_device, usable_cores
from .cpu_work import gemm_sets, gemm_work
from .micro_cpu import micro_refusal, numba_micro
from .operands import product_error

__all__ = ["NumbaCpu", "clblast_config"]

_CURE = "pip install 'ridgecast[study]'"
_LAYOUTS = ("nn", "nt", "tn", "tt")
_DTYPES = ("fp32", "fp64")
_FIXED = {"strm": 0, "strn": 0, "gemmk": 0, "kreg": 1}
_MOST_OPERATIONS = 2048  # vector multiply-adds in one loop body; beyond, compiling takes minutes


def clblast_config(given: Mapping[str, int]) -> ClblastConfig:
    """Return the checked configuration; mdima and ndimb default to mdimc and ndimc.

    Raises SpecError for unknown parameters and where CLBlast's constraints do not hold.
    """
    known = {name.lower(): name for name in ClblastConfig.__dataclass_fields__}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise SpecError(f"clblast has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    values = {known[name]: int(value) for name, value in given.items()}
    for layout, threads in (("MDIMA", "MDIMC"), ("NDIMB", "NDIMC")):
        values.setdefault(layout, values.get(threads, 8))
    return ClblastConfig(**values)


def _numba() -> Any:
    return import_module("numba")


def _kernels() -> Any:
    """Return the compiled kernels' module. Raises MissingExtraError without numba."""
    try:
        from . import numba_kernels
    except ImportError as error:
        raise MissingExtraError(f"the numba provider needs numba ({error}): {_CURE}") from None
    return numba_kernels


class NumbaCpu:
    """Tiled and register-blocked GEMM, and bandwidth loops, on `threads` cores (default: all)."""

    name = "numba"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise SpecError(f"numba.threads: got {threads}, need 1 or more")
        self._threads = threads
        self._probe: Probe | None = None

    def probe(self) -> Probe:
        """Compile the kernel of tile 4 (or load it from numba's cache), run it and check it."""
        if self._probe is None:
            self._probe = self._try()
        return self._probe

    def _try(self) -> Probe:
        try:
            kernels = _kernels()
        except MissingExtraError as error:
            return Probe(False, str(error), _CURE)
        numba = _numba()
        most = int(numba.config.NUMBA_NUM_THREADS)
        if self._threads is not None and self._threads > most:
            reason = f"numba.threads: got {self._threads}, numba was started with {most} at most"
            return Probe(False, reason, f"set NUMBA_NUM_THREADS={self._threads} before it starts")
        a = np.arange(25, dtype=np.float32).reshape(1, 5, 5)
        out = np.full_like(a, np.nan)
        kernels.tiled_kernel(4, "fp32", "nn")(a, a, out, self._count())
        error = product_error(out, a, a, np.random.default_rng(0))
        if not error < 1e-6:
            return Probe(
                False, f"numba's probe kernel computes wrongly: relative error {error:.3g}"
            )
        info = cpu_device()
        facts = {**info.facts, "numba": numba.__version__, "threads": self._count(),
                 "threading_layer": numba.threading_layer()}  # fmt: skip
        return Probe(True, device=replace(info, facts=facts))

    def _count(self) -> int:
        numba = _numba()
        return self._threads or min(usable_cores(), int(numba.config.NUMBA_NUM_THREADS))

    def refusal(self, point: Point) -> str:
        """Say why the point cannot run: kernel, format, layout, configuration."""
        if point.kernel in BANDWIDTH_KERNELS:
            return micro_refusal(point)
        if point.kernel not in ("tiled", "clblast"):
            return f"numba runs tiled, clblast, copy, triad, l2_read or launch, not {point.kernel}"
        if point.dtype not in _DTYPES:
            return f"the compiled kernels multiply {' and '.join(_DTYPES)}, not {point.dtype}"
        if point.layout not in _LAYOUTS:
            return f"layout {point.layout!r} is none of {', '.join(_LAYOUTS)}"
        try:
            return _tiled_refusal(point) if point.kernel == "tiled" else _clblast_refusal(point)
        except SpecError as error:
            return str(error)

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Make operands, compile the kernel or load it from numba's cache, run it once."""
        refused = self.refusal(point)
        if refused:
            raise MeasurementError(refused)
        kernels = _kernels()
        numba = _numba()
        threads = self._count()

        def begin() -> None:
            numba.set_num_threads(threads)

        if point.kernel in BANDWIDTH_KERNELS:
            return numba_micro(point, rng, threads, begin)
        kernel, facts = _build(kernels, point)
        sets = gemm_sets(point, rng)
        views = [
            (ops.left, ops.right, out) for ops, out in zip(sets.operands, sets.outputs, strict=True)
        ]

        def run(index: int) -> None:
            left, right, out = views[index]
            kernel(left, right, out, threads)

        facts = {"threads": threads, "kernel_source": f"numba {numba.__version__}", **facts}
        return gemm_work(point, sets, run, rng, facts=facts, begin=begin)


def _tiled_refusal(point: Point) -> str:
    extra = sorted(set(point.config) - {"tile"})
    if extra:
        return f"the tiled kernel has one parameter, tile; got {', '.join(extra)}"
    TiledConfig(int(point.config.get("tile", 16)))
    return ""


def _clblast_refusal(point: Point) -> str:
    config = clblast_config(point.config)
    for name, value in _FIXED.items():
        got = getattr(config, name.upper())
        if got != value:
            return f"clblast.{name}: got {got}, on a CPU only {value} has a meaning"
    rows, columns, vectors = _thread(config)
    operations = rows * vectors * int(config.KWI)
    if operations > _MOST_OPERATIONS:
        return (
            f"clblast: a thread of {rows} x {columns} outputs in vectors of {config.VWN} makes "
            f"{operations} operations a loop body, at most {_MOST_OPERATIONS} are compiled; "
            "use more threads (mdimc, ndimc) or wider vectors (vwn)"
        )
    if point.layout[1] == "t" and not config.SB:
        return "clblast.sb: a transposed B is read along its depth; stage it with sb = 1"
    return ""


def _thread(config: ClblastConfig) -> tuple[int, int, int]:
    """Rows and columns of outputs of a thread, and the vectors of one of its rows."""
    rows = int(config.MWG) // int(config.MDIMC)
    columns = int(config.NWG) // int(config.NDIMC)
    return rows, columns, columns // int(config.VWN)


def _build(kernels: Any, point: Point) -> tuple[Any, dict[str, float | int | str]]:
    """Return the kernel of a point and what there is to say about it."""
    size = 8 if point.dtype == "fp64" else 4
    if point.kernel == "tiled":
        tile = int(point.config.get("tile", 16))
        lanes = kernels.lanes_of(tile)
        kernel = kernels.tiled_kernel(tile, point.dtype, point.layout)
        return kernel, {"lanes": lanes, "shared_bytes": tile * (tile + lanes) * size}
    c = clblast_config(point.config)
    group, threads = (int(c.MWG), int(c.NWG), int(c.KWG)), (int(c.MDIMC), int(c.NDIMC))
    kernel = kernels.register_kernel(
        group, threads, int(c.VWN), int(c.KWI), (int(c.SA), int(c.SB)), point.dtype, point.layout
    )
    rows, columns, _ = _thread(c)
    staged = (int(c.SA) * group[0] + int(c.SB) * group[1]) * group[2] * size
    return kernel, {"lanes": int(c.VWN), "outputs": rows * columns, "shared_bytes": staged}
