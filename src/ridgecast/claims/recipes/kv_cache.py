"""Policies of the cache: what stays, what is read, where it lives, on whole models.

Both sides of a pair run on the same engine profile and model; only the policy differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...models import Network, get
from ...scenario import (
    Host,
    Points,
    Scenario,
    Traffic,
    engine,
    largest_batch,
    memory_at,
    solve_points,
)
from ...scenario.memory import kv_bytes
from ...scenario.solve import phases_of_all, solve_all
from ...techniques import Batching, KvPolicy, Placement, Treatment
from ...techniques import get as technique
from ..verdict import Finding, Found, NotModelled, Property
from .kit import reached, seconds, span

__all__ = ["gemfilter", "h2o", "kvmerger", "locret", "sentencekv", "shadowkv", "windowkv"]

_STEADY = float("inf")  # rounds of a client: the steady state, without the first prompts together


def _case(model: str | Network, on: str, isl: int, osl: int, use: str | Treatment = "",
          **more: Any) -> Scenario:  # fmt: skip
    traffic = Traffic(isl, osl, 1, rounds=_STEADY)
    return Scenario(model, on, traffic=traffic, techniques=use, **more)


def _solved(s: Scenario, batch: Any = 1) -> dict[str, np.ndarray]:
    return solve_points(s, Points.of(batch, s.traffic.isl, s.traffic.osl))


def _steps(cases: Sequence[tuple[Scenario, int]]) -> list[float]:
    """Seconds of one decode pass of each scenario at a batch, all in one table."""
    made = [(s.made(), s, Points.of(n, s.traffic.isl, s.traffic.osl)) for s, n in cases]
    return [float(phases.decode["time"][0]) for phases, _ in phases_of_all(made)]


def _step(s: Scenario, batch: int = 1) -> float:
    """Seconds of one decode pass."""
    return _steps([(s, batch)])[0]


def _cache(s: Scenario, length: int) -> float:
    """Bytes of cache of one sequence."""
    made = s.made()
    return float(kv_bytes(made.network, made.formats, made.layout, made.treatment, length))


# Eviction beside offloading -----------------------------------------------------------------

_KEEP = 0.2  # as published
# Google Cloud's T4 instance of the source: 208 GB of memory; 2 sockets of 6 channels DDR4-2666
_T4_HOST = Host(memory_bandwidth=2 * 128e9, memory_capacity=208e9)
_STATIC = Batching(mode="static")
# Prompts are run 16K tokens at a time, so that their activations fit beside the cache
_IN_PARTS = Batching(mode="static", chunk=16384)
_OFFLOADED = Treatment(placement=Placement(device_share=0.0, overlap=True),
                       kv=KvPolicy(place="host", page=0), batching=_IN_PARTS)  # fmt: skip
_NAIVE = {  # weights streamed from the host every pass, the cache stays on the device
    "DeepSpeed ZeRO-Inference": Treatment(
        placement=Placement(device_share=0.0, overlap=True), kv=KvPolicy(page=0), batching=_STATIC
    ),
    "Hugging Face Accelerate": Treatment(
        placement=Placement(device_share=0.0), kv=KvPolicy(page=0), batching=_STATIC
    ),
}


def _largest(s: Scenario) -> int:
    """Largest batch that device and host hold."""
    made, best = s.made(), 0
    room = made.hardware.memory.capacity * made.engine.memory_share
    for batch in np.unique(np.round(np.geomspace(1, 2048, 45))):
        memory = memory_at(made, s, int(batch))
        if memory.total > room or memory.host > s.host.memory_capacity:
            break
        best = int(batch)
    return best


_RESIDENT = Treatment(batching=_STATIC)


def _rates(model: str, lengths: tuple[int, int]) -> dict[str, float]:
    """Output tokens/s on a T4 with its host at the largest batch, by system; 0 where none fits."""
    kept = technique("h2o")
    systems = {"FlexGen": (_OFFLOADED, _RESIDENT), **{k: (v,) for k, v in _NAIVE.items()}}
    systems["H2O"] = tuple(kept.apply(t, keep=_KEEP) for t in systems["FlexGen"])
    owners, cases = [], []
    for name, choices in systems.items():
        for use in choices:
            s = _case(model, "t4", *lengths, use, engine="hf", host=_T4_HOST, dtype="fp16")
            if batch := _largest(s):
                owners.append(name)
                cases.append((s.made(), s, Points.of(batch, *lengths)))
    best = dict.fromkeys(systems, 0.0)
    for name, found in zip(owners, solve_all(cases), strict=True):
        best[name] = max(best[name], float(found["output_tokens_per_s"][0]))
    return best


def h2o() -> list[Found]:
    """OPT on a T4 and its host's memory: batch by what is kept; and latency on an A100."""
    published = {"DeepSpeed ZeRO-Inference": 29.0, "Hugging Face Accelerate": 29.0, "FlexGen": 3.0}
    gains: dict[str, dict[str, float]] = {name: {} for name in published}
    for model in ("opt-6.7b", "opt-30b"):
        for lengths in ((512, 32), (512, 512), (512, 1024)):
            rates = _rates(model, lengths)
            for name in published:
                place = f"{model}, {lengths[0]} tokens in and {lengths[1]} out"
                gains[name][place] = rates["H2O"] / rates[name]
    where = "OPT-6.7B and 30B on a T4 with 208 GB of host memory, 512 in, 32 to 1024 out"
    why = "the naive systems stream all weights for the few sequences whose cache fits the device; "
    why += "they run at the speed of the link here, and were measured below it"
    faster, places = _same_batch()
    return [
        *(Finding(i, span(list(gains[name].values())), range=where, note=why if value > 3 else "",
                  at=reached(list(gains[name].values()), value, gains[name]))
          for i, (name, value) in enumerate(published.items())),
        Finding(3, span(faster), at=reached(faster, 1.9, places),
                range="end to end on an A100, 5 cases of OPT at one batch"),
    ]  # fmt: skip


