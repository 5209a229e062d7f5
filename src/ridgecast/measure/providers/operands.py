"""Operands of a point and the check of what a kernel made of them; numpy alone, for any provider.

    ops = make_operands(point, rng)           stored arrays, rounded to the point's format
    poison(out); kernel(ops.a, ops.b, out)    an element that is not written stays poisoned
    product_error(out, ops.left, ops.right, rng) <= tolerance(point.dtype, point.k)

Arrays are row-major with shape (batch, rows, columns). Layout letters are BLAS's: "n" stores the
operand as it is used (A m x k, B k x n), "t" stores its transpose (A k x m, B n x k). Formats that
numpy has not are held in float32 at values that the format represents exactly, so that a device's
conversion loses nothing and the reference sees what the kernel sees. Knows no device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dtypes import dtype as find_dtype
from ...errors import SpecError, UnsupportedError
from ..base import Point

__all__ = ["EXACT_FLOPS", "Operands", "copies", "make_operands", "poison", "product_error",
           "relative_frobenius", "round_to", "set_count", "stored_as", "tolerance"]  # fmt: skip

Array = npt.NDArray[Any]

EXACT_FLOPS = 2e10  # operations up to which every element is compared with a float64 product
SAMPLED = 64  # rows and columns that are compared exactly beyond that
PROJECTIONS = 16  # random vectors of the check over the whole matrix
_BLOCK = 512  # rows that are turned into float64 at once

# format -> (fraction bits, least normal exponent, largest value); OCP 8-bit Floating Point
# Specification 1.0, OCP Microscaling Formats 1.0 (e2m1)
_SMALL = {
    "fp8_e4m3": (3, -6, 448.0),
    "fp8_e5m2": (2, -14, 57344.0),
    "nvfp4": (1, 0, 6.0),
    "mxfp4": (1, 0, 6.0),
}
_INTS = {"int8": (32.0, 127.0), "int4": (2.0, 7.0)}  # scale of the normal numbers, largest value

# unit roundoff 2^-p of the format a result is stored in; formats below are stored as bf16
_OUT_ROUNDOFF = {"fp64": 2.0**-53, "fp32": 2.0**-24, "tf32": 2.0**-24, "fp16": 2.0**-11}
_BF16_ROUNDOFF = 2.0**-8
_SAFETY = 4.0


@dataclass(frozen=True, slots=True)
class Operands:
    """A and B as they are stored, (batch, rows, columns) row-major, and the layout letters."""

    a: Array
    b: Array
    layout: str

    @property
    def left(self) -> Array:
        """op(A) as a view of shape (batch, m, k)."""
        return self.a if self.layout[0] == "n" else self.a.swapaxes(1, 2)

    @property
    def right(self) -> Array:
        """op(B) as a view of shape (batch, k, n)."""
        return self.b if self.layout[1] == "n" else self.b.swapaxes(1, 2)


def stored_as(dtype: str) -> np.dtype[Any]:
    """Return the numpy type that holds a format: float64, int8 for integers, float32 for others."""
    found = find_dtype(dtype)
    if found.name == "fp64":
        return np.dtype(np.float64)
    return np.dtype(np.int8 if found.kind == "int" else np.float32)


def make_operands(point: Point, rng: np.random.Generator) -> Operands:
    """Make the operands of a GEMM point: shape, layout, format and input pattern are the point's.

    `normal` is standard normal rounded to the format (integers: 32 or 2 times that), `zeros` all
    zero, `sparse` normal with each entry zero at probability 1/2. The same generator state gives
    the same operands on any machine. Raises SpecError for an unknown layout and UnsupportedError
    for a format whose scales are made by the provider (fp8_block, weight-only formats).
    """
    if len(point.layout) != 2 or set(point.layout) - {"n", "t"}:
        raise SpecError(f"point.layout: got {point.layout!r}, need one of nn, nt, tn, tt")
    b, m, n, k = point.batch, point.m, point.n, point.k
    shape_a = (b, m, k) if point.layout[0] == "n" else (b, k, m)
    shape_b = (b, k, n) if point.layout[1] == "n" else (b, n, k)
    return Operands(_fill(shape_a, point, rng), _fill(shape_b, point, rng), point.layout)


def _fill(shape: tuple[int, ...], point: Point, rng: np.random.Generator) -> Array:
    held = stored_as(point.dtype)
    if point.pattern == "zeros":
        return np.zeros(shape, held)
    wide = np.float64 if held == np.float64 else np.float32
    values = rng.standard_normal(shape, dtype=wide)
    if point.pattern == "sparse":
        values[rng.random(shape, dtype=np.float32) < 0.5] = 0
    scale, _ = _INTS.get(find_dtype(point.dtype).name, (1.0, 0.0))
    if scale != 1.0:
        values *= scale
    return round_to(values, point.dtype).astype(held, copy=False)


def round_to(values: Array, dtype: str) -> Array:
    """Round to the nearest values of a format, ties to even; the type of the array is kept.

    fp32 and fp64 return the array itself (float64 to fp32 rounds). Values beyond the largest are
    clipped to it. nvfp4 and mxfp4 round the elements at scale 1. Raises UnsupportedError for
    fp8_block and weight-only formats.
    """
    name = find_dtype(dtype).name
    if name == "fp64":
        return values
    if name in _INTS:
        largest = _INTS[name][1]
        return np.clip(np.rint(values), -largest, largest).astype(values.dtype, copy=False)
    single = values.astype(np.float32, copy=False)
    if name == "fp32":
        rounded = single
    elif name == "fp16":
        rounded = np.clip(single, -65504, 65504).astype(np.float16).astype(np.float32)
    elif name in ("bf16", "tf32"):
        rounded = _drop_bits(single, 16 if name == "bf16" else 13)
    elif name in _SMALL:
        rounded = _round_small(single, *_SMALL[name])
    else:
        raise UnsupportedError(
            f"operands of {name}: their scales are made by the provider; round the elements as "
            f"{find_dtype(dtype).compute}"
        )
    return rounded.astype(values.dtype, copy=False)


def _drop_bits(single: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Round the lowest `bits` of the fraction away, ties to even."""
    raw = np.ascontiguousarray(single).view(np.uint32)
    odd = (raw >> np.uint32(bits)) & np.uint32(1)
    half = np.uint32((1 << (bits - 1)) - 1)
    mask = np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)
    return ((raw + half + odd) & mask).view(np.float32)


