"""The Triton source of a tiled matrix product, and compiling it where there is no GPU.

`load` defines the kernels once Triton is wanted; `compile_variant` fills Triton's disk cache from
a process of its own that opens no device, so that many configurations compile in parallel while
the GPU measures, and so that they can be compiled for a device that is not here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtraError

if TYPE_CHECKING:
    import triton.language as tl  # pyright: ignore[reportMissingImports]

__all__ = ["TRITON_CURE", "Kernels", "compile_variant", "load"]

TRITON_CURE = "pip install triton (comes with torch on Linux)"
REDUCE_TILE = 1024  # elements that one program of the reduction sums


@dataclass(frozen=True, slots=True)
class Kernels:
    """The two JIT functions: tiles of the product, and the sum over the parts of a split k loop."""

    matmul: Any
    reduce: Any


@functools.cache
def load() -> Kernels:  # noqa: PLR0915 - the kernels' statements are counted in
    """Define the kernels; raises MissingExtraError with the line that installs Triton."""
    try:
        import triton  # pyright: ignore[reportMissingImports]
        import triton.language  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(f"triton is not installed ({error}): {TRITON_CURE}") from error
    # Triton looks names up in the function's module, so that its language must be one of ours
    globals()["tl"] = triton.language

    @triton.jit(do_not_specialize=["steps", "s_part"])
    def matmul(  # noqa: PLR0913, PLR0917 - a kernel's arguments
        a, b, out, m, n, k, s_am, s_ak, s_bk, s_bn, s_om, s_on, s_part, steps,
        tile_m: tl.constexpr, tile_n: tl.constexpr, tile_k: tl.constexpr,
        group_m: tl.constexpr, even_k: tl.constexpr, precision: tl.constexpr,
        integer: tl.constexpr, wide: tl.constexpr,
    ):  # fmt: skip
        """out[part] = a[:, ks] @ b[ks, :] of one tile; `steps` tiles of k make a part.

        group_m rows of tiles are walked together, so that their part of b stays in the L2.
        """
        block, part = tl.program_id(0), tl.program_id(1)
        tiles_m, tiles_n = tl.cdiv(m, tile_m), tl.cdiv(n, tile_n)
        in_group = group_m * tiles_n
        first = (block // in_group) * group_m
        height = min(tiles_m - first, group_m)
        row = first + (block % in_group) % height
        column = (block % in_group) // height
        rows = row * tile_m + tl.arange(0, tile_m)
        columns = column * tile_n + tl.arange(0, tile_n)
        ks = tl.arange(0, tile_k)
        read_rows, read_columns = rows % m, columns % n  # what lies outside is not stored
        start = part * steps
        stop = min(start + steps, tl.cdiv(k, tile_k))
        if wide:
            read_rows, read_columns = read_rows.to(tl.int64), read_columns.to(tl.int64)
            rows, columns = rows.to(tl.int64), columns.to(tl.int64)
            ks = ks.to(tl.int64)
        begin = start.to(tl.int64) * tile_k
        a_at = a + begin * s_ak + read_rows[:, None] * s_am + ks[None, :] * s_ak
        b_at = b + begin * s_bk + ks[:, None] * s_bk + read_columns[None, :] * s_bn
        if integer:
            total = tl.zeros((tile_m, tile_n), dtype=tl.int32)
        else:
            total = tl.zeros((tile_m, tile_n), dtype=tl.float32)
        for step in range(start, stop):
            if even_k:
                x = tl.load(a_at)
                y = tl.load(b_at)
            else:
                left = k - step * tile_k
                x = tl.load(a_at, mask=ks[None, :] < left, other=0)
                y = tl.load(b_at, mask=ks[:, None] < left, other=0)
            total = tl.dot(x, y, total, input_precision=precision, out_dtype=total.dtype)
            a_at += tile_k * s_ak
            b_at += tile_k * s_bk
        out_at = out + part.to(tl.int64) * s_part + rows[:, None] * s_om + columns[None, :] * s_on
        inside = (rows[:, None] < m) & (columns[None, :] < n)
        tl.store(out_at, total.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def reduce(parts, out, size, split: tl.constexpr, tile: tl.constexpr):
        """out[i] = sum of parts[:, i] over the split parts of a k loop."""
        at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
        inside = at < size
        total = tl.load(parts + at, mask=inside, other=0)
        for part in tl.static_range(1, split):
            total += tl.load(parts + part * size + at, mask=inside, other=0)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)

    return Kernels(matmul, reduce)


class _NoDevice:
    """Triton's driver for compiling alone: it knows a target and opens nothing."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def compile_variant(
    capability: int,
    tensors: Mapping[str, str],
    numbers: Mapping[str, Any],
    options: Mapping[str, int],
) -> dict[str, Any]:
    """Compile the product for a compute capability (90) into Triton's disk cache.

    `tensors` names the torch types of a, b and out, `numbers` holds every other argument, `options`
    num_warps and num_stages. Returns {"shared_bytes": ...}, or {"error": reason}. Replaces the
    calling process's Triton driver: call it in a process that compiles and nothing else.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import triton  # pyright: ignore[reportMissingImports]
        from triton.runtime.jit import MockTensor  # pyright: ignore[reportMissingImports]

        triton.runtime.driver.set_active(_NoDevice(capability))
        mocks = {name: MockTensor(getattr(torch, kind)) for name, kind in tensors.items()}
        done = load().matmul.warmup(**mocks, **numbers, **options, grid=(1,))
        return {"shared_bytes": int(done.metadata.shared)}
    except Exception as error:  # a compiler's own; the reason is all that is wanted
        lines = [line for line in str(error).splitlines() if line.strip()]
        return {"error": f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"}
