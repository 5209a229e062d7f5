"""Rendering of radiance fields: ray marching, Gaussian splatting, sampling of volume grids.

Owns operation and byte counts a ray, splat and sample; the network that a marched sample asks is an
operation of its own (`hash_encoding`, `gemm`). Knows no device, no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..dtypes import dtype
from .base import F64, Amount, Op, Rule, Work, choice, flag, fmt, number, plain, share, size
from .reuse import Scattered, line_rule, line_size, locality_share, scattered

__all__ = ["GaussianSplatting", "RayMarching", "VolumeGrid"]

# Lane operations, an FMA being two; counted from the formulas of the papers cited below.
RAY_SETUP = 25.0  # pixel to direction (9 FMA), box test (6 and a min/max each)
STEP_VECTOR = 12.0  # position (3 FMA), scaling to a cell (3 FMA)
STEP_INTEGER = 12.0  # Morton code of three coordinates or a row-major index, bit test
BLEND_VECTOR = 12.0  # 1 - alpha, weight, three colours (FMA), depth (FMA), transmittance, test
PROJECT_VECTOR = (
    214.0  # view 18, clip 27, covariance 75, its projection 71, inverse 12, direction 11
)
PROJECT_SPECIAL = 6.0  # perspective, inverse, square roots, direction, opacity
PAIR_VECTOR = 20.0  # offset 2, quadratic form 9, alpha and tests 3, colours 6
RADIX_BITS = 8  # of a pass
INTEGER_PER_SORTED = 4.0  # digit, rank (two), address


def _f(value: Amount) -> F64:
    return np.asarray(value, np.float64)


@dataclass(frozen=True)
class RayMarching(Op):
    """March rays through a volume, skip empty cells, blend samples until nothing shows any more.

    Of `samples` steps a ray, the share `reach` is passed before early termination (a ray of equal
    opacities a stops below transmittance e after log e / log(1 - a) samples). The share
    `occupied` of those is evaluated; the others are found empty in an occupancy grid of one bit a
    cell, `leap` of them at a time (Mueller et al. 2022, arXiv:2201.05989, appendix E; the blend
    C += T a c, T *= 1 - a: Max 1995, IEEE TVCG 1(2)).

    variant: fused (samples are evaluated and blended where they are marched), separate (samples of
    7 fp32 numbers are written for a network, its 4 outputs in `dtype` and the sample's position
    and step are read to blend).

    >>> RayMarching(rays=10, samples=100, occupied=0.1, reach=0.5).evaluated
    50.0
    """

    name: ClassVar[str] = "ray_marching"
    what: ClassVar[str] = "rays through a volume: empty cells skipped, samples blended"
    example: ClassVar[str] = "rays=2073600 samples=1024 occupied=0.05 reach=0.5"

    rays: int = size("rays, one a pixel", high=2**53)
    samples: int = size("steps of a ray that neither skips nor stops")
    occupied: float = share("share of the steps that lie in occupied cells", 0.05)
    reach: float = share("share of the steps before a ray terminates", 1.0)
    leap: float = number("empty steps skipped by one look at the grid", 1.0, low=1.0)
    grid: int = size("cells a side of the occupancy grid", 128, high=4096)
    cascades: int = size("occupancy grids of growing size", 1)
    dtype: str = fmt("format of the network's outputs", "fp16")
    variant: str = choice("what stays on chip", ("fused", "separate"), "separate")
    locality: float = number("share of repeated looks served from cache", 1.0, high=1.0)
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """Allow lines that machines have."""
        yield line_rule(self.line)

    @property
    def evaluated(self) -> Amount:
        """Samples whose colour and density are asked for."""
        return plain(_f(self.rays) * self.samples * self.reach * self.occupied)

    @property
    def looked(self) -> Amount:
        """Looks at the occupancy grid: one a sample, one a leap."""
        steps = _f(self.rays) * self.samples * self.reach
        return plain(steps * (self.occupied + (1.0 - _f(self.occupied)) / self.leap))

    def work(self) -> Work:
        """Marching and blending; what a sample's network does is not included."""
        rays, looked, evaluated = _f(self.rays), _f(self.looked), _f(self.evaluated)
        cells = _f(self.grid) ** 3 * self.cascades
        grid = scattered(looked, np.maximum(cells / 8.0, 1.0), 1.0, self.line)
        flops: dict[str, Amount] = {
            "vector": plain(RAY_SETUP * rays + STEP_VECTOR * looked + BLEND_VECTOR * evaluated),
            "special": plain(evaluated + 3.0 * rays),  # alpha = 1 - exp(-density step); directions
            "integer": plain(STEP_INTEGER * looked),
        }
        rays_in, image = rays * 24.0, rays * 16.0
        sample, answer = evaluated * 28.0, evaluated * 4.0 * dtype(self.dtype).bytes_of(1.0)
        steps = _f(self.samples) * self.reach
        each = steps * (self.occupied + (1.0 - _f(self.occupied)) / self.leap)
        waits = each * (1.0 - _f(self.locality))  # looks of one ray that go to memory, in turn
        looks = grid.moved(self.locality)
        if self.variant == "fused":
            return Work(flops, plain(rays_in + looks), plain(image),
                        footprint=plain(rays_in + grid.unique + image),
                        resident=plain(rays_in + cells / 8.0 + image),
                        steps=plain(waits))  # fmt: skip
        read = rays_in + looks + sample + answer
        return Work(flops, plain(read), plain(sample + image),
                    footprint=plain(rays_in + grid.unique + sample + answer + image),
                    resident=plain(rays_in + cells / 8.0 + sample + answer + image),
                    launches=2.0, steps=plain(waits))  # fmt: skip


