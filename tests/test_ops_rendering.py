"""Rendering against rays, splats and voxels that are counted one by one."""

from __future__ import annotations

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.ops.rendering import GaussianSplatting, RayMarching, VolumeGrid

RNG = np.random.default_rng(5)


def test_marching_against_rays_counted():
    rays, samples, stop, leap = 400, 256, 160, 4
    occupied = np.repeat(RNG.random((rays, samples // leap)) < 0.2, leap, axis=1)
    looks = evaluated = 0
    for ray in occupied:
        step = 0
        while step < stop:
            looks += 1
            evaluated += ray[step]
            step += 1 if ray[step] else leap
    op = RayMarching(rays=rays, samples=samples, occupied=float(occupied[:, :stop].mean()),
                     reach=stop / samples, leap=leap)  # fmt: skip
    assert op.looked == pytest.approx(looks)
    assert op.evaluated == pytest.approx(evaluated)


def test_marching_by_hand():
    shape = {"rays": 100, "samples": 64, "occupied": 0.25, "reach": 0.5, "grid": 16}
    fused, apart = RayMarching(**shape, variant="fused"), RayMarching(**shape)
    assert (fused.evaluated, fused.looked) == (800.0, 3200.0)
    grid = 16**3 / 8  # 512 B, all 16 sectors hit by 3200 looks
    assert fused.work().read == pytest.approx(100 * 24 + grid)
    assert fused.work().written == 100 * 16
    assert apart.bytes - fused.bytes == pytest.approx(800 * (28 + 28 + 8))
    assert apart.work().flops == fused.work().flops
    assert fused.work().flops["special"] == 800 + 300
    cold = RayMarching(**shape, variant="fused", locality=0.0).work()
    assert cold.read == pytest.approx(100 * 24 + 3200 * 32)
    assert (fused.work().steps, cold.steps) == (0.0, 32.0)  # looks of a ray that wait for memory


def test_skipping_and_stopping_cost_less():
    base = RayMarching(rays=1000, samples=1024, occupied=0.1)
    for better in ({"leap": 8.0}, {"reach": 0.3}, {"occupied": 0.05}):
        one = RayMarching(**{"rays": 1000, "samples": 1024, "occupied": 0.1, **better})
        assert one.bytes <= base.bytes and one.flops < base.flops


def test_splats_against_tiles_counted():
    width, height, tile, radius = 320, 200, 16, 20
    centres = RNG.random((2000, 2)) * (width, height)
    low = np.maximum((centres - radius) // tile, 0)
    high = np.minimum((centres + radius) // tile, (19, 12))
    each = np.prod(high - low + 1, axis=1)
    op = GaussianSplatting(gaussians=2000, width=width, height=height, visible=1.0,
                           tiles_each=float(each.mean()), blended=1.0)  # fmt: skip
    assert op.tiles == 20 * 13
    assert op.listed == pytest.approx(each.sum())
    assert op.blends == pytest.approx(each.sum() * 256)
    assert op.sort_passes == 6  # 32 + 9 bits


def test_splatting_by_hand():
    op = GaussianSplatting(gaussians=100, width=32, height=32, visible=0.5, tiles_each=2.0,
                           blended=1.0, locality=1.0, sh_degree=0)  # fmt: skip
    work, tiles, passes = op.work(), 4, 5
    attributes = 100 * 12 + 50 * (12 + 16 + 4 + 12)
    listed = 100
    read = attributes + 2 * 400 + 50 * 24 + listed * (8 + 12 * passes + 8 + 4) + tiles * 8 + 50 * 36
    written = 50 * 48 + 2 * 400 + listed * 12 * (1 + passes) + tiles * 8 + 1024 * 20
    assert (work.read, work.written) == (read, written)
    assert work.launches == passes + 7
    assert work.flops["special"] == 50 * 6 + listed * 256


def test_a_gaussian_is_in_no_list_twice():
    small = GaussianSplatting(gaussians=100, width=32, height=16, visible=1.0, tiles_each=50.0)
    assert small.listed == 200


def test_smaller_tiles_sort_more_and_blend_less():
    # a splat of 40 x 40 pixels touches about (40 / t + 1)^2 tiles of side t
    def cost(t: int) -> GaussianSplatting:
        return GaussianSplatting(gaussians=10**6, tile=t, tiles_each=(40 / t + 1) ** 2)

    small, large = cost(8), cost(32)
    assert small.bytes > large.bytes and small.blends < large.blends


@pytest.mark.parametrize(("sampling", "corners"), [("trilinear", 8), ("nearest", 1)])
def test_grid_against_voxels_touched(sampling, corners):
    samples, side, channels = 3000, 128, 4
    at = RNG.integers(0, side - 1, (samples, 3))
    offsets = np.array(np.unravel_index(range(8), (2, 2, 2))).T[:corners]
    sectors = []
    for point in at:
        x, y, z = (point + offsets).T
        index = (z * side + y) * side + x
        sectors.append(set((index * channels * 4 // 32).tolist()))
    op = VolumeGrid(samples=samples, side=side, channels=channels, sampling=sampling)
    table = op.work().read - samples * 12
    assert table == pytest.approx(32 * sum(map(len, sectors)), rel=0.02)
    assert op.work().flops["integer"] == samples * corners * 5
    assert op.work().written == samples * channels * 4


def test_sparse_grids_trade_memory_for_pointers():
    shape = {"samples": 10**6, "side": 256, "channels": 28}
    dense, sparse = VolumeGrid(**shape), VolumeGrid(**shape, sparse=True, occupied=0.05)
    assert sparse.memory_bytes < 0.15 * dense.memory_bytes
    full = VolumeGrid(**shape, sparse=True)
    assert full.bytes > dense.bytes and full.memory_bytes > dense.memory_bytes  # a slowdown
    assert full.work().steps == 2 > dense.work().steps
    back = VolumeGrid(**shape, backward=True)
    assert back.bytes > 1.8 * dense.bytes


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RayMarching(rays=1, samples=1, occupied=0.0), "occupied"),
        (lambda: RayMarching(rays=1, samples=1, leap=0.5), "leap"),
        (lambda: GaussianSplatting(gaussians=1, visible=1.5), "visible"),
        (lambda: VolumeGrid(samples=1, line=16), "line"),
        (lambda: VolumeGrid(samples=0), "samples"),
    ],
)
def test_bad_input_names_the_field(make, field):
    with pytest.raises(SpecError, match=rf"\.{field}: got"):
        make()
