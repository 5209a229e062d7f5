"""Many GEMMs of one format as arrays: the shape that every kernel model takes.

Owns the vectorised twin of `ops.Gemm`; the format rules themselves stay in `ops`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..ops import Gemm

__all__ = ["Problem", "problem"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """GEMMs of one format: sizes as float64 arrays of one shape, bytes per element of A, B and D.

    `c_size` is the bytes per element of C that is read (0 when beta is 0), `epilogue_bytes` what
    a fused epilogue moves besides, `dtype` the format whose multiplier works.
    """

    m: FloatArray
    n: FloatArray
    k: FloatArray
    batch: FloatArray
    a_size: float
    b_size: float
    out_size: float
    c_size: float
    epilogue_bytes: float
    dtype: str

    @property
    def flops(self) -> FloatArray:
        """Operations, 2 m n k per batch entry."""
        return 2.0 * self.batch * self.m * self.n * self.k

    @property
    def bytes(self) -> FloatArray:
        """Unique bytes: each operand once (C too where beta is not 0)."""
        inputs = self.k * (self.a_size * self.m + self.b_size * self.n)
        outputs = (self.out_size + self.c_size) * self.m * self.n
        return self.batch * (inputs + outputs) + self.epilogue_bytes

    def flat(self) -> Problem:
        """Return the same rows as one-dimensional arrays."""
        return replace(
            self,
            m=np.ravel(self.m),
            n=np.ravel(self.n),
            k=np.ravel(self.k),
            batch=np.ravel(self.batch),
        )

    def __getitem__(self, rows: slice) -> Problem:
        """Return some of the rows, as a view."""
        return Problem(
            self.m[rows], self.n[rows], self.k[rows], self.batch[rows],
            self.a_size, self.b_size, self.out_size, self.c_size, self.epilogue_bytes, self.dtype,
        )  # fmt: skip


def _sizes(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.size and not array.min() >= 1:  # also catches NaN
        raise SpecError(f"gemm.{name}: got {array.min()}, need sizes of 1 or more")
    return array


def _widths(like: Gemm) -> dict[str, Any]:
    """Bytes per element and the multiplier's format of GEMMs like one."""
    out = like.out_format.bytes_of(1.0)
    return {
        "a_size": like.a_format.bytes_of(1.0), "b_size": like.b_format.bytes_of(1.0),
        "out_size": out, "c_size": out if like.beta != 0.0 else 0.0,
        "epilogue_bytes": like.epilogue_bytes, "dtype": like.a_format.compute,
    }  # fmt: skip


@lru_cache(maxsize=256)
def _named_widths(dtype: str, beta: float, out_dtype: str) -> dict[str, Any]:
    return _widths(Gemm(1, 1, 1, dtype=dtype, beta=beta, out_dtype=out_dtype))


def problem(
    m: npt.ArrayLike | Gemm,
    n: npt.ArrayLike = 1,
    k: npt.ArrayLike = 1,
    batch: npt.ArrayLike = 1,
    *,
    dtype: str = "bf16",
    beta: float = 0.0,
    out_dtype: str = "",
) -> Problem:
    """Build the arrays of many GEMMs from sizes that broadcast, or from one `Gemm`.

    Raises SpecError for sizes below 1, NaN or an unknown format.

    >>> problem([1, 2], 4, 8, dtype="fp32").bytes
    array([176., 224.])
    """
    if isinstance(m, Gemm):
        widths = _widths(m)
        m, n, k, batch = m.m, m.n, m.k, m.batch
    else:
        widths = _named_widths(dtype, beta, out_dtype)
    sizes = [_sizes(name, v) for name, v in zip("mnk", (m, n, k), strict=True)]
    sizes.append(_sizes("batch", batch))
    alike = all(x.shape == sizes[0].shape for x in sizes)
    arrays = sizes if alike else np.broadcast_arrays(*sizes)
    return Problem(arrays[0], arrays[1], arrays[2], arrays[3], **widths)