@dataclass(frozen=True)
class GaussianSplatting(Op):
    """Image of 3-D Gaussians: project, list per tile, sort by tile and depth, blend per pixel.

    Kerbl et al. 2023, arXiv:2308.04079, section 6 and appendix C: Gaussians outside the view are
    dropped; each other one is listed once for each tile of `tile` x `tile` pixels that it touches,
    under a key of tile and depth (32 bits); a radix sort of 8 bits a pass, each pass reading and
    writing keys and values once after one counting read (Adinets and Merrill 2022,
    arXiv:2206.01784), orders them; each tile's pixels walk its list until they are opaque
    (`blended`: the share of the list walked). Attributes are fp32: position 3, scale 3, rotation 4,
    opacity 1, and 3 (sh_degree + 1)^2 of colour.

    >>> op = GaussianSplatting(gaussians=1000, width=64, height=64, tiles_each=4.0, visible=0.5)
    >>> op.listed, op.sort_passes  # 500 * 4; 32 bits of depth and 4 of 16 tiles
    (2000.0, 5.0)
    """

    name: ClassVar[str] = "gaussian_splatting"
    what: ClassVar[str] = "Gaussian splatting: project, duplicate per tile, sort, blend"
    example: ClassVar[str] = "gaussians=3000000 width=1920 height=1080 visible=0.4 tiles_each=8"
    not_monotone: ClassVar[tuple[str, ...]] = ("tile",)  # larger tiles: fewer lists to sort

    gaussians: int = size("Gaussians of the scene")
    width: int = size("pixels a row", 1920)
    height: int = size("rows of pixels", 1080)
    visible: float = share("share of the Gaussians in view", 0.5)
    tiles_each: float = number("tiles that a visible Gaussian touches, on average", 8.0)
    blended: float = share("share of a tile's list walked before its pixels are opaque", 0.5)
    sh_degree: int = size("degree of the spherical harmonics", 3, low=0, high=4)
    tile: int = size("pixels a side of a tile", 16, high=64)
    locality: float = number("share of repeated reads of a splat served from cache", 0.0, high=1.0)

    @property
    def tiles(self) -> Amount:
        """Tiles of the image."""
        side = _f(self.tile)
        return plain(np.ceil(_f(self.width) / side) * np.ceil(_f(self.height) / side))

    @property
    def listed(self) -> Amount:
        """Entries of all lists; no Gaussian is in a list twice."""
        each = np.minimum(_f(self.tiles_each), self.tiles)
        return plain(_f(self.gaussians) * self.visible * each)

    @property
    def sort_passes(self) -> Amount:
        """Passes over the 32 bits of depth and those of a tile's number."""
        return plain(np.ceil((32.0 + np.ceil(np.log2(_f(self.tiles)))) / RADIX_BITS))

    @property
    def blends(self) -> Amount:
        """Pixel-Gaussian pairs that are evaluated."""
        return plain(_f(self.listed) * self.blended * np.square(_f(self.tile)))

    def work(self) -> Work:
        """Operations and bytes of the five stages."""
        all_, listed, pairs = _f(self.gaussians), _f(self.listed), _f(self.blends)
        seen, passes = all_ * self.visible, _f(self.sort_passes)
        colours = np.square(_f(self.sh_degree) + 1.0)
        flops: dict[str, Amount] = {
            "vector": plain(all_ * 18.0 + seen * (PROJECT_VECTOR - 18.0 + 8.0 * colours)
                            + pairs * PAIR_VECTOR),
            "special": plain(seen * PROJECT_SPECIAL + pairs),
            "integer": plain(all_ + listed * (6.0 + INTEGER_PER_SORTED * (passes + 1.0))),
        }  # fmt: skip
        attributes = all_ * 12.0 + seen * (32.0 + 12.0 * colours)  # positions of all, rest of seen
        splat = 48.0  # centre 2, depth, conic and opacity 4, colour 3, radius, tiles touched
        counts = all_ * 4.0
        keys, pair = listed * 8.0, listed * 12.0
        ranges, image = _f(self.tiles) * 8.0, _f(self.width) * self.height * 20.0
        walked = _f(self.blended) * listed
        repeated = np.maximum(walked - seen, 0.0) * (1.0 - _f(self.locality))
        fetched = 36.0 * (np.minimum(walked, seen) + repeated)  # centre, conic, opacity, colour
        read = attributes + 2.0 * counts + seen * 24.0  # scan; then centre, radius, depth, offset
        read = read + keys + passes * pair + keys + ranges + walked * 4.0 + fetched
        written = seen * splat + 2.0 * counts + pair + passes * pair + ranges + image
        held = attributes + all_ * (splat + 8.0) + 2.0 * pair + ranges + image
        whole = all_ * (44.0 + 12.0 * colours)
        longest = listed * self.blended / self.tiles / np.square(_f(self.tile))
        return Work(flops, plain(read), plain(written),
                    footprint=plain(np.minimum(held - all_ * splat + seen * splat, read + written)),
                    resident=plain(whole + held - attributes),
                    launches=plain(passes + 7.0),
                    steps=plain(passes + np.ceil(longest)))  # fmt: skip


