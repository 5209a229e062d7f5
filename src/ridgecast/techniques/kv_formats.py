"""Techniques of the cache's number formats: fewer bits, mixed bits, inputs instead of both tensors.

KIVI is in `kv_cache`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log2

from .base import Parameter, Technique
from .treatment import Storage, Treatment

# Lane operations to make a 16-bit number of a code: shift and mask, scale, zero point
_UNPACK = 3.0
_WORD = 16.0  # bits of a scale, of a zero point


def _xquant(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Cache the quantised input of a layer; keys and values are projected again from it."""
    stored = Storage(v["bits"], int(v["group"]), _WORD, v["bits"], unpack=_UNPACK)
    return replace(t, kv=replace(t.kv, storage=stored, elements=v["elements"], recompute=True))


def _mixed(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep a share of the tokens at more bits than the others, each with a scale and zero point.

    The source separates channels first (one scale a channel for the whole sequence), so that one
    scale and zero point a token and tensor suffice.
    """
    bits = v["salient"] * v["high"] + (1.0 - v["salient"]) * v["low"]
    coded = 1.0 - v["salient"] if v["high"] >= _WORD else 1.0  # 16 bits need no scale
    stored = Storage(bits, int(v["group"]), coded * _WORD, coded * _WORD, unpack=_UNPACK * coded)
    return replace(t, kv=replace(t.kv, storage=stored))


def _mikv(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """As `_mixed`; importance is the sum of attention scores, so that scores go through memory."""
    return replace(_mixed(t, v), attention="standard")


def _vidkv(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keys: a share of the channels at 2 bits, the others at 1; values: three levels.

    A 16-bit scale and zero point each group, of keys and of values alike.
    """
    keys = 2.0 * v["wide"] + (1.0 - v["wide"])
    bits = 0.5 * (keys + log2(3.0))
    stored = Storage(bits, int(v["group"]), _WORD, _WORD, unpack=_UNPACK)
    return replace(t, kv=replace(t.kv, storage=stored))


def _block_float(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Mantissas with an 8-bit exponent a block; channels are reordered when weights are loaded."""
    stored = Storage(v["bits"], int(v["block"]), 8, unpack=1.0)
    return replace(t, kv=replace(t.kv, storage=stored))


_SALIENT = Parameter(0.6, 0, 1, "share of tokens at the higher bits")
_HIGH = Parameter(4, 1, 16, "bits of salient tokens")
_LOW = Parameter(2, 1, 16, "bits of the others")

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "xquant",
            "XQuant: Breaking the Memory Wall for LLM Inference with KV Cache Rematerialization",
            "layer inputs are cached at few bits; keys and values are projected again every step",
            "XQuant, title as given",
            _xquant,
            ("kv.storage", "kv.elements"),
            {
                "bits": Parameter(4, 1, 16, "bits an element of X"),
                "group": Parameter(128, 8, 65536, "elements that share a scale and a zero point"),
                "elements": Parameter(
                    0.5, 0.01, 1, "elements kept for each of keys and values: 1/2 where every "
                    "head has its own, 1 with grouped heads (two projections of X)"
                ),
            },
            needs="pays where products are cheap beside bytes: short contexts, small batches",
        ),
        Technique(
            "zipcache",
            "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token "
            "Identification",
            "salient tokens at 4 bits, others at 2; scores of a few probe tokens keep flash "
            "attention",
            "He et al. 2024, arXiv:2405.14256",
            _mixed,
            ("kv.storage",),
            {
                "salient": _SALIENT, "high": _HIGH, "low": _LOW,
                "group": Parameter(1024, 8, 65536, "elements of a token that share a scale"),
            },
        ),
        Technique(
            "mikv",
            "No Token Left Behind: Reliable KV Cache Compression via Importance-Aware Mixed "
            "Precision Quantization",
            "tokens that eviction would drop stay at few bits; importance from attention scores",
            "Yang et al. 2024, arXiv:2402.18096",
            _mikv,
            ("kv.storage", "attention"),
            {
                "salient": Parameter(0.2, 0, 1, "share of tokens at the higher bits"),
                "high": Parameter(16, 1, 16, "bits of important tokens"), "low": _LOW,
                "group": Parameter(64, 8, 65536, "elements that share a scale"),
            },
        ),
        Technique(
            "vidkv",
            "Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models",
            "keys at 1 bit, wide channels at 2; values in three levels",
            "Tao et al. 2025, arXiv:2503.16257",
            _vidkv,
            ("kv.storage",),
            {
                "wide": Parameter(0.5, 0, 1, "share of key channels at 2 bits"),
                "group": Parameter(128, 8, 65536, "elements that share a scale and a zero point"),
            },
        ),
        Technique(
            "bfp-outlier-kv",
            "Accurate Block Quantization in LLMs with Outliers",
            "cache in block floating point; channels reordered so that outliers share blocks",
            "Accurate Block Quantization in LLMs with Outliers, title as given",
            _block_float,
            ("kv.storage",),
            {
                "bits": Parameter(8, 2, 15, "bits of a mantissa with its sign"),
                "block": Parameter(64, 8, 512, "elements that share an exponent"),
            },
        ),
    )
}  # fmt: skip
