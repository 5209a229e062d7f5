"""Splats, voxels and neural graphics: how frames and fits follow from primitives and samples."""

from __future__ import annotations

from typing import Any

from ..verdict import Finding, Found, NotModelled
from .kit import reached, seconds, span

__all__ = ["dvgo", "four_d_gaussians", "ges", "gsgan", "ngpc"]


def ges() -> list[Found]:
    """Half of the primitives: each covers as much as before, or twice as much."""
    gains, places = [], []
    for count in (500_000, 1_000_000, 3_000_000):
        for each in (8.0, 11.3, 16.0):  # tiles a splat touches: the same, sqrt(2) and 2 times
            shape: dict[str, Any] = {"width": 1600, "height": 1060}
            base = seconds("gaussian_splatting", "rtx_a6000", gaussians=count, **shape)
            half = seconds("gaussian_splatting", "rtx_a6000", gaussians=count // 2,
                           tiles_each=each, **shape)  # fmt: skip
            gains.append(float(100.0 * (base / half - 1.0)))
            places.append(f"{count // 1000} k splats before, {each:g} tiles each after (8 before)")
    return [
        NotModelled(0, "an input: how many fewer primitives describe a scene"),
        Finding(1, span(gains), at=reached(gains, 39.0, places),
                range="0.5 to 3 M splats, tiles a splat touches unchanged to doubled, RTX A6000"),
    ]  # fmt: skip


def four_d_gaussians() -> list[Found]:
    """Frames a second of sliced 4D Gaussians in 1352 x 1014, the same scene on two cards."""
    counts = [round(1e6 * 1.1**i) for i in range(20)]
    shape: dict[str, Any] = {"width": 1352, "height": 1014}
    old, new = (
        [1.0 / float(seconds("gaussian_splatting", on, gaussians=c, **shape)) for c in counts]
        for on in ("rtx_3090", "rtx_4090")
    )
    place = min(range(len(counts)), key=lambda i: abs(old[i] - 277.0))
    scene = f"{counts[place] / 1e6:.2g} M primitives in view"
    return [
        Finding(0, span(old), at=f"{old[place]:.3g} with {scene}",
                range="1 to 6.1 M primitives in view, 1352 x 1014 pixels"),
        Finding(1, new[place], at=f"the scene of {scene}",
                note=f"both cards have about the same bandwidth, which limits here: the 4090 is "
                f"{new[place] / old[place]:.3g} times as fast, not 2.1; its larger L2 would have "
                "to hold what is sorted and blended"),
    ]  # fmt: skip


def gsgan() -> list[Found]:
    """Render 512 x 512 pixels: samples of a field through a small network, or splats.

    Networks: the decoder of a tri-plane field (32, 64, 33) and a SIREN-like one of 4 x 128.
    """
    on, ratios, places = "a100_sxm", [], []
    pixels = 512 * 512
    for samples in (48, 96, 192):
        for layers in (((32, 64), (64, 33)), ((3, 128), (128, 128), (128, 128), (128, 4))):
            points = pixels * samples
            field = float(seconds("volume_grid", on, samples=points, side=256, channels=32,
                                  dtype="fp16"))  # fmt: skip
            for wide, narrow in layers:
                field += float(seconds("low_bit_gemm", on, m=points, n=narrow, k=wide,
                                       weight_bits=8.0, group=0, dtype="fp16"))  # fmt: skip
            for count in (20_000, 65_000, 250_000):
                splats = seconds("gaussian_splatting", on, gaussians=count, width=512, height=512,
                                 sh_degree=0)  # fmt: skip
                ratios.append(field / float(splats))
                places.append(f"{samples} samples a ray, {count // 1000} k splats, "
                              f"{len(layers)} layers")  # fmt: skip
    return [
        Finding(0, span(ratios), at=reached(ratios, 100.0, places),
                range="48 to 192 samples a ray, 20 to 250 k splats, two networks, A100")
    ]  # fmt: skip


def dvgo() -> list[Found]:
    """Fit two voxel grids (density; 12 features) with a shallow network, forward and backward.

    20 k fine and 10 k coarse steps of 8192 rays (Sun et al. 2022, arXiv:2111.11215, section 5), 100
    to 300 samples a ray, of which known free space leaves a tenth to a half (swept).
    """
    minutes, places = [], []
    for steps in (20_000, 30_000):
        for samples in (100, 300):
            for kept in (0.1, 0.5):
                points = int(8192 * samples * kept)
                step = sum(
                    float(seconds("volume_grid", "rtx_2080_ti", samples=points, side=160,
                                  channels=c, backward=b))
                    for c in (1, 12) for b in (False, True)
                )  # fmt: skip
                for n, k in ((128, 39), (128, 128), (3, 128)):
                    work = 3.0 * 2.0 * points * n * k / 13.45e12  # fp32, forward and backward
                    step += work + 3.0 * points * (n + k) * 4.0 / 616e9
                grid = 160**3 * 13  # Adam passes over the whole grids
                step += float(seconds("optimiser", "rtx_2080_ti", parameters=grid))
                minutes.append(steps * step / 60.0)
                places.append(f"{steps} steps, {samples} samples, {100 * kept:.0f} % kept")
    return [
        Finding(0, span(minutes), at=reached(minutes, 15.0, places), ceiling=True,
                range="20 to 30 k steps, 100 to 300 samples a ray, RTX 2080 Ti",
),
    ]  # fmt: skip


def ngpc() -> list[Found]:
    """Amdahl over the published shares: encoding and network faster by the scale, rest fused.

    And the first of those shares itself: encoding with its network beside marching, which unfused
    kernels make 9.94 times slower, as published.
    """
    share, rest = 0.72, 9.94
    series = [1.0 / (share / scale + (1.0 - share) / rest) for scale in (8.0, 16.0, 32.0, 64.0)]
    note = "a single share of 72 % with the rest fused 9.94 times allows no more"
    shares = _encoding_shares()
    inputs = "a requirement or a measurement: an input"
    return [
        NotModelled(0, inputs),
        NotModelled(1, inputs),
        Finding(
            2,
            span(shares),
            at=reached(shares, 72.0, ("4 levels", "8 levels", "16 levels")),
            range="4 to 16 levels, 1080p with 16 samples a ray, RTX 3090",
        ),
        NotModelled(3, "a dense grid in place of the hash grid: its sizes are not stated"),
        NotModelled(4, "a dense grid in place of the hash grid: its sizes are not stated"),
        NotModelled(5, inputs),
        NotModelled(6, "depends on shares of each application that are not stated"),
        *(
            Finding(7 + i, value, at=f"scale {scale}", note=note)
            for i, (scale, value) in enumerate(zip((8, 16, 32, 64), series, strict=True))
        ),
        NotModelled(11, "a rate of the accelerator, whose clock and width are not stated"),
        NotModelled(12, "a rate of the accelerator, whose clock and width are not stated"),
    ]


def _encoding_shares() -> list[float]:
    """Per cent of a frame in the encoding with its network, by levels."""
    rays, found, unfused = 1920 * 1080, [], 9.94
    for levels in (4, 8, 16):
        points = rays * 16
        inside = float(seconds("hash_encoding", "rtx_3090", points=points, levels=levels))
        march = float(seconds("ray_marching", "rtx_3090", rays=rays, samples=1024, occupied=1 / 64))
        found.append(100.0 * inside / (inside + unfused * march))
    return found
