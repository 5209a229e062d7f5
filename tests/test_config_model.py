"""CLBlast configuration model: load shapes by hand, twins, honest folds, transfer, bad input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import ridgecast as rc
from ridgecast.errors import NoDataError, SpecError
from ridgecast.hardware import get
from ridgecast.predict import config_features as cf
from ridgecast.predict.config_model import load
from ridgecast.predict.config_rows import kernel_ids, usable_rows
from ridgecast.predict.config_train import train_config_model
from ridgecast.predict.config_transfer import Inputs, fit_correction, spread_points

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernel_tuner" / "gemm.parquet"
GOOD = dict(mwg=128, nwg=128, kwg=32, mdimc=16, ndimc=8, mdima=16, ndimb=32, kwi=2, vwm=4, vwn=4,
            strm=0, strn=0, sa=1, sb=1)  # fmt: skip


def batch(device: str, *changes: dict, size: int = 4096) -> dict:
    rows = [{**GOOD, **change} for change in changes]
    table = {name: np.array([row[name] for row in rows], float) for name in GOOD}
    table["hardware"] = np.array([device] * len(rows), dtype=object)
    return {**table, **{s: np.full(len(rows), float(size)) for s in "mnk"}}


def params(**change: int) -> dict:
    return {name: np.array([{**GOOD, **change}[name]]) for name in GOOD}


@pytest.fixture(scope="module")
def space() -> dict:
    """Every eighth kernel of two twins' devices, with times from a known law and no noise."""
    rows = [
        {"mwg": m, "nwg": n, "vwm": v, "vwn": w, "sa": a, "sb": b, "mdima": d}
        for m in (32, 64, 128) for n in (32, 64, 128) for v in (1, 2) for w in (1, 2, 4)
        for a in (0, 1) for b in (0, 1) for d in (8, 16)
    ]  # fmt: skip
    tables = []
    for device, scale in (("rtx_3090", 1.0), ("rtx_a6000", 1.3)):
        table = batch(device, *rows)
        work = table["mwg"] * table["nwg"] / 128.0
        law = 1.5 + 40.0 / work + 0.2 / table["vwm"] + 0.3 * (1 - table["sa"])
        table["time_s"] = scale * law * 2 * 4096.0**3 / get(device).rate("fp32")
        good = cf.fits({p: table[p].astype(int) for p in cf.CONFIG})
        tables.append({name: column[good] for name, column in table.items()})
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


@pytest.fixture(scope="module")
def model(space):
    return train_config_model(space, folds=3, trees=60)


def test_bank_conflicts_and_sectors_by_hand():
    # 32 threads, one float each, side by side: one wavefront, four sectors, one line
    assert cf._wavefronts(32, 32, 1, 1, 0, 0) == 1
    assert cf._sectors(32, 32, 1, 1, 0, 0) == (4, 1, 1)
    # 8 floats a thread with stride 8 floats: lanes 0, 4, 8, ... share a bank, 8 times over 8 loads
    assert cf._wavefronts(32, 32, 8, 1, 0, 0) == 64
    # the same interleaved (strm = 1): no conflict
    assert cf._wavefronts(32, 32, 8, 1, 1, 0) == 8
    # 16 threads along m: both rows of 16 read the same words, half the sectors
    assert cf._sectors(16, 16, 1, 1, 0, 0) == (2, 1, 1)
    # along n, a warp of 16 x 2 needs two words of one sector
    assert cf._sectors(16, 8, 1, 1, 0, 1) == (1, 1, 1)


def test_bound_counts_padded_tiles_and_features_are_finite():
    hardware = get("rtx_3090")
    p = params()
    size = np.array([129.0])
    bound = cf.config_bound(hardware, p, size, size, np.array([33.0]))
    assert bound[0] == pytest.approx(2 * 256 * 256 * 64 / hardware.rate("fp32"))
    for device in ("rtx_3090", "pro_w7800", "h200_sxm"):
        x = cf.config_features(get(device), p, size, size, size)
        assert x.shape == (1, len(cf.FEATURES))
        assert np.isfinite(x).all()


