"""State-space mixers: Mamba and Mamba-2 layers, and the two-way Mamba layer of Vision Mamba.

A mixer is one layer's way to mix tokens (see `attention.Mixer`). What it keeps of a sequence is a
state and the last inputs of a short convolution: the same bytes whatever the length. Tensor
parallelism cuts channels (Mamba) or heads (Mamba-2). The readers of configs are in
`state_space_configs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InfeasibleError, SpecError
from .network import Cache, Call, Layout, Tokens, Weights, ceil_div, split
from .pieces import collective, gemm, norm, own_tokens, phase_of, pointwise, present, scaled, whole

__all__ = ["Mamba2Mixer", "MambaMixer", "VimStage"]


def _scans(
    op: str, group: Tokens, layout: Layout, fields: dict[str, Any], parallel: str
) -> list[Call]:
    """Scan of one group: `parallel` over passes of many tokens, a step where there is one.

    Passes over several tokens that follow others start from the state that they left.
    """
    batch = whole(ceil_div(group.batch, layout.dp))
    there = present(group.batch * group.q_len)
    single = np.less_equal(group.q_len, 1.0)
    after = bool(np.any(np.greater(group.kv_len, group.q_len)))
    base = {"batch": batch, **fields}
    found: list[Call] = []
    for variant, share in (("step", single), (parallel, ~single)):
        times = np.where(share, there, 0.0)
        if not np.any(times):
            continue
        own: dict[str, Any] = (
            {"length": 1} if variant == "step" else {"length": whole(group.q_len), "carry": after}
        )
        count = times if times.ndim else float(times)
        found.append(
            Call("scan", op, {**base, **own, "variant": variant}, count, "other", phase_of(group))
        )
    return found


def _short_convolution(
    group: Tokens, layout: Layout, channels: int, taps: int, before: int
) -> Call:
    """Causal convolution of each channel over time; `before` inputs precede those of the pass."""
    width = group.q_len + before
    fields = {
        "batch": whole(ceil_div(group.batch, layout.dp)),
        "in_channels": channels,
        "out_channels": channels,
        "groups": channels,
        "height": 1,
        "kernel_h": 1,
        "width": whole(width, taps),
        "kernel_w": taps,
        "variant": "direct",
    }
    return Call(
        "short_convolution",
        "convolution",
        fields,
        present(group.batch * group.q_len),
        "conv",
        phase_of(group),
    )


def _one_sequence(layout: Layout) -> None:
    """Raise InfeasibleError where one sequence would be cut over devices."""
    if layout.cp > 1:
        raise InfeasibleError(
            f"layout.cp: {layout.cp} devices cannot share a sequence of a state-space layer, whose "
            "scan is serial over them; use tp or dp"
        )


@dataclass(frozen=True, slots=True)
class MambaMixer:
    """Selective state space (Gu and Dao 2023, arXiv:2312.00752, section 3.4).

    `inner` channels with `state` states each, a convolution of `taps`, steps through a bottleneck
    of `rank`. `norms`: dt, B and C are normed, "gain" with parameters (Jamba), "plain" without
    (Falcon-Mamba), "" not. `ways` 2: forwards and backwards, with convolution and scan of its own
    for each way and shared projections (Vision Mamba: Zhu et al. 2024, arXiv:2401.09417).
    """

    inner: int
    state: int = 16
    taps: int = 4
    rank: int = 0
    bias: bool = False
    conv_bias: bool = True
    norms: str = ""
    ways: int = 1

    def __post_init__(self) -> None:
        for name in ("inner", "state", "taps", "rank", "ways"):
            if getattr(self, name) < 1:
                got = getattr(self, name)
                raise SpecError(f"mamba.{name}: got {got}, need a whole number of at least 1")

    @property
    def _selected(self) -> int:
        """Columns of the projection to dt's bottleneck, B and C."""
        return self.rank + 2 * self.state

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Projections, convolution, A, D and norms of one layer."""
        i, extra = self.inner, 1 if self.bias else 0
        conv = i * (self.taps + (1 if self.conv_bias else 0))
        found = [
            Weights("in_projection", "linear", 2 * i * (hidden + extra)),
            Weights("short_convolution", "conv", conv, count=self.ways),
            Weights("x_projection", "linear", i * self._selected, count=self.ways),
            Weights("dt_projection", "linear", i * (self.rank + 1), count=self.ways),
            Weights("scan", "other", i * (self.state + 1), count=self.ways),
            Weights("out_projection", "linear", hidden * (i + extra)),
        ]
        if self.norms == "gain":
            found.append(Weights("scan_norm", "norm", self._selected, split="none"))
        return tuple(found)

    def caches(self) -> tuple[Cache, ...]:
        """State and the last taps - 1 inputs of the convolution, whatever the length."""
        if self.ways > 1:
            return ()  # an encoder keeps nothing
        return (
            Cache("state", 1.0, fixed=float(self.inner * self.state), heads=self.inner),
            Cache("state", 1.0, fixed=float(self.inner * (self.taps - 1)), heads=self.inner),
        )

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Projections, convolution and scan of one layer on one device.

        The projection to dt, B and C sums over channels: one more all-reduce where tp > 1.
        Raises InfeasibleError where tp does not divide the channels.
        """
        _one_sequence(layout)
        i, t = (
            split(self.inner, layout.tp, "layout.tp: channels of a Mamba layer"),
            own_tokens(groups, layout),
        )
        way = [self._convolve(g, layout, i) for g in groups]
        way += [
            gemm("x_projection", t, self._selected, i),
            *collective("all_reduce", "all_reduce", t * self._selected, layout.tp, layout),
        ]
        if self.norms:  # one fused kernel for the three
            way.append(norm(t, self._selected, part="scan_norm"))
        way.append(gemm("dt_projection", t, i, self.rank))
        fields = {"channels": i, "state": self.state}
        for g in groups:
            way += _scans("selective_scan", g, layout, fields, "fused")
        found = [gemm("in_projection", t, 2 * i, hidden), *scaled(way, self.ways)]
        if self.ways > 1:
            found.append(pointwise("sum_of_ways", t * i, inputs=2))
        return [*found, gemm("out_projection", t, hidden, i)]

    def _convolve(self, group: Tokens, layout: Layout, channels: int) -> Call:
        return _short_convolution(group, layout, channels, self.taps, self.taps - 1)


