"""Pieces of encoders: stems for text and patches, stages of attention layers, linear layers.

Owns their weights and calls. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..errors import SpecError
from .network import Call, Layout, Tokens, Weights, ceil_div, split
from .pieces import (
    act,
    collective,
    gemm,
    norm,
    own_tokens,
    pointwise,
    present,
    scaled,
    total,
    whole,
)

__all__ = ["NORM_PARAMS", "AttentionStage", "Dense", "PatchStem", "Stage", "TextStem",
           "dense_weights", "reduced"]  # fmt: skip

NORM_PARAMS = {"layer": 2.0, "rms": 1.0}  # gain and shift, or gain alone


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer [k] -> [n]; `rows`: one a "token" or one a "sequence"."""

    part: str
    k: int
    n: int
    bias: bool = True
    rows: str = "sequence"

    @property
    def elements(self) -> float:
        """Parameters."""
        return float(self.k * self.n + (self.n if self.bias else 0))


def dense_weights(layers: Iterable[Dense], split: str = "tp", ends: bool = False) -> list[Weights]:
    """List the parameters of linear layers."""
    role = "head" if ends else "linear"
    return [Weights(d.part, role, d.elements, split=split, ends=ends) for d in layers]


def reduced(groups: Sequence[Tokens], by: int) -> list[Tokens]:
    """Sequences in which one token stands for `by` of them."""
    if by == 1:
        return list(groups)
    return [Tokens(g.batch, ceil_div(g.q_len, by), ceil_div(g.kv_len, by)) for g in groups]


class Stage(Protocol):
    """Layers alike, at one number of tokens: `reduction` tokens of the stem are one of theirs."""

    @property
    def hidden(self) -> int:
        """Size of a token."""
        ...

    @property
    def reduction(self) -> int:
        """Tokens of the stem that one token of this stage stands for."""
        ...

    def weights(self) -> list[Weights]:
        """Parameters of all its layers."""
        ...

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of all its layers; `groups` count tokens of the stem."""
        ...

    def width(self, layout: Layout) -> float:
        """Elements a token that are held at the peak of a layer."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionStage:
    """Transformer layers. `window` > 0: attention inside windows of that many tokens.

    `head_dim` 0: hidden / heads. `bias`: of all linear layers. `gated`: two up projections.
    `extra`: parameters a layer beyond products and norms (tables of position biases, layer
    scales). `norms` a layer. `causal`: no token sees a later one (CLIP's text tower).
    """

    layers: int
    hidden: int
    heads: int
    inter: int
    head_dim: int = 0
    window: int = 0
    reduction: int = 1
    gated: bool = False
    bias: bool = True
    norm: str = "layer"
    norms: int = 2
    extra: int = 0
    activation: str = "gelu"
    causal: bool = False

    def __post_init__(self) -> None:
        if not self.head_dim and self.hidden % self.heads:
            raise SpecError(f"encoder.heads: got {self.heads}, need a divisor of {self.hidden}")

    @property
    def inner(self) -> int:
        """Elements of all heads of a token."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def up(self) -> int:
        """Columns of the first feed-forward product."""
        return self.inter * (2 if self.gated else 1)

    def weights(self) -> list[Weights]:
        """Parameters of all its layers."""
        h, bias = self.hidden, self.bias
        parts = [
            Dense("qkv", h, 3 * self.inner, bias),
            Dense("attention_out", self.inner, h, bias),
            Dense("ffn_up", h, self.up, bias),
            Dense("ffn_down", self.inter, h, bias),
        ]
        norms = self.norms * NORM_PARAMS[self.norm] * h
        own = [*dense_weights(parts), Weights("norm", "norm", norms, split="none")]
        if self.extra:
            own.append(Weights("position_and_scale", "other", float(self.extra), split="none"))
        return [replace(w, count=float(self.layers)) for w in own]

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of all its layers; heads and feed-forward columns cut by tp."""
        heads = split(self.heads, layout.tp, "layout.tp: heads of the encoder")
        inter = split(self.inter, layout.tp, "layout.tp: feed-forward columns of the encoder")
        dim, h, groups = self.inner // self.heads, self.hidden, reduced(groups, self.reduction)
        t = own_tokens(groups, layout)
        out = [norm(t, h, self.norm, residual=True)] * self.norms
        out.append(gemm("qkv", t, 3 * heads * dim, h))
        out += [self._attend(g, heads, dim, layout) for g in groups]
        out += [
            gemm("attention_out", t, h, heads * dim),
            gemm("ffn_up", t, inter * (2 if self.gated else 1), h),
            act(t * inter, self.activation, self.gated),
            gemm("ffn_down", t, h, inter),
        ]
        out += 2 * collective("all_reduce", "all_reduce", t * h, layout.tp, layout)
        return scaled(out, self.layers)

    def _attend(self, group: Tokens, heads: int, dim: int, layout: Layout) -> Call:
        sequences = ceil_div(group.batch, layout.dp)
        length: Any = whole(group.q_len)
        if self.window:  # the last window of a sequence may be part empty, and is computed in full
            sequences = sequences * ceil_div(length, self.window)
            cut = np.minimum(length, self.window)
            length = cut if isinstance(length, np.ndarray) else int(cut)
        fields = {
            "batch": whole(sequences),
            "q_len": length,
            "kv_len": length,
            "q_heads": heads,
            "kv_heads": heads,
            "head_dim": dim,
            "causal": self.causal,
        }
        return Call(
            "attention", "attention", fields, present(group.batch * group.q_len), "attention"
        )

    def width(self, layout: Layout) -> float:
        """Residual stream and normed input, beside queries, keys, values or feed-forward rows."""
        own = max(4.0 * self.inner, float(self.up + (self.inter if self.gated else 0)))
        return 2.0 * self.hidden + own / layout.tp


