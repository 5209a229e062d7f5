"""Batched matrix multiplication: D = alpha * op(A) @ op(B) + beta * C.

Owns the operation and byte counts of a GEMM from its shape and formats. Knows no device, no
kernel, no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

from ..dtypes import DType, dtype
from ..errors import SpecError

__all__ = ["LAYOUTS", "Gemm"]

LAYOUTS = ("nn", "nt", "tn", "tt")
MAX_DIM = 2**31 - 1  # library GEMMs index with 32-bit integers


@dataclass(frozen=True, slots=True)
class Gemm:
    """One (batched) matrix multiplication of op(A) [m, k] with op(B) [k, n].

    `dtype` is the format of both operands unless `b_dtype` says otherwise; a weight-only format
    (`int4_wo`) holds B alone, A then has its compute format. `out_dtype` is the format of C and D
    (bf16 for formats below 16 bits, else the operand format), `acc_dtype` the accumulator.
    `layout` gives op(A), op(B) as in BLAS: n (as stored) or t (transposed). `epilogue_bytes` are
    extra bytes read or written by a fused epilogue (a bias, a residual).

    Raises SpecError for sizes that are not integers in [1, 2^31) or for unknown formats, layouts.

    >>> Gemm(4096, 4096, 4096).flops
    137438953472.0
    >>> Gemm(1, 2, 3, dtype="fp32").bytes
    44.0
    """

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    batch: int = 1
    layout: str = "tn"
    b_dtype: str = ""
    out_dtype: str = ""
    acc_dtype: str = ""
    alpha: float = 1.0
    beta: float = 0.0
    epilogue_bytes: float = 0.0

    name: ClassVar[str] = "gemm"

    def __post_init__(self) -> None:
        for field in ("m", "n", "k", "batch"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise SpecError(f"gemm.{field}: got {value!r}, need an integer from 1 to {MAX_DIM}")
            if not 1 <= int(value) <= MAX_DIM:
                raise SpecError(f"gemm.{field}: got {value}, need an integer from 1 to {MAX_DIM}")
        if self.layout not in LAYOUTS:
            raise SpecError(f"gemm.layout: got {self.layout!r}, allowed: {', '.join(LAYOUTS)}")
        if not self.epilogue_bytes >= 0:
            raise SpecError(f"gemm.epilogue_bytes: got {self.epilogue_bytes}, need 0 or more")
        object.__setattr__(self, "dtype", dtype(self.dtype).name)
        for field in ("b_dtype", "out_dtype", "acc_dtype"):
            if getattr(self, field):
                object.__setattr__(self, field, dtype(getattr(self, field)).name)

    @property
    def a_format(self) -> DType:
        """Format of A."""
        d = dtype(self.dtype)
        return dtype(d.compute) if d.weight_only else d

    @property
    def b_format(self) -> DType:
        """Format of B."""
        return dtype(self.b_dtype or self.dtype)

    @property
    def out_format(self) -> DType:
        """Format of C and D: as said, else bf16 below 16 bits, else A's."""
        if self.out_dtype:
            return dtype(self.out_dtype)
        a = self.a_format
        if a.name == "int8":
            return dtype("bf16")
        return a if a.bits >= 16 else dtype("bf16")

    @property
    def flops(self) -> float:
        """Operations: 2 m n k per batch entry (a multiply and an add each)."""
        return 2.0 * self.batch * self.m * self.n * self.k

    @property
    def a_bytes(self) -> float:
        """Bytes of A, scales included."""
        return self.a_format.bytes_of(float(self.batch) * self.m * self.k)

    @property
    def b_bytes(self) -> float:
        """Bytes of B, scales included."""
        return self.b_format.bytes_of(float(self.batch) * self.k * self.n)

    @property
    def out_bytes(self) -> float:
        """Bytes of D, and of C when beta is not zero."""
        written = self.out_format.bytes_of(float(self.batch) * self.m * self.n)
        return written * (2.0 if self.beta != 0.0 else 1.0)

    @property
    def bytes(self) -> float:
        """Unique bytes touched: each operand once."""
        return self.a_bytes + self.b_bytes + self.out_bytes + self.epilogue_bytes

    @property
    def memory_bytes(self) -> float:
        """Bytes resident while it runs (C and D share storage)."""
        d = self.out_format.bytes_of(float(self.batch) * self.m * self.n)
        return self.a_bytes + self.b_bytes + d + self.epilogue_bytes

    @property
    def arithmetic_intensity(self) -> float:
        """Operations per unique byte."""
        return self.flops / self.bytes
