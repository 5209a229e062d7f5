"""Encoders: text (BERT and kin), image (ViT, DeiT, Swin, SigLIP, Vision Mamba), and pairs (CLIP).

A pass: groups of Tokens with q_len = kv_len, all positions seen by all (within a window where the
stage has one). For images q_len counts the patches and the prefix (class and register tokens);
`Encoder.passes` gives it for a size in pixels. Owns their weights and calls; the readers of their
configs are in `encoder_configs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InfeasibleError, SpecError
from .encoder_parts import (
    NORM_PARAMS,
    AttentionStage,
    Dense,
    PatchStem,
    Stage,
    TextStem,
    dense_weights,
    reduced,
)
from .network import Amount, Call, Layout, Network, Tokens, Weights, ceil_div
from .pieces import (
    gemm,
    merged,
    norm,
    own_tokens,
    present,
    total,
    whole,
)

__all__ = ["Encoder", "TwoTowers"]


@dataclass(frozen=True, slots=True)
class Encoder(Network):
    """Stem, stages of layers, merges between them, final norm and `tail` layers.

    `merges[i]` joins the tokens of stage i to those of stage i + 1 (norm of k, product k -> n:
    Swin). `pooling`: attention pooling, a layer with one learned query a sequence (SigLIP's head).
    `tail`: pooler, classifier, projections.
    """

    stem: TextStem | PatchStem
    stages: tuple[Stage, ...]
    merges: tuple[Dense, ...] = ()
    final_norm: str = "layer"
    pooling: AttentionStage | None = None
    tail: tuple[Dense, ...] = ()
    extra: tuple[Weights, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not self.stages:
            raise SpecError(f"{self.name}: an encoder needs at least one stage of layers")
        if self.merges and len(self.merges) != len(self.stages) - 1:
            raise SpecError(f"{self.name}: {len(self.merges)} merges for {len(self.stages)} stages")

    def tokens(self, width: int, height: int) -> int:
        """Tokens of an image in pixels, prefix included: whole patches only.

        Raises SpecError for a text encoder, and for an image smaller than one patch.
        """
        if not isinstance(self.stem, PatchStem):
            raise SpecError(f"{self.name}: a text encoder has no image size; give tokens")
        p = self.stem.patch
        across, down = width // p, height // p
        if across < 1 or down < 1:
            raise SpecError(f"{self.name}: image of {width} x {height} is below one patch of {p}")
        return across * down + self.stem.prefix

    def passes(self, images: Amount = 1.0, width: int = 0, height: int = 0) -> Tokens:
        """Tokens of a pass over images; by default of the size that it was made for."""
        side = self.stem.image if isinstance(self.stem, PatchStem) else 0
        length = float(self.tokens(width or side, height or width or side))
        return Tokens(images, length, length)

    def weights(self) -> tuple[Weights, ...]:
        """All parameters, by kind."""
        out = self.stem.weights()
        for stage in self.stages:
            out += stage.weights()
        for merge in self.merges:
            out += [
                *dense_weights([merge], split="none"),
                Weights("norm", "norm", 2.0 * merge.k, split="none"),
            ]
        if self.final_norm:
            size = NORM_PARAMS[self.final_norm] * self.stages[-1].hidden
            out.append(Weights("final_norm", "norm", size, split="none", ends=True))
        if self.pooling:
            probe = Weights("probe", "other", float(self.pooling.hidden), split="none", ends=True)
            out += [*self.pooling.weights(), probe]
        tail = dense_weights(self.tail, split="none", ends=True)
        return tuple(out + tail + list(self.extra))

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of one pass; q_len counts tokens of the stem, prefix included.

        Raises InfeasibleError where tp does not divide heads or feed-forward columns.
        """
        if layout.cp > 1:
            raise InfeasibleError(f"layout.cp: {self.name} is an encoder; use dp instead of cp")
        out = self.stem.calls(groups, layout)
        for i, stage in enumerate(self.stages):
            out += stage.calls(groups, layout)
            if i < len(self.merges):
                merge, after = self.merges[i], self.stages[i + 1].reduction
                t = own_tokens(reduced(groups, after), layout)
                out += [norm(t, merge.k, "layer"), gemm("merge", t, merge.n, merge.k)]
        end = reduced(groups, self.stages[-1].reduction)
        last = own_tokens(end, layout)
        if self.final_norm:
            out.append(norm(last, self.stages[-1].hidden, self.final_norm, residual=True))
        once = total(ceil_div(g.batch, layout.dp) * present(g.q_len) for g in groups)
        if self.pooling:
            out += self._pool(self.pooling, end, layout)
        for layer in self.tail:
            rows = last if layer.rows == "token" else once
            out.append(gemm(layer.part, rows, layer.n, layer.k, role="head"))
        return merged(out)

    @staticmethod
    def _pool(p: AttentionStage, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """One probe a sequence attends to all tokens; then a feed-forward layer on it."""
        t = own_tokens(groups, layout)
        once = total(ceil_div(g.batch, layout.dp) for g in groups)
        out = [gemm("pool_kv", t, 2 * p.inner, p.hidden, role="head")]
        for g in groups:
            batch = ceil_div(g.batch, layout.dp)
            fields = {
                "batch": whole(batch),
                "q_len": 1,
                "kv_len": whole(g.q_len),
                "causal": False,
                "q_heads": p.heads,
                "head_dim": p.inner // p.heads,
            }
            out.append(Call("pool", "attention", fields, present(batch), "attention"))
        sizes = ((p.inner, p.hidden), (p.hidden, p.inter), (p.inter, p.hidden))
        return out + [gemm("pool", once, n, k, role="head") for k, n in sizes]

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements held at the peak: the widest layer of the stage with most of them."""
        return tokens / layout.dp * self.width(layout)

    def width(self, layout: Layout) -> float:
        """Elements a token of the stem that are held at the peak of a pass."""
        return max(s.width(layout) / s.reduction for s in self.stages)


@dataclass(frozen=True, slots=True)
class TwoTowers(Network):
    """An image and a text encoder side by side (CLIP); `extra` parameters (the scale of logits).

    A pass: the first group are images, the second texts; groups beyond alternate.
    """

    vision: Encoder
    text: Encoder
    extra: int = 1

    def weights(self) -> tuple[Weights, ...]:
        """Parameters of both."""
        scale = Weights("logit_scale", "other", float(self.extra), split="none", ends=True)
        return (*self.vision.weights(), *self.text.weights(), scale)

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of both."""
        out = self.vision.calls(groups[0::2], layout)
        return out + (self.text.calls(groups[1::2], layout) if len(groups) > 1 else [])

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements of the wider of the two; they run one after the other."""
        wide = max(self.vision.width(layout), self.text.width(layout))
        return tokens / layout.dp * wide
