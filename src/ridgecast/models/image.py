"""Networks over grids of pixels or latents: what is shared by U-Nets, image transformers and VAEs.

Owns `Canvas` (what is drawn) and `ImageNetwork`, which makes parameters, calls and live memory of
one list of layers (`image_pieces`), so that they cannot disagree. Knows shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import InfeasibleError, SpecError
from .image_pieces import Piece
from .network import Amount, Call, Layout, Network, Tokens, Weights, split
from .pieces import collective, merged

__all__ = ["Canvas", "Grid", "ImageNetwork"]


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a pass draws: `batch` pictures or clips of `frames` frames, sizes in pixels.

    `text_tokens` a sample condition it (0: as many as the network is used with). Numbers, or
    arrays [points]. `ImageNetwork.calls` takes it in the place of `Tokens`.
    """

    height: Amount = 512
    width: Amount = 512
    frames: Amount = 1
    batch: Amount = 1
    text_tokens: Amount = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = np.asarray(getattr(self, f.name), np.float64)
            least = 0 if f.name in ("text_tokens", "batch") else 1
            if not bool(np.all(np.isfinite(value) & (value >= least) & (value == value // 1))):
                got = getattr(self, f.name)
                raise SpecError(f"canvas.{f.name}: got {got}, need whole numbers from {least}")


@dataclass(frozen=True, slots=True)
class Grid:
    """What one pass sees: `t` latent frames of `h` x `w`, `text` tokens, `past` cached tokens.

    `first`: the first chunk of a causal video coder, one frame at every level.
    """

    h: Amount
    w: Amount
    t: Amount
    batch: Amount
    text: Amount
    past: Amount = 0
    first: bool = False


@dataclass(frozen=True, slots=True)
class ImageNetwork(Network):
    """A network over a grid; families define `pieces`.

    The grid is the picture over `space` (frames over `time`, the first kept: causal coders).
    Heights and widths must be multiples of `multiple` pixels. `text_tokens` is what it is used
    with. `shards`: tensor parallelism and pipelines are possible (transformers). Data parallelism
    gives devices different samples; context parallelism gives them different rows of a picture
    (U-Nets and VAEs: halos and gathered keys, as Li et al. 2024, arXiv:2402.19481) or tokens
    (transformers: all-to-all around attention, Jacobs et al. 2023, arXiv:2309.14509).
    """

    space: int = field(default=8, kw_only=True)
    time: int = field(default=1, kw_only=True)
    multiple: int = field(default=8, kw_only=True)
    text_tokens: int = field(default=0, kw_only=True)
    shards: bool = field(default=False, kw_only=True)

    def pieces(self) -> tuple[Piece, ...]:
        """List all layers in order."""
        raise NotImplementedError

    def runs(self) -> tuple[Piece, ...]:
        """List the layers that a pass runs; all of them by default."""
        return self.pieces()

    def weights(self) -> tuple[Weights, ...]:
        """List all parameters, merged by part and role."""
        found: dict[tuple[str, str, str, float], float] = {}
        for p in _pieces(self, False):
            if p.elements:
                way = "tp" if p.cut and self.shards else "none"
                share = 1.0 / p.inner if p.op == "table" and p.part == "labels" else 1.0
                key = (p.part, p.role, way, share)
                found[key] = found.get(key, 0.0) + p.elements * p.count
        return tuple(
            Weights(part, role, total, split=way, per_token=share)
            for (part, role, way, share), total in found.items()
        )

    def latent(self, canvas: Canvas) -> Grid:
        """Return the whole canvas as this network's grid.

        Raises SpecError for sizes that do not fit, with the nearest that do.
        """
        for name in ("height", "width"):
            value = np.asarray(getattr(canvas, name), np.float64)
            bad = np.mod(value, self.multiple) != 0
            if np.any(bad):
                got = float(np.atleast_1d(value)[np.atleast_1d(bad)][0])
                low = max(self.multiple, int(got // self.multiple) * self.multiple)
                raise SpecError(
                    f"canvas.{name}: got {got:g}, {self.name} needs a multiple of {self.multiple} "
                    f"pixels; nearest: {low}, {low + self.multiple}"
                )
        frames = np.asarray(canvas.frames, np.float64)
        if self.time > 1 and np.any(np.mod(frames - 1, self.time) != 0):
            raise SpecError(
                f"canvas.frames: got {canvas.frames}, {self.name} needs 1 + a multiple of "
                f"{self.time} frames (1, {1 + self.time}, {1 + 2 * self.time}, ..., 81)"
            )
        t = (canvas.frames - 1) // self.time + 1 if self.time > 1 else canvas.frames
        text = np.where(np.equal(canvas.text_tokens, 0), self.text_tokens, canvas.text_tokens)
        return Grid(canvas.height / self.space, canvas.width / self.space, t, canvas.batch,
                    _plain(text))  # fmt: skip

    def grids(self, canvas: Canvas) -> list[tuple[Grid, Amount]]:
        """List the passes that a call on a canvas takes, and how often; one by default."""
        return [(self.latent(canvas), 1.0)]

    def check(self, layout: Layout) -> None:
        """Raise InfeasibleError for a layout that this network cannot be spread over."""
        if layout.ep > 1:
            raise InfeasibleError(f"layout.ep: {self.name} has no experts; use ep 1")
        if not self.shards and layout.tp * layout.pp > 1:
            raise InfeasibleError(
                f"layout: {self.name} is convolutional and not cut by tp or pp here; use dp "
                "(samples, halves of guidance) or cp (rows of the picture)"
            )

    def calls(self, groups: Sequence[Any], layout: Layout) -> list[Call]:
        """Operations of one pass over each `Canvas` of `groups` (`Tokens` are refused)."""
        self.check(layout)  # layouts are refused without groups too
        return merged([c for g in groups for c in self.image_calls(_canvas(self, g), layout)])

    def image_calls(self, canvas: Canvas, layout: Layout) -> list[Call]:
        """Operations of one call on `canvas`, all its chunks, on one device."""
        self.check(layout)
        out: list[Call] = []
        for grid, times in self.grids(canvas):
            for piece in _pieces(self, True):
                if not (piece.later and grid.first):
                    out += [replace(c, count=c.count * times)
                            for c in _Spread(self, grid, layout).calls(piece)]  # fmt: skip
        return merged(out)

    def activations(self, tokens: Any, layout: Layout) -> Amount:
        """Elements live on one device at the peak of a pass over a `Canvas`.

        A layer's input and output, with what must stay beside them (residuals, skips, kept frames).
        """
        self.check(layout)
        canvas, peak = _canvas(self, tokens), np.float64(0.0)
        for grid, _ in self.grids(canvas):
            spread = _Spread(self, grid, layout)
            kept = self.kept(grid) / (layout.cp * layout.dp)
            for piece in _pieces(self, True):
                if not (piece.later and grid.first):
                    peak = np.maximum(peak, spread.live(piece) + kept)
        return _plain(peak)

    def kept(self, grid: Grid) -> Amount:
        """Elements kept between chunks beside what a layer holds; none by default."""
        return 0.0


@lru_cache(maxsize=128)
def _pieces(network: ImageNetwork, runs: bool) -> tuple[Piece, ...]:
    """Layers, with equal neighbours-in-kind merged."""
    found: dict[Piece, float] = {}
    for p in network.runs() if runs else network.pieces():
        key = replace(p, count=1.0)
        found[key] = found.get(key, 0.0) + p.count
    return tuple(replace(p, count=n) for p, n in found.items())


@dataclass(frozen=True, slots=True)
class _Spread:
    """One grid on one device of a layout: sizes and calls of its pieces."""

    network: ImageNetwork
    grid: Grid
    layout: Layout

    @property
    def batch(self) -> Amount:
        return np.ceil(np.asarray(self.grid.batch, np.float64) / self.layout.dp)

    def frames(self, p: Piece) -> Amount:
        return 1.0 if self.grid.first else self.grid.t * p.time

    def positions(self, p: Piece) -> Amount:
        """Positions of a sample on this device."""
        whole = self.frames(p) * self.grid.h * self.grid.w * p.side**2
        return np.ceil(np.asarray(whole, np.float64) / self.layout.cp)

    def rows(self, p: Piece) -> Amount:
        """Rows of a sample on this device."""
        if p.rows == "vector":
            return 1.0
        if p.rows == "text":
            return self.grid.text
        joint = self.grid.text if p.rows == "joint" else 0.0
        return self.positions(p) + joint

    def live(self, p: Piece) -> Amount:
        """Elements of input, output and what is held."""
        grown = float(np.prod(p.stride))
        return self.batch * self.rows(p) * (p.inner * grown * (p.op != "table") + p.out + p.held)

    def calls(self, p: Piece) -> list[Call]:
        if p.op == "table":
            return []
        b, rows = self.batch, self.rows(p)
        here = np.where(np.logical_and(b > 0, rows > 0), p.count, 0.0)
        count, cells = _plain(here), np.maximum(b * rows, 1.0)
        tp = self.layout.tp if p.cut else 1
        if p.op == "attention":
            return self._attention(p, count)
        if p.op == "normalisation":
            return [Call(p.part, p.op, self._norm(p, cells), count, p.role)]
        if p.op == "pointwise":
            ins = max(1, round(p.inner / p.out))
            whole = {"elements": _whole(cells * p.out / tp), "inputs": ins, "ops": max(2, ins)}
            return [Call(p.part, p.op, whole, count, p.role)]
        n = split(p.out, tp, f"{p.part} columns") if p.cut == "col" else p.out
        k = split(p.inner, tp, f"{p.part} rows") if p.cut == "row" or p.groups > 1 else p.inner
        plain_product = p.taps == (1, 1, 1) and p.groups == 1
        if p.op == "gemm" or plain_product:
            made = [Call(p.part, "gemm", {"m": _whole(cells), "n": n, "k": k}, count, p.role)]
        else:
            made = [Call(p.part, p.op, self._convolution(p, n, k, tp), count, p.role)]
            made += self._halo(p, count)
        if p.cut == "row" and tp > 1:
            made.append(self._collective("all_reduce", cells * p.out, tp, p, count))
        return made

    def _convolution(self, p: Piece, n: int, k: int, tp: int) -> dict[str, Any]:
        st, sh, sw = p.stride
        height = np.ceil(np.asarray(self.grid.h * p.side * sh, np.float64) / self.layout.cp)
        out: dict[str, Any] = {
            "in_channels": k, "out_channels": n, "height": _whole(height),
            "width": _whole(self.grid.w * p.side * sw), "kernel_h": p.taps[1],
            "kernel_w": p.taps[2],
            "padding_h": p.taps[1] // 2, "padding_w": p.taps[2] // 2, "stride_h": sh,
            "stride_w": sw, "groups": max(1, p.groups // tp) if p.groups > 1 else 1,
        }  # fmt: skip
        if p.groups == p.inner:
            out["variant"] = "direct"  # depthwise: nothing for matrix units
        frames = self.frames(p)
        if p.taps[0] == 1:
            out["batch"] = _whole(np.maximum(self.batch * frames, 1.0))
        else:  # frames before the chunk (kept ones, or zeros) come with it
            out |= {"batch": _whole(np.maximum(self.batch, 1.0)), "kernel_d": p.taps[0],
                    "stride_d": st, "padding_d": 0,
                    "depth": _whole(frames * st + p.taps[0] - st)}  # fmt: skip
        return out

    def _norm(self, p: Piece, cells: Amount) -> dict[str, Any]:
        if p.kind != "group":
            return {"rows": _whole(cells), "cols": p.out, "kind": p.kind}
        rows = np.maximum(self.batch * self.frames(p), 1.0)
        return {"rows": _whole(rows), "cols": p.out, "kind": "group", "groups": p.groups,
                "spatial": _whole(cells / rows)}  # fmt: skip

    def _attention(self, p: Piece, count: Amount) -> list[Call]:
        cp, tp = self.layout.cp, self.layout.tp
        whole = self.frames(p) * self.grid.h * self.grid.w * p.side**2
        if p.rows == "joint":
            whole = whole + self.grid.text
        gathers = cp > 1 and not self.network.shards
        heads = p.heads if gathers else split(p.heads, tp * cp, "attention heads over tp x cp")
        batch, q_len = self.batch, np.asarray(whole, np.float64)
        if p.axis == "space":
            batch, q_len = batch * self.frames(p), q_len / self.frames(p)
        elif p.axis == "time":
            batch, q_len = batch * q_len / self.frames(p), np.asarray(self.frames(p), np.float64)
        own = p.keys in ("grid", "joint")
        kv_len = q_len + self.grid.past * (p.axis == "all") if own else self.grid.text
        made: list[Call] = []
        if gathers and p.axis == "time":  # all frames of a position are here
            batch = np.ceil(batch / cp)
        elif gathers:
            q_len = np.ceil(q_len / cp)
        if gathers and own and p.axis != "time":
            cells = self.batch * whole * 2.0 * p.out
            made.append(self._collective("all_gather", cells, cp, p, count))
        elif cp > 1 and self.network.shards:  # q, k, v to heads; the result back to positions
            cells = self.batch * whole / cp * p.out / tp
            times = 4.0 if own else 2.0
            made.append(self._collective("all_to_all", cells, cp, p, count * times))
        names = {"batch": batch, "q_len": q_len, "kv_len": kv_len}
        shape = {n: _whole(np.maximum(v, 1.0)) for n, v in names.items()}
        shape |= {"q_heads": heads, "kv_heads": heads, "head_dim": p.out // p.heads,
                  "causal": False, "variant": p.variant}  # fmt: skip
        return [Call(p.part, "attention", shape, count, "attention"), *made]

    def _halo(self, p: Piece, count: Amount) -> list[Call]:
        """Rows that a convolution needs of both neighbours."""
        if self.layout.cp == 1 or p.taps[1] == 1:
            return []
        width = self.grid.w * p.side * p.stride[2]
        cells = self.batch * self.frames(p) * (p.taps[1] // 2) * width * p.inner
        return [self._collective("send_recv", cells, 2, p, count * 2.0)]

    def _collective(self, kind: str, cells: Amount, n: int, p: Piece, count: Amount) -> Call:
        stride = 1 if kind == "all_reduce" else self.layout.tp  # shards of a layer lie together
        made = collective(f"{p.part} {kind}", kind, cells, n, self.layout, stride=stride)[0]
        return replace(made, count=count)


def _canvas(network: Network, group: Any) -> Canvas:
    if isinstance(group, Canvas):
        return group
    what = "Tokens" if isinstance(group, Tokens) else type(group).__name__
    raise SpecError(
        f"{network.name}: got {what}, an image network needs a Canvas(height, width, frames, batch)"
    )


def _plain(value: Any) -> Amount:
    array = np.asarray(value, np.float64)
    return float(array) if array.ndim == 0 else array


def _whole(value: Any) -> Any:
    """Whole numbers: an int, or float64 [points]."""
    array = np.ceil(np.asarray(value, np.float64))
    return int(array) if array.ndim == 0 else array
