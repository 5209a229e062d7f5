"""Backbones of convolutions compared layer by layer: what is written, copied and read again."""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.base import Work
from ..verdict import Finding, Found, NotModelled
from .kit import device, reached, span, time_of, work_of

__all__ = ["efficientvit", "vovnet"]

_ON = "gtx_1080_ti"


@dataclass(frozen=True, slots=True)
class _Layer:
    """One convolution: channels, side of its output, kernel; `copied` channels concatenated."""

    inner: int
    out: int
    side: int
    kernel: int = 3
    copied: int = 0


def _densenet(growth: int, start: int, blocks: tuple[int, ...], side: int) -> list[_Layer]:
    """Dense blocks with bottlenecks of 4 x growth (Huang et al. 2017, arXiv:1608.06993, table 1).

    Every layer's input is the concatenation of all before it, which is written anew.
    """
    found, now = [_Layer(3, start, side * 2, 7)], start
    for i, count in enumerate(blocks):
        for _ in range(count):
            found.append(_Layer(now, 4 * growth, side, 1, copied=now))
            found.append(_Layer(4 * growth, growth, side))
            now += growth
        if i < len(blocks) - 1:
            found.append(_Layer(now, now // 2, side, 1))
            now, side = now // 2, side // 2
    return found


def _vovnet(
    wide: tuple[int, ...], out: tuple[int, ...], blocks: tuple[int, ...], side: int
) -> list[_Layer]:
    """Five convolutions in a row, concatenated once, then 1 x 1 (Lee et al. 2019, table 1)."""
    found = [_Layer(3, 64, side * 2), _Layer(64, 64, side * 2), _Layer(64, 128, side)]
    now = 128
    for c, o, count in zip(wide, out, blocks, strict=True):
        for _ in range(count):
            first = now
            for _ in range(5):
                found.append(_Layer(now, c, side))
                now = c
            found.append(_Layer(first + 5 * c, o, side, 1, copied=first + 5 * c))
            now = o
        side //= 2
    return found


def _cost(layers: list[_Layer], batch: int) -> tuple[float, float]:
    """Seconds, and operations: convolutions, norms with activations, concatenations; fp32."""
    hw, seconds, flops = device(_ON), 0.0, 0.0
    for one in layers:
        conv = work_of("convolution", in_channels=one.inner, out_channels=one.out, height=one.side,
                       width=one.side, kernel_h=one.kernel, kernel_w=one.kernel,
                       padding_h=one.kernel // 2, padding_w=one.kernel // 2, batch=batch,
                       dtype="fp32")  # fmt: skip
        cells = 4.0 * batch * one.side**2
        passes = [conv, Work({"vector": one.out * cells}, one.out * cells, one.out * cells)]
        if one.copied:
            passes.append(Work({}, one.copied * cells, one.copied * cells))
        seconds += sum(float(time_of(w, hw)) for w in passes)
        flops += 2.0 * one.inner * one.out * one.kernel**2 * one.side**2 * batch
    return seconds, flops


def vovnet() -> list[Found]:
    """VoVNet-39 and 57 against DenseNet-121 to 201 at 320 x 320, batch 1 and 8, fp32.

    Times for equal operations: the ratio is divided by that of the operations. A GTX 1080 Ti stands
    for the TITAN Xp of the same chip.
    """
    out = (256, 512, 768, 1024)
    one_shot = {
        "VoVNet-39": _vovnet((128, 160, 192, 224), out, (1, 1, 2, 2), 80),
        "VoVNet-57": _vovnet((128, 160, 192, 224), out, (1, 1, 4, 3), 80),
    }
    dense = {
        "DenseNet-121": _densenet(32, 64, (6, 12, 24, 16), 80),
        "DenseNet-161": _densenet(48, 96, (6, 12, 36, 24), 80),
        "DenseNet-201": _densenet(32, 64, (6, 12, 48, 32), 80),
    }
    gains, places = [], []
    for batch in (1, 8):
        for name, layers in dense.items():
            slow, much = _cost(layers, batch)
            for other, thin in one_shot.items():
                fast, less = _cost(thin, batch)
                gains.append((slow / much) / (fast / less))
                places.append(f"{other} against {name}, batch {batch}")
    return [
        Finding(0, span(gains), at=reached(gains, 2.0, places), range="two VoVNets, three "
                "DenseNets, batch 1 and 8, time an operation"),
        NotModelled(1, "power of convolutions in fp32 on this chip was not measured"),
    ]  # fmt: skip


# ------------------------------------------------------------------ thin networks, large batches

# Kernel, expansion, output, squeeze, stride (Howard et al. 2019, arXiv:1905.02244, table 1)
_MOBILE = ((3, 16, 16, 0, 1), (3, 64, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2),
           (5, 120, 40, 1, 1), (5, 120, 40, 1, 1), (3, 240, 80, 0, 2), (3, 200, 80, 0, 1),
           (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 1, 1), (3, 672, 112, 1, 1),
           (5, 672, 160, 1, 2), (5, 960, 160, 1, 1), (5, 960, 160, 1, 1))  # fmt: skip


def _product(rows: float, inner: int, out: int, size: float) -> Work:
    """1 x 1 convolution, its activation in a pass of its own."""
    moved = size * rows * out
    unit = "fp16" if size == 2.0 else "fp32"
    return Work({unit: 2.0 * rows * inner * out, "vector": rows * out},
                size * (rows * inner + inner * out) + moved, 2.0 * moved)  # fmt: skip


def _depthwise(rows: float, channels: int, kernel: int, stride: int, size: float) -> Work:
    """Convolution of single channels on the lanes, and its activation."""
    cells = rows * channels
    return Work({"vector": (2.0 * kernel**2 + 1.0) * cells}, size * cells * (stride**2 + 1.0),
                size * 2.0 * cells)  # fmt: skip


def _mobile(batch: int, size: float) -> list[Work]:
    """MobileNetV3-Large at 224 pixels."""
    side, now = 112, 16
    found = [_product(batch * side**2, 27, 16, size)]
    for kernel, wide, out, squeeze, stride in _MOBILE:
        if wide != now:
            found.append(_product(batch * side**2, now, wide, size))
        side //= stride
        rows = float(batch * side**2)
        found.append(_depthwise(rows, wide, kernel, stride, size))
        if squeeze:  # a mean and a product over the picture
            found.append(Work({"vector": 2.0 * rows * wide}, 2.0 * size * rows * wide,
                              size * rows * wide))  # fmt: skip
        found.append(_product(rows, wide, out, size))
        if stride == 1 and out == now:
            found.append(Work({"vector": rows * out}, 2.0 * size * rows * out, size * rows * out))
        now = out
    return [*found, _product(batch * 49.0, 160, 960, size), _product(batch, 960, 1280, size),
            _product(batch, 1280, 1000, size)]  # fmt: skip


def _efficient(batch: int, size: float) -> list[Work]:
    """EfficientViT-M5 at 224 pixels (Liu et al. 2023, arXiv:2305.07027, table 1 and figure 3)."""
    found, side, now = [], 112, 3
    for out in (24, 48, 96, 192):  # 3 x 3 with stride 2
        found.append(_product(float(batch * side**2), 9 * now, out, size))
        side, now = side // 2, out
    side *= 2  # the last of them leaves 14 x 14
    for width, depth, heads in ((192, 1, 3), (288, 3, 3), (384, 4, 4)):
        if width != now:
            rows = float(batch * side**2)
            wider = [_product(rows, now, 4 * now, size)]
            side = -(-side // 2)
            small = float(batch * side**2)
            wider += [_depthwise(small, 4 * now, 3, 2, size), _product(small, 4 * now, width, size)]
            found += [*_around(rows, now, size), *wider, *_around(small, width, size)]
            now = width
        for _ in range(depth):
            found += _block(batch, side, width, heads, size)
    return [*found, _product(batch, 384, 1000, size)]


def _around(rows: float, width: int, size: float) -> list[Work]:
    """Depthwise convolution and feed-forward of twice the width, each with a residual."""
    add = Work({"vector": rows * width}, 2.0 * size * rows * width, size * rows * width)
    return [_depthwise(rows, width, 3, 1, size), add, _product(rows, width, 2 * width, size),
            _product(rows, 2 * width, width, size), add]  # fmt: skip


def _block(batch: int, side: int, width: int, heads: int, size: float) -> list[Work]:
    """Feed-forward, cascaded attention with queries and keys of 16, feed-forward."""
    rows, tokens, each = float(batch * side**2), float(side**2), width // heads
    found = _around(rows, width, size)
    for _ in range(heads):  # one after the other: each adds the result of the one before
        unit = "fp16" if size == 2.0 else "fp32"
        scores = batch * tokens**2
        found += [
            _product(rows, each, 32 + each, size), _depthwise(rows, 16, 5, 1, size),
            Work({unit: 2.0 * scores * 16, "vector": 5.0 * scores}, size * rows * 32,
                 2.0 * size * scores),
            Work({unit: 2.0 * scores * each}, size * (scores + rows * each), size * rows * each),
            Work({"vector": rows * each}, 2.0 * size * rows * each, size * rows * each),
        ]  # fmt: skip
    return [*found, _product(rows, width, width, size), *_around(rows, width, size)]


def efficientvit() -> list[Found]:
    """EfficientViT-M5 against MobileNetV3-Large on a V100, 256 to 2048 pictures, 16 and 32 bits."""
    hw, gains, places = device("v100_sxm"), [], []
    for size, form in ((4.0, "fp32"), (2.0, "fp16")):
        for batch in (256, 2048):
            theirs, mine = (
                sum(float(time_of(w, hw)) for w in made(batch, size))
                for made in (_mobile, _efficient)
            )
            gains.append(100.0 * (theirs / mine - 1.0))
            places.append(f"{form}, batch {batch}")
    processor, other = "no Xeon in the catalogue", "MobileViT's graph is not described"
    return [
        Finding(0, span(gains), at=reached(gains, 40.4, places), range="batch 256 and 2048, fp32 "
                "and fp16", note="operations of lanes and units are taken at full rate"),
        NotModelled(1, processor),
        NotModelled(2, other),
        NotModelled(3, processor),
        NotModelled(4, other),
    ]  # fmt: skip
