"""Techniques of batching: what runs together, in which chunks, with what it shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Treatment


def _sarathi(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Prompts run in chunks that ride on decode passes."""
    return replace(t, batching=replace(t.batching, chunk=int(v["chunk"])))


TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "sarathi",
            "SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills",
            "prefill in chunks of equal size, decodes ride on them",
            "Agrawal et al. 2023, arXiv:2308.16369",
            _sarathi,
            ("batching.chunk",),
            {"chunk": Parameter(256, 16, 65536, "tokens of a pass")},
        ),
    )
}
