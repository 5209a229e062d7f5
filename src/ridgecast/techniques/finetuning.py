"""Techniques of training: what is frozen, how it is stored, what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .base import Parameter, Technique
from .treatment import Storage, Treatment

_UNPACK = 2.0  # a look-up and a product a weight


def _adapters(t: Treatment, rank: float, stored: Storage | None = None) -> Treatment:
    """Frozen weights, trained adapters beside them."""
    tuning = replace(t.tuning, rank=int(rank))
    if stored is None:
        return replace(t, trainable=0.0, tuning=tuning)
    return replace(t, trainable=0.0, tuning=tuning, weights=stored, experts=stored)


def _lora(t: Treatment, v: Mapping[str, float]) -> Treatment:
    return _adapters(t, v["rank"])


def _qlora(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Codes of 64 weights share an 8-bit scale, 256 of which share an fp32 one.

    Each product first makes a 16-bit copy of its matrix in memory (bitsandbytes).
    """
    stored = Storage(4, 64, 8.0 + 32.0 / 256.0, unpack=_UNPACK, rebuild=True)
    return _adapters(t, v["rank"], stored)


def _int2_1(t: Treatment, v: Mapping[str, float]) -> Treatment:
    return _adapters(t, v["rank"], Storage(v["bits"], unpack=_UNPACK))


