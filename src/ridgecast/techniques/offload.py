"""Techniques that keep weights, experts or cache away from the device, or work on them there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Placement, Treatment

_KIB = 1024.0


def _instinfer(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep the cache in storage that computes; query and output cross the link."""
    cache = replace(t.kv, place="storage", attend="storage", read=v["read"], near=0.0)
    return replace(t, kv=cache)


def _kv_offload(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Keep the cache in host memory (or storage); it comes to the device for every step."""
    tier = "storage" if v["nvme"] else "host"
    cache = replace(t.kv, place=tier, attend="device", near=v["near"], overlap=True)
    return replace(t, kv=cache)


def _flash(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Half of the model stays; of the rest, rows that a predictor picks and no recent token used.

    A bundle is the up-projection's column with the down-projection's row: one read of both.
    """
    place = Placement(device_share=v["resident"], tier="storage", touched=v["active"],
                      hit=v["reuse"], read_bytes=v["read_kib"] * _KIB)  # fmt: skip
    return replace(t, placement=place)


def _apex(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Part of the sequences attend on the host, beside the device's products for all of them."""
    cache = replace(t.kv, place="host", attend="host", near=v["device_share"], overlap=True)
    return replace(t, kv=cache)


def _moe_lens(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Experts stream over the link, the cache stays in host memory and the host attends to it."""
    place = Placement(device_share=v["device_share"], only="expert", overlap=True)
    cache = replace(t.kv, place="host", attend="host", near=0.0, overlap=True)
    return replace(t, placement=place, kv=cache)


def _expert_offload(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Experts that tokens pick are fetched when the router has spoken: nothing can hide it."""
    place = Placement(device_share=v["device_share"], only="expert", hit=v["hit"])
    return replace(t, placement=place)


def _expert_on_host(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Compute on the host the experts that do not live on the device."""
    place = Placement(device_share=v["device_share"], only="expert", compute="host", overlap=True)
    return replace(t, placement=place)


def _hybrimoe(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Missing experts are shared out between host and link so that both end together.

    The cache is kept by scores: a share of what it misses otherwise is found on the device.
    """
    place = Placement(device_share=v["device_share"], only="expert", compute="both",
                      hit=v["hit"], overlap=True)  # fmt: skip
    return replace(t, placement=place)


def _expertflow(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Routes are predicted before the layer: right guesses come beside compute, others do not.

    What is guessed right and in time counts as found on the device.
    """
    place = Placement(device_share=v["device_share"], only="expert", hit=v["hit"])
    return replace(t, placement=place)


def _exflow(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Every device has every token's context: results need not return before the next layer.

    Experts that follow each other share a device, so that a share of the tokens stays.
    """
    return replace(t, exchanges=t.exchanges * 0.5, exchange_bytes=1.0 - v["stay"])


def _lsh_moe(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Only the centroids of clusters of like tokens travel to the experts."""
    return replace(t, exchange_bytes=v["kept"])


_SHARE = Parameter(0.25, 0.0, 1.0, "share of the experts that lives on the device")

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique("instinfer", "InstInfer", "decode attention inside computational storage",
                  "Pan et al. 2024, arXiv:2409.04992", _instinfer,
                  ("kv.place", "kv.attend", "kv.read"),
                  {"read": Parameter(0.125, 0.01, 1.0, "share of the cache that a step reads "
                                     "(1: dense)")}),
        Technique("kv-offload", "Cache offload", "the cache in host memory or on NVMe, fetched",
                  "Sheng et al. 2023 (FlexGen), arXiv:2303.06865", _kv_offload,
                  ("kv.place", "kv.attend"),
                  {"nvme": Parameter(0, 0, 1, "1: on NVMe, 0: in host memory"),
                   "near": Parameter(0.0, 0.0, 1.0, "share that stays on the device")}),
        Technique("llm-in-a-flash", "LLM in a flash", "weights in flash, picked rows read in "
                  "bundles", "Alizadeh et al. 2023, arXiv:2312.11514", _flash,
                  ("placement",),
                  {"resident": Parameter(0.5, 0.0, 1.0, "share of the weights in fast memory"),
                   "active": Parameter(0.105, 0.001, 1.0, "share of the other rows that the "
                                       "predictor picks for a token"),
                   "reuse": Parameter(0.78, 0.0, 0.99, "share of these that the window of recent "
                                      "tokens holds already"),
                   "read_kib": Parameter(16, 1, 4096, "KiB of one read: a row and a column")},
                  needs="a model whose feed-forward part is sparse (ReLU)"),
        Technique("apex-cpu-gpu", "APEX", "attention of part of the batch on the host, beside the "
                  "device", "Fan et al. 2025, arXiv:2506.03296", _apex,
                  ("kv.place", "kv.attend"),
                  {"device_share": Parameter(0.5, 0.0, 1.0, "share of the cache on the device")}),
        Technique("moe-lens", "MoE-Lens", "experts over the link, attention on the host",
                  "Yuan et al. 2025, arXiv:2504.09345", _moe_lens,
                  ("placement", "kv.place", "kv.attend"),
                  {"device_share": replace(_SHARE, default=0.0)}),
        Technique("expert-offload", "Expert offload", "experts fetched when the router has spoken",
                  "Eliseev and Mazur 2023, arXiv:2312.17238", _expert_offload, ("placement",),
                  {"device_share": _SHARE,
                   "hit": Parameter(0.0, 0.0, 1.0, "share of the others found on the device")}),
        Technique("experts-on-host", "Experts on the host", "experts that are not on the device "
                  "are computed on the host", "kTransformers (KVCache.AI 2024)", _expert_on_host,
                  ("placement",), {"device_share": _SHARE}),
        Technique("hybrimoe", "HybriMoE", "missing experts shared between host and link",
                  "Zhong et al. 2025, arXiv:2504.05897", _hybrimoe, ("placement",),
                  {"device_share": _SHARE,
                   "hit": Parameter(0.1, 0.0, 1.0, "share of the misses that the scored cache "
                                    "saves")}),
        Technique("expertflow", "ExpertFlow", "predicted experts fetched before their layer",
                  "He et al. 2024, arXiv:2410.17954", _expertflow, ("placement",),
                  {"device_share": replace(_SHARE, default=0.0),
                   "hit": Parameter(0.9, 0.0, 1.0, "share of the experts predicted in time")}),
        Technique("exflow", "ExFlow", "one exchange a layer, experts placed by affinity",
                  "Yao et al. 2024, arXiv:2401.08383", _exflow, ("exchange",),
                  {"stay": Parameter(0.3, 0.0, 0.9, "share of the tokens that stay on their device "
                                     "by affinity")},
                  needs="experts spread over devices (ep > 1)"),
        Technique("lsh-moe", "LSH-MoE", "centroids travel to the experts", "Nie et al. 2024, "
                  "arXiv:2411.08446", _lsh_moe, ("exchange",),
                  {"kept": Parameter(0.2, 0.01, 1.0, "centroids, as a share of the tokens")},
                  needs="experts spread over devices (ep > 1)"),
    )
}  # fmt: skip
