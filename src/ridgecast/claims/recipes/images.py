"""Readers of images and views: state-space against attention, thin networks, many views at once."""

from __future__ import annotations

import numpy as np

from ...hardware import resolve
from ...models.network import Layout
from ...models.registry import get
from ...scenario import Machine, engine, formats_of
from ...scenario.passes import Job, run_passes
from ...techniques import Treatment
from ..verdict import Finding, Found, Property
from .kit import reached, seconds, span

__all__ = ["skt", "vggt_x", "vision_mamba"]


def _passes(names: tuple[str, ...], side: int, images: int, on: str) -> list[float]:
    """Seconds of a pass over square images; attention writes its scores to memory."""
    hw, jobs = resolve(on), []
    for name in names:
        net = get(name)
        group = net.passes(images, side, side)  # type: ignore[attr-defined]
        treatment = Treatment(attention="standard")
        formats = formats_of(net, hw, "fp16", treatment=treatment)
        machine = Machine(hw, Layout(), formats, engine("hf"))
        jobs.append(Job(net, machine, [group], treatment))
    return [float(r.time[0]) for r in run_passes(jobs)]


def _live(name: str, side: int, copies: float) -> float:
    """Bytes of an image's activations in 16 bits, with so many copies of a layer's scores."""
    net = get(name)
    tokens = float(net.passes(1, side, side).count)  # type: ignore[attr-defined]
    heads = {"deit-ti": 3, "deit-s": 6}.get(name, 0)
    return 2.0 * (float(net.activations(tokens, Layout())) + copies * heads * tokens**2)


def vision_mamba() -> list[Found]:
    """Vim against DeiT with scores in memory, 1248 x 1248 (6085 tokens), tiny and small.

    Scores and the probabilities made of them are one matrix (in place) or two.
    """
    gains, places, saved, told = [], [], [], []
    pairs = (("deit-ti", "vim-ti"), ("deit-s", "vim-s"))
    for on in ("a100_sxm", "rtx_a6000"):
        for images in (1, 8):
            for deit, vim in pairs:
                slow, fast = _passes((deit, vim), 1248, images, on)
                gains.append(slow / fast)
                places.append(f"{vim}, {images} images, {on}")
    for deit, vim in pairs:
        for copies in (1.0, 2.0):
            saved.append(100.0 * (1.0 - _live(vim, 1248, 0.0) / _live(deit, 1248, copies)))
            told.append(f"{vim}, {copies:g} matrices of scores")
    sides = (224, 512, 768, 1024, 1248)
    ratio = [s / f for s, f in (_passes(("deit-ti", "vim-ti"), n, 8, "a100_sxm") for n in sides)]
    cross = next((n for n, r in zip(sides, ratio, strict=True) if r > 1.0), 0)
    return [
        Finding(0, span(gains), at=reached(gains, 2.8, places), range="tiny and small, 1 and 8 "
                "images, A100 and RTX A6000, fp16"),
        Finding(1, span(saved), at=reached(saved, 86.8, told), range="activations of an image, one "
                "or two matrices of scores"),
        Property("the gain grows with the resolution", bool(np.all(np.diff(ratio) > 0)),
                 ", ".join(f"{n}: {r:.2g}" for n, r in zip(sides, ratio, strict=True))
                 + (f"; faster from {cross} pixels" if cross else "")),
    ]  # fmt: skip


# Channels and side (of the input's) of CSRNet's convolutions (Li et al. 2018, arXiv:1802.10062):
# ten of VGG-16 and six dilated ones
_CSRNET = ((3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 2), (128, 256, 4), (256, 256, 4),
           (256, 256, 4), (256, 512, 8), (512, 512, 8), (512, 512, 8), (512, 512, 8),
           (512, 512, 8), (512, 512, 8), (512, 256, 8), (256, 128, 8), (128, 64, 8))  # fmt: skip


def skt() -> list[Found]:
    """CSRNet with a quarter of the channels, 576 x 864 to 1024 x 768 pixels, fp32, batch 1."""
    gains, places = [], []
    for height, width in ((576, 864), (768, 1024)):
        times = []
        for thin in (1, 4):
            times.append(sum(
                float(seconds("convolution", "gtx_1080_ti", in_channels=max(3, a // thin),
                              out_channels=b // thin, height=height // s, width=width // s,
                              kernel_h=3, kernel_w=3, padding_h=1, padding_w=1, dtype="fp32"))
                for a, b, s in _CSRNET
            ))  # fmt: skip
        gains.append(times[0] / times[1])
        places.append(f"{height} x {width}")
    cells = [sum(9.0 * max(3, a // t) * (b // t) for a, b, _ in _CSRNET) for t in (1, 4)]
    work = [sum(9.0 * max(3, a // t) * (b // t) / s**2 for a, b, s in _CSRNET) for t in (1, 4)]
    return [
        Finding(0, 100.0 * cells[1] / cells[0], at="a quarter of the channels"),
        Finding(1, 100.0 * work[1] / work[0], at="a quarter of the channels"),
        Finding(2, span(gains), at=reached(gains, 6.5, places), range="a GTX 1080 Ti stands for "
                "the GTX 1080", note="thin layers are charged no loss of utilisation"),
    ]  # fmt: skip


def vggt_x() -> list[Found]:
    """Count the views that VGGT's kept features leave room for, on 24 to 80 GB.

    24 pairs of layers whose outputs of 2 x 1024 values a token are kept in fp32 (Wang et al. 2025,
    arXiv:2503.11651), or the four that its heads read, in bf16, beside a residual and a
    feed-forward layer; 1.2 G parameters. Images of 518 pixels a side, 14 a patch, 3:4 to 1:1, five
    tokens more.
    """
    made, plain, thin, places = engine("hf"), [], [], []
    for on in ("rtx_4090", "a100_sxm_40gb", "a100_sxm"):
        for rows in (28, 37):
            tokens = 37.0 * rows + 5.0
            room = resolve(on).memory.capacity - made.context - made.workspace
            plain.append((room - 4.0 * 1.2e9) / (24.0 * 2048 * 4.0 * tokens))
            thin.append((room - 2.0 * 1.2e9) / ((4.0 * 2048 + 3.0 * 4096) * 2.0 * tokens))
            places.append(f"{on}, {rows * 14} x 518 pixels")
    more = [t / p for t, p in zip(thin, plain, strict=True)]
    return [
        Finding(0, span(thin[-2:]), at=reached(thin, 1000.0, places), range="80 GB, 3:4 and 1:1 "
                f"(24 GB: from {min(thin):.0f})"),
        Property("the plain network ends at a few hundred views", max(plain) < 500.0,
                 f"{min(plain):.0f} to {max(plain):.0f} on 24 to 80 GB"),
        Property("several times as many views fit", min(more) > 3.0, f"{min(more):.3g} times"),
    ]  # fmt: skip
