"""Explain: parts sum, counterfactuals never contradict. Tune: ranks, ties, stakes, refusals."""

from __future__ import annotations

import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ridgecast.errors import InfeasibleError, NoDataError, SpecError, UnsupportedError
from ridgecast.hardware import get
from ridgecast.kernels import ClblastConfig, SimtConfig, TensorConfig, TiledConfig, library_time
from ridgecast.ops import Gemm
from ridgecast.predict import predict, predict_table
from ridgecast.predict.config_train import train_config_model
from ridgecast.predict.explain import explain
from ridgecast.predict.mlp import MlpOptions
from ridgecast.predict.train import train
from ridgecast.predict.tune import ANALYTIC_ERROR, tune
from ridgecast.predict.utilisation import FitOptions
from ridgecast.store import canonical, write_table

KNOWN = (256.0, 1024.0, 512.0)
SMALL = FitOptions(trees=10, leaves=15, network=MlpOptions(hidden=(16, 16), epochs=2))
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def synthetic_gemms() -> dict:
    """310 shapes on one device whose times are the physics, half as slow again, and noise."""
    rng = np.random.default_rng(3)
    m, n, k = (2.0 ** rng.integers(low, 14, 309) for low in (2, 7, 7))
    m, n, k = (np.append(x, one) for x, one in zip((m, n, k), KNOWN, strict=True))
    _, time, _ = library_time(m, n, k, dtype="bf16", hardware=get("h200_sxm"))
    time = time * 1.5 * np.exp(rng.normal(0.0, 0.05, len(m)))
    return canonical(
        len(m), op="gemm", hardware="h200_sxm", dtype="bf16", m=m.astype(int), n=n.astype(int),
        k=k.astype(int), kernel="library", time_s=time, cache="hot", launch="graph",
        collection="synthetic",
    )  # fmt: skip