@dataclass(frozen=True)
class VolumeGrid(Op):
    """Samples of a grid of voxels that hold `channels` elements each, side by side.

    sampling: trilinear (eight corners in four pairs of neighbours along x), nearest. With `sparse`,
    a dense grid of 32-bit pointers leads to the voxels that exist, the share `occupied`, and each
    corner is fetched by itself (Fridovich-Keil et al. 2022, Plenoxels, arXiv:2112.05131);
    without it, all voxels exist (Sun et al. 2022, arXiv:2111.11215). `backward` is the backward
    pass alone: gradients of the samples are added to the corners by atomic adds.

    >>> VolumeGrid(samples=1, side=128, channels=1).work().flops["vector"]
    40.0
    """

    name: ClassVar[str] = "volume_grid"
    what: ClassVar[str] = "samples of a dense or sparse grid of voxels"
    example: ClassVar[str] = "samples=10000000 side=256 channels=28 sparse=true occupied=0.05"

    samples: int = size("points that are sampled", high=2**53)
    side: int = size("voxels a side of the grid", 128, high=16384)
    channels: int = size("elements a voxel", 28)
    dtype: str = fmt("format of the elements", "fp32")
    sampling: str = choice("how a sample is made of voxels", ("trilinear", "nearest"), "trilinear")
    sparse: bool = flag("voxels are found through a grid of pointers")
    occupied: float = share("share of the voxels that exist, if sparse", 1.0)
    backward: bool = flag("the backward pass")
    locality: float = locality_share()
    line: int = line_size()

    def rules(self) -> Iterator[Rule]:
        """Allow lines that machines have."""
        yield line_rule(self.line)

    @property
    def voxels(self) -> Amount:
        """Voxels that are stored."""
        return plain(np.ceil(_f(self.side) ** 3 * (self.occupied if self.sparse else 1.0)))

    def _corners(self) -> tuple[Scattered, Scattered]:
        """Lines of the voxels and of the pointers to them."""
        wide = _f(self.channels) * dtype(self.dtype).bytes_of(1.0)
        samples, side = _f(self.samples), _f(self.side)
        near = self.sampling == "nearest"
        rows = samples * (1.0 if near else 4.0)
        span = 1.0 if near else 2.0
        none = Scattered(0.0 * samples, 0.0 * samples, 0.0 * side)
        if not self.sparse:
            return scattered(rows, self.voxels, wide, self.line, span), none
        pointers = scattered(rows, side**3, 4.0, self.line, span)
        return scattered(rows * span * self.occupied, self.voxels, wide, self.line), pointers

    def work(self) -> Work:
        """Operations and bytes, forward or backward."""
        samples, channels = _f(self.samples), _f(self.channels)
        near = self.sampling == "nearest"
        corners = 1.0 if near else 8.0
        weights = 9.0 if near else 24.0  # scaling 6, offsets 3, and 3 + 12 of the eight weights
        blended = 0.0 if near and not self.backward else 2.0 * corners * channels
        flops: dict[str, Amount] = {
            "vector": plain(samples * (weights + blended)),
            "integer": plain(samples * corners * 5.0),  # two multiply-adds and a bound
        }
        voxels, pointers = self._corners()
        element = dtype(self.dtype).bytes_of(1.0)
        points, values = samples * 12.0, samples * channels * element
        table, found = voxels.moved(self.locality), pointers.moved(self.locality)
        read, written = points + found + table, values
        if self.backward:  # gradients of the samples in; the corners read and written
            read, written = read + values, table
        stored = _f(self.voxels) * channels * element
        pointed = _f(self.side) ** 3 * 4.0 if self.sparse else 0.0 * stored
        distinct = points + pointers.unique + voxels.unique + values
        return Work(flops, plain(read), plain(written),
                    footprint=plain(np.minimum(distinct, read + written)),
                    resident=plain(points + values + stored + pointed),
                    steps=2.0 if self.sparse else 1.0)  # fmt: skip
