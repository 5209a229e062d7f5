"""Machines that are not GPUs, described by the figures that their papers or vendors state.

Each is a few numbers with a source. Where a source states none of what would decide (energy of a
bit, watts), the figure is not modelled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...hardware import Hardware, loads
from ...kernels.operator import parts_of
from ..verdict import Finding, Found, NotModelled
from .kit import device, reached, span, work_of

__all__ = [
    "cross_he_tpu",
    "edgecim",
    "flightllm",
    "fusemax",
    "mamba2_jax",
    "neupims",
    "pim_gpt",
    "sn40l",
    "waferllm",
]

_FORM = """
name = "{name}"
form = "server"
source = "{source}"
sm_count = {cores}
clock = "{clock}"
board_power = "{watts} W"
launch_latency = {{ value = "1 us", kind = "assumed", source = "{source}" }}

[sources]
"{source}" = "{source}"

[rates]
fp16 = "{rate}"
bf16 = "{rate}"

[memory]
capacity = "{capacity}"
bandwidth = "{bandwidth}"

[l2]
capacity = {{ value = "1 MiB", kind = "assumed", source = "{source}" }}
"""


def _machine(name: str, source: str, **numbers: Any) -> Hardware:
    """Describe a machine by rates and memory; what it has no word for is assumed small."""
    defaults: dict[str, Any] = {"cores": 1, "clock": "1 GHz", "watts": 1000}
    text = _FORM.format(name=name, source=source, **{**defaults, **numbers})
    return loads(text, origin=name)


# Wafer scale --------------------------------------------------------------------------------


def waferllm() -> list[Found]:
    """Multiply a 16K x 16K matrix by a vector on a wafer and on one A100.

    WSE-2: 850,000 cores, 40 GB, 20 PB/s, 15 kW (Cerebras 2021); 7.5 PFLOP/s in fp16 and a clock of
    1.1 GHz are assumed. A mesh of 750 x 750 cores takes part; partial sums travel to the middle of
    a line or across it, the result back along one or two axes: 375 to 1500 hops of a clock each.
    """
    wafer = _machine("wse2", "Cerebras WSE-2 datasheet 2021", cores=850_000, clock="1.1 GHz",
                     watts=15_000, rate="7.5 PFLOP/s", capacity="40 GB",
                     bandwidth="20 PB/s")  # fmt: skip
    gpu = device("a100_sxm")
    bytes_, flops = 2.0 * 16384**2, 2.0 * 16384**2
    slow = bytes_ / gpu.memory.bandwidth + gpu.launch_latency
    hops = (375, 750, 1500)
    busy = max(bytes_ / wafer.memory.bandwidth, flops / wafer.rate("fp16"))
    gains = [slow / (busy + h / wafer.clock) for h in hops]
    joules = [g * gpu.board_power / wafer.board_power for g in gains]
    places = [f"{h} hops" for h in hops]
    where = "16K x 16K in fp16; hops of 1 clock, 375 to 1500 of them"
    return [
        NotModelled(0, "the compared methods on the wafer are not described"),
        Finding(1, span(gains), at=reached(gains, 606.0, places), range=where),
        Finding(2, span(joules), at=reached(joules, 16.0, places),
                range=where + "; 15 kW against 400 W"),
        NotModelled(3, "a cluster that serves: a scenario"),
    ]  # fmt: skip


# Dataflow with three tiers ------------------------------------------------------------------


def sn40l() -> list[Found]:
    """Switch among experts of Llama-2-7B and generate, node against node.

    SN40L (arXiv:2405.07518): 8 sockets of 64 GiB HBM (2 TB/s assumed) and 1.5 TB DDR; the node
    copies from DDR to HBM at 1 TB/s and more, a DGX from its host at the link of one device (32 and
    64 GB/s).
    """
    weights, layers = 2.0 * 6.74e9, 32
    switch, total, places = [], {"h100": [], "a100": []}, []
    for ddr in (1.0e12, 1.6e12):
        for name, on, link in (("h100", "h100_sxm", 64e9), ("a100", "a100_sxm", 32e9)):
            switch.append(ddr / link)
            hw = device(on)
            for tokens in (20, 50, 100, 200):
                # a layer: ten kernels and two all-reduces of small messages (10 us each, assumed)
                gpu = weights / 8 / hw.memory.bandwidth
                gpu += layers * (10 * hw.launch_latency + 2 * 10e-6)
                fused = weights / 8 / 2.0e12 + layers * 2e-6
                whole = (weights / link + tokens * gpu) / (weights / ddr + tokens * fused)
                total[name].append(whole)
                if name == "h100":
                    places.append(f"{tokens} tokens, DDR at {ddr / 1e12:g} TB/s")
    held = 8 * 1.5e12 / (8 * 80e9)
    where = "20 to 200 tokens a request at batch 1; DDR to HBM at 1 to 1.6 TB/s a node"
    return [
        NotModelled(0, "benchmarks unfused on its own chip: their kernels are not described"),
        Finding(1, held, at="12 TB of DDR over 640 GB of a DGX's HBM", tolerance=0.15),
        Finding(2, span(switch), at="1 TB/s over 64 and 32 GB/s", range=where),
        Finding(3, span(total["h100"]), at=reached(total["h100"], 3.7, places), range=where),
        Finding(4, span(total["a100"]), at=reached(total["a100"], 6.6, places), range=where),
        NotModelled(5, "an input"),
        Finding(6, 150 * 6.74e9 / 1e12, at="150 experts of Llama-2-7B"),
    ]  # fmt: skip


# Memory that computes -----------------------------------------------------------------------

_GPTS = {  # layers, width, parameters: GPT-2 (Radford et al. 2019) and GPT-3 (arXiv:2005.14165)
    "GPT-2 small": (12, 768, 124e6), "GPT-2 medium": (24, 1024, 355e6),
    "GPT-2 large": (36, 1280, 774e6), "GPT-2 XL": (48, 1600, 1.56e9),
    "GPT-3 small": (12, 768, 125e6), "GPT-3 medium": (24, 1024, 350e6),
    "GPT-3 large": (24, 1536, 760e6), "GPT-3 XL": (24, 2048, 1.3e9),
}  # fmt: skip


def pim_gpt() -> list[Found]:
    """Generate at batch 1 in GDDR6 banks with MAC units, and on a T4 bound by its host.

    8 channels of 16 banks, 32 B a bank and ns (16 bf16 lanes at 1 GHz, as in AiM: Lee et al. 2022,
    ISSCC 11.1); a layer's non-linear steps take 1 us on the small chip (assumed). A framework
    starts about 27 kernels a layer at 10 to 20 us each (swept).
    """
    inside = 8 * 16 * 32e9
    gpu = device("t4")
    gains, places = [], []
    for name, (layers, _, parameters) in _GPTS.items():
        mine = 2.0 * parameters / inside + layers * 1e-6
        for host in (10e-6, 15e-6, 20e-6):
            slow = max(27 * layers * host, 2.0 * parameters / gpu.memory.bandwidth)
            gains.append(slow / mine)
            places.append(f"{name}, {host * 1e6:.0f} us a kernel")
    energy = "power of the banks under load is not stated"
    return [
        Finding(0, span(gains), at="41: " + reached(gains, 41.0, places) + "; 137: "
                + reached(gains, 137.0, places), range="8 GPT models, 10 to 20 us a kernel, T4"),
        NotModelled(1, "a CPU that is not named"),
        NotModelled(2, energy),
        NotModelled(3, energy),
    ]  # fmt: skip


def neupims() -> list[Found]:
    """Decode batches on an NPU alone, with blocked in-memory units, and with both at once.

    NPU: 8 arrays of 128 x 128 at 1 GHz, 1 TB/s of HBM (arXiv:2403.00579, table 2); in-memory
    products at 4 to 8 times the external bandwidth (swept). Interleaved sub-batches read the
    weights twice.
    """
    rate, bandwidth = 8 * 128 * 128 * 2 * 1e9, 32 * 32e9
    gpu = device("a100_sxm_40gb")
    means: dict[str, list[float]] = {"gpu": [], "npu": [], "naive": []}
    for inside in (4.0, 6.0, 8.0):
        found: dict[str, list[float]] = {"gpu": [], "npu": [], "naive": []}
        for layers, width in ((32, 4096), (40, 5120), (48, 7168)):
            weights = 2.0 * 12 * width**2 * layers
            for batch, context in ((b, c) for b in (64, 128, 256, 384) for c in (256, 512, 1024)):
                cache = 2.0 * 2.0 * width * layers * context * batch
                dense = max(batch * weights / rate, weights / bandwidth)
                mixing, near = cache / bandwidth, cache / (inside * bandwidth)
                split = max(batch * weights / rate, 2.0 * weights / bandwidth, near)
                mine = min(split, dense + near)  # sub-batches only where they help
                # the compared GPU has the same bandwidth as the NPU in the source
                here = max(batch * weights / gpu.rate("fp16"), weights / bandwidth)
                found["gpu"].append((here + mixing) / mine)
                found["npu"].append((dense + mixing) / mine)
                found["naive"].append((dense + near) / mine)
        for name, values in found.items():
            means[name].append(float(np.mean(values)))
    where = (
        "mean of GPT-3 7B to 30B, batch 64 to 384, 256 to 1024 tokens; in-memory units at 4 to 8 "
        "times the bandwidth"
    )
    places = [f"{inside} times" for inside in (4, 6, 8)]
    return [
        Finding(
            i,
            span(means[name]),
            at=reached(means[name], value, places),
            range=where,
            note="at these batches weights are bound by memory, so that sub-batches, which "
            "read them twice, gain less than published",
        )
        for i, (name, value) in enumerate((("gpu", 3.0), ("npu", 2.4), ("naive", 1.6)))
    ]


def edgecim() -> list[Found]:
    """Stream INT4 weights of small models from the DRAM of an edge device.

    The bandwidth of its DRAM is not stated. The published mean of twelve sizes gives it, if
    generation reads all weights for each token; the gain over an Orin Nano (68 GB/s, LPDDR5, its
    data sheet) then follows.
    """
    billions = (0.49, 0.6, 1.1, 1.24, 1.54, 1.7, 2.0, 2.5, 3.09, 3.21, 3.8, 4.0)
    bandwidth = 336.42 / float(np.mean([1.0 / (0.5e9 * b) for b in billions]))
    # the Orin Nano reads weights of 16 or of 4.5 bits (4-bit blocks with their scales)
    gains = [bandwidth / 68e9 * bits / 4.0 for bits in (4.5, 16.0)]
    places = [f"{bandwidth / 1e9:.0f} GB/s against {bits:g} bits" for bits in (4.5, 16.0)]
    joule = "energy of its DRAM is not stated; 173 tokens/J leave about 1 pJ a bit that is read"
    return [
        Finding(0, span(gains), at=reached(gains, 7.3, places),
                range="the Orin Nano with weights of 4.5 and of 16 bits"),
        NotModelled(1, joule),
        NotModelled(2, "the compared chip's engine is not described"),
        NotModelled(3, "an input here: the bandwidth that is not stated follows from it"),
        NotModelled(4, joule),
    ]  # fmt: skip


def flightllm() -> list[Found]:
    """Decode Llama-2-7B at batch 1 from the HBM of two FPGA cards.

    U280: 460 GB/s, at most 225 W (AMD data sheet DS963); VHK158: 819 GB/s (AMD product brief).
    Weights of 3.5 bits on average (arXiv:2401.03868), half of them zero or not (swept); the GPUs
    run SmoothQuant's 8 bits.
    """
    v100 = device("v100_pcie")
    speed = [460e9 / 1134e9 * 8.0 / bits for bits in (1.75 + 0.5, 3.5)]  # V100S: 1,134 GB/s
    joules = [s * v100.board_power / 225.0 for s in speed]
    a100 = [819e9 / device(on).memory.bandwidth * 8.0 / bits
            for on in ("a100_sxm_40gb", "a100_sxm") for bits in (2.25, 3.5)]  # fmt: skip
    places = [f"{on}, {bits} bits" for on in ("40 GB", "80 GB") for bits in (2.25, 3.5)]
    return [
        Finding(0, span(joules), at="both cards at their limit: 250 W and 225 W",
                range="2.25 and 3.5 bits a weight", note="by bandwidth and limits alone; the card "
                "draws far less than its limit, the published meter reading is not stated"),
        NotModelled(1, "prices are not stated"),
        Finding(2, span(a100), at=reached(a100, 1.2, places),
                range="A100 of 40 and 80 GB, 2.25 and 3.5 bits a weight"),
    ]  # fmt: skip


# Arrays -------------------------------------------------------------------------------------


def fusemax() -> list[Found]:
    """Attention on 256 x 256 multipliers with 256 vector lanes beside them (arXiv:2406.10491).

    FLAT gives all of the softmax to the lanes: exponential (1 or 6 operations), maximum,
    subtraction, sum, division. FuseMax puts exponentials and running maxima on the array too.
    """
    array, lanes, ratios, used = 256 * 256, 256, [], []
    for exponential in (1, 6):
        gains = []
        for dim in (64, 128):
            flat = max(2 * dim / array, (exponential + 4) / lanes)
            fused = (2 * dim + 6 + 2) / array
            gains.append(flat / fused)
            used.append(100.0 * min(1.0, fused / max(fused, 2 / (lanes * dim))))
        ratios.append(float(np.mean(gains)))
    places = [f"exponentials of {n}" for n in ("1 operation", "6 operations")]
    energy = "energy of an operation and of a buffer access is not stated"
    return [
        Finding(0, span(ratios), at=reached(ratios, 6.7, places),
                range="mean of head sizes 64 and 128; exponentials of 1 and of 6 operations"),
        NotModelled(1, energy),
        NotModelled(2, "shares of linear layers by model: a scenario"),
        NotModelled(3, energy),
        Finding(4, span(used), at="the array limits at every head size: lanes only divide"),
    ]  # fmt: skip


def cross_he_tpu() -> list[Found]:
    """Modular products of 28 to 32 bits as 4 x 4 byte products on a TPU v4, or on a V100's lanes.

    TPU v4: 275 TFLOP/s in bf16 or int8 (Jouppi et al. 2023, arXiv:2304.01433). V100: 64 integer
    multiply-adds a clock and SM; a modular one takes 4 (64-bit sums, reduced late) to 8 (reduced
    at once) instructions.
    """
    tpu = 275e12 / 2.0 / 16.0
    v100 = device("v100_sxm")
    slow = [64 * v100.sm_count * v100.clock / count for count in (4.0, 8.0)]
    gains = [tpu / rate for rate in slow]
    return [
        NotModelled(0, "CPUs that are not named"),
        Finding(1, span(gains), at=reached(gains, 5.0, ("4 instructions", "8 instructions")),
                range="4 to 8 instructions a modular multiply-add on the V100"),
    ]  # fmt: skip


# Unified memory, compilers ------------------------------------------------------------------


_MAMBA2 = {  # layers, width: Dao and Gu 2024, arXiv:2405.21060
    "130M": (24, 768, 129e6), "370M": (48, 1024, 368e6), "780M": (48, 1536, 780e6),
    "1.3B": (48, 2048, 1.34e9), "2.7B": (64, 2560, 2.70e9),
}  # fmt: skip


def mamba2_jax() -> list[Found]:
    """Prefill and decode a single stream of Mamba-2 on a TPU v6e, operations left unfused.

    TPU v6e: 918 TFLOP/s bf16, 32 GB at 1,638 GB/s (Google Cloud documentation). The chunked
    einsums go through memory in fp32, the products at the array's peak; a layer's other chains
    are about 12 passes over its activations.
    """
    tpu = _machine("tpu_v6e", "Google Cloud, TPU v6e", rate="918 TFLOP/s", capacity="32 GB",
                   bandwidth="1638 GB/s")  # fmt: skip
    rates, uses, places = [], [], []
    for name, (layers, width, parameters) in _MAMBA2.items():
        for tokens in (1024, 4096, 8192):
            ssd = work_of("ssd", length=tokens, heads=2 * width // 64, variant="chunked")
            time = sum(float(np.max(v)) for v in parts_of(ssd, tpu, "cold").values())
            flops = 2.0 * parameters / layers * tokens
            time += max(flops / tpu.rate("bf16"), 2.0 * parameters / layers / 1638e9)
            time += 12 * 2.0 * tokens * 2 * width * 2.0 / 1638e9 + 30 * tpu.launch_latency
            rates.append((flops + float(ssd.matrix_flops)) / time / 1e12)
            places.append(f"{name}, {tokens} tokens")
        state = 4.0 * 2 * width * 128 * layers
        moved = (2.0 * parameters + 2.0 * state) / 1638e9
        uses.append(100.0 * moved / (moved + layers * 12 * tpu.launch_latency))
    note = (
        "at the array's peak in every product the unfused operations allow more; what a compiler "
        "reaches for products this narrow is not in the model"
    )
    return [
        Finding(0, max(rates), at="largest: " + reached(rates, max(rates), places),
                range="130M to 2.7B, 1K to 8K tokens", note=note),
        Finding(1, 100.0 * max(rates) * 1e12 / 918e12, at="the same place", note=note),
        Finding(2, span(uses), at=reached(uses, 64.0, _MAMBA2), range="130M to 2.7B; 12 operations "
                "a layer of 1 us each beside the bytes"),
    ]  # fmt: skip
