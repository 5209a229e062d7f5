"""Neighbourhood attention: each query sees a window around it, in one, two or three dimensions.

Owns exact pair counts (borders, dilation, causality), operations and bytes. Knows no device, no
time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Amount, Op, Rule, Work, choice, flag, fmt, plain, size

__all__ = ["NeighbourhoodAttention"]

AXES = ("depth", "height", "width")


@dataclass(frozen=True)
class NeighbourhoodAttention(Op):
    """Attention on a grid of depth x height x width tokens, each query over a window of keys.

    Windows that would leave the grid are shifted inward, so every query has exactly the product of
    the windows' sides of keys (Hassani et al. 2022, arXiv:2204.07143). An axis of size 1 has a
    window of 1: `width` alone is 1-D, `height` and `width` 2-D. `dilation` d: a query sees every
    d-th token, those of its own remainder (Hassani and Shi 2022, arXiv:2209.15001). `stride` s:
    s neighbouring queries share the window of the middle one, pairs stay the same, tiles waste
    less (generalised neighbourhood attention: Hassani et al. 2025, arXiv:2504.16922). causal:
    along the outermost axis that is longer than 1, or all axes, a query sees the last tokens up to
    itself, fewer at the start.

    variant:
    - fused: tiles of `tile` queries and keys a side on the matrix unit, scores on chip; pairs of a
      visited tile that the mask throws away are computed too (arXiv:2403.04690; the union of the
      windows of a tile, as away from borders, rounded up to tiles). tile 1: none in vain.
    - naive: one pair after the other on the lanes, scores and probabilities through memory; the
      kernels of the first paper.

    `backward` is the backward pass alone, scores recomputed (5 products instead of 2).

    >>> NeighbourhoodAttention(width=56, height=56, window=7, heads=4, head_dim=32).pairs
    153664.0
    """

    name: ClassVar[str] = "neighbourhood_attention"
    what: ClassVar[str] = "neighbourhood attention in 1-D, 2-D, 3-D: windows, dilation, stride"
    example: ClassVar[str] = "width=56 height=56 window=7 heads=4 head_dim=32"
    not_monotone: ClassVar[tuple[str, ...]] = (
        "tile", "stride", "dilation", "dilation_height", "dilation_depth",
    )  # fmt: skip

    width: int = size("tokens along the innermost axis")
    window: int = size("keys that a query sees along width")
    heads: int = size("query heads")
    head_dim: int = size("size of a query, a key and a value", 64)
    batch: int = size("sequences", 1)
    height: int = size("tokens along the second axis", 1)
    depth: int = size("tokens along the outermost axis", 1)
    window_height: int = size("keys along height; of 1 where height is 1", like="window")
    window_depth: int = size("keys along depth; of 1 where depth is 1", like="window")
    dilation: int = size("distance of seen keys along width", 1)
    dilation_height: int = size("distance of seen keys along height", like="dilation")
    dilation_depth: int = size("distance of seen keys along depth", like="dilation")
    stride: int = size("queries along an axis that share a window", 1)
    causal: str = choice("along which axes no later key is seen", ("no", "outer", "all"), "no")
    kv_heads: int = size("heads of keys and values", like="heads")
    dtype: str = fmt("format that is computed in")
    variant: str = choice("how it is computed", ("fused", "naive"), "fused")
    tile: int = size("fused: side of the tiles of queries and of keys", 1)
    backward: bool = flag("the backward pass")

    def rules(self) -> Iterator[Rule]:
        """Relate windows to the grid, and heads to each other."""
        yield Rule("heads", np.mod(self.heads, self.kv_heads) != 0, "a multiple of kv_heads")
        names = ("window_depth", "window_height", "window")
        for axis, name, (n, w, d) in zip(AXES, names, self._axes, strict=True):
            yield Rule(name, np.greater(w * d, n), f"with its dilation, at most {axis}")
        shortest = np.minimum.reduce(np.broadcast_arrays(*(
            np.where(np.equal(n, 1), np.inf, w) for n, w, _ in self._axes)))  # fmt: skip
        yield Rule("stride", np.greater(self.stride, np.where(shortest < np.inf, shortest, 1)),
                   "at most the smallest window")  # fmt: skip
        if self.causal != "no":
            yield Rule("stride", np.not_equal(self.stride, 1), "1 where attention is causal")
        if self.variant == "naive":
            yield Rule("tile", np.not_equal(self.tile, 1), "1 where variant is naive")

    @property
    def tokens(self) -> Amount:
        """Tokens of a sequence."""
        return plain(np.multiply(np.multiply(self.width, 1.0) * self.height, self.depth))

    @property
    def pairs(self) -> Amount:
        """Query-key pairs a head and sequence, exactly.

        Along an axis of n tokens n w; causal, the d remainders each lose w (w - 1) / 2 at the
        start.
        """
        total: Amount = 1.0
        for (n, w, d), causal in zip(self._axes, self._causal_axes, strict=True):
            total = total * (n * w - np.where(causal, d * w * (w - 1.0) / 2.0, 0.0))
        return plain(total)

    @property
    def computed(self) -> Amount:
        """Pairs a head and sequence that the matrix unit computes, those of whole tiles."""
        if self.variant == "naive":
            return self.pairs
        total: Amount = 1.0
        side = np.asarray(self.tile, np.float64)
        for n, w, d in self._axes:
            t = np.where(np.equal(n, 1.0), 1.0, side)
            own = np.ceil(n / d)  # tokens of the longest remainder
            moved = (np.ceil(t / self.stride) - 1.0) * self.stride  # first to last window of a tile
            keys = np.ceil(np.minimum(w + moved, own) / t) * t
            total = total * d * np.ceil(own / t) * t * keys
        return plain(np.where(np.equal(side, 1.0), self.pairs, total))

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        heads, e = np.multiply(self.batch, self.heads) * 1.0, dtype(self.dtype).bytes_of(1.0)
        computed, dim = heads * self.computed, np.asarray(self.head_dim, np.float64)
        products = computed * 4.0 * dim * (2.5 if self.backward else 1.0)
        lanes = computed * (8.0 if self.backward else 4.0)
        if self.variant == "naive":
            flops: dict[str, Amount] = {"vector": plain(products + lanes)}
        else:
            flops = {dtype(self.dtype).compute: plain(products), "vector": plain(lanes)}
        flops["special"] = plain(computed)
        cells = e * self.batch * self.tokens * dim
        q, kv = cells * self.heads, cells * self.kv_heads * 2.0
        read, written = q + kv, q
        if self.backward:  # Q, K, V, O, dO in; dQ, dK, dV out
            read, written = 3.0 * q + kv, q + kv
        footprint, launches = read + written, 1.0
        if self.variant == "naive":  # scores and probabilities, written and read
            scores = e * heads * self.pairs
            read, written = read + 2.0 * scores, written + 2.0 * scores
            footprint, launches = footprint + 2.0 * scores, 3.0
        return Work(flops, plain(read), plain(written), footprint=plain(footprint),
                    launches=launches * (2.0 if self.backward else 1.0))  # fmt: skip

    @property
    def _axes(self) -> tuple[tuple[Amount, Amount, Amount], ...]:
        """Tokens, window and dilation of each axis, outermost first; 1, 1, 1 where it is absent."""
        outer = (self.depth, self.window_depth, self.dilation_depth)
        middle = (self.height, self.window_height, self.dilation_height)
        inner = (self.width, self.window, self.dilation)
        found: list[tuple[Amount, Amount, Amount]] = []
        for axis, may_lack in ((outer, True), (middle, True), (inner, False)):
            n, w, d = (np.asarray(x, np.float64) for x in axis)
            lacks = np.logical_and(np.equal(n, 1.0), may_lack)
            found.append((n, np.where(lacks, 1.0, w), np.where(lacks, 1.0, d)))
        return tuple(found)

    @property
    def _causal_axes(self) -> tuple[Amount | np.bool_, ...]:
        """Whether each axis is causal."""
        if self.causal != "outer":
            return (np.bool_(self.causal == "all"),) * 3
        deep, high = np.greater(self.depth, 1), np.greater(self.height, 1)
        return deep, np.logical_and(~deep, high), ~np.logical_or(deep, high)
