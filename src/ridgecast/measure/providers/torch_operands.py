"""Operands on a CUDA device and the float64 check of what a kernel made of them, through torch.

The twin of `operands` for matrices that would take seconds to draw and multiply on the host: the
same layouts, formats, patterns and tolerances, with values drawn by torch's generator on the
device. Also runs on a CPU device of torch. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...dtypes import dtype as find_dtype
from ...errors import SpecError, UnsupportedError
from ..base import Point
from .operands import EXACT_FLOPS, PROJECTIONS, SAMPLED
from .torch_device import TorchGpu

__all__ = ["Buffers", "DeviceOperands", "buffer_sets", "device_operands", "exact_limit",
           "out_format", "poison", "poisoned", "product_error", "torch_format"]  # fmt: skip

_CHUNK = 1 << 26  # elements drawn at once: 256 MiB of float32
_BLOCK = 4096  # rows and columns of a float64 reference block
_POOL_SHARE = 0.2  # of the device's memory that operands may keep
# compute capabilities whose float64 rate is at least a quarter of their float32 rate
_STRONG_FP64 = {"6.0", "7.0", "8.0", "9.0", "10.0"}
_STRONG_EXACT_FLOPS = 2e13  # about half a second of float64 on such a device
_FORMATS = {"fp64": "float64", "fp32": "float32", "tf32": "float32", "fp16": "float16",
            "bf16": "bfloat16", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2",
            "int8": "int8"}  # fmt: skip
_LARGEST = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0, "fp16": 65504.0}
_OUT = {"int8": "int32", "fp8_e4m3": "bf16", "fp8_e5m2": "bf16"}


@dataclass(frozen=True, slots=True)
class DeviceOperands:
    """A and B as they are stored, (batch, rows, columns) tensors, and the seed they came from."""

    a: Any
    b: Any
    layout: str
    seed: int

    @property
    def left(self) -> Any:
        """op(A) as a view of shape (batch, m, k)."""
        return self.a if self.layout[0] == "n" else self.a.transpose(1, 2)

    @property
    def right(self) -> Any:
        """op(B) as a view of shape (batch, k, n)."""
        return self.b if self.layout[1] == "n" else self.b.transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Buffers:
    """One set of operands with its own output of shape (batch, m, n)."""

    operands: DeviceOperands
    out: Any

    @property
    def left(self) -> Any:
        """op(A), (batch, m, k)."""
        return self.operands.left

    @property
    def right(self) -> Any:
        """op(B), (batch, k, n)."""
        return self.operands.right


def torch_format(torch: Any, dtype: str) -> Any:
    """Torch's type that stores a format; raises UnsupportedError for formats it lacks."""
    name = find_dtype(dtype).name
    if name not in _FORMATS:
        raise UnsupportedError(f"torch stores no {name}; one of {', '.join(_FORMATS)}")
    return getattr(torch, _FORMATS[name])


def out_format(dtype: str) -> str:
    """Format of a product's result: the operands' own, bf16 below 16 bits, int32 for integers."""
    name = find_dtype(dtype).name
    return _OUT.get(name, name)


def device_operands(gpu: TorchGpu, point: Point, rng: np.random.Generator) -> DeviceOperands:
    """Operands of a GEMM point on the device, drawn once per shape, format, layout and pattern.

    The seed is drawn from `rng` when the operands are made and kept with them. Patterns and
    rounding as in `operands.make_operands`. Raises SpecError for an unknown layout,
    UnsupportedError for a format that torch lacks.
    """
    if len(point.layout) != 2 or set(point.layout) - {"n", "t"}:
        raise SpecError(f"point.layout: got {point.layout!r}, need one of nn, nt, tn, tt")
    b, m, n, k = point.batch, point.m, point.n, point.k
    key = (b, m, n, k, find_dtype(point.dtype).name, point.layout, point.pattern)
    if key in gpu.pool:
        gpu.pool[key] = gpu.pool.pop(key)  # last used goes last
        return gpu.pool[key]
    seed = int(rng.integers(2**31))
    with gpu.checked("making operands"):
        generator = gpu.torch.Generator(device=gpu.device)
        generator.manual_seed(seed)
        shape_a = (b, m, k) if point.layout[0] == "n" else (b, k, m)
        shape_b = (b, k, n) if point.layout[1] == "n" else (b, n, k)
        made = DeviceOperands(
            _fill(gpu, shape_a, point, generator), _fill(gpu, shape_b, point, generator),
            point.layout, seed,
        )  # fmt: skip
    _keep(gpu, key, made)
    return made


