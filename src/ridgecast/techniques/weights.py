"""Techniques of stored weights: fewer bits, sparsity, codes; and the kernels that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Storage, Treatment


def _marlin(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """4 bits with an fp16 scale a group of 128, unpacked in registers (shift-mask and scale)."""
    stored = Storage(v["bits"], int(v["group"]), 16, compute="bf16", unpack=2.0)
    return replace(t, weights=stored, experts=stored)


TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "marlin",
            "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models",
            "4-bit weights, 16-bit products; memory-bound up to a few dozen rows",
            "Frantar et al. 2024, arXiv:2408.11743",
            _marlin,
            ("weights", "experts"),
            {
                "bits": Parameter(4, 2, 8, "bits a weight"),
                "group": Parameter(128, 16, 4096, "weights that share a scale"),
            },
        ),
    )
}