def test_rates_cancel_in_features():
    # a device twice as fast in everything runs every configuration at the same utilisation
    slow = get("rtx_3090")
    fast = slow.what_if({"clock": "x2", "memory.bandwidth": "x2"})
    size = np.array([4096.0])
    a, b = (cf.config_features(hw, params(), size, size, size) for hw in (slow, fast))
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_twins_are_one_kernel():
    table = batch("rtx_3090", {"sa": 0, "mdima": 8}, {"sa": 0, "mdima": 16}, {"mdima": 8}, {})
    ids = kernel_ids(table)
    assert ids[0] == ids[1]
    assert len(set(ids[1:].tolist())) == 3
    one_vector = batch("rtx_3090", {"mwg": 64, "strm": 0}, {"mwg": 64, "strm": 1})
    assert len(set(kernel_ids(one_vector).tolist())) == 1
    assert len(set(kernel_ids(batch("rtx_3090", {"strm": 0}, {"strm": 1})).tolist())) == 2


def test_learned_rows_are_close_and_ordered(model, space):
    out = model.predict_batch(space)
    assert set(out["basis"]) == {"learned"}
    assert np.median(np.abs(out["time_s"] / space["time_s"] - 1)) < 0.03
    assert (out["time_low_s"] <= out["time_s"]).all()
    assert (out["time_s"] <= out["time_high_s"]).all()
    assert (out["time_low_s"] >= out["bound_s"]).all()
    wide, narrow = (model.predict_batch(space, level=level) for level in (0.95, 0.5))
    width = [(o["time_high_s"] - o["time_low_s"]).mean() for o in (wide, narrow)]
    assert width[0] > width[1]


def test_bad_rows_do_not_stop_good_ones(model):
    table = batch("rtx_3090", {}, {"mwg": 100}, {"kwg": float("nan")}, {}, {})
    table["m"][3] = -1.0
    table["hardware"][4] = "rtx_309"
    table["dtype"] = np.array(["fp32"] * 5, dtype=object)
    out = model.predict_batch(table)
    assert out["status"].tolist() == ["ok"] + ["no_answer"] * 4
    assert np.isnan(out["time_s"][1:]).all()
    assert all(out["reason"][1:])
    assert "rtx_3090" in out["reason"][4]
    with pytest.raises(SpecError, match="mwg"):
        model.predict_batch({"hardware": table["hardware"], "m": table["m"]})
    with pytest.raises(SpecError, match="level"):
        model.predict_batch(table, level=90)


def test_outside_the_domain_is_transferred_and_wider(model):
    inside = model.predict_batch(batch("rtx_3090", {"vwm": 2}))
    outside = model.predict_batch(batch("rtx_3090", {"vwm": 2}, size=1024))
    other = model.predict_batch(batch("rtx_4070", {"vwm": 2}))
    assert [o["basis"][0] for o in (inside, outside, other)] == [
        "learned", "transferred", "transferred"]  # fmt: skip
    ratio = [o["time_high_s"][0] / o["time_low_s"][0] for o in (inside, other)]
    assert ratio[1] > ratio[0]
    assert "rtx_4070" in other["reason"][0]


def test_calibration_returns_points_exactly_and_halves_the_error(model, space):
    own = space["hardware"] == "rtx_3090"
    new = {name: column[own].copy() for name, column in space.items()}
    new["hardware"][:] = "rtx_4070"
    new["time_s"] *= get("rtx_3090").rate("fp32") / get("rtx_4070").rate("fp32") * 1.7
    rows = model.next_points(new, 12, seed=3)
    assert len(set(rows.tolist())) == 12
    points = {name: column[rows] for name, column in new.items()}
    calibrated = model.calibrate(points)
    before, after = (m.predict_batch(new) for m in (model, calibrated))
    error = [np.abs(o["time_s"] / new["time_s"] - 1).mean() for o in (before, after)]
    assert error[1] < error[0] / 2
    assert (after["basis"][rows] == "measured").all()
    np.testing.assert_array_equal(after["time_s"][rows], new["time_s"][rows])
    assert not set(calibrated.next_points(new, 5).tolist()) & set(rows.tolist())
    assert "rtx_4070" not in model.calibrations
    with pytest.raises(NoDataError):
        model.calibrate({name: column[:1] for name, column in points.items()})


def test_correction_recovers_an_offset_with_honest_spread():
    rng = np.random.default_rng(0)
    base = rng.normal(2.0, 0.5, 200)
    inputs = Inputs(base, base[:, None], rng.normal(size=(200, 3)), rng.normal(size=(200, 3)))
    truth = base + 0.7 + 0.03 * rng.normal(size=200)
    points = spread_points(inputs, 30, rng)
    mean, spread = fit_correction(inputs[points], truth[points]).predict(inputs)
    assert np.abs(mean - truth).mean() < 0.05
    assert 0.8 < np.mean(np.abs(truth - mean) < 1.645 * spread)


