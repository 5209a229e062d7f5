"""Techniques of the key-value cache: fewer bits, fewer tokens, other places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Storage, Treatment


def _kivi(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """2 bits, asymmetric: an fp16 scale and an fp16 zero point each group of 32 elements.

    The last tokens stay in 16 bits until they fill a group of keys (residual).
    """
    stored = Storage(v["bits"], int(v["group"]), 16, 16, unpack=2.0)
    return replace(t, kv=replace(t.kv, storage=stored, recent=int(v["residual"])))


TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "kivi",
            "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
            "keys per channel and values per token at 2 bits; unpacked where they are used",
            "Liu et al. 2024, arXiv:2402.02750",
            _kivi,
            ("kv.storage",),
            {
                "bits": Parameter(2, 1, 8, "bits an element"),
                "group": Parameter(32, 8, 65536, "elements that share a scale and a zero point"),
                "residual": Parameter(32, 0, 4096, "last tokens kept in 16 bits"),
            },
        ),
    )
}
