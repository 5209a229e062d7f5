"""Models with weights of few bits, sparse or factorised, in a serving engine: rates and batches.

Kernel against kernel is in `quantisation`, sizes and eager engines are in `low_bits`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...hardware import resolve
from ...scenario import Scenario, memory_at
from ...scenario.engine import engine
from ...scenario.rows import gemm_work as stored_work
from ...techniques import Storage
from ..verdict import Finding, Found, NotModelled, Property
from .kit import F64, reached, span, time_of
from .pairs import best, bytes_of_weights, case, most, step, tokens_per_s

__all__ = [
    "bf16_or_death",
    "end_to_end_comet",
    "end_to_end_fast_2bit",
    "end_to_end_flash_llm",
    "end_to_end_marlin",
    "finequant",
    "minima",
    "qserve",
    "smoothquant_plus",
]

# Serving with weights of few bits -----------------------------------------------------------


def end_to_end_marlin() -> Finding:
    """Gain of W4A16 in a serving engine by batch."""
    gains, places = [], []
    batch = np.array([1, 4, 16, 32, 64, 128], float)
    for model, on, n in (("llama-2-7b", "a10", 1), ("llama-2-13b", "rtx_a6000", 1),
                         ("yi-34b", "a100_sxm", 1), ("llama-2-70b", "rtx_a6000", 4)):  # fmt: skip
        plain = case(model, on, n, lengths=(64, 64))
        gains += list(step(plain, batch) / step(replace(plain, techniques="marlin"), batch))
        places += [f"{model} on {n} {on}, batch {b:.0f}" for b in batch]
    return Finding(3, span(gains), at=reached(gains, 2.8, places),
                   range="batch 1 to 128, 7B to 70B, A10, A6000, A100")  # fmt: skip


def finequant() -> list[Found]:
    """OPT-175B at 4 bits and in 16, same devices: one stream, and each side's largest batch."""
    gains, places = [], []
    for n in (6, 8):
        for lengths in ((128, 128), (1024, 1024)):
            plain = case("opt-175b", "a100_sxm", n, lengths=lengths)
            coded = replace(plain, techniques="finequant")
            gains += [step(plain) / step(coded), best(coded)[0] / best(plain)[0]]
            places += [f"batch 1, {n} devices, {lengths[0]} + {lengths[1]} tokens",
                       f"largest batches, {n} devices, {lengths[0]} + {lengths[1]}"]  # fmt: skip
    return [
        Finding(0, span(gains), at=reached(gains, 3.65, places),
                range="6 and 8 A100, 128 + 128 and 1024 + 1024 tokens, batch 1 and the largest"),
    ]  # fmt: skip


def smoothquant_plus() -> list[Found]:
    """Code Llama 34B: 4 bits on one A100-40GB against 16 bits on two."""
    gains, places, shares, batches = [], [], [], []
    steps = np.array([1, 8, 16, 32], float)
    for lengths in ((128, 128), (512, 512), (1024, 512), (1024, 1024)):
        plain = case("codellama-34b", "a100_sxm_40gb", 2, lengths=lengths)
        coded = case("codellama-34b", "a100_sxm_40gb", use="smoothquant-plus", lengths=lengths)
        gains.append(best(coded)[0] / best(plain)[0])
        places.append(f"{lengths[0]} + {lengths[1]} tokens")
        shares += list(100.0 * step(coded, steps) / step(plain, steps))
        batches += [f"batch {b:.0f}, {places[-1]}" for b in steps]
    one = case("codellama-34b", "a100_sxm_40gb")
    saved = 1.0 - bytes_of_weights(replace(one, techniques="smoothquant-plus")) / bytes_of_weights(
        one
    )
    return [
        Finding("weight_memory_reduction", 100.0 * saved, at="4 bits, groups of 128"),
        Finding("throughput_gain", span(gains), at=f"{reached(gains, 4.0, places)}; "
                f"{reached(gains, 1.9, places)}", range="each side's largest batch, 128 + 128 to "
                "1024 + 1024 tokens"),
        Finding("latency_per_token_share", span(shares), at=reached(shares, 68.0, batches),
                range="batch 1 to 32, same lengths"),
    ]  # fmt: skip


_RIVALS = ({}, {"techniques": "gptq:group=128:unpack=2"}, {"dtype": "int8", "kv_dtype": "int8"})
"""What the other engine is given: 16 bits, W4A16, W8A8 with an 8-bit cache."""


def _qserve(model: str, on: str) -> tuple[list[float], float]:
    """Gains over the best of the rivals, and the best rate with it, by operations to unpack.

    0.97 of the memory may be used, on both sides: 72B at 4 bits is 42 GB.
    """
    full = replace(engine("trtllm"), memory_share=0.97)
    plain = Scenario(model, on, engine=full, traffic=case(model, on, lengths=(1024, 512)).traffic)
    rival = max(best(replace(plain, **change))[0] for change in _RIVALS)
    mine = [best(replace(plain, techniques=f"qserve:unpack={n}"))[0] for n in (0.5, 1, 2)]
    return [rate / rival if rival else np.inf for rate in mine], max(mine)


