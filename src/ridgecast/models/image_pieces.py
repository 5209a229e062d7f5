"""Layers of networks over grids: what each multiplies, over which rows, with what beside it.

Owns `Piece` and the functions that build it. Knows shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Piece", "act", "attend", "conv", "linear", "norm", "table"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One layer (or `count` alike): a product, a convolution, an attention, a norm, a point's work.

    `out` and `inner` are channels. `rows` says what it runs over: "grid" (positions of the latent
    times `side`^2, frames times `time`), "text", "joint" (both), "vector" (one a sample).
    `taps` and `stride` are (frames, height, width); the grid is that of the output. Attention has
    `heads` over `keys` ("grid", "text", "joint") along `axis`: "all" positions, those in "space" of
    a frame, or the frames of a position ("time"). `extra` are parameters beside the product,
    `held` channels that stay live beside input and output (residuals, skips). `cut` says how tensor
    parallelism cuts it: "col" (outputs), "row" (inputs; a sum follows), "" (repeated). `later`:
    not in the first chunk of a causal coder.
    """

    part: str
    op: str
    out: int
    inner: int = 0
    rows: str = "grid"
    side: float = 1.0
    time: float = 1.0
    count: float = 1.0
    extra: float = 0.0
    taps: tuple[int, int, int] = (1, 1, 1)
    stride: tuple[int, int, int] = (1, 1, 1)
    groups: int = 1
    heads: int = 0
    keys: str = ""
    axis: str = "all"
    variant: str = "flash"
    kind: str = "layer"
    held: float = 0.0
    cut: str = ""
    later: bool = False

    @property
    def elements(self) -> float:
        """Parameters of one instance."""
        if self.op in ("convolution", "gemm", "table"):
            return self.out * self.inner // self.groups * float(np.prod(self.taps)) + self.extra
        return self.extra

    @property
    def role(self) -> str:
        """What formats go by."""
        roles = {"convolution": "conv", "gemm": "linear", "attention": "attention",
                 "normalisation": "norm", "table": "embedding"}  # fmt: skip
        return roles.get(self.op, "other")


def conv(
    part: str, inner: int, out: int, taps: int | tuple[int, int, int] = 3, **more: Any
) -> Piece:
    """Convolution with bias; a whole `taps` is (1, taps, taps)."""
    shape = (1, taps, taps) if isinstance(taps, int) else taps
    bias = more.pop("bias", True)
    return Piece(part, "convolution", out, inner, taps=shape, extra=out if bias else 0, **more)


def linear(part: str, inner: int, out: int, rows: str = "grid", **more: Any) -> Piece:
    """Product with a weight, with bias."""
    bias = more.pop("bias", True)
    return Piece(part, "gemm", out, inner, rows, extra=out if bias else 0, **more)


def norm(part: str, cols: int, kind: str = "layer", affine: float = 0, **more: Any) -> Piece:
    """Normalisation with `affine` parameters a column (or `extra_of` parameters in all)."""
    extra = more.pop("extra_of", affine * cols)
    return Piece(part, "normalisation", cols, cols, kind=kind, extra=extra, **more)


def attend(part: str, width: int, heads: int, keys: str = "grid", **more: Any) -> Piece:
    """Attention of `width` columns; q, k and v are its input."""
    return Piece(part, "attention", width, 3 * width, heads=heads, keys=keys, **more)


def act(part: str, inner: int, out: int, **more: Any) -> Piece:
    """Point by point: `inner` columns in, `out` columns out."""
    return Piece(part, "pointwise", out, inner, **more)


def table(part: str, rows: int, cols: int, **more: Any) -> Piece:
    """Table of parameters that is read by row or added as it is; no call of its own."""
    return Piece(part, "table", cols, rows, rows="vector", **more)
