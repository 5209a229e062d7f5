"""GEMM and bandwidth kernels compiled for the CPU. Imports numba: `numba_cpu` imports it lazily.

A block of the CUDA kernel becomes the body of a loop over blocks; the blocks are dealt to the
cores in equal, contiguous ranges. The threads of a block become lanes of LLVM vectors and, beyond
one vector, iterations: `_multiply` states the vectors, so that speed does not hang on what the
loop vectoriser makes of a tile. Every size that shapes the code is a compile-time constant. Code
is kept on disk by numba, so that only the first process that uses a tile compiles it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba  # pyright: ignore[reportMissingImports]
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # pyright: ignore[reportMissingImports]
from numba import njit, prange, types  # pyright: ignore[reportMissingImports]
from numba.core import cgutils  # pyright: ignore[reportMissingImports]
from numba.extending import intrinsic, register_jitable  # pyright: ignore[reportMissingImports]

__all__ = ["Kernel", "copy", "empty", "lanes_of", "read", "register_kernel", "tiled_kernel",
           "triad"]  # fmt: skip

Array = npt.NDArray[Any]
_FASTMATH = {"contract"}  # a multiply and an add become one FMA; sums keep their order
_FLOATS = {"fp32": types.float32, "fp64": types.float64}


def lanes_of(tile: int) -> int:
    """Lanes that a row of `tile` threads takes: a power of two to 8, then a multiple of 8.

    The rest of the last vector idles, as the lanes of a GPU's last warp do.
    """
    return 1 << (tile - 1).bit_length() if tile <= 8 else -(-tile // 8) * 8


def _multiply_as_vectors(  # noqa: PLR0913, PLR0917 - a compiled function takes no objects
    typingctx, c, c_at, c_step, a_address, a_row, a_depth, b_address, b_step, depth,
    rows, vectors, lanes, unroll,
):  # fmt: skip
    """Add A (rows x depth) times B (depth x vectors * lanes) to C, C held in registers meanwhile.

    `c` is an array, `c_at` the element of its corner; addresses are bytes, steps are elements: from
    row to row of C, A and B, and `a_depth` along A's depth. rows, vectors, lanes and unroll are
    compile-time constants: rows * vectors accumulators of `lanes` lanes, `unroll` steps of depth
    (which it divides) in a loop body. Each step broadcasts a value of A to all lanes.
    """
    R, V, L, U = (x.literal_value for x in (rows, vectors, lanes, unroll))  # noqa: N806
    element = c.dtype
    whole = types.int64
    signature = types.void(c, *[whole] * 8, rows, vectors, lanes, unroll)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, i64, i32 = context.get_data_type(element), ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(kind, L)
        corner = context.make_array(sig.args[0])(context, builder, args[0]).data
        a, b = (builder.inttoptr(args[i], kind.as_pointer()) for i in (3, 6))
        c_start, c_row, row_of_a, depth_of_a, row_of_b = (args[i] for i in (1, 2, 4, 5, 7))
        aligned = element.bitwidth // 8  # vectors start anywhere in an array
        flags = ("contract",)
        zeros = ir.Constant(ir.VectorType(i32, L), [0] * L)
        undefined = ir.Constant(vector, ir.Undefined)

        def at(pointer: Any, start: Any, step: Any, index: int | Any, lane: int = 0) -> Any:
            offset = builder.add(start, builder.mul(step, i64(index)))
            place = builder.gep(pointer, [builder.add(offset, i64(lane))])
            return builder.bitcast(place, vector.as_pointer())

        cells = [(r, v) for r in range(R) for v in range(V)]
        held = {cell: cgutils.alloca_once(builder, vector) for cell in cells}
        for r, v in cells:
            place = at(corner, c_start, c_row, r, v * L)
            builder.store(builder.load(place, align=aligned), held[r, v])

        def step(k: Any) -> None:
            b_start = builder.mul(k, row_of_b)
            right = [
                builder.load(at(b, b_start, i64(0), 0, v * L), align=aligned) for v in range(V)
            ]
            for r in range(R):
                along = builder.mul(k, depth_of_a)
                place = builder.add(along, builder.mul(row_of_a, i64(r)))
                one = builder.insert_element(
                    undefined, builder.load(builder.gep(a, [place])), i32(0)
                )
                left = builder.shuffle_vector(one, undefined, zeros)
                for v in range(V):
                    product = builder.fmul(left, right[v], flags=flags)
                    total = builder.fadd(builder.load(held[r, v]), product, flags=flags)
                    builder.store(total, held[r, v])

        with cgutils.for_range(builder, builder.sdiv(args[8], i64(U))) as loop:
            first = builder.mul(loop.index, i64(U))
            for u in range(U):
                step(builder.add(first, i64(u)))
        for r, v in cells:
            place = at(corner, c_start, c_row, r, v * L)
            builder.store(builder.load(held[r, v]), place, align=aligned)
        return context.get_dummy_value()

    return signature, generate


_multiply: Any = intrinsic(prefer_literal=True)(_multiply_as_vectors)


@register_jitable
def _stage(local, source, z, row, column):
    """Fill a local buffer with a block of `source`, with zeros beyond the matrix's edge."""
    block = source[z, row : row + local.shape[0], column : column + local.shape[1]]
    if block.shape != local.shape:
        local[:, :] = 0
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            local[i, j] = block[i, j]


