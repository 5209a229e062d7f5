"""Provider "triton": a tiled matrix product written in Triton, kernel "triton".

Configuration columns of a point and what they mean here:

    tile_m tile_n tile_k   block tile in elements, powers of two, 16 or more
    warps_m warps_n        their product is Triton's num_warps; Triton lays the warps out itself,
                           along m first, so `triton_config` writes them that way
    stages                 depth of the software pipeline (num_stages)
    split_k                parts of the k loop; they go to an fp32 workspace and a second kernel
                           sums them: nothing has to be zeroed, every run gives the same result
    swizzle                rows of tiles that are walked together (GROUP_M of Triton's tutorial)

The timed work is the product and, where split_k > 1, the sum. Accumulation is fp32 (int32 for
int8); fp32 operands are multiplied exactly, tf32 ones on the tensor cores. Many configurations are
compiled ahead in processes of their own: `precompile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from ...dtypes import dtype as find_dtype
from ...errors import MeasurementError, RidgecastError
from ..base import Point, Probe, Work
from .torch_device import TorchGpu
from .torch_operands import Buffers, out_format, torch_format
from .torch_work import Launch, gemm_work, sets_for
from .triton_kernels import REDUCE_TILE, compile_variant, load

__all__ = ["TritonMatmul", "resident", "shared_estimate", "triton_config", "variant"]

_FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8")
_COLUMNS = ("tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "stages", "split_k", "swizzle")
_DEFAULTS = {"warps_m": 4, "warps_n": 1, "stages": 3, "split_k": 1, "swizzle": 8}
_SPECIALISED = ("m", "n", "k", "s_am", "s_ak", "s_bk", "s_bn", "s_om", "s_on")
_RUNTIME = ("s_part", "steps")
_LEAST_TILE = 16  # of a matrix instruction; 32 along k for 8-bit formats
_SLOWEST_COMPILE = 180.0  # s that a configuration may compile


def triton_config(
    tile: tuple[int, int, int],
    *,
    num_warps: int = 4,
    stages: int = 3,
    split_k: int = 1,
    group_m: int = 8,
) -> dict[str, int]:
    """Columns of a configuration; `tile` is (m, n, k), warps go along m while each owns 16 rows.

    >>> triton_config((16, 128, 64), num_warps=4)["warps_n"]
    4
    """
    warps_m = min(num_warps, max(tile[0] // 16, 1))
    values = (*tile, warps_m, num_warps // warps_m, stages, split_k, group_m)
    return dict(zip(_COLUMNS, values, strict=True))


def shared_estimate(config: Mapping[str, int], dtype: str) -> int:
    """Shared memory [bytes] of a block on sm_90: a buffer a stage, one less without wgmma.

    Observed with Triton 3.6 and 3.9 for sm_90: products by warp groups (16 bits and less, tile_m
    of 64 and more, 4 warps and more) keep every stage in shared memory, others one less.
    """
    size = find_dtype(dtype).bits / 8
    grouped = size <= 2 and config["tile_m"] >= 64 and config["warps_m"] * config["warps_n"] >= 4
    buffers = max(config["stages"] - (0 if grouped else 1), 1)
    return int(buffers * (config["tile_m"] + config["tile_n"]) * config["tile_k"] * size)


class TritonMatmul:
    """The Triton product on one CUDA device; `index` and `allow_shared` as in TorchGpu."""

    name = "triton"

    def __init__(
        self, *, index: int = 0, allow_shared: bool = False, gpu: TorchGpu | None = None
    ) -> None:
        self.gpu = gpu or TorchGpu(index, allow_shared=allow_shared)
        self._pool: ProcessPoolExecutor | None = None
        self._compiling: dict[tuple[Any, ...], Future[dict[str, Any]]] = {}

    def probe(self) -> Probe:
        """Whether Triton is here and the device answers."""
        try:
            load()
        except RidgecastError as error:
            return Probe(False, str(error), "pip install triton")
        return self.gpu.probe()

    def refusal(self, point: Point) -> str:
        """Why the kernel cannot run a point, or ""."""
        return _config_refusal(point) or self.gpu.refusal()

    def precompile(self, points: Iterable[Point], workers: int) -> int:
        """Begin to compile the points' kernels in `workers` processes; how many there are.

        `prepare` waits for its own kernel. The first points are compiled first. Call `close` at
        the end. A script that calls this needs the `if __name__ == "__main__"` guard.
        """
        import multiprocessing

        capability = _capability(self.gpu)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context)
        for point in points:
            key = variant(point)
            if key not in self._compiling and not _config_refusal(point):
                spec = _spec(point)
                self._compiling[key] = self._pool.submit(compile_variant, capability, *spec)
        return len(self._compiling)

    def close(self) -> None:
        """Stop compiling ahead; what is compiled stays in Triton's cache."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._compiling.clear()

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Operands, the compiled kernel and its launch. Raises MeasurementError when it fails."""
        self._await_compiled(point)
        sets = sets_for(self.gpu, point, rng)
        launch, facts = self._launcher(point, sets)
        return gemm_work(self.gpu, point, launch, sets, rng=rng, facts=facts)

    def _await_compiled(self, point: Point) -> None:
        future = self._compiling.get(variant(point))
        if future is None:
            return
        try:
            error = future.result(timeout=_SLOWEST_COMPILE).get("error")
        except BrokenProcessPool:  # a compiler that crashed took its pool along: compile here
            self.close()
            return
        except TimeoutError:
            error = f"not compiled within {_SLOWEST_COMPILE:g} s"
        if error:
            raise MeasurementError(f"triton: {error}")

    def _launcher(self, point: Point, sets: list[Buffers]) -> tuple[Launch, dict[str, Any]]:
        torch, kernels = self.gpu.torch, load()
        config = _config(point)
        _, numbers, options = _spec(point)
        split, size = config["split_k"], point.m * point.n
        workspace = None
        if split > 1:
            kind = torch.int32 if point.dtype == "int8" else torch.float32
            with self.gpu.checked("making the workspace"):
                workspace = torch.empty((split, size), dtype=kind, device=self.gpu.device)
        grid = (_ceil(point.m, config["tile_m"]) * _ceil(point.n, config["tile_n"]), split)
        product, total = kernels.matmul[grid], kernels.reduce[(_ceil(size, REDUCE_TILE),)]

        def launch(index: int) -> Any:
            each = sets[index]
            target = each.out if workspace is None else workspace
            done = product(each.operands.a, each.operands.b, target, **numbers, **options)
            if workspace is not None:
                total(workspace, each.out, size, split=split, tile=REDUCE_TILE)
            return done

        try:
            with self.gpu.checked("first launch"):
                compiled = launch(0)
        except RidgecastError:
            raise
        except Exception as error:  # Triton's own: too much shared memory, a failed compile
            lines = [line for line in str(error).splitlines() if line.strip()]
            told = f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"
            raise MeasurementError(f"triton: {told}") from error
        facts = self._facts(compiled, config)
        return launch, facts | ({"workspace_bytes": 4 * split * size} if split > 1 else {})

    def _facts(self, compiled: Any, config: Mapping[str, int]) -> dict[str, Any]:
        """Return registers, spills and shared memory of the compiled kernel, and what fits."""
        warps = config["warps_m"] * config["warps_n"]
        facts: dict[str, Any] = {"num_warps": warps, "threads": 32 * warps}
        registers = getattr(compiled, "n_regs", None)
        shared = getattr(getattr(compiled, "metadata", None), "shared", None)
        if registers is None or shared is None:  # the interpreter compiles nothing
            return facts
        facts |= {"registers": int(registers), "shared_bytes": int(shared)}
        facts["spills"] = int(getattr(compiled, "n_spills", 0))
        return facts | resident(self.gpu, 32 * warps, int(registers), int(shared))


def resident(gpu: TorchGpu, threads: int, registers: int, shared: int) -> dict[str, Any]:
    """Blocks on an SM and occupancy by the device's limits; {} where the catalogue lacks it."""
    from ...hardware import get
    from ...kernels.occupancy import occupancy

    if not gpu.info.hardware:
        return {}
    limits = get(gpu.info.hardware).sm
    found = occupancy(limits, threads=threads, registers=registers, shared_bytes=shared)
    return {"blocks_per_sm": int(found.blocks_per_sm), "occupancy": float(found.occupancy)}


