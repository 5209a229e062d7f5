"""Generators of pictures: fewer steps and calls, thinner networks, tiles, streams.

Times come from `scenario.generate` with one engine and device on both sides of a ratio. The eager
engine stands for diffusers; "graph" replays launches, as compiled engines do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

from ...models.diffusion import read
from ...models.image import Canvas
from ...models.image_pieces import Piece
from ...models.network import Layout
from ...models.pipeline import Pipeline
from ...models.unet import UNet
from ...scenario import Generated, Generation, generate_all
from ...techniques import Treatment
from ..verdict import Finding, Found, NotModelled, Property
from .generators import applied, only, pipeline, times_of
from .kit import reached, span

__all__ = ["any_size_diffusion", "asgdiffusion", "code", "hierarchicalprune", "instaflow", "koala",
           "olss", "rectified_flow", "rectified_flow_pp", "scalekv", "slam", "swiftdiffusion",
           "vq4dit"]  # fmt: skip


def instaflow() -> list[Found]:
    """One step of SD 1.5 at 512 x 512 on an A100, in 16 bits, TF32 and fp32."""
    formats = ("fp16", "tf32", "fp32")
    cases = [Generation("instaflow-0.9b", on, dtype=d) for on in ("a100_sxm", "a100_pcie")
             for d in formats]  # fmt: skip
    times = times_of(cases)
    unet = pipeline("instaflow-0.9b").stage("denoiser").network.parameters
    return [
        Finding(0, span(times), at=reached(times, 0.09, [f"{d}, {on}" for on in ("SXM", "PCIe")
                for d in formats]), range="fp16, TF32 and fp32; A100 SXM and PCIe; batch 1"),
        NotModelled(1, "training of a distilled generator, whose iterations are not stated"),
        Finding(2, 2.0 * unet / 1e9, at="two stacked U-Nets of SD 1.5"),
    ]  # fmt: skip


def olss() -> list[Found]:
    """SD 1.5 with guidance in 5 to 20 steps on an A100, eager, 16 and 32 bits."""
    places = [(n, d) for n in (5, 10, 20) for d in ("fp16", "tf32")]
    times = times_of([
        Generation("sd-1.5", "a100_sxm", dtype=d, treatment=applied("few-steps", steps=n))
        for n, d in places
    ])  # fmt: skip
    return [Finding(0, span(times), at=reached(times, 1.0, [f"{n} steps, {d}" for n, d in places]),
                    range="5 to 20 steps, fp16 and TF32, 512 x 512", ceiling=True)]  # fmt: skip


def _falls(name: str, steps: Sequence[int], what: str) -> Property:
    """Whether time falls with the steps, down to what the other stages take."""
    cases = [
        Generation(name, "a100_sxm", dtype="fp16", treatment=applied("few-steps", steps=n))
        for n in (50, *steps)
    ]
    base, *less = generate_all(cases)
    gains = [base.time / g.time for g in less]
    ideal = [50.0 / n for n in steps]
    holds = all(1.0 < g < i for g, i in zip(gains, ideal, strict=True))
    shown = ", ".join(f"{n} steps: {g:.1f} times (steps alone: {i:.0f})"
                      for n, g, i in zip(steps, gains, ideal, strict=True))  # fmt: skip
    return Property(what, holds, shown)


_FIXED = "time falls with the steps until text encoder and decoder are left"


def slam() -> list[Found]:
    """Two to four steps instead of 50."""
    return [
        NotModelled(0, "an input: the number of steps"),
        NotModelled(1, "distillation, whose iterations are not stated"),
        _falls("sd-1.5", (2, 4), _FIXED),
    ]


def rectified_flow() -> list[Found]:
    """One Euler step."""
    return [NotModelled(0, "an input: the number of steps"), _falls("sd-1.5", (1, 2), _FIXED)]


def rectified_flow_pp() -> list[Found]:
    """One or two calls."""
    return [
        NotModelled(0, "an input: the number of calls"),
        NotModelled(1, "an input: the rounds of training"),
        _falls("sd-1.5", (1, 2), _FIXED),
    ]


# ------------------------------------------------------------------ thinner networks


def koala() -> list[Found]:
    """SDXL's U-Net with one block a level less, and shallower transformers.

    KOALA-1B: transformers of 2 and 6 layers; 700M: 2 and 5, without a middle (Lee et al. 2023,
    arXiv:2312.04005, section 3). The two residual blocks of the middle stay in the times.
    """
    sdxl = pipeline("sdxl")
    unet = sdxl.stage("denoiser").network
    big = replace(unet, blocks=1, depths=(0, 2, 6), mid_depth=6)  # type: ignore[call-arg]
    small = replace(unet, blocks=1, depths=(0, 2, 5), mid_depth=5)  # type: ignore[call-arg]
    flat = replace(small, mid_depth=1)  # type: ignore[call-arg]
    each = (small.parameters - flat.parameters) / 4.0
    width, held = 1280, 2.0 * 1280 * 1280  # projections into and out of the middle's transformer
    middle = 5.0 * each + held + 2.0 * (2.0 * 9.0 * width * width + width * width)
    sizes = (big.parameters, small.parameters - middle)
    cut = [100.0 * (1.0 - size / unet.parameters) for size in sizes]
    gains, places = [], []
    for on in ("rtx_4090", "a100_sxm"):
        full, five, one = times_of([
            Generation(only(sdxl, net), on, dtype="fp16") for net in (unet, small, flat)
        ])  # fmt: skip
        gains.append(full / (five - (five - one) * 5.0 / 4.0))
        places.append(on)
    names = ("stated of KOALA-1B", "stated of KOALA-700M")
    return [
        *(Finding(i, c, at=f"{c:.1f} %, {n}", tolerance=0.05)
          for i, (c, n) in enumerate(zip(cut, names, strict=True))),
        Finding(2, span(gains), at=reached(gains, 2.0, places), range="RTX 4090 and A100, fp16, "
                "the denoiser at 1024 x 1024"),
    ]  # fmt: skip


def _large() -> Pipeline:
    """SD 3.5 Large: 38 joint blocks of 38 heads of 64, 8.1 G parameters (its config.json)."""
    base = pipeline("sd3-medium")
    net = read({"_class_name": "SD3Transformer2DModel", "num_attention_heads": 38,
                "attention_head_dim": 64, "num_layers": 38, "in_channels": 16, "out_channels": 16,
                "patch_size": 2, "sample_size": 128, "joint_attention_dim": 4096,
                "pooled_projection_dim": 2048}, "sd-3.5-large")  # fmt: skip
    return only(base, net)


def hierarchicalprune() -> list[Found]:
    """Drop a fifth to a third of the blocks, store the rest at 4 bits: SD 3.5 Large and FLUX."""
    models = {"SD 3.5 Large": _large(), "FLUX.1 dev": only(pipeline("flux.1-dev"),
              pipeline("flux.1-dev").stage("denoiser").network)}  # fmt: skip
    places, cases = [], []
    for name, pipe in models.items():
        for on in ("a100_sxm", "rtx_4090"):
            cases.append(Generation(pipe, on))
            for layers in (0.7, 0.75, 0.8, 0.85):
                cases.append(Generation(pipe, on, treatment=applied(
                    "hierarchicalprune", layers=layers)))  # fmt: skip
                places.append(f"{100 * layers:.0f} % of the blocks of {name}, {on}")
    found = generate_all(cases)
    saved, faster, after = [], [], []
    for i in range(0, len(found), 5):
        base, *rest = found[i : i + 5]
        for g in rest:
            saved.append(100.0 * (1.0 - _held(g) / _held(base)))
            faster.append(100.0 * (1.0 - g.time / base.time))
            if i < 10:  # SD 3.5 Large
                after.append(_held(g) / 1e9)
    swept = "70 to 85 % of the blocks, groups of 64, SD 3.5 Large and FLUX.1 dev, A100 and RTX 4090"
    return [
        Finding(0, span(saved), at=reached(saved, 79.0, places), range=swept),
        Finding(1, _held(found[0]) / 1e9, at="weights of SD 3.5 Large in 16 bits"),
        Finding(2, span(after), at=reached(after, 3.2, places), range=swept),
        Finding(3, span(faster), at=reached(faster, 33.0, places), range=swept),
    ]


def _held(g: Generated) -> float:
    return g.stage("denoiser").memory["weights"]


def vq4dit() -> list[Found]:
    """Count indices of 8 bits for 4 weights and a codebook of 256 x 4 fp16 values a layer."""
    net = pipeline("dit-xl-2").stage("denoiser").network
    linear = [w for w in net.weights() if w.role == "linear"]
    matrices = 28.0 * 6.0  # of 28 blocks: qkv, out, two of the feed-forward, modulation; ends
    bits = 8.0 / 4.0 + matrices * 256 * 4 * 16.0 / sum(w.total for w in linear)
    return [
        Finding(0, bits, at=f"{bits:.3f} bits a weight, codebooks included"),
        NotModelled(1, "a calibration whose iterations are not stated"),
    ]


# ------------------------------------------------------------------ next-scale pictures


def scalekv() -> list[Found]:
    """Pictures that fit 24 GB with the whole cache of a next-scale network, and with a tenth."""
    cases = [
        Generation("var-d30", "rtx_4090", Canvas(256, 256, batch=n), treatment=t)
        for t in (Treatment(), applied("scalekv")) for n in (8, 16)
    ]  # fmt: skip
    most = []
    one = generate_all(cases)
    for small, large in (one[:2], one[2:]):
        a, b = (g.stage("denoiser").memory_total for g in (small, large))
        each = (b - a) / 8.0
        most.append((small.memory_capacity - a + 8.0 * each) / each)
    return [
        NotModelled(0, "an input: the budgets themselves are chosen"),
        Property(
            "the cache is most of what a picture takes: at a tenth, several times as many fit",
            most[1] > 3.0 * most[0],
            f"VAR-d30, 24 GB: {most[0]:.0f} pictures a batch with all of the cache, "
            f"{most[1]:.0f} with a tenth",
        ),
    ]


def code() -> list[Found]:
    """VAR: the 2 B network draws the first scales, the 0.3 B one the rest, on an RTX 4090.

    Time of the late scales: all of them less the first ones. 64 to 256 pictures a batch.
    """
    large, small = pipeline("var-d30"), pipeline("var-d16")
    ways = ((9, 0.0), (8, 0.0), (7, 0.0), (6, 0.0))
    gains, rates, saved, places = [], [], [], []
    for batch in (16, 64):
        nets = [(p, n) for n in (10, *(w for w, _ in ways)) for p in (large, small)]
        found = generate_all([_scales(p, n, batch) for p, n in nets])
        by = {(p.name, n): g for (p, n), g in zip(nets, found, strict=True)}
        full, thin = by[large.name, 10], by[small.name, 10]
        for first, _ in ways:
            a, b = by[large.name, first], by[small.name, first]
            denoise = [g.stage("denoiser").time for g in (a, thin, b)]
            time = denoise[0] + denoise[1] - denoise[2]
            decode = full.stage("decoder").time
            gains.append(full.stage("denoiser").time / time)
            rates.append(batch / (time + decode))
            kept = _live(a) + _live(thin)
            saved.append(100.0 * (1.0 - kept / _live(full)))
            places.append(f"{first} of 10 scales by the large network, batch {batch}")
    return [
        Finding(0, span(gains), at=reached(gains, 1.7, places), range="the large network draws 6 "
                "to 9 of 10 scales, batch 16 and 64, RTX 4090"),
        Finding(1, span(saved), at=reached(saved, 50.0, places), range="weights and cache of both "
                "networks against the large one alone"),
        Finding(2, span(gains), at=reached(gains, 2.9, places), range="as above"),
        Finding(3, span(rates), at=reached(rates, 41.0, places), range="with the decoder"),
    ]  # fmt: skip


def _scales(pipe: Pipeline, first: int, batch: int) -> Generation:
    """Draw the first scales only."""
    net = pipe.stage("denoiser").network
    scales = net.scales[:first]  # type: ignore[attr-defined]
    side = scales[-1] * 16
    stages = tuple(
        replace(s, network=replace(s.network, scales=scales)) if s.name == "denoiser" else s  # type: ignore[call-arg]
        for s in pipe.stages
    )
    return Generation(replace(pipe, stages=stages), "rtx_4090", Canvas(side, side, batch=batch))


def _live(g: Generated) -> float:
    """Bytes of cache and weights of the denoiser."""
    memory = g.stage("denoiser").memory
    return memory["weights"] + memory["kv"]


# ------------------------------------------------------------------ tiles


def _tiles(side: int, tile: int, stride: int) -> int:
    """Tiles that cover a square latent."""
    one = -(-(side - tile) // stride) + 1
    return one * one


def any_size_diffusion() -> list[Found]:
    """SD 2.1's U-Net over tiles of 512 pixels that overlap by an eighth to a half, or not."""
    gains, places = [], []
    tile = Generation(only(pipeline("sd-2.1")),
                      "rtx_3090", Canvas(512, 512), dtype="fp16")  # fmt: skip
    one = generate_all([tile])[0]
    for pixels in (1024, 2048, 4096):
        side = pixels // 8
        for stride in (32, 48, 56):
            gains.append(_tiles(side, 64, stride) * one.time / (_tiles(side, 64, 64) * one.time))
            places.append(f"{pixels} pixels, {64 - stride} of 64 latents overlap")
    large = [g.memory_peak for g in generate_all(
        [replace(tile, canvas=Canvas(n, n)) for n in (1024, 2048)])]  # fmt: skip
    return [
        Finding(0, span(gains), at=reached(gains, 2.0, places), range="1024 to 4096 pixels, "
                "overlaps of 8 to 32 of 64 latents"),
        Property("a tile's peak memory is below that of the whole picture, which grows",
                 one.memory_peak < large[0] < large[1],
                 f"{one.memory_peak / 1e9:.2f} GB a tile, {large[0] / 1e9:.2f} and "
                 f"{large[1] / 1e9:.2f} whole at 1024 and 2048 pixels"),
    ]  # fmt: skip


