"""Attention blocks whose weights are stored once and used in many layers, before a Mamba-2 layer.

Zamba (arXiv:2405.16712) and Zamba2 (arXiv:2411.15242). Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .attention import GroupedAttention
from .ffn import DenseFfn
from .network import Cache, Call, Layout, Tokens, Weights
from .pieces import collective, gemm, norm, own_tokens
from .state_space import Mamba2Mixer

__all__ = ["SharedBlock"]


@dataclass(frozen=True, slots=True)
class SharedBlock:
    """A shared transformer block, a product of its own, then a Mamba-2 layer.

    The block sees the hidden state beside the embedding (twice hidden columns). `stored` blocks are
    used by `uses` layers in turn, so that a layer holds stored / uses of one. Each use has low-rank
    adapters of `rank` on the feed-forward part, and on q, k and v where `attention_adapters`.
    """

    attention: GroupedAttention
    ffn: DenseFfn
    scan: Mamba2Mixer
    stored: int
    uses: int
    rank: int = 128
    attention_adapters: bool = False

    def _adapters(self, hidden: int) -> list[tuple[int, int]]:
        """Sizes (in, out) of what the adapters of one use are added to."""
        wide = self.attention.q_heads * self.attention.head_dim
        own = [(2 * hidden, wide)] * 3 if self.attention_adapters else []
        return [*own, (hidden, 2 * self.ffn.inter)]

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Parameters of one layer: its share of the shared blocks, and its own."""
        inner = self.attention.q_heads * self.attention.value_dim
        share = self.stored / self.uses
        shared = [w for w in self.attention.weights(2 * hidden) if w.part != "attention_out"]
        shared += [
            Weights("attention_out", "linear", inner * hidden),
            *self.ffn.weights(hidden),
            Weights("norm", "norm", 3 * hidden, split="none"),
        ]
        adapters = float(self.rank * sum(k + n for k, n in self._adapters(hidden)))
        return (
            *(replace(w, count=w.count * share) for w in shared),
            Weights("adapters", "linear", adapters, split="none"),
            Weights("shared_out", "linear", hidden * hidden, split="none"),
            *self.scan.weights(hidden),
        )

    def caches(self) -> tuple[Cache, ...]:
        """Keys and values of this use, and the state of the Mamba-2 layer."""
        return (*self.attention.caches(), *self.scan.caches())

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Operations of one layer; every use reads the shared weights again."""
        t = own_tokens(groups, layout)
        found = [norm(t, 2 * hidden)]
        for call in self.attention.calls(groups, layout, 2 * hidden):
            back = call.part == "attention_out"  # to hidden, not to what came in
            own = {**call.fields, "n": hidden} if back else call.fields
            found.append(replace(call, fields=own))
        found += collective("attention_sum", "all_reduce", t * hidden, layout.tp, layout)
        found += [norm(t, hidden), *self.ffn.calls(groups, layout, hidden)]
        for k, n in self._adapters(hidden):
            found += [gemm("adapters", t, self.rank, k), gemm("adapters", t, n, self.rank)]
        return [
            *found,
            gemm("shared_out", t, hidden, hidden),
            *self.scan.calls(groups, layout, hidden),
        ]
