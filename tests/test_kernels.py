"""Kernel models: hand-computed numbers, what physics forbids, and measured data."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgecast.errors import SpecError, UnsupportedError
from ridgecast.hardware import get
from ridgecast.kernels import (
    ClblastConfig,
    SimtConfig,
    TensorConfig,
    TiledConfig,
    bound,
    clblast,
    clblast_space,
    library,
    library_time,
    occupancy,
    problem,
    simt,
    simt_space,
    tensor,
    tensor_space,
    tiled,
    tiled_space,
)
from ridgecast.ops import Gemm

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
H200, RTX = get("h200_sxm"), get("rtx_4070")
MODELS = {
    "tiled": (lambda p, h, c: tiled(p, TiledConfig(16), h, c), "fp32", RTX),
    "simt": (lambda p, h, c: simt(p, SimtConfig(), h, c), "fp32", RTX),
    "simt_split": (lambda p, h, c: simt(p, SimtConfig(split_k=4), h, c), "fp32", RTX),
    "tensor": (lambda p, h, c: tensor(p, TensorConfig(cluster_m=2), h, c), "bf16", H200),
    "stream_k": (lambda p, h, c: tensor(p, TensorConfig(stream_k=1), h, c), "bf16", H200),
    "clblast": (lambda p, h, c: clblast(p, ClblastConfig(), h, c), "fp32", RTX),
    "library": (lambda p, h, c: library(p, h, c).cost, "bf16", H200),
    "library_l3": (lambda p, h, c: library(p, h, c).cost, "bf16", get("mi300x")),
    "library_fp32": (lambda p, h, c: library(p, h, c).cost, "fp32", RTX),
}
dims = st.one_of(st.integers(1, 300), st.integers(1, 20_000))
sizes = st.tuples(dims, dims, dims, st.integers(1, 8))
caches = st.sampled_from(["hot", "cold"])
models = st.sampled_from(sorted(MODELS))


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks", "limiter"),
    [
        (256, 128, 48 * 1024, 2, "registers"),  # 65536 / (256 * 128)
        (256, 32, 48 * 1024, 3, "shared_memory"),  # 164 KiB / 48 KiB
        (1024, 32, 0, 2, "registers"),  # 65536 / 32768; threads give 2 as well
        (512, 24, 0, 4, "threads"),  # 2048 / 512
        (32, 16, 0, 32, "blocks"),
        (128, 33, 0, 12, "registers"),  # 33 * 32 rounds up to 1280 a warp, 51 warps, 12 blocks
        (256, 32, 170 * 1024, 0, "shared_memory"),  # more than one block may have
    ],
)
def test_occupancy_on_a100(threads, registers, shared, blocks, limiter):
    o = occupancy(get("a100_sxm").sm, threads=threads, registers=registers, shared_bytes=shared)
    assert int(o.blocks_per_sm) == blocks
    assert str(o.limiter) == limiter
    assert float(o.occupancy) == pytest.approx(blocks * np.ceil(threads / 32) / 64)


def test_waves_waste_and_traffic_by_hand():
    c = tensor(problem(1000, 4096, 4096), TensorConfig(128, 128, 64, stages=4), H200)
    assert float(c.blocks) == 8 * 32
    assert float(c.waves) == pytest.approx(256 / 132)  # one block of 128 KiB per SM
    assert float(c.tail_efficiency) == pytest.approx(256 / 264)
    assert float(c.tile_efficiency) == pytest.approx(1000 / 1024)
    a, b, d = 1000 * 4096 * 2, 4096 * 4096 * 2, 1000 * 4096 * 2
    assert float(c.l2_bytes) == a * 32 + b * 8 + d
    assert float(c.arithmetic_intensity) == pytest.approx(2 * 1000 * 4096**2 / (a + b + d))


def test_split_k_writes_and_reads_each_partial_sum():
    one, four = (tensor(problem(256, 256, 65536), TensorConfig(split_k=s), H200) for s in (1, 4))
    assert float(four.fixup_bytes) == 4 * 256 * 256 * 8
    assert float(one.fixup_bytes) == 0
    assert float(four.time) < float(one.time) / 3  # 4 tiles on 132 SMs: splitting pays


def test_bound_by_hand():
    h = H200
    unique = (8192 * 8192 * 3) * 2
    cold = bound(8192, 8192, 8192, hardware=h, cache="cold")
    assert float(cold) == pytest.approx(2 * 8192**3 / 989.4e12)
    thin = [bound(1, 65536, 8192, hardware=h, cache=c) for c in ("cold", "hot")]
    moved = 2 * (8192 + 65536 * 8192 + 65536)
    assert float(thin[0]) == pytest.approx(moved / 4.8e12)
    assert float(thin[1]) == pytest.approx((moved - h.l2.capacity) / 4.8e12)
    assert unique == Gemm(8192, 8192, 8192).bytes
    mixed = bound([64, 64], 64, 64, dtype=["bf16", "fp8"], hardware=h, cache="cold")
    alone = [bound(64, 64, 64, dtype=d, hardware=h, cache="cold") for d in ("bf16", "fp8")]
    np.testing.assert_array_equal(mixed, alone)


@settings(max_examples=150, deadline=None)
@given(shape=sizes, cache=caches, name=models)
def test_never_below_the_bound_and_parts_sum(shape, cache, name):
    run, dtype, hardware = MODELS[name]
    cost = run(problem(*shape, dtype=dtype), hardware, cache)
    least = bound(*shape, dtype=dtype, hardware=hardware, cache=cache)
    assert np.all(cost.time >= least * (1 - 1e-12))
    np.testing.assert_allclose(sum(cost.parts().values()), cost.time, rtol=1e-12)
    assert np.all(cost.tile_efficiency <= 1)
    assert np.all(cost.tail_efficiency <= 1)


@settings(max_examples=150, deadline=None)
@given(
    shape=sizes,
    cache=caches,
    name=models,
    field=st.sampled_from(
        ["memory.bandwidth", "l2.bandwidth", "shared.bandwidth", "l2.capacity", "rates"]
    ),
)
def test_better_hardware_is_never_slower(shape, cache, name, field):
    run, dtype, hardware = MODELS[name]
    p = problem(*shape, dtype=dtype)
    better = hardware.what_if({field: "+30%"})
    assert np.all(run(p, better, cache).time <= run(p, hardware, cache).time * (1 + 1e-12))


@settings(max_examples=150, deadline=None)
@given(shape=sizes, cache=caches, name=models)
def test_doubling_every_dimension_is_never_faster(shape, cache, name):
    run, dtype, hardware = MODELS[name]
    m, n, k, batch = shape
    small = run(problem(m, n, k, batch, dtype=dtype), hardware, cache).time
    large = run(problem(2 * m, 2 * n, 2 * k, batch, dtype=dtype), hardware, cache).time
    assert np.all(large >= small * (1 - 1e-12))


def test_fast_path_equals_the_full_library_model():
    rng = np.random.default_rng(0)
    m, n, k = (np.floor(2.0 ** rng.uniform(0, 15, 20_000)) for _ in range(3))
    least, time, _ = library_time(m, n, k, hardware=H200)
    np.testing.assert_allclose(time, library(problem(m, n, k), H200).cost.time, rtol=1e-12)
    np.testing.assert_array_equal(least, bound(m, n, k, hardware=H200))


def test_spaces_are_valid_and_fit():
    assert len(clblast_space()) == 17_956  # as many as the published exhaustive run holds
    assert len(tiled_space(RTX)) == 32
    for config, model, dtype in (
        (simt_space(RTX), simt, "fp32"),
        (tensor_space(H200), tensor, "bf16"),
        (clblast_space(RTX), clblast, "fp32"),
    ):
        cost = model(problem(512, 512, 512, dtype=dtype), config, H200 if dtype == "bf16" else RTX)
        assert cost.feasible.all()
        assert np.isfinite(cost.time).all()
        assert len(config) == cost.time.size > 100


def test_refusals_name_the_field():
    with pytest.raises(SpecError, match=r"tiled\.tile: got 33"):
        TiledConfig(33)
    with pytest.raises(SpecError, match=r"clblast\.MWG: got 48, need a multiple of MDIMC \* VWM"):
        ClblastConfig(MWG=48, MDIMC=32)
    with pytest.raises(SpecError, match=r"cutlass_tensor\.split_k.*stream_k"):
        TensorConfig(split_k=2, stream_k=1)
    with pytest.raises(SpecError, match=r"gemm\.k"):
        bound(1, 1, 0, hardware=H200)
    with pytest.raises(UnsupportedError, match="SIMT"):
        simt(problem(1, 1, 1, dtype="int8"), SimtConfig(), H200)
    assert np.isnan(simt(problem(8, 8, 8, dtype="fp32"), SimtConfig(256, 256, 8, 2, 2), RTX).time)


@pytest.mark.skipif(not DATA.exists(), reason="measured data is not beside the checkout")
@pytest.mark.parametrize(
    ("device", "file", "least"),
    [
        ("h200_sxm", "h200_sxm/gemm/gemm-vllm-0.24.0", 0.985),
        ("a100_sxm", "a100_sxm/gemm/gemm-sglang-0.5.10", 0.99),
    ],
)
def test_library_ranks_measured_gemms(device, file, least):
    duckdb = pytest.importorskip("duckdb")
    path = DATA / "silicon" / f"{file}.parquet"
    rows = duckdb.sql(
        f"select m, n, k, latency * 1e-3 as t from '{path}' where gemm_dtype = 'bfloat16'"
    ).fetchnumpy()
    shape = [np.asarray(rows[x], float) for x in "mnk"]
    lower, time, _ = library_time(*shape, hardware=get(device), cache="cold")
    hot = bound(*shape, hardware=get(device), cache="hot")
    measured = np.asarray(rows["t"])
    assert np.all(lower <= time)
    assert np.mean(measured < hot) < 1e-3
    assert _rank_correlation(time, measured) > least


def test_clblast_ranks_measured_configurations():
    duckdb = pytest.importorskip("duckdb")
    path = DATA / "kernel_tuner" / "gemm.parquet"
    if not path.exists():
        pytest.skip("measured data is not beside the checkout")
    names = [n for n in ClblastConfig.__dataclass_fields__ if n not in ("GEMMK", "KREG")]
    rows = duckdb.sql(
        f"select {', '.join(names)}, time_ms_median as t from '{path}' "
        "where gpu_label = 'RTX_3090' and status = 'ok'"
    ).fetchnumpy()
    config = ClblastConfig(**{n: np.asarray(rows[n], np.int64) for n in names})
    cost = clblast(problem(4096, 4096, 4096, dtype="fp32"), config, get("rtx_3090"))
    assert _rank_correlation(cost.time, np.asarray(rows["t"])) > 0.8


def _rank_correlation(a, b):
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