def _round_small(
    single: npt.NDArray[np.float32], fraction: int, least: int, largest: float
) -> npt.NDArray[np.float32]:
    """Round to a format of few bits; below the least normal exponent steps stay constant."""
    _, exponent = np.frexp(single)  # |x| = mantissa 2^exponent, mantissa in [0.5, 1)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, least) - fraction)
    return np.clip(np.rint(single / step) * step, -largest, largest)


def set_count(set_bytes: float, cache_bytes: float, *, most: int = 8) -> int:
    """Return how many operand sets to rotate through so that they exceed twice a cache.

    At least 2, at most `most`: a flush before each run takes care of the rest.
    """
    return int(np.clip(np.ceil(2.0 * cache_bytes / max(set_bytes, 1.0)), 2, most))


def copies(ops: Operands, count: int) -> list[Operands]:
    """Return `count` operand sets of equal values in memory of their own, `ops` among them."""
    more = (Operands(ops.a.copy(), ops.b.copy(), ops.layout) for _ in range(count - 1))
    return [ops, *more]


def poison(out: Array) -> None:
    """Fill an output with what no kernel would leave: NaN, or the least integer of its type."""
    out.fill(np.nan if out.dtype.kind == "f" else np.iinfo(out.dtype).min)


def _poisoned(out: Array) -> bool:
    """Whether an element still holds poison, or is not a finite number."""
    if out.dtype.kind == "f":
        return not bool(np.isfinite(out).all())
    return bool((out == np.iinfo(out.dtype).min).any())


def relative_frobenius(out: Array, reference: Array) -> float:
    """Return |out - reference| / |reference| in the Frobenius norm, computed in float64.

    inf where an element of `out` is not finite, or where the reference is all zero and `out` is
    not. Raises SpecError when the shapes differ.
    """
    if out.shape != reference.shape:
        raise SpecError(f"output: got shape {out.shape}, need {reference.shape}")
    if _poisoned(out):
        return float("inf")
    return _ratio(_square(out.astype(np.float64) - reference), _square(reference))


def _square(values: Array) -> float:
    flat = np.asarray(values, np.float64).ravel()
    return float(np.dot(flat, flat))


def _ratio(error: float, size: float) -> float:
    """Square root of a ratio of squared norms; 0 / 0 is 0: nothing was to be computed."""
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return float(np.sqrt(error / size))


