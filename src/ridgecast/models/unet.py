"""The U-Net of latent diffusion: residual blocks and text-conditioned transformers at each level.

Owns the layers of Rombach et al. 2022 (arXiv:2112.10752) and Podell et al. 2023 (SDXL,
arXiv:2307.01952), with the temporal layers of video U-Nets where wanted. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .image import ImageNetwork
from .image_pieces import Piece, act, attend, conv, linear, norm

__all__ = ["UNet", "resnet"]


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
        yield from self._transformer(now, self.heads[last], self.mid_depth, side, held)
        yield from resnet(now, now, side, vector=vector, held=held)
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
        if self.depths[level]:
            yield from self._transformer(out, self.heads[level], self.depths[level], side, held)

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
