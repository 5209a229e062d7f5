"""Text encoders that condition generators: the encoder of T5 and umT5, CLIP's text towers, Gemma.

Owns their weights and calls. T5: Raffel et al. 2019, arXiv:1910.10683 (encoder alone, version 1.1);
umT5: Chung et al. 2023, arXiv:2304.09151; CLIP: Radford et al. 2021, arXiv:2103.00020. A pass runs
over `Tokens` with q_len = kv_len (prompts padded to a fixed length). Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .fields import Fields
from .network import Amount, Call, Layout, Network, Tokens, Weights, split
from .pieces import (
    act,
    attend,
    collective,
    gemm,
    merged,
    norm,
    own_tokens,
    present,
    scaled,
    seen,
    whole,
)

__all__ = ["TextEncoder", "clip_text", "gemma2", "t5"]


@dataclass(frozen=True, slots=True)
class TextEncoder(Network):
    """Transformer over text whose states are kept, without a head.

    `gated`: the feed-forward layer has two products in. `bias`: products and norms have shifts.
    `positions` learned ones; `buckets` of relative positions, learned once (T5) or in each layer
    (`bucket_layers`). `projection`: width of a product over the pooled state. `norms` a layer.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    head_dim: int
    ffn: int
    kv_heads: int = 0
    gated: bool = field(default=True, kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    causal: bool = field(default=False, kw_only=True)
    activation: str = field(default="gelu", kw_only=True)
    positions: int = field(default=0, kw_only=True)
    buckets: int = field(default=0, kw_only=True)
    bucket_layers: int = field(default=1, kw_only=True)
    projection: int = field(default=0, kw_only=True)
    norms: int = field(default=2, kw_only=True)

    @property
    def _qkv(self) -> int:
        return (self.heads + 2 * (self.kv_heads or self.heads)) * self.head_dim

    def weights(self) -> tuple[Weights, ...]:
        """List tables, layers and norms."""
        h, f, b, n = self.hidden, self.ffn, float(self.bias), float(self.layers)
        inner, ups = self.heads * self.head_dim, 2 if self.gated else 1
        layer = [
            ("qkv", h * self._qkv + b * self._qkv),
            ("out", inner * h + b * h),
            ("ffn", (ups + 1) * h * f + b * (ups * f + h)),
        ]
        each = 1.0 + b  # gain, and shift
        found = [Weights("embedding", "embedding", float(self.vocab * h), per_token=1 / self.vocab)]
        if self.positions:
            table = float(self.positions * h)
            found.append(Weights("positions", "embedding", table, per_token=1 / self.positions))
        if self.buckets:
            found.append(Weights("bias", "other", float(self.buckets * self.heads),
                                 float(self.bucket_layers)))  # fmt: skip
        found += [Weights(part, "linear", float(e), n) for part, e in layer]
        found.append(Weights("norm", "norm", each * h * self.norms, n, "none"))
        found.append(Weights("final norm", "norm", each * h, split="none"))
        if self.projection:
            found.append(Weights("projection", "linear", float(h * self.projection), split="none"))
        return tuple(found)

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of one pass. Raises InfeasibleError where tp does not divide the heads."""
        tp, m = layout.tp, own_tokens(groups, layout)
        h, f = self.hidden, split(self.ffn, tp, "feed-forward columns over tp")
        heads = split(self.heads, tp, "attention heads over tp")
        kv_heads = max(1, (self.kv_heads or self.heads) // tp)
        columns = (heads + 2 * kv_heads) * self.head_dim
        shape = {"q_heads": heads, "kv_heads": kv_heads, "head_dim": self.head_dim,
                 "causal": self.causal}  # fmt: skip
        kind = "layer" if self.bias else "rms"
        layer = [
            norm(m, h, kind, residual=True), gemm("qkv", m, columns, h),
            *(attend("attention", seen(g, layout), "", shape) for g in groups),
            gemm("out", m, h, heads * self.head_dim), norm(m, h, kind, residual=True),
            gemm("ffn", m, (2 if self.gated else 1) * f, h),
            act(m * f, self.activation, self.gated), gemm("ffn", m, h, f),
            *scaled(collective("all_reduce", "all_reduce", m * h, tp, layout), 2.0),
        ]  # fmt: skip
        looked = {"lookups": whole(m), "table_rows": self.vocab, "dim": h}
        ends = [Call("embedding", "embedding", looked, present(m), "embedding"), norm(m, h, kind)]
        if self.projection:
            rows = np.sum([np.ceil(np.asarray(g.batch) / layout.dp) for g in groups], axis=0)
            ends.append(gemm("projection", _number(rows), self.projection, h))
        return merged([*ends, *scaled(layer, float(self.layers))])

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements live at the peak: the residual beside a product's input and output."""
        rows = tokens / (layout.dp * layout.cp)
        wide = (2 if self.gated else 1) * self.ffn // layout.tp
        return rows * (2 * self.hidden + max(wide, self._qkv // layout.tp))


def _number(value: object) -> Amount:
    array = np.asarray(value, np.float64)
    return float(array) if array.ndim == 0 else array


def t5(fields: Fields) -> TextEncoder:
    """Read T5's or umT5's config: its encoder alone, without a decoder or head.

    >>> int(t5(Fields({"model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64,
    ...                "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    ...                "feed_forward_proj": "gated-gelu"})).parameters)
    4762310656
    """
    layers, kind = fields.whole("num_layers"), fields.word("model_type", default="t5")
    gated = fields.word("feed_forward_proj", default="gated-gelu").startswith("gated")
    return TextEncoder(
        "t5", fields.whole("vocab_size"), fields.whole("d_model"), layers,
        fields.whole("num_heads"), fields.whole("d_kv"), fields.whole("d_ff"), gated=gated,
        activation="gelu" if gated else "relu",
        buckets=fields.whole("relative_attention_num_buckets", default=32),
        bucket_layers=layers if kind == "umt5" else 1,
    )  # fmt: skip


def clip_text(fields: Fields) -> TextEncoder:
    """Read the config of CLIP's text tower."""
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    return TextEncoder(
        "clip", fields.whole("vocab_size", default=49408), hidden,
        fields.whole("num_hidden_layers"), heads, hidden // heads,
        fields.whole("intermediate_size"), gated=False, bias=True, causal=True,
        positions=fields.whole("max_position_embeddings", default=77),
        projection=fields.whole("projection_dim", default=0, low=0)
        if fields.flag("with_projection") else 0,
    )  # fmt: skip


def gemma2(fields: Fields) -> TextEncoder:
    """Read Gemma 2's config as an encoder: no head, no cache (SANA)."""
    return TextEncoder(
        "gemma2", fields.whole("vocab_size"), fields.whole("hidden_size"),
        fields.whole("num_hidden_layers"), fields.whole("num_attention_heads"),
        fields.whole("head_dim"), fields.whole("intermediate_size"),
        fields.whole("num_key_value_heads"), causal=True, norms=4,
    )  # fmt: skip
