"""Techniques of batching: what runs together, in which chunks, with what it shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Treatment


def _sarathi(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Prompts run in chunks that ride on decode passes."""
    return replace(t, batching=replace(t.batching, chunk=int(v["chunk"])))


def _batchllm(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Compute a common prefix once, keep it once, read it once a pass for all who share it."""
    return replace(
        t,
        kv=replace(t.kv, shared=v["prefix"]),
        batching=replace(t.batching, prefix_groups=True),
    )


def _nexus(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Prefill gets a share of the units, decode the others with all of the bandwidth."""
    return replace(t, batching=replace(t.batching, overlap=v["share"]))


def _nanoflow(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Parts of a batch run side by side; all but the busiest resource's time hides."""
    return replace(
        t,
        batching=replace(t.batching, parts=int(v["parts"]), unit_overlap=v["overlap"]),
        comm_overlap=v["overlap"],
    )


def _flexllm(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Tokens of fine-tuning ride on decode passes."""
    return replace(t, batching=replace(t.batching, ride=v["tokens"]))


def _s_lora(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """One batch over all adapters; those of its sequences share the pool with the cache."""
    return replace(t, adapters=int(v["adapters"]), adapter_rank=int(v["rank"]))


def _streamed(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """All weights stay away from the device and come layer by layer, beside the layer before."""
    tier = "storage" if v["nvme"] else "host"
    place = replace(t.placement, device_share=0.0, tier=tier, overlap=True, compute="device")
    return replace(t, placement=place)


def _window(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep a window of layers on the device; the next ones come while it runs, old ones go."""
    place = replace(t.placement, device_share=v["share"], tier="host", overlap=True)
    return replace(t, placement=place)


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
        Technique(
            "batchllm",
            "BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing",
            "requests with a common prefix run together: it is computed, kept and read once",
            "Zheng et al. 2024, arXiv:2412.03594",
            _batchllm,
            ("kv.shared", "batching.prefix_groups"),
            {"prefix": Parameter(0.5, 0.0, 0.99, "share of a prompt that is common")},
            "needs requests that are known beforehand and share prefixes",
        ),
        Technique(
            "nexus-intra-gpu-pd",
            "Nexus: Proactive Intra-GPU Disaggregation of Prefill and Decode in LLM Serving",
            "prefill and decode at once on parts of one device's units",
            "Shi et al. 2025, arXiv:2507.06608",
            _nexus,
            ("batching.overlap", "batching.chunk"),
            {"share": Parameter(0.6, 0.05, 0.95, "share of the units that prefill runs on")},
            "needs decodes that wait for memory, not for units",
        ),
        Technique(
            "nanoflow",
            "NanoFlow: Towards Optimal Large Language Model Serving Throughput",
            "nano-batches: products, attention and collectives of different ones at once",
            "Zhu et al. 2024, arXiv:2408.12757",
            _nanoflow,
            ("batching.parts", "batching.unit_overlap", "comm_overlap"),
            {
                "parts": Parameter(2, 1, 8, "nano-batches of a pass; each reads the weights"),
                "overlap": Parameter(0.5, 0.0, 1.0, "share of what can hide that does"),
            },
        ),
        Technique(
            "flexllm",
            "FlexLLM: Co-Serving Large Language Model Inference and Parameter-Efficient Finetuning",
            "tokens of fine-tuning fill the passes of decode",
            "Miao et al. 2024, arXiv:2402.18789",
            _flexllm,
            ("batching.ride",),
            {"tokens": Parameter(256, 1, 65536, "fine-tuning tokens that join each pass")},
        ),
        Technique(
            "s-lora",
            "S-LoRA: Serving Thousands of Concurrent LoRA Adapters",
            "one batch for all adapters, which are paged beside the cache",
            "Sheng et al. 2023, arXiv:2311.03285",
            _s_lora,
            ("adapters",),
            {
                "adapters": Parameter(32, 1, 100000, "adapters that are on the device at once"),
                "rank": Parameter(16, 1, 512, "rank of an adapter"),
            },
        ),
        Technique(
            "deepspeed-inference",
            "DeepSpeed Inference: Efficient Inference of Transformer Models at Unprecedented Scale",
            "weights stream from host memory or NVMe, a layer ahead of its use",
            "Aminabadi et al. 2022, arXiv:2207.00032",
            _streamed,
            ("placement",),
            {"nvme": Parameter(0, 0, 1, "0: weights in host memory, 1: on NVMe")},
        ),
        Technique(
            "superpipeline",
            "Superpipeline: A Universal Approach for Reducing GPU Memory Usage in Large Models",
            "a window of layers lives on the device, the next ones are fetched beside it",
            "Abbasi and Lim 2024, arXiv:2410.08791",
            _window,
            ("placement",),
            {"share": Parameter(0.5, 0.05, 1.0, "share of the layers on the device")},
        ),
    )
}