def _same_batch() -> tuple[list[float], list[str]]:
    """Latency of the full cache over that of a fifth of it, same batch, on an A100."""
    ratios, places = [], []
    for model, isl, osl, batch in (("opt-6.7b", 2048, 2048, 24), ("opt-6.7b", 512, 512, 16),
                                   ("opt-13b", 5000, 5000, 4), ("opt-13b", 2048, 2048, 8),
                                   ("opt-30b", 7000, 1024, 1)):  # fmt: skip
        full = Treatment(batching=_STATIC)
        pair = (full, technique("h2o").apply(full, keep=_KEEP))
        one, two = (
            float(_solved(_case(model, "a100_sxm", isl, osl, use, engine="hf"), batch)["e2e"][0])
            for use in pair
        )
        ratios.append(one / two)
        places.append(f"{model}, {isl} in, {osl} out, batch {batch}")
    return ratios, places


# A budget of tokens -------------------------------------------------------------------------


def _phi_3_128k() -> Network:
    """Phi-3-mini for 128K tokens: the same layers without a window (its config: 262144)."""
    net: Any = get("phi-3-mini")
    blocks = tuple(replace(b, mixer=replace(b.mixer, window=0)) for b in net.blocks)
    return replace(net, name="phi-3-mini-128k", blocks=blocks, max_positions=131072)


def locret() -> list[Found]:
    """Memory of 128K tokens on one card of 24 GB, with a fixed budget and without."""
    tokens, on = 131072, "rtx_4090"
    found: list[Found] = []
    for place, (model, budget) in enumerate(((_phi_3_128k(), 6000), ("llama-3.1-8b", 16384))):
        full = _case(model, on, tokens, 128)
        ours = _case(model, on, tokens, 128, f"locret:budget={budget}")
        ratio = _cache(full, tokens) / _cache(ours, tokens)
        told = f"{budget} of 131072 tokens stay: {ratio:.3g} times less"
        found.append(NotModelled(place, f"an input: the budget. {told}"))
    room = 24e9
    full, ours = (
        _case("llama-3.1-8b", on, tokens, 128, use) for use in ("", "locret:budget=16384")
    )
    need = [memory_at(s.made(), s, 1).total for s in (full, ours)]
    found.append(
        Finding(2, 131072.0, tolerance=0.05,
                at=f"{need[1] / 1e9:.3g} GB with it, {need[0] / 1e9:.3g} GB without: 24 GB hold "
                "the first only")
        if need[1] <= room < need[0] else NotModelled(2, f"needs {need[1] / 1e9:.3g} GB")
    )  # fmt: skip
    grows = [
        memory_at(s.made(), s, 1).total
        for s in (_case("llama-3.1-8b", on, n, 128, "locret") for n in (32768, 131072, 524288))
    ]
    return [
        *found,
        Property("memory does not grow with the context", max(grows) / min(grows) < 1.01,
                 f"{grows[0] / 1e9:.3g} GB at 32K, {grows[-1] / 1e9:.3g} GB at 512K tokens"),
    ]  # fmt: skip


