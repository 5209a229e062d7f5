"""Quantising and dequantising tensors between formats, with scales of tensors, rows or groups.

Owns operations and bytes. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, number, plain, size

__all__ = ["Quantise"]


@dataclass(frozen=True)
class Quantise(Op):
    """Conversion of a tensor [rows, cols] from `dtype` to `stored`, or back.

    scaling: format (blocks and scales that belong to `stored`, as in the OCP Microscaling formats
    1.0; none where it has none), tensor, row (a token: Dettmers et al. 2022, arXiv:2208.07339) or
    group (of `group` elements of a row), each scale `scale_bytes`. `zero_points`: affine, one a
    scale of the same size (Jacob et al. 2018, arXiv:1712.05877, equation 1). `dynamic`: scales come
    from the data; then one scale a tensor needs the tensor twice, others need no second read, as
    rows and groups fit on chip. Elements below a byte are packed and unpacked with two integer
    operations each.

    >>> Quantise(rows=1, cols=128, stored="int4", scaling="group", group=32, dynamic=False).bytes
    336.0
    """

    name: ClassVar[str] = "quantise"
    what: ClassVar[str] = "quantise and dequantise with scales of tensors, rows, groups or formats"
    example: ClassVar[str] = "rows=8192 cols=4096 stored=fp8_e4m3 scaling=row"
    streams: ClassVar[bool] = True
    not_monotone: ClassVar[tuple[str, ...]] = ("group",)

    rows: int = size("rows")
    cols: int = size("elements of a row")
    dtype: str = fmt("wide format")
    stored: str = fmt("narrow format", "int8")
    direction: str = choice("which way", ("quantise", "dequantise"), "quantise")
    scaling: str = choice("what shares a scale", ("format", "tensor", "row", "group"), "row")
    group: int = size("elements of a row that share a scale (group)", 128)
    scale_bytes: float = number("bytes of a scale but of scaling=format", 4.0)
    zero_points: bool = flag("affine, with zero points")
    dynamic: bool = flag("scales come from the data", True)

    def rules(self) -> Iterator[Rule]:
        """Check that groups fit into rows."""
        if self.scaling == "group":
            yield Rule("group", np.greater(self.group, self.cols), "at most cols")

    @property
    def scales(self) -> Amount:
        """Number of scales."""
        rows, cols = np.asarray(self.rows, np.float64), np.asarray(self.cols, np.float64)
        if self.scaling == "tensor":
            return plain(0.0 * rows * cols + 1.0)
        if self.scaling == "row":
            return plain(rows + 0.0 * cols)
        if self.scaling == "group":
            return plain(rows * np.ceil(cols / self.group))
        block = dtype(self.stored).scale_block
        return plain(rows * cols / block if block else 0.0 * rows * cols)

    def work(self) -> Work:
        """Operations and bytes of the direction."""
        e = np.asarray(self.rows, np.float64) * self.cols
        narrow = dtype(self.stored)
        wide, packed = dtype(self.dtype).bytes_of(1.0) * e, narrow.bits / 8.0 * e
        own = narrow.scale_bits / 8.0 if self.scaling == "format" else self.scale_bytes
        scales: F64 = np.asarray(self.scales) * own * (2.0 if self.zero_points else 1.0)
        packing = plain(2.0 * e) if narrow.bits < 8.0 else 0.0
        if self.direction == "dequantise":  # convert, scale, and less the zero point
            lanes = (3.0 if self.zero_points else 2.0) * e
            read, written, special, launches = packed + scales, wide, 0.0, 1.0
        else:
            lanes = (5.0 if self.zero_points else 4.0) * e  # scale, round, clamp at both ends
            special = plain(self.scales)  # a reciprocal a scale
            read, written, launches = wide, packed, 1.0
            if self.dynamic:
                lanes = lanes + 2.0 * e  # magnitude and maximum, or maximum and minimum
                written = written + scales
                if self.scaling == "tensor":
                    read, launches = 2.0 * wide + scales, 2.0
            else:
                read = read + scales
        flops = {"vector": plain(lanes), "special": special, "integer": packing}
        return Work(flops, plain(read), plain(written), footprint=plain(wide + packed + scales),
                    launches=launches, steps=launches)  # fmt: skip
