"""Techniques of generators: fewer steps, fewer calls, steps that share a batch, bounded caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Storage, Treatment

_OF = Parameter(50, 1, 1000, "steps before")


def _steps(t: Treatment, v: Mapping[str, float], calls: float = 1.0) -> Treatment:
    """Fewer steps of the same network; guidance is learnt by the student where `calls` is below 1.

    More steps than before is a loss, and allowed.
    """
    share = v["steps"] / v["of"]
    r = replace(t.reduction, steps=t.reduction.steps * share, calls=t.reduction.calls * calls)
    return replace(t, reduction=r)


def _instaflow(t: Treatment, v: Mapping[str, float]) -> Treatment:
    return _steps(t, v, 0.5)


def _guidance(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """2 n calls for n steps become n + `negatives`: one for the virtual residual noise, or none."""
    calls = (v["steps"] + v["negatives"]) / (2.0 * v["steps"])
    return replace(t, reduction=replace(t.reduction, calls=calls))


def _batch(t: Treatment, v: Mapping[str, float]) -> Treatment:
    return replace(t, batching=replace(t.batching, steps=v["steps"]))


def _similar(t: Treatment, v: Mapping[str, float]) -> Treatment:
    return replace(t, reduction=replace(t.reduction, pictures=1.0 - v["skip"]))


def _offload(t: Treatment, _: Mapping[str, float]) -> Treatment:
    place = replace(t.placement, device_share=0.0, unit="stage", tier="host")
    return replace(t, placement=place)


def _integer_cache(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Store integers, an fp16 scale and zero point a group, of the share of tokens that stay."""
    stored = Storage(v["bits"], int(v["group"]), 16, 16, unpack=2.0, rebuild=v["rebuild"] > 0)
    return replace(t, kv=replace(t.kv, storage=stored, keep=v["keep"]))