def _shares(keeps: Sequence[float], name: str) -> tuple[list[float], list[float]]:
    """Bytes of cache kept, and of a decode step's time beyond weights, as shares of the full."""
    length, batch = 16384, 16
    full = _case("llama-2-7b", "a100_sxm", length, 128)
    empty = _step(_case("llama-2-7b", "a100_sxm", 16, 128), batch)
    beyond = _step(full, batch) - empty
    held, read = [], []
    for keep in keeps:
        s = _case("llama-2-7b", "a100_sxm", length, 128, f"{name}:keep={keep}")
        held.append(_cache(s, length) / _cache(full, length))
        read.append((_step(s, batch) - empty) / beyond)
    return held, read


def windowkv() -> list[Found]:
    """Keep 12 % of the tokens; the choice is paid for once a group of layers."""
    (held,), (read,) = _shares([0.12], "windowkv")
    # the last 64 queries against all keys say which windows stay: in each layer, or one of 8
    one = float(seconds("attention", "a100_sxm", q_len=64, kv_len=16384, q_heads=32, head_dim=128))
    dense = _solved(_case("llama-2-7b", "a100_sxm", 16384, 1))["ttft"][0]
    each, group = 32 * one / float(dense), 4 * one / float(dense)
    return [
        NotModelled(0, "an input: the share that stays"),
        Property("cache bytes fall to the kept share", abs(held - 0.12) < 0.002,
                 f"{100 * held:.3g} % of them, {1 / held:.3g} times fewer"),
        Property("what a decode step reads of the cache falls with it", 0.10 < read < 0.20,
                 f"{100 * read:.3g} % of the time beyond the weights; Llama-2-7B, 16K, batch 16"),
        Property("choosing costs a group of 8 layers an eighth", abs(each / group - 8.0) < 1e-6,
                 f"{100 * each:.2g} % of prefill for every layer, {100 * group:.2g} % by group"),
    ]  # fmt: skip


def kvmerger() -> list[Found]:
    """Keep half, and 35 %, of the entries; merging compares neighbours once after prefill."""
    held, read = _shares([0.5, 0.35], "kvmerger")
    # the cache is read once to compare neighbours, once to add up values; half of it is written
    s = _case("llama-2-7b", "a100_sxm", 16384, 1)
    moved = 2.5 * _cache(s, 16384) / s.made().hardware.memory.bandwidth
    share = moved / float(_solved(s)["ttft"][0])
    same = all(abs(a - b) < 0.01 for a, b in zip(held, (0.5, 0.35), strict=True))
    near = all(abs(a - b) < 0.1 for a, b in zip(read, (0.5, 0.35), strict=True))
    return [
        NotModelled(0, "an input: the share that stays"),
        NotModelled(1, "an input: the share that stays"),
        Property("cache bytes scale with the share", same, f"{held[0]:.3g} and {held[1]:.3g}"),
        Property("decode reads scale with the share", near,
                 f"{read[0]:.3g} and {read[1]:.3g} of the time beyond the weights"),
        Property("merging is little beside prefill", share < 0.2, f"{100 * share:.2g} % of it"),
    ]  # fmt: skip


# Selection from another place ---------------------------------------------------------------

_LONG = {  # KV elements of a token and layer, one of the two tensors: models of 7 to 9B
    "llama-3.1-8b": 1024, "yi-6b": 512, "glm-4-9b-0414": 256,
}  # fmt: skip


