"""Attention over a sequence that is split among devices, blocks passed around a ring.

Owns what one device computes, reads and sends; the blocks are `Attention`. Knows no link's speed:
whether a block arrives before the last one is used up is for the predictor to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..dtypes import dtype
from .attention import Attention
from .base import Amount, Op, Rule, Work, choice, flag, fmt, plain, size

__all__ = ["RingAttention"]

LAYOUTS = ("contiguous", "striped", "zigzag")
SUMS = 4.0  # bytes of an fp32 element: partial outputs and their log-sum-exp


@dataclass(frozen=True)
class RingAttention(Op):
    """Exact attention of a sequence of `length` tokens over `devices`, length / devices on each.

    Counts are those of one device, the busiest, whose peers wait for it: in each of `devices`
    rounds it attends its queries to one block of keys and values (`Attention`, flash), and merges
    the result into fp32 sums that go through memory.

    variant:
    - pass_kv: blocks of keys and values travel (Ring Attention: Liu et al. 2023, arXiv:2310.01889);
      a device sends devices - 1 of them, each of which is also read and written once in memory.
    - pass_q: queries travel, and their partial sums go back to their owner (Yang et al. 2024,
      arXiv:2411.01783; TokenRing: Wang et al. 2024, arXiv:2412.20501); less is sent where few
      queries meet many keys.

    layout, where attention is causal: contiguous (the last device computes devices - 1 full blocks,
    the first none), striped (token i on device i mod devices: half a block a round, Brandon et al.
    2023, arXiv:2311.09431), zigzag (two half blocks from both ends a device: the same on all).
    `cached` tokens before the sequence, split evenly, are seen by all queries.

    >>> ring = RingAttention(length=8192, devices=8, heads=32, head_dim=128, causal=False)
    >>> ring.work().links["peer"]  # 7 blocks of K and V, 1024 x 32 x 128 x 2 B each
    117440512.0
    """

    name: ClassVar[str] = "ring_attention"
    what: ClassVar[str] = "sequence-parallel attention: blocks of keys, or of queries, in a ring"
    example: ClassVar[str] = "length=131072 devices=8 heads=32 kv_heads=8 head_dim=128"
    not_monotone: ClassVar[tuple[str, ...]] = ("devices",)

    length: int = size("tokens of queries, of all devices")
    devices: int = size("devices in the ring")
    heads: int = size("query heads")
    head_dim: int = size("size of a query, a key and a value", 128)
    batch: int = size("sequences", 1)
    kv_heads: int = size("heads of keys and values", like="heads")
    cached: int = size("earlier tokens, keys and values only", 0, low=0)
    dtype: str = fmt("format that is computed in")
    kv_dtype: str = fmt("format of keys and values, in memory and sent", like="dtype")
    causal: bool = flag("a query sees keys up to its own position", True)
    layout: str = choice("which tokens a device has", LAYOUTS, "contiguous")
    variant: str = choice("what travels", ("pass_kv", "pass_q"), "pass_kv")
    link: str = choice("what the ring is made of", ("peer", "network"), "peer")

    def rules(self) -> Iterator[Rule]:
        """Relate devices to lengths, and heads to each other."""
        yield Rule("heads", np.mod(self.heads, self.kv_heads) != 0, "a multiple of kv_heads")
        parts, told = np.multiply(self.devices, 1), "devices"
        if self.layout == "zigzag":
            parts, told = parts * 2, "2 x devices"
        yield Rule("length", np.mod(self.length, parts) != 0, f"a multiple of {told}")
        yield Rule("cached", np.mod(self.cached, self.devices) != 0, "a multiple of devices")

    def work(self) -> Work:
        """Operations and bytes of the busiest device."""
        p, e = np.asarray(self.devices, np.float64), dtype(self.dtype).bytes_of(1.0)
        flops = {unit: plain(count) for unit, count in self._operations().items()}
        hops = p - 1.0
        q, kv, sums = e * self._cells, self.kv_block_bytes, SUMS * (self._cells + self._rows)
        if self.variant == "pass_kv":
            sent, hops_back = hops * kv, 0.0
            buffers = kv  # the block that arrives
        else:  # the sums of the last round need a hop of their own; one device sends none
            sent, hops_back = hops * (q + sums), np.minimum(hops, 1.0)
            buffers = q + sums
        # each round: queries, keys and values, and the sums so far; what is sent or received also
        # goes through memory
        read = p * (q + kv) + hops * sums + sent
        written = hops * sums + q + sent
        held = 2.0 * q + kv + np.where(hops > 0.0, sums + buffers, 0.0)
        return Work(flops, plain(read), plain(written), footprint=plain(held),
                    resident=plain(held), launches=plain(p), links={self.link: plain(sent)},
                    hops={self.link: plain(hops + hops_back)})  # fmt: skip

    @property
    def kv_block_bytes(self) -> Amount:
        """Bytes of one device's keys and values."""
        keys = np.add(self.length, np.multiply(self.cached, 1.0)) / self.devices
        cells = 2.0 * self.batch * np.multiply(self.kv_heads, self.head_dim) * keys
        return plain(dtype(self.kv_dtype).bytes_of(1.0) * cells)

    @property
    def _rows(self) -> Amount:
        """Queries of a device, all sequences and heads."""
        return np.multiply(self.batch, self.heads) * 1.0 * self.length / self.devices

    @property
    def _cells(self) -> Amount:
        return self._rows * self.head_dim

    def _operations(self) -> dict[str, Amount]:
        """Blocks of the busiest device, each an `Attention`; merging is 4 a sum and a round."""
        p = np.asarray(self.devices, np.float64)
        own = np.asarray(self.length, np.float64) / p
        total: dict[str, Amount] = {}
        for count, q_len, kv_len, causal in self._blocks(p, own):
            for unit, flops in self._part(q_len, kv_len, causal).work().flops.items():
                used = np.where(np.greater(kv_len, 0.0), count, 0.0)
                total[unit] = total.get(unit, 0.0) + used * flops
        rounds = p - 1.0
        total["vector"] = total["vector"] + rounds * 4.0 * self._cells
        total["special"] = total["special"] + rounds * 2.0 * self._rows
        return total

    def _blocks(self, p: Amount, own: Amount) -> list[tuple[Amount, Amount, Amount, bool]]:
        """How many blocks, of how many queries and keys, causal or full."""
        earlier = np.asarray(self.cached, np.float64) / p
        blocks: list[tuple[Amount, Amount, Amount, bool]] = [(p, own, earlier, False)]
        if not self.causal:
            return [*blocks, (p, own, own, False)]
        if self.layout == "striped":
            return [*blocks, (p, own, own, True)]
        if self.layout == "contiguous":
            return [*blocks, (1.0, own, own, True), (p - 1.0, own, own, False)]
        half = own / 2.0
        return [*blocks, (2.0, half, half, True), (2.0 * p - 1.0, half, half, False)]

    def _part(self, q_len: Amount, kv_len: Amount, causal: bool) -> Attention:
        """Attention of queries to one block, with the columns of this operation."""
        numbers: dict[str, Any] = {
            "q_len": q_len, "kv_len": np.maximum(kv_len, 1.0), "q_heads": self.heads,
            "head_dim": self.head_dim, "batch": self.batch, "kv_heads": self.kv_heads,
        }  # fmt: skip
        words: dict[str, Any] = {"dtype": self.dtype, "kv_dtype": self.kv_dtype, "causal": causal}
        arrays = np.broadcast_arrays(*numbers.values())
        columns: dict[str, Any] = dict(zip(numbers, arrays, strict=True))
        shape = columns["q_len"].shape
        if shape:
            return Attention.of_columns({**columns, **words}, shape[0])[0]
        return Attention(**{name: int(value) for name, value in columns.items()}, **words)