def product_error(
    out: Array,
    left: Array,
    right: Array,
    rng: np.random.Generator,
    *,
    exact_flops: float = EXACT_FLOPS,
) -> float:
    """Return the relative Frobenius error of `out` (batch, m, n) against left @ right in float64.

    Every element is looked at: one that is not finite, or still poisoned, makes it inf. Up to
    `exact_flops` operations every element is compared. Beyond that the error is the largest of
    three: exact on 64 random rows, exact on 64 random columns, and over the whole matrix by
    random projection: with w of independent +-1, E |(out - left right) w|^2 is the squared
    Frobenius norm of the error, so 16 such vectors estimate the ratio without forming the product.
    Source: Freivalds 1977 for the check, Hutchinson 1990 for the estimate.
    """
    if _poisoned(out):
        return float("inf")
    batch, m, k = left.shape
    n = right.shape[2]
    if out.shape != (batch, m, n):
        raise SpecError(f"output: got shape {out.shape}, need {(batch, m, n)}")
    if 2.0 * batch * m * n * k <= exact_flops:
        return _exact(out, left, right)
    rows = np.sort(rng.choice(m, min(SAMPLED, m), replace=False))
    columns = np.sort(rng.choice(n, min(SAMPLED, n), replace=False))
    return max(
        _exact(out[:, rows], left[:, rows], right),
        _exact(out[:, :, columns], left, right[:, :, columns]),
        _projected(out, left, right, rng),
    )


def _exact(out: Array, left: Array, right: Array) -> float:
    error = size = 0.0
    for o, a, b in zip(out, left, right, strict=True):
        wide = b.astype(np.float64)
        for start in range(0, len(o), _BLOCK):
            part = slice(start, start + _BLOCK)
            reference = a[part].astype(np.float64) @ wide
            error += _square(o[part].astype(np.float64) - reference)
            size += _square(reference)
    return _ratio(error, size)


def _projected(out: Array, left: Array, right: Array, rng: np.random.Generator) -> float:
    """Estimate the relative error from products with +-1 vectors, block by block in float64."""
    error = size = 0.0
    for o, a, b in zip(out, left, right, strict=True):
        w = rng.integers(0, 2, (b.shape[1], PROJECTIONS)) * 2.0 - 1.0
        bw = _times(b, w)
        reference = _times(a, bw)
        error += _square(_times(o, w) - reference)
        size += _square(reference)
    return _ratio(error, size)


def _times(matrix: Array, vectors: Array) -> Array:
    parts = range(0, len(matrix), _BLOCK)
    return np.concatenate([matrix[s : s + _BLOCK].astype(np.float64) @ vectors for s in parts])


def tolerance(dtype: str, k: int, *, out_dtype: str = "") -> float:
    """Return the largest relative Frobenius error that honest arithmetic of a format makes.

    Four times (output rounding + accumulation + input rounding), for operands of independent
    signs whose values the format represents; 0 for integers, which are exact. With u = 2^-p:

    - Output rounding: u / sqrt(3), a uniform error of half a unit in the last place. Formats
      below fp16 are stored as bf16 (`out_dtype` overrides).
    - Accumulation one by one, rounding to nearest: partial sums grow as sqrt(i), so the errors'
      variance is u^2 / 3 * sum(i) and the relative error u sqrt(k / 6). Blocked sums err less.
      Source: Higham, Accuracy and Stability of Numerical Algorithms, 4.2, its statistical form.
    - Accumulation in tensor cores truncates: a bias of 0.3 u a step. Steps are 8 deep with
      u = 2^-23 (Fasi et al. 2021, PeerJ CS 7:e330), for 8 and 4 bits 32 deep with 14 bits kept
      (DeepSeek-V3 report, 3.3.2: about 2 % at worst for k = 4096).
    - tf32 given fp32 values drops 13 bits of each: a bias of up to 2^-11 for each operand.

    A kernel that loses 32 of k terms errs by sqrt(32 / k), above each of these up to k = 8192; up
    to 16 bits the loss of a single term, sqrt(1 / k), shows as well.

    >>> f"{tolerance('fp32', 1024):.1e}", f"{tolerance('bf16', 1024):.1e}"
    ('3.3e-06', '9.0e-03')
    """
    found = find_dtype(dtype)
    if k < 1:
        raise SpecError(f"tolerance: got k = {k}, need 1 or more")
    if found.kind == "int":
        return 0.0
    stored = find_dtype(out_dtype).name if out_dtype else found.name
    rounding = _OUT_ROUNDOFF.get(stored, _BF16_ROUNDOFF) / np.sqrt(3.0)
    inputs = 0.0
    if found.name in ("fp32", "fp64"):
        accumulation = _OUT_ROUNDOFF[found.name] * np.sqrt(k / 6.0)
    elif found.bits < 16 and not found.weight_only:
        accumulation = 0.3 * 2.0**-13 * np.ceil(k / 32)
    else:
        accumulation = 0.3 * 2.0**-23 * np.ceil(k / 8)
        inputs = 2.0**-10 if found.name == "tf32" else 0.0
    if found.weight_only:  # dequantised weights are rounded to bf16
        inputs = _BF16_ROUNDOFF / np.sqrt(3.0)
    return float(_SAFETY * (rounding + accumulation + inputs))
