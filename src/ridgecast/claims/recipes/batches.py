"""What shares a pass: nano-batches, common prefixes, adapters, tokens of fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...models import get
from ...models.network import Tokens
from ...scenario import memory_at
from ...techniques import Treatment
from ..verdict import Finding, Found, Property
from .kit import device, reached, span
from .serving import case, most_of, pass_times, rates

__all__ = ["batchllm", "flexllm", "nanoflow", "s_lora"]

F64 = npt.NDArray[np.float64]

# NanoFlow -----------------------------------------------------------------------------------

# Mean tokens of the source's traces (Splitwise, LMSYS-Chat, ShareGPT) and of its constant lengths
_LENGTHS = ((1155, 211), (102, 222), (246, 322), (512, 512), (1024, 512), (512, 1024))
_SERVED = (("llama-2-70b", 8), ("mixtral-8x7b", 8), ("llama-3-8b", 1))


def nanoflow() -> list[Found]:
    """Nano-batches at once, against one kernel after another; and against the products alone.

    Half of what can hide does where attention keeps 80 % of its speed on 40 % of the units
    (assumed): 1.25 t of attention let 0.75 t of products run beside it. All is the other end.
    The optimum is the peak rate over two operations a parameter and token.
    """
    gains: list[float] = []
    shares: list[float] = []
    places: list[str] = []
    for model, devices in _SERVED:
        net, peak = get(model), device("a100_sxm").rate("fp16") * devices
        optimum = peak / (2.0 * net.active_parameters)
        for isl, osl in _LENGTHS:
            before = case(model, "a100_sxm", isl, osl, devices=devices)
            batch = min(most_of(before), 2048)
            plain = float(rates(before, batch, isl, osl)[0])
            for overlap in (0.5, 1.0):
                named = f"sarathi:chunk={batch + 2048},nanoflow:overlap={overlap}"
                after = case(model, "a100_sxm", isl, osl, named, devices=devices)
                rate = float(rates(after, batch, isl, osl)[0])
                gains.append(rate / plain)
                shares.append(100.0 * rate * (isl + osl) / osl / optimum)
                places.append(f"{model}, {isl} in, {osl} out, batch {batch}, overlap {overlap:g}")
    where = "three models on A100s, six lengths, half to all of what can hide"
    return [
        Finding(0, span(gains), at=reached(gains, 1.91, places), range=where,
                note="what the baseline loses to its scheduler on the host is not in the engine "
                "profile"),
        Finding(1, span(shares), at=reached(shares, 65.0, places), range=where),
    ]  # fmt: skip


# BatchLLM -----------------------------------------------------------------------------------


def batchllm() -> list[Found]:
    """Compute, keep and read common prefixes once; an engine may find some of them cached.

    The engine without global order finds between none and all of the prefixes in its cache, and
    reads them for each sequence.
    """
    gains: list[float] = []
    places: list[str] = []
    for share in (0.3, 0.5, 0.7, 0.9):
        for isl, osl in ((2000, 100), (1000, 200), (400, 400)):
            after = case("llama-3.1-8b", "a100_sxm", isl, osl, f"batchllm:prefix={share}")
            better = float(rates(after, min(most_of(after), 2048), isl, osl)[0])
            for hit in (0.0, 0.5, 1.0):
                before = case("llama-3.1-8b", "a100_sxm", isl, osl, _cached(share * hit))
                plain = float(rates(before, min(most_of(before), 2048), isl, osl)[0])
                gains.append(better / plain)
                places.append(f"{share:.0%} common of {isl}, {osl} out, {hit:.0%} found cached")
    return [
        Finding(0, span(gains), at=f"{reached(gains, 1.1, places)}; {reached(gains, 2.0, places)}",
                range="30 to 90 % of prompts of 400 to 2000 tokens common, outputs of 100 to 400; "
                "none to all of it found cached"),
        Property("without a common prefix nothing is gained", _nothing_common(), "share 0"),
    ]  # fmt: skip


def _cached(share: float) -> Treatment:
    """Find a prefix cached, which each sequence reads for itself."""
    t = Treatment()
    return replace(t, kv=replace(t.kv, shared=share))


def _nothing_common() -> bool:
    both = [float(rates(case("llama-3.1-8b", "a100_sxm", 1000, 200, named), 64, 1000, 200)[0])
            for named in ("", "batchllm:prefix=0")]  # fmt: skip
    return abs(both[1] / both[0] - 1.0) < 1e-9


# S-LoRA -------------------------------------------------------------------------------------


def _packed(model: str, on: str, isl: int, osl: int, copies: int) -> float:
    """Tokens/s where each adapter is merged into a copy of the model, and copies take turns."""
    s = case(model, on, isl, osl)
    made = s.made()
    one, two = memory_at(made, s, 1), memory_at(made, s, 101)
    each = (two.total - one.total) / 100.0
    room = made.hardware.memory.capacity * made.engine.memory_share
    fits = (room - one.total - (copies - 1) * one.weights) / each + 1.0
    if fits < copies:
        return 0.0
    return float(rates(s, np.floor(fits / copies), isl, osl)[0])


def s_lora() -> list[Found]:
    """One batch over all adapters against merged copies, each with a batch of its own."""
    gains: list[float] = []
    places: list[str] = []
    for model, on in (("llama-7b", "a100_sxm"), ("llama-13b", "a100_sxm"), ("llama-7b", "a10")):
        for isl, osl in ((256, 256), (512, 128)):
            for copies in (1, 2, 3, 4, 5):
                named = f"s-lora:adapters={copies}:rank=16"
                s = case(model, on, isl, osl, named)
                packed = _packed(model, on, isl, osl, copies)
                if packed > 0.0:
                    gains.append(float(rates(s, most_of(s), isl, osl)[0]) / packed)
                    places.append(f"{model} on {on}, {copies} adapters, {isl} in")
    served = []
    for model in ("llama-7b", "llama-13b"):
        kinds = [w for w in get(model).weights() if w.role == "linear"]
        for rank in (8, 64):
            each = sum(4.0 * rank * np.sqrt(w.elements) * w.count for w in kinds)
            served += [float(host / each) for host in (64e9, 256e9)]
    return [
        Finding(0, span(gains), at=reached(gains, 4.0, places), range="7B and 13B on A100 and A10, "
                "1 to 5 adapters, as many as copies fit"),
        Finding(1, span(served), at=f"{min(served):.0f} to {max(served):.0f} adapters in host "
                "memory", range="ranks 8 to 64 on all layers, 64 to 256 GB of host memory"),
    ]  # fmt: skip


# FlexLLM ------------------------------------------------------------------------------------


_H, _V, _I, _HEADS, _LAYERS = 4096.0, 1024.0, 14336.0, 32.0, 32.0  # Llama-3.1-8B, config.json


def _kept(tokens: float, scores: bool) -> tuple[float, float]:
    """Elements that fine-tuning keeps a token and layer: by a framework, and by what is needed.

    Layer of width h, keys and values of width v, columns i. A framework keeps the input of each
    operation: 5 h, queries, keys and values h + 2 v, and 4 i of the gated layers (and scores
    before and after softmax, where attention keeps them). With frozen weights a product needs
    no input: what is left is what norms (2 h), attention (2 h + 2 v) and the gate (2 i) need.
    """
    plain = 6.0 * _H + 2.0 * _V + 4.0 * _I + (2.0 * _HEADS * tokens if scores else 0.0)
    return plain, 4.0 * _H + 2.0 * _V + 2.0 * _I


def _retained(batch: float, limit: float) -> float:
    """Share of fine-tuning's own throughput that is left beside decodes within a limit, in %."""
    s = case("llama-3.1-8b", "a100_sxm", 512, 128)
    tokens = np.unique(np.round(np.geomspace(32, 8192, 160)))
    decode = Tokens(batch, 1.0, 576.0)
    both = pass_times(s, [decode, Tokens(1.0, tokens, tokens)])
    alone = pass_times(s, [Tokens(1.0, tokens, tokens)])
    fits = both <= limit
    return 100.0 * float((tokens[fits] / limit).max(initial=0.0) / (tokens / alone).max())


