"""Whole models with weights of few bits, coded or sparse: sizes, and speed of eager engines.

In a serving engine: `low_bit_serving`. Kernels: `quantisation`. Caches: `cache_bits`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...errors import SpecError
from ...hardware import resolve
from ...models import Layout, get
from ...models.transformer import Decoder
from ...ops.base import Work
from ...scenario import Host
from ...scenario.rows import gemm_work as stored_work
from ...techniques import Placement, Storage, Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .kit import F64, gemm_work, reached, span, time_of
from .pairs import bytes_of_weights, case, held, longest, step

__all__ = [
    "dfloat11",
    "efficientqat",
    "foldgpt",
    "gptq",
    "qmoe",
    "quest_qat",
    "slm_ecommerce_quant",
    "spqr",
]

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


# QMoE, small models, EfficientQAT ------------------------------------------------------------

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
        NotModelled("bits_per_parameter", "an input: the code's length depends on the weights"),
        NotModelled("compression_time_max", "calibration is not modelled"),
        Finding("runtime_overhead_max", span(100.0 * (np.array(slower) - 1.0)),
                at="an expert's product, batch 1: reading less outweighs decoding up to dozens of "
                "operations a weight", range="2 to 32 operations to decode a weight, A6000, 3090",
                note="by bytes and operations it is faster than 16 bits, not slower: each lane's "
                "chain of look-ups, which waits for one before the next, is not in the model"),
        Property("160 GB fit 4 x 48 GB and 8 x 24 GB", stored[0.8] < 0.9 * 192e9,
                 f"{stored[0.8] / 1e9:.3g} GB"),
    ]  # fmt: skip


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


def quest_qat() -> list[Found]:
    """W4A4 products with a Hadamard pass over the activations, against bf16."""
    gains, places, below = [], [], True
    for on in ("rtx_4090", "a100_sxm"):
        rates = resolve(on).rate("int4") / resolve(on).rate("bf16")
        for m in (64, 512, 4096):
            for n, k in ((4096, 4096), (11008, 4096)):
                wide = time_of(gemm_work(m, n, k, dtype="bf16"), on)
                narrow = time_of(gemm_work(m, n, k, dtype="int4"), on)
                # k log2(k) additions and subtractions a row in one pass: 16 bits in, 4 bits out
                rotated = Work({"vector": m * k * float(np.log2(k))}, 2.0 * m * k, 0.5 * m * k)
                gains.append(float(wide / (narrow + time_of(rotated, on))))
                places.append(f"{m} rows, {n} x {k}, {on}")
                below &= gains[-1] < rates
    least, largest = int(np.argmin(gains)), int(np.argmax(gains))
    ratio = 16.0 / Storage(4, 128, 16).bits_each
    return [
        NotModelled("weight_and_activation_bits_min", "which bits keep the loss is not modelled"),
        NotModelled("weight_and_activation_bits_max", "which bits keep the loss is not modelled"),
        Property("4-bit products are faster with the transform charged, by less than the rates",
                 1.0 < min(gains) and below,
                 f"{gains[least]:.3g} at {places[least]} to {gains[largest]:.3g} at "
                 f"{places[largest]}"),
        Property("weights at 4 bits are almost four times smaller", ratio > 3.8,
                 f"{ratio:.3g} times with scales of groups of 128"),
    ]  # fmt: skip


def foldgpt() -> list[Found]:
    """Layers removed against layers that share weights, in Llama-2-7B."""
    whole = get("llama-2-7b")
    if not isinstance(whole, Decoder):
        raise SpecError(f"llama-2-7b: got {type(whole).__name__}, need Decoder")
    layers = whole.layers
    less = replace(whole, blocks=tuple(replace(b, count=b.count * 3 // 4) for b in whole.blocks))
    plain, dropped = (case(n, "a100_sxm", lengths=(512, 128)) for n in (whole, less))
    table = sum(w.total for w in whole.weights() if w.ends)
    one = (whole.parameters - table) / layers
    cut = bytes_of_weights(dropped) / bytes_of_weights(plain)
    faster = step(plain) / step(dropped)
    tokens = 512.0
    kept = [sum(c.elements(tokens) for c in n.caches()) for n in (whole, less)]
    shared = (table + one * layers / 2.0) / whole.parameters
    cache = resolve("a100_sxm").l2.capacity
    return [
        Property("removal cuts weights, cache and time", cut < 1 and faster > 1
                 and kept[1] / kept[0] == 0.75,
                 f"a quarter of the layers: {100 * cut:.3g} % of the weights, 75 % of the cache, "
                 f"{faster:.3g} times as fast"),
        Property("sharing cuts weights alone, time hardly", 2.0 * one > 4.0 * cache,
                 f"pairs that share: {100 * shared:.3g} % of the weights stay, cache and products "
                 f"do not change; a layer of {2 * one / 1e6:.0f} MB is read again, since "
                 f"{cache / 1e6:.0f} MB of L2 hold little of it"),
    ]  # fmt: skip
