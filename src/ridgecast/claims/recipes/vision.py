"""Vision transformers with sparse and integer products, layer by layer."""

from __future__ import annotations

import numpy as np

from ...ops.base import Work
from ..verdict import Finding, Found, NotModelled
from .kit import device, gemm_work, reached, span, time_of, work_of

__all__ = ["gpusq_vit", "i_vit", "lpvit", "pitome"]

_VITS = {"DeiT-Ti": (12, 192, 3), "DeiT-S": (12, 384, 6), "DeiT-B": (12, 768, 12)}
"""Layers, width, heads (Touvron et al. 2021, arXiv:2012.12877, table 1); 197 tokens."""
TOKENS = 197


def _shapes(width: int) -> tuple[tuple[int, int], ...]:
    """(n, k) of a layer's products."""
    return ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))


def _rest(model: str, batch: int, dtype: str, element: float) -> list[Work]:
    """Attention, normalisations, activation and residuals of a layer."""
    _, width, heads = _VITS[model]
    rows = TOKENS * batch
    mixing = work_of(
        "attention",
        q_len=TOKENS,
        kv_len=TOKENS,
        q_heads=heads,
        head_dim=width // heads,
        batch=batch,
        causal=False,
        dtype=dtype,
        variant="standard",
    )
    # two normalisations with residuals (3 widths each) and an activation (8 widths): a kernel each
    moved = element * rows * width
    norm = Work({"vector": 8.0 * rows * width}, 2.0 * moved, moved)
    active = Work({"vector": 40.0 * rows * width}, 4.0 * moved, 4.0 * moved)
    return [mixing, norm, norm, active]


def _seconds(model: str, batch: int, products: list[Work], rest: list[Work], on: str) -> float:
    layers = _VITS[model][0]
    return layers * sum(float(time_of(w, on, "hot")) for w in (*products, *rest))


def _dense(model: str, batch: int, dtype: str, element: float = 2.0) -> list[Work]:
    rows = TOKENS * batch
    return [
        gemm_work(rows, n, k, dtype=dtype, out_bytes=element) for n, k in _shapes(_VITS[model][1])
    ]


def gpusq_vit() -> list[Found]:
    """2:4 sparse weights in INT8 or INT4 against the dense float model (fp16 products, A100).

    Bits a weight: half of them with an index of 2 bits each; for INT4 pairs share one of 1 bit a
    weight (2 + 1/2).
    """
    latency, through, places = [], [], []
    for model in _VITS:
        for kind, bits in (("int8", 8.0), ("int4", 4.0)):
            for batch in (1, 256):
                rows = TOKENS * batch
                sparse = [
                    work_of("sparse_gemm", m=rows, n=n, k=k, dtype=kind, out_dtype="int8")
                    for n, k in _shapes(_VITS[model][1])
                ]
                base = _seconds(
                    model, batch, _dense(model, batch, "fp16"), _rest(model, batch, "fp16", 2.0),
                    "a100_sxm",
                )  # fmt: skip
                mine = _seconds(model, batch, sparse, _rest(model, batch, "int8", 1.0), "a100_sxm")
                (latency if batch == 1 else through).append(base / mine)
                places.append(f"{model}, {kind}, {bits:.0f} bits")
    sizes = (32.0 / (4.0 + 1.0), 32.0 / (2.0 + 0.5))
    weighted = "operations weighted by bits; the rule is not stated"
    orin = "no AGX Orin in the catalogue"
    return [
        Finding(0, sizes, at="5 bits a weight of INT8, 2.5 of INT4"),
        NotModelled(1, weighted),
        Finding(2, span(latency), at=reached(latency, 1.6, places[::2]), range="DeiT-Ti to B, one "
                "image", note="launches are a part of one image's time that nothing shrinks"),
        Finding(3, span(through), at=reached(through, 3.3, places[1::2]), range="DeiT-Ti to B, 256 "
                "images", note="against fp16 products; the float baseline may run TF32"),
        NotModelled(4, orin),
        NotModelled(5, orin),
    ]  # fmt: skip


