"""Feed-forward parts of a layer: dense, and mixtures of experts with shared ones.

Owns their weights and calls, and the collectives that bring tokens to experts and sums back.
Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .network import Amount, Call, Layout, Tokens, Weights, split
from .pieces import act, all_tokens, collective, gemm, own_tokens, pointwise, present, whole

__all__ = ["DenseFfn", "Ffn", "MoeFfn"]


class Ffn(Protocol):
    """What a layer's feed-forward part must answer, for one layer."""

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """List parameters of one layer."""
        ...

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Operations of one layer on one device, its collectives included."""
        ...


def _dense_elements(hidden: int, inter: int, gated: bool, bias: bool) -> int:
    first = 2 if gated else 1
    return (first + 1) * hidden * inter + ((first * inter + hidden) if bias else 0)


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """Two matrices, or three where `gated` (SwiGLU: Shazeer 2020, arXiv:2002.05202)."""

    inter: int
    gated: bool = True
    activation: str = "silu"
    bias: bool = False

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Matrices and biases."""
        return (Weights("ffn", "linear", _dense_elements(hidden, self.inter, self.gated,
                                                         self.bias)),)  # fmt: skip

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Two products with the activation between, and the sum over tp."""
        t = own_tokens(groups, layout)
        found = self.products(t, layout.tp, hidden)
        return found + collective("ffn_sum", "all_reduce", t * hidden, layout.tp, layout)

    def products(self, t: Amount, tp: int, hidden: int, prefix: str = "ffn") -> list[Call]:
        """Work of `t` tokens without any collective; parts are named `prefix`_up and _down."""
        inter = split(self.inter, tp, "layout.tp: columns of the feed-forward layer")
        first = 2 if self.gated else 1
        return [gemm(f"{prefix}_up", t, first * inter, hidden),
                act(t * inter, self.activation, self.gated),
                gemm(f"{prefix}_down", t, hidden, inter)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class MoeFfn:
    """Router, `top_k` of `experts` experts with `inter` columns each, and dense parts beside them.

    `shared` are the columns of all shared experts together (every token passes them), with a gate
    of one number a token where `shared_gate`. `residual` are the columns of a dense layer beside
    the experts (Arctic; Llama 4's shared expert is `shared`). `bias`: experts have biases
    (gpt-oss); `router_bias`: the router has, one number an expert.
    """

    experts: int
    top_k: int
    inter: int
    shared: int = 0
    shared_gate: bool = False
    residual: int = 0
    gated: bool = True
    activation: str = "silu"
    bias: bool = False
    router_bias: bool = False

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Router, experts, shared experts and the dense part."""
        each = _dense_elements(hidden, self.inter, self.gated, self.bias)
        router = self.experts * (hidden + (1 if self.router_bias else 0))
        found = [
            Weights("router", "router", router, split="none"),
            Weights("experts", "expert", float(self.experts) * each, split="experts",
                    per_token=self.top_k / self.experts),
        ]  # fmt: skip
        if self.shared:
            dense = _dense_elements(hidden, self.shared, self.gated, self.bias)
            found.append(Weights("shared_expert", "linear", dense))
        if self.shared_gate:
            found.append(Weights("shared_gate", "router", hidden, split="none"))
        if self.residual:
            dense = _dense_elements(hidden, self.residual, self.gated, self.bias)
            found.append(Weights("ffn", "linear", dense))
        return tuple(found)

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Router, exchange, experts, dense parts, exchange back.

        All tokens of the replica pass the experts of the stage's devices. Raises InfeasibleError
        where experts or their columns do not divide.
        """
        t, everyone = own_tokens(groups, layout), all_tokens(groups)
        split(self.experts, layout.ep, "layout.ep: experts")
        split(self.inter, layout.moe_tp, "layout: columns of an expert over tp x dp x cp / ep")
        fields: dict[str, Any] = {
            "num_tokens": whole(everyone), "hidden": hidden, "inter": self.inter,
            "experts": self.experts, "top_k": self.top_k, "gated": self.gated,
            "tp": layout.moe_tp, "ep": layout.ep,
        }  # fmt: skip
        before, after = self._exchange(t, everyone, layout, hidden)
        found = [gemm("router", t, self.experts, hidden, role="router"),
                 pointwise("routing", t * self.experts, ops=2 + self.top_k, special=2,
                           role="router"),
                 *before,
                 Call("experts", "moe", fields, present(everyone), "expert")]  # fmt: skip
        found += self._dense("shared_expert", self.shared, t, layout, hidden)
        found += self._dense("ffn", self.residual, t, layout, hidden)
        return found + after

    def _dense(
        self, part: str, inter: int, t: Amount, layout: Layout, hidden: int
    ) -> list[Call]:  # fmt: skip
        if not inter:
            return []
        one = DenseFfn(inter, self.gated, self.activation)
        products = one.products(t, layout.tp, hidden, part)
        if part != "shared_expert":
            return products
        return [Call(part, c.op, c.fields, c.count, c.role) for c in products]

    def _exchange(
        self, t: Amount, everyone: Amount, layout: Layout, hidden: int
    ) -> tuple[list[Call], list[Call]]:
        """List collectives before and after the experts.

        One group of tokens (dp = cp = 1): all devices have all tokens, the sums are all-reduced
        (those of the shared experts with them). More: inside a node, or with experts not spread,
        tokens are gathered and sums reduce-scattered; else they travel to the devices of their
        experts, ep (1 - (1 - 1/ep)^top_k) different ones of them on average (one copy a device:
        DeepSeek-V3, arXiv:2412.19437, section 3.2), and are gathered over tp again.
        """
        stage, spread = layout.stage_devices, layout.dp * layout.cp
        if spread == 1:
            return [], collective("experts_sum", "all_reduce", t * hidden, stage, layout)
        again = collective("experts_gather", "all_gather", t * hidden, layout.tp, layout)
        if layout.ep == 1 or stage <= layout.gpus_per_node:
            buffer = everyone * hidden
            first = collective("dispatch", "all_gather", buffer, spread, layout, stride=layout.tp)
            last = collective("combine", "reduce_scatter", buffer, stage, layout)
            return first, last + again
        copies = layout.ep * (1.0 - (1.0 - 1.0 / layout.ep) ** self.top_k)
        sent = everyone / stage * copies * hidden
        first = collective("dispatch", "all_to_all", sent, layout.ep, layout)
        return first, collective("combine", "all_to_all", sent, layout.ep, layout) + again
