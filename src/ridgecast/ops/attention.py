"""Attention: softmax(Q K^T / sqrt(d)) V over sequences, exact or restricted, in one or many passes.

Owns operation and byte counts of its variants from shapes and formats. Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import Amount, Op, Rule, Work, choice, flag, fmt, number, plain, share, size

__all__ = ["Attention"]

VARIANTS = ("flash", "standard", "linear")


@dataclass(frozen=True)
class Attention(Op):
    """Attention of `q_len` queries over `kv_len` keys, for each sequence of a batch.

    `q_heads` query heads share `kv_heads` heads of keys and values (GQA; 1: MQA). `head_dim` is
    the size of a query and key, `v_head_dim` that of a value. `causal`: query i of the last q_len
    positions sees keys up to its own. `window` > 0: no more than that many keys, its own included.
    `density` is the share of the remaining score blocks that are computed (block-sparse), each
    kept block costing `index_bytes` to find. `kv_dtype` is the format of the cache; keys and values
    are converted where it differs from `dtype`.

    variant: flash (tiled, exact, scores stay on chip: Dao et al. 2022, arXiv:2205.14135, and 2023,
    arXiv:2307.08691), standard (scores and probabilities go through memory), linear (state of
    head_dim x v_head_dim instead of scores, in chunks of `block`: Katharopoulos et al. 2020,
    arXiv:2006.16236). `backward` adds nothing to the forward pass: it is the backward pass alone,
    with the scores recomputed (5 products instead of 2).

    >>> Attention(q_len=1024, kv_len=1024, q_heads=16, head_dim=64, causal=False).flops
    4294967296.0
    """

    name: ClassVar[str] = "attention"
    what: ClassVar[str] = "attention: prefill and decode, GQA, windows, block-sparse, linear"
    example: ClassVar[str] = "q_len=4096 kv_len=4096 q_heads=32 kv_heads=8 head_dim=128"

    inexact: ClassVar[tuple[str, ...]] = ("linear",)

    q_len: int = size("queries a sequence (1: decode)")
    kv_len: int = size("keys and values a sequence, the queries' own included")
    q_heads: int = size("query heads")
    head_dim: int = size("size of a query and of a key", 128)
    batch: int = size("sequences", 1)
    kv_heads: int = size("heads of keys and values", like="q_heads")
    v_head_dim: int = size("size of a value", like="head_dim")
    dtype: str = fmt("format that is computed in")
    kv_dtype: str = fmt("format of keys and values in the cache", like="dtype")
    causal: bool = flag("a query sees keys up to its own position", True)
    window: int = size("most keys a query sees; 0: all", 0, low=0)
    density: float = share("share of score blocks that are computed", 1.0)
    index_bytes: float = number("bytes of index a kept score block", 0.0)
    block: int = size("side of a score block, and chunk of the linear variant", 128)
    shared_kv: bool = flag("values are part of the keys (MLA's latent cache)")
    page: int = size("tokens a page of a paged cache; 0: contiguous", 0, low=0)
    variant: str = choice("how it is computed", VARIANTS, "flash")
    backward: bool = flag("the backward pass")

    def rules(self) -> Iterator[Rule]:
        """Heads divide, and no query lies beyond the keys."""
        yield Rule("q_heads", np.mod(self.q_heads, self.kv_heads) != 0,
                   "a multiple of kv_heads")  # fmt: skip
        yield Rule("q_len", np.logical_and(self.causal, np.greater(self.q_len, self.kv_len)),
                   "at most kv_len where attention is causal")  # fmt: skip
        if self.shared_kv:
            yield Rule("v_head_dim", np.greater(self.v_head_dim, self.head_dim),
                       "at most head_dim where values are part of the keys")  # fmt: skip
        yield Rule("window", np.greater(self.window, self.kv_len), "at most kv_len")

    @property
    def scores(self) -> Amount:
        """Query-key pairs a head and sequence, from causality, window and density."""
        q, s = np.asarray(self.q_len, np.float64), np.asarray(self.kv_len, np.float64)
        w = np.where(np.equal(self.window, 0), s, np.minimum(self.window, s))
        if not self.causal:
            return plain(q * w * self.density)
        first = s - q + 1.0  # keys that the first query sees; each further one sees one more
        ramp = np.clip(w - first, 0.0, q)  # queries before the window is full
        seen = ramp * (first + (ramp - 1.0) / 2.0) + (q - ramp) * w
        return plain(seen * self.density)

    def work(self) -> Work:
        """Operations and bytes of the variant."""
        if self.variant == "linear":
            return self._linear()
        heads = np.multiply(self.batch, self.q_heads) * 1.0
        pairs = heads * self.scores
        dims = np.add(self.head_dim, self.v_head_dim)
        products = 2.5 if self.backward else 1.0
        flops: dict[str, Amount] = {self.dtype: plain(2.0 * pairs * dims * products)}
        flops["special"] = plain(pairs * 1.0)
        flops["vector"] = plain(pairs * (8.0 if self.backward else 4.0) + self._converted)
        q_bytes, out_bytes, kv_bytes = self._q_bytes, self._out_bytes, self.kv_bytes
        read, written = q_bytes + kv_bytes, out_bytes
        if self.backward:  # Q, K, V, O, dO and the row sums in; dQ, dK, dV out
            read, written = q_bytes + kv_bytes + 2.0 * out_bytes, q_bytes + kv_bytes
        extra: Amount = 0.0
        if self.variant == "standard":  # scores written and read, probabilities written and read
            extra = dtype(self.dtype).bytes_of(1.0) * pairs
            read, written = read + 2.0 * extra, written + 2.0 * extra
        blocks = pairs / np.square(np.asarray(self.block, np.float64))
        read = read + np.where(np.less(self.density, 1.0), self.index_bytes * blocks, 0.0)
        pages = np.where(np.equal(self.page, 0), 0.0,
                         np.ceil(self.kv_len / np.maximum(self.page, 1)))  # fmt: skip
        read = read + 4.0 * self.batch * pages  # 32-bit entries of the block table
        launches = 3.0 if self.variant == "standard" else 1.0
        footprint = q_bytes + kv_bytes + out_bytes + 2.0 * extra
        return Work(flops, plain(read), plain(written), footprint=plain(footprint),
                    launches=launches * (2.0 if self.backward else 1.0))  # fmt: skip

    def counts(self) -> dict[str, Amount]:
        """Blocks of 64 to 256 queries of one head, of a group of heads, and blocks of keys."""
        b, h, kv = (np.asarray(x, np.float64) for x in (self.batch, self.q_heads, self.kv_heads))
        q = np.asarray(self.q_len, np.float64)
        out = {f"q{t}": plain(b * h * np.ceil(q / t)) for t in (64, 128, 192, 256)}
        out["grouped64"] = plain(b * kv * np.ceil(q * h / kv / 64))
        out["keys128"] = plain(b * kv * np.ceil(np.asarray(self._keys) / 128))
        return out

    def _linear(self) -> Work:
        """Chunks: inside a chunk as scores, between chunks through the state.

        2 q (block (d + dv) / 2 + 2 d dv) a head: Yang et al. 2023, arXiv:2312.06635, section 3.
        Without causality there is nothing inside: all keys go into the state (K^T V), then all
        queries read it (Katharopoulos et al. 2020, equation 6), one step after the other.
        """
        heads = np.multiply(self.batch, self.q_heads) * 1.0
        d, dv, q = (np.asarray(x, np.float64) for x in (self.head_dim, self.v_head_dim, self.q_len))
        chunk = np.minimum(self.block, q)
        inside, between = chunk * (d + dv) / 2.0 * self.causal, 2.0 * d * dv
        flops: dict[str, Amount] = {self.dtype: plain(2.0 * heads * q * (inside + between))}
        flops["vector"] = plain(heads * q * (d + dv))
        q_kv = (
            dtype(self.dtype).bytes_of(1.0)
            * q
            * self.batch
            * (np.multiply(self.q_heads, d) + np.multiply(self.kv_heads, d + dv))
        )
        state = 4.0 * heads * d * dv  # fp32, read and written once a call
        return Work(flops, plain(q_kv + state), plain(self._out_bytes + state),
                    footprint=plain(q_kv + state + self._out_bytes),
                    steps=plain(np.ceil(q / chunk) if self.causal else 2.0 + 0.0 * q))  # fmt: skip

    @property
    def _q_bytes(self) -> Amount:
        cells = np.multiply(self.batch, self.q_len) * 1.0 * np.multiply(self.q_heads, self.head_dim)
        return dtype(self.dtype).bytes_of(1.0) * cells

    @property
    def _out_bytes(self) -> Amount:
        cells = np.multiply(self.batch, self.q_len) * 1.0
        return dtype(self.dtype).bytes_of(1.0) * cells * np.multiply(self.q_heads, self.v_head_dim)

    @property
    def _keys(self) -> Amount:
        """Keys of a sequence that some query sees."""
        s, q = np.asarray(self.kv_len, np.float64), np.asarray(self.q_len, np.float64)
        reach = np.where(np.equal(self.window, 0), s, np.minimum(s, self.window + q - 1.0))
        return np.minimum(reach * np.minimum(1.0, self.density * np.minimum(q, self.block)), reach)

    @property
    def kv_bytes(self) -> Amount:
        """Bytes of the keys and values that are read."""
        dims = self._cache_dims
        cells = np.multiply(self.batch, self.kv_heads) * 1.0 * dims * self._keys
        return plain(dtype(self.kv_dtype).bytes_of(1.0) * cells)

    @property
    def _converted(self) -> Amount:
        """Operations that convert keys and values to the format that is computed in."""
        if self.kv_dtype == self.dtype:
            return 0.0
        return np.multiply(self.batch, self.kv_heads) * 1.0 * self._cache_dims * self._keys

    @property
    def _cache_dims(self) -> Amount:
        """Elements of a key and its value in the cache."""
        own = 0.0 if self.shared_kv else 1.0
        return np.add(self.head_dim, np.multiply(self.v_head_dim, own))
