"""Gathering and scattering rows of a table: embeddings, bags of them, and their gradients.

Owns their operations and bytes, with rows that start anywhere in a line. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, fmt, plain, size

__all__ = ["Embedding"]


@dataclass(frozen=True)
class Embedding(Op):
    """`lookups` rows of `dim` elements at random places of a table of `table_rows` rows.

    Memory is read in lines of `line` bytes (32: a sector of NVIDIA's caches, CUDA C++ Best
    Practices Guide, "Coalesced access"): a row of s bytes touches 1 + (s - g) / line of them on
    average, g the greatest common divisor of s and line, for its start lies anywhere that rows
    start. Bags of `bag` rows are added up (Naumov et al. 2019, arXiv:1906.00091).

    direction: gather (rows out), scatter (rows in, overwriting), scatter_add (rows in, added: the
    gradient of gather; table rows are read and written). The footprint takes lookups as uniform:
    of V rows, V (1 - (1 - 1/V)^n) are touched.

    >>> Embedding(lookups=4, dim=12, table_rows=100, dtype="fp32", line=32).lines_per_row
    2.0
    """

    name: ClassVar[str] = "embedding"
    what: ClassVar[str] = "gather and scatter of table rows, bags, gradients"
    example: ClassVar[str] = "lookups=8192 dim=4096 table_rows=128256"
    streams: ClassVar[bool] = True
    not_monotone: ClassVar[tuple[str, ...]] = ("bag",)

    lookups: int = size("rows that are looked up")
    dim: int = size("elements of a row")
    table_rows: int = size("rows of the table")
    bag: int = size("rows that are added up to one", 1)
    dtype: str = fmt("format of the table")
    out_dtype: str = fmt("format of rows outside the table", like="dtype")
    line: int = size("bytes that memory moves at once", 32)
    index_bytes: int = size("bytes of an index", 8)
    direction: str = choice("which way", ("gather", "scatter", "scatter_add"), "gather")

    def rules(self) -> Iterator[Rule]:
        """Check that bags are full, and that only gathered and added rows come in bags."""
        yield Rule("lookups", np.mod(self.lookups, self.bag) != 0, "a multiple of bag")
        if self.direction == "scatter":
            yield Rule("bag", np.not_equal(self.bag, 1), "1 for scatter")

    @property
    def row_bytes(self) -> Amount:
        """Bytes of a table row, whole bytes."""
        return plain(np.ceil(dtype(self.dtype).bytes_of(1.0) * np.asarray(self.dim, np.float64)))

    @property
    def lines_per_row(self) -> Amount:
        """Lines that a row touches, on average over where rows start."""
        row = np.asarray(self.row_bytes, np.int64)
        line = np.asarray(self.line, np.int64)
        return plain(1.0 + (row - np.gcd(row, line)) / line)

    @property
    def distinct_rows(self) -> Amount:
        """Rows that at least one of uniform lookups touches, expected."""
        v = np.asarray(self.table_rows, np.float64)
        missed = np.exp(self.lookups * np.log1p(-1.0 / np.maximum(v, 2.0)))
        return plain(np.where(v == 1.0, 1.0, v * (1.0 - missed)))

    def work(self) -> Work:
        """Operations and bytes of the direction."""
        n = np.asarray(self.lookups, np.float64)
        table = n * self.lines_per_row * self.line
        rows = dtype(self.out_dtype).bytes_of(1.0) * n / self.bag * self.dim
        indices = n * self.index_bytes
        touched: F64 = np.minimum(
            np.asarray(self.distinct_rows) * self.lines_per_row * self.line, table
        )
        held = np.asarray(self.table_rows, np.float64) * self.row_bytes + rows + indices
        adds, ids = 0.0 * n, {"integer": plain(n)}  # an address a row
        if self.direction == "gather":
            adds = (n - n / self.bag) * self.dim
            read, written = table + indices, rows
        elif self.direction == "scatter":
            read, written = rows + indices, table
        else:
            adds = n * self.dim
            read, written = rows + indices + table, table
        flops = {"vector": plain(adds), **ids}
        return Work(flops, plain(read), plain(written), footprint=plain(touched + rows + indices),
                    resident=plain(held), steps=2.0)  # an index, then its row  # fmt: skip