def _static_heads(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Mean over heads of the share that stays: `static` of them keep `window`, the others `rest`.

    Shares are of the tokens that the full cache holds.
    """
    keep = v["static"] * v["window"] + (1.0 - v["static"]) * v["rest"]
    return replace(t, kv=replace(t.kv, keep=min(keep, 1.0)))


def _scales(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Mean budget over layers: `drafters` of them keep `wide` of the tokens, refiners `thin`."""
    keep = v["drafters"] * v["wide"] + (1.0 - v["drafters"]) * v["thin"]
    return replace(t, kv=replace(t.kv, keep=keep))


def _codebook(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Store indices of `bits` a weight; a look-up costs a load, codebooks are shared by a layer."""
    return replace(t, weights=Storage(v["bits"], unpack=2.0))


def _depth(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Blocks are removed (their weights too); what stays is stored at 4 bits, scales a group."""
    stored = Storage(v["bits"], int(v["group"]), 16, unpack=2.0)
    r = replace(t.reduction, layers=v["layers"])
    return replace(t, weights=stored, reduction=r)


_SHARE = "share of the tokens"

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique(
            "instaflow",
            "InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image "
            "Generation",
            "one step of a straightened flow, guidance distilled into the network",
            "Liu et al. 2023, arXiv:2309.06380",
            _instaflow,
            ("reduction.steps", "reduction.calls"),
            {"steps": Parameter(1, 1, 50, "steps after"), "of": _OF},
        ),
        Technique(
            "few-steps",
            "Few-step samplers (learnt schedulers, linear sub-paths, rectified flows)",
            "fewer steps of the same network; guidance as before",
            "Duan et al. 2023, arXiv:2305.14677; Liu et al. 2022, arXiv:2209.03003",
            _steps,
            ("reduction.steps",),
            {"steps": Parameter(4, 1, 250, "steps after"), "of": _OF},
        ),
        Technique(
            "residual-guidance",
            "StreamDiffusion: residual classifier-free guidance",
            "the negative half of guidance is computed once for all steps, or never",
            "Kodaira et al. 2023, arXiv:2312.12491",
            _guidance,
            ("reduction.calls",),
            {
                "steps": Parameter(4, 1, 50, "steps of a picture"),
                "negatives": Parameter(1, 0, 50, "negative calls a picture"),
            },
            needs="a sampler with two calls a step",
        ),
        Technique(
            "stream-batch",
            "StreamDiffusion: stream batch",
            "steps of pictures that follow each other run as one batch of the denoiser",
            "Kodaira et al. 2023, arXiv:2312.12491",
            _batch,
            ("batching.steps",),
            {"steps": Parameter(4, 1, 50, "steps that share a batch")},
            needs="a stream of pictures; each takes as many batches as it has steps",
        ),
        Technique(
            "similarity-filter",
            "StreamDiffusion: stochastic similarity filter",
            "pictures that resemble the one before are not drawn",
            "Kodaira et al. 2023, arXiv:2312.12491",
            _similar,
            ("reduction.pictures",),
            {"skip": Parameter(0.5, 0, 0.99, "share of the pictures of a stream that is skipped")},
        ),
        Technique(
            "stage-offload",
            "Stages of a pipeline wait in host memory",
            "text encoder, denoiser and decoder come to the device when they run",
            "model offload of diffusers (documentation, memory optimisation)",
            _offload,
            ("placement",),
        ),
        Technique(
            "soft-prune-int4",
            "KV Cache Quantization for Self-Forcing Video Generation: integer cache with pruning",
            "keys and values at 4 bits, of the tokens that stay; rebuilt in 16 bits a layer",
            "the ledger's kv-quant-self-forcing",
            _integer_cache,
            ("kv.storage", "kv.keep"),
            {
                "bits": Parameter(4, 1, 8, "bits an element"),
                "group": Parameter(64, 8, 256, "elements that share a scale and a zero point"),
                # 0.65: what the published 5.45 times smaller cache leaves at groups of 64
                "keep": Parameter(0.65, 0.05, 1, f"{_SHARE} that stays"),
                "rebuild": Parameter(1, 0, 1, "1: a 16-bit copy of a layer is built in memory"),
            },
        ),
        Technique(
            "forcing-kv",
            "Forcing-KV: Hybrid KV Cache Compression for Efficient Autoregressive Video Diffusion",
            "static heads keep a window, the others drop segments that resemble each other",
            "the ledger's forcing-kv",
            _static_heads,
            ("kv.keep",),
            {
                "static": Parameter(0.5, 0, 1, "share of the heads that are static"),
                "window": Parameter(0.5, 0.02, 1, f"{_SHARE} that static heads keep"),
                "rest": Parameter(0.9, 0.02, 1, f"{_SHARE} that the others keep"),
            },
            needs="a clip made chunk by chunk over kept keys and values",
        ),
        Technique(
            "scalekv",
            "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
            "some layers keep a wide budget of tokens, the others a thin one",
            "the ledger's scalekv",
            _scales,
            ("kv.keep",),
            {
                "drafters": Parameter(0.25, 0, 1, "share of the layers with the wide budget"),
                "wide": Parameter(0.25, 0.01, 1, f"{_SHARE} that they keep"),
                "thin": Parameter(0.05, 0.01, 1, f"{_SHARE} that the others keep"),
            },
        ),
        Technique(
            "vq4dit",
            "VQ4DiT: Efficient Post-Training Vector Quantization for Diffusion Transformers",
            "weights are indices of shared codebooks, looked up where they are used",
            "Deng et al. 2024, arXiv:2408.17131",
            _codebook,
            ("weights",),
            {"bits": Parameter(2, 1, 4, "bits a weight")},
        ),
        Technique(
            "hierarchicalprune",
            "HierarchicalPrune: Position-Aware Compression for Large-Scale Diffusion Models",
            "later blocks are removed, the others stored as 4-bit integers",
            "the ledger's hierarchicalprune",
            _depth,
            ("weights", "reduction.layers"),
            {
                "layers": Parameter(0.75, 0.1, 1, "share of the blocks that stays"),
                "bits": Parameter(4, 2, 8, "bits a weight"),
                "group": Parameter(64, 16, 256, "weights that share a scale"),
            },
        ),
    )
}