def asgdiffusion() -> list[Found]:
    """SDXL at 2048 x 2048: rows over one, two and four devices, exchanges hidden or not."""
    pipe = only(pipeline("sdxl"))
    canvas = Canvas(2048, 2048)
    hidden = Treatment(comm_overlap=1.0)
    cases = [Generation(pipe, "a100_sxm", canvas, dtype="fp16", layout=Layout(cp=n), treatment=t)
             for t in (Treatment(), hidden) for n in (1, 2, 4)]  # fmt: skip
    found = generate_all(cases)
    plain, late = found[:3], found[3:]
    times = [late[0].time / g.time for g in late]
    memory = [g.stage("denoiser").memory["activations"] for g in late]
    return [
        Property("time falls nearly as the devices rise, and less where exchanges are waited for",
                 times[2] > 2.5 and late[2].time < plain[2].time,
                 f"{times[1]:.2f} and {times[2]:.2f} times on 2 and 4 devices; waiting: "
                 f"{plain[0].time / plain[2].time:.2f} on 4"),
        Property("a device holds its rows only", memory[2] < 0.5 * memory[0],
                 f"{memory[0] / 1e9:.2f} GB of activations on one, {memory[2] / 1e9:.2f} on four"),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Control(UNet):
    """Copy of a U-Net's encoder and middle (Zhang et al. 2023, arXiv:2302.05543)."""

    def pieces(self) -> tuple[Piece, ...]:
        """List the layers before the way up, whose inputs are wider by the skips."""
        found = tuple(self._walk())
        up = next(i for i, p in enumerate(found)
                  if p.part == "resnet" and p.out > max(self.widths))  # fmt: skip
        return found[:up]


def swiftdiffusion() -> list[Found]:
    """SDXL with one to three ControlNets: one after the other, or beside the encoder elsewhere.

    Up to two low-rank adapters of 0.2 to 0.8 GB are read from storage first (7 GB/s and 1 GB/s),
    or while early steps run. Beside the base network on other devices a ControlNet costs no time,
    since it is no longer than the encoder.
    """
    pipe = pipeline("sdxl")
    unet = cast("UNet", pipe.stage("denoiser").network)
    values = {f.name: getattr(unet, f.name) for f in fields(unet)}
    control = _Control(**values)
    gains, places = [], []
    for on in ("h800_sxm", "a100_sxm"):
        base, side = generate_all([
            Generation(p, on, dtype="fp16") for p in (pipe, only(pipe, control))
        ])  # fmt: skip
        for nets in (1, 2, 3):
            for count, size, speed in ((0, 0.0, 1.0), (1, 0.2e9, 7e9), (2, 0.8e9, 1e9)):
                serial = base.time + nets * side.time + count * size / speed
                gains.append(serial / base.time)
                places.append(f"{nets} ControlNets, {count} adapters, {on}")
    return [
        Finding(0, span(gains), at=reached(gains, 5.0, places), range="1 to 3 ControlNets, 0 to 2 "
                "adapters, H800 and A100", note="fused operators and slower stores are not in it"),
        NotModelled(1, "a fleet's reuse of ControlNets, which depends on its requests"),
    ]  # fmt: skip
