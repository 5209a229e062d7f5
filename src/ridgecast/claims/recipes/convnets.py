"""Backbones of convolutions compared layer by layer: what is written, copied and read again."""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.base import Work
from ..verdict import Finding, Found, NotModelled
from .kit import device, reached, span, time_of, work_of

__all__ = ["vovnet"]

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
