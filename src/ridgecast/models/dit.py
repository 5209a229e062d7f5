"""Diffusion transformers over patches of latents, of pictures and of clips.

Owns the block kinds of published image and video transformers: DiT (Peebles, Xie 2022,
arXiv:2212.09748), PixArt-alpha (arXiv:2310.00426), SD3's MMDiT (arXiv:2403.03206), FLUX.1,
CogVideoX (arXiv:2408.06072), Wan 2.1 (arXiv:2503.20314), SANA (arXiv:2410.10629) and SANA-Video
(arXiv:2509.24695), next-scale generation (VAR, arXiv:2404.02905) and clips made chunk by chunk
(CausVid, arXiv:2412.07772; Self-Forcing, arXiv:2506.08009). Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import SpecError
from .image import Canvas, Grid, ImageNetwork
from .image_pieces import Piece, act, attend, conv, linear, norm, table
from .network import Amount, Cache, Layout, split

__all__ = ["BLOCKS", "Dit"]

BLOCKS = ("plain", "cross", "joint", "joint_last", "single", "merged")


@dataclass(frozen=True, slots=True)
class Dit(ImageNetwork):
    """Transformer of `blocks`, (kind, count) each, over patches of `patch` (frames, height, width).

    Kinds: "plain" (self-attention, feed-forward; own modulation), "cross" (shared modulation,
    attention to the text), "joint" (picture and text with weights of their own, one attention;
    "joint_last": the text's output is not needed), "single" (both in one stream, attention beside
    feed-forward), "merged" (text tokens in front of the picture's, same weights). `attention`:
    "flash" or "linear". `mix`: the feed-forward layer is a gated inverted bottleneck with a
    depthwise convolution, "space", or with one over frames behind it, "time". `vectors` are widths
    (in, out) of the condition embedders, each a product to `out` and one from there to `out`;
    `texts` widths of the text's projections, one after the other. `qk` are parameters of the norms
    of queries and keys an attention (columns); `buffers` stored positions.

    `chunk` > 0: clips are made that many latent frames at a time, over kept keys and values.
    `scales`: pictures are made scale by scale, each a pass over side^2 tokens (VAR).
    """

    hidden: int
    heads: int
    blocks: tuple[tuple[str, int], ...]
    ffn: int
    channels: int
    out_channels: int
    patch: tuple[int, int, int] = (1, 2, 2)
    vectors: tuple[tuple[int, int], ...] = ()
    modulation: int = 0
    texts: tuple[int, ...] = ()
    labels: int = 0
    extra: float = 0.0
    qk: int = 0
    cross_qk: int = 0
    affine: int = 0
    attention: str = field(default="flash", kw_only=True)
    linear_heads: int = field(default=0, kw_only=True)
    qkv_bias: bool = field(default=True, kw_only=True)
    mix: str = field(default="", kw_only=True)
    final_modulation: bool = field(default=True, kw_only=True)
    buffers: float = field(default=0.0, kw_only=True)
    chunk: int = field(default=0, kw_only=True)
    scales: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for kind, count in self.blocks:
            if kind not in BLOCKS or count < 1:
                raise SpecError(f"{self.name}.blocks: got {kind!r} x {count}, need {BLOCKS}")
        if self.hidden % self.heads:
            raise SpecError(f"{self.name}.heads: {self.heads} do not divide hidden {self.hidden}")

    @property
    def layers(self) -> int:
        """Blocks of all kinds."""
        return sum(n for _, n in self.blocks)

    def pieces(self) -> tuple[Piece, ...]:
        """List all layers in order."""
        return tuple([*self._ends(), *(q for kind, n in self.blocks for q in self._block(kind, n)),
                      *self._last()])  # fmt: skip

    def latent(self, canvas: Canvas) -> Grid:
        """Return tokens: the latent over the patch."""
        grid = super(Dit, self).latent(canvas)
        t, h, w = self.patch
        return replace(grid, h=grid.h / h, w=grid.w / w, t=-(-grid.t // t))

    def grids(self, canvas: Canvas) -> list[tuple[Grid, Amount]]:
        """List one pass, or those over the chunks or scales that follow each other."""
        grid = self.latent(canvas)
        if self.scales:
            ratio = float(np.max(np.asarray(grid.h))) / self.scales[-1]
            sides = [max(1, round(s * ratio)) for s in self.scales]
            seen = [sum(s * s for s in sides[:i]) for i in range(len(sides))]
            return [(replace(grid, h=s, w=s, past=past), 1.0)
                    for s, past in zip(sides, seen, strict=True)]  # fmt: skip
        if not self.chunk:
            return [(grid, 1.0)]
        if isinstance(grid.t, np.ndarray) and grid.t.ndim:
            raise SpecError(f"{self.name}: canvas.frames must be one number (it is made in chunks)")
        frames, area = int(grid.t), grid.h * grid.w
        starts = range(0, frames, self.chunk)
        linear_only = self.attention == "linear"
        return [(replace(grid, t=min(self.chunk, frames - s), past=0 if linear_only else s * area),
                 1.0) for s in starts]  # fmt: skip

    def check(self, layout: Layout) -> None:
        """Raise InfeasibleError for a layout that does not divide the heads, or has experts."""
        super(Dit, self).check(layout)
        heads = {self.heads, self._linear_heads if self.attention == "linear" else self.heads}
        for each in sorted(heads):
            split(each, layout.tp * layout.cp, "attention heads over tp x cp")

    def caches(self) -> tuple[Cache, ...]:
        """Keys and values of every block where a clip or picture is made piece by piece.

        Linear attention keeps its state instead, whatever the length.
        """
        if not (self.chunk or self.scales):
            return ()
        if self.attention == "linear":
            d = self.hidden // self._linear_heads
            return (Cache("state", self.layers, fixed=float(self.hidden * (d + 1)),
                          heads=self._linear_heads),)  # fmt: skip
        return (Cache("kv", self.layers, per_token=2.0 * self.hidden, heads=self.heads),)

    def activations(self, tokens: Amount | Canvas, layout: Layout) -> Amount:
        """Elements live at the peak: over a `Canvas`, or over that many tokens."""
        if isinstance(tokens, Canvas):
            return super(Dit, self).activations(tokens, layout)
        rows = np.ceil(np.asarray(tokens, np.float64) / (layout.dp * layout.cp))
        wide = max(p.inner + p.out + p.held for p in self.pieces() if p.rows in ("grid", "joint"))
        return float(rows * wide) if rows.ndim == 0 else rows * wide

    @property
    def _linear_heads(self) -> int:
        return self.linear_heads or self.heads

    def _ends(self) -> Iterator[Piece]:
        h, area = self.hidden, int(np.prod(self.patch))
        yield linear("ends", self.channels * area, h)
        for inner, out in self.vectors:
            yield linear("time", inner, out, "vector")
            yield linear("time", out, out, "vector")
        if self.modulation:
            yield linear("time", h, self.modulation, "vector")
        for inner, out in zip(self.texts, self.texts[1:], strict=False):
            yield linear("text", inner, out, "text")
        if self.labels:
            yield table("labels", self.labels, h)
        if self.extra:
            yield Piece("ends", "table", 1, 0, "vector", extra=self.extra)
        if self.buffers:
            yield Piece("positions", "table", 1, 0, "vector", extra=self.buffers)

    def _last(self) -> Iterator[Piece]:
        h, wide = self.hidden, self._vector
        yield norm("ends", h)
        if self.final_modulation:
            yield linear("time", wide, 2 * h, "vector")
        yield linear("ends", h, self.out_channels * int(np.prod(self.patch)))

    @property
    def _vector(self) -> int:
        """Width of the condition that blocks modulate by."""
        return self.vectors[0][1] if self.vectors else self.hidden

    def _block(self, kind: str, n: int) -> Iterator[Piece]:
        if kind in ("joint", "joint_last"):
            return self._joint(n, kind == "joint_last")
        makers = {"plain": self._plain, "cross": self._cross, "single": self._single,
                  "merged": self._merged}  # fmt: skip
        return makers[kind](n)

    def _mixer(self, n: int, rows: str = "grid", qk: int | None = None) -> Iterator[Piece]:
        """Self-attention: norm, q k v, their norms, attention, output."""
        h = self.hidden
        at: dict[str, Any] = {"rows": rows, "count": float(n), "held": float(h)}
        linear_one = self.attention == "linear"
        heads = self._linear_heads if linear_one else self.heads
        yield norm("attention", h, **at)
        yield linear("qkv", h, 3 * h, bias=self.qkv_bias, cut="col", **at)
        cols = self.qk if qk is None else qk
        if cols:
            yield norm("attention", 2 * h, "rms", extra_of=cols, **at)
        yield attend("attention", h, heads, rows, variant=self.attention if linear_one else "flash",
                     cut="col", **at)  # fmt: skip
        yield linear("out", h, h, cut="row", **at)

    def _feed(self, n: int, rows: str = "grid", hold: int = 0) -> Iterator[Piece]:
        h, f = self.hidden, self.ffn
        at: dict[str, Any] = {"rows": rows, "count": float(n), "held": float(h + hold)}
        yield norm("ffn", h, **at)
        if not self.mix:
            yield linear("ffn", h, f, cut="col", **at)
            yield act("ffn", f, f, cut="col", **at)
            yield linear("ffn", f, h, cut="row", **at)
            return
        yield linear("ffn", h, 2 * f, cut="col", **at)
        yield conv("ffn", 2 * f, 2 * f, groups=2 * f, cut="col", **at)
        yield act("ffn", 2 * f, f, cut="col", **at)
        yield linear("ffn", f, h, bias=False, cut="row", **at)
        if self.mix == "time":
            yield conv("ffn", h, h, (3, 1, 1), bias=False, **at)

    def _plain(self, n: int) -> Iterator[Piece]:
        yield linear("time", self._vector, 6 * self.hidden, "vector", count=float(n))
        yield from self._mixer(n)
        yield from self._feed(n)

    def _cross(self, n: int) -> Iterator[Piece]:
        h = self.hidden
        at: dict[str, Any] = {"count": float(n), "held": float(h)}
        yield Piece("time", "table", 1, 0, "vector", extra=6.0 * h, count=float(n))
        yield from self._mixer(n)
        yield norm("cross_attention", h, affine=self.affine, **at)
        yield linear("cross_attention", h, h, cut="col", **at)
        yield linear("cross_attention", h, 2 * h, "text", cut="col", count=float(n))
        if self.cross_qk:
            yield norm("cross_attention", h, "rms", extra_of=self.cross_qk, **at)
        yield attend("cross_attention", h, self.heads, "text", cut="col", **at)
        yield linear("cross_attention", h, h, cut="row", **at)
        yield from self._feed(n)

    def _joint(self, n: int, last: bool) -> Iterator[Piece]:
        """Two streams: text tokens run through weights of their own and meet in the attention."""
        h, both = self.hidden, float(n)
        yield linear("time", self._vector, 6 * h, "vector", count=both)
        yield linear("time", self._vector, (2 if last else 6) * h, "vector", count=both)
        for rows in ("grid", "text"):
            at: dict[str, Any] = {"rows": rows, "count": both, "held": float(h)}
            yield norm("attention", h, **at)
            yield linear("qkv", h, 3 * h, cut="col", **at)
            if self.qk:
                yield norm("attention", 2 * h, "rms", extra_of=self.qk, **at)
        yield attend("attention", h, self.heads, "joint", rows="joint", cut="col", count=both,
                     held=float(h))  # fmt: skip
        for rows in ("grid",) if last else ("grid", "text"):
            yield linear("out", h, h, rows, cut="row", count=both, held=float(h))
            yield from self._feed(n, rows)

    def _single(self, n: int) -> Iterator[Piece]:
        h, f = self.hidden, self.ffn
        at: dict[str, Any] = {"rows": "joint", "count": float(n)}
        held = float(h)
        yield linear("time", self._vector, 3 * h, "vector", count=float(n))
        yield norm("attention", h, held=held, **at)
        yield linear("qkv", h, 3 * h, cut="col", held=held, **at)
        if self.qk:
            yield norm("attention", 2 * h, "rms", extra_of=self.qk, held=held, **at)
        yield linear("ffn", h, f, cut="col", held=held + 3 * h, **at)
        yield act("ffn", f, f, cut="col", held=held + 3 * h, **at)
        yield attend("attention", h, self.heads, "joint", cut="col", held=held + f, **at)
        yield linear("out", h + f, h, cut="row", held=held, **at)

    def _merged(self, n: int) -> Iterator[Piece]:
        h = self.hidden
        yield linear("time", self._vector, 12 * h, "vector", count=float(n))
        if self.affine:
            yield Piece("attention", "table", 1, 0, "vector", extra=2.0 * self.affine * h, count=n)
        yield from self._mixer(n, "joint")
        yield from self._feed(n, "joint")
