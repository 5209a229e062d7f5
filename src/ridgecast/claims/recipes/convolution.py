"""Convolutions: lowered, in windows, by FFT, folded with their normalisation, and scaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.base import Work
from ...ops.convolution import Convolution
from ..verdict import Finding, Found, NotModelled, Property
from .kit import device, reached, seconds, span, time_of, work_of

__all__ = ["convbn_tune_mode", "fast_model_scaling", "flashbutterfly", "im2win"]

_LAYERS = (
    (3, 227, 96, 11, 4), (3, 231, 96, 11, 4), (3, 227, 64, 7, 2), (64, 224, 64, 7, 2),
    (96, 24, 256, 5, 1), (256, 12, 512, 3, 1), (3, 224, 64, 3, 1), (64, 112, 128, 3, 1),
    (64, 56, 64, 3, 1), (128, 28, 128, 3, 1), (256, 14, 256, 3, 1), (512, 7, 512, 3, 1),
)  # fmt: skip
"""Channels, side, filters, taps, step: the twelve layers of Cho and Brand 2017 (arXiv:1706.06873,
table 2), which convolution papers share."""
_CUDNN = ("implicit_gemm", "im2col", "winograd_2x2", "winograd_4x4", "fft")


def _conv(layer: tuple[int, ...], variant: str, batch: int = 128) -> Convolution:
    channels, side, filters, taps, step = layer
    return Convolution(in_channels=channels, out_channels=filters, height=side, width=side,
                       kernel_size=taps, stride=step, batch=batch, dtype="fp32",
                       variant=variant)  # fmt: skip


def _fastest(layer: tuple[int, ...], on: str) -> tuple[float, float]:
    """Seconds and resident bytes of the fastest of the algorithms that cuDNN has."""
    fits = [v for v in _CUDNN if "winograd" not in v or layer[3:] == (3, 1)]
    ops = [_conv(layer, v) for v in fits]
    return min((float(time_of(op.work(), on)), float(op.memory_bytes)) for op in ops)


def _no_reuse(layer: tuple[int, ...], on: str) -> tuple[float, float]:
    """Seconds of a direct kernel in which each multiply-add fetches both operands again.

    From the L2, or from memory.
    """
    hw, macs = device(on), float(_conv(layer, "direct").macs)
    return tuple(8.0 * macs / rate for rate in (hw.l2.bandwidth, hw.memory.bandwidth))  # type: ignore[return-value]


def im2win() -> list[Found]:
    """Windows stored once a row of taps, against a lowered matrix; fp32, RTX 3090, batch 128."""
    on = "rtx_3090"
    less, faster, less_best, faster_best, direct = [], [], [], [], []
    for layer in _LAYERS:
        mine, lowered = _conv(layer, "im2win"), _conv(layer, "im2col")
        time = float(time_of(mine.work(), on))
        best, held = _fastest(layer, on)
        less.append(100.0 * (1.0 - float(mine.memory_bytes) / float(lowered.memory_bytes)))
        faster.append(float(time_of(lowered.work(), on)) / time)
        less_best.append(100.0 * (1.0 - float(mine.memory_bytes) / held))
        faster_best.append(best / time)
        direct += [slow / time for slow in _no_reuse(layer, on)]
    names = [f"layer {i + 1}" for i in range(len(_LAYERS))]
    where = "twelve layers, batch 128, fp32, RTX 3090"
    return [
        Finding(0, float(np.mean(less)), at="mean; nearest: " + reached(less, 23.1, names),
                range=where, note="all of input, windows and output; the published share counts "
                "what cuBLAS and the framework hold beside them"),
        Finding(1, float(np.mean(faster)), at="mean; nearest: " + reached(faster, 3.5, names),
                range=where,
                note="traffic alone; the published gain also holds how well each kernel runs"),
        Finding(2, float(np.mean(less_best)), range=where,
                at="mean; nearest: " + reached(less_best, 32.8, names),
                note="the fastest algorithm of a library often needs no buffer at all"),
        Finding(3, span(faster_best), at=reached(faster_best, 1.8, names), range=where,
                note="the fastest algorithm moves fewer bytes than stored windows do"),
        Finding(4, span(direct), at=reached(direct, 155.0, [n for n in names for _ in (0, 1)]),
                range=where + "; operands of each multiply-add from the L2 or from memory"),
    ]  # fmt: skip


def flashbutterfly() -> list[Found]:
    """Long convolutions: transforms as matrix products in one kernel against an FFT library."""
    lengths = [256, 1024, 4096, 8192, 16384, 32768, 65536]
    shape: dict[str, Any] = {"channels": 768, "batch": 16, "dtype": "fp16"}
    gains = [
        float(seconds("long_convolution", "a100_sxm", seq_len=n, variant="fft", **shape)
              / seconds("long_convolution", "a100_sxm", seq_len=n, variant="flash", **shape))
        for n in lengths
    ]  # fmt: skip
    return [
        Finding(0, span(gains), at=reached(gains, 2.2, (f"length {n}" for n in lengths)),
                range="256 to 64K points, 768 channels, 16 sequences, A100"),
        NotModelled(1, "a training run against another model"),
        NotModelled(2, "parameters at equal quality: not a cost"),
    ]  # fmt: skip


def convbn_tune_mode() -> list[Found]:
    """Fold a normalisation into a convolution's weights at each step, or keep them apart."""
    kept, time, fold, passes = [], [], 0.0, 0.0
    for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        layer = (channels, side + 2, channels, 3, 1)
        op = _conv(layer, "implicit_gemm", batch=64)
        features = int(op.output_elements)
        norm = work_of("pointwise", elements=features, ops=2, dtype="fp32")
        folded = work_of("pointwise", elements=int(op.filter_elements), ops=2, dtype="fp32")
        base = float(time_of(op.work(), "a100_sxm"))
        apart = base + float(time_of(norm, "a100_sxm"))
        kept.append(4.0 * features)
        time.append(apart / (base + float(time_of(folded, "a100_sxm"))))
        fold, passes = fold + float(folded.moved), passes + float(norm.moved)
    return [
        Property("one stored activation a block less", min(kept) > 0.0,
                 f"{min(kept) / 1e6:.3g} to {max(kept) / 1e6:.3g} MB a block at batch 64"),
        Property("folding the weights moves far fewer bytes than the passes that it saves",
                 fold < 0.25 * passes, f"{100 * fold / passes:.3g} % of them, over four stages"),
        Property("a step is no slower", min(time) >= 0.99,
                 f"{min(time):.3g} to {max(time):.3g} times as fast, blocks of a ResNet, A100"),
    ]  # fmt: skip


