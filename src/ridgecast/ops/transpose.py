"""Transposes and permutations of matrices and of runs of elements.

Owns their bytes by algorithm. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Op, Rule, Work, choice, fmt, plain, size

__all__ = ["Transpose"]


@dataclass(frozen=True)
class Transpose(Op):
    """[batch, rows, cols, inner] to [batch, cols, rows, inner].

    variant: tiled (through tiles on chip, so that reads and writes are whole lines: Ruetsch,
    Micikevicius 2009, NVIDIA, "Optimizing Matrix Transpose in CUDA"), naive (whole lines are read;
    each run of `inner` elements is written on its own and moves whole lines, unless a cache
    gathers them: the upper bound), in_place (needs no second matrix: rotation of columns where
    rows and cols have a common divisor, shuffle of rows, shuffle of columns, each reading and
    writing all: Catanzaro, Keller, Garland 2014, PPoPP, "A decomposition for in-place matrix
    transposition").

    >>> Transpose(rows=100, cols=200, dtype="fp32").bytes
    160000.0
    """

    name: ClassVar[str] = "transpose"
    what: ClassVar[str] = "transposes and permutations: tiled, naive, in place"
    example: ClassVar[str] = "rows=8192 cols=8192"
    streams: ClassVar[bool] = True

    rows: int = size("rows")
    cols: int = size("columns")
    batch: int = size("matrices", 1)
    inner: int = size("elements of a run that stays together", 1)
    dtype: str = fmt("format of an element")
    line: int = size("bytes that memory moves at once", 32)
    variant: str = choice("algorithm", ("tiled", "naive", "in_place"), "tiled")

    def rules(self) -> Iterator[Rule]:
        """Check that runs moved in place are single elements."""
        if self.variant == "in_place":
            yield Rule("inner", np.not_equal(self.inner, 1), "1 for in_place")

    def work(self) -> Work:
        """Bytes of the variant."""
        runs = np.asarray(self.batch, np.float64) * self.rows * self.cols
        run = dtype(self.dtype).bytes_of(1.0) * np.asarray(self.inner, np.float64)
        data = runs * run
        addresses = {"integer": plain(2.0 * runs)}
        if self.variant == "in_place":
            common = np.gcd(np.asarray(self.rows, np.int64), np.asarray(self.cols, np.int64))
            passes = plain(np.where(common > 1, 3.0, 2.0))
            return Work({"integer": plain(2.0 * passes * runs)}, plain(passes * data),
                        plain(passes * data), footprint=plain(data), launches=passes)  # fmt: skip
        written = data
        if self.variant == "naive":
            written = runs * np.ceil(run / self.line) * self.line
        return Work(addresses, plain(data), plain(written), footprint=plain(2.0 * data))