def lpvit() -> list[Found]:
    """Block-sparse linear layers of DeiT-B on a GPU, blocks of 32 to 128, half to 80 % zero."""
    ratios, places = [], []
    for on in ("a100_sxm", "rtx_3090"):
        for density in (0.2, 0.35, 0.5):
            for block in (32, 64, 128):
                for batch in (32, 256):
                    rows = TOKENS * batch
                    sparse = [
                        work_of("sparse_gemm", m=rows, n=n, k=k, dtype="fp16", out_dtype="fp16",
                                variant="block", block=block, density=density)
                        for n, k in _shapes(768)
                    ]  # fmt: skip
                    rest = _rest("DeiT-B", batch, "fp16", 2.0)
                    base = _seconds("DeiT-B", batch, _dense("DeiT-B", batch, "fp16"), rest, on)
                    ratios.append(base / _seconds("DeiT-B", batch, sparse, rest, on))
                    places.append(f"{100 * (1 - density):.0f} % zero blocks, batch {batch}, {on}")
    return [
        NotModelled(0, "an accelerator that is not named"),
        Finding(1, span(ratios), at=reached(ratios, 1.79, places),
                range="50 to 80 % zero blocks, batch 32 and 256, A100 and RTX 3090"),
        NotModelled(2, "power of block-sparse products was not measured"),
    ]  # fmt: skip


def i_vit() -> list[Found]:
    """Run every operation of a DeiT in INT8 against FP32, batch 8, RTX 2080 Ti.

    Integer products on dot-product lanes (four multiply-adds a lane and clock, CUDA C++
    Programming Guide: __dp4a) at the low end, on the matrix unit at the high end.
    """
    hw, ratios, places = device("rtx_2080_ti"), [], []
    lanes = hw.replace(rates={**hw.rates, "int8": 4.0 * hw.rate("fp32")})
    for model in _VITS:
        base = _times(model, "fp32", 4.0, hw)
        for name, on in (("lanes", lanes), ("matrix unit", hw)):
            ratios.append(base / _times(model, "int8", 1.0, on))
            places.append(f"{model} on the {name}")
    return [
        Finding(0, span(ratios), at="3.72: " + reached(ratios, 3.72, places) + "; 4.11: "
                + reached(ratios, 4.11, places), range="DeiT-Ti to B, batch 8")
    ]  # fmt: skip


def _times(model: str, dtype: str, element: float, on: object) -> float:
    """Seconds of eight images in one format throughout."""
    works = [*_dense(model, 8, dtype, element), *_rest(model, 8, dtype, element)]
    return float(np.sum([time_of(w, on, "hot") for w in works]))  # type: ignore[arg-type]


def pitome() -> list[Found]:
    """Merge tokens of a ViT-H between layers: operations with a share kept at each layer.

    ViT-H/14: 32 layers, width 1280, 257 tokens (Dosovitskiy et al. 2021, arXiv:2010.11929). Scores
    of all pairs are computed at each layer. Shares kept of 90 to 97.5 % (swept).
    """
    layers, width, first, reductions = 32, 1280.0, 257.0, []
    shares = (0.9, 0.925, 0.95, 0.975)
    dense = layers * (24.0 * first * width**2 + 4.0 * first**2 * width)
    for share in shares:
        flops = 0.0
        for layer in range(layers):
            tokens = first * share**layer
            flops += 24.0 * tokens * width**2 + 4.0 * tokens**2 * width
            flops += 2.0 * tokens**2 * width / 16  # similarity of keys, mean over the heads
        reductions.append(100.0 * (1.0 - flops / dense))
    told = [f"{100 * s:g} % kept a layer" for s in shares]
    return [
        Finding(0, span(reductions), at="40 %: " + reached(reductions, 40.0, told) + "; 60 %: "
                + reached(reductions, 60.0, told), range="90 to 97.5 % of the tokens kept a layer"),
    ]  # fmt: skip
