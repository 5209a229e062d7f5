"""Reductions, scans (prefix sums) and sorts.

Owns operations and bytes of their algorithms. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Amount, Op, Rule, Work, choice, fmt, plain, size

__all__ = ["Reduction", "Scan", "Sort"]

PARTIAL = 4.0  # bytes of a partial result (fp32)
# operation -> adds, multiplies and comparisons an element
REDUCES = {"sum": 1.0, "max": 1.0, "mean": 1.0, "argmax": 2.0, "norm": 2.0, "variance": 4.0}


@dataclass(frozen=True)
class Reduction(Op):
    """Reduction of `rows` rows of `cols` elements to one result each.

    variant: single (one block a row), two_stage (`split` partial results a row are written in fp32,
    a second kernel adds them: Harris 2007, NVIDIA, "Optimizing Parallel Reduction in CUDA"), atomic
    (partial results are added to the result in memory: each reads and writes it).

    >>> Reduction(rows=1, cols=1000, split=10, dtype="fp32", variant="two_stage").bytes
    4084.0
    """

    name: ClassVar[str] = "reduction"
    what: ClassVar[str] = "sum, maximum, mean, norm, variance of rows or of a whole tensor"
    example: ClassVar[str] = "rows=1 cols=16777216 split=1024 variant=two_stage"
    streams: ClassVar[bool] = True

    rows: int = size("results")
    cols: int = size("elements that become one result")
    split: int = size("partial results of a row (two_stage, atomic)", 1)
    dtype: str = fmt("format of the input")
    out_dtype: str = fmt("format of the results", like="dtype")
    operation: str = choice("what is computed", tuple(REDUCES), "sum")
    variant: str = choice("algorithm", ("single", "two_stage", "atomic"), "single")

    def rules(self) -> Iterator[Rule]:
        """Check that parts of a row hold an element at least."""
        yield Rule("split", np.greater(self.split, self.cols), "at most cols")
        if self.variant == "single":
            yield Rule("split", np.not_equal(self.split, 1), "1 for variant=single")

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        rows = np.asarray(self.rows, np.float64)
        data = dtype(self.dtype).bytes_of(1.0) * rows * self.cols
        results = dtype(self.out_dtype).bytes_of(1.0) * rows
        flops = {"vector": plain(REDUCES[self.operation] * rows * self.cols)}
        if self.variant == "atomic":
            added = PARTIAL * rows * self.split
            return Work(flops, plain(data + added), plain(added),
                        footprint=plain(data + PARTIAL * rows), steps=2.0)  # fmt: skip
        parts = PARTIAL * rows * self.split * (1.0 if self.variant == "two_stage" else 0.0)
        stages = 2.0 if self.variant == "two_stage" else 1.0
        return Work(flops, plain(data + parts), plain(results + parts),
                    footprint=plain(data + parts + results), launches=stages,
                    steps=stages)  # fmt: skip


# variant -> reads and writes of every element, kernels
SCANS = {
    "lookback": (1.0, 1.0, 1.0),
    "chained": (1.0, 1.0, 1.0),
    "reduce_then_scan": (2.0, 1.0, 3.0),
    "scan_then_propagate": (2.0, 2.0, 3.0),
}


@dataclass(frozen=True)
class Scan(Op):
    """Prefix sum along `rows` rows of `cols` elements, in tiles of `tile`.

    variant, with memory operations an element: lookback (2: tiles wait for the nearest known prefix
    before them), chained (2: each tile waits for the one before, a serial chain of tiles),
    reduce_then_scan (3: sums of tiles, their scan, scan of tiles), scan_then_propagate (4: tiles
    are scanned and written, then sums are added to them): Merrill, Garland 2016,
    NVIDIA NVR-2016-002, "Single-pass parallel prefix scan with decoupled look-back".

    >>> Scan(rows=1, cols=4096, tile=4096, dtype="fp32", variant="scan_then_propagate").bytes / 4096
    16.00390625
    """

    name: ClassVar[str] = "scan"
    what: ClassVar[str] = "prefix sums in one, two or three kernels"
    example: ClassVar[str] = "rows=1 cols=16777216 variant=lookback"
    not_monotone: ClassVar[tuple[str, ...]] = ("tile",)

    rows: int = size("rows")
    cols: int = size("elements of a row")
    tile: int = size("elements that a block scans at once", 4096)
    dtype: str = fmt("format of input and output", "fp32")
    variant: str = choice("algorithm", tuple(SCANS), "lookback")

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        rows = np.asarray(self.rows, np.float64)
        data = dtype(self.dtype).bytes_of(1.0) * rows * self.cols
        row_tiles = np.ceil(np.asarray(self.cols, np.float64) / self.tile)
        tiles = rows * row_tiles
        reads, writes, kernels = SCANS[self.variant]
        # A tile's state: sum written, scanned (read and written), read; in one kernel: its own sum
        # and prefix written with a flag (8 bytes each), one of them read by the next (at least).
        single = kernels == 1.0
        own_written, own_read = (16.0, 8.0) if single else (2.0 * PARTIAL, 2.0 * PARTIAL)
        adds = 2.0 * rows * self.cols  # work-efficient: up and down
        if self.variant == "reduce_then_scan":
            adds = adds + rows * self.cols
        steps = plain(row_tiles) if self.variant == "chained" else kernels
        return Work({"vector": plain(adds)}, plain(reads * data + own_read * tiles),
                    plain(writes * data + own_written * tiles),
                    footprint=plain(2.0 * data + own_written * tiles),
                    launches=kernels, steps=steps)  # fmt: skip


@dataclass(frozen=True)
class Sort(Op):
    """Sort of `rows` rows of `cols` keys of `key_bits` bits, each with `value_bytes` of payload.

    variant: radix (passes of `digit_bits`: keys are read for a histogram, then keys and values are
    read and written: Merrill, Grimshaw 2011, Parallel Processing Letters 21, 245), onesweep (all
    histograms in one read before the passes: Adinets, Merrill 2022, arXiv:2206.01784), merge
    (tiles of `tile` keys sorted on chip, then merged pairwise, log2(cols / tile) passes: Satish,
    Harris, Garland 2009, IPDPS), on_chip (a row fits on chip: one read and write).

    >>> Sort(rows=1, cols=1000, value_bytes=0).bytes  # histogram, 4 passes: 4 B x 1000 x (1 + 8)
    36000.0
    """

    name: ClassVar[str] = "sort"
    what: ClassVar[str] = "radix and merge sorts of keys with values"
    example: ClassVar[str] = "rows=1 cols=16777216 key_bits=32 value_bytes=4"
    not_monotone: ClassVar[tuple[str, ...]] = (
        "digit_bits",
        "tile",
    )

    rows: int = size("rows, sorted apart")
    cols: int = size("keys of a row")
    key_bits: int = size("bits of a key", 32, high=128)
    value_bytes: int = size("bytes of a key's payload", 4, low=0)
    digit_bits: int = size("bits that a pass sorts by", 8, high=16)
    tile: int = size("keys that a block sorts or merges on chip", 4096)
    variant: str = choice("algorithm", ("onesweep", "radix", "merge", "on_chip"), "onesweep")

    def rules(self) -> Iterator[Rule]:
        """Check that rows sorted on chip fit into a tile."""
        if self.variant == "on_chip":
            yield Rule("cols", np.greater(self.cols, self.tile), "at most tile for on_chip")

    @property
    def passes(self) -> Amount:
        """Times that all keys and values are read and written."""
        if self.variant in ("radix", "onesweep"):
            return plain(np.ceil(np.divide(self.key_bits, self.digit_bits)))
        tiles = np.ceil(np.divide(self.cols, self.tile))
        return plain(1.0 + np.ceil(np.log2(tiles)))

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        n = np.asarray(self.rows, np.float64) * self.cols
        keys = np.asarray(self.key_bits, np.float64) / 8.0 * n
        both = keys + np.asarray(self.value_bytes, np.float64) * n
        passes = np.asarray(self.passes)
        read, launches = passes * both, passes
        if self.variant in ("merge", "on_chip"):
            length = np.asarray(self.cols, np.float64)
            integer = n * np.ceil(np.log2(np.maximum(length, 2.0)))  # comparisons
        else:  # digit out (shift, mask), rank, offset; and shift, mask, count for histograms
            integer = (4.0 + 3.0) * n * passes
        if self.variant == "onesweep":
            read, launches = read + keys, passes + 1.0
        elif self.variant == "radix":
            read, launches = read + passes * keys, 3.0 * passes
        buffers = np.where(passes > 1.0, 2.0, 1.0)
        held = plain(buffers * both)
        return Work({"integer": plain(integer)}, plain(read), plain(passes * both),
                    footprint=held, resident=held, launches=plain(launches),
                    steps=plain(launches))  # fmt: skip
