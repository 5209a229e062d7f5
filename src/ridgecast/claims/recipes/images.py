"""Readers of images and views: state-space against attention, thin networks, many views at once."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from ...hardware import resolve
from ...models.convnet import ConvNet
from ...models.encoder import TwoTowers
from ...models.network import Layout, Tokens
from ...models.registry import get
from ...scenario import Machine, engine, formats_of
from ...scenario.passes import Job, run_passes
from ...techniques import Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .kit import reached, seconds, span

__all__ = ["dynamicvis", "multigrid", "skt", "tempme", "vggt_x", "vision_mamba"]


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


def dynamicvis() -> list[Found]:
    """State-space backbones of Vim's sizes against ViT-B and L at 2048 x 2048, scores in memory.

    They stand for the published backbone, whose sizes are not stated in its summary; it drops
    tokens besides.
    """
    times, memory, places = [], [], []
    heads = {"vit-b-16": 12, "vit-l-16": 16}
    for on in ("a100_sxm", "rtx_a6000"):
        names = ("vit-b-16", "vit-l-16", "vim-ti", "vim-s")
        seconds_of: dict[str, float] = dict(zip(names, _passes(names, 2048, 1, on), strict=True))
        for vit, vim in (("vit-b-16", "vim-s"), ("vit-b-16", "vim-ti"), ("vit-l-16", "vim-s")):
            times.append(100.0 * seconds_of[vim] / seconds_of[vit])
            places.append(f"{vim} against {vit}, {on}")
    told = []
    for vit, n in heads.items():
        for vim in ("vim-ti", "vim-s"):
            scores = 2.0 * n * float(get(vit).passes(1, 2048, 2048).count) ** 2  # type: ignore[attr-defined]
            whole = 2.0 * get(vit).parameters + _live(vit, 2048, 0.0) + scores
            memory.append(100.0 * (2.0 * get(vim).parameters + _live(vim, 2048, 0.0)) / whole)
            told.append(f"{vim} against {vit}")
    return [
        NotModelled(0, "the device is not stated"),
        Finding(1, span(times), at=reached(times, 6.0, places), range="Vim-Ti and S against ViT-B "
                "and L, A100 and RTX A6000, fp16"),
        NotModelled(2, "the backbone's sizes are not stated"),
        Finding(3, span(memory), at=reached(memory, 3.0, told), range="weights and activations, "
                "one matrix of scores"),
    ]  # fmt: skip


def tempme() -> list[Found]:
    """CLIP's ViT-B/32 over 12 frames: tokens merged between layers until a twentieth is left.

    From the first, third, fifth or seventh of 12 layers on, by the same share each (swept: the
    schedule is not stated). Time of a layer is a twelfth of the encoder's at its number of tokens.
    """
    net, hw = get("clip-vit-b-32"), resolve("a100_sxm")
    frames, layers = 12.0, 12
    images = cast("TwoTowers", net).vision
    tokens = 50.0 * frames
    formats = formats_of(net, hw, "fp16")
    machine = Machine(hw, Layout(), formats, engine("hf"))
    work, faster, places = [], [], []
    for first in (1, 3, 5, 7):
        share = 0.05 ** (1.0 / (layers - first + 1))
        kept = np.array([tokens * share ** max(i - first + 1, 0) for i in range(1, layers + 1)])
        flops = 24.0 * kept * 768.0**2 + 4.0 * kept * np.minimum(kept, 50.0 * 12) * 768.0
        dense = 24.0 * tokens * 768.0**2 + 4.0 * tokens * 50.0 * 768.0
        work.append(100.0 * (1.0 - float(flops.sum()) / (layers * dense)))
        group = Tokens(16.0, np.ceil(np.append(kept, tokens)), np.ceil(np.append(kept, tokens)))
        times = run_passes([Job(images, machine, [group])])[0].time / layers
        faster.append(layers * float(times[-1]) / float(times[:-1].sum()))
        places.append(f"from layer {first} on")
    swept = "merging from the first, third, fifth or seventh of 12 layers on"
    return [
        NotModelled(0, "an input: what is trained"),
        NotModelled(1, "an input: the share of tokens merged"),
        Finding(2, span(work), at=reached(work, 51.0, places), range=swept),
        Finding(3, span(faster), at=reached(faster, 1.8, places), range=swept),
        NotModelled(4, "training: the batch is not stated"),
        NotModelled(5, "training: the batch is not stated"),
    ]  # fmt: skip


def multigrid() -> list[Found]:
    """Shapes that shrink while batches grow, a step costing the same: samples a step gained.

    Long cycle: (T/4, S/sqrt 2), (T/2, S/sqrt 2), (T/2, S), (T, S) with 8, 4, 2 and 1 times the
    batch; short cycle: S/2, S/sqrt 2 and S with 4, 2 and 1 times (Wu et al. 2020, arXiv:1912.00998,
    section 3). Time of a step: ResNet-50 over all frames. The last quarter to none of the samples
    is seen in the original shape.
    """
    net, hw = cast("ConvNet", get("resnet-50")), resolve("v100_sxm")
    machine = Machine(hw, Layout(), formats_of(net, hw, "fp16"), engine("hf"))
    long = ((0.25, 158, 8), (0.5, 158, 4), (0.5, 224, 2), (1.0, 224, 1))
    short = ((0.5, 4), (0.71, 2), (1.0, 1))
    shapes = [(t, round(side * s), batch * more) for t, side, batch in long for s, more in short]
    jobs = [
        Job(replace(net, resolution=s), machine, [Tokens(8.0 * 32.0 * t * b)])
        for t, s, b in [*shapes, (1.0, 224, 1)]
    ]
    times = [float(r.time[0]) for r in run_passes(jobs)]
    base = times[-1]
    alone = [i for i in range(len(shapes)) if i % 3 == 2]
    gains, places = [], []
    for name, chosen in (("long cycle", alone), ("both cycles", range(len(shapes)))):
        samples = sum(shapes[i][2] for i in chosen)
        each = sum(times[i] for i in chosen) / samples
        for tail in (0.0, 0.25):
            gains.append(base / ((1.0 - tail) * each + tail * base))
            places.append(f"{name}, {100 * tail:.0f} % of the samples in the original shape")
    return [Finding(0, span(gains), at=reached(gains, 4.5, places), range="long cycle alone or "
                    "both, none to a quarter of the samples in the original shape")]  # fmt: skip
