"""Mixtures of experts."""

from __future__ import annotations

from typing import Any

from ..verdict import Finding, Found, NotModelled
from .kit import reached, seconds, span

__all__ = ["sonicmoe"]

_LAYERS = {  # tokens, width, expert width, experts, picks: 7B fine-grained, and sparser ones
    "7B, 8 of 128": (24576, 1536, 256, 128, 8), "4 of 256, width 4096": (16384, 4096, 512, 256, 4),
    "4 of 512, width 4096": (16384, 4096, 512, 512, 4),
    "4 of 256, wide experts": (16384, 4096, 1024, 256, 4),
}  # fmt: skip


def sonicmoe() -> list[Found]:
    """Cache less, gather on the fly, fill tiles (Guo et al. 2025, arXiv:2512.14080), H100.

    Elements a token kept for the backward pass: input and the first product here; there also the
    activation (and, at the other end, the expert outputs that the router's gradient needs).
    """
    _, width, inter, _, picks = _LAYERS["7B, 8 of 128"]
    mine = width + 2 * picks * inter
    least = mine + picks * inter
    kept = [100.0 * (1.0 - mine / other) for other in (least, least + picks * width)]
    rounding, faster = [], []
    for tokens, hidden, expert, experts, top_k in _LAYERS.values():
        shape: dict[str, Any] = {
            "num_tokens": tokens, "hidden": hidden, "inter": expert, "experts": experts,
            "top_k": top_k, "tile_m": 128, "distribution": "uniform",
        }  # fmt: skip
        plain = float(seconds("moe", "h100_sxm", variant="fused", **shape))
        filled = float(seconds("moe", "h100_sxm", variant="fused", rounded=True, **shape))
        other = float(seconds("moe", "h100_sxm", variant="gathered", **shape))
        rounding.append(plain / filled)
        faster.append(other / plain)
    run = "a training run on many devices"
    return [
        Finding(0, span(kept), at=reached(kept, 45.0, ("activation kept", "outputs kept too")),
                range="7B layer; the baseline keeps the activation, or the outputs too"),
        Finding(1, span(faster), at=reached(faster, 1.86, _LAYERS), range="four layers, forward",
                note="the bytes that gathering and fusing save; the published gain also holds "
                "loads that overlap with products"),
        NotModelled(2, run),
        NotModelled(3, run),
        Finding(4, span(rounding), at=reached(rounding, 1.16, _LAYERS),
                range="four layers, uniform choice of experts, tiles of 128 rows",
                note="at these sizes weights and rows limit more than padded products do"),
    ]  # fmt: skip
