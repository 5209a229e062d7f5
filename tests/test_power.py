"""Power and energy: the physical basis, its fit, its intervals, its file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgecast.errors import NoDataError, OutOfDomainError, SpecError, UnsupportedError
from ridgecast.hardware import get
from ridgecast.ops.gemm import Gemm
from ridgecast.predict.power import OVERSHOOT, Basis, PowerModel, gemm_work, load_power
from ridgecast.predict.power_fit import fit_power, save_power
from ridgecast.store import canonical, concat, import_files, select

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "silicon"
H200, L40S = get("h200_sxm"), get("l40s")
MODEL = PowerModel.load()


def run(hardware, dtype, u_flop, u_memory, time=1e-3, *, model=MODEL, level=0.9):
    """Prediction at given utilisations."""
    u_flop, u_memory, time = np.broadcast_arrays(*np.atleast_1d(u_flop, u_memory, time))
    return model.predict(
        hardware, dtype, u_flop * hardware.rate(dtype) * time,
        u_memory * hardware.memory.bandwidth * time, 0.0 * time,
        time, level,
    )  # fmt: skip


def test_basis_by_hand():
    basis = Basis(
        idle=0.2, ceiling=1.0, memory=0.5, l2=0.25, flop={"bf16": 2.0}, gamma=0.5, sharpness=4.0
    )
    y = basis.demand((np.array([0.0, 0.04]), np.array([0.0, 0.8]), np.array([0.0, 0.8])), 2.0)
    assert y == pytest.approx([0.0, 0.4 + 0.4 + 0.2])
    # g(1) = 1 / (1 + 1)^(1/4)
    assert basis.share(y) == pytest.approx([0.2, 0.2 + 0.8 * 2**-0.25])
    assert basis.coefficient("fp16") == 2.0  # the like multiplier's


def test_every_sharpness_is_the_same_formula():
    y = np.array([0.0, 0.3, 1.0, 4.0, 1e6])
    for p in (4.0, 8.0, 16.0, 5.0):
        basis = Basis(0.0, 1.0, 1.0, 0.0, {"bf16": 1.0}, 1.0, p)
        low = np.minimum(y, 50.0)
        assert basis.share(low) == pytest.approx(low / (1 + low**p) ** (1 / p), abs=1e-12)
        if p != 5.0:
            assert basis.share(y)[-1] == pytest.approx(1.0)


def test_work_is_that_of_the_op():
    rows = [("bf16", 64, 128, 256, 1), ("fp8_block", 100, 128, 256, 2), ("nvfp4", 7, 32, 64, 1),
            ("int4_wo", 16, 128, 256, 1), ("int8", 8, 16, 32, 1), ("fp32", 3, 5, 7, 4)]  # fmt: skip
    dtype, m, n, k, batch = (np.array(c) for c in zip(*rows, strict=True))
    table = {"dtype": dtype.astype(object), "m": m, "n": n, "k": k, "batch": batch}
    flops, unique = gemm_work(table)
    for i, (name, *shape) in enumerate(rows):
        op = Gemm(*shape[:3], dtype=name, batch=shape[3])
        assert (flops[i], unique[i]) == pytest.approx((op.flops, op.bytes))


share = st.floats(0.0, 1.0)


@settings(max_examples=60, deadline=None)
@given(
    device=st.sampled_from(["h200_sxm", "b200_sxm", "l40s", "a100_sxm", "mi300x", "rtx_4070"]),
    u_flop=share,
    u_memory=share,
    more=st.floats(0.0, 0.5),
    time=st.floats(1e-6, 1.0),
)
def test_more_work_never_draws_less_and_the_limit_holds(device, u_flop, u_memory, more, time):
    hardware = get(device)
    f = np.array([u_flop, u_flop + more, u_flop, u_flop])
    b = np.array([u_memory, u_memory, u_memory + more, u_memory])
    got = run(hardware, "bf16", f, b, time)
    power, low, high = (got[k] for k in ("power_w", "power_low_w", "power_high_w"))
    assert power[1] >= power[0] * (1 - 1e-12)
    assert power[2] >= power[0] * (1 - 1e-12)
    assert (low > 0).all() and (low <= power).all() and (power <= high).all()
    assert (power <= hardware.board_power * 1.001).all()
    assert (high <= OVERSHOOT * hardware.board_power).all()


def test_energy_is_power_times_time():
    time = np.array([5e-6, 1e-4, 2e-3])
    got = run(H200, "bf16", [0.1, 0.5, 0.7], [0.5, 0.2, 0.1], time)
    e = MODEL.energy(H200, "bf16", got, time, (time * 0.95, time * 1.05))
    assert e["energy_j"] == pytest.approx(got["power_w"] * time, rel=1e-15)
    assert (e["energy_low_j"] < e["energy_j"]).all() and (e["energy_j"] < e["energy_high_j"]).all()
    wider = MODEL.energy(H200, "bf16", got, time, (time * 0.7, time * 1.4))
    assert (wider["energy_high_j"] > e["energy_high_j"]).all()
    assert (wider["energy_low_j"] < e["energy_low_j"]).all()


def test_basis_and_reason():
    got = run(H200, "bf16", 0.5, 0.2, [1e-3, 1e-5])
    assert got["basis"].tolist() == ["learned", "transferred"]
    assert "too short" in got["reason"]
    other = run(H200, "fp16", 0.5, 0.2)
    assert other["basis"].tolist() == ["transferred"] and "fp16" in other["reason"]
    assert run(L40S, "bf16", 0.5, 0.2)["basis"].tolist() == ["transferred"]
    what_if = H200.what_if({"board_power": "500 W"})
    capped = run(what_if, "bf16", 0.9, 0.5)
    assert capped["basis"].tolist() == ["transferred"]
    assert capped["power_w"][0] <= 500.0


def test_catalogue_idle_power_is_used():
    idle = L40S.replace(idle_power=35.0)
    assert MODEL.basis_of(idle).idle == pytest.approx(0.1)
    assert run(idle, "bf16", 0.0, 0.0)["power_w"][0] == pytest.approx(35.0)


def test_no_board_power_gives_null_and_why():
    bare = SimpleNamespace(name="some_cpu", board_power=None)
    got = MODEL.predict(bare, "fp32", [1.0], [1.0], [0.0], [1.0])
    assert got["power_w"] is None and got["power_high_w"] is None
    assert "some_cpu" in got["reason"] and "board power" in got["reason"]
    e = MODEL.energy(bare, "fp32", got, [1.0], ([0.9], [1.1]))
    assert e["energy_j"] is None and e["reason"]


def test_bad_time_level_and_dtype():
    got = run(H200, "bf16", 0.5, 0.2, [1e-3, 0.0, np.nan, -1.0])
    assert np.isfinite(got["power_w"]).tolist() == [True, False, False, False]
    assert np.isfinite(got["power_high_w"]).tolist() == [True, False, False, False]
    with pytest.raises(OutOfDomainError, match="level"):
        run(H200, "bf16", 0.5, 0.2, level=0.999)
    with pytest.raises(UnsupportedError, match="nvfp4"):
        MODEL.predict(H200, "nvfp4", [1.0], [1.0], [0.0], [1.0])


def test_wider_level_wider_interval():
    widths = []
    for level in (0.5, 0.8, 0.85, 0.9, 0.95, 0.99):
        got = run(H200, "bf16", 0.5, 0.3, level=level)
        widths.append(float((got["power_high_w"] / got["power_low_w"])[0]))
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_card_round_trip(tmp_path):
    path = tmp_path / "card.json"
    MODEL.save(path)
    again = load_power(path)
    a, b = (run(H200, "bf16", 0.3, 0.5, model=m) for m in (MODEL, again))
    assert a["power_high_w"] == pytest.approx(b["power_high_w"])
    assert again.card["licence"] == ["Apache-2.0"] and again.card["scores"]
    broken = MODEL.to_dict()
    del broken["pooled"]
    with pytest.raises(SpecError, match="pooled"):
        PowerModel.from_dict(broken)
    with pytest.raises(SpecError, match="schema_version"):
        PowerModel.from_dict({**MODEL.to_dict(), "schema_version": 99})
    with pytest.raises(NoDataError, match="no power model"):
        load_power(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(SpecError, match="JSON"):
        load_power(path)


# ------------------------------------------------------------------------------------- fitting


def synthetic(device, truth, rows=3000, noise=0.02, outliers=0.1):
    """Measurements of a device whose power follows `truth`, a tenth of them far off."""
    rng = np.random.default_rng(7)
    hardware = get(device)
    m, n, k = (2 ** rng.integers(*span, rows) for span in ((0, 13), (7, 13), (7, 13)))
    table = canonical(rows, op="gemm", hardware=device, dtype="bf16", m=m, n=n, k=k, layout="tn",
                      licence="CC0-1.0", collection=f"synthetic/{device}")  # fmt: skip
    flops, unique = gemm_work(table)
    work = np.stack([flops / hardware.rate("bf16"), unique / hardware.memory.bandwidth], axis=1)
    time = work.max(axis=1) / rng.uniform(0.05, 0.9, rows) + 2e-6
    u = work / time[:, None]
    y = truth.demand((u[:, 0], u[:, 1], np.zeros(rows)), truth.flop["bf16"])
    label = truth.share(y) * hardware.board_power * np.exp(rng.normal(0, noise, rows))
    far = rng.random(rows) < outliers
    label[far] = rng.uniform(0.2, 1.0, far.sum()) * hardware.board_power
    table["time_s"], table["power_w"] = time, label
    table["power_valid"] = np.ones(rows, bool)
    return table


def test_known_coefficients_are_recovered():
    truth = Basis(0.15, 0.98, 0.6, 0.0, {"bf16": 1.3}, 0.7, 8.0)
    table = synthetic("a100_sxm", truth)
    model = fit_power(table, holdout=0.0, shapes=[(0.7, 8.0)])
    got = model.devices["a100_sxm"]
    assert got.idle == pytest.approx(0.15, rel=0.05)
    assert got.ceiling == pytest.approx(0.98, rel=0.02)
    assert got.memory == pytest.approx(0.6, rel=0.05)
    assert got.flop["bf16"] == pytest.approx(1.3, rel=0.05)
    assert got.l2 == 0.0
    assert "scores" not in model.card and model.card["data"] == ["synthetic/a100_sxm"]
    assert model.samples == ()


def test_scores_keep_the_held_out_points_behind_them(tmp_path):
    truth = Basis(0.15, 0.98, 0.6, 0.0, {"bf16": 1.3}, 0.7, 8.0)
    table = synthetic("a100_sxm", truth)
    model = fit_power(table, shapes=[(0.7, 8.0)])
    save_power(model, tmp_path / "power")
    kept = json.loads((tmp_path / "power" / "parity.json").read_text())["samples"]
    assert [s["target"] for s in kept] == ["power", "energy"]
    assert {s["split"] for s in kept} == {"unseen_shape"}
    assert "scores_transferred" not in model.card, "one device tells nothing of another"
    card = {"power": model.card["scores_crossed"], "energy": model.card["scores"]}
    for target, unit, name in (("power", "w", "mape"), ("energy", "j", "energy_mape")):
        s = next(s for s in kept if s["target"] == target)
        assert s["mape"] == pytest.approx(card[target]["a100_sxm/bf16"][name], abs=6e-5)
        low, mid, high = (np.array(s[f"{key}_{unit}"]) for key in ("low", "measured", "high"))
        assert np.mean((low <= mid) & (mid <= high)) == pytest.approx(s["coverage"], abs=0.1)
    # at the label's own time, energy is power times time
    assert s["mape"] < 0.15


def test_shape_is_chosen_by_the_data():
    truth = Basis(0.15, 0.98, 0.6, 0.0, {"bf16": 1.5}, 1.0, 4.0)
    table = synthetic("a100_sxm", truth, rows=1500, noise=0.002, outliers=0.0)
    model = fit_power(table, holdout=0.0)
    assert (model.pooled.gamma, model.pooled.sharpness) == (1.0, 4.0)


def test_rows_without_power_are_refused_or_ignored():
    truth = Basis(0.15, 0.98, 0.6, 0.0, {"bf16": 1.3}, 0.5, 4.0)
    good = synthetic("a100_sxm", truth, rows=1000)
    bad = {**select(good, np.arange(1000) < 100)}
    bad["power_w"] = np.full(100, np.nan)
    with pytest.raises(NoDataError, match="power"):
        fit_power(bad)
    with pytest.raises(SpecError, match="power_w"):
        fit_power({k: v for k, v in good.items() if k != "power_w"})
    unknown = {**select(good, np.arange(1000) < 100)}
    unknown["hardware"] = np.full(100, "no_such_device", dtype=object)
    shapes = [(0.5, 4.0)]
    alone = fit_power(good, holdout=0.0, shapes=shapes)
    mixed = fit_power(concat([good, bad, unknown]), holdout=0.0, shapes=shapes)
    for f in dataclasses.fields(Basis):
        a, b = (getattr(m.devices["a100_sxm"], f.name) for m in (alone, mixed))
        assert a == b


# ------------------------------------------------------------------------------------- measured

files = [DATA / d / "gemm" / "gemm-vllm-0.22.0.parquet" for d in ("h200_sxm", "b200_sxm")]


def test_published_coverage_is_true():
    crossed = MODEL.card["scores_crossed"]
    assert len(crossed) >= 5
    for name, score in crossed.items():
        assert 0.87 <= score["covered_90"] <= 0.93, name
    for name, score in MODEL.card["scores"].items():
        assert score["mape"] < min(score["mape_constant_median"], score["mape_board_power"]), name


@pytest.mark.skipif(not all(f.exists() for f in files), reason="measured tables are not here")
def test_held_out_labels_score_as_the_card_says():
    from ridgecast.store import make_split

    table = import_files(files)
    table = select(table, table["power_valid"] & make_split("unseen_shape", table, seed=0).test)
    flops, unique = gemm_work(table)
    for key, score in MODEL.card["scores"].items():
        if " " in key:
            continue
        device, dtype = key.split("/")
        here = (table["hardware"] == device) & (table["dtype"] == dtype)
        time, label = table["time_s"][here], table["power_w"][here]
        got = MODEL.predict(get(device), dtype, flops[here], unique[here], np.zeros(1), time)
        assert np.mean(np.abs(got["power_w"] / label - 1)) == pytest.approx(score["mape"], abs=1e-3)
        covered = np.mean((got["power_low_w"] <= label) & (label <= got["power_high_w"]))
        assert covered == pytest.approx(score["covered_90"], abs=2e-3)


@pytest.mark.skipif(not all(f.exists() for f in files), reason="measured tables are not here")
def test_labels_of_short_kernels_are_covered_too():
    table = import_files(files[:1])
    table = select(table, ~table["power_valid"] & (table["dtype"] == "bf16"))
    flops, unique = gemm_work(table)
    got = MODEL.predict(H200, "bf16", flops, unique, np.zeros(1), table["time_s"])
    label = table["power_w"]
    assert set(got["basis"].tolist()) == {"transferred"}
    assert np.mean((got["power_low_w"] <= label) & (label <= got["power_high_w"])) > 0.87
