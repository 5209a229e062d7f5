"""Techniques that decode several tokens a pass: drafts, and where and how they are made.

How often a drafted token is right belongs to a method, its draft and its text: it is a parameter
here (`accept`), never a result. With k drafted tokens, each right with probability a, a pass gives

    1 + a + ... + a^k = (1 - a^(k+1)) / (1 - a)

tokens (Leviathan et al. 2023, arXiv:2211.17192, equation 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Speculation, Treatment

__all__ = ["tokens_a_pass"]


def tokens_a_pass(accept: float, drafted: float) -> float:
    """Tokens that a pass adds on average, its own included.

    >>> tokens_a_pass(0.5, 2)
    1.75
    """
    if accept >= 1.0:
        return drafted + 1.0
    return (1.0 - accept ** (drafted + 1.0)) / (1.0 - accept)


def _speculative(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Draft `drafted` tokens one after another with a small model; check them in one pass."""
    k = v["drafted"]
    return replace(
        t, speculation=Speculation(1.0 + k, tokens_a_pass(v["accept"], k), v["share"], k,
                                   v["memory"]))  # fmt: skip


def _easyspec(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Drafting in layer-parallel passes, and one exact pass of the draft that repairs its cache."""
    done = _speculative(t, v)
    s = done.speculation
    depth = 1.0 - v["cut"] + v["cut"] / v["width"]  # serial depth that is left of a draft pass
    steps = s.draft_steps * depth + 1.0
    return replace(done, speculation=replace(s, draft_steps=steps))


def _dovetail(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Draft on the device; the model's weights that do not fit there are used on the host."""
    place = replace(t.placement, device_share=v["device"], compute="host")
    return replace(_speculative(t, v), placement=place)


def _tree(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Guess through trained prompt tokens in the pass itself; a tree of candidates is checked."""
    accepted = tokens_a_pass(v["accept"], v["depth"])
    return replace(t, speculation=Speculation(1.0 + v["nodes"], accepted))


def _graft(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Draft a tree of less depth; tokens looked up in a store fill what was cut."""
    accepted = tokens_a_pass(v["accept"], v["depth"] + v["retrieved"])
    s = Speculation(1.0 + v["nodes"], accepted, v["share"], v["depth"], v["share"])
    return replace(t, speculation=s)


_ACCEPT = Parameter(0.7, 0.0, 0.99, "probability that a drafted token is right")
_DRAFTED = Parameter(4, 1, 32, "tokens drafted a pass")
_SHARE = Parameter(0.1, 0.0, 2.0, "time of a draft pass over one of the model")
_MEMORY = Parameter(0.1, 0.0, 1.0, "weights of the draft over those of the model")
_DRAFT = {"accept": _ACCEPT, "drafted": _DRAFTED, "share": _SHARE, "memory": _MEMORY}

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "speculative-decoding",
            "Fast Inference from Transformers via Speculative Decoding",
            "a small model drafts, the model checks several tokens in one pass",
            "Leviathan et al. 2023, arXiv:2211.17192",
            _speculative,
            ("speculation",),
            _DRAFT,
        ),
        Technique(
            "easyspec",
            "EasySpec: Layer-Parallel Speculative Decoding for Efficient Multi-GPU Utilization",
            "layers of the draft run side by side on devices that would idle",
            "Wu et al. 2025, arXiv:2502.02493",
            _easyspec,
            ("speculation",),
            {
                **_DRAFT,
                "width": Parameter(4, 1, 16, "layers that run at once"),
                "cut": Parameter(0.5, 0.0, 1.0, "share of a draft pass that runs so"),
            },
            "needs several devices and a draft of the same family",
        ),
        Technique(
            "dovetail",
            "Dovetail: A CPU/GPU Heterogeneous Speculative Decoding for LLM inference",
            "the device drafts, the host checks several tokens for one read of the weights",
            "Zhang et al. 2024, arXiv:2412.18934",
            _dovetail,
            ("speculation", "placement"),
            {**_DRAFT, "device": Parameter(0.0, 0.0, 1.0, "share of the model on the device")},
        ),
        Technique(
            "parallel-prompt-decoding",
            "Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM "
            "Inference",
            "trained prompt tokens guess ahead, a sparse tree is checked in the same pass",
            "Chen et al. 2024, arXiv:2405.18628",
            _tree,
            ("speculation",),
            {
                "accept": Parameter(
                    0.6, 0.0, 0.99, "probability that a level of the tree holds the right token"
                ),
                "depth": Parameter(3, 1, 16, "levels: prompt tokens in use"),
                "nodes": Parameter(30, 1, 512, "candidates and prompt tokens checked besides"),
            },
        ),
        Technique(
            "graft",
            "Draft Less, Retrieve More: Hybrid Tree Construction for Speculative Decoding",
            "fewer draft passes, the freed places of the tree from a lookup",
            "Shen et al. 2026, arXiv:2605.20104",
            _graft,
            ("speculation",),
            {
                "accept": Parameter(
                    0.8, 0.0, 0.99, "probability that a level of the tree holds the right token"
                ),
                "depth": Parameter(4, 1, 16, "draft passes"),
                "retrieved": Parameter(3, 0, 32, "further levels that are looked up"),
                "nodes": Parameter(60, 1, 512, "candidates checked"),
                "share": Parameter(
                    0.05, 0.0, 1.0, "time (and weights) of a draft pass over one of the model"
                ),
            },
        ),
    )
}