@dataclass(frozen=True, slots=True)
class Mamba2Mixer:
    """State-space dual (Dao and Gu 2024, arXiv:2405.21060, section 7).

    `heads` of `head_dim` channels with `state` states each, B and C shared by `groups` of heads.
    One projection gives gate, x, B, C and dt; x, B and C pass a convolution of `taps`; a gated norm
    follows the scan.
    """

    heads: int
    head_dim: int = 64
    state: int = 128
    groups: int = 1
    taps: int = 4
    chunk: int = 256
    bias: bool = False
    conv_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "state", "groups", "taps", "chunk"):
            if getattr(self, name) < 1:
                got = getattr(self, name)
                raise SpecError(f"mamba2.{name}: got {got}, need a whole number of at least 1")
        if self.heads % self.groups:
            raise SpecError(f"mamba2.groups: got {self.groups}, need a divisor of {self.heads}")

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def _convolved(self) -> int:
        return self.inner + 2 * self.groups * self.state

    def weights(self, hidden: int) -> tuple[Weights, ...]:
        """Projections, convolution, A, D, dt's bias and the gated norm of one layer."""
        extra = 1 if self.bias else 0
        wide = self.inner + self._convolved + self.heads
        conv = self._convolved * (self.taps + (1 if self.conv_bias else 0))
        return (
            Weights("in_projection", "linear", wide * (hidden + extra)),
            Weights("short_convolution", "conv", conv),
            Weights("scan", "other", 3 * self.heads),
            Weights("scan_norm", "norm", self.inner),
            Weights("out_projection", "linear", hidden * (self.inner + extra)),
        )

    def caches(self) -> tuple[Cache, ...]:
        """State and the last taps - 1 inputs of the convolution, whatever the length."""
        return (
            Cache("state", 1.0, fixed=float(self.inner * self.state), heads=self.heads),
            Cache("state", 1.0, fixed=float(self._convolved * (self.taps - 1)), heads=self.heads),
        )

    def calls(self, groups: Sequence[Tokens], layout: Layout, hidden: int) -> list[Call]:
        """Projections, convolution, scan and gated norm of one layer on one device.

        Groups fewer than the shards are repeated. Raises InfeasibleError where tp does not divide
        the heads, or neither of tp and groups the other.
        """
        _one_sequence(layout)
        h, t = (
            split(self.heads, layout.tp, "layout.tp: heads of a Mamba-2 layer"),
            own_tokens(groups, layout),
        )
        shared = (
            split(self.groups, layout.tp, "layout.tp: groups of a Mamba-2 layer")
            if (self.groups >= layout.tp)
            else 1
        )
        inner = h * self.head_dim
        convolved = inner + 2 * shared * self.state
        found = [gemm("in_projection", t, inner + convolved + h, hidden)]
        found += [
            _short_convolution(g, layout, convolved, self.taps, self.taps - 1) for g in groups
        ]
        fields = {"heads": h, "head_dim": self.head_dim, "state": self.state, "groups": shared}
        for g in groups:
            found += [
                replace(c, fields={**c.fields, "chunk": self.chunk})
                for c in _scans("ssd", g, layout, fields, "chunked")
            ]
        # y times silu(z), then the norm, in one kernel with two inputs: 4 + 1 + 4 operations
        gated = pointwise("scan_norm", t * inner, ops=9, inputs=2, special=2, role="norm")
        return [*found, gated, gemm("out_projection", t, hidden, inner)]


@dataclass(frozen=True, slots=True)
class VimStage:
    """Layers of Vision Mamba: a norm and a two-way Mamba mixer each; a stage of an `Encoder`."""

    layers: int
    hidden: int
    mixer: MambaMixer
    reduction: int = 1

    def weights(self) -> list[Weights]:
        """Parameters of all its layers."""
        own = [*self.mixer.weights(self.hidden), Weights("norm", "norm", self.hidden, split="none")]
        return [replace(w, count=w.count * self.layers) for w in own]

    def calls(self, groups: Sequence[Tokens], layout: Layout) -> list[Call]:
        """Operations of all its layers."""
        t = own_tokens(groups, layout)
        own = [
            norm(t, self.hidden, residual=True),
            *self.mixer.calls(groups, layout, self.hidden),
            *collective("all_reduce", "all_reduce", t * self.hidden, layout.tp, layout),
        ]
        return scaled(own, self.layers)

    def width(self, layout: Layout) -> float:
        """Residual stream and normed input, beside x, z and what both ways make of x."""
        return 2.0 * self.hidden + (2.0 + 2.0 * self.mixer.ways) * self.mixer.inner / layout.tp