def _keep(gpu: TorchGpu, key: tuple[Any, ...], made: DeviceOperands) -> None:
    """Put operands into the pool; the longest unused leave while it is too large."""
    gpu.pool[key] = made
    while len(gpu.pool) > 1 and sum(map(_bytes, gpu.pool.values())) > _POOL_SHARE * gpu.info.memory:
        gpu.pool.pop(next(iter(gpu.pool)))


def _bytes(operands: DeviceOperands) -> int:
    return sum(t.numel() * t.element_size() for t in (operands.a, operands.b))


def _fill(gpu: TorchGpu, shape: tuple[int, ...], point: Point, generator: Any) -> Any:
    torch = gpu.torch
    made = torch.zeros(shape, dtype=torch_format(torch, point.dtype), device=gpu.device)
    if point.pattern == "zeros":
        return made
    flat = made.view(-1)
    wide = torch.float64 if made.dtype == torch.float64 else torch.float32
    options = {"generator": generator, "device": gpu.device}
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        values = torch.randn(part.numel(), dtype=wide, **options)
        if point.pattern == "sparse":
            values *= torch.rand(part.numel(), **options) >= 0.5
        part.copy_(_rounded(torch, values, find_dtype(point.dtype).name))
    return made


def _rounded(torch: Any, values: Any, name: str) -> Any:
    """Values that the format represents; the copy into its type then loses nothing."""
    if name == "int8":
        return torch.round(values * 32.0).clamp_(-127, 127)
    if name == "tf32":  # 13 bits of the fraction go, ties to even
        raw = values.view(torch.int32)
        return ((raw + ((raw >> 13) & 1) + 0xFFF) & ~0x1FFF).view(torch.float32)
    largest = _LARGEST.get(name)
    return values if largest is None else values.clamp_(-largest, largest)


def buffer_sets(
    gpu: TorchGpu,
    point: Point,
    rng: np.random.Generator,
    count: Callable[[int], int],
) -> list[Buffers]:
    """Operand sets of equal values with an output each; `count(bytes of a set)` says how many."""
    torch = gpu.torch
    first = device_operands(gpu, point, rng)
    shape = (point.batch, point.m, point.n)
    stored = out_format(point.dtype)
    kind = torch.int32 if stored == "int32" else torch_format(torch, stored)
    with gpu.checked("making operand sets"):
        outputs = [torch.empty(shape, dtype=kind, device=gpu.device)]
        size = _bytes(first) + outputs[0].numel() * outputs[0].element_size()
        sets = [Buffers(first, outputs[0])]
        for _ in range(count(size) - 1):
            again = DeviceOperands(first.a.clone(), first.b.clone(), first.layout, first.seed)
            sets.append(Buffers(again, torch.empty_like(outputs[0])))
    return sets


def poison(out: Any) -> None:
    """Fill an output with what no kernel would leave: NaN, or the least integer of its type."""
    out.fill_(float("nan") if out.dtype.is_floating_point else -(2 ** (8 * out.element_size() - 1)))


def poisoned(torch: Any, out: Any) -> bool:
    """Whether an element still holds poison, or is not a finite number."""
    if out.dtype.is_floating_point:
        return not bool(torch.isfinite(out).all())
    return bool((out == -(2 ** (8 * out.element_size() - 1))).any())


