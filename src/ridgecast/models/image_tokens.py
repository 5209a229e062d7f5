"""From pixels and frames to tokens: how vision-language models cut an image, and what comes out.

A rule answers `plan(width, height, frames)`: sequences for the vision encoder, patches in each,
and tokens that the language model gets. Tokens that mark where an image begins and ends are not
counted: they belong to the prompt's text. Knows no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from ..errors import InfeasibleError, SpecError

__all__ = ["AnyResolution", "DynamicPatches", "FixedPatches", "ImagePlan", "ImageRule", "Tiles"]


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """What one image or video becomes: `crops` sequences of `patches` each, `tokens` in all.

    `width` and `height` are the pixels that are encoded, of all crops put together.
    """

    crops: int
    patches: int
    tokens: int
    width: int
    height: int


class ImageRule(Protocol):
    """What a rule must answer."""

    def plan(self, width: int, height: int, frames: int = 1) -> ImagePlan:
        """Cut an image (frames 1) or a video."""
        ...


def _checked(width: int, height: int, frames: int) -> None:
    for name, got in (("width", width), ("height", height), ("frames", frames)):
        if not isinstance(got, int) or isinstance(got, bool) or got < 1:
            raise SpecError(f"image.{name}: got {got!r}, need a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class FixedPatches:
    """Resize each image or frame to `side` x `side`, then cut it into patches.

    (side / patch)^2 tokens whatever its size: LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744),
    PaliGemma (Beyer et al. 2024, arXiv:2407.07726).
    """

    side: int
    patch: int

    def plan(self, width: int, height: int, frames: int = 1) -> ImagePlan:
        """Cut an image; each frame of a video is an image."""
        _checked(width, height, frames)
        patches = (self.side // self.patch) ** 2
        return ImagePlan(frames, patches, frames * patches, self.side, self.side)


@dataclass(frozen=True, slots=True)
class AnyResolution:
    """LLaVA-1.6: the image as a whole, and cut into the grid of `side` x `side` crops that fits.

    `grids` are (columns, rows) to choose from. Chosen is the grid that keeps most pixels of the
    image, then the one with the fewest wasted. Patches that hold padding alone are dropped, and
    each row of the rest gets one more token. Source: Liu et al. 2024, "LLaVA-NeXT", and the
    published processor.
    """

    side: int = 336
    patch: int = 14
    grids: tuple[tuple[int, int], ...] = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))

    def plan(self, width: int, height: int, frames: int = 1) -> ImagePlan:
        """Cut an image; each frame of a video is an image."""
        _checked(width, height, frames)
        columns, rows = max(self.grids, key=lambda g: self._fit(width, height, g))
        per = self.side // self.patch
        across, down = columns * per, rows * per
        if width * down > height * across:  # bands above and below are padding
            seen = int(round(height * across / width, 7))
            down -= (down - seen) // 2 * 2
        else:
            seen = int(round(width * down / height, 7))
            across -= (across - seen) // 2 * 2
        tokens = per * per + down * (across + 1)
        crops = 1 + columns * rows
        return ImagePlan(
            frames * crops, per * per, frames * tokens, columns * self.side, rows * self.side
        )

    def _fit(self, width: int, height: int, grid: tuple[int, int]) -> tuple[int, int]:
        """Pixels of the image that the grid keeps, and minus those of the grid that are wasted."""
        wide, high = grid[0] * self.side, grid[1] * self.side
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - wide * high


@dataclass(frozen=True, slots=True)
class DynamicPatches:
    """Qwen2-VL and its followers: the image keeps its resolution, in steps of patch x merge pixels.

    `merge` x `merge` patches become one token. Sizes are rounded to the step and, where the pixels
    leave [least, most], scaled with the shape kept. Videos: `pair` frames share a patch; a pair has
    at most `frame_tokens` tokens, and a video `video_tokens` (Qwen2-VL: Wang et al. 2024,
    arXiv:2409.12191, section 2.1; Qwen2.5-VL: Bai et al. 2025, arXiv:2502.13923; 768 tokens a pair
    is the bound of the published loader).
    """

    patch: int = 14
    merge: int = 2
    pair: int = 2
    least: int = 56 * 56
    most: int = 16384 * 28 * 28
    frame_tokens: int = 768
    video_tokens: int = 16384

    @property
    def step(self) -> int:
        """Pixels that a token covers along a side."""
        return self.patch * self.merge

    def plan(self, width: int, height: int, frames: int = 1) -> ImagePlan:
        """Cut an image or a video; an odd last frame is repeated.

        Raises InfeasibleError for a side 200 times the other, which the processors refuse.
        """
        _checked(width, height, frames)
        if max(width, height) > 200 * min(width, height):
            raise InfeasibleError(
                f"image: {width} x {height} is longer than 200 times its width; crop it"
            )
        pairs = -(-frames // self.pair) if frames > 1 else 1
        most = self.most
        if frames > 1:
            share = min(self.frame_tokens, self.video_tokens / pairs)
            most = max(int(share * self.step**2), self.least)
        wide, high = self._resized(width, height, most)
        tokens = (wide // self.step) * (high // self.step)
        return ImagePlan(pairs, tokens * self.merge**2, pairs * tokens, wide, high)

    def _resized(self, width: int, height: int, most: int) -> tuple[int, int]:
        step = self.step
        wide, high = round(width / step) * step, round(height / step) * step
        if wide * high > most:
            shrink = math.sqrt(width * height / most)
            wide, high = (math.floor(x / shrink / step) * step for x in (width, height))
            return max(step, wide), max(step, high)
        if wide * high < self.least:
            grow = math.sqrt(self.least / (width * height))
            wide, high = (math.ceil(x * grow / step) * step for x in (width, height))
        return wide, high


@dataclass(frozen=True, slots=True)
class Tiles:
    """InternVL: tiles of `side` x `side` in a grid of the nearest shape, and a thumbnail.

    At most `most` tiles; among grids of one shape the largest whose half is still covered by the
    image. More than one tile: one more with the whole image. Each tile gives (side / patch / 2)^2
    tokens: pixel unshuffle by `merge`. A frame of a video is one tile (Chen et al. 2024,
    arXiv:2404.16821, section 3.3).
    """

    side: int = 448
    patch: int = 14
    merge: int = 2
    most: int = 12

    def plan(self, width: int, height: int, frames: int = 1) -> ImagePlan:
        """Cut an image; frames of a video are one tile each."""
        _checked(width, height, frames)
        columns, rows = (1, 1) if frames > 1 else self._grid(width, height)
        crops = columns * rows
        crops = frames if frames > 1 else crops + (1 if crops > 1 else 0)
        patches = (self.side // self.patch) ** 2
        return ImagePlan(
            crops, patches, crops * patches // self.merge**2, columns * self.side, rows * self.side
        )

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        grids = [
            (c, r)
            for c in range(1, self.most + 1)
            for r in range(1, self.most + 1)
            if c * r <= self.most
        ]
        best, off = (1, 1), math.inf
        for c, r in sorted(grids, key=lambda g: g[0] * g[1]):
            apart = abs(width / height - c / r)
            large = width * height > 0.5 * self.side**2 * c * r
            if apart < off or (apart == off and large):
                best, off = (c, r), apart
        return best
