"""Fine-tuning: what frozen, narrow or streamed weights leave to hold and to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...models import get
from ...models.network import Network
from ...techniques import Treatment, treatment_of
from ...training import Plan, step_time, training_memory
from ...training.memory import adapter_parameters
from ...training.step import model_flops
from ..verdict import Finding, Found, NotModelled, Property
from .kit import device, span

__all__ = ["e2_llm", "frugal", "int2_1", "lisa", "longlora", "loram", "lq_lora", "paca", "perp",
           "qlora", "s2a", "slimfit", "zo2"]  # fmt: skip

_GB = 1e9
_QUALITY = "a figure of quality"


def _held(model: str | Network, technique: str, plan: Plan) -> float:
    """Bytes on the device in training."""
    return training_memory(get(model), plan, treatment_of(technique)).total


def _near(values: Mapping[str, float], wanted: float) -> str:
    key = min(values, key=lambda k: abs(values[k] - wanted))
    return f"{values[key]:.3g} at {key}"


def _longest(fits: Callable[[int], bool], most: int = 1 << 24) -> int:
    """Largest number that fits, to a hundredth; 0 where not even 64 does."""
    low = 64
    if not fits(low):
        return 0
    while low < most and fits(low * 2):
        low *= 2
    high = low * 2
    while high - low > max(low // 100, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def qlora() -> list[Found]:
    """LLaMA-65B at 4 bits with adapters of 64 columns; optimiser states are paged to the host.

    OASST1 as in the source: 1875 steps of 16 sequences; their mean length is swept, up to 512.
    """
    paged = frozenset({"states"})
    held: dict[str, float] = {}
    for length in (256, 512, 1024):
        plan = Plan(1, length, recompute="full", offload=paged)
        held[f"{length} tokens"] = _held("llama-65b", "qlora", plan) / _GB
    t = treatment_of("qlora")
    hours: dict[str, float] = {}
    for length in (256, 512):
        for name in ("rtx_a6000", "a100_sxm"):
            plan = Plan(1, length, recompute="full", accumulate=16)
            hours[f"{length} tokens, {name}"] = (
                step_time(get("llama-65b"), name, plan, t).time * 1875 / 3600.0
            )
    bits = t.weights.bits_each if t.weights else 0.0
    return [
        Finding(0, span(list(held.values())), at=f"at most {max(held.values()):.3g} GB",
                range="1 sequence of 256 to 1024 tokens, activations recomputed", ceiling=True),
        Finding(1, bits, at="4 bits, an 8-bit scale a 64, an fp32 one a 256 of these"),
        Finding(2, span(list(hours.values())), at=_near(hours, 24.0),
                range="1875 steps of 16 sequences of 256 to 512 tokens; A6000 and A100",
                note="products, copies of weights and adapters alone; evaluation between steps and "
                "the host's work are not counted"),
    ]  # fmt: skip


def loram() -> list[Found]:
    """Adapters beside a pruned copy of a 70B at 4 bits; 65 to 85 % of the weights pruned."""
    network = get("llama-3.1-70b")
    plan = Plan(1, 512, recompute="full")
    less: dict[str, float] = {}
    held: dict[str, float] = {}
    for kept in (0.35, 0.25, 0.20, 0.15):
        where = f"{100 * (1 - kept):.0f} % pruned"
        t = treatment_of(f"loram:kept={kept}")
        weights = training_memory(network, plan, replace(t, ends=t.weights)).weights
        added = 2.0 * adapter_parameters(network, t.tuning.rank)
        less[where] = 2.0 * network.parameters / (weights - added)
        held[where] = training_memory(network, plan, t).total / _GB
    swept = "65 to 85 % pruned, embeddings stored alike"
    return [
        Finding(0, span(list(held.values())), at=_near(held, 20.0),
                range="65 to 85 % pruned, 1 sequence of 512 tokens"),
        Finding(1, span(list(less.values())), at=_near(less, 15.81), range=swept),
        Finding(2, span(list(less.values())), at=_near(less, 16.95), range=swept),
    ]  # fmt: skip


def lq_lora() -> list[Found]:
    """LLaMA-2-70B at 2.75 bits; low-rank parts of 64 columns at 8 bits are stored with it."""
    network, bits = get("llama-2-70b"), {}
    matrices = sum(w.total for w in network.weights() if w.role == "linear")
    for rank, each in ((32, 8), (64, 8), (64, 16)):
        extra = adapter_parameters(network, rank) * each / matrices
        bits[f"{rank} columns of {each} bits"] = 2.75 + extra
    t = replace(treatment_of("lq-lora"), tuning=treatment_of("").tuning)
    plain = training_memory(network, Plan(1, 64), t)
    stored = (plain.weights + adapter_parameters(network, 64)) / _GB
    return [
        Finding(0, (stored, (plain.weights + plain.context) / _GB + 2.0 * 0.83),
                at=f"{stored:.3g} GB of weights and low-rank parts", tolerance=0.1,
                range="weights alone, and with a context and 16-bit adapters"),
        Finding(1, span(list(bits.values())), at=_near(bits, 2.85),
                range="low-rank parts of 32 and 64 columns at 8 and 16 bits"),
        NotModelled(2, _QUALITY + ": which bits are as good as QLoRA's"),
    ]  # fmt: skip


def perp() -> list[Found]:
    """Biases and norms of OPT retrained on one A100 of 80 GB."""
    shares: dict[str, float] = {}
    for name in ("opt-2.7b", "opt-6.7b", "opt-13b", "opt-30b"):
        network = get(name)
        for rank in (0, 8, 16):
            own = _biases(network) + adapter_parameters(network, rank)
            shares[f"{name}, adapters of {rank} columns"] = 100.0 * own / network.parameters
    room = device("a100_sxm").memory.capacity
    able = [n for n in ("opt-13b", "opt-30b", "opt-66b")
            if _held(n, "perp", Plan(1, 2048, recompute="full")) <= room]  # fmt: skip
    whole = _held("opt-13b", "", Plan(1, 2048, recompute="full")) <= room
    largest = max(get(n).parameters for n in able) / 1e9
    return [
        Finding(0, span(list(shares.values())), at=_near(shares, 0.31),
                range="biases and norms of OPT-2.7B to 30B, alone or with adapters of 8 or 16"),
        Finding(1, largest, at=f"{able[-1]}: the largest of its family that fits 80 GB"),
        Property("13B does not fit where all is retrained", not whole, "16 bytes a parameter"),
    ]  # fmt: skip


def _biases(network: Any) -> float:
    """Biases of all linear layers (as many as columns) and both parts of the norms."""
    norms = sum(w.total for w in network.weights() if w.role == "norm")
    hidden = network.hidden
    return norms + network.layers * (3 + 1 + 4 + 1) * hidden


def int2_1() -> list[Found]:
    """LLaMA-7B at 2 to 4 bits with adapters of 16 columns, against adapters on 16-bit weights."""
    plan = Plan(1, 512, recompute="full")
    network, gains = get("llama-7b"), {}
    for bits in (2, 3, 4):
        base = _held(network, "lora", plan)
        gains[f"{bits} bits"] = base / _held(network, f"int2-1-emef:bits={bits}", plan)
    stored = sum(w.total for w in network.weights() if w.role == "linear") * 2.0 / 8.0
    over = 1.0 + 2.0 * adapter_parameters(network, 16) / stored
    room = device("rtx_3060_laptop").memory.capacity
    fits: dict[int, float] = {}
    for bits in (2, 4):
        able = [get(n).parameters / 1e9 for n in ("llama-7b", "llama-13b", "llama-30b")
                if _held(n, f"int2-1-emef:bits={bits}", plan) <= room]  # fmt: skip
        fits[bits] = max(able, default=0.0)
    return [
        Finding(0, span(list(gains.values())), at=_near(gains, 5.6),
                range="2 to 4 bits, 1 sequence of 512 tokens, embeddings in 16 bits",
                note="against adapters on 16-bit weights; all trained takes far more"),
        Finding(1, (fits[4], fits[2]), at=f"{fits[4]:.3g} B at 4 bits, {fits[2]:.3g} B at 2",
                range="RTX 3060 Laptop, 6 GB"),
        Finding(2, over, at="adapters of 16 columns in 16 bits on all linear layers"),
        Finding(3, 2.0 * over, at="the same, in bits of the weights", tolerance=0.05),
    ]  # fmt: skip


def zo2() -> list[Found]:
    """OPT-175B tuned with forward passes, blocks streamed from the host in 16 bits."""
    held: dict[str, float] = {}
    for length in (512, 1024, 2048):
        plan = Plan(1, length, offload=frozenset({"weights"}))
        held[f"{length} tokens"] = _held("opt-175b", "zo2", plan) / _GB
    plan = Plan(1, 2048, offload=frozenset({"weights"}))
    t = treatment_of("zo2")
    step = step_time(get("opt-175b"), "a100_sxm", replace(plan, batch=4), t)
    return [
        Finding(0, span(list(held.values())), at=f"at most {max(held.values()):.3g} GB",
                ceiling=True, range="two blocks, embedding and head resident, 512 to 2048 tokens"),
        Property("blocks stream beside two forward passes of 4 sequences",
                 step.waiting == 0.0, f"{step.time:.3g} s a step, {step.waiting:.2g} s waited"),
    ]  # fmt: skip


def lisa() -> list[Found]:
    """Two layers, embedding and head at a time, against adapters; all in 16 bits, as its table."""
    told, holds = [], True
    for name, layers in (("llama-2-7b", 32), ("llama-2-70b", 80)):
        network, plan = get(name), Plan(1, 1024)
        ends = sum(w.total for w in network.weights() if w.role in ("embedding", "head"))
        share = (ends + 2.0 * (network.parameters - ends) / layers) / network.parameters
        held = []
        for technique in (f"lisa:layers={share}", "lora:rank=128", "lora:rank=512", ""):
            t = treatment_of(technique)
            t = replace(t, tuning=replace(t.tuning, state_bytes=4.0, master_bytes=0.0))
            held.append(training_memory(network, plan, t).total / _GB)
        holds &= held[0] <= min(held[2], 1.1 * held[1])
        told.append(f"{name}: {held[0]:.4g} GB, adapters of 128 columns {held[1]:.4g}, of 512 "
                    f"{held[2]:.4g}, all trained {held[3]:.4g}")  # fmt: skip
    return [Property("memory as of adapters: within a tenth of 128 columns, below 512", holds,
                     "; ".join(told))]  # fmt: skip


def frugal() -> list[Found]:
    """States of a quarter and of none of the parameters: bytes by formula, LLaMA-1B to 7B."""
    network, plan = get("llama-2-7b"), Plan(1, 256)
    sizes = {}
    for share in (1.0, 0.25, 0.0):
        t = treatment_of(f"frugal:share={share}")
        sizes[share] = training_memory(network, plan, t).states - 4.0 * network.parameters
    expected = 8.0 * network.parameters
    holds = abs(sizes[1.0] - expected) < 1e-3 * expected and sizes[0.0] == 0.0
    told = ", ".join(f"{100 * s:.0f} %: {v / _GB:.3g} GB" for s, v in sizes.items())
    return [Property("moments take 8 bytes of each parameter that has them", holds, told)]


def longlora() -> list[Found]:
    """Attention's work by length; the longest sequences that fit on 8 A100s of 80 GB.

    ZeRO over all eight, fused attention; activations kept, or recomputed and left on the host.
    """
    network = get("llama-2-7b")

    def scores(length: int) -> float:
        plan = Plan(1, length)
        return model_flops(network, plan) - 6.0 * length * _active_parameters(network)

    room = device("a100_sxm").memory.capacity
    found: dict[str, tuple[int, int]] = {}
    for name in ("llama-2-7b", "llama-2-70b"):
        ends = []
        for recompute, away in (("none", ()), ("full", ("activations",))):

            def fits(length: int, r: str = recompute, a: Any = away, n: str = name) -> bool:
                plan = Plan(1, length, data=8, zero=3, recompute=r, offload=frozenset(a),
                            logits=min(1.0, 4096 / length))  # fmt: skip
                return _held(n, "longlora", plan) <= room

            ends.append(_longest(fits))
        found[name] = (min(ends), max(ends))
    swept = "all activations kept, to recomputed with layers' inputs on the host; chunked loss"
    return [
        Finding(0, scores(8192) / scores(2048), at="8192 against 2048 tokens"),
        *(Finding(i, (float(found[n][0]), float(found[n][1])), at=f"{found[n][0]} tokens with all "
                  f"activations kept, {found[n][1]} with recomputation", range=swept)
          for i, n in ((1, "llama-2-7b"), (2, "llama-2-70b"))),
    ]  # fmt: skip


def _active_parameters(network: Network) -> float:
    return sum(w.total for w in network.weights() if w.role != "embedding")


def e2_llm() -> list[Found]:
    """Tuning on 4k tokens against 32k: work and activations, LLaMA-2-7B."""
    network = get("llama-2-7b")
    short, long = Plan(1, 4096), Plan(1, 32768)
    work = model_flops(network, long) / model_flops(network, short)
    held = training_memory(network, long).activations / training_memory(network, short).activations
    return [
        NotModelled(0, "the length is the method's choice"),
        Property("32k tokens take more than 8 times the work of 4k", work > 8.0, f"{work:.3g}"),
        Property("and 8 times the activations", abs(held - 8.0) < 0.1, f"{held:.3g}"),
    ]  # fmt: skip


def slimfit() -> list[Found]:
    """95 % of the layers frozen, 8-bit or 4-bit activations: ViT-B and BERT-base, batch 128.

    The baseline keeps scores and dropout's masks, as training of that time did; fp32 activations
    are twice both sides.
    """
    gains: dict[str, float] = {}
    gpus: dict[str, list[float]] = {}
    for name, length in (("vit-b-16", 197), ("bert-base", 384)):
        for batch in (32, 128):
            for flash in (False, True):
                plan = Plan(batch, length, flash=flash, dropout=not flash)
                base = training_memory(get(name), plan)
                for bits in (4, 8):
                    t = treatment_of(f"slimfit:bits={bits}")
                    mine = training_memory(get(name), plan, t)
                    scores = "fused" if flash else "stored"
                    gains[f"{name}, {batch}, {bits} bits, scores {scores}"] = (
                        base.total / mine.total
                    )
    for name, length in (("vit-b-16", 577), ("bert-base", 384)):
        plan = Plan(128, length, flash=False, dropout=True)
        # fp32: twice the bytes; 8 bits of 32 are 4 of 16
        wide = [2.0 * training_memory(get(name), plan, t).activations / 32e9
                for t in (Treatment(), treatment_of("slimfit:bits=4"))]  # fmt: skip
        gpus[name] = [float(np.ceil(w)) for w in wide]
    swept = "ViT-B and BERT-base, batch 32 and 128, 4 and 8 bits, scores stored or fused"
    return [
        Finding(0, span(list(gains.values())), at=_near(gains, 2.2), range=swept),
        Finding(1, span(list(gains.values())), at=_near(gains, 3.1), range=swept),
        NotModelled(2, "which layers may be frozen is a finding about training"),
        *(Finding(i, gpus[n][1], at=f"{gpus[n][0]:.0f} for ordinary training",
                  range="32 GB each; fp32, kept at 8 bits; pictures of 384 pixels",
                  note="scores, masks and results of dropout in fp32") for i, n in
          ((3, "vit-b-16"), (4, "bert-base"))),
    ]  # fmt: skip


def s2a() -> list[Found]:
    """No inputs of frozen matrices, what else is kept at 4 bits, against adapters."""
    gains: dict[str, float] = {}
    for name, length in (("vit-b-16", 197), ("bert-base", 384)):
        for batch in (16, 32, 64, 128):
            for flash in (False, True):
                plan = Plan(batch, length, flash=flash)
                base = training_memory(get(name), plan, treatment_of("lora"))
                mine = training_memory(get(name), plan, treatment_of("s2a"))
                scores = "fused" if flash else "stored"
                gains[f"{name}, batch {batch}, scores {scores}"] = base.total / mine.total
    return [
        Finding(0, span(list(gains.values())), at=_near(gains, 4.0), tolerance=0.15,
                range="ViT-B and BERT-base, batch 16 to 128, scores stored (at 4 bits) or fused")
    ]  # fmt: skip


def paca() -> list[Found]:
    """Columns trained in place against adapters of as many: LLaMA-3-8B on an A100.

    Without recomputation, so that what is kept can differ; 64 columns of each matrix.
    """
    network = get("llama-3-8b")
    ours, theirs = treatment_of("paca"), treatment_of("lora:rank=64")
    less_time, less_memory, longer, faster = {}, {}, {}, {}
    room = device("a100_sxm").memory.capacity
    for batch, length in ((1, 512), (2, 512), (4, 512), (8, 512)):
        plan = Plan(batch, length)
        where = f"{batch} x {length} tokens"
        mine, base = (step_time(network, "a100_sxm", plan, t).time for t in (ours, theirs))
        less_time[where] = 100.0 * (1.0 - mine / base)
        faster[where] = 100.0 * (base / mine - 1.0)
        held = [training_memory(network, plan, t).total for t in (ours, theirs)]
        less_memory[where] = 100.0 * (1.0 - held[0] / held[1])
    most = [_longest(lambda n, t=t: training_memory(network, Plan(1, n), t).total <= room)
            for t in (ours, theirs)]  # fmt: skip
    longer["1 sequence on 80 GB"] = 100.0 * (most[0] / most[1] - 1.0)
    swept = "1 to 8 sequences of 512 tokens, 64 columns"
    return [
        Finding(0, span(list(less_time.values())), at=_near(less_time, 22.0), range=swept),
        Finding(1, span(list(less_memory.values())), at=_near(less_memory, 16.0), range=swept),
        Finding(2, span(list(longer.values())), at=_near(longer, 23.0),
                range=f"{most[0]} and {most[1]} tokens fit"),
        Finding(3, span(list(faster.values())), at=_near(faster, 16.0), range=swept),
    ]  # fmt: skip
