"""Whole models with weights of few bits, sparse, coded or factorised: memory, speed, batch.

Kernel against kernel is in `quantisation`, formats of the cache in `cache_bits`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...hardware import resolve
from ...models import Layout, get
from ...scenario import Host, Scenario, memory_at
from ...scenario.engine import engine
from ...scenario.lower import gemm_work as stored_work
from ...techniques import Placement, Storage, Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .kit import F64, reached, span, time_of
from .pairs import best, bytes_of_weights, case, held, longest, most, step, tokens_per_s

__all__ = [
    "bf16_or_death",
    "dfloat11",
    "efficientqat",
    "end_to_end_comet",
    "end_to_end_fast_2bit",
    "end_to_end_flash_llm",
    "end_to_end_marlin",
    "finequant",
    "gptq",
    "minima",
    "qmoe",
    "qserve",
    "slm_ecommerce_quant",
    "smoothquant_plus",
    "spqr",
]

_QUALITY = "a matter of quality, not of resources"
_SOLD = (8, 12, 16, 24, 32, 40, 48, 80)  # GB of devices that are sold


def _smallest(need: float) -> float:
    """GB of the smallest device that holds so many bytes."""
    return float(next((gb for gb in _SOLD if gb * 1e9 >= need), np.inf))


# DFloat11 -----------------------------------------------------------------------------------

# cudaMemcpy from memory that is not page-locked passes a staging buffer; weights that a framework
# leaves in ordinary host memory arrive at a fraction of the link (assumed: 6 GB/s)
_PAGEABLE = 6e9
_PARTLY = Treatment(placement=Placement(device_share=None, spill=True, tier="host"))


def _offloaded() -> tuple[list[float], list[str]]:
    """Gain over bf16 with what does not fit fetched from the host, where DFloat11 fits."""
    gains, places = [], []
    pairs = (("qwen2.5-14b", "rtx_3090"), ("qwen2.5-14b", "rtx_4090"), ("llama-3.1-8b", "rtx_4080"),
             ("gemma-3-27b", "rtx_a6000"), ("qwen2.5-32b", "rtx_a6000"))  # fmt: skip
    for model, on in pairs:
        for name, host in (("pinned", Host()), ("pageable", Host(memory_bandwidth=_PAGEABLE))):
            lengths = (128, 256)
            plain = case(model, on, use=_PARTLY, lengths=lengths, engine="hf", host=host)
            packed = case(model, on, use="dfloat11", lengths=lengths, engine="hf")
            gains.append(step(plain) / step(packed))
            places.append(f"{model} on {on}, {name} copies")
    return gains, places


def _contexts() -> tuple[list[float], list[str]]:
    """Gain in tokens that fit one device whose memory is little larger than the bf16 model."""
    gains, places = [], []
    for model in ("llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b"):
        plain = case(model, "a100_sxm", lengths=(128, 128), engine="hf")
        packed = replace(plain, techniques="dfloat11")
        for room in (0.02, 0.05, 0.1, 0.2):
            memory = held(plain) + room * bytes_of_weights(plain)
            gains.append(longest(packed, memory) / longest(plain, memory))
            places.append(f"{model}, memory {100 * room:.0f} % of the weights beyond them")
    return gains, places


def dfloat11() -> list[Found]:
    """Lossless codes of 11 bits: size, speed beside offloading, context, devices."""
    big = case("llama-3.1-405b", "h100_sxm", 8, lengths=(128, 896), engine="hf")
    coded = replace(big, techniques="dfloat11")
    saved = 100.0 * (1.0 - bytes_of_weights(coded) / bytes_of_weights(big))
    gains, places = _offloaded()
    context, rooms = _contexts()
    counts = [n for n in (1, 2, 4, 8, 16) if _fits("llama-3.1-405b", n)]
    one = bytes_of_weights(replace(big, devices=1, layout=Layout())) / 1e9
    return [
        Finding("model_size_reduction", saved, at="11 of 16 bits in all matrices, embedding too"),
        Finding("token_throughput_gain", span(gains),
                at=f"largest: {places[int(np.argmax(gains))]}", range="batch 1, PCIe at its rate, "
                "or 6 GB/s; " + ", ".join(sorted({p.split(",")[0] for p in places})),
                note="the gain is the share that is fetched over what decoding takes; the largest "
                "published one needs a slower fetch than either"),
        Finding("context_length_gain", span(context),
                at=f"5.3: nearest {reached(context, 5.3, rooms)}; 13.2: "
                f"{reached(context, 13.17, rooms)}", range="one device whose memory exceeds the "
                "bf16 model by 2 to 20 % of its weights"),
        Finding("uncompressed_model_size", one, at="405,853 million weights of 2 bytes",
                tolerance=0.02),
        Finding("gpus_sufficient", float(min(counts)), at=f"fits {counts} devices of 80 GB, coded",
                tolerance=0.0),
    ]  # fmt: skip


def _fits(model: str, n: int) -> bool:
    coded = case(model, "h100_sxm", n, use="dfloat11", lengths=(128, 896), engine="hf")
    return held(coded) <= coded.made().hardware.memory.capacity


# SpQR, GPTQ ---------------------------------------------------------------------------------

_SPQR = ("spqr", "spqr:group=32:second=32", "spqr:outliers=0.005", "spqr:bits=2:group=16",
         "spqr:group=64:second=64:outliers=0.002")  # fmt: skip


def spqr() -> list[Found]:
    """Bits, memory and speed of 3-bit weights in small groups with sparse outliers."""
    bits, ratios, gains, places = [], [], [], []
    for use in _SPQR:
        stored = case("llama-30b", "a100_sxm", use=use).made().formats.linear_storage
        bits.append(stored.bits_each)
        ratios.append(16.0 / stored.bits_each)
    for model in ("llama-7b", "llama-13b", "llama-30b"):
        plain = case(model, "a100_sxm", lengths=(16, 100), engine="hf")
        for use in _SPQR[:2]:
            gains.append(100.0 * (step(plain) / step(replace(plain, techniques=use)) - 1.0))
            places.append(model)
    need = held(case("llama-30b", "rtx_4090", use="spqr", lengths=(896, 128), engine="hf"))
    where = "3 bits (one at 2), groups of 16 to 64, 0.2 to 1 % outliers"
    return [
        Finding("memory_compression_min", span(ratios), at=reached(ratios, 4.0, _SPQR),
                range=where),
        Finding("vram_sufficient", _smallest(need), at=f"{need / 1e9:.3g} GB with 1,024 tokens",
                tolerance=0.0),
        Finding("speedup", span(gains), at=reached(gains, 15.0, places), range="LLaMA 7B to 30B, "
                "batch 1, A100, eager",
                note="the published kernel reaches far less of the memory's rate than the bytes "
                "allow; the sparse part alone does not explain it"),
        Finding("bits_per_parameter", span(bits), at=reached(bits, 3.5, _SPQR), range=where),
    ]  # fmt: skip


def gptq() -> list[Found]:
    """175B at 3 bits on one or two devices against 16 bits on six or eight, layer after layer."""
    gains: dict[str, list[float]] = {}
    for on, many, few in (("a100_sxm", 6, 1), ("rtx_a6000", 8, 2)):
        plain = case("opt-175b", on, many, lengths=(16, 128), layout=Layout(pp=many), engine="hf")
        coded = replace(plain, devices=few, layout=Layout(pp=few))
        gains[on] = [
            step(plain) / step(replace(coded, techniques=f"gptq:bits=3:unpack={ops}"))
            for ops in (2, 4, 6, 8)
        ]
    ops = [f"{n} operations to unpack and multiply a weight" for n in (2, 4, 6, 8)]
    need = held(case("opt-175b", "a100_sxm", use="gptq:bits=3", lengths=(16, 128), engine="hf"))
    where = "OPT-175B, batch 1, 128 tokens, stages one after another; 2 to 8 lane operations"
    return [
        NotModelled("quantization_time", "calibration is not modelled"),
        Finding("weight_bits", (3.0, 4.0), at="parameters of the method"),
        Finding("compression_gain_min", (8.0 / 4.0, 8.0 / 3.0), at="3 or 4 bits against the 8 of "
                "earlier one-shot methods"),
        Finding(3, span(gains["a100_sxm"]), at=reached(gains["a100_sxm"], 3.25, ops), range=where),
        Finding(4, span(gains["rtx_a6000"]), at=reached(gains["rtx_a6000"], 4.5, ops),
                range=where),
        Finding("gpu_count", float(np.ceil(need / 80e9)), at=f"{need / 1e9:.3g} GB", tolerance=0.0),
        Property("the device with less bandwidth gains more",
                 min(gains["rtx_a6000"]) >= max(gains["a100_sxm"]),
                 f"A6000 {span(gains['rtx_a6000'])[0]:.3g}, A100 {span(gains['a100_sxm'])[1]:.3g}"),
    ]  # fmt: skip


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


# google/switch-c-2048, config.json: widths, layers of encoder and decoder, experts a layer, rows
_SWITCH = {"d_model": 2080, "d_ff": 6144, "layers": 15 + 15, "experts": 2048, "heads": 64 * 64,
           "vocab": 32128}  # fmt: skip


def qmoe() -> list[Found]:
    """Switch-c2048 below a bit a weight: bytes, and decoding beside reading."""
    c = _SWITCH
    expert = 2.0 * c["d_model"] * c["d_ff"]
    experts = c["layers"] * c["experts"] * expert
    attention = 4.0 * c["d_model"] * c["heads"]
    dense = (c["layers"] + 15) * attention + c["layers"] * c["experts"] * c["d_model"]
    dense += c["vocab"] * c["d_model"]
    stored = {bits: Storage(bits).bytes_each * experts + 2.0 * dense for bits in (0.7, 0.8)}
    plain = 2.0 * (experts + dense)
    slower: list[F64] = []
    for on in ("rtx_a6000", "rtx_3090"):
        wide = time_of(stored_work(1, c["d_ff"], c["d_model"], "bf16", Storage(16)), on)
        for ops in (2.0, 8.0, 16.0, 32.0):
            coded = Storage(0.8, unpack=ops)
            slower.append(
                time_of(stored_work(1, c["d_ff"], c["d_model"], "bf16", coded), on) / wide
            )
    return [
        Finding("parameters", (experts + dense) / 1e12, at="from the published shapes"),
        Finding("memory_uncompressed", plain / 1e12, at="2 bytes a parameter"),
        Finding("memory_compressed_max", (stored[0.7] / 1e9, stored[0.8] / 1e9),
                at=f"{stored[0.8] / 1e9:.3g} GB at 0.8 bit, dense parts in 16",
                range="0.7 to 0.8 bit a weight of the experts"),
        Finding("compression", plain / stored[0.8], at="0.8 bit"),
        Finding("bits_per_parameter", 8.0 * stored[0.8] / (experts + dense),
                at="dense parts included"),
        NotModelled("compression_time_max", "calibration is not modelled"),
        Finding("runtime_overhead_max", span(100.0 * (np.array(slower) - 1.0)), ceiling=True,
                at="an expert's product, batch 1: reading less outweighs decoding up to dozens of "
                "operations a weight", range="2 to 32 operations to decode a weight, A6000, 3090"),
        Property("160 GB fit 4 x 48 GB and 8 x 24 GB", stored[0.8] < 0.9 * 192e9,
                 f"{stored[0.8] / 1e9:.3g} GB"),
    ]  # fmt: skip


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


def slm_ecommerce_quant() -> list[Found]:
    """Llama 3.2 1B at 4 bits on a T4 without a fused kernel; bytes of GGUF in main memory."""
    plain = case("llama-3.2-1b", "t4", lengths=(64, 64), engine="hf")
    coded = replace(plain, techniques="gptq-eager")
    least = 1.0 - held(coded) / held(plain)
    weights = 1.0 - bytes_of_weights(coded) / bytes_of_weights(plain)
    slower = 100.0 * (step(coded) / step(plain) - 1.0)
    # llama.cpp's k-quants with their scales: Q2_K 2.625, Q4_K 4.5 bits, the tied table at Q6_K's
    # 6.5625 (ggml's block sizes); framework copies in 32 bits on a CPU without fp16 units
    network = get("llama-3.2-1b")
    table = sum(w.total for w in network.weights() if w.role == "embedding")
    rest = network.parameters - table
    saved = [100.0 * (1.0 - (bits * rest + 6.5625 * table) / (wide * network.parameters))
             for bits in (2.625, 4.5) for wide in (16.0, 32.0)]  # fmt: skip
    return [
        Finding("vram_reduction", (100.0 * least, 100.0 * weights),
                at="with context and workspace of the process at the low end, weights alone at "
                "the high end; embedding kept in 16 bits"),
        Finding("inference_slowdown", slower, at="time a token; each pass writes and reads a "
                "16-bit copy of every matrix"),
        NotModelled("throughput_gain_max", "no processor with its fp16 path is in the catalogue"),
        Finding("ram_reduction_min", span(saved), at=f"largest {max(saved):.3g} %: 2.6 bits "
                "against 32", range="2.6 and 4.5 bits a weight, against 16 and 32",
                note="bytes alone give less than is published unless the baseline holds more than "
                "one copy"),
    ]  # fmt: skip


def efficientqat() -> list[Found]:
    """Llama-2-70B at 2 bits beside Llama-2-13B in 16."""
    gib = 2.0**30
    coded = bytes_of_weights(case("llama-2-70b", "a100_sxm", use="efficientqat"))
    wide = bytes_of_weights(case("llama-2-13b", "a100_sxm"))
    return [
        NotModelled("quantization_time", "training time is not modelled here"),
        Finding("model_memory", (coded / gib, coded / 1e9), at=f"{coded / 1e9:.3g} GB, "
                f"{coded / gib:.3g} GiB", tolerance=0.05),
        Finding("model_memory_baseline", (wide / gib, wide / 1e9), at=f"{wide / 1e9:.3g} GB, "
                f"{wide / gib:.3g} GiB", tolerance=0.05),
    ]  # fmt: skip


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