def shadowkv() -> list[Found]:
    """Batch and decode rate at 60K to 244K tokens on an A100, full cache against shadows."""
    batches, rates, places, where, beyond = [], [], [], [], True
    stack = replace(engine("hf"), chunk=8192)  # long prompts are read in parts
    hits = (0.0, 0.3, 0.6)
    for model, width in _LONG.items():
        use = f"shadowkv:rank={min(160, width // 2)}:width={width}"
        for length in (61440, 122880, 249856):
            full = _case(model, "a100_sxm", length, 128, engine=stack)
            ours = [replace(full, techniques=f"{use}:hit={h}") for h in hits]
            one, two = (largest_batch(s.made(), s) for s in (full, ours[0]))
            base, endless, *times = _steps([(full, one), (full, 1024), *((s, two) for s in ours)])
            for hit, time in zip(hits, times, strict=True):
                rates.append(two / time * base / one)
                where.append(f"{model}, {length // 1024}K tokens, {100 * hit:.0f} % read before")
                beyond &= two / time > 1024 / endless
            batches.append(two / one)
            places.append(f"{model}, {length // 1024}K tokens, batch {one} to {two}")
    return [
        Finding(0, span(batches), at=reached(batches, 6.0, places),
                range="Llama-3.1-8B, Yi-6B and GLM-4-9B, 60K to 244K tokens, one A100"),
        Finding(1, span(rates), at=reached(rates, 3.04, where),
                range="decode at the largest batch; rank 160, 1.56 % of the tokens read, none to "
                "60 % of them by the step before",
                note=f"at least {min(rates[2::3]):.3g} where 60 % are read again, which is what "
                "the technique assumes: choosing and rebuilding run at full speed here"),
        Property("faster than a full cache with any memory", beyond,
                 "against batch 1024 of the full cache"),
    ]  # fmt: skip


def sentencekv() -> list[Found]:
    """Bytes on the device, bytes over the link, and latency by context length."""
    steps, plain, device, link = [], [], [], []
    lengths = (16384, 65536, 131072)
    for n in lengths:
        read = 1024.0 / n  # a fixed number of tokens is fetched
        full = _case("llama-3.1-8b", "a100_sxm", n, 128)
        ours = replace(full, techniques=f"sentencekv:read={read}")
        steps.append(_step(ours))
        plain.append(_step(full))
        device.append(memory_at(ours.made(), ours, 1).kv / _cache(full, n))
        link.append(_cache(full, n) * read)
    return [
        Property("the device holds the index only", max(device) < 0.05,
                 f"{100 * max(device):.2g} % of the cache's bytes: one key for 20 tokens"),
        Property("bytes over PCIe a token do not depend on the context",
                 max(link) / min(link) < 1.01, f"{link[0] / 1e6:.3g} MB for 1024 tokens"),
        Property("latency stays flat", steps[-1] / steps[0] < 1.1,
                 f"{1e3 * steps[0]:.3g} ms at 16K, {1e3 * steps[-1]:.3g} ms at 128K tokens"),
        Property("and fetching is not free", steps[0] > plain[0],
                 f"{1e3 * plain[0]:.3g} ms with the whole cache on the device at 16K, "
                 f"{1e3 * plain[-1]:.3g} ms at 128K"),
    ]  # fmt: skip


# Fewer tokens after early layers ------------------------------------------------------------


def gemfilter() -> list[Found]:
    """Prefill, and peak memory, of 64K to 128K tokens where 13 of 32 layers see all of them."""
    faster, less, places = [], [], []
    for length in (65536, 110592, 131072):
        for layers in (13, 14):
            full = _case("llama-3.1-8b", "h100_sxm", length, 64)
            kept = f"gemfilter:kept={1024 / length}:layers={layers / 32}"
            ours = replace(full, techniques=kept)
            one, two = (float(_solved(s)["ttft"][0]) for s in (full, ours))
            faster.append(one / two)
            held = [memory_at(s.made(), s, 1).total for s in (full, ours)]
            less.append(100.0 * (1.0 - held[1] / held[0]))
            places.append(f"{length // 1024}K tokens, {layers} of 32 layers")
    where = "Llama-3.1-8B, 64K to 128K tokens, 13 or 14 of 32 layers see all, 1024 tokens stay"
    return [
        Finding(0, span(faster), at=reached(faster, 2.4, places), range=where + "; first token"),
        Finding(1, span(less), at=reached(less, 30.0, places), range=where,
                note="against the full cache, prompts in chunks: 13/32 of it is held while the "
                "prompt is read; where activations of the whole prompt are held too, it is less"),
        NotModelled(2, "an input: how few tokens stay, from the title"),
    ]  # fmt: skip
