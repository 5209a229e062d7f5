"""Mixers with a state of fixed size in place of a cache: gated delta rule, lightning attention.

Owns their weights, states and calls. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .network import Cache, Call, Layout, Tokens, Weights, split
from .pieces import attend, gemm, norm, own_tokens, phase_of, pointwise, seen

__all__ = ["GatedDeltaNet", "LightningAttention"]

_GDN_CHUNK, _LIGHTNING_CHUNK = 64, 256  # tokens a chunk: sources below


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """Gated delta rule (Yang, Kautz, Hatamizadeh 2024, arXiv:2412.06464), as in Qwen3-Next.

    `k_heads` heads of keys and queries of `k_dim`, `v_heads` heads of values of `v_dim`, a
    depthwise convolution over `conv` tokens of q, k and v, an output gate z, and a decay and a
    step size a value head. The state of a value head is k_dim x v_dim. Chunks of 64 tokens, as in
    the authors' kernels. The products that solve the delta rule inside a chunk are not counted
    apart from those of linear attention.
    """

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    conv: int = 4

    @property
    def _qkv(self) -> int:
        return 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Projections of q, k, v, z, decay and step; convolution; A and dt; norm; output."""
        values = self.v_heads * self.v_dim
        into = hidden * (self._qkv + values + 2 * self.v_heads)
        return (
            Weights("qkv", "linear", into),
            Weights("short_conv", "conv", self._qkv * self.conv),
            Weights("decay", "other", 2 * self.v_heads),
            Weights("gated_norm", "norm", self.v_dim, split="none"),
            Weights("attention_out", "linear", values * hidden),
        )

    def caches(self) -> tuple[Cache, ...]:
        """State of each value head, and the last tokens of the convolution."""
        fixed = self.v_heads * self.k_dim * self.v_dim + self._qkv * (self.conv - 1)
        return (Cache("state", 1.0, fixed=float(fixed), heads=self.v_heads),)

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Projections, convolution, the recurrence of each group, gated norm, output."""
        t = own_tokens(groups, layout)
        v = split(self.v_heads, layout.tp, "layout.tp: value heads")
        qkv = self._qkv // layout.tp
        values = v * self.v_dim
        found = [gemm("qkv", t, qkv + values + 2 * v, hidden),
                 pointwise("short_conv", t * qkv, ops=2 * self.conv + 3, special=2,
                           role="conv")]  # fmt: skip
        fields = {"q_heads": v, "kv_heads": v, "head_dim": self.k_dim, "v_head_dim": self.v_dim,
                  "variant": "linear", "block": _GDN_CHUNK}  # fmt: skip
        found += [_recurrence(g, layout, fields) for g in groups]
        found.append(norm(t * v, self.v_dim, part="gated_norm"))
        found.append(gemm("attention_out", t, hidden, values))
        return found


@dataclass(frozen=True, slots=True)
class LightningAttention:
    """Linear attention with a fixed decay a head (MiniMax-01, arXiv:2501.08313, section 2.2).

    `heads` heads of `head_dim` for q, k and v, a norm and a sigmoid gate of all columns before the
    output. Chunks of 256 tokens, as in the authors' kernels.
    """

    heads: int
    head_dim: int

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Projections of q, k, v and the gate, norm, output."""
        wide = self.heads * self.head_dim
        return (
            Weights("qkv", "linear", 3 * wide * hidden),
            Weights("gate", "linear", wide * hidden),
            Weights("gated_norm", "norm", wide),
            Weights("attention_out", "linear", wide * hidden),
        )

    def caches(self) -> tuple[Cache, ...]:
        """State of each head."""
        fixed = float(self.heads * self.head_dim * self.head_dim)
        return (Cache("state", 1.0, fixed=fixed, heads=self.heads),)

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Projections, the recurrence of each group, gated norm, output."""
        t = own_tokens(groups, layout)
        h = split(self.heads, layout.tp, "layout.tp: heads")
        wide = h * self.head_dim
        fields = {"q_heads": h, "kv_heads": h, "head_dim": self.head_dim, "variant": "linear",
                  "block": _LIGHTNING_CHUNK}  # fmt: skip
        return [gemm("qkv", t, 3 * wide, hidden),
                pointwise("activation", t * 3 * wide, ops=4, special=2),
                *(_recurrence(g, layout, fields) for g in groups),
                gemm("gate", t, wide, hidden),
                norm(t, wide, part="gated_norm"),
                pointwise("gate", t * wide, ops=4, inputs=2, special=2),
                gemm("attention_out", t, hidden, wide)]  # fmt: skip


def _recurrence(group: Tokens, layout: Layout, fields: dict[str, Any]) -> Call:
    """Linear attention of the new tokens; what came before is in the state."""
    new = Tokens(group.batch, group.q_len, group.q_len, group.logits)
    return attend("recurrence", seen(new, layout), phase_of(group), fields)
