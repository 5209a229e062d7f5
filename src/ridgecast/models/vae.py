"""Coders between pictures or clips and latents: their decoders and encoders.

Owns the layers of Stable Diffusion's AutoencoderKL (Rombach et al. 2022, arXiv:2112.10752), of
Wan 2.1's and CogVideoX's causal 3-D coders (arXiv:2503.20314, section 4.1; arXiv:2408.06072), run
in chunks of latent frames, and of DC-AE (Chen et al. 2024, arXiv:2410.10733). Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import SpecError, unknown_name
from .image import Canvas, Grid, ImageNetwork
from .image_pieces import Piece, act, attend, conv, linear, norm
from .network import Amount

__all__ = ["STYLES", "Vae"]

STYLES = ("kl", "wan", "cogvideox", "dc")
DIRECTIONS = ("decode", "encode")


@dataclass(frozen=True, slots=True)
class Vae(ImageNetwork):
    """A coder with `channels` latent channels and `widths` channels a level, finest first.

    `style`: "kl" (pictures), "wan" and "cogvideox" (clips, causal in time), "dc" (deep compression:
    residual levels, then linear attention). `blocks` of a level in the encoder; decoders have one
    more ("dc": `up_blocks`). `direction` is what a pass does; weights are those of both.
    `chunk`: latent frames decoded at a time (0: all). Kept frames of causal convolutions count.
    """

    style: str
    widths: tuple[int, ...]
    channels: int
    blocks: tuple[int, ...]
    up_blocks: tuple[int, ...] = ()
    quant: bool = True
    chunk: int = 0
    codes: int = 0
    direction: str = field(default="decode", kw_only=True)

    def __post_init__(self) -> None:
        for name, allowed in (("style", STYLES), ("direction", DIRECTIONS)):
            if getattr(self, name) not in allowed:
                raise SpecError(unknown_name(f"vae.{name}", getattr(self, name), allowed))
        if len(self.blocks) != len(self.widths):
            raise SpecError(f"vae.blocks: got {len(self.blocks)}, need one a level: {self.widths}")

    def pieces(self) -> tuple[Piece, ...]:
        """List all layers of both directions."""
        return (*self._way("encode"), *self._way("decode"))

    def runs(self) -> tuple[Piece, ...]:
        """List the layers of the chosen direction."""
        return tuple(self._way(self.direction))

    def turned(self, direction: str) -> Vae:
        """Return the same coder run in `direction`."""
        return replace(self, direction=direction)

    def grids(self, canvas: Canvas) -> list[tuple[Grid, Amount]]:
        """List the first latent frame, which is one frame at every level, and chunks after it."""
        grid = self.latent(canvas)
        if self.time == 1:
            return [(grid, 1.0)]
        rest = np.asarray(grid.t, np.float64) - 1.0
        size = np.where(self.chunk > 0, np.minimum(self.chunk, rest), rest)
        times = np.where(rest > 0, rest / np.maximum(size, 1.0), 0.0)
        found: list[tuple[Grid, Amount]] = [(replace(grid, t=1.0, first=True), 1.0)]
        if np.any(rest > 0):
            found.append((replace(grid, t=np.maximum(size, 1.0)), times))
        return found

    def kept(self, grid: Grid) -> Amount:
        """Frames that causal convolutions keep of their inputs for the next chunk."""
        if self.time == 1 or not self.chunk:
            return 0.0
        cells = sum(p.count * p.inner * (p.taps[0] - 1) * (p.side * p.stride[1]) ** 2
                    for p in self.runs() if p.taps[0] > 1)  # fmt: skip
        return grid.batch * grid.h * grid.w * cells

    def _way(self, direction: str) -> Iterator[Piece]:
        ways: dict[tuple[str, str], Callable[[], Iterator[Piece]]] = {
            ("kl", "decode"): self._kl_decode, ("kl", "encode"): self._kl_encode,
            ("wan", "decode"): self._wan_decode, ("wan", "encode"): self._wan_encode,
            ("cogvideox", "decode"): self._cog_decode, ("cogvideox", "encode"): self._cog_encode,
            ("dc", "decode"): self._dc_decode, ("dc", "encode"): self._dc_encode,
        }  # fmt: skip
        return ways[(self.style, direction)]()

    def _kl_decode(self) -> Iterator[Piece]:
        now, z = self.widths[-1], self.channels
        if self.codes:  # codes, and four products that smooth the maps of scales
            yield Piece("codes", "table", z, self.codes, "vector")
            yield conv("ends", z, z, count=4.0)
        if self.quant:
            yield conv("ends", z, z, 3 if self.codes else 1)
        yield conv("ends", z, now)
        yield from self._middle(now)
        side = 1.0
        for level in range(len(self.widths) - 1, -1, -1):
            for _ in range(self.blocks[level] + 1):
                yield from self._res(now, self.widths[level], side, 1.0)
                now = self.widths[level]
                if self.codes and side == 1.0:
                    yield from self._attention(now)
            if level:
                side *= 2
                yield act("resample", now, now, side=side)
                yield conv("resample", now, now, side=side)
        yield from self._end(now, 3, side, 1.0)

    def _kl_encode(self) -> Iterator[Piece]:
        side, now = float(self.space), self.widths[0]
        yield conv("ends", 3, now, side=side)
        for level, width in enumerate(self.widths):
            for _ in range(self.blocks[level]):
                yield from self._res(now, width, side, 1.0)
                now = width
                if self.codes and side == 1.0:
                    yield from self._attention(now)
            if level < len(self.widths) - 1:
                side /= 2
                yield conv("resample", now, now, side=side, stride=(1, 2, 2))
        yield from self._middle(now)
        out = self.channels if self.codes else 2 * self.channels  # mean and deviation
        yield from self._end(now, out, side, 1.0)
        if self.quant:
            yield conv("ends", out, out, 3 if self.codes else 1)

    def _wan_decode(self) -> Iterator[Piece]:
        now, z, last = self.widths[-1], self.channels, len(self.widths) - 1
        yield conv("ends", z, z, 1)
        yield conv("ends", z, now, (3, 3, 3))
        yield from self._middle(now)
        side = time = 1.0
        for level in range(last, -1, -1):
            for _ in range(self.blocks[level] + 1):
                yield from self._res(now, self.widths[level], side, time)
                now = self.widths[level]
            if level:
                if time < self.time:  # two frames of each, then twice the size
                    yield conv("resample", now, 2 * now, (3, 1, 1), side=side, time=time,
                               later=True)  # fmt: skip
                    time *= 2
                side *= 2
                yield act("resample", now, now, side=side, time=time)
                yield conv("resample", now, now // 2, side=side, time=time)
                now //= 2
        yield from self._end(now, 3, side, time)

    def _wan_encode(self) -> Iterator[Piece]:
        side, time, now = float(self.space), float(self.time), self.widths[0]
        yield conv("ends", 3, now, (3, 3, 3), side=side, time=time)
        for level, width in enumerate(self.widths):
            for _ in range(self.blocks[level]):
                yield from self._res(now, width, side, time)
                now = width
            if level < len(self.widths) - 1:
                side /= 2
                yield conv("resample", now, now, side=side, time=time, stride=(1, 2, 2))
                if level and time > 1:  # the finest level keeps its frames
                    time /= 2
                    yield conv("resample", now, now, (3, 1, 1), side=side, time=time,
                               stride=(2, 1, 1), later=True)  # fmt: skip
        yield from self._middle(now)
        yield from self._end(now, 2 * self.channels, side, time)
        yield conv("ends", 2 * self.channels, 2 * self.channels, 1)

    def _cog_decode(self) -> Iterator[Piece]:
        now, side, time = self.widths[-1], 1.0, 1.0
        yield conv("ends", self.channels, now, (3, 3, 3))
        for _ in range(2):
            yield from self._res(now, now, side, time, latent=self.channels)
        for level in range(len(self.widths) - 1, -1, -1):
            for _ in range(self.blocks[level] + 1):
                yield from self._res(now, self.widths[level], side, time, latent=self.channels)
                now = self.widths[level]
            if level:
                side, time = side * 2, min(time * 2, float(self.time))
                yield act("resample", now, now, side=side, time=time)
                yield conv("resample", now, now, side=side, time=time)
        yield from self._end(now, 3, side, time, self.channels)

    def _cog_encode(self) -> Iterator[Piece]:
        side, time, now = float(self.space), float(self.time), self.widths[0]
        yield conv("ends", 3, now, (3, 3, 3), side=side, time=time)
        for level, width in enumerate(self.widths):
            for _ in range(self.blocks[level]):
                yield from self._res(now, width, side, time)
                now = width
            if level < len(self.widths) - 1:
                side, time = side / 2, max(time / 2, 1.0)
                yield conv("resample", now, now, side=side, time=time, stride=(1, 2, 2))
        for _ in range(2):
            yield from self._res(now, now, side, time)
        yield from self._end(now, 2 * self.channels, side, time)

    def _dc_decode(self) -> Iterator[Piece]:
        now, side = self.widths[-1], 1.0
        yield conv("ends", self.channels, now, held=now)
        for level in range(len(self.widths) - 1, -1, -1):
            width = self.widths[level]
            if level < len(self.widths) - 1:
                side *= 2
                yield act("resample", now, now, side=side)
                yield conv("resample", now, width, side=side, held=width)
                now = width
            for _ in range(self.up_blocks[level]):
                yield from self._dc_block(width, level, side)
        yield norm("ends", now, "rms", 2, side=side)
        yield conv("ends", now, 3, side=side)

    def _dc_encode(self) -> Iterator[Piece]:
        side, now = float(self.space), self.widths[0]
        yield conv("ends", 3, now, side=side)
        for level, width in enumerate(self.widths):
            for _ in range(self.blocks[level]):
                yield from self._dc_block(width, level, side)
            if level < len(self.widths) - 1:
                side, after = side / 2, self.widths[level + 1]
                yield conv("resample", width, after, side=side, stride=(1, 2, 2), held=after)
                now = after
        yield conv("ends", now, self.channels, held=self.channels, side=side)

    def _dc_block(self, c: int, level: int, side: float) -> Iterator[Piece]:
        at: dict[str, Any] = {"side": side, "held": float(c)}
        if level < 3:  # DC-AE: linear attention in the three coarsest of six levels
            yield conv("resnet", c, c, **at)
            yield conv("resnet", c, c, bias=False, **at)
            yield norm("resnet", c, "rms", 2, **at)
            return
        yield linear("attention", c, 3 * c, bias=False, **at)
        yield conv("attention", 3 * c, 3 * c, 5, groups=3 * c, bias=False, **at)
        yield conv("attention", 3 * c, 3 * c, 1, groups=3 * c // 32, bias=False, **at)
        yield attend("attention", 2 * c, 2 * c // 32, axis="space", variant="linear", **at)
        yield linear("attention", 2 * c, c, bias=False, **at)
        yield norm("attention", c, "rms", 2, **at)
        yield conv("ffn", c, 8 * c, 1, **at)
        yield conv("ffn", 8 * c, 8 * c, groups=8 * c, **at)
        yield act("ffn", 8 * c, 4 * c, **at)
        yield conv("ffn", 4 * c, c, 1, bias=False, **at)
        yield norm("ffn", c, "rms", 2, **at)

    @property
    def _taps(self) -> tuple[int, int, int]:
        return (1, 3, 3) if self.style == "kl" else (3, 3, 3)

    def _norm(self, part: str, c: int, latent: int = 0, **at: Any) -> Iterator[Piece]:
        """Group norm; RMS in Wan; in CogVideoX's decoder gain and shift come from the latent."""
        if self.style == "wan":
            yield norm(part, c, "rms", 1, **at)
            return
        yield norm(part, c, "group", 2, groups=32, **at)
        if latent:
            yield conv(part, latent, c, 1, **at)
            yield conv(part, latent, c, 1, **at)
            yield act(part, 3 * c, c, **at)

    def _res(
        self, inner: int, out: int, side: float, time: float, latent: int = 0
    ) -> Iterator[Piece]:
        at: dict[str, Any] = {"side": side, "time": time, "held": float(inner)}
        yield from self._norm("resnet", inner, latent, **at)
        yield conv("resnet", inner, out, self._taps, **at)
        yield from self._norm("resnet", out, latent, **at)
        yield conv("resnet", out, out, self._taps, **at)
        if inner != out:
            yield conv("resnet", inner, out, 1, **at)

    def _middle(self, c: int) -> Iterator[Piece]:
        """Two residual blocks around an attention."""
        yield from self._res(c, c, 1.0, 1.0)
        yield from self._attention(c)
        yield from self._res(c, c, 1.0, 1.0)

    def _attention(self, c: int) -> Iterator[Piece]:
        """Attention of one head over a frame's positions."""
        yield from self._norm("attention", c, held=float(c))
        yield conv("attention", c, 3 * c, 1, held=float(c))
        yield attend("attention", c, 1, axis="space", held=float(c))
        yield conv("attention", c, c, 1, held=float(c))

    def _end(self, c: int, out: int, side: float, time: float, latent: int = 0) -> Iterator[Piece]:
        at: dict[str, Any] = {"side": side, "time": time}
        yield from self._norm("ends", c, latent, **at)
        yield conv("ends", c, out, self._taps, **at)
