"""Deployments: parallel layouts, weights that stream, power of rows of servers, a node of AMD's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...models import Layout, get
from ...models.network import Tokens
from ...scenario import Points, engine, memory_at, run_pass, solve_points
from ...scenario.solve import machine_of, phases_of, solve_all
from ...techniques import Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .kit import device, reached, span
from .serving import case, most_of, pass_times

__all__ = ["deepspeed_inference", "energonai", "mi325x", "polca", "superpipeline"]

# DeepSpeed Inference ------------------------------------------------------------------------


# Kernels of an eager decoder layer: two norms, four products and their biases, two scalings and
# masks, two copies into the cache, two batched products, softmax, two transposed copies,
# activation, two residual sums; a fused engine launches nine
_UNFUSED = 25.0 / 9.0


def _eager(launch: float) -> dict[str, Any]:
    """Return a framework that launches one kernel an operation, each after `launch` seconds."""
    return {"engine": replace(engine("hf"), continuous=True, eager_launch=launch, unfused=1.0),
            "techniques": Treatment(launches=_UNFUSED, attention="standard")}  # fmt: skip


def _latency() -> tuple[list[float], list[str]]:
    """Time of a token of one sequence, eager over fused and replayed from graphs."""
    gains, places = [], []
    for model, devices in (("opt-125m", 1), ("opt-1.3b", 1), ("opt-13b", 1), ("opt-66b", 4),
                           ("qwen1.5-moe-a2.7b", 1)):  # fmt: skip
        at = Points.of(1, 128, 64)
        fast = solve_points(case(model, "a100_sxm", 128, 64, devices=devices), at)["tpot"][0]
        for launch in (6e-6, 20e-6):
            slow = case(model, "a100_sxm", 128, 64, devices=devices, **_eager(launch))
            gains.append(float(solve_points(slow, at)["tpot"][0] / fast))
            places.append(f"{model} on {devices}, {1e6 * launch:g} us a kernel")
    return gains, places


def _throughput() -> tuple[list[float], list[str]]:
    """Tokens/s of the largest batch that fits, fused over eager with scores through memory."""
    gains, places = [], []
    for model in ("opt-1.3b", "opt-13b", "opt-30b"):
        for isl, osl in ((128, 8), (512, 50)):
            fused = case(model, "a100_sxm", isl, osl)
            batch = min(most_of(fused), 64)
            plain = case(model, "a100_sxm", isl, osl, **_eager(20e-6))
            at = Points.of(batch, isl, osl)
            rates = [solve_points(s, at)["output_tokens_per_s"][0] for s in (fused, plain)]
            gains.append(float(rates[0] / rates[1]))
            places.append(f"{model}, {isl} in, {osl} out, batch {batch}")
    return gains, places


def _streamed() -> tuple[list[float], list[str]]:
    """TFLOP/s of an A6000 whose weights stream from host memory or NVMe, for large batches."""
    rates, places = [], []
    tokens = np.array([4096.0, 16384.0, 65536.0])
    for model in ("gpt-neox-20b", "opt-66b", "bloom-176b"):
        for nvme in (0, 1):
            s = case(model, "rtx_a6000", 512, 1, f"deepspeed-inference:nvme={nvme}")
            time = pass_times(s, [Tokens(tokens / 512.0, 512.0, 512.0)])
            rates += (2.0 * get(model).parameters * tokens / time / 1e12).tolist()
            where = "NVMe" if nvme else "host"
            places += [f"{model} from {where}, {t / 512:g} x 512 tokens" for t in tokens]
    return rates, places


def deepspeed_inference() -> list[Found]:
    """Fused kernels against eager ones, and weights that stream from below the device."""
    (late, models), (more, batches), (rates, streams) = _latency(), _throughput(), _streamed()
    hw = device("rtx_a6000")
    bigger = [disk / (0.9 * hw.memory.capacity) for disk in (1e12, 2e12)]
    peak = [100e12 * r / hw.rate("fp16") for r, where in zip(rates, streams, strict=True)
            if "128 x" in where]  # fmt: skip
    return [
        Finding(0, span(late), at=reached(late, 7.3, models), range="one sequence, 0.1 to 66 "
                "billion parameters, 6 and 20 us to launch a kernel of a framework"),
        Finding(1, span(more), at=reached(more, 1.5, batches), range="largest batch, at most 64; "
                "20 us a kernel", note="large models keep the device busy in either case"),
        NotModelled(2, "an amount of parameters: any that the memory of hundreds of devices holds"),
        Finding(3, span(bigger), at="16-bit weights on NVMe over those in nine tenths of 48 GB",
                range="1 and 2 TB of NVMe"),
        Finding(4, span(rates), at=reached(rates, 84.0, streams), range="20 to 176 billion "
                "parameters, 8 to 128 sequences of 512 tokens, from host memory and NVMe"),
        Finding(5, span(peak), at=f"{min(peak):.3g} % where it is least", range="128 sequences"),
    ]  # fmt: skip


def superpipeline() -> list[Found]:
    """Keep a window of layers on the device: memory against the time of a batch of prompts."""
    less, slower, places = [], [], []
    for model, isl, batch in (("llama-2-7b", 512, 8), ("opt-13b", 512, 8), ("opt-1.3b", 512, 32)):
        plain = case(model, "a100_sxm", isl, 32)
        held = memory_at(plain.made(), plain, batch).total
        time = pass_times(plain, [Tokens(float(batch), isl, isl)])[0]
        for share in (0.15, 0.3, 0.5, 0.75):
            s = case(model, "a100_sxm", isl, 32, f"superpipeline:share={share}")
            less.append(100.0 * (1.0 - memory_at(s.made(), s, batch).total / held))
            slower.append(float(pass_times(s, [Tokens(float(batch), isl, isl)])[0] / time))
            places.append(f"{model}, {share:.0%} of the layers, {slower[-1]:.3g} times the time")
    return [
        Finding(0, span(less), at=reached(less, 60.0, places), range="three models on A100, 15 to "
                "75 % of the layers resident"),
        Property("less memory costs time", min(slower) >= 1.0 - 1e-9,
                 f"a prefill takes {min(slower):.3g} to {max(slower):.3g} times as long"),
    ]  # fmt: skip


# EnergonAI ----------------------------------------------------------------------------------


def energonai() -> list[Found]:
    """Leave padding out under tensor parallelism, and let no send block a pipeline stage."""
    less, places, more, stages = [], [], [], []
    for model, tp in (("opt-13b", 2), ("opt-30b", 4), ("opt-66b", 8)):
        for longest in (64, 256):
            s = case(model, "a100_sxm", longest, 1, devices=tp, layout=Layout(tp=tp))
            means = np.array([0.5, 0.6, 0.8]) * longest
            full = pass_times(s, [Tokens(32.0, float(longest), float(longest))])[0]
            less += (100.0 * (1.0 - pass_times(s, [Tokens(32.0, means, means)]) / full)).tolist()
            places += [f"{model}, mean {m:g} of {longest} tokens" for m in means]
    for model in ("opt-13b", "opt-66b"):
        for pp in (2, 4, 8):
            s = case(model, "a100_sxm", 256, 1, devices=pp, layout=Layout(pp=pp))
            made = s.made()
            run = run_pass(made.network, machine_of(made, s), [Tokens(8.0, 256.0, 256.0)])
            sent = run.parts["pipeline"][0]
            more.append(float(100.0 * sent / (run.time[0] - sent)))
            stages.append(f"{model}, {pp} stages")
    return [
        Finding(0, span(less), at=reached(less, 37.0, places), range="32 sequences whose mean "
                "length is 50 to 80 % of the longest; 13 to 66 billion parameters"),
        Finding(1, span(more), at=reached(more, 10.0, stages), range="2 to 8 stages over NVLink",
                note="the bytes of a send; waiting of the receiver's stage is not in it"),
    ]  # fmt: skip


# POLCA --------------------------------------------------------------------------------------

_DGX_REST = 6500.0 - 8 * 400.0  # W of a DGX A100 (datasheet: 6.5 kW) that its devices do not draw


def polca() -> list[Found]:
    """Servers that a row holds within the power that was set aside for fewer at their peak.

    Forty servers are in prefill or decode independently of each other; the row's power exceeds
    its mean by 3.1 standard deviations once in a thousand. What is not the devices' draws its full
    share all the time, or (other end) varies with them.
    """
    gains, places, both = [], [], []
    for model in ("bloom-176b", "llama-2-70b", "gpt-neox-20b"):
        for isl, osl in ((2048, 256), (512, 512)):
            s = case(model, "a100_sxm", isl, osl, devices=8)
            batch = np.array([4.0, 8.0, 32.0])
            p = phases_of(s.made(), s, Points.of(batch, isl, osl))[0]
            watts = [np.minimum(x["energy"] / x["time"], 3200.0) for x in (p.decode, p.packed)]
            busy = batch * p.packed["time"] * p.rounds / p.together
            share = busy / (busy + osl * p.decode["time"])
            mean = (1.0 - share) * watts[0] + share * watts[1]
            apart = np.sqrt(share * (1.0 - share)) * np.abs(watts[1] - watts[0])
            row = mean + 3.1 * apart / np.sqrt(40.0)
            for rest in ("constant", "varies"):
                drawn = _DGX_REST + row if rest == "constant" else row * 6500.0 / 3200.0
                gains += (100.0 * (6500.0 / drawn - 1.0)).tolist()
                places += [f"{model}, {isl} in, {osl} out, batch {b:g}, rest {rest}" for b in batch]
            both += (watts[1] > watts[0]).tolist()
    return [
        Finding(0, span(gains), at=reached(gains, 30.0, places), range="three models on DGX A100, "
                "batch 4 to 32, two lengths, 40 servers a row, exceeded once in a thousand"),
        Property("prefill draws more than decode", bool(all(both)), f"{len(both)} cases"),
    ]  # fmt: skip


# MI325X -------------------------------------------------------------------------------------

# The source tells 18.9 million tokens in 17,406 requests, 1086 each; and longer ones
_LENGTHS = ((960, 128), (512, 512), (4096, 1024))
_TP8, _DP8 = Layout(tp=8), Layout(tp=1, dp=8, ep=8)


def _all_tokens(model: str, layout: Layout, dtype: str = "") -> dict[str, Any]:
    """Tokens/s, in and out, of a node at 500 requests, and where throughput comes to a stop.

    That is the number of requests at which nine tenths of the throughput at 2000 are reached.
    """
    total: list[float] = []
    stops: list[float] = []
    batch = np.unique(np.round(np.geomspace(16, 2000, 12)))
    cases = []
    for isl, osl in _LENGTHS:
        s = case(model, "mi325x", isl, osl, devices=8, dtype=dtype, layout=layout)
        cases.append((s.made(), s, Points.of(batch, isl, osl, most_of(s))))
    for (isl, osl), found in zip(_LENGTHS, solve_all(cases), strict=True):
        rate = found["output_tokens_per_s"]
        total.append(float(np.interp(500.0, batch, rate)) * (isl + osl) / osl)
        stops.append(float(batch[np.argmax(rate >= 0.9 * rate.max())]))
    return {"total": total, "stops": stops}


def mi325x() -> list[Found]:
    """Serve four models on a node of eight MI325X; lengths are not stated, so they are swept."""
    dense = _all_tokens("llama-3.1-405b", _TP8, "fp8")
    latent = [_all_tokens("deepseek-v3.2", layout)["total"] for layout in (_TP8, _DP8)]
    qwen, kimi = (np.array(_all_tokens(m, _TP8)["total"]) for m in ("qwen3-235b-a22b", "kimi-k2.5"))
    ratio = qwen / kimi
    names = [f"{isl} in, {osl} out" for isl, osl in _LENGTHS]
    where = "500 requests, prompts of 512 to 4096 and outputs of 128 to 1024 tokens"
    both = [*latent[0], *latent[1]]
    held = 8 * device("mi325x").memory.capacity / 1e12
    switch = "software switches are not in the models of this device, which nobody measured here"
    return [
        Finding(0, span(dense["total"]), at=reached(dense["total"], 15944.0, names), range=where,
                note="0.81 TFLOP a token: the published rate is 62 % of the peak of eight devices "
                "in fp8, products, collectives and attention together; tokens found in a prefix "
                "cache would count without being computed"),
        Finding(1, span(both), at=reached(both, 15343.0, [*names, *(f"{n}, dp 8" for n in names)]),
                range=where + "; attention cut, or sequences spread"),
        NotModelled(2, "tokens of the pictures are not stated"),
        NotModelled(3, f"tokens of the pictures are not stated; as text {kimi.min():.0f} to "
                    f"{kimi.max():.0f} tokens/s"),
        Finding(4, span(ratio), at=reached(ratio, 6.5, names), range=where + ", as text",
                note="active parameters and experts' bytes differ too little for it"),
        NotModelled(5, switch),
        NotModelled(6, switch),
        Finding(7, span(dense["stops"][:2]), at="nine tenths of the throughput at 2000",
                range="405 billion parameters, about 1024 tokens"),
        Finding(8, dense["stops"][2], at="nine tenths of the throughput at 2000",
                range="405 billion parameters, 5120 tokens"),
        Finding(9, held, at="8 x 256 GB", tolerance=0.05),
    ]  # fmt: skip