def flexllm() -> list[Found]:
    """Keep what fine-tuning needs, and train in the passes of decode."""
    less, saved, places = [], [], []
    weights = 2.0 * get("llama-3.1-8b").parameters
    for tokens in (1024.0, 2048.0, 4096.0, 8192.0):
        for scores in (False, True):
            plain, needed = _kept(tokens, scores)
            less.append(plain / needed)
            held = 2.0 * _LAYERS * tokens * np.array([plain, needed])
            saved.append(float(100.0 * (held[0] - held[1]) / (weights + held[0])))
            places.append(f"{tokens:g} tokens, scores {'kept' if scores else 'not kept'}")
    # the source's heavy load: 20 requests/s on four devices, some 250 tokens each of 50 ms
    loads = [(batch, limit) for batch in (16.0, 32.0, 64.0) for limit in (0.05, 0.075)]
    kept = [_retained(*load) for load in loads]
    named = [f"{batch:g} decodes, {1e3 * limit:g} ms" for batch, limit in loads]
    where = "Llama-3.1-8B, 1024 to 8192 tokens, attention that keeps its scores or not"
    return [
        Finding(0, span(less), at=reached(less, 8.0, places), range=where),
        Finding(1, span(saved), at=reached(saved, 36.0, places), range=where),
        Finding(2, span(kept), at=reached(kept, 80.0, named), range="Llama-3.1-8B on A100, 16 to "
                "64 decodes of 576 tokens, 50 and 75 ms a token", note="of what a device of its "
                "own would train; at 128 decodes and 50 ms it is half"),
    ]  # fmt: skip
