"""CPU providers: operands and their check, compiled kernels, BLAS, ceilings and device files."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from ridgecast import Gemm, TiledConfig, hardware, predict
from ridgecast.errors import MeasurementError, SpecError, UnsupportedError
from ridgecast.measure import DeviceInfo, Point, Probe
from ridgecast.measure.ceilings import Ceiling, Ceilings, measure_ceilings, to_hardware_toml
from ridgecast.measure.protocol import Protocol, measure_point
from ridgecast.measure.providers import get_provider
from ridgecast.measure.providers.cpu_device import cpu_device, flush_cache, last_level_cache
from ridgecast.measure.providers.cpu_work import CpuWork, gemm_sets, gemm_work
from ridgecast.measure.providers.operands import (
    make_operands,
    product_error,
    relative_frobenius,
    round_to,
    tolerance,
)

QUICK = Protocol(warmup=0.0, min_samples=3, max_samples=3, time_cap=0.01)
TILES = (1, 2, 3, 4, 7, 8, 12, 16, 17, 32)
BLOCKED = {"mwg": 32, "nwg": 32, "kwg": 16, "mdimc": 8, "ndimc": 2, "vwn": 8}


def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def numba():
    pytest.importorskip("numba", reason="numba is not installed (pip install 'ridgecast[study]')")
    provider = get_provider("numba", threads=1)
    probe = provider.probe()
    assert probe.ok, probe.reason
    return provider


# --- operands and their check -----------------------------------------------------------------


def test_operands_follow_the_point():
    point = Point("library", 5, 6, 7, batch=2, layout="tn", dtype="fp16", pattern="sparse")
    ops = make_operands(point, rng())
    assert ops.a.shape == (2, 7, 5) and ops.left.shape == (2, 5, 7) and ops.right.shape == (2, 7, 6)
    assert np.array_equal(ops.a, make_operands(point, rng()).a)  # seeded
    assert 0.2 < (ops.a == 0).mean() < 0.8
    assert np.array_equal(ops.a, ops.a.astype(np.float16).astype(np.float32))
    with pytest.raises(SpecError, match="nn, nt, tn, tt"):
        make_operands(Point("library", 2, layout="xn"), rng())
    with pytest.raises(UnsupportedError, match="fp8_e4m3"):
        make_operands(Point("library", 2, dtype="fp8_block"), rng())


def test_rounding_to_small_formats():
    x = np.array([1 + 2**-9, 1 + 3 * 2**-8, 1e6, -3e-3, 0.0], np.float32)
    assert round_to(x, "bf16")[:2].tolist() == [1.0, 1 + 2 * 2**-7]  # ties to even
    assert round_to(x, "fp8_e4m3").tolist() == [1.0, 1.0, 448.0, -2 * 2**-9, 0.0]
    assert round_to(x, "nvfp4").tolist() == [1.0, 1.0, 6.0, 0.0, 0.0]
    assert round_to(np.array([2.4, -900.0]), "int8").tolist() == [2.0, -127.0]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "sampled"])
def test_check_sees_unwritten_wrong_and_right(exact):
    ops = make_operands(Point("library", 96, 80, 64, batch=2), rng())
    limit = 1e12 if exact else 0.0

    def error(out):
        return product_error(out, ops.left, ops.right, rng(), exact_flops=limit)

    good = ops.left @ ops.right
    assert error(good) < tolerance("fp32", 64)
    hole = good.copy()
    hole[1, 95, 79] = np.nan
    assert error(hole) == np.inf
    wrong = good.copy()
    wrong[0, :16, :16] = 0
    # 1/60 of the elements gone is a relative error of sqrt(1/60); 16 vectors know it to a third
    assert error(wrong) == pytest.approx(np.sqrt(256 / 15360), rel=0.5)
    short = ops.left[:, :, :-1] @ ops.right[:, :-1]
    assert error(short) > 10 * tolerance("fp16", 64)


def test_relative_frobenius_edges():
    zero, one = np.zeros(3), np.ones(3)
    assert relative_frobenius(zero, zero) == 0 and relative_frobenius(one, zero) == np.inf
    left = np.full(3, np.iinfo(np.int32).min, np.int32)  # poison of integers
    assert relative_frobenius(left, one) == np.inf
    with pytest.raises(SpecError, match="shape"):
        relative_frobenius(zero, np.zeros(4))


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "tf32", "fp16", "bf16", "fp8_e4m3", "nvfp4"])
def test_tolerance_lies_between_honest_and_garbage(dtype):
    for k in (16, 512, 8192):
        lost = min(32, k) if dtype in ("fp8_e4m3", "nvfp4") else 1  # terms of the sum
        assert tolerance(dtype, k) < np.sqrt(lost / k)
    assert tolerance(dtype, 8192) >= tolerance(dtype, 16) > 0
    assert tolerance("int8", 64) == 0
    assert tolerance("bf16", 64, out_dtype="fp32") < tolerance("bf16", 64)


def test_one_by_one_sums_stay_within_the_tolerance():
    ops = make_operands(Point("library", 32, 32, 2048), rng())
    total = np.zeros((1, 32, 32), np.float32)
    for i in range(2048):
        total += ops.left[:, :, i : i + 1] * ops.right[:, i : i + 1]
    error = product_error(total, ops.left, ops.right, rng())
    assert 0.1 * tolerance("fp32", 2048) < error < tolerance("fp32", 2048)


# --- kernels ----------------------------------------------------------------------------------


def test_tiles_multiply_ragged_sizes(numba):
    for tile in TILES:
        for sizes in ((45, 37, 50), (1, 65, 3)):
            point = Point("tiled", *sizes, batch=2, config={"tile": tile})
            work = numba.prepare(point, rng())
            assert work.verify() <= work.tolerance, (tile, sizes)
            work.close()


@pytest.mark.parametrize(
    ("changes", "layout", "dtype"),
    [({}, "nn", "fp32"), ({"sa": 1, "sb": 1}, "tt", "fp32"), ({"vwn": 1, "kwi": 4}, "tn", "fp64"),
     ({"sb": 1, "vwn": 16}, "nt", "fp64")],
)  # fmt: skip
def test_register_blocks_multiply_ragged_sizes(numba, changes, layout, dtype):
    config = BLOCKED | changes
    point = Point("clblast", 77, 101, 50, layout=layout, dtype=dtype, batch=2, config=config)
    row = measure_point(numba, point, rng=rng(), protocol=QUICK)
    assert row["status"] == "ok" and row["valid"], row["reason"]
    assert row["outputs"] == 64 and row["samples"] == 3 and row["time_s"] > 0


def test_cold_runs_rotate_buffers(numba):
    point = Point("tiled", 20, 20, 20, cache="cold", config={"tile": 4})
    row = measure_point(numba, point, rng=rng(), protocol=QUICK)
    assert row["valid"] and row["buffers"] >= 2 and row["group"] == 1


def test_numba_refuses_what_it_cannot_do(numba):
    for point, why in (
        (Point("tiled", 8, config={"tile": 33}), "1 to 32"),
        (Point("tiled", 8, config={"tile": 4, "stages": 2}), "stages"),
        (Point("tiled", 8, dtype="bf16"), "bf16"),
        (Point("library", 8), "library"),
        (Point("clblast", 8, config=BLOCKED | {"strm": 1}), "strm"),
        (Point("clblast", 8, config=BLOCKED | {"mwg": 33}), "MWG"),
        (Point("clblast", 8, layout="nt", config=BLOCKED), "sb = 1"),
        (Point("clblast", 8, config=BLOCKED | {"mwg": 512, "nwg": 512, "vwn": 1}), "operations"),
        (Point("clblast", 8, config={"tile": 3}), "no parameter tile"),
        (Point("copy", 8, n=2), "n, k and batch"),
    ):
        assert why in numba.refusal(point)
        assert measure_point(numba, point, rng=rng())["status"] == "refused"


def test_micro_benchmarks_of_both_providers(numba):
    for provider in (numba, get_provider("blas")):
        for kernel, moved in (("copy", 2), ("triad", 3), ("l2_read", 1), ("launch", 0)):
            row = measure_point(provider, Point(kernel, 2**15), rng=rng(), protocol=QUICK)
            assert row["valid"], (provider.name, kernel, row["reason"])
            assert row["moved_bytes"] == moved * 2**15 * row["passes"]


def test_blas_in_every_layout():
    blas = get_provider("blas")
    assert blas.probe().ok and blas.probe().device.facts["blas"]
    for layout in ("nn", "nt", "tn", "tt"):
        point = Point("library", 30, 20, 10, batch=3, layout=layout, dtype="fp64")
        row = measure_point(blas, point, rng=rng(), protocol=QUICK)
        assert row["valid"] and row["error_frobenius"] < 1e-14, row["reason"]
    assert "bf16" in blas.refusal(Point("library", 8, dtype="bf16"))
    assert "tile" in blas.refusal(Point("library", 8, config={"tile": 8}))


class Skips:
    """A provider whose kernel leaves the last row of its output alone."""

    name = "skips"

    def probe(self):
        return Probe(True)

    def refusal(self, point):
        return ""

    def prepare(self, point, rng):
        sets = gemm_sets(point, rng)
        ops, out = sets.operands[0], sets.outputs[0]

        def run(index):
            out[0, :-1] = (ops.left @ ops.right)[0, :-1]

        return gemm_work(point, sets, run, rng, facts={})


def test_a_kernel_that_skips_elements_fails():
    row = measure_point(Skips(), Point("library", 64, 64, 64), rng=rng(), protocol=QUICK)
    assert row["status"] == "failed" and not row["valid"] and "wrong result" in row["reason"]
    assert np.isnan(row["time_s"])


def test_this_cpu_and_its_flush():
    info = cpu_device()
    assert info.kind == "cpu" and info.name and info.facts["cores"] >= 1
    assert last_level_cache(info) >= 2**15
    flush_cache()


# --- ceilings and device files ----------------------------------------------------------------


class Steady:
    """A provider of a device that always takes the time that its rates say."""

    name = "steady"
    info = DeviceInfo("Some CPU 9000", "cpu", memory=2**34, facts={
        "cores": 4, "l1_bytes": 2**17, "l1_core_bytes": 2**15, "l2_bytes": 2**22,
        "l3_bytes": 2**24, "simd_bits": 256, "frequency_hz": 3e9,
    })  # fmt: skip

    def probe(self):
        return Probe(True, device=self.info)

    def refusal(self, point):
        return "no fp64 here" if point.dtype == "fp64" else ""

    def prepare(self, point, rng):
        moved = {"copy": 2, "triad": 3, "l2_read": 1}.get(point.kernel, 0) * point.m
        rate = 1e12 if point.m < 2**23 else 1e11 if point.m < 2**25 else 2e10
        seconds = moved / rate + point.flops / 1e14 or 2e-6
        facts = {"moved_bytes": moved, "threads": 4}
        work = CpuWork(lambda i: None, lambda: 0.0, 0.0, facts)

        class Clock:
            tolerance, facts = work.tolerance, work.facts
            verify, enqueue = work.verify, work.enqueue
            synchronize, close = work.synchronize, work.close

            def sample(self, count):
                return np.full(count, seconds)

        return Clock()


def test_ceilings_become_a_device_that_predicts():
    found = measure_ceilings(Steady(), budget=20, protocol=Protocol(warmup=0.0, time_cap=0.05))
    assert found.rates["fp32"].value == pytest.approx(1e14)
    assert found.memory.value == pytest.approx(2e10) and found.launch.value == 2e-6
    assert found.caches["l2"].value == pytest.approx(1e12)
    assert found.caches["l3"].value == pytest.approx(1e11)
    assert "no fp64 here" in found.missing["rates.fp64"]
    device = hardware.loads(to_hardware_toml(found, Steady.info, name="some_cpu"), origin="x.toml")
    assert device.kind == "cpu" and device.sm_count == 4 and device.sm.warp_size == 8
    assert device.rate("fp32") == pytest.approx(1e14) and device.unit("fp32") == "simt"
    assert device.l3.capacity == 2**24 and device.shared.capacity == 2**15
    source = device.sources["memory.bandwidth"]
    assert source.kind == "measured" and "steady on 4 threads" in source.source
    for config in (None, TiledConfig(16)):
        forecast = predict(Gemm(512, 512, 512, dtype="fp32"), on=device, config=config)
        assert forecast.time > Gemm(512, 512, 512).flops / 1e14


def test_ceilings_override_a_catalogue_device():
    base = hardware.get("h200_sxm")
    rates = MappingProxyType({"bf16": Ceiling(7.7e14, 0.01, 40, 'library 8192 "x"')})
    found = Ceilings(DeviceInfo("NVIDIA H200", "gpu"), "2026-01-01T00:00:00+00:00", rates,
                     Ceiling(4.2e12, 0.01, 40, "triad"))  # fmt: skip
    device = hardware.loads(to_hardware_toml(found, found.device, base), origin="x.toml")
    assert device.name == "h200_sxm_measured" and device.unit("bf16") == "tensor"
    assert device.rate("bf16") == 7.7e14 and device.memory.bandwidth == 4.2e12
    assert device.rate("fp16") == base.rate("fp16") and device.sm == base.sm
    assert device.links.keys() == base.links.keys() and device.memory.kind == "HBM3e"
    assert device.sources["rates.fp16"] == base.sources["rates.fp16"]
    with pytest.raises(MeasurementError, match="base"):
        to_hardware_toml(found, found.device)
    with pytest.raises(MeasurementError, match="blas"):
        to_hardware_toml(Ceilings(Steady.info, "", MappingProxyType({}), None), Steady.info)