@register_jitable
def _stage_turned(local, source, z, row, column):
    """Like `_stage`, but the block's rows become the buffer's columns."""
    block = source[z, row : row + local.shape[1], column : column + local.shape[0]]
    if block.shape != (local.shape[1], local.shape[0]):
        local[:, :] = 0
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            local[j, i] = block[i, j]


@register_jitable
def _write(c, local, z, row, column):
    """Copy a local buffer to its place in C, as far as C reaches."""
    block = c[z, row : row + local.shape[0], column : column + local.shape[1]]
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            block[i, j] = local[i, j]


def _tiled(tile: int, number: Any) -> Callable[..., None]:
    T, L = tile, lanes_of(tile)  # noqa: N806

    def tiled(a, b, c, worker, workers):
        down, across = -(-c.shape[1] // T), -(-c.shape[2] // T)
        depth = a.shape[2]
        blocks = c.shape[0] * down * across
        # rows of B and C are padded to whole vectors, whose idle lanes hold zeros
        a_tile = np.zeros((T, T), number)
        b_tile = np.zeros((T, L), number)
        sums = np.zeros((T, L), number)
        size = a_tile.itemsize
        for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
            z = block // (down * across)
            row = block // across % down * T
            column = block % across * T
            sums[:, :] = 0
            for start in range(0, depth, T):
                # whole tiles are copied here, where LLVM knows their size and unrolls the loops
                inside = start + T <= depth
                if inside and row + T <= a.shape[1]:
                    for i in range(T):
                        for j in range(T):
                            a_tile[i, j] = a[z, row + i, start + j]
                else:
                    _stage(a_tile, a, z, row, start)
                if inside and column + T <= b.shape[2]:
                    for i in range(T):
                        for j in range(T):
                            b_tile[i, j] = b[z, start + i, column + j]
                else:
                    _stage(b_tile[:, :T], b, z, start, column)
                for i in range(T):
                    left = a_tile.ctypes.data + i * T * size
                    _multiply(
                        sums, i * L, L, left, T, 1, b_tile.ctypes.data, L, T, 1, 1, L, T
                    )  # fmt: skip
            _write(c, sums[:, :T], z, row, column)

    return tiled


def _register(
    group: tuple[int, int, int], threads: tuple[int, int], lanes: int, unroll: int,
    staged: tuple[int, int], number: Any,
) -> Callable[..., None]:  # fmt: skip
    M, N, K = group  # noqa: N806
    down_threads, across_threads = threads
    rows, columns = M // down_threads, N // across_threads
    vectors = columns // lanes
    stage_a, stage_b = staged

    def register_blocked(a, b, c, worker, workers):
        down, across = -(-c.shape[1] // M), -(-c.shape[2] // N)
        depth = a.shape[2]
        blocks = c.shape[0] * down * across
        a_tile = np.zeros((K, M), number)
        b_tile = np.zeros((K, N), number)
        sums = np.zeros((M, N), number)
        size = a_tile.itemsize
        for block in range(worker * blocks // workers, (worker + 1) * blocks // workers):
            z = block // (down * across)
            row = block // across % down * M
            column = block % across * N
            sums[:, :] = 0
            for start in range(0, depth, K):
                cut = start + K > depth
                if stage_a or cut or row + M > c.shape[1]:
                    _stage_turned(a_tile, a, z, row, start)
                    left, a_row, a_depth = a_tile.ctypes.data, 1, M
                else:
                    s = a.strides
                    left = a.ctypes.data + z * s[0] + row * s[1] + start * s[2]
                    a_row, a_depth = s[1] // size, s[2] // size
                if stage_b or cut or column + N > c.shape[2]:
                    _stage(b_tile, b, z, start, column)
                    right, b_step = b_tile.ctypes.data, N
                else:
                    s = b.strides
                    right = b.ctypes.data + z * s[0] + start * s[1] + column * s[2]
                    b_step = s[1] // size
                for i in range(down_threads):
                    for j in range(across_threads):
                        _multiply(
                            sums, i * rows * N + j * columns, N,
                            left + i * rows * a_row * size, a_row, a_depth,
                            right + j * columns * size, b_step, K,
                            rows, vectors, lanes, unroll,
                        )  # fmt: skip
            _write(c, sums, z, row, column)

    return register_blocked


def _nothing(a, b, c, worker, workers):
    c[0, 0, worker] = a[0, 0, 0]


def _launch(kernel, a, b, c, workers):
    for worker in prange(workers):
        kernel(a, b, c, np.int64(worker), workers)


class _Entry(types.WrapperAddressProtocol):
    """A compiled function by its address, as numba passes functions to functions."""

    def __init__(self, function: Any, signature: Any) -> None:
        self._function = function  # keeps the code alive
        self._address, self._signature = int(function.address), signature

    def __wrapper_address__(self) -> int:
        return self._address

    def signature(self) -> Any:
        return self._signature


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled GEMM: `kernel(a, b, c, workers)` computes c = a b on `workers` threads.

    Arrays have shapes (batch, m, k), (batch, k, n) and (batch, m, n), C-contiguous but for operands
    that the layout says are views of their stored transpose.
    """

    launch: Any
    entry: Any

    def __call__(self, a: Array, b: Array, c: Array, workers: int) -> None:
        """Run once and return when every block is written."""
        self.launch(self.entry, a, b, c, workers)


def _cached(decorate: Callable[..., Any], function: Any) -> Any:
    """Compile with the cache on disk, without it where no folder for it can be written."""
    try:
        return decorate(cache=True)(function)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        return decorate(cache=False)(function)


def _signature(dtype: str, layout: str) -> Any:
    def array(letter: str) -> Any:
        return types.Array(_FLOATS[dtype], 3, "C" if letter == "n" else "A")

    a, b = layout
    return types.void(array(a), array(b), array("n"), types.int64, types.int64)


@lru_cache(maxsize=16)
def _launcher(dtype: str, layout: str) -> Any:
    kernel = _signature(dtype, layout)
    signature = types.void(types.FunctionType(kernel), *kernel.args[:3], types.int64)

    def decorate(*, cache: bool) -> Any:
        return njit(signature, parallel=True, nogil=True, cache=cache)

    return _cached(decorate, _launch)


def _compiled(function: Callable[..., None], dtype: str, layout: str) -> Kernel:
    signature = _signature(dtype, layout)

    def decorate(*, cache: bool) -> Any:
        return numba.cfunc(signature, cache=cache, fastmath=_FASTMATH, error_model="numpy")

    return Kernel(_launcher(dtype, layout), _Entry(_cached(decorate, function), signature))


def _number(dtype: str) -> Any:
    return np.float64 if dtype == "fp64" else np.float32


@lru_cache(maxsize=256)
def tiled_kernel(tile: int, dtype: str, layout: str) -> Kernel:
    """Return the naive tiled kernel of one tile side."""
    return _compiled(_tiled(tile, _number(dtype)), dtype, layout)


@lru_cache(maxsize=256)
def register_kernel(
    group: tuple[int, int, int], threads: tuple[int, int], lanes: int, unroll: int,
    staged: tuple[int, int], dtype: str, layout: str,
) -> Kernel:  # fmt: skip
    """Return the register-blocked kernel of a work-group tile (m, n, k) and its threads (m, n)."""
    function = _register(group, threads, lanes, unroll, staged, _number(dtype))
    return _compiled(function, dtype, layout)


@lru_cache(maxsize=1)
def empty() -> Kernel:
    """Return a kernel that writes one number a thread: what is left of a launch without work."""
    return _compiled(_nothing, "fp32", "nn")


def _copy(out, source, workers):
    for worker in prange(workers):
        first, last = worker * out.size // workers, (worker + 1) * out.size // workers
        to, of = out[first:last], source[first:last]  # indices from 0 keep the loops vectors
        for i in range(to.size):
            to[i] = of[i]


def _triad(out, one, two, factor, workers):
    for worker in prange(workers):
        first, last = worker * out.size // workers, (worker + 1) * out.size // workers
        to, left, right = out[first:last], one[first:last], two[first:last]
        for i in range(to.size):
            to[i] = left[i] + factor * right[i]


def _read(out, source, passes, workers):
    for worker in prange(workers):
        first, last = worker * source.size // workers, (worker + 1) * source.size // workers
        of = source[first:last]
        for _ in range(passes):
            total = 0
            for i in range(of.size):
                total += of[i]
            out[worker] = total


def _loops(function: Any) -> Any:
    def decorate(*, cache: bool) -> Any:
        return njit(parallel=True, nogil=True, cache=cache, fastmath=_FASTMATH)

    return _cached(decorate, function)


@lru_cache(maxsize=1)
def copy() -> Any:
    """Return the copy of one-dimensional arrays, called with (out, source, workers)."""
    return _loops(_copy)


@lru_cache(maxsize=1)
def triad() -> Any:
    """Return out = one + factor * two, called with (out, one, two, factor, workers)."""
    return _loops(_triad)


@lru_cache(maxsize=1)
def read() -> Any:
    """Return what sums each thread's share of int64, called with (out, source, passes, workers)."""
    return _loops(_read)