def test_save_load_and_damage(model, space, tmp_path):
    own = space["hardware"] == "rtx_3090"
    points = {name: column[own][:6].copy() for name, column in space.items()}
    points["hardware"][:] = "rtx_4070"
    model = model.calibrate(points)
    model.save(tmp_path)
    again = load(tmp_path)
    table = batch("rtx_4070", {}, {"mwg": 64}, {"sa": 0})
    a, b = (m.predict_batch(table) for m in (model, again))
    np.testing.assert_allclose(a["time_s"], b["time_s"], rtol=1e-6)
    np.testing.assert_allclose(a["time_high_s"], b["time_high_s"], rtol=1e-6)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "features": ["x"]}))
    with pytest.raises(SpecError, match="features"):
        load(tmp_path)
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(SpecError, match="damaged"):
        load(tmp_path)
    with pytest.raises(NoDataError):
        load(tmp_path / "none")


def test_training_is_repeatable_and_refuses_nothing_to_learn(space, model):
    again = train_config_model(space, folds=3, trees=60)
    table = batch("rtx_3090", {}, {"vwm": 2})
    np.testing.assert_array_equal(
        model.predict_batch(table)["time_s"], again.predict_batch(table)["time_s"]
    )
    with pytest.raises(NoDataError):
        train_config_model({**space, "valid": np.zeros(len(space["m"]), bool)})
    with pytest.raises(SpecError, match="folds"):
        train_config_model(space, folds=1)


def test_only_the_largest_collection_of_a_device_is_used(space):
    names = np.array(["big"] * len(space["m"]), dtype=object)
    names[:3] = "small"
    assert len(usable_rows({**space, "collection": names})["m"]) == len(names) - 3


def test_shipped_model_knows_its_devices_and_source():
    shipped = load()
    assert len(shipped.devices) == 6
    assert shipped.card["licence"] == ["MIT"]
    for scores in shipped.card["scores_unseen_kernel"].values():
        assert 0 < scores["median"] <= scores["mape"] < 0.1
    hypothetical = dataclasses.replace(get("rtx_3090"), name="mine")
    out = shipped.predict_batch(batch("mine", {}), hardware={"mine": hypothetical})
    assert out["status"][0] == "ok"
    assert out["basis"][0] == "transferred"


@pytest.mark.skipif(not DATA.exists(), reason="measured tables are not beside the checkout")
def test_held_out_kernels_of_measured_data():
    from ridgecast.store import import_files, select

    table = usable_rows(import_files([DATA]))
    table = select(table, table["hardware"] == "rtx_2080_ti")
    ids = kernel_ids(table)
    # twins differ by less than 0.1 % (median): the split must not separate them
    test = np.isin(ids, np.random.default_rng(1).permutation(ids.max() + 1)[: ids.max() // 5])
    out = train_config_model(select(table, ~test), folds=3).predict_batch(select(table, test))
    error = np.abs(out["time_s"] / table["time_s"][test] - 1)
    assert error.mean() < 0.035
    time = table["time_s"][test]
    inside = (time >= out["time_low_s"]) & (time <= out["time_high_s"])
    assert 0.87 < inside.mean() < 0.95
    assert time[np.argmin(out["time_s"])] < 1.1 * time.min()


def test_parameters_that_are_not_given_are_the_kernels_own():
    """A table may name some parameters, or leave them open in some rows; the reason says which."""
    whole = rc.ClblastConfig(MWG=128, NWG=128)
    table = {
        "op": ["gemm"] * 3, "hardware": ["rtx_3090"] * 3, "dtype": ["fp32"] * 3,
        "kernel": ["clblast"] * 3, "m": [1024] * 3, "n": [1024] * 3, "k": [1024] * 3,
        "mwg": [128.0, np.nan, 128.0], "nwg": [128.0, np.nan, 128.0],
    }  # fmt: skip
    found = rc.predict_table({name: np.array(values) for name, values in table.items()})
    assert list(found["status"]) == ["ok"] * 3
    full = rc.predict(rc.Gemm(1024, 1024, 1024, dtype="fp32"), "rtx_3090", config=whole)
    assert found["time_s"][0] == found["time_s"][2] == pytest.approx(full.time)
    assert "kwg=32" in found["reason"][0] and "mwg=" not in found["reason"][0]
    assert "mwg=64" in found["reason"][1]