_STAGES = ((32, 112, 1), (64, 56, 2), (128, 28, 3), (256, 14, 4))
"""Width, side, depth of the stages of a small RegNet-like network (assumed): blocks of a 1 x 1, a
grouped 3 x 3 (16 channels a group) and a 1 x 1 convolution."""


def _scaled(width: float, depth: float, side: float) -> tuple[float, float, float, Work]:
    """Operations, parameters, activations, and work of the network, scaled; batch 64, fp16."""
    flops = params = acts = read = written = 0.0
    for channels, positions, layers in _STAGES:
        c, s, count = int(channels * width), int(positions * side), layers * depth
        shape: dict[str, Any] = {"in_channels": c, "out_channels": c, "height": s, "width": s,
                                 "batch": 64, "dtype": "fp16"}  # fmt: skip
        point = Convolution(kernel_size=1, **shape)
        spatial = Convolution(padding=1, groups=channels // 16, **shape)
        for op, times in ((point, 2.0 * count), (spatial, count)):
            work = op.work()
            flops += times * float(work.all_flops)
            params += times * float(op.filter_elements)
            acts += times * float(op.output_elements)
            read, written = read + times * float(work.read), written + times * float(work.written)
    return flops, params, acts, Work({"fp16": flops}, read, written, launches=0.0)


def fast_model_scaling() -> list[Found]:
    """Operations scaled by 4, 16 and 64 through width, depth or resolution: what grows with them.

    A device with much arithmetic for its bandwidth shows what activations cost (H100).
    """
    holds_width, holds_rest, follows, told = [], [], [], []
    base = _scaled(1.0, 1.0, 1.0)
    for s in (4.0, 16.0, 64.0):
        by = {"width": _scaled(s**0.5, 1, 1), "depth": _scaled(1, s, 1),
              "resolution": _scaled(1, 1, s**0.5)}  # fmt: skip
        acts = {name: value[2] / base[2] for name, value in by.items()}
        times = {name: float(time_of(value[3], "h100_sxm")) for name, value in by.items()}
        holds_width.append(abs(np.log(acts["width"] / s**0.5)))
        holds_rest += [abs(np.log(acts[name] / s)) for name in ("depth", "resolution")]
        follows.append(times["width"] / max(times["depth"], times["resolution"]))
        told.append(f"x{s:.0f}: activations x{acts['width']:.3g} by width, x{acts['depth']:.3g} by "
                    f"depth, time of width over depth {follows[-1]:.2f}")  # fmt: skip
    return [
        Property("activations grow with the root of the operations by width",
                 max(holds_width) < 0.1, told[1]),
        Property("and with the operations by depth and resolution", max(holds_rest) < 0.1, told[0]),
        Property("time follows activations where memory limits", max(follows) < 0.9, told[2]),
    ]  # fmt: skip
