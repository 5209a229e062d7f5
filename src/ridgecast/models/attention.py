"""Mixers that attend: grouped-query attention in its variants, and multi-head latent attention.

A mixer is one layer's way to mix tokens: `weights(hidden)` and `caches()` of one layer, and
`calls(groups, layout, hidden)` of one layer on one device. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..errors import InfeasibleError
from .network import Amount, Cache, Call, Layout, Tokens, Weights, split
from .pieces import (
    Seen,
    attend,
    collective,
    gemm,
    norm,
    own_tokens,
    phase_of,
    pointwise,
    present,
    seen,
    total,
    whole,
)

__all__ = ["GroupedAttention", "LatentAttention", "Mixer", "kv_share"]


class Mixer(Protocol):
    """What a layer's mixer must answer, for one layer."""

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """List parameters of one layer."""
        ...

    def caches(self) -> tuple[Cache, ...]:
        """List what one layer keeps of a sequence."""
        ...

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Operations of one layer on one device, the sum over `tp` not included."""
        ...


def kv_share(kv_heads: int, tp: int) -> int:
    """Heads of keys and values of one shard; repeated where there are fewer heads than shards.

    Raises InfeasibleError where neither divides the other.
    """
    if kv_heads >= tp:
        return split(kv_heads, tp, "layout.tp: heads of keys and values")
    if tp % kv_heads:
        raise InfeasibleError(
            f"layout.tp: {kv_heads} heads of keys and values cannot be repeated over {tp} shards; "
            f"use a multiple or a divisor of {kv_heads}"
        )
    return 1


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245); MHA and MQA are its ends.

    `head_dim` is the size of a query and key, `v_head_dim` that of a value (0: the same).
    `qk_norm`: "head" (one gain of head_dim each for q and k), "full" (a gain for every column),
    "each" (a gain for each head's columns of q and of k; without bias), or "". `window` > 0: a
    sliding window of that many keys. `chunk` > 0: local attention inside chunks of that many
    positions (Llama 4). `sinks`: one learned logit a head (gpt-oss). `gate`: q's projection is
    twice as wide, its other half gates the output (Qwen3-Next). `rotary`: positions are rotated
    in (one kernel that also writes the cache).
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: str = ""
    window: int = 0
    chunk: int = 0
    sinks: bool = False
    gate: bool = False
    rotary: bool = True

    @property
    def value_dim(self) -> int:
        """Size of a value."""
        return self.v_head_dim or self.head_dim

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Projections with biases, norms of q and k, sinks."""
        q = self.q_heads * self.head_dim * (2 if self.gate else 1)
        kv = self.kv_heads * (self.head_dim + self.value_dim)
        out = self.q_heads * self.value_dim * hidden + (hidden if self.out_bias else 0)
        qkv = (q + kv) * (hidden + (1 if self.qkv_bias else 0))
        gains = {"": 0, "head": 2 * self.head_dim}.get(
            self.qk_norm, (self.q_heads + self.kv_heads) * self.head_dim
        )
        found = [Weights("qkv", "linear", qkv), Weights("attention_out", "linear", out)]
        if gains:
            found.append(Weights("qk_norm", "norm", gains, split="none"))
        if self.sinks:
            found.append(Weights("sinks", "other", self.q_heads))
        return tuple(found)

    def caches(self) -> tuple[Cache, ...]:
        """Keys and values, of the last `window` or `chunk` tokens where there is one."""
        each = float(self.kv_heads * (self.head_dim + self.value_dim))
        kept = self.window or self.chunk
        return (Cache("kv", 1.0, each, window=kept, heads=self.kv_heads),)

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """QKV, norms and rotation, attention of each group, gate and output projection."""
        t = own_tokens(groups, layout)
        q = split(self.q_heads, layout.tp, "layout.tp: query heads")
        kv = kv_share(self.kv_heads, layout.tp)
        wide = q * self.head_dim
        n = wide * (2 if self.gate else 1) + kv * (self.head_dim + self.value_dim)
        rotated = (q + kv) * self.head_dim
        found = [gemm("qkv", t, n, hidden)]
        if self.qk_norm in ("head", "each"):
            found.append(norm(t * (q + kv), self.head_dim, part="qk_norm"))
        elif self.qk_norm:  # over all heads: the sums of squares of q and of k cross the shards
            found.append(norm(t, rotated, part="qk_norm"))
            sums = collective("qk_norm_sum", "all_reduce", t * 2.0, layout.tp, layout)
            found += [replace(c, count=c.count * 2) for c in sums]
        if self.rotary:  # a rotation: two products and a sum of each element
            found.append(pointwise("rotary", t * rotated, ops=3, inputs=2))
        fields = {"q_heads": q, "kv_heads": kv, "head_dim": self.head_dim}
        if self.v_head_dim:
            fields["v_head_dim"] = self.v_head_dim
        for group in groups:
            found += self._attention(group, layout, fields)
        if self.gate:  # times the sigmoid of the gate
            found.append(pointwise("gate", t * wide, ops=4, inputs=2, special=2))
        found.append(gemm("attention_out", t, hidden, q * self.value_dim))
        return found

    def _attention(self, group: Tokens, layout: Layout, fields: dict[str, Any]) -> list[Call]:
        phase = phase_of(group)
        local = _in_chunks(group, self.chunk) if self.chunk else group
        call = attend("attention", seen(local, layout), phase, fields, self.window)
        if layout.cp < 2:
            return [call]
        new = group.count / layout.dp
        width = fields["kv_heads"] * (self.head_dim + self.value_dim)
        part = fields["q_heads"] * self.value_dim
        # long passes gather the new keys and values; decode sums partial outputs
        long = np.greater_equal(group.q_len, layout.cp)
        elements = new * np.where(long, width, part)
        elements = elements if elements.ndim else float(elements)
        return [call, *collective("context", "all_gather", elements, layout.cp, layout,
                                  stride=layout.tp)]  # fmt: skip


