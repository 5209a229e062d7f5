"""Scenes of splats and sampled rays: what training keeps, what is away, samples a ray."""

from __future__ import annotations

from math import ceil

from ...hardware import resolve
from ..verdict import Finding, Found, NotModelled, Property
from .kit import reached, seconds, span

__all__ = ["block_gaussian", "lod_of_gaussians", "wysiwyg_gan"]

# Values of a splat: position 3, rotation 4, scale 3, opacity 1, colour 48 (Kerbl et al. 2023,
# arXiv:2308.04079: spherical harmonics of degree 3); in fp32 with gradient and two moments of Adam
TRAINED = 59 * 4.0 * 4.0


def block_gaussian() -> list[Found]:
    """Train 20 to 100 million splats whole, or in blocks of which the largest has twice the mean.

    Blocks follow each other on one card; their number doubles until the largest fits.
    """
    room, needed = resolve("rtx_4090").memory.capacity, []
    for n in (20e6, 50e6, 100e6):
        parts = 1
        while (2.0 if parts > 1 else 1.0) * n * TRAINED / parts > room:
            parts *= 2
        needed.append(parts)
    return [
        NotModelled(0, "the methods before are not stated"),
        NotModelled(1, "a limit that the block's size is chosen for"),
        Property("large scenes do not fit 24 GB whole; in blocks they do", needed[-1] > 1,
                 f"{100e6 * TRAINED / 1e9:.0f} GB of 100 M splats; blocks for 20, 50 and 100 M: "
                 f"{needed[0]}, {needed[1]} and {needed[2]}"),
    ]  # fmt: skip


def lod_of_gaussians() -> list[Found]:
    """Train 30 to 150 million splats: all on devices, or what a view needs on one.

    A view needs 2 to 10 % of them at the chosen level of detail (swept).
    """
    room = resolve("rtx_4090").memory.capacity
    before, after, places = [], [], []
    for n in (30, 75, 150):
        for share in (0.02, 0.05, 0.1):
            before.append(ceil(n * 1e6 * TRAINED / room))
            after.append(float(ceil(n * 1e6 * TRAINED * share / room)))
            places.append(f"{n} M splats, {100 * share:.0f} % in a view")
    return [
        Finding(0, span(after), at=reached(after, 1.0, places) + f"; without: {min(before)} to "
                f"{max(before)} cards of 24 GB", range="30 to 150 M splats, 2 to 10 % in a view"),
    ]  # fmt: skip


def wysiwyg_gan() -> list[Found]:
    """Shade rays of 512 x 512 pixels with 96 samples through a tri-plane, or a fifth of them."""
    gains = []
    for samples in (48, 96, 192):
        full, thin = (
            float(seconds("volume_grid", "a100_sxm", samples=512 * 512 * n, side=256, channels=32,
                          dtype="fp16"))
            for n in (samples, ceil(samples / 5))
        )  # fmt: skip
        gains.append(full / thin)
    return [
        NotModelled(0, "an input: the samples that a learnt sampler needs"),
        Property("time of the field falls with the samples", min(gains) > 4.0,
                 f"a fifth of the samples: {min(gains):.3g} to {max(gains):.3g} times as fast"),
    ]  # fmt: skip
