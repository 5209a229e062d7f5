"""Normalisations: layer, RMS, batch and group norm, with a residual, forward and backward.

Owns their operations and bytes. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, plain, size

__all__ = ["Normalisation"]

KINDS = ("layer", "rms", "batch", "group")
# Adds and multiplies an element: mean 1, variance 3 (subtract, multiply-add), subtract 1, scale 1,
# gain and shift 2; without mean: square and sum 2, scale 1, gain 1.
FORWARD = {"layer": 8.0, "rms": 4.0, "batch": 8.0, "group": 8.0}
# x^ 2 (rms 1), gain's gradient 2, shift's 1 (rms 0), gain 1, two sums 3 (rms: one, 2), dx 4 (rms 3)
BACKWARD = {"layer": 13.0, "rms": 9.0, "batch": 13.0, "group": 13.0}
# Where each operation is a kernel: (reads, writes, kernels) of whole tensors. With mean: mean,
# subtract, square, mean, scale, gain, shift; without: square, mean, scale, gain.
WITH_MEAN, WITHOUT = (7.0, 5.0, 7.0), (4.0, 3.0, 4.0)
# Backward: subtract, scale (x^), dy x^, its sum, sum of dy, g = dy gain, g x^, its mean, mean of g,
# x^ mean, g - mean, subtract, scale; without mean: less subtract, sum of dy, mean of g, g - mean
BACK_WITH_MEAN, BACK_WITHOUT = (16.0, 9.0, 13.0), (12.0, 7.0, 9.0)


@dataclass(frozen=True)
class Normalisation(Op):
    """Normalisation of [rows, cols] or, with `spatial` positions, [rows, cols, spatial].

    kind: layer (each row; Ba, Kiros, Hinton 2016, arXiv:1607.06450), rms (each row, no mean;
    Zhang, Sennrich 2019, arXiv:1910.07467), batch (each column over rows and positions; Ioffe,
    Szegedy 2015, arXiv:1502.03167), group (each of `groups` parts of the columns of a row, with
    positions; Wu, He 2018, arXiv:1803.08494). Gain (and shift) are read once a column. `residual`:
    the input is added to a stream first, and the sum is written for the next layer. `training`:
    mean and reciprocal deviation are written in fp32 for the backward pass (batch: otherwise
    statistics are given, and one pass scales and shifts).

    variant: one_read (what is normalised fits on chip; statistics by Welford 1962; batch norm's
    statistics run over the whole tensor, so that training reads it twice all the same), two_read
    (statistics first, then the data again), composed (a kernel each operation, results through
    memory). `backward` is the backward pass alone.

    >>> Normalisation(rows=10, cols=100, kind="rms", dtype="fp32").bytes  # 1000 in, out; 100 gains
    8400.0
    """

    name: ClassVar[str] = "normalisation"
    what: ClassVar[str] = "layer, RMS, batch and group norm, with residual, forward and backward"
    example: ClassVar[str] = "rows=8192 cols=4096 kind=rms residual=true"
    streams: ClassVar[bool] = True

    rows: int = size("rows (tokens, images)")
    cols: int = size("columns (features, channels)")
    spatial: int = size("positions of a channel", 1)
    groups: int = size("groups of channels (group norm)", 1)
    kind: str = choice("what is normalised", KINDS, "layer")
    dtype: str = fmt("format of input and output")
    param_dtype: str = fmt("format of gain and shift", like="dtype")
    residual: bool = flag("add to a residual stream first")
    training: bool = flag("keep statistics for the backward pass")
    variant: str = choice("algorithm", ("one_read", "two_read", "composed"), "one_read")
    backward: bool = flag("the backward pass")

    def rules(self) -> Iterator[Rule]:
        """Check that groups divide the channels, and that only group norm has them."""
        yield Rule("cols", np.mod(self.cols, self.groups) != 0, "a multiple of groups")
        if self.kind != "group":
            yield Rule("groups", np.not_equal(self.groups, 1), "1 but for kind=group")

    @property
    def statistics(self) -> Amount:
        """Sets of statistics."""
        if self.kind == "batch":
            return plain(self.cols)
        return plain(np.multiply(self.rows, self.groups))

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        e = np.asarray(self.rows, np.float64) * self.cols * self.spatial
        data = dtype(self.dtype).bytes_of(1.0) * e
        one_param = 1.0 if self.kind == "rms" else 2.0
        params = dtype(self.param_dtype).bytes_of(1.0) * one_param * np.asarray(self.cols, float)
        kept = 4.0 * one_param * np.asarray(self.statistics)  # fp32: (mean and) deviation
        if self.backward:
            return self._backward(e, data, params, kept)
        extra = data if self.residual else 0.0 * data
        lanes = FORWARD[self.kind] * e + (e if self.residual else 0.0)
        given = self.kind == "batch" and not self.training
        if given:
            lanes = lanes - (4.0 if self.variant == "composed" else 6.0) * e  # a multiply-add
        special = np.asarray(self.statistics) * (1.0 if self.kind == "rms" else 2.0)
        flops = {"vector": plain(lanes), "special": plain(special)}
        reads, writes, launches = 1.0, 1.0, 1.0
        if self.variant == "composed":
            reads, writes, launches = WITHOUT if self.kind == "rms" else WITH_MEAN
            if given:  # subtract, scale, gain, shift
                reads, writes, launches = 4.0, 4.0, 4.0
            launches += 1.0 if self.residual else 0.0
            extra = extra + (data if self.residual else 0.0)  # the sum is read again
        elif not given and (self.kind == "batch" or self.variant == "two_read"):
            reads = 2.0
            launches = 2.0 if self.kind == "batch" else 1.0
        stats = kept if self.training or given else 0.0 * kept
        read = reads * data + extra + params + (stats if given else 0.0)
        written = writes * data + (data if self.residual else 0.0) + (0.0 if given else stats)
        held = (4.0 if self.residual else 2.0) * data + params + stats
        if self.variant == "composed":
            held = held + data  # the result before, while the next is written
        return Work(flops, plain(read), plain(written),
                    footprint=plain(np.minimum(held, read + written)), resident=plain(held),
                    launches=launches, steps=reads)  # fmt: skip

    def _backward(self, e: F64, data: F64, params: F64, kept: F64) -> Work:
        """Read input, its gradient's source and statistics; write gradients, of params in fp32."""
        lanes = BACKWARD[self.kind] * e + (e if self.residual else 0.0)
        reads, writes, launches = 2.0, 1.0, 2.0  # the second kernel adds up partial sums of params
        if self.variant == "composed":
            reads, writes, launches = BACK_WITHOUT if self.kind == "rms" else BACK_WITH_MEAN
        elif self.kind == "batch" or self.variant == "two_read":
            reads = 4.0
        own = 4.0 * (1.0 if self.kind == "rms" else 2.0) * np.asarray(self.cols, np.float64)
        extra = data if self.residual else 0.0 * data
        read, written = reads * data + extra + params + kept, writes * data + own
        if self.variant == "composed" and self.residual:  # the gradients are added by a kernel
            read, written, launches = read + data, written + data, launches + 1.0
        held = 3.0 * data + extra + params + kept + own
        if self.variant == "composed":
            held = held + 2.0 * data
        return Work({"vector": plain(lanes)}, plain(read), plain(written),
                    footprint=plain(np.minimum(held, read + written)), resident=plain(held),
                    launches=launches, steps=reads / 2.0)  # fmt: skip