def _in_chunks(group: Tokens, chunk: int) -> Tokens:
    """Chunked local attention as shorter sequences: each query sees keys of its own chunk only.

    A pass longer than a chunk becomes ceil(q / chunk) pieces; a shorter one sees what lies in the
    last chunk, ((kv - 1) mod chunk) + 1 keys, but never fewer than its own tokens.
    """
    pieces = np.ceil(np.asarray(group.q_len, np.float64) / chunk)
    pieces = np.maximum(pieces, 1.0)
    q = np.ceil(group.q_len / pieces)
    tail = np.mod(np.asarray(group.kv_len, np.float64) - 1.0, chunk) + 1.0
    kv = np.where(pieces > 1, q, np.maximum(q, tail))
    batch = group.batch * pieces
    if batch.ndim == 0 and kv.ndim == 0:
        return Tokens(float(batch), float(q), float(kv), group.logits)
    return Tokens(batch, q, kv, group.logits)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    The cache holds one latent of `kv_lora` and one rotated key of `rope` a token. Two ways to
    attend, both exact: expanded (keys of nope + rope and values of `v_head_dim` are projected from
    the latents of all keys) and absorbed (queries are projected into the latent space, and all
    heads share it as keys and values). A pass takes the one with fewer operations: a key and head
    cost 2 kv_lora (nope + v) to expand and 2 (nope + rope + v) a query, absorbed
    2 (2 kv_lora + rope) a query: absorbed below q_len = kv_lora (nope + v) / (2 kv_lora - nope - v)
    (170 for DeepSeek-V3), so that decode and verification are absorbed, prefill is expanded.

    `index_top_k` > 0: sparse attention (DeepSeek-V3.2-Exp report, 2025): attention sees that many
    keys and is absorbed, but for prefill of no more keys than that, where all are seen. They are
    the best by an indexer of `index_heads` heads of `index_dim`, which scores all keys and is
    repeated on every shard; 0 heads: an earlier layer's choice is taken (GLM-5.2).
    """

    heads: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    v_head_dim: int
    bias: bool = False
    index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0

    @property
    def turn(self) -> float:
        """Queries a sequence from which on expanded attention has fewer operations."""
        more = 2 * self.kv_lora - self.nope - self.v_head_dim
        if more <= 0:
            return float("inf")
        return self.kv_lora * (self.nope + self.v_head_dim) / more

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Down projections (on every shard), up projections, norms, output and indexer."""
        q = self.heads * (self.nope + self.rope)
        down = self.kv_lora + self.rope + self.q_lora
        gains = self.kv_lora + self.q_lora
        bias = down if self.bias else 0
        found = [
            Weights("qkv_down", "linear", hidden * down + bias, split="none"),
            Weights("q_up", "linear", (self.q_lora or hidden) * q),
            Weights("kv_up", "linear", self.kv_lora * self.heads * (self.nope + self.v_head_dim)),
            Weights("attention_out", "linear", self.heads * self.v_head_dim * hidden),
            Weights("latent_norm", "norm", gains, split="none"),
        ]
        if self.index_heads:
            queries = (self.q_lora or hidden) * self.index_heads * self.index_dim
            keys = hidden * (self.index_dim + self.index_heads)
            found.append(Weights("indexer", "linear", queries + keys, split="none"))
            found.append(Weights("index_norm", "norm", 2 * self.index_dim, split="none"))
        return tuple(found)

    def caches(self) -> tuple[Cache, ...]:
        """One latent and rotated key a token, whole on every shard; index keys beside it."""
        found = [Cache("latent", 1.0, float(self.kv_lora + self.rope))]
        if self.index_heads:
            found.append(Cache("latent", 1.0, float(self.index_dim)))
        return tuple(found)

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Projections, the indexer, and attention of each group in the cheaper of both ways."""
        t = own_tokens(groups, layout)
        h = split(self.heads, layout.tp, "layout.tp: query heads")
        down = self.kv_lora + self.rope + self.q_lora
        q = h * (self.nope + self.rope)
        found = [gemm("qkv_down", t, down, hidden),
                 norm(t, self.kv_lora + self.q_lora, part="latent_norm"),
                 gemm("q_up", t, q, self.q_lora or hidden),
                 pointwise("rotary", t * (h + 1) * self.rope, ops=3, inputs=2)]  # fmt: skip
        found += self._indexed(groups, layout, hidden, t) if self.index_heads else []
        found += self._absorbed(groups, layout, h)
        if np.isfinite(self.turn):
            found += self._expanded(groups, layout, h)
        found.append(gemm("attention_out", t, hidden, h * self.v_head_dim))
        return [c for c in found if np.any(c.count)]

    def _share(self, group: Tokens, absorbed: bool) -> Amount:
        """1 where a group attends in this way, else 0."""
        below = np.less(group.q_len, self.turn)
        if self.index_top_k:
            below = below | np.greater(group.kv_len, self.index_top_k)
        chosen = np.where(below if absorbed else ~below, 1.0, 0.0)
        return chosen if chosen.ndim else float(chosen)

    def _absorbed(self, groups: Sequence[Tokens], layout: Layout, h: int) -> list[Call]:
        shares = [self._share(g, True) for g in groups]
        t = total(own_tokens([g], layout) * s for g, s in zip(groups, shares, strict=True))
        wide = self.kv_lora + self.rope
        fields = {"q_heads": h, "kv_heads": 1, "head_dim": wide, "v_head_dim": self.kv_lora,
                  "shared_kv": True}  # fmt: skip
        found = [gemm("absorb_q", t, self.kv_lora, self.nope, role="other", batch=h)]
        for group, share in zip(groups, shares, strict=True):
            call = attend("attention", self._chosen(seen(group, layout)), phase_of(group), fields)
            found.append(_times(call, share))
            found += self._context(group, layout, share)
        return [*found, gemm("absorb_v", t, self.v_head_dim, self.kv_lora, role="other", batch=h)]

    def _chosen(self, of: Seen) -> Seen:
        """Keys that sparse attention sees: each query its own `index_top_k`, gathered for it alone.

        So a query is a sequence of one, and no two share what is read.
        """
        if not self.index_top_k:
            return of
        sparse = np.greater(of.kv_len, self.index_top_k)
        batch = np.where(sparse, np.multiply(of.batch, of.q_len), of.batch)
        q_len = np.where(sparse, 1.0, of.q_len)
        kv_len = np.where(sparse, float(self.index_top_k), of.kv_len)
        if batch.ndim == 0:
            return replace(of, batch=int(batch), q_len=int(q_len), kv_len=int(kv_len))
        return replace(of, batch=batch, q_len=q_len, kv_len=kv_len)

    def _expanded(self, groups: Sequence[Tokens], layout: Layout, h: int) -> list[Call]:
        found: list[Call] = []
        fields = {"q_heads": h, "kv_heads": h, "head_dim": self.nope + self.rope,
                  "v_head_dim": self.v_head_dim}  # fmt: skip
        for group in groups:
            share = self._share(group, False)
            of = seen(group, layout)
            keys = of.batch * of.kv_len * present(group.count) * share
            found.append(gemm("kv_up", keys, h * (self.nope + self.v_head_dim), self.kv_lora))
            found.append(_times(attend("attention", of, phase_of(group), fields), share))
            found += self._context(group, layout, share)
        return found

    def _context(self, group: Tokens, layout: Layout, share: Amount) -> list[Call]:
        """Gather the latents of a sequence's other parts (cp > 1)."""
        elements = group.count / layout.dp * (self.kv_lora + self.rope) * share
        return collective("context", "all_gather", elements, layout.cp, layout, stride=layout.tp)

    def _indexed(
        self, groups: Sequence[Tokens], layout: Layout, hidden: int, t: Amount
    ) -> list[Call]:
        """Scores of all keys: queries and keys of index_dim, one weight a head; then the best."""
        wide = self.index_heads * self.index_dim
        found = [gemm("index_q", t, wide, self.q_lora or hidden),
                 gemm("index_k", t, self.index_dim + self.index_heads, hidden)]  # fmt: skip
        fields = {"q_heads": self.index_heads, "kv_heads": 1, "head_dim": self.index_dim,
                  "v_head_dim": 1, "shared_kv": True}  # fmt: skip
        for group in groups:
            of, phase = seen(group, layout), phase_of(group)
            found.append(attend("indexer", of, phase, fields))
            scores = whole(of.batch * of.q_len * of.kv_len)
            found.append(_times(pointwise("index_top_k", scores), of.there))
        return found


def _times(call: Call, share: Amount) -> Call:
    """Call that happens `share` as often."""
    return Call(call.part, call.op, call.fields, call.count * share, call.role, call.phase)
