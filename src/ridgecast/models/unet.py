"""The U-Net of latent diffusion: residual blocks and text-conditioned transformers at each level.

Owns the layers of Rombach et al. 2022 (arXiv:2112.10752) and Podell et al. 2023 (SDXL,
arXiv:2307.01952), with the temporal layers of video U-Nets where wanted. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import SpecError, unknown_name
from .image import ImageNetwork
from .image_pieces import Piece, act, attend, conv, linear, norm

__all__ = ["TEMPORAL", "UNet", "resnet"]

TEMPORAL = ("", "motion", "full")


def resnet(
    inner: int, out: int, side: float, *, vector: int = 0, held: float = 0.0, part: str = "resnet"
) -> Iterator[Piece]:
    """Residual block: norm, convolution, (time), norm, convolution, shortcut. `held`: skips."""
    at: dict[str, Any] = {"side": side}
    yield norm(part, inner, "group", 2, groups=32, held=held + inner, **at)
    yield conv(part, inner, out, held=held + inner, **at)
    if vector:
        yield linear("time", vector, out, "vector")
    yield norm(part, out, "group", 2, groups=32, held=held + inner, **at)
    yield conv(part, out, out, held=held + inner, **at)
    if inner != out:
        yield conv(part, inner, out, 1, held=held + out, **at)


@dataclass(frozen=True, slots=True)
class UNet(ImageNetwork):
    """Denoiser: `widths` channels a level, `depths` transformer blocks in each of its blocks.

    `mid_depth` in the middle; `heads` a level; `context` the width of the text's states;
    `vector_in` the width of a pooled condition (SDXL: 2816; 0: none).

    Clips: `temporal` "motion" adds a transformer over the frames of each position behind every
    block (AnimateDiff, arXiv:2307.04725); "full" adds them where there is one over space, and four
    convolutions over three frames behind each residual block (ModelScope, arXiv:2308.06571;
    VideoCrafter is of that kind). `motion_heads` are those of the motion transformers.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    context: int
    mid_depth: int = 1
    blocks: int = 2
    channels: int = 4
    vector_in: int = 0
    linear_projection: bool = field(default=False, kw_only=True)
    temporal: str = field(default="", kw_only=True)
    motion_heads: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        if self.temporal not in TEMPORAL:
            raise SpecError(unknown_name(f"{self.name}.temporal", self.temporal, TEMPORAL))
        if not len(self.widths) == len(self.depths) == len(self.heads):
            raise SpecError(f"{self.name}: widths, depths and heads need one entry a level each")

    def pieces(self) -> tuple[Piece, ...]:
        """List all layers: down, middle and up, each with the skips that are live beside it."""
        return tuple(self._walk())

    @property
    def _vector(self) -> int:
        return 4 * self.widths[0]

    def _walk(self) -> Iterator[Piece]:
        w, vector = self.widths, self._vector
        yield linear("time", w[0], vector, "vector")
        yield linear("time", vector, vector, "vector")
        if self.vector_in:
            yield linear("time", self.vector_in, vector, "vector")
            yield linear("time", vector, vector, "vector")
        yield conv("ends", self.channels, w[0])
        if self.temporal == "full":
            yield from self._frames(w[0], 512, 8, 1.0, 0.0)
        skips, last = [(w[0], 1.0)], len(w) - 1  # channels and side
        now = w[0]
        for level, width in enumerate(w):
            side = 0.5**level
            for _ in range(self.blocks):
                yield from self._block(now, width, level, side, _held(skips, side))
                now = width
                skips.append((now, side))
            if level < last:
                held = _held(skips, side / 2)
                yield conv("resample", now, now, side=side / 2, stride=(1, 2, 2), held=held)
                skips.append((now, side / 2))
        side, held = 0.5**last, _held(skips, 0.5**last)
        yield from resnet(now, now, side, vector=vector, held=held)
        yield from self._between(now, side, held)
        yield from self._transformer(now, self.heads[last], self.mid_depth, side, held)
        if self.temporal:
            yield from self._frames(now, now, self._motion_heads(last), side, held)
        yield from resnet(now, now, side, vector=vector, held=held)
        yield from self._between(now, side, held)
        for level in range(last, -1, -1):
            width, side = w[level], 0.5**level
            for _ in range(self.blocks + 1):
                skip, _ = skips.pop()
                yield from self._block(now + skip, width, level, side, _held(skips, side))
                now = width
            if level > 0:
                side, held = side * 2, _held(skips, side * 2)
                yield act("resample", now, now, side=side, held=held)
                yield conv("resample", now, now, side=side, held=held)
        yield norm("ends", now, "group", 2, groups=32)
        yield conv("ends", now, self.channels)

    def _block(self, inner: int, out: int, level: int, side: float, held: float) -> Iterator[Piece]:
        yield from resnet(inner, out, side, vector=self._vector, held=held)
        yield from self._between(out, side, held)
        if self.depths[level]:
            yield from self._transformer(out, self.heads[level], self.depths[level], side, held)
        if self.temporal == "motion" or (self.temporal and self.depths[level]):
            yield from self._frames(out, out, self._motion_heads(level), side, held)

    def _motion_heads(self, level: int) -> int:
        return self.motion_heads if self.temporal == "motion" else self.heads[level]

    def _between(self, c: int, side: float, held: float) -> Iterator[Piece]:
        """Four convolutions over three frames, behind a residual block."""
        if self.temporal == "full":
            at: dict[str, Any] = {"side": side, "held": held + c, "count": 4.0}
            yield norm("temporal", c, "group", 2, groups=32, **at)
            yield conv("temporal", c, c, (3, 1, 1), **at)

    def _frames(self, c: int, wide: int, heads: int, side: float, held: float) -> Iterator[Piece]:
        """List a transformer over each position's frames: two self-attentions, feed-forward."""
        at: dict[str, Any] = {"side": side, "held": held + c}
        yield norm("temporal", c, "group", 2, groups=32, **at)
        yield linear("temporal", c, wide, **at)
        yield linear("temporal", wide, c, **at)
        at = {"side": side, "held": held + c + wide}
        yield norm("temporal", wide, "layer", 2, count=3.0, **at)
        yield linear("temporal", wide, 3 * wide, bias=False, count=2.0, **at)
        yield attend("temporal", wide, heads, axis="time", count=2.0, **at)
        yield linear("temporal", wide, wide, count=2.0, **at)
        yield linear("temporal", wide, 8 * wide, **at)
        yield act("temporal", 8 * wide, 4 * wide, **at)
        yield linear("temporal", 4 * wide, wide, **at)

    def _transformer(
        self, c: int, heads: int, depth: int, side: float, held: float
    ) -> Iterator[Piece]:
        """Self-attention, attention to the text and a gated feed-forward layer, `depth` times."""
        at: dict[str, Any] = {"side": side, "held": held + c}
        once = [norm("attention", c, "group", 2, groups=32, **at)]
        project = linear("attention", c, c, **at)
        if not self.linear_projection:  # a 1 x 1 convolution: the same product, another weight role
            project = conv("attention", c, c, 1, **at)
        once += [project, project]
        yield from once
        deep = held + 2 * c  # the input of the whole and of the block
        at = {"side": side, "held": deep, "count": float(depth)}
        yield norm("attention", c, "layer", 2, **_times(at, 3))
        yield linear("attention", c, 3 * c, bias=False, **at)
        yield attend("attention", c, heads, axis="space", **at)
        yield linear("attention", c, c, **at)
        yield linear("cross_attention", c, c, bias=False, **at)
        yield linear("cross_attention", self.context, 2 * c, "text", bias=False, count=depth)
        yield attend("cross_attention", c, heads, "text", axis="space", **at)
        yield linear("cross_attention", c, c, **at)
        yield linear("ffn", c, 8 * c, **at)
        yield act("ffn", 8 * c, 4 * c, **at)
        yield linear("ffn", 4 * c, c, **at)


def _times(at: dict[str, Any], times: float) -> dict[str, Any]:
    """Return the same place, `times` as often."""
    return at | {"count": at["count"] * times}


def _held(skips: list[tuple[int, float]], side: float) -> float:
    """Skips as channels of a grid of `side`."""
    return sum(c * (s / side) ** 2 for c, s in skips)