def _loram(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Adapters are trained beside a pruned copy in QLoRA's format."""
    t = _qlora(t, v)
    return replace(t, tuning=replace(t.tuning, pruned=v["kept"]))


def _lq_lora(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Matrices of as many bits on average as a budget says, scales counted."""
    return _adapters(t, v["rank"], Storage(v["bits"], unpack=_UNPACK))


def _perp(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Biases and norms are trained: no input of a frozen matrix is kept for them."""
    return replace(t, trainable=v["share"], tuning=replace(t.tuning, inputs=0.0))


def _lisa(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Train a few layers at a time, embedding and head too: others keep no inputs, no states."""
    tuning = replace(t.tuning, layers=v["layers"], inputs=v["layers"])
    return replace(t, tuning=tuning)


def _slimfit(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Frozen layers keep no inputs; what is kept all the same has few bits."""
    thawed = 1.0 - v["frozen"]
    tuning = replace(t.tuning, layers=thawed, inputs=thawed, kept_bits=v["bits"])
    return replace(t, tuning=tuning)


def _s2a(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Bias, prompt and side modules keep no inputs of frozen matrices; the rest at few bits."""
    tuning = replace(t.tuning, inputs=0.0, kept_bits=v["bits"])
    return replace(t, trainable=v["share"], tuning=tuning)


def _paca(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Train some columns of each matrix in place, for which that share of its inputs is kept."""
    return replace(t, trainable=v["share"], tuning=replace(t.tuning, inputs=v["share"]))


def _zo2(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Two forward passes; no gradient, no state, nothing kept."""
    return replace(t, tuning=replace(t.tuning, backward=False))


def _frugal(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Moments of a share of the parameters, none for the others."""
    return replace(t, tuning=replace(t.tuning, state_bytes=8.0 * v["share"]))


def _longlora(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Train with attention inside groups of tokens; adapters, embedding and norms are trained."""
    cut = replace(t.reduction, prefill_density=v["group"])
    return replace(_adapters(t, v["rank"]), reduction=cut)


def _distilled(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """One network call a step instead of two; adapters add their products."""
    fewer = replace(t.reduction, calls=0.5)
    inputs = replace(t.tuning, inputs=v["added"])
    return replace(t, reduction=fewer, extra_flops=v["added"], trainable=v["added"], tuning=inputs)


def _pockengine(t: Treatment, v: Mapping[str, float]) -> Treatment:
    """Cut the backward graph where the last trained layer ends; the rest keeps nothing."""
    tuning = replace(t.tuning, reach=v["layers"], layers=v["layers"])
    return replace(t, tuning=tuning)


def _rank(default: float) -> dict[str, Parameter]:
    return {"rank": Parameter(default, 1, 1024, "columns of each adapter")}


_STORED = ("weights", "experts", "tuning")

TECHNIQUES: dict[str, Technique] = {
    t.id: t
    for t in (
        Technique("lora", "LoRA", "frozen weights, low-rank adapters trained",
                  "Hu et al. 2021, arXiv:2106.09685", _lora, ("tuning",), _rank(16)),
        Technique("qlora", "QLoRA", "frozen weights at 4 bits, adapters trained",
                  "Dettmers et al. 2023, arXiv:2305.14314", _qlora, _STORED, _rank(64)),
        Technique("int2-1-emef", "INT2.1", "frozen weights at 2 bits, adapters correct them",
                  "Chai et al. 2023, arXiv:2306.08162", _int2_1, _STORED,
                  _rank(16) | {"bits": Parameter(2, 2, 4, "bits a weight")}),
        Technique("loram", "LoRAM", "adapters trained on a pruned copy at 4 bits",
                  "Zhang et al. 2025, arXiv:2502.13533", _loram, _STORED,
                  _rank(8) | {"kept": Parameter(0.25, 0.02, 1, "share of the weights kept")}),
        Technique("lq-lora", "LQ-LoRA", "quantised part plus trained low-rank part",
                  "Guo et al. 2023, arXiv:2311.12023", _lq_lora, _STORED,
                  _rank(64) | {"bits": Parameter(2.75, 2, 8, "bits a weight, scales counted")}),
        Technique("perp", "PERP", "biases and norms retrained after pruning",
                  "Zimmer et al. 2023, arXiv:2312.15230", _perp, ("trainable", "tuning"),
                  {"share": Parameter(0.003, 0.0, 1, "share of the parameters trained")}),
        Technique("lisa", "LISA", "a few layers trained at a time",
                  "Pan et al. 2024, arXiv:2403.17919", _lisa, ("tuning",),
                  {"layers": Parameter(0.1, 0.01, 1, "share of the parameters that are trained at "
                                       "a time: sampled layers, embedding and head")}),
        Technique("slimfit", "SlimFit", "layers that hardly change are frozen",
                  "Ardakani et al. 2023, arXiv:2305.18513", _slimfit, ("tuning",),
                  {"frozen": Parameter(0.95, 0, 1, "share of the layers frozen"),
                   "bits": Parameter(8, 2, 16, "bits of what is kept all the same")}),
        Technique("s2a", "S2A", "bias and side modules, kept activations at 4 bits",
                  "A Unified Framework for Parameter and Memory Efficient Transfer Learning", _s2a,
                  ("trainable", "tuning"),
                  {"share": Parameter(0.01, 0, 1, "share of the parameters trained"),
                   "bits": Parameter(4, 2, 16, "bits of what is kept")}),
        Technique("paca", "PaCA", "some columns of each matrix trained in place",
                  "Woo et al. 2025, ICLR", _paca, ("trainable", "tuning"),
                  {"share": Parameter(64 / 4096, 0, 1, "share of the columns trained")}),
        Technique("zo2", "ZO2", "zeroth-order tuning, blocks streamed from the host",
                  "Wang et al. 2025, arXiv:2503.12668", _zo2, ("tuning",)),
        Technique("frugal", "FRUGAL", "moments of a slice of the gradient",
                  "Zmushko et al. 2024, arXiv:2411.07837", _frugal, ("tuning",),
                  {"share": Parameter(0.25, 0, 1, "share of the parameters with moments")}),
        Technique("longlora", "LongLoRA", "attention in groups while training, adapters",
                  "Chen et al. 2023, arXiv:2309.12307", _longlora,
                  ("reduction.prefill_density", "tuning"),
                  _rank(8) | {"group": Parameter(0.25, 0.01, 1, "a group's tokens over all")}),
        Technique("pockengine", "PockEngine", "a backward graph of the last layers alone",
                  "Zhu et al. 2023, arXiv:2310.17752", _pockengine, ("tuning",),
                  {"layers": Parameter(5 / 32, 0.01, 1, "share of the layers that are trained")}),
        Technique("guidance-distill-adapters", "Adapter guidance distillation",
                  "guidance in one call a step, by adapters",
                  "Jensen and Sadat 2025, arXiv:2503.07274", _distilled,
                  ("reduction.calls", "tuning"),
                  {"added": Parameter(0.02, 0, 1, "adapters' share of the parameters")},
                  needs="a network that is called twice a step for guidance"),
    )
}  # fmt: skip
