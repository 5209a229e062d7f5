"""Vision-language models that keep, compute or cache fewer of their tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...models import Layout, Network, Tokens, get
from ...scenario import Points, Scenario, Traffic, memory_at, solve_points
from ...scenario.memory import kv_bytes
from ...scenario.solve import phases_of, solve_all
from ...techniques import KvPolicy, Storage, Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .kit import reached, span, work_of

__all__ = ["dynamic_llava", "flops_of", "hired", "llava_mini", "matvlm", "zipvl"]

_IMAGE = 576  # tokens of an image of LLaVA-1.5 (336 pixels, patches of 14)


def flops_of(network: Network, group: Tokens) -> float:
    """Products of matrices and attention of one pass, two operations a multiply-add."""
    total = 0.0
    for call in network.calls([group], Layout()):
        numbers: dict[str, Any] = {k: v for k, v in call.fields.items()}
        if call.op == "gemm":
            each = 2.0 * numbers["m"] * numbers["n"] * numbers["k"] * numbers.get("batch", 1)
        elif call.op == "attention":
            each = work_of("attention", **{**numbers, "dtype": "bf16"}).flops["bf16"]
        else:
            continue
        total += float(np.sum(np.asarray(each) * call.count))
    return total


# One token an image -------------------------------------------------------------------------

_FUSION = 4  # layers of the decoder's size that mix image and text first, as published


def llava_mini() -> list[Found]:
    """LLaVA-1.5-7B with 576 tokens an image, and with 1 after 4 layers of fusion."""
    model: Any = get("llava-1.5-7b")
    decoder = model.decoder
    less, places = [], []
    for text in (32, 64, 128):
        whole = Tokens(1, _IMAGE + text, _IMAGE + text)
        full = flops_of(model, whole)
        layers = flops_of(decoder, whole) * _FUSION / 32.0
        vision = full - flops_of(decoder, whole)
        mini = vision + layers + flops_of(decoder, Tokens(1, 1 + text, 1 + text))
        less.append(100.0 * (1.0 - mini / full))
        places.append(f"{text} tokens of text")
    times, cards = [], ("l40s", "a100_sxm", "h100_sxm")
    whole = _IMAGE + 64
    for on in cards:
        both, alone = (_prefill(m, on, whole) for m in ("llava-1.5-7b", "llama-2-7b"))
        fewer = _prefill("llama-2-7b", on, 65)
        times.append(1e3 * (both - alone * (1.0 - _FUSION / 32.0) + fewer))
    beside = 2.0 * (model.parameters - decoder.parameters + decoder.parameters * _FUSION / 32.0)
    frames = _frames(24e9 - beside)
    return [
        NotModelled(0, "an input: one token instead of 576"),
        Finding(1, span(less), at=reached(less, 77.0, places), range="32 to 128 tokens of text"),
        Finding(2, span(times), at=reached(times, 40.0, cards), ceiling=True,
                range="one pass, 64 tokens of text, three data-centre cards",
                note="in 16 bits on the slowest of these cards it takes longer"),
        Finding(3, float(frames), at=f"{frames} frames of one token beside weights, vision "
                "encoder and fusion layers in 24 GB", ceiling=True),
    ]  # fmt: skip


def _prefill(model: str, on: str, tokens: int) -> float:
    """Seconds of the pass over a prompt, without what an engine adds to a request."""
    s = Scenario(model, on, traffic=Traffic(tokens, 1, 1))
    phases, _ = phases_of(s.made(), s, Points.of(1, tokens, 1))
    return float((phases.prefill["time"] * phases.rounds)[0])


def _frames(room: float) -> int:
    """Frames of one token each whose cache fits beside the decoder in `room` bytes."""
    s = Scenario("llama-2-7b", "rtx_3090", traffic=Traffic(1024, 1, 1))
    made = s.made()
    base = memory_at(made, s, 1)
    each = float(kv_bytes(made.network, made.formats, made.layout, made.treatment, 1e4)) / 1e4
    return int((room - (base.total - base.kv)) / each)


# Fewer tokens of image and text -------------------------------------------------------------


def dynamic_llava() -> list[Found]:
    """Keep a fifth of the image after 2 of 32 layers, and half of the text that is generated."""
    decoder = get("llama-2-7b")
    prefill, places = [], []
    for text in (32, 64, 128):
        full = flops_of(decoder, Tokens(1, _IMAGE + text, _IMAGE + text))
        kept = 0.2 * _IMAGE + text
        part = flops_of(decoder, Tokens(1, kept, kept))
        prefill.append(100.0 * (1.0 - (2.0 * full + 30.0 * part) / 32.0 / full))
        places.append(f"{text} tokens of text")
    compute, memory, lengths = [], [], (512, 1024, 2048, 4096, 8192)
    for out in lengths:
        whole, kept = _IMAGE + 64.0 + out, 0.2 * _IMAGE + 64.0 + 0.5 * out
        steps = [(_IMAGE + 64.0 + out * x, 0.2 * _IMAGE + 64.0 + 0.5 * out * x)
                 for x in (0.0, 0.5, 1.0)]  # fmt: skip
        pair = [sum(flops_of(decoder, Tokens(1, n[i], n[i])) for n in steps) for i in (0, 1)]
        compute.append(100.0 * (1.0 - pair[1] / pair[0]))
        memory.append(100.0 * (1.0 - kept / whole))
    words = [f"{out} tokens of output" for out in lengths]
    where = "512 to 8192 tokens of output, a fifth of the image and half of the output kept"
    return [
        Finding(0, span(prefill), at=reached(prefill, 75.0, places),
                range="32 to 128 tokens of text"),
        Finding(1, span(compute), at=reached(compute, 50.0, words), range=where),
        Finding(2, span(memory), at=reached(memory, 50.0, words),
                range=where + "; bytes of the cache"),
    ]  # fmt: skip


# Sparse prefill and mixed bits --------------------------------------------------------------


def zipvl() -> list[Found]:
    """LongVA-7B (a Qwen2-7B) on long videos: attention among important tokens, cache at few bits.

    The share of important tokens is chosen by layer in the source; here it is swept.
    """
    faster, less, places = [], [], []
    shares = (0.2, 0.35, 0.5)
    for length in (32768, 65536, 131072):
        full = Scenario("qwen2.5-7b", "a100_sxm", traffic=Traffic(length, 64, 8))
        cases = [full] + [replace(full, techniques=f"zipvl:share={x}") for x in shares]
        batch = 8
        found = solve_all([(s.made(), s, Points.of(1, length, 64)) for s in cases])
        first = [float(f["ttft"][0]) for f in found]
        held = [memory_at(s.made(), s, batch).total for s in cases]
        for i, share in enumerate(shares, 1):
            faster.append(first[0] / first[i])
            less.append(100.0 * (1.0 - held[i] / held[0]))
            places.append(f"{length // 1024}K tokens, {100 * share:.0f} % important")
    where = "Qwen2-7B on an A100, 32K to 128K tokens, 20 to 50 % of them important"
    return [
        Finding(0, span(faster), at=reached(faster, 2.6, places), range=where + "; first token"),
        Finding(1, span(less), at=reached(less, 50.0, places),
                range=where + "; all of the device's memory, 8 sequences"),
    ]  # fmt: skip


# States for a share of the layers -----------------------------------------------------------


def _hybrid(share: float) -> Network:
    """Build Phi-2 with a share of its mixers replaced by those of Mamba-2 of the same width."""
    base: Any = get("phi-2")
    other: Any = get("mamba2-2.7b")
    (block,) = base.blocks
    states = round(block.count * share)
    mixed = (replace(block, count=block.count - states),
             replace(block, count=states, mixer=other.blocks[0].mixer))  # fmt: skip
    return replace(base, name="phi-2-hybrid", blocks=mixed)


def matvlm() -> list[Found]:
    """Put a quarter, or half, of the layers of a Phi-2 on states; generate long answers."""
    faster, less, places = [], [], []
    for share in (0.25, 0.5):
        for length in (2048, 8192, 32768):
            pair = [Scenario(m, "rtx_3090", engine="hf", traffic=Traffic(1024, length, 1))
                    for m in ("phi-2", _hybrid(share))]  # fmt: skip
            one, two = (float(solve_points(s, Points.of(1, 1024, length))["e2e"][0]) for s in pair)
            held = [memory_at(s.made(), s, 1).total for s in pair]
            faster.append(one / two)
            less.append(100.0 * (1.0 - held[1] / held[0]))
            places.append(f"{100 * share:.0f} % of the layers, {length // 1024}K tokens generated")
    where = "Phi-2 width, a quarter or half of the layers, 2K to 32K tokens generated, RTX 3090"
    return [
        Finding(0, span(faster), at=reached(faster, 3.6, places), range=where,
                note="with half of the layers left as they are, no more than twice is possible by "
                "bytes; the published teacher ran another attention kernel"),
        Finding(1, span(less), at=reached(less, 27.5, places), range=where),
        Property("a replaced layer keeps a constant number of bytes", less[2] > less[0],
                 f"{less[0]:.3g} % less at 2K, {less[2]:.3g} % at 32K tokens"),
    ]  # fmt: skip


# Tokens dropped before the decoder ----------------------------------------------------------

# The source's card has no unit for 16-bit products: weights and cache in 16 bits, fp32 lanes,
# scores through memory (an eager stack of its day)
_PASCAL = Treatment(
    weights=Storage(16, compute="fp32"), ends=Storage(16, compute="fp32"),
    kv=KvPolicy(storage=Storage(16)), attention="standard",
)  # fmt: skip


def hired() -> list[Found]:
    """LLaVA-Next-7B's decoder on a P40: all tokens of a large image, and a fifth of them."""
    text, image = 40, 2880  # five views of 576 tokens
    faster, sooner, saved, places = [], [], [], []
    for osl in (4, 16, 64, 256):
        pair = [Scenario("llama-2-7b", "p40", engine="hf", techniques=_PASCAL,
                         traffic=Traffic(round(image * share) + text, osl, 1))
                for share in (1.0, 0.2)]  # fmt: skip
        found = solve_all([(s.made(), s, Points.of(1, s.traffic.isl, osl)) for s in pair])
        one, two = (float(f["e2e"][0]) for f in found)
        first = [float(f["ttft"][0]) for f in found]
        held = [memory_at(s.made(), s, 1).total for s in pair]
        faster.append(one / two)
        sooner.append(first[0] - first[1])
        saved.append((held[0] - held[1]) / 1e9)
        places.append(f"{osl} tokens of answer")
    where = "2880 tokens of image or 576, 40 of text, 4 to 256 of answer, one Tesla P40"
    return [
        Finding(0, span(faster), at=reached(faster, 4.7, places), range=where,
                note="only where the answer is a few tokens"),
        Finding(1, span(sooner), at=reached(sooner, 15.0, places), range=where,
                note="on the fp32 lanes the whole prompt takes 4 s; products of 16-bit numbers run "
                "far below their rate in the published stack (the chip's own 16-bit rate is 1/64)"),
        Finding(2, span(saved), at=reached(saved, 2.3, places), range=where),
    ]  # fmt: skip
