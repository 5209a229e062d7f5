"""Softmax over rows, in three, two or one pass through memory.

Owns operations and bytes of its algorithms. Knows no device, no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Op, Work, choice, flag, fmt, plain, size

__all__ = ["Softmax"]

# variant -> passes, reads, writes, adds and multiplies, exponentials, integer operations: each an
# element of the row
PASSES: dict[str, tuple[float, float, float, float, float, float]] = {
    "three_pass_recompute": (3, 3, 1, 5, 2, 0),  # max | x - max, sum | x - max, scale
    "three_pass_reload": (3, 3, 2, 4, 1, 0),  # max | x - max, sum, stored | scale what is stored
    "two_pass": (2, 2, 1, 9, 2, 3),  # mantissa, exponent; two scales by powers of two | again
    "online": (2, 2, 1, 7, 3, 0),  # max, x - max, old - new, rescaled sum | x - max, scale
    "unsafe": (2, 2, 1, 2, 2, 0),  # sum | scale
    "on_chip": (1, 1, 1, 4, 1, 0),  # all of it in registers or shared memory
}


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax of `rows` rows of `cols` elements.

    variant, with memory accesses an element: three_pass_recompute (reads 3, writes 1: exponentials
    are computed twice), three_pass_reload (reads 3, writes 2: they are stored and scaled), two_pass
    (reads 2, writes 1: sums as mantissa and exponent, no maximum needed), all three of Dukhan,
    Ablavatski 2020, arXiv:2001.04438; online (reads 2, writes 1: maximum and sum in one pass) and
    unsafe (the same, without maximum: overflows): Milakov, Gimelshein 2018, arXiv:1805.02867,
    algorithms 3 and 1; on_chip (reads 1, writes 1: the row fits into registers or shared memory).
    Two passes read 2/3 of what three read; with the writes they move 3/4 of three_pass_recompute
    and 3/5 of three_pass_reload. `backward`: y (dy - sum(y dy)), rows read once where on_chip,
    else twice.

    >>> Softmax(rows=2, cols=100, dtype="fp32", variant="two_pass").bytes
    2400.0
    """

    name: ClassVar[str] = "softmax"
    what: ClassVar[str] = "softmax in three, two or one pass"
    example: ClassVar[str] = "rows=8192 cols=4096 variant=online"
    streams: ClassVar[bool] = True

    rows: int = size("rows")
    cols: int = size("elements of a row")
    dtype: str = fmt("format of input and output")
    variant: str = choice("algorithm", tuple(PASSES), "on_chip")
    backward: bool = flag("the backward pass")

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        rows = np.asarray(self.rows, np.float64)
        e = rows * self.cols
        data = dtype(self.dtype).bytes_of(1.0) * e
        passes, reads, writes, vector, special, integer = PASSES[self.variant]
        if self.backward:
            passes = 1.0 if self.variant == "on_chip" else 2.0
            return Work({"vector": plain(4.0 * e)}, plain(2.0 * passes * data), plain(data),
                        footprint=plain(3.0 * data), steps=passes)  # fmt: skip
        flops = {"vector": plain(vector * e), "special": plain(special * e + rows)}
        if integer:
            flops["integer"] = plain(integer * e)
        return Work(flops, plain(reads * data), plain(writes * data), footprint=plain(2.0 * data),
                    steps=passes)  # fmt: skip