def qserve() -> list[Found]:
    """W4A8KV4 at the largest batch that fits against the best of three plans."""
    small = {on: _qserve("llama-3-8b", on) for on in ("a100_sxm", "l40s")}
    large = _qserve("qwen1.5-72b", "a100_sxm")
    rival = replace(case("llama-3-8b", "a100_sxm", lengths=(1024, 512)), engine="trtllm",
                    dtype="int8", kv_dtype="int8")  # fmt: skip
    cross = small["l40s"][1] / best(rival)[0]
    where = "1024 + 512 tokens, largest batch; 0.5 to 2 operations to widen a weight"
    shares = _dequantising()
    return [
        NotModelled("dequant_overhead_share", "measured of kernels whose conversion is not spelled "
                    "out; with 4 to 16 lane operations a weight, units in turn, physics gives "
                    f"{min(shares):.2g} to {max(shares):.2g} % at batch 1 to 256"),
        Finding(1, span(small["a100_sxm"][0]), at="against W8A8", range=where),
        Finding(2, span(small["l40s"][0]), at="against W8A8", range=where),
        Finding(3, span(large[0]), at="against W4A16: 16 bits do not fit, 8 bits leave three "
                "sequences", range=where, tolerance=0.3,
                note="the gain is that of the batch that fits: it is as uncertain as what an "
                "engine keeps for itself"),
        NotModelled(4, "no rival fits 48 GB with a cache: 72B takes 42 GB at 4 bits, the embedding "
                    "in 16"),
        Finding("throughput_ratio_min", cross, at="Llama-3-8B: L40S with W4A8KV4 over A100 with "
                "W8A8", note="the A100's 8-bit products and cache gain more here than the "
                "published baseline did with them"),
        NotModelled("serving_cost_reduction", "follows from the ratio above and the prices of two "
                    "devices, which the source does not state"),
    ]  # fmt: skip


def _dequantising() -> list[float]:
    """Share [%] of a product's time that conversion on the lanes takes, units in turn."""
    out = []
    for on in ("a100_sxm", "l40s"):
        hw = resolve(on)
        lanes = hw.rate("fp32", unit="simt")
        for m, unpack in ((1, 4.0), (1, 16.0), (256, 4.0), (256, 16.0)):
            plain = Storage(4, 128, 16, 16)
            work = stored_work(m, 14336, 4096, "bf16", replace(plain, unpack=unpack))
            vector = float(np.asarray(work.flops["vector"])) / lanes
            rest = float(time_of(stored_work(m, 14336, 4096, "bf16", plain), hw))
            out.append(100.0 * vector / (rest + vector))
    return out


# Sparse, coded, factorised ------------------------------------------------------------------


def end_to_end_flash_llm() -> list[Finding]:
    """Tokens a GPU-second with 80 % zeros against dense weights: same or fewer devices."""
    gains, places = [], []
    for model, many, few in (("opt-30b", 1, 1), ("opt-66b", 2, 1), ("opt-66b", 4, 1),
                             ("opt-175b", 8, 4)):  # fmt: skip
        for lengths in ((64, 256), (64, 512)):
            plain = case(model, "a100_sxm", many, lengths=lengths)
            coded = case(model, "a100_sxm", few, use="flash-llm:zeros=0.8", lengths=lengths)
            label = f"{model}, {many} dense, {few} sparse, {lengths[1]} tokens"
            gains += [best(coded)[0] / few / (best(plain)[0] / many),
                      tokens_per_s(coded, 8) / few / (tokens_per_s(plain, 8) / many)]  # fmt: skip
            places += [f"{label}, largest batches", f"{label}, batch 8"]
    where = "80 % zeros, OPT-30B to 175B, A100, 64 + 256 and 512 tokens, batch 8 and the largest"
    note = "one engine on both sides: what differs between the two published baselines is theirs"
    return [Finding(i, span(gains), at=reached(gains, value, places), range=where, note=note)
            for i, value in ((2, 3.8), (3, 3.6))]  # fmt: skip


_DRAFTS = ("speculative-decoding:drafted=2:accept=0.4:share=0.1:memory=0.02",
           "speculative-decoding:drafted=3:accept=0.7:share=0.05:memory=0.02")  # fmt: skip