def exact_limit(gpu: TorchGpu) -> float:
    """Operations up to which every element is compared in float64 on the device."""
    strong = gpu.info.facts.get("compute_capability") in _STRONG_FP64
    return _STRONG_EXACT_FLOPS if strong else 5 * EXACT_FLOPS


def product_error(
    torch: Any,
    out: Any,
    left: Any,
    right: Any,
    rng: np.random.Generator,
    *,
    exact_flops: float = EXACT_FLOPS,
) -> float:
    """Relative Frobenius error of `out` (batch, m, n) against left @ right in float64.

    The same check as `operands.product_error`, block by block on the device: inf when an element
    is poisoned; all elements up to `exact_flops` operations, beyond that the largest of 64 random
    rows, 64 random columns and 16 random projections of the whole.
    """
    if poisoned(torch, out):
        return float("inf")
    batch, m, k = left.shape
    n = right.shape[2]
    if tuple(out.shape) != (batch, m, n):
        raise SpecError(f"output: got shape {tuple(out.shape)}, need {(batch, m, n)}")
    if 2.0 * batch * m * n * k <= exact_flops:
        return _exact(torch, out, left, right)
    rows = _some(torch, m, rng, out.device)
    columns = _some(torch, n, rng, out.device)
    return max(
        _exact(torch, out[:, rows], _rows(torch, left, rows), right),
        _exact(torch, out[:, :, columns], left, _rows(torch, right.transpose(1, 2), columns, True)),
        _projected(torch, out, left, right, rng),
    )


def _some(torch: Any, size: int, rng: np.random.Generator, device: Any) -> Any:
    chosen = np.sort(rng.choice(size, min(SAMPLED, size), replace=False))
    return torch.as_tensor(chosen, device=device)


def _rows(torch: Any, matrix: Any, rows: Any, swapped: bool = False) -> Any:
    """Rows of (batch, rows, columns) in float64; types of 8 bits cannot be indexed by a list."""
    parts = [matrix[:, int(r) : int(r) + 1].to(torch.float64) for r in rows.tolist()]
    taken = torch.cat(parts, dim=1)
    return taken.transpose(1, 2) if swapped else taken


def _exact(torch: Any, out: Any, left: Any, right: Any) -> float:
    error = size = 0.0
    for o, a, b in zip(out, left, right, strict=True):
        for column in range(0, b.shape[1], _BLOCK):
            wide = b[:, column : column + _BLOCK].to(torch.float64)
            for row in range(0, a.shape[0], _BLOCK):
                reference = a[row : row + _BLOCK].to(torch.float64) @ wide
                got = o[row : row + _BLOCK, column : column + _BLOCK].to(torch.float64)
                error += float((got - reference).square_().sum())
                size += float(reference.square_().sum())
    return _ratio(error, size)


def _projected(torch: Any, out: Any, left: Any, right: Any, rng: np.random.Generator) -> float:
    """Estimate the relative error from products with +-1 vectors (Freivalds, Hutchinson)."""
    error = size = 0.0
    for o, a, b in zip(out, left, right, strict=True):
        signs = rng.integers(0, 2, (b.shape[1], PROJECTIONS)) * 2.0 - 1.0
        w = torch.as_tensor(signs, dtype=torch.float64, device=out.device)
        reference = _times(torch, a, _times(torch, b, w))
        error += float((_times(torch, o, w) - reference).square_().sum())
        size += float(reference.square_().sum())
    return _ratio(error, size)


def _times(torch: Any, matrix: Any, vectors: Any) -> Any:
    starts = range(0, matrix.shape[0], _BLOCK)
    return torch.cat([matrix[s : s + _BLOCK].to(torch.float64) @ vectors for s in starts])


def _ratio(error: float, size: float) -> float:
    """Square root of a ratio of squared norms; 0 / 0 is 0: nothing was to be computed."""
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float(np.sqrt(error / size))
