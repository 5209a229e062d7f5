"""Vision-language models: a vision encoder, a projector, a decoder; and the tokens of an image.

Owns `VisionLanguage`, which puts the three together, and `image_tokens`. How pixels become patches
and tokens is said by the rules of `image_tokens`; readers of configs are in
`vision_language_configs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpecError
from .encoder import Encoder
from .encoder_parts import NORM_PARAMS, AttentionStage, Dense
from .image_tokens import ImagePlan, ImageRule
from .network import Amount, Cache, Call, Layout, Network, Tokens, Weights
from .pieces import act, gemm, merged, norm, own_tokens
from .transformer import Decoder

__all__ = ["Projector", "VisionLanguage", "image_tokens"]


@dataclass(frozen=True, slots=True)
class Projector:
    """From patches to tokens of the decoder: a norm, linear layers with activations between.

    `norm` ("", "layer", "rms") over `columns` of each patch or of each token. `copies`: as many of
    them, fed from different layers of the encoder (Qwen3-VL: Bai et al. 2025, arXiv:2511.21631).
    """

    layers: tuple[Dense, ...]
    norm: str = ""
    columns: int = 0
    copies: int = 1

    def weights(self) -> list[Weights]:
        """Parameters, held by every device."""
        found = [
            Weights("projector", "linear", d.elements, self.copies, "none", ends=True)
            for d in self.layers
        ]
        if self.norm:
            gain = NORM_PARAMS[self.norm] * self.columns
            found.append(Weights("projector_norm", "norm", gain, self.copies, "none", ends=True))
        return found

    def calls(self, tokens: Amount) -> list[Call]:
        """Work of `tokens` tokens of the decoder on one device."""
        found: list[Call] = []
        if self.norm:
            rows = tokens * (self.layers[0].k / self.columns)
            found.append(norm(rows, self.columns, self.norm, part="projector"))
        for i, d in enumerate(self.layers):
            found += [act(tokens * d.k, "gelu", False, "projector")] if i else []
            found.append(gemm("projector", tokens, d.n, d.k))
        return [replace(c, count=c.count * self.copies) for c in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLanguage(Network):
    """A decoder whose prompts hold images: `images` of width x height (x frames) a sequence.

    Groups of a pass count all tokens, those of images included: `prompt` adds them to the text. The
    vision encoder runs for groups that start from scratch (q_len = kv_len, more than one token);
    for later chunks and decode steps images are long in the cache. It is cut by tp where tp divides
    its heads, else each device encodes all images.
    """

    vision: Encoder
    projectors: tuple[Projector, ...]
    decoder: Decoder
    rule: ImageRule
    images: int = 1
    width: int = 336
    height: int = 336
    frames: int = 1

    @property
    def plan(self) -> ImagePlan:
        """What one image of this size becomes."""
        return self.rule.plan(self.width, self.height, self.frames)

    def prompt(self, text: Amount) -> Amount:
        """Tokens of a prompt of `text` tokens and all images."""
        return text + float(self.images * self.plan.tokens)

    def with_images(
        self, width: int, height: int, *, images: int = 1, frames: int = 1
    ) -> VisionLanguage:
        """Return the same model fed with other images. Raises SpecError for sizes below 1."""
        if images < 0:
            raise SpecError(f"{self.name}: got {images} images, need 0 or more")
        self.rule.plan(width, height, frames)
        return replace(self, width=width, height=height, images=images, frames=frames)

    def weights(self) -> tuple[Weights, ...]:
        """Parameters of encoder, projectors and decoder."""
        vision = [replace(w, part=f"vision_{w.part}") for w in self.vision.weights()]
        between = [w for p in self.projectors for w in p.weights()]
        return (*vision, *between, *self.decoder.weights())

    def caches(self) -> tuple[Cache, ...]:
        """List what the decoder keeps; images are kept as its tokens."""
        return self.decoder.caches()

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Encode the images of new prompts, then one pass of the decoder."""
        fresh = [t for t in (self._images(g) for g in groups) if np.any(np.greater(t.batch, 0))]
        return merged([*self.encode(fresh, layout), *self.decoder.calls(groups, layout)])

    def encode(self, images: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Work of the encoder and the projectors on crops, given as `Tokens` (one a sequence)."""
        if not images:
            return []
        own = replace(layout, tp=self._tp(layout), cp=1, ep=1, pp=1)
        prefix = getattr(self.vision.stem, "prefix", 0)
        found = [replace(c, part=f"vision_{c.part}") for c in self.vision.calls(images, own)]
        bare = [Tokens(t.batch, t.q_len - prefix, t.q_len - prefix) for t in images]
        share = self.plan.tokens / (self.plan.crops * self.plan.patches)
        tokens = own_tokens(bare, own) * share
        return found + [c for p in self.projectors for c in p.calls(tokens)]

    def _tp(self, layout: Layout) -> int:
        """Shards of the encoder: those of the decoder where heads and columns divide, else one."""
        for stage in self.vision.stages:
            if not isinstance(stage, AttentionStage):
                return 1
            if stage.heads % layout.tp or stage.inter % layout.tp:
                return 1
        return layout.tp

    def _images(self, group: Tokens) -> Tokens:
        """Crops that a group brings along: none where something was cached before."""
        fresh = np.logical_and(np.equal(group.q_len, group.kv_len), np.greater(group.q_len, 1))
        batch: Any = np.where(fresh, group.batch, 0.0) * self.images * self.plan.crops
        length = float(self.plan.patches + getattr(self.vision.stem, "prefix", 0))
        return Tokens(batch if batch.ndim else float(batch), length, length)

    def activations(self, tokens: Amount, layout: Layout) -> Amount:
        """Elements at the peak: of the decoder, or of the images of one sequence if those are more.

        `tokens` are those of the decoder.
        """
        plan = self.plan
        seen = float(self.images * plan.crops * plan.patches)
        inside = self.vision.activations(seen, replace(layout, tp=self._tp(layout), dp=1, ep=1))
        found = np.maximum(self.decoder.activations(tokens, layout), inside)
        return found if isinstance(found, np.ndarray) and found.ndim else float(found)

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return self.decoder.layers

    @property
    def hidden(self) -> int:
        """Columns of the decoder."""
        return self.decoder.hidden

    @property
    def vocab(self) -> int:
        """Rows of the decoder's head."""
        return self.decoder.vocab

    @property
    def max_positions(self) -> int:
        """Longest sequence that the decoder was made for; 0: not said."""
        return self.decoder.max_positions

    @property
    def expert_dtype(self) -> str:
        """Published format of routed experts."""
        return self.decoder.expert_dtype

    @property
    def kv_dtype(self) -> str:
        """Format of the cache where the checkpoint says so."""
        return self.decoder.kv_dtype


def image_tokens(
    model: str | Path | Network | ImageRule, width: int, height: int, frames: int = 1
) -> int:
    """Tokens of the language model for one image, or for a video of `frames` frames.

    `model` is a name, a network or a rule. Raises SpecError for a model without images and for
    sizes below 1, InfeasibleError for shapes that the model refuses.

    >>> from ridgecast.models.image_tokens import FixedPatches
    >>> image_tokens(FixedPatches(side=336, patch=14), 1024, 768)
    576
    """
    if isinstance(model, str | Path | Network):
        from .registry import get

        found = get(model)
        if not isinstance(found, VisionLanguage):
            raise SpecError(
                f"{found.name} takes no images; models that do: llava-1.5-7b, qwen2.5-vl-7b, "
                "internvl2-8b, paligemma-3b-224"
            )
        return found.rule.plan(width, height, frames).tokens
    return model.plan(width, height, frames).tokens
