"""Serving elsewhere: on phones, by diffusion over text, in a robot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...models import get
from ...models.network import Tokens
from ...scenario import run_pass
from ...scenario.solve import machine_of
from ..verdict import Finding, Found, NotModelled
from .kit import device, reached, span
from .serving import case

__all__ = ["deer_vla", "dllm_serve", "heteroinfer"]

F64 = npt.NDArray[np.float64]

# HeteroInfer --------------------------------------------------------------------------------


def heteroinfer() -> list[Found]:
    """Phone whose GPU and NPU share memory: both at once against either alone.

    77 GB/s of LPDDR5X (Snapdragon 8 Gen 3 product brief), of which one unit draws 55 to 65 % and
    both 80 to 90 % (assumed); products at 1 to 2 TFLOP/s on the GPU and at 5 to 10 on the NPU
    (assumed); the NPU runs prompts in shapes of 256 tokens. Weights in 4 bits, 0.5 ms of
    synchronisation a token.
    """
    net, memory = get("llama-3-8b"), 77e9
    weights, flops = 0.55 * net.active_parameters, 2.0 * net.active_parameters
    gains, places = [], []
    for gpu, npu, one, two in ((1e12, 10e12, 0.55, 0.8), (2e12, 5e12, 0.65, 0.9)):
        for isl, osl in ((64, 64), (256, 64), (1024, 64), (64, 256), (1024, 16)):
            padded = float(np.ceil(isl / 256.0)) * 256.0
            step = weights / (one * memory)
            alone = {
                "GPU": isl * flops / gpu + osl * step,
                "NPU": padded * flops / npu + osl * step,
            }
            both = isl * flops / (gpu + npu) + osl * (weights / (two * memory) + 5e-4)
            gains += [t / both for t in alone.values()]
            places += [f"{name} alone, {isl} in, {osl} out" for name in alone]
    return [
        Finding(0, span(gains), at=reached(gains, 6.02, places), range="Llama-3-8B in 4 bits, 64 "
                "to 1024 tokens in, 16 to 256 out; rates and bandwidths of the units as assumed"),
    ]  # fmt: skip


# Diffusion over text ------------------------------------------------------------------------

_VOCABULARY = 126464  # LLaDA-8B (arXiv:2502.09992): 32 layers of width 4096 without grouped heads
_BLOCK = 32  # tokens decoded together
_SLICE = 256.0  # tokens whose logits exist at once


def _diffusion_pass(on: str, batch: F64, refreshed: F64, length: float) -> F64:
    """Seconds of a pass that recomputes some sequences and decodes a block of the others."""
    s = case("llama-7b", on, int(length), 1)
    made = s.made()
    groups = [Tokens(refreshed, length, length, length), Tokens(batch - refreshed, _BLOCK, length,
              _BLOCK)]  # fmt: skip
    return run_pass(made.network, machine_of(made, s), groups).time


def _diffusion(on: str) -> tuple[list[float], list[str]]:
    """Tokens/s with sliced logits and mixed phases over whole logits and separate phases.

    Llama-7B stands for LLaDA-8B: the same widths. Whole logits are kept in 16 bits and as fp32.
    """
    hw, gains, places = device(on), [], []
    room = 0.9 * hw.memory.capacity - 2.0 * 8.02e9 - 1.6e9  # weights; context and workspace
    for length in (512.0, 1024.0, 2048.0):
        cache = 32 * 2 * 4096 * 2.0 * length
        whole = max(np.floor(room / (cache + 6.0 * _VOCABULARY * length)), 1.0)
        sliced = max(np.floor((room - 6.0 * _VOCABULARY * _SLICE) / cache), 1.0)
        for every in (8.0, 16.0):
            one, none = np.array([whole, whole]), np.array([whole, 0.0])
            refresh, reuse = _diffusion_pass(on, one, none, length)
            before = whole * every / (refresh + (every - 1.0) * reuse)
            least = np.floor(sliced / every)  # refreshed in a pass; in some one more
            few, more = _diffusion_pass(on, np.array([sliced] * 2), np.r_[least, least + 1], length)
            mean = few + (sliced / every - least) * (more - few)
            gains.append(float(sliced / mean / before))
            places.append(f"{length:g} tokens, refreshed every {every:g}, batch {whole:g} to "
                          f"{sliced:g}")  # fmt: skip
    return gains, places


def dllm_serve() -> list[Found]:
    """Slice the logits of diffusion over text, so that more sequences fit; mix their phases."""
    out: list[Found] = []
    for figure, on, published in ((0, "rtx_4090", 1.71), (1, "l40s", 1.67)):
        gains, places = _diffusion(on)
        where = "512 to 2048 tokens, blocks of 32, a refresh every 8 and 16 steps"
        best = reached(gains, published, places)
        out.append(Finding(figure, span(gains), at=best, range=where))
    return [*out, NotModelled(2, "tails of a queue under a trace that is not stated")]


# Early exit of a robot's policy -------------------------------------------------------------


def deer_vla() -> list[Found]:
    """Memory of the layers up to the deepest exit allowed, of 24."""
    depths = (4, 6, 8, 12)
    less = [24.0 / depth for depth in depths]
    return [
        NotModelled(0, "how early the policy may stop depends on its tasks: an input"),
        Finding(1, span(less), at=reached(less, 6.0, [f"layer {d}" for d in depths]),
                range="deepest exit after 4 to 12 of 24 layers"),
    ]  # fmt: skip
