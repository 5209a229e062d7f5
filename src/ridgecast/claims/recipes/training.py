"""Training of language models: layouts, tiers of memory, and what overlaps with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...hardware import Link, resolve
from ...models import get
from ...models.attention import GroupedAttention
from ...models.ffn import DenseFfn
from ...models.image import Canvas
from ...models.network import Layout, Network
from ...models.transformer import Block, Decoder
from ...scenario import Host, Machine, engine, formats_of, run_pass
from ...techniques import Treatment, Tuning, treatment_of
from ...training import Plan, Step, step_time, training_memory
from ..verdict import Finding, Found, NotModelled, Property
from .kit import span

__all__ = ["deep_optimizer_states", "fuyou", "guidance_distill", "megatron", "memo", "pangu",
           "zero_infinity"]  # fmt: skip

_ALL = frozenset({"states", "weights", "activations"})


def _near(values: Mapping[str, float], wanted: float) -> str:
    key = min(values, key=lambda k: abs(values[k] - wanted))
    return f"{values[key]:.3g} at {key}"


def _gpt(layers: int, hidden: int, heads: int) -> Decoder:
    """Make a GPT: full attention, a feed-forward part of four times its width, a tied head."""
    mixer = GroupedAttention(heads, heads, hidden // heads, rotary=False)
    ffn = DenseFfn(4 * hidden, gated=False, activation="gelu")
    return Decoder("gpt", hidden=hidden, vocab=50257, blocks=(Block(layers, mixer, ffn),),
                   tied=True, norm="layer", norm_bias=True)  # fmt: skip


_TRILLION = (128, 25600, 160)  # layers, width, heads: 1.0e12 parameters (Megatron-LM, table 1)


def _executed(step: Step) -> float:
    """Operations/s of a device, what is recomputed included: what these sources report."""
    return step.executed / step.time / step.devices


def zero_infinity() -> list[Found]:
    """1T parameters on V100s: how many hold it, and how fast 512 with all states elsewhere run.

    Nodes of 16 with eight ports of 100 Gb/s; two to five sequences of 1024 tokens a device; none
    to all of the exchange beside compute. A replica is four devices.
    """
    network = _gpt(*_TRILLION)
    needed: dict[str, float] = {}
    for gradient in (2.0, 4.0):
        t = Treatment(tuning=Tuning(gradient_bytes=gradient))
        for count in range(512, 1025, 32):
            layout = Layout(tp=16, pp=count // 16, gpus_per_node=16)
            plan = Plan(1, 1024, layout=layout, recompute="full")
            if training_memory(network, plan, t).total <= 32e9:
                needed[f"gradients of {gradient:.0f} bytes"] = float(count)
                break
    plain = resolve("v100_sxm")
    hw = replace(plain, links={**plain.links, "network": Link(8 * 12.5e9 / 16, 5e-6)})
    rates: dict[str, float] = {}
    for batch in (8, 20):
        for overlap in (0.0, 1.0):
            plan = Plan(batch, 1024, data=128, zero=3, recompute="full", offload=_ALL,
                        layout=Layout(tp=4, gpus_per_node=16))  # fmt: skip
            step = step_time(network, hw, plan, host=Host(memory_bandwidth=100e9 / 16),
                             overlap=overlap)  # fmt: skip
            where = f"{batch // 4} sequences a device, {100 * overlap:.0f} % overlapped"
            rates[where] = step.flops_per_s
    total = {k: v * 512 / 1e15 for k, v in rates.items()}
    share = {k: 100.0 * v / 125e12 for k, v in rates.items()}
    return [
        Finding(0, span(list(needed.values())), at=_near(needed, 800.0),
                range="16 shards a layer, the rest stages; gradients of 2 or 4 bytes"),
        Finding(1, span(list(total.values())), at=_near(total, 25.0),
                range="2 and 5 sequences a device, no or all exchange overlapped"),
        Finding(2, span(list(share.values())), at=_near(share, 40.0), range="the same"),
        Finding(3, (1.5 / 20 * 1.0, 29.5 / 20), at="20 bytes a parameter: 1.5 TB of host memory "
                "alone, 28 TB of NVMe with it", range="a DGX-2 without and with its drives"),
        NotModelled(4, "history of models' sizes"),
    ]  # fmt: skip


def fuyou() -> list[Found]:
    """13B and 175B tuned on one RTX 4090, states on drives; the optimiser beside the passes or not.

    Twelve drives give 20 to 40 GB/s for states; batches of 8 and 32 sequences of 1024 tokens.
    """
    network = _gpt(40, 5120, 40)
    ours, theirs = {}, {}
    for batch in (8, 32):
        for speed in (20e9, 40e9):
            plan = Plan(batch, 1024, recompute="full", offload=_ALL, logits=0.25)
            host = Host(memory_bandwidth=speed)
            where = f"batch {batch}, {speed / 1e9:.0f} GB/s"
            for overlap, found in ((1.0, ours), (0.0, theirs)):
                step = step_time(network, "rtx_4090", plan, host=host, overlap=overlap)
                found[where] = _executed(step) / 1e12
    room = resolve("rtx_4090").memory.capacity
    able = [n for n in ("opt-13b", "opt-30b", "opt-66b", "gpt-3-175b")
            if training_memory(get(n), Plan(4, 1024, recompute="full", logits=0.25,
                               offload=_ALL | {"gradients"})).total <= room]  # fmt: skip
    largest = max(get(n).parameters / 1e9 for n in able)
    return [
        Finding(0, largest, at=f"{able[-1]} on 24 GB, 4 sequences of 1024 tokens; 20 bytes a "
                "parameter are 3.5 TB on drives"),
        Finding(1, span(list(ours.values())), at=_near(ours, 156.0),
                range="batch 8 and 32, drives at 20 and 40 GB/s, recomputed products counted"),
        Finding(2, span(list(theirs.values())), at=_near(theirs, 45.0),
                range="the same, the optimiser after the passes"),
    ]  # fmt: skip


def deep_optimizer_states() -> list[Found]:
    """Update of a 20B on four H100s, on the host alone or shared with the devices.

    A device's share comes and goes over its link (12 bytes each way) while the host works on the
    rest: rates add. Host memory gives 30 to 120 GB/s a device.
    """
    network = get("gpt-neox-20b")
    link = resolve("h100_sxm").links["pcie"].bandwidth
    gains, share = {}, {}
    for batch in (1, 4, 16):
        plan = Plan(batch, 2048, data=4, zero=3, recompute="full", offload=frozenset({"states"}))
        for speed in (30e9, 60e9, 120e9):
            step = step_time(network, "h100_sxm", plan, host=Host(memory_bandwidth=speed),
                             overlap=0.0)  # fmt: skip
            here = link / 12.0 / (link / 12.0 + speed / 28.0)
            where = f"batch {batch}, host at {speed / 1e9:.0f} GB/s"
            shorter = step.time - step.optimiser * here
            gains[where], share[where] = step.time / shorter, here
    best = [100.0 * s for s in share.values()]
    return [
        Finding(0, span(list(gains.values())), at=_near(gains, 2.5),
                range="1 to 16 sequences of 2048 tokens a device, host at 30 to 120 GB/s"),
        Property("the best split leaves work for both", 0.0 < min(best) and max(best) < 100.0,
                 f"{min(best):.0f} to {max(best):.0f} % on the devices"),
    ]  # fmt: skip


def megatron() -> list[Found]:
    """1T parameters on 3072 A100s (tp 8, 64 stages, 6 replicas, 3072 sequences of 2048 tokens).

    Interleaved stages: GPT-3 on 96 devices (12 stages), 12 to 60 sequences, 2 to 8 chunks a stage.
    Rates count recomputed products, as the source's formula does.
    """
    rates = {}
    for chunks in (1, 2):
        plan = Plan(1, 2048, data=6, layout=Layout(tp=8, pp=64), accumulate=512, recompute="full")
        step = step_time(_gpt(*_TRILLION), "a100_sxm", plan, interleave=chunks)
        rates[f"{chunks} chunk(s) a stage"] = _executed(step)
    gains = {}
    for batch in (12, 36, 60):
        plan = Plan(1, 2048, layout=Layout(tp=8, pp=12), accumulate=batch, recompute="full")
        base = step_time(get("gpt-3-175b"), "a100_sxm", plan).time
        for chunks in (2, 4, 8):
            mine = step_time(get("gpt-3-175b"), "a100_sxm", plan, interleave=chunks).time
            gains[f"{batch} sequences, {chunks} chunks"] = 100.0 * (base / mine - 1.0)
    total = {k: v * 3072 / 1e15 for k, v in rates.items()}
    share = {k: 100.0 * v / 312e12 for k, v in rates.items()}
    note = "kernels at the rates that they reach alone, without the host, stragglers and failures"
    return [
        Finding(0, span(list(gains.values())), at=_near(gains, 10.0),
                range="12 to 60 sequences on 12 stages, 2 to 8 chunks"),
        Finding(1, span(list(total.values())), at=_near(total, 502.0), range="1 and 2 chunks",
                note=note),
        Finding(2, span(list(share.values())), at=_near(share, 52.0), range="1 and 2 chunks",
                note=note),
    ]  # fmt: skip


def memo() -> list[Found]:
    """Activations on the host against recomputed: a 7B on eight A100s, 128k to 1M tokens."""
    network = get("llama-2-7b")
    layout = Layout(tp=8)
    mfu, gain = {}, {}
    for length in (131072, 524288, 1048576):
        plan = Plan(1, length, layout=layout, sequence_parallel=True, logits=1 / 64)
        away = replace(plan, offload=frozenset({"activations"}))
        mine = step_time(network, "a100_sxm", away)
        other = step_time(network, "a100_sxm", replace(plan, recompute="full"))
        where = f"{length} tokens"
        mfu[where] = 100.0 * mine.flops_per_s / 312e12
        gain[where] = mine.flops_per_s / other.flops_per_s
    room = resolve("a100_sxm").memory.capacity
    ends = []
    for offload in (frozenset(), frozenset({"activations"})):
        lengths = [2**k for k in range(12, 24)]
        able = [n for n in lengths if training_memory(network, Plan(
            1, n, layout=layout, sequence_parallel=True, logits=1 / 64, offload=offload)).total
            <= room]  # fmt: skip
        ends.append(float(max(able, default=0)))
    note = "fragmentation and tuned layouts of the baselines are not modelled"
    return [
        *(Finding(i, span(list(gain.values())), at=_near(gain, 2.4), note=note,
                  range="128k to 1M tokens, against recomputation of all layers") for i in (0, 1)),
        Finding(2, mfu["1048576 tokens"], at="1M tokens, heads over eight devices"),
        Finding(3, (ends[0], ends[1]), at=f"{ends[0]:.0f} tokens with activations kept, "
                f"{ends[1]:.0f} with them on the host", range="80 GB a device"),
    ]  # fmt: skip


def pangu() -> list[Found]:
    """Count the parameters of Pangu Pro MoE; its accelerator is not in the catalogue."""
    network = get("pangu-pro-moe")
    gone = "Ascend accelerators are not in the catalogue"
    return [
        Finding(0, network.parameters / 1e9, at="all experts", tolerance=0.05),
        Finding(1, network.active_parameters / 1e9, at="those of one token", tolerance=0.05),
        NotModelled(2, gone),
        NotModelled(3, gone),
    ]  # fmt: skip


def guidance_distill() -> list[Found]:
    """One network call a step instead of two; SDXL's U-Net with adapters of 2 %.

    Calls of 1024 x 1024 pictures, both halves of guidance in one batch or one after another.
    """
    network = get("sdxl-unet")
    t = treatment_of("guidance-distill-adapters")
    faster: dict[str, float] = {}
    for name in ("rtx_4090", "a100_sxm", "h100_sxm"):
        hw = resolve(name)
        machine = Machine(hw, Layout(), formats_of(network, hw), engine("hf"))
        for batch in (1, 4):
            groups: list[list[Any]] = [[Canvas(1024, 1024, batch=b)] for b in (batch, 2 * batch)]
            once, twice = (float(run_pass(network, machine, g).time[0]) for g in groups)
            mine = once * (1.0 + t.extra_flops)
            faster[f"{name}, {batch}, halves in one batch"] = twice / mine
            faster[f"{name}, {batch}, halves in turn"] = 2.0 * once / mine
    held = _tuned(network, t)
    return [
        NotModelled(0, "an input: one call a step, by construction"),
        Finding(1, span(list(faster.values())), at=_near(faster, 2.0),
                range="three devices, batch 1 and 4, halves batched or in turn"),
        NotModelled(2, "an input of the method"),
        Finding(3, held / 1e9, at=f"{held / 1e9:.3g} GB: weights in 16 bits, states of 2 %, what "
                "attention and activation functions keep of one picture", ceiling=True),
    ]  # fmt: skip


def _tuned(network: Network, t: Treatment) -> float:
    """Bytes of training: frozen weights, states of what is trained, activations of one pass."""
    pictures: Any = [Canvas(1024, 1024)]
    kept = 0.0
    for c in network.calls(pictures, Layout()):
        f = {k: float(np.max(v)) for k, v in c.fields.items() if not isinstance(v, str | bool)}
        elements = 0.0
        if c.op == "normalisation":
            elements = f["rows"] * f["cols"]
        elif c.op == "pointwise":
            elements = f["elements"] * f.get("inputs", 1.0)
        elif c.op == "attention":
            wide = f["q_len"] * f["q_heads"] + 2.0 * f["kv_len"] * f["kv_heads"]
            elements = f["batch"] * wide * f["head_dim"]
        kept += 2.0 * elements * float(np.max(c.count))
    count = network.parameters
    return 2.0 * count + 16.0 * count * t.trainable + kept + engine("hf").context