def minima() -> list[Found]:
    """Qwen3-32B with factors for matrices: the share that 40 GiB leave, and what follows."""
    gib = 2.0**30

    def gib_of(s: Scenario) -> float:
        memory = memory_at(s.made(), s, 1)
        return (memory.weights + memory.kv) / gib

    long = case("qwen3-32b", "h100_sxm", lengths=(8064, 128))
    kept = 0.60  # of the weights, so that 8k of context and they take 40 GiB
    small = f"minima:kept={kept}"
    one: dict[str, list[float]] = {"": [], small: [], "draft": []}
    many: dict[str, list[float]] = {"": [], small: [], "draft": []}
    for isl in (128, 1024, 4096):
        for use in ("", small, *(f"{small},{draft}" for draft in _DRAFTS)):
            s = case("qwen3-32b", "h100_sxm", use=use, lengths=(isl, 256))
            name = use if use in one else "draft"
            one[name].append(1.0 / step(s))
            if isl <= 1024:  # 50 longer requests do not fit beside the weights
                many[name].append(1.0 / step(s, 50))
    where = "H100 (not named by the source), 128 to 4096 tokens of prompt"
    slow = "factors are taken to run at the rate of whole matrices"
    draft = "2 or 3 tokens drafted, 40 to 70 % of them right, a draft of 5 to 10 % of the time"
    return [
        Finding("peak_vram_before", gib_of(long), at="weights and 8,192 tokens of cache"),
        Finding("peak_vram_after", gib_of(replace(long, techniques=small)),
                at=f"{100 * kept:.0f} % of the weights of linear layers left"),
        Finding(2, span(one[""]), at="one request", range=where),
        Finding(3, span(one[small]), at="one request", range=where, tolerance=0.3, note=slow),
        Finding(4, span(one["draft"]), at=draft, range=where, note=slow),
        Finding(5, span(many[""]), at="each of 50", range=where),
        Finding(6, span(many[small]), at="each of 50", range=where, note=slow),
        Finding(7, span(many["draft"]), at=draft, range=where, note=slow),
    ]  # fmt: skip


# Comparisons --------------------------------------------------------------------------------


def bf16_or_death() -> list[Found]:
    """Which of W4A16, W8A8 and 16 bits is cheapest for Llama-3.1, one stream and batched."""
    alone: dict[str, str] = {}
    full: dict[str, str] = {}
    middle: dict[str, str] = {}
    for model, on, n in (("llama-3.1-8b", "rtx_a6000", 1), ("llama-3.1-8b", "a100_sxm", 1),
                         ("llama-3.1-8b", "h100_sxm", 1), ("llama-3.1-70b", "rtx_a6000", 4),
                         ("llama-3.1-70b", "a100_sxm", 4),
                         ("llama-3.1-70b", "h100_sxm", 4)):  # fmt: skip
        plain = case(model, on, n, lengths=(512, 256))
        eight = "fp8" if on == "h100_sxm" else "int8"
        plans = {"bf16": plain, "w4a16": replace(plain, techniques="marlin"),
                 "w8a8": replace(plain, dtype=eight)}  # fmt: skip
        key = f"{model} on {n} {on}"
        rates = {name: _rates(s) for name, s in plans.items()}
        alone[key] = max(rates, key=lambda p: rates[p][0])
        middle[key] = max(rates, key=lambda p: rates[p][1])
        full[key] = max(rates, key=lambda p: rates[p].max())
    high = {k: v for k, v in full.items() if "a6000" not in k}
    mid = {k: v for k, v in middle.items() if "a6000" in k}
    return [
        Property("W4A16 is cheapest for one stream", set(alone.values()) == {"w4a16"}, _say(alone)),
        Property("W8A8 is cheapest for large batches on high-end devices",
                 set(high.values()) == {"w8a8"}, _say(high)),
        Property("W4A16 is cheapest for batches of 8 on a mid-tier device",
                 set(mid.values()) == {"w4a16"}, _say(mid)),
    ]  # fmt: skip


def _rates(s: Scenario) -> F64:
    """Tokens a second at batch 1, at batch 8, and at larger ones up to what fits."""
    return tokens_per_s(s, np.unique([1, 8, *np.round(np.geomspace(8, min(most(s), 1024), 5))]))


def _say(choice: dict[str, str]) -> str:
    return "; ".join(f"{where}: {what}" for where, what in choice.items())


def end_to_end_fast_2bit() -> Finding:
    """Time a token with 2-bit weights in groups of 16 against 16 bits."""
    gains, places = [], []
    for on in ("rtx_2080_ti", "rtx_3090", "a100_sxm"):
        for name in ("vllm", "hf"):
            plain = case("llama-2-7b", on, lengths=(128, 128), engine=name)
            gains.append(step(plain) / step(replace(plain, techniques="fast-2bit-llm")))
            places.append(f"{on}, {name}")
    return Finding("end_to_end_speedup", span(gains), at=reached(gains, 1.74, places),
                   range="batch 1, Llama-2-7B; 2080 Ti, 3090, A100; graphs or eager",
                   note="bytes allow more than the published kernels reach")  # fmt: skip


def end_to_end_comet() -> Finding:
    """W4A4 with some depth at 8 bits and a 4-bit cache, against the best of three plans."""
    gains, places = [], []
    for model in ("llama-3-8b", "llama-2-13b"):
        for lengths in ((128, 128), (1024, 512)):
            plain = case(model, "a100_sxm", lengths=lengths, engine="trtllm")
            rates = [best(replace(plain, **change))[0] for change in _RIVALS]
            mine = best(replace(plain, techniques="comet-w4a4kv4"))[0]
            gains += [mine / max(rates), mine / max(rates[:2])]
            label = f"{model}, {lengths[0]} + {lengths[1]} tokens"
            places += [f"{label}, against W8A8", f"{label}, against 16-bit products"]
    return Finding(1, span(gains), at=reached(gains, 2.02, places),
                   range="largest batches, 128 + 128 and 1024 + 512 tokens, A100; rivals with and "
                   "without 8-bit products")  # fmt: skip