def synthetic_configurations() -> dict:
    rows = [
        (m, n, v, w, a) for m in (32, 64, 128) for n in (32, 64, 128) for v in (1, 2, 4)
        for w in (1, 2, 4) for a in (0, 1)
    ]  # fmt: skip
    m, n, v, w, a = np.array(rows, float).T
    good = (m % (16 * v) == 0) & (n % (8 * w) == 0)
    names = ("mwg", "nwg", "vwm", "vwn", "sa")
    one = {c: x[good] for c, x in zip(names, (m, n, v, w, a), strict=True)}
    fixed = {"kwg": 32, "mdimc": 16, "ndimc": 8, "mdima": 16, "ndimb": 8, "kwi": 2, "strm": 0,
             "strn": 0, "sb": 1}  # fmt: skip
    count = int(good.sum())
    one |= {c: np.full(count, float(x)) for c, x in fixed.items()}
    one |= {size: np.full(count, 4096.0) for size in "mnk"}
    tables = []
    for device, slow in (("rtx_3090", 1.0), ("rtx_a6000", 1.2)):
        law = 1.5 + 5000.0 / (one["mwg"] * one["nwg"]) + 0.3 / one["vwm"] - 0.2 * one["sa"]
        time = slow * law * 2 * 4096.0**3 / get(device).rate("fp32")
        tables.append({**one, "hardware": np.full(count, device, object), "time_s": time})
    return {c: np.concatenate([t[c] for t in tables]) for c in tables[0]}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with a time model, its points, and a model of CLBlast configurations."""
    folder = tmp_path_factory.mktemp("trained")
    write_table(folder / "rows.parquet", synthetic_gemms())
    with patch("os.cpu_count", return_value=1):  # threads on few rows only wait for each other
        train([folder / "rows.parquet"], folder / "model", jobs=1, options=SMALL)
    configurations = train_config_model(synthetic_configurations(), folds=2, trees=30)
    configurations.save(folder / "model" / "clblast_sgemm")
    return folder / "model"


def whole(parts) -> float:
    return sum(part.value for part in parts)


# ---------------------------------------------------------------------------------------- explain

sizes = st.integers(1, 20000)


@FEW
@example(m=5977, n=7156, k=64, batch=3, dtype="fp8_e4m3")  # a prediction at its bound
@given(sizes, sizes, sizes, st.sampled_from([1, 3]), st.sampled_from(["bf16", "fp8_e4m3", "fp32"]))
def test_parts_sum_to_time_and_energy(model, m, n, k, batch, dtype):
    e = explain(Gemm(m, n, k, dtype=dtype, batch=batch), "h200_sxm", model=model)
    p = e.prediction
    assert whole(e.time) == pytest.approx(p.time, rel=1e-9)
    assert whole(e.energy) == pytest.approx(p.energy, rel=1e-9)
    assert p.energy == pytest.approx(p.power * p.time, rel=1e-9)
    assert all(part.value > 0 for part in (*e.time, *e.energy))
    assert sum(part.share for part in e.time) == pytest.approx(1.0)
    assert e.time[0].value == p.bound and e.time[0].name.startswith("ideal_")
    assert 0 < e.scale <= 1
    for row in e.roofline[:1]:
        assert row["achieved_flops_per_s"] * p.time == pytest.approx(p.op.flops)


CONFIGS = [
    (TiledConfig(8), "rtx_4070", "fp32"),
    (SimtConfig(), "l4", "fp32"),
    (TensorConfig(128, 128, 64, stages=4), "h200_sxm", "bf16"),
    (ClblastConfig(), "rtx_3090", "fp32"),
]


@pytest.mark.parametrize(("config", "device", "dtype"), CONFIGS)
def test_parts_sum_for_a_given_kernel(model, config, device, dtype):
    e = explain(Gemm(1000, 500, 3000, dtype=dtype), device, config=config, model=model)
    assert whole(e.time) == pytest.approx(e.prediction.time, rel=1e-9)
    assert e.kernel["kernel"] == config.kernel and e.nearest == ()
    beyond = [part for part in e.time if part.name == "beyond_the_physics"]
    if e.prediction.basis == "analytic":
        assert "documented middle" in beyond[0].why
    json.dumps(e.to_dict(), allow_nan=False)
    assert "beyond" in str(e) or not beyond


def test_time_by_hand_a_large_square_gemm(model):
    e = explain(Gemm(8192, 8192, 8192), "h200_sxm", model=model)
    parts = {part.name: part.value for part in e.time}
    # 2 * 8192^3 flop at 989.4 Tflop/s; the shape fills its tiles
    assert parts["ideal_compute"] == pytest.approx(2 * 8192**3 / 989.4e12)
    assert "tile_padding" not in parts and e.kernel["tile_efficiency"] == 1.0
    ragged = explain(Gemm(8192, 8200, 8192), "h200_sxm", model=model)
    assert any(part.name == "tile_padding" for part in ragged.time)


def test_a_prediction_faster_than_physics_scales_what_is_above_the_bound(model):
    from dataclasses import replace

    from ridgecast.predict.breakdown import kernel_of, time_parts

    op, device = Gemm(4096, 4096, 4096), get("h200_sxm")
    p, kernel = predict(op, device, model=model), kernel_of(op, device)
    analytic = float(kernel.cost.time[0])
    quick = replace(p, time=0.5 * (p.bound + analytic))
    parts, scale = time_parts(quick, kernel, device)
    assert scale == pytest.approx(0.5) and whole(parts) == pytest.approx(quick.time)
    assert parts[0].value == p.bound and parts[-1].name == "launch"
    slow, scale = time_parts(replace(p, time=2 * analytic), kernel, device)
    assert scale == 1.0 and slow[-1].value == pytest.approx(analytic)


CHANGES = [
    {"memory.bandwidth": "+20%"}, {"l2.bandwidth": "x2"}, {"l2.capacity": "x2"},
    {"rates": "+10%"}, {"clock": "+10%"}, {"sm_count": "144"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3", "fp32"])
def test_a_better_device_is_never_slower(model, change, dtype):
    """Also at the measured points: a counterfactual starts from what was measured."""
    rows = synthetic_gemms()
    table = {c: rows[c] for c in ("op", "m", "n", "k")}
    table["dtype"] = np.full(len(rows["m"]), dtype, dtype=object)
    device = get("h200_sxm")
    times = []
    for hw in (device, device.what_if(change)):
        table["hardware"] = np.full(len(rows["m"]), hw.name, dtype=object)
        done = predict_table(table, model=model, hardware={hw.name: hw})
        assert (done["status"] == "ok").all() and (done["time_s"] >= done["bound_s"]).all()
        times.append(done["time_s"])
    assert (times[1] <= times[0] * (1 + 1e-9)).all()


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_better_device_is_never_slower_for_a_configuration(model, change):
    rows = synthetic_configurations()
    table = {c: x for c, x in rows.items() if c != "time_s"}
    count = len(rows["m"])
    for name, text in (("op", "gemm"), ("dtype", "fp32"), ("kernel", "clblast")):
        table[name] = np.full(count, text, dtype=object)
    device = get("rtx_3090")
    times = []
    for hw in (device, device.what_if(change)):
        table["hardware"] = np.full(count, hw.name, dtype=object)
        done = predict_table(table, model=model, hardware={hw.name: hw})
        assert (done["status"] == "ok").all() and (done["time_s"] >= done["bound_s"]).all()
        times.append(done["time_s"])
    assert (times[1] <= times[0] * (1 + 1e-9)).all()


def test_what_if_is_each_alone_then_all_and_predicted_again(model):
    op, changes = Gemm(16, 8192, 8192), {"memory.bandwidth": "+20%", "l2.bandwidth": "+50%"}
    e = explain(op, "h200_sxm", model=model, what_if=changes)
    assert [row["change"] for row in e.what_if] == [
        "memory.bandwidth +20%", "l2.bandwidth +50%", "all together"
    ]  # fmt: skip
    again = predict(op, get("h200_sxm").what_if(changes), model=model)
    last = e.what_if[-1]
    assert last["time_s"] == again.time and last["basis"] == "transferred"
    assert last["ratio"] == pytest.approx(again.time / e.prediction.time)
    assert last["ratio"] <= min(row["ratio"] for row in e.what_if[:2]) + 1e-12
    with pytest.raises(SpecError, match=r"memory\.bandwidth"):
        explain(op, "h200_sxm", model=model, what_if={"memory.bandwith": "+20%"})


@pytest.mark.parametrize("shape", [(1, 1, 1), (2**31 - 1, 1, 1), (7, 2**31 - 1, 3), (10**5,) * 3])
def test_the_smallest_and_largest_shapes(model, shape):
    e = explain(Gemm(*shape), "h200_sxm", model=model, what_if={"clock": "+10%"})
    assert whole(e.time) == pytest.approx(e.prediction.time, rel=1e-9)
    assert e.what_if[0]["ratio"] <= 1.0
    json.dumps(e.to_dict(), allow_nan=False)


def test_nearest_points_with_and_without_times(model, tmp_path):
    import shutil

    m, n, k = (int(x) for x in KNOWN)
    e = explain(Gemm(m, n, k), "h200_sxm", model=model)
    assert e.prediction.basis == "measured" and e.nearest[0]["time_s"] == e.prediction.time
    assert (e.nearest[0]["m"], e.nearest[0]["n"], e.nearest[0]["k"]) == (m, n, k)
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    next(bare.glob("time/*/measured.npz")).unlink()
    e = explain(Gemm(m, n, k), "h200_sxm", model=bare)
    assert (e.nearest[0]["n"], e.nearest[0]["k"]) == (n, k) and "time_s" not in e.nearest[0]
    assert any("ridgecast train" in note for note in e.notes)
    e = explain(Gemm(m, n, k, dtype="fp8_e4m3"), "h200_sxm", model=model)
    assert e.nearest == () and any("measured with bf16" in note for note in e.notes)


def test_advice_is_a_prediction_that_gains(model):
    e = explain(Gemm(3, 4096, 4096), "h200_sxm", model=model)
    rows = {row["advice"]: row for row in e.advice}
    twice = next(row for text, row in rows.items() if "twice" in text)
    again = predict(Gemm(6, 4096, 4096), "h200_sxm", model=model)
    assert twice["time_s"] == again.time
    assert twice["gain_share"] == pytest.approx(1 - again.time / 2 / e.prediction.time)
    assert all(row["gain_share"] > 0.02 for row in e.advice)
    assert any("fp8_e4m3" in text for text in rows) and not any("fp64" in text for text in rows)


# ------------------------------------------------------------------------------------------- tune


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "basis"),
    [
        (None, "h200_sxm", "bf16", "analytic"),
        (None, "h200_sxm", "fp32", "analytic"),
        ("tiled", "rtx_4070", "fp32", "analytic"),
        ("clblast", "rtx_3090", "fp32", "learned"),
        ("clblast", "rtx_4070", "fp32", "transferred"),
    ],
)
@pytest.mark.parametrize("objective", ["time", "energy", "edp"])
def test_ranking(model, kernel, device, dtype, basis, objective):
    r = tune(
        Gemm(4096, 4096, 4096, dtype=dtype), device, kernel=kernel, objective=objective, model=model
    )
    t = r.table
    key = {"time": "time_s", "energy": "energy_j", "edp": "edp_j_s"}[objective]
    assert (np.diff(t[key]) >= 0).all()
    assert (t["time_low_s"] <= t["time_s"]).all() and (t["time_s"] <= t["time_high_s"]).all()
    assert (t["time_s"] >= 2 * 4096**3 / get(device).rate(dtype) * (1 - 1e-12)).all()
    assert r.stake["worst_over_best"] == pytest.approx(t[key][-1] / t[key][0])
    assert 1 <= r.stake["median_over_best"] <= r.stake["worst_over_best"]
    assert r.ties == t["tied"].sum() >= 1 and t["tied"][0]
    assert not set(t) & set(r.fixed) and set(r.fixed) <= set(r.best)
    if basis != "learned":  # a configuration outside the domain may come first there
        assert r.basis == basis
    if basis == "analytic":
        assert r.tolerance == ANALYTIC_ERROR
    found = json.loads(json.dumps(r.to_dict(), allow_nan=False))
    assert len(found["rows"]) == len(r) and found["rows"][0]["rank"] == 1


def test_ties_are_those_within_the_tolerance(model):
    r = tune(Gemm(4096, 4096, 4096, dtype="fp32"), "rtx_3090", kernel="clblast", model=model)
    gap = np.log(r.table["time_s"] / r.table["time_s"][0])
    assert r.ties == (gap <= r.tolerance).sum() < len(r)
    assert f"{r.ties} of {len(r)} configurations" in " ".join(r.notes)


def test_the_row_of_a_ranking_is_the_prediction(model):
    op = Gemm(2048, 2048, 2048, dtype="fp32")
    r = tune(op, "rtx_4070", kernel="tiled", model=model)
    for row in r.rows[:3]:
        p = predict(op, "rtx_4070", config=TiledConfig(row["tile"]), model=model)
        assert (p.time, p.energy) == (row["time_s"], row["energy_j"])


def test_what_does_not_fit_is_counted_by_its_limit(model):
    r = tune(Gemm(512, 512, 512), "h200_sxm", model=model)
    assert set(r.infeasible) <= {"registers", "shared_memory", "threads", "blocks"}
    assert sum(r.infeasible.values()) > 0 and any("do not fit" in note for note in r.notes)


def test_refusals(model):
    op = Gemm(128, 128, 128, dtype="fp32")
    with pytest.raises(SpecError, match="nearest: clblast"):
        tune(op, "l4", kernel="clblas", model=model)
    with pytest.raises(SpecError, match="nearest: time"):
        tune(op, "l4", objective="tme", model=model)
    with pytest.raises(UnsupportedError, match="Devices with nvfp4"):
        tune(Gemm(128, 128, 128, dtype="nvfp4"), "h200_sxm", model=model)
    with pytest.raises(UnsupportedError, match="fp32 only"):
        tune(Gemm(128, 128, 128), "h200_sxm", kernel="clblast", model=model)
    with pytest.raises(NoDataError, match="batch must be 1"):
        tune(Gemm(8, 8, 8, dtype="fp32", batch=2), "rtx_3090", kernel="clblast", model=model)
    with pytest.raises(UnsupportedError, match="SIMT"):
        tune(op, "h200_sxm", kernel="cutlass_tensor", model=model)
    device = get("rtx_4070")
    sm = type(device.sm)(**{
        **{f: getattr(device.sm, f) for f in type(device.sm).__dataclass_fields__},
        "max_shared_per_block": 1024, "shared_memory": 1024,
    })  # fmt: skip
    with pytest.raises(InfeasibleError, match="shared_memory refuses"):
        tune(op, device.replace(sm=sm, name="tiny"), kernel="cutlass_simt", model=model)


def test_a_folder_without_the_kernels_model_says_so(model, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("clblast_sgemm"))
    with pytest.raises(NoDataError, match="no model of CLBlast"):
        tune(Gemm(128, 128, 128, dtype="fp32"), "rtx_3090", kernel="clblast", model=bare)
