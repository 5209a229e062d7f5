"""Mixture of experts: a router sends each token to a few of many feed-forward networks.

Owns operation and byte counts of the whole layer on one device of an expert (ep) and tensor (tp)
parallel group; the grouped product alone is `grouped_gemm`'s. Knows no device and no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from .base import Amount, Op, Rule, Traits, Work, choice, flag, fmt, number, plain, size
from .grouped_gemm import DEQUANTISED_ROWS, TILES, bytes_of, compute_of, unpacked, wide_of
from .loads import DISTRIBUTIONS, Loads, loads

__all__ = ["Moe"]

_PADDED = (8, 16, 32, 64, 128, 256)  # rows of a tile that kernels of experts are built for
_BLOCK = 128  # columns of a block's result, and _STEP of the sum at a time (both usual)
_STEP = 64
# Triton copies rows by vectors where a stride is a multiple of 16 elements, and tells no other case
# apart (its specialisation of integer arguments); elsewhere it copies element by element.
_ALIGNED = 16
_EVEN = 128  # powers of two beyond which columns are as good as any (assumed)
_VARIANTS = ("grouped", "gathered", "fused", "capacity", "dense")
_DISPATCH = ("none", "all_gather", "all_to_all", "deduplicated")


@dataclass(frozen=True)
class Moe(Op):
    """Expert layer as one device of `tp` x `ep` runs it: router, experts, weighted sum.

    `num_tokens` tokens (of all devices of the ep group together) each pick `top_k` of `experts`; a
    device holds experts / ep of them and inter / tp of their columns. `gated` experts have three
    matrices (SwiGLU: Shazeer 2020, arXiv:2002.05202), others two. `distribution` says how tokens
    spread over experts (see `loads`); with unequal loads this is the device with the most loaded
    expert. Rows of an expert are rounded up to `tile_m`; with `rounded` the router itself picks
    whole tiles (token rounding: Guo et al. 2025, arXiv:2512.14080). `shared_experts` see all
    tokens. The sum over tp devices is a collective of its own, not counted here.

    dispatch: none (every device has all tokens already), all_gather (tokens are gathered, partial
    sums reduce-scattered), all_to_all (one copy a chosen expert: Lepikhin et al. 2020,
    arXiv:2006.16668), deduplicated (one copy a chosen device: DeepSeek-AI 2024, arXiv:2412.19437,
    section 3.2).

    variant: grouped (rows are permuted into a copy, products, activation and weighted sum each go
    through memory; dropless, Gale et al. 2022, arXiv:2211.15841), gathered (the first product reads
    the rows where they lie: Tan et al. 2024, arXiv:2403.08245), fused (gathered, and the
    activation in the first product's epilogue), capacity (every expert computes capacity_factor
    times the mean number of rows, dropping or padding: Fedus et al. 2021, arXiv:2101.03961,
    section 2.2), dense (every expert computes every token, no permuting).

    >>> Moe(num_tokens=64, hidden=256, inter=512, experts=8, top_k=2, router=False).flops
    100663296.0
    """

    name: ClassVar[str] = "moe"
    what: ClassVar[str] = "mixture of experts: router, permutation, grouped products, dispatch"
    example: ClassVar[str] = (
        "num_tokens=4096 hidden=7168 inter=2048 experts=256 top_k=8 ep=8 distribution=uniform"
    )
    not_monotone: ClassVar[tuple[str, ...]] = (
        "tp",
        "ep",
        "experts",
    )

    num_tokens: int = size("tokens that are routed, of all devices of the ep group together")
    hidden: int = size("size of a token")
    inter: int = size("columns of an expert's first matrix, before tp")
    experts: int = size("experts of the layer, before ep", high=65536)
    top_k: int = size("experts that a token picks", high=65536)
    dtype: str = fmt("format that is computed in, or of the weights where only they are small")
    weight_dtype: str = fmt("format of the weights", like="dtype")
    gated: bool = flag("three matrices an expert (SwiGLU), else two", True)
    tp: int = size("devices that share an expert's columns", 1)
    ep: int = size("devices that share the experts", 1)
    distribution: str = choice("how tokens spread over experts", DISTRIBUTIONS, "balanced")
    exponent: float = number("how unequal: exponent of zipf and power_law", 1.0)
    shared_experts: int = size("experts that every token passes", 0, low=0)
    shared_inter: int = size("columns of a shared expert's first matrix", like="inter")
    router: bool = flag("the router's product, softmax and top-k belong to it")
    dispatch: str = choice("how tokens reach their experts' devices", _DISPATCH, "none")
    gpus_per_node: int = size("devices that reach each other without the network", 8)
    tile_m: int = size("rows of a tile that an expert is rounded up to; 1: no padding", 1,
                       high=4096)  # fmt: skip
    rounded: bool = flag("the router fills whole tiles (token rounding)")
    variant: str = choice("how it is computed", _VARIANTS, "grouped")
    capacity_factor: float = number("rows of an expert over their mean, of variant capacity", 1.25)
    local_rows: float = number("rows of this device's experts, measured; 0: by distribution", 0.0)
    busy: float = number("this device's experts with rows, measured; 0: by distribution", 0.0)
    padded_rows: float = number("rows after padding, measured; 0: by distribution", 0.0)

    def rules(self) -> Iterator[Rule]:
        """Tokens find distinct experts; tp and ep divide; measured counts fit."""
        yield Rule("experts", np.less(self.experts, self.top_k), "at least top_k")
        yield Rule("ep", np.mod(self.experts, self.ep) != 0, "a divisor of experts")
        yield Rule("tp", np.mod(self.inter, self.tp) != 0, "a divisor of inter")
        shared = np.greater(self.shared_experts, 0) & (np.mod(self.shared_inter, self.tp) != 0)
        yield Rule("tp", shared, "a divisor of shared_inter")
        yield Rule("busy", np.greater(self.busy * np.asarray(self.ep), self.experts),
                   "at most the experts of this device")  # fmt: skip
        short = np.greater(self.padded_rows, 0) & np.less(self.padded_rows, self.local_rows)
        yield Rule("padded_rows", short, "0, or at least local_rows")

    @classmethod
    def of_counts(cls, counts: Sequence[int], **fields: Any) -> Self:
        """Build it from the measured rows of each of this device's experts."""
        tile = int(fields.get("tile_m", 1))
        return cls(local_rows=float(sum(counts)), busy=float(sum(c > 0 for c in counts)),
                   padded_rows=float(sum(-(-c // tile) * tile for c in counts)),
                   **fields)  # fmt: skip

    # ------------------------------------------------------------------------------ rows

    @cached_property
    def loads(self) -> Loads:
        """Rows of each class of this device's experts."""
        return loads(self.distribution, self.exponent, tokens=self.num_tokens, picks=self.top_k,
                     groups=self.experts, shards=self.ep)  # fmt: skip

    def _or(self, measured: Amount, expected: Any) -> Amount:
        if not np.any(measured):
            return plain(expected)
        return plain(np.where(np.greater(measured, 0), measured, expected))

    @cached_property
    def rows(self) -> Amount:
        """Pairs of a token and an expert of this device."""
        return self._or(self.local_rows, self.loads.rows)

    @property
    def local_experts(self) -> Amount:
        """Experts that this device holds."""
        return plain(np.asarray(self.experts, np.float64) / self.ep)

    @cached_property
    def touched(self) -> Amount:
        """Experts of this device that have rows, and so have their weights read."""
        if self.variant in ("capacity", "dense"):
            return self.local_experts
        return self._or(self.busy, self.loads.touched)

    @cached_property
    def padded(self) -> Amount:
        """Rows that the products compute."""
        if self.variant == "dense":
            return plain(self.local_experts * np.asarray(self.num_tokens, np.float64))
        if self.variant == "capacity":
            mean = np.multiply(self.num_tokens, np.asarray(self.top_k, np.float64)) / self.experts
            return plain(self.local_experts * np.ceil(self.capacity_factor * mean))
        if self.rounded:
            return self.rows
        return self._or(self.padded_rows, self.loads.tiles(self.tile_m) * np.asarray(self.tile_m))

    @property
    def _share(self) -> Amount:
        """Share of all pairs of a token and an expert that this device computes."""
        pairs = np.multiply(self.num_tokens, np.asarray(self.top_k, np.float64))
        return plain(np.minimum(self.rows / pairs, 1.0))

    @cached_property
    def tokens_here(self) -> Amount:
        """Tokens that pick at least one expert of this device.

        Exact for choices without repetition among equal experts: 1 - product over i < top_k of
        (1 - share experts / (experts - i)).
        """
        if self.variant == "dense":
            return plain(np.asarray(self.num_tokens, np.float64))
        k, e = np.asarray(self.top_k, np.float64), np.asarray(self.experts, np.float64)
        share, miss = self._share, 1.0
        for i in range(int(np.max(k))):
            left = 1.0 - share * e / np.maximum(e - i, 1.0)
            miss = miss * np.where(i < k, np.maximum(left, 0.0), 1.0)
        return plain(np.asarray(self.num_tokens, np.float64) * (1.0 - miss))

    @property
    def _tokens_own(self) -> Amount:
        """Tokens that this device starts with and ends with."""
        own = np.asarray(self.num_tokens, np.float64)
        return plain(own if self.dispatch == "none" else own / self.ep)

    # ------------------------------------------------------------------------------ work

    def work(self) -> Work:
        """Sum of router, dispatch, experts and shared experts."""
        parts = [self._experts(), *self._shared(), *self._routed(), *self._dispatched()]
        flops: dict[str, Amount] = {}
        for part in parts:
            for unit, count in part.flops.items():
                flops[unit] = plain(flops.get(unit, 0.0) + np.asarray(count, np.float64))
        read = plain(sum((p.read for p in parts), start=0.0))
        written = plain(sum((p.written for p in parts), start=0.0))
        again = plain(sum((0.0 if p.resident is None else p.resident for p in parts), start=0.0))
        sent = parts[-1]
        return Work(flops, read, written, footprint=plain(read + written - again),
                    resident=self._resident(), launches=sum(p.launches for p in parts),
                    links=sent.links, hops=sent.hops)  # fmt: skip

    @property
    def _matrices(self) -> float:
        return 3.0 if self.gated else 2.0

    @property
    def _columns(self) -> Amount:
        return plain(np.asarray(self.inter, np.float64) / self.tp)

    def _experts(self) -> Work:
        """Permute, two grouped products with the activation between, weighted sum.

        `resident` of the parts is what is read again after it was written.
        """
        compute, wide = compute_of(self.dtype), wide_of(self.dtype)
        hidden, columns = np.asarray(self.hidden, np.float64), self._columns
        cells = self._matrices * hidden * columns
        rows = self.rows if self.variant not in ("capacity", "dense") else self.padded
        held = self.touched * cells
        flops: dict[str, Amount] = {compute: plain(2.0 * self.padded * cells)}
        blocks = self.loads.tiles(DEQUANTISED_ROWS)
        opened = unpacked(compute, self.weight_dtype, held, blocks / self.touched)
        first = 2.0 if self.gated else 1.0
        lanes = rows * (columns * (first + 1.0) + 2.0 * hidden) + opened["vector"]
        flops["special"] = plain(2.0 * rows * columns)  # sigmoid: exponential and reciprocal
        flops["integer"] = opened["integer"]
        here = self.tokens_here
        read = bytes_of(self.weight_dtype, held)
        written: Amount = 0.0
        launches = 3.0 if self.variant == "dense" else 4.0  # sorting, two products, weighted sum
        again: Amount = 0.0
        if compute != wide:  # quantise tokens before, and the activation's result in its kernel
            small = bytes_of(compute, here * hidden)
            read, written = read + bytes_of(wide, here * hidden), written + small
            lanes = lanes + 2.0 * (here * hidden + rows * columns)
            launches, again = launches + 1.0, again + small
        gathered = bytes_of(compute, rows * hidden)
        if self.variant in ("grouped", "capacity"):  # a permuted copy
            read, written = read + 2.0 * gathered, written + gathered
            launches, again = launches + 1.0, again + gathered
        elif self.variant == "dense":
            read = read + bytes_of(compute, here * hidden)
        else:
            read = read + gathered
            again = again + bytes_of(compute, np.maximum(rows - here, 0.0) * hidden)
        if self.variant != "fused":  # the activation is a kernel
            before = bytes_of(wide, rows * columns * first)
            read, written = read + before, written + before
            launches, again = launches + 1.0, again + before
        middle, out = bytes_of(compute, rows * columns), bytes_of(wide, rows * hidden)
        read, written = read + middle + out, written + middle + out
        again = again + middle + out
        written = written + bytes_of(wide, self._returned * hidden)
        flops["vector"] = plain(lanes)
        return Work(flops, plain(read), plain(written), resident=plain(again), launches=launches)

    @property
    def _returned(self) -> Amount:
        """Tokens whose sums this device writes: all that it was given, zeros included."""
        if self.dispatch in ("none", "all_gather"):
            return plain(np.asarray(self.num_tokens, np.float64))
        return self.rows if self.dispatch == "all_to_all" else self.tokens_here

    def _shared(self) -> Iterator[Work]:
        """Experts that every token of this device passes, beside the routed ones."""
        if not np.any(self.shared_experts):
            return
        compute, wide = compute_of(self.dtype), wide_of(self.dtype)
        hidden, tokens = np.asarray(self.hidden, np.float64), self._tokens_own
        columns = np.multiply(self.shared_experts, np.asarray(self.shared_inter) / self.tp)
        cells = self._matrices * hidden * columns
        first = 2.0 if self.gated else 1.0
        flops: dict[str, Amount] = {compute: plain(2.0 * tokens * cells)}
        blocks = np.ceil(np.asarray(tokens) / DEQUANTISED_ROWS)
        opened = unpacked(compute, self.weight_dtype, cells, blocks)
        flops["vector"] = plain(tokens * columns * (first + 1.0) + opened["vector"])
        flops["special"] = plain(2.0 * tokens * columns)
        flops["integer"] = opened["integer"]
        between = bytes_of(wide, tokens * columns * first) + bytes_of(compute, tokens * columns)
        read = bytes_of(self.weight_dtype, cells) + bytes_of(compute, tokens * hidden) + between
        written = between + bytes_of(wide, tokens * hidden)
        some = np.greater(self.shared_experts, 0)
        yield Work(flops, plain(read * some), plain(written * some), resident=plain(between),
                   launches=plain(np.where(some, 3.0, 0.0)))  # fmt: skip

    def _routed(self) -> Iterator[Work]:
        """Scores of all experts, softmax, and `top_k` passes for the largest."""
        if not self.router:
            return
        wide = wide_of(self.dtype)
        tokens, e = self._tokens_own, np.asarray(self.experts, np.float64)
        hidden, k = np.asarray(self.hidden, np.float64), np.asarray(self.top_k, np.float64)
        scores = 4.0 * tokens * e
        flops: dict[str, Amount] = {wide: plain(2.0 * tokens * hidden * e)}
        flops["vector"] = plain(tokens * e * (3.0 + k))
        flops["special"] = plain(tokens * (e + k))
        read = bytes_of(wide, hidden * (tokens + e)) + scores
        yield Work(flops, plain(read), plain(scores + 8.0 * tokens * k), resident=plain(scores),
                   launches=2.0)  # fmt: skip

    def _dispatched(self) -> Iterator[Work]:
        """Tokens to their experts' devices, and the sums back.

        Tokens travel in the format of the products (fp8 in DeepSeek-V3), sums in 16 bits.
        """
        if self.dispatch == "none" or not np.any(np.greater(self.ep, 1)):
            yield Work(launches=0.0)
            return
        ep, hidden = np.asarray(self.ep, np.float64), np.asarray(self.hidden, np.float64)
        others, own = ep - 1.0, self._tokens_own
        if self.dispatch == "all_gather":
            copies = own * others
        elif self.dispatch == "all_to_all":
            copies = own * np.asarray(self.top_k, np.float64) * others / ep
        else:
            e, k = np.asarray(self.experts, np.float64), np.asarray(self.top_k, np.float64)
            miss = 1.0
            for i in range(int(np.max(k))):
                miss = miss * np.where(i < k, np.maximum(1.0 - e / ep / np.maximum(e - i, 1.0), 0),
                                       1.0)  # fmt: skip
            copies = own * others * (1.0 - miss)
        there = bytes_of(compute_of(self.dtype), copies * hidden)
        back = bytes_of(wide_of(self.dtype), copies * hidden)
        near = np.minimum(ep, self.gpus_per_node) - 1.0
        inside = np.where(others > 0, near / np.maximum(others, 1.0), 0.0)
        sent = there + back
        links: dict[str, Amount] = {"peer": plain(sent * inside)}
        hops: dict[str, Amount] = {"peer": plain(np.where(near > 0, 2.0, 0.0))}
        if np.any(inside < 1.0):
            links["network"] = plain(sent * (1.0 - inside) * (others > 0))
            hops["network"] = plain(np.where((inside < 1.0) & (others > 0), 2.0, 0.0))
        some = np.greater(others, 0.0)
        summed = bytes_of(wide_of(self.dtype), own * hidden) * some
        yield Work({"vector": plain(copies * hidden)}, plain(sent + back),
                   plain(there + back + summed), launches=plain(np.where(some, 2.0, 0.0)),
                   links=links, hops=hops)  # fmt: skip

    def _resident(self) -> Amount:
        """All weights of this device, tokens in and out, and the largest intermediates."""
        compute, wide = compute_of(self.dtype), wide_of(self.dtype)
        hidden, first = np.asarray(self.hidden, np.float64), 2.0 if self.gated else 1.0
        cells = self._matrices * hidden
        shared = np.multiply(self.shared_experts, np.asarray(self.shared_inter) / self.tp)
        weights = bytes_of(self.weight_dtype, cells * (self.local_experts * self._columns + shared))
        if self.router:
            weights = weights + bytes_of(wide, hidden * self.experts)
        dropless = self.variant not in ("capacity", "dense")
        rows = self.rows if dropless else self.padded
        ends = 2.0 * bytes_of(wide, hidden * self._tokens_own)
        copy = bytes_of(compute, rows * hidden) if self.variant in ("grouped", "capacity") else 0.0
        middle = bytes_of(compute, rows * self._columns)
        before = 0.0 if self.variant == "fused" else bytes_of(wide, rows * self._columns * first)
        after = bytes_of(wide, rows * hidden)
        peak = np.maximum(np.maximum(copy + before, before + middle), middle + after)
        return plain(weights + ends + peak)

    def counts(self) -> Mapping[str, Amount]:
        """Count rows, experts with rows, and tiles of 16, 64 and 128 rows."""
        out: dict[str, Amount] = {"rows": self.rows, "experts": self.touched}
        return out | {f"tiles{t}": self.loads.tiles(t) for t in TILES}

    def settled(self) -> Self:
        """Without an exponent where the distribution has none, as tables write such rows."""
        if self.distribution in ("zipf", "power_law"):
            return self
        out = copy(self)
        object.__setattr__(out, "exponent", np.zeros_like(np.asarray(self.exponent, np.float64)))
        return out

    @cached_property
    def traits(self) -> Traits:
        """What a device's own part of the layer is, however tp and ep cut it.

        Layers that differ as wholes are often the same on one device: 256 experts over 8 devices
        and 32 over one. So learned times see the part: its columns and experts, rows of an expert,
        what tiles add, and blocks of both products over the units. `pairs` and `sums` are bytes
        between the products and before the weighted sum of all pairs of a token and an expert:
        vLLM's Triton kernels pass over those of other devices' experts too. `odd` are products
        over columns that are no multiple of 16, which Triton copies one by one.
        """
        hidden, columns = np.asarray(self.hidden, np.float64), np.asarray(self._columns)
        tokens, rows = np.asarray(self.num_tokens, np.float64), np.maximum(self.rows, 1e-3)
        touched, most = np.maximum(self.touched, 1e-3), np.maximum(self.loads.most, 1e-3)
        up = np.asarray((self._matrices - 1.0) * columns)
        one = bytes_of(self.weight_dtype, self._matrices * hidden * columns)
        ends = bytes_of(compute_of(self.dtype), rows * (hidden + 2.0 * columns))
        wide = bytes_of(wide_of(self.dtype), rows * (2.0 * up + 2.0 * hidden) + tokens * hidden)
        tiles = {t: np.asarray(self.loads.tiles(t), np.float64) for t in _PADDED}
        sizes = {
            "columns": columns, "local_experts": self.local_experts, "rows": rows,
            "touched": touched, "touched_share": touched / self.local_experts,
            "expert_rows": rows / touched, "most_rows": most,
            "most_over_mean": most * touched / rows,
            "token_rows": rows / tokens, "expert_bytes": one,
            "waste_columns": np.ceil(columns / _BLOCK) * _BLOCK / columns,
            "waste_columns2": np.ceil(columns / (2 * _BLOCK)) * (2 * _BLOCK) / columns,
            "waste_hidden": np.ceil(hidden / (2 * _BLOCK)) * (2 * _BLOCK) / hidden,
            "scores": tokens * self.experts, "tokens_each": tokens / self.local_experts,
            "even_columns": np.gcd(columns.astype(np.int64), _EVEN),
        }  # fmt: skip
        pairs = tokens * np.asarray(self.top_k, np.float64)
        odd = np.where(np.mod(columns, _ALIGNED) > 0.0, tiles[16] * 16 / rows, 0.0)
        dealt: dict[str, tuple[Amount, Amount]] = {}
        for t in TILES:
            dealt[f"up{t}"] = plain(tiles[t] * np.ceil(up / _BLOCK)), plain(hidden / _STEP)
            dealt[f"down{t}"] = plain(tiles[t] * np.ceil(hidden / _BLOCK)), plain(columns / _STEP)
        return Traits(
            {n: plain(v) for n, v in sizes.items()},
            {"experts": plain(touched), "tokens": plain(tokens),
             "scores": plain(tokens * self.experts), "depth": plain(hidden + columns)},
            {"weights": plain(touched * one), "activations": plain(ends + wide),
             "pairs": plain(bytes_of(wide_of(self.dtype), pairs * (up + columns))),
             "sums": plain(bytes_of(wide_of(self.dtype), pairs * hidden))},
            {str(t): plain(v * t / rows) for t, v in tiles.items()} | {"odd": plain(odd)},
            dealt,
        )  # fmt: skip