def _config(point: Point) -> dict[str, int]:
    return {**_DEFAULTS, **{name: int(value) for name, value in point.config.items()}}


def _config_refusal(point: Point) -> str:
    """Return what is wrong with the point's kernel, format, layout or configuration, or ""."""
    return next(_complaints(point), "")


def _complaints(point: Point) -> Iterator[str]:
    name = find_dtype(point.dtype).name
    if point.kernel != "triton":
        yield f"provider triton has no kernel {point.kernel!r}; it has triton"
    if name not in _FORMATS:
        yield f"triton: no {name}; one of {', '.join(_FORMATS)}"
    if point.batch != 1:
        yield f"triton: one product at a time, got batch {point.batch}"
    if len(point.layout) != 2 or set(point.layout) - {"n", "t"}:
        yield f"triton: layout {point.layout!r} is none of nn, nt, tn, tt"
    missing = [column for column in _COLUMNS[:3] if column not in point.config]
    unknown = sorted(set(point.config) - set(_COLUMNS))
    if missing or unknown:
        yield (
            f"triton: configuration lacks {', '.join(missing) or 'nothing'}, has unknown "
            f"{', '.join(unknown) or 'nothing'}; columns are {', '.join(_COLUMNS)}"
        )
    config = _config(point)
    least_k = _LEAST_TILE if find_dtype(name).bits >= 16 else 2 * _LEAST_TILE
    for column, least in (("tile_m", _LEAST_TILE), ("tile_n", _LEAST_TILE), ("tile_k", least_k)):
        value = config[column]
        if value < least or value & (value - 1):
            yield f"triton: {column} {value}; need a power of two from {least}"
    warps = config["warps_m"] * config["warps_n"]
    if not 1 <= warps <= 32 or warps & (warps - 1):
        yield f"triton: warps_m * warps_n is {warps}; need a power of two from 1 to 32"
    if min(config["stages"], config["split_k"], config["swizzle"]) < 1:
        yield "triton: stages, split_k and swizzle start at 1"
    if config["split_k"] > _ceil(point.k, config["tile_k"]):
        yield f"triton: split_k {config['split_k']} is more than the tiles along k {point.k}"