@dataclass(frozen=True, slots=True)
class TextStem:
    """Embeddings of words, positions and segments, with a norm; no prefix.

    `factor` > 0: words are stored at that size and projected to `hidden`.
    """

    vocab: int
    hidden: int
    positions: int = 0
    types: int = 0
    norm: bool = True

    prefix = 0

    def weights(self) -> list[Weights]:
        """Tables: one row of the vocabulary is used a token."""
        out = [
            Weights(
                "embedding",
                "embedding",
                float(self.vocab * self.hidden),
                per_token=1.0 / self.vocab,
                ends=True,
            )
        ]
        tables = (self.positions + self.types) * self.hidden
        if tables:
            rows = float(self.positions + self.types)
            own = (int(self.positions > 0) + int(self.types > 0)) / rows
            out.append(
                Weights(
                    "position", "embedding", float(tables), split="none", per_token=own, ends=True
                )
            )
        if self.norm:
            out.append(
                Weights("embedding_norm", "norm", 2.0 * self.hidden, split="none", ends=True)
            )
        return out

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Gather rows and norm them."""
        t = own_tokens(groups, layout)
        fields = {"lookups": whole(t), "dim": self.hidden, "table_rows": self.vocab}
        out = [Call("embedding", "embedding", fields, present(t), "embedding")]
        if self.norm:
            out.append(norm(t, self.hidden, "layer"))
        return out


@dataclass(frozen=True, slots=True)
class PatchStem:
    """A convolution with stride = kernel: patches of patch x patch pixels, `frames` of them.

    `prefix` tokens (class, distillation, registers) have parameters of their own; `positions` rows
    of a learned table (0: computed positions). `image`: side in pixels that it was made for.
    """

    patch: int
    hidden: int
    image: int = 224
    channels: int = 3
    frames: int = 1
    prefix: int = 1
    positions: int = 0
    bias: bool = True
    norm: bool = False

    @property
    def depth(self) -> int:
        """Values of a patch."""
        return self.channels * self.patch * self.patch * self.frames

    def weights(self) -> list[Weights]:
        """Parameters of the projection, of prefix tokens and positions."""
        conv = float(self.depth * self.hidden + (self.hidden if self.bias else 0))
        out = [Weights("patches", "conv", conv, split="none", ends=True)]
        table = float((self.prefix + self.positions) * self.hidden)
        if table:
            # each token adds the row of its own position
            used = 1.0 / (self.prefix + self.positions)
            out.append(
                Weights("position", "embedding", table, split="none", per_token=used, ends=True)
            )
        if self.norm:
            out.append(
                Weights("embedding_norm", "norm", 2.0 * self.hidden, split="none", ends=True)
            )
        return out

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """One product for the patches (every device computes all), positions added."""
        t = own_tokens(groups, layout)
        images = total(ceil_div(g.batch, layout.dp) for g in groups)
        out = [gemm("patches", t - images * self.prefix, self.hidden, self.depth, role="conv")]
        if self.positions:
            out.append(pointwise("position", t * self.hidden, inputs=2))
        if self.norm:
            out.append(norm(t, self.hidden, "layer"))
        return out
