"""Techniques of the cache's contents and place: which tokens stay, are read, or live elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Storage, Treatment

_UNPACK = 3.0  # shift and mask, scale, zero point (as in kv_formats)


def _kept(t: Treatment, **changes: object) -> Treatment:
    return replace(t, kv=replace(t.kv, **changes))  # type: ignore[arg-type]


def _h2o(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep the tokens of high accumulated score and the last ones; scores go through memory."""
    return replace(_kept(t, keep=v["keep"], score_launch=2.0), attention="standard")


def _locret(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Prefill in chunks; after each, only the best tokens stay (a small head scores them)."""
    made = _kept(t, budget=int(v["budget"]), score_launch=2.0)
    return replace(made, batching=replace(t.batching, chunk=int(v["chunk"])))


def _windowkv(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep windows of consecutive tokens; chosen once a prompt, for a group of layers."""
    return _kept(t, keep=v["keep"], peak=v["peak"])


def _kvmerger(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Merge runs of similar keys after prefill, so that fewer entries are kept and read."""
    return _kept(t, keep=v["keep"], peak=v["peak"])


def _shadowkv(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Low-rank keys and chunk means on the device, values on the host; few of them are read.

    Of a token and layer, 2 `width` elements of keys and values: `rank` stay for the key, and the
    chunk's mean of it is the index. What is read lies on the device; `hit` of it from the last
    step, the values of the others are fetched beside the work.
    """
    near = min(v["rank"] / (2.0 * v["width"]) + v["read"], 1.0)
    policy = replace(
        t.kv, place="host", near=near, read=v["read"], rank=int(v["rank"]),
        index_bytes=2.0 * v["head_dim"] / v["chunk"], score_launch=2.0,
        fetched=0.5 * (1.0 - v["hit"]) / max(1.0 - near, 1e-9),
    )  # fmt: skip
    return replace(t, kv=policy, placement=replace(t.placement, overlap=True))


def _sentencekv(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep a mean key a sentence on the device as index; fetch chosen sentences from the host."""
    index = 2.0 * v["head_dim"] / v["sentence"]
    return _kept(t, place="host", read=v["read"], index_bytes=index, score_launch=2.0)


def _gemfilter(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Choose tokens in the first layers, which see the whole prompt; run the model on those.

    Prefill holds the cache of the first layers only; afterwards that of the chosen tokens.
    """
    less = replace(t.reduction, prompt=v["kept"], prompt_after=v["layers"])
    return replace(_kept(t, keep=v["kept"], peak=v["layers"]), reduction=less)


def _fewer(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Drop tokens of the prompt for good, after a share of the layers (0: before the first)."""
    less = replace(t.reduction, prompt=v["kept"], prompt_after=v["layers"])
    return replace(_kept(t, keep=v["kept"]), reduction=less)


def _minference(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Compute only the score blocks that an index estimated on the fly names."""
    return replace(t, reduction=replace(t.reduction, prefill_density=v["density"]))


def _beacon(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Windows one after another, each condensed to a few entries that later ones attend to."""
    made = _kept(t, keep=1.0 / v["ratio"])
    return replace(made, batching=replace(t.batching, chunk=int(v["window"])))


def _zipvl(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Attention of prefill among important tokens only; the others are cached at fewer bits."""
    bits = v["share"] * v["high"] + (1.0 - v["share"]) * v["low"]
    stored = Storage(bits, int(v["group"]), 16, 16, unpack=_UNPACK)
    sparse = replace(t.reduction, prefill_density=v["share"] ** 2)
    return replace(_kept(t, storage=stored), reduction=sparse)


def _vattention(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Contiguous addresses, physical pages mapped when needed."""
    return _kept(t, page=int(v["page"]))


def accepted(rate: float, steps: float) -> float:
    """Tokens a pass adds when each of `steps` drafts is accepted with probability `rate`.

    1 + rate + ... + rate^steps (Leviathan et al. 2023, arXiv:2211.17192, equation 1).

    >>> round(accepted(0.9, 6), 3)
    5.217
    """
    return steps + 1.0 if rate >= 1.0 else (1.0 - rate ** (steps + 1.0)) / (1.0 - rate)


def _triforce(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Draft with the model on a retrieved part of its cache, itself helped by a tiny model.

    A drafting pass adds accepted(tiny_rate, tiny_steps) tokens, so that `steps` drafts need that
    many times fewer of them; each also takes `tiny_steps` passes of the tiny model.
    """
    each = accepted(v["tiny_rate"], v["tiny_steps"])
    spec = replace(
        t.speculation, verified=v["steps"] + 1.0, accepted=accepted(v["rate"], v["steps"]),
        draft_cache=int(v["cache"]), draft_steps=v["steps"] / each,
        draft_share=v["tiny_steps"] * v["tiny"], memory=v["tiny"],
    )  # fmt: skip
    return replace(t, speculation=spec)


_LAYERS = "share of the layers whose cache prefill holds before it drops any"
_HEAD = Parameter(128, 16, 512, "elements of a key and head")

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "h2o",
            "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
            "the cache holds recent tokens and those of high accumulated score, evicts the rest",
            "Zhang et al. 2023, arXiv:2306.14048",
            _h2o,
            ("kv.keep", "attention"),
            {"keep": Parameter(0.2, 0.01, 1, "share of the tokens that stays")},
        ),
        Technique(
            "locret",
            "Locret: Enhancing Eviction in Long-Context LLM Inference with Trained Retaining Heads",
            "prefill in chunks with a cache of fixed size; trained heads say what stays",
            "Huang et al. 2024, arXiv:2410.01805",
            _locret,
            ("kv.keep", "batching.chunk"),
            {
                "budget": Parameter(16384, 128, 1 << 20, "tokens that stay a sequence"),
                "chunk": Parameter(3072, 64, 65536, "tokens of a pass"),
            },
        ),
        Technique(
            "windowkv",
            "WindowKV: Task-Adaptive Group-Wise KV Cache Window Selection for Efficient LLM "
            "Inference",
            "windows of consecutive tokens stay, one choice for a group of layers",
            "WindowKV, title as given",
            _windowkv,
            ("kv.keep",),
            {
                "keep": Parameter(0.12, 0.01, 1, "share of the tokens that stays"),
                "peak": Parameter(0.25, 0, 1, _LAYERS + " (a group of 8 of 32)"),
            },
        ),
        Technique(
            "kvmerger",
            "Model Tells You Where to Merge: Adaptive KV Cache Merging for LLMs on Long-Context "
            "Tasks",
            "runs of similar keys are merged into one entry, their values with them",
            "Wang et al. 2024, arXiv:2407.08454",
            _kvmerger,
            ("kv.keep",),
            {
                "keep": Parameter(0.5, 0.01, 1, "share of the entries that stays"),
                "peak": Parameter(1.0, 0, 1, _LAYERS),
            },
        ),
        Technique(
            "shadowkv",
            "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference",
            "low-rank keys on the device, values on the host, few chunks of them read a step",
            "Sun et al. 2024, arXiv:2410.21465",
            _shadowkv,
            ("kv.place", "kv.read", "kv.rank", "placement.overlap"),
            {
                "rank": Parameter(160, 1, 4096, "low-rank elements of a key, all heads together"),
                "width": Parameter(1024, 64, 16384, "elements of a key, all heads together"),
                "head_dim": _HEAD,
                "chunk": Parameter(8, 1, 256, "tokens whose mean key is looked at together"),
                "read": Parameter(0.0156, 0.0001, 1, "share of the tokens that a step reads"),
                "hit": Parameter(0.6, 0, 1, "share of them that the step before read too"),
            },
        ),
        Technique(
            "sentencekv",
            "SentenceKV: Efficient LLM Inference via Sentence-Level Semantic KV Caching",
            "sentence vectors on the device, tokens on the host; relevant sentences are fetched",
            "SentenceKV, title as given",
            _sentencekv,
            ("kv.place", "kv.read"),
            {
                "sentence": Parameter(20, 1, 1000, "tokens of a sentence, about"),
                "head_dim": _HEAD,
                "read": Parameter(0.03, 0.0001, 1, "share of the tokens that a step reads"),
            },
        ),
        Technique(
            "gemfilter",
            "Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input "
            "Token Reduction",
            "early layers read the prompt and choose tokens; the model runs on those alone",
            "Shi et al. 2024, arXiv:2409.17422",
            _gemfilter,
            ("kv.keep", "reduction.prompt"),
            {
                "layers": Parameter(13 / 32, 0, 1, "share of the layers that see the whole prompt"),
                "kept": Parameter(0.01, 1e-4, 1, "share of the prompt's tokens that is chosen"),
            },
        ),
        Technique(
            "hired",
            "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution "
            "Vision-Language Models in Resource-Constrained Environments",
            "image tokens are cut to a budget before the language model",
            "HiRED, title as given",
            _fewer,
            ("kv.keep", "reduction.prompt"),
            {
                "kept": Parameter(0.21, 0.01, 1, "share of the prompt's tokens that stays, text "
                                  "included"),
                "layers": Parameter(0, 0, 1, "share of the layers that see all tokens"),
            },
        ),
        Technique(
            "dynamic-llava",
            "Dynamic-LLaVA: Efficient Multimodal Large Language Models via Dynamic Vision-language "
            "Context Sparsification",
            "image tokens are dropped after two layers, a share of the cache with them",
            "Dynamic-LLaVA, title as given",
            _fewer,
            ("kv.keep", "reduction.prompt"),
            {
                "kept": Parameter(0.25, 0.01, 1, "share of the prompt's tokens that stays, text "
                                  "included"),
                "layers": Parameter(2 / 32, 0, 1, "share of the layers that see all tokens"),
            },
        ),
        Technique(
            "minference",
            "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse "
            "Attention",
            "each head computes the score blocks of one of three patterns only",
            "Jiang et al. 2024, arXiv:2407.02490",
            _minference,
            ("reduction.prefill_density",),
            {"density": Parameter(0.05, 0.001, 1, "share of the score blocks that is computed")},
        ),
        Technique(
            "activation-beacon",
            "Soaring from 4K to 400K: Extending LLM's Context with Activation Beacon",
            "each window of the context is condensed into a few entries of the cache",
            "Zhang et al. 2024, arXiv:2401.03462",
            _beacon,
            ("kv.keep", "batching.chunk"),
            {
                "ratio": Parameter(8, 1, 256, "tokens condensed into one entry"),
                "window": Parameter(2048, 64, 65536, "tokens of a window"),
            },
        ),
        Technique(
            "zipvl",
            "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and "
            "KV Cache Compression",
            "important tokens attend to each other in prefill; the others are cached at few bits",
            "He et al. 2024, arXiv:2410.08584",
            _zipvl,
            ("kv.storage", "reduction.prefill_density"),
            {
                "share": Parameter(0.4, 0.01, 1, "share of the tokens that is important"),
                "high": Parameter(4, 1, 16, "bits of important tokens"),
                "low": Parameter(2, 1, 16, "bits of the others"),
                "group": Parameter(128, 8, 65536, "elements that share a scale and a zero point"),
            },
        ),
        Technique(
            "vattention",
            "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention",
            "the cache is contiguous to kernels; physical pages are mapped as it grows",
            "Prabhu et al. 2024, arXiv:2405.04437",
            _vattention,
            ("kv.page",),
            {
                "page": Parameter(1024, 16, 1 << 20, "tokens of a physical page: 2 MB over the "
                                  "bytes of a key, all heads of a layer (64 KB: 32)")
            },
        ),
        Technique(
            "triforce",
            "TriForce: Lossless Acceleration of Long Sequence Generation with Hierarchical "
            "Speculative Decoding",
            "a tiny model drafts for the model on a part of its cache, that for the full cache",
            "Sun et al. 2024, arXiv:2404.11912",
            _triforce,
            ("speculation",),
            {
                "cache": Parameter(4096, 64, 1 << 20, "tokens that drafting passes read"),
                "steps": Parameter(6, 1, 64, "drafts that are verified together"),
                "rate": Parameter(0.92, 0, 1, "chance that a draft is accepted, full cache"),
                "tiny": Parameter(0.01, 0, 1, "size of the tiny model over the model's"),
                "tiny_steps": Parameter(2, 1, 64, "tokens that the tiny model drafts"),
                "tiny_rate": Parameter(0.6, 0, 1, "chance that one of those is accepted"),
            },
        ),
    )
}  # fmt: skip

__all__ = ["TECHNIQUES", "accepted"]