def _spec(point: Point) -> tuple[dict[str, str], dict[str, Any], dict[str, int]]:
    """Torch types, every number of the launch, and the compiler's options."""
    config, (m, n, k) = _config(point), (point.m, point.n, point.k)
    split, name = config["split_k"], find_dtype(point.dtype).name
    numbers: dict[str, Any] = {"m": m, "n": n, "k": k}
    numbers["s_am"], numbers["s_ak"] = (k, 1) if point.layout[0] == "n" else (1, m)
    numbers["s_bk"], numbers["s_bn"] = (n, 1) if point.layout[1] == "n" else (1, k)
    numbers |= {"s_om": n, "s_on": 1, "s_part": m * n if split > 1 else 0}
    numbers["steps"] = _ceil(_ceil(k, config["tile_k"]), split)
    numbers |= {
        "tile_m": config["tile_m"],
        "tile_n": config["tile_n"],
        "tile_k": config["tile_k"],
        "group_m": config["swizzle"],
        "even_k": k % config["tile_k"] == 0,
        "precision": "ieee" if name == "fp32" else "tf32",
        "integer": name == "int8",
        "wide": max(m * k, k * n, m * n) >= 2**31,
    }
    operand = _torch_name(name)
    out = _torch_name(out_format(name))
    if split > 1:
        out = "int32" if name == "int8" else "float32"
    options = {"num_warps": config["warps_m"] * config["warps_n"], "num_stages": config["stages"]}
    return {"a": operand, "b": operand, "out": out}, numbers, options


def _torch_name(name: str) -> str:
    class Names:
        def __getattr__(self, field: str) -> str:
            return field

    return "int32" if name == "int32" else torch_format(Names(), name)


def variant(point: Point) -> tuple[Any, ...]:
    """Return what tells compiled kernels apart.

    Triton compiles sizes and strides as 1, as a multiple of 16, or as any other number.
    """
    tensors, numbers, options = _spec(point)
    seen = [
        "1" if numbers[name] == 1 else "16" if numbers[name] % 16 == 0 else "any"
        for name in _SPECIALISED
    ]
    exact = [value for name, value in numbers.items() if name not in (*_SPECIALISED, *_RUNTIME)]
    return (*tensors.values(), *seen, *exact, *options.values())


def _capability(gpu: TorchGpu) -> int:
    return int(str(gpu.info.facts["compute_capability"]).replace(".", ""))


def _ceil(value: int, step: int) -> int:
    return -(-value // step)
