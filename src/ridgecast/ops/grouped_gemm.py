"""Grouped products: rows of many groups, each group through weights of its own.

Owns operation and byte counts of such products, and what layers of experts share with them: formats
of products and of what goes in and out, and the work of unpacking small weights. Knows no device
and no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from ..dtypes import dtype
from .base import Amount, Op, Rule, Work, choice, fmt, number, plain, size
from .loads import DISTRIBUTIONS, Loads, loads

__all__ = [
    "DEQUANTISED_ROWS", "TILES", "GroupedGemm", "bytes_of", "compute_of", "unpacked", "wide_of",
]  # fmt: skip

# Rows that share one pass over dequantised weights: the largest block of Marlin's kernel
# (Frantar et al. 2024, arXiv:2408.11743, section 3).
DEQUANTISED_ROWS = 64
TILES = (16, 64, 128)


def bytes_of(name: str, elements: Amount) -> Amount:
    """Return bytes of so many elements of a format."""
    return dtype(name).bytes_of(1.0) * np.asarray(elements, np.float64)


def compute_of(name: str) -> str:
    """Return the format of the products: that of the activations where only weights are small."""
    return dtype(name).compute if dtype(name).weight_only else name


def wide_of(name: str) -> str:
    """Return the format that goes in and out: 16 bits where the products have fewer."""
    compute = compute_of(name)
    return compute if dtype(compute).bits >= 16 else "bf16"


def unpacked(compute: str, weights: str, elements: Amount, passes: Amount) -> dict[str, Amount]:
    """Count operations that turn weights into the format of the products, once a pass over them.

    None where matrix units take both formats as they are: eight bits and four, on Blackwell of the
    data centre (PTX ISA, tcgen05.mma kind::mxf8f6f4). Other devices convert; nobody measured it
    there, and it is not counted.
    """
    if weights == compute or (compute.startswith("fp8") and weights == "mxfp4"):
        return {"vector": 0.0, "integer": 0.0}
    cells = np.asarray(elements, np.float64) * passes
    return {"vector": plain(cells), "integer": plain(cells)}  # scale; shift, mask and convert


@dataclass(frozen=True)
class GroupedGemm(Op):
    """Groups of rows, each multiplied with the weights [k, n] of its own.

    `m` rows in all are spread over `groups` by a `distribution` (see `loads`): each row picks one.
    Every group's rows are rounded up to whole tiles of `tile_m`. `busy` and `padded_rows` state
    measured counts instead (`of_counts`). Weights of a small format are unpacked to the format of
    the products once for each 64 rows of a group.

    Dropless grouping after Gale et al. 2022, arXiv:2211.15841.

    >>> GroupedGemm(m=64, groups=8, n=512, k=256).flops
    16777216.0
    >>> GroupedGemm.of_counts([3, 0, 17], tile_m=16, n=8, k=4).padded
    48.0
    """

    name: ClassVar[str] = "grouped_gemm"
    what: ClassVar[str] = "grouped GEMM: rows of many groups through weights of their own"
    example: ClassVar[str] = "m=4096 groups=64 n=2048 k=7168"

    m: int = size("rows of all groups together")
    groups: int = size("groups, each with its weights")
    n: int = size("columns of the result")
    k: int = size("contraction length")
    dtype: str = fmt("format that is computed in, or of the weights where only they are small")
    weight_dtype: str = fmt("format of the weights", like="dtype")
    distribution: str = choice("how rows spread over groups", DISTRIBUTIONS, "balanced")
    exponent: float = number("how unequal: exponent of zipf and power_law", 1.0)
    tile_m: int = size("rows of a tile that a group is rounded up to; 1: no padding", 1, high=4096)
    busy: float = number("groups that have rows, measured; 0: by the distribution", 0.0)
    padded_rows: float = number("rows after padding, measured; 0: by the distribution", 0.0)

    def rules(self) -> Iterator[Rule]:
        """Measured counts fit the sizes."""
        yield Rule("busy", np.greater(self.busy, self.groups), "at most groups")
        yield Rule("padded_rows", np.less(self.padded_rows, self.m)
                   & np.greater(self.padded_rows, 0), "0, or at least m")  # fmt: skip

    @classmethod
    def of_counts(cls, counts: Sequence[int], **fields: Any) -> Self:
        """Build it from the rows of each group."""
        tile = int(fields.get("tile_m", 1))
        return cls(m=int(sum(counts)), groups=len(counts), busy=float(sum(c > 0 for c in counts)),
                   padded_rows=float(sum(-(-c // tile) * tile for c in counts)),
                   **fields)  # fmt: skip

    @cached_property
    def loads(self) -> Loads:
        """Rows of each class of groups."""
        return loads(self.distribution, self.exponent, tokens=self.m, picks=1, groups=self.groups)

    @cached_property
    def touched(self) -> Amount:
        """Groups that have rows, and so have their weights read."""
        if not np.any(self.busy):
            return self.loads.touched
        return plain(np.where(np.greater(self.busy, 0), self.busy, self.loads.touched))

    @cached_property
    def padded(self) -> Amount:
        """Rows after padding."""
        if not np.any(self.padded_rows):
            return plain(self.loads.tiles(self.tile_m) * np.asarray(self.tile_m, np.float64))
        by_load = self.loads.tiles(self.tile_m) * np.asarray(self.tile_m, np.float64)
        return plain(np.where(np.greater(self.padded_rows, 0), self.padded_rows, by_load))

    def work(self) -> Work:
        """Products over padded rows; weights of the groups that have rows."""
        compute, wide = compute_of(self.dtype), wide_of(self.dtype)
        cells = np.multiply(self.k, np.asarray(self.n, np.float64))
        flops: dict[str, Amount] = {compute: plain(2.0 * self.padded * cells)}
        weights = bytes_of(self.weight_dtype, self.touched * cells)
        passes = self.loads.tiles(DEQUANTISED_ROWS) / self.touched
        flops |= unpacked(compute, self.weight_dtype, self.touched * cells, passes)
        rows_in = bytes_of(compute, np.multiply(self.m, np.asarray(self.k, np.float64)))
        rows_out = bytes_of(wide, np.multiply(self.m, np.asarray(self.n, np.float64)))
        resident = bytes_of(self.weight_dtype, self.groups * cells) + rows_in + rows_out
        return Work(flops, plain(weights + rows_in), plain(rows_out), resident=plain(resident))

    def counts(self) -> Mapping[str, Amount]:
        """Count groups with rows, and tiles of 16, 64 and 128 rows."""
        out = {"groups": self.touched}
        return out | {f"tiles{t}": self.loads.tiles(t) for t in TILES}
