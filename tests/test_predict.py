"""The ladder of trust, the batch contract and the physics that every prediction must keep."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ridgecast as rc
from ridgecast.hardware import get
from ridgecast.predict import OUTPUTS, predict_table
from ridgecast.predict.conformal import DISTANCES, fit_conformal
from ridgecast.predict.device_physics import START, physical_time
from ridgecast.predict.device_physics import Shapes as PhysicalShapes
from ridgecast.predict.domain import Domain, folds
from ridgecast.predict.features import device_of
from ridgecast.predict.mlp import _gradients, fit_mlp
from ridgecast.predict.train import train
from ridgecast.store import write_table

DEVICES = ("h200_sxm", "a100_sxm", "l40s", "b200_sxm", "rtx_4090", "mi300x", "v100_sxm")
sizes = st.integers(1, 16384)


def ask(rows: int = 1, **columns: object) -> dict[str, np.ndarray]:
    """Table of one question repeated, with some columns replaced."""
    base = {"op": "gemm", "hardware": "h200_sxm", "dtype": "bf16", "m": 64, "n": 512, "k": 256}
    table: dict[str, np.ndarray] = {}
    for name, value in {**base, **columns}.items():
        if isinstance(value, list | np.ndarray):
            kind = object if any(isinstance(v, str) for v in value) else None
            table[name] = np.array(value, dtype=kind)
        else:
            table[name] = np.full(rows, value, dtype=object if isinstance(value, str) else None)
    return table


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folder from 150 made-up H200 points: the physics with 3 % noise."""
    rng = np.random.default_rng(0)
    n, k = (2.0 ** rng.integers(6, 13, 150) for _ in range(2))
    m = np.floor(2.0 ** rng.uniform(0, 12, 150))
    device = device_of(get("h200_sxm"), "bf16")
    time, _ = physical_time(PhysicalShapes(m, n, k), device, START)
    time *= np.exp(0.03 * rng.standard_normal(150))
    folder = tmp_path_factory.mktemp("model")
    rows = ask(150, m=m, n=n, k=k, time_s=time, kernel="library", collection="made up")
    write_table(folder / "rows.parquet", rows)
    train([folder / "rows.parquet"], folder / "model", importer="plain")
    return folder


def test_bad_rows_get_a_reason_and_stop_nobody() -> None:
    table = ask(
        m=[64, 0, 1.5, np.nan, 64, 64, 64, 2.0**40],
        hardware=["h200_sxm"] * 4 + ["h2000_sxm", "h200_sxm", "v100_sxm", "h200_sxm"],
        n=512 * np.ones(8), k=256 * np.ones(8), op=["gemm"] * 8,
        dtype=["bf16"] * 5 + ["fp17", "fp8", "bf16"],
    )  # fmt: skip
    out = predict_table(table)
    assert out["status"].tolist() == ["ok"] + ["invalid"] * 5 + ["no_answer", "invalid"]
    assert "integer from 1" in out["reason"][1]
    assert "h200_sxm" in out["reason"][4] and "nearest" in out["reason"][4]
    assert "nearest" in out["reason"][5]
    assert "h100_nvl" in out["reason"][6], "names devices that have an fp8 unit"
    for name in OUTPUTS:
        assert np.isfinite(out[name][0])
        assert np.isnan(out[name][1:]).all(), name
    assert out["m"] is not None and len(out["m"]) == 8


def test_a_million_bad_rows_among_good_ones() -> None:
    m = np.zeros(1_000_002)
    m[[0, -1]] = 64
    out = predict_table(ask(len(m), m=m))
    assert np.flatnonzero(out["status"] == "ok").tolist() == [0, 1_000_001]


def test_missing_columns_are_all_named() -> None:
    table = ask()
    del table["k"], table["dtype"]
    with pytest.raises(rc.SpecError, match=r"(?s)'dtype'.*'k'|'k'.*'dtype'"):
        predict_table(table)


@pytest.mark.parametrize(
    ("question", "basis"),
    [
        ({}, "learned"),
        ({"dtype": "fp16"}, "transferred"),
        ({"hardware": "rtx_4090"}, "transferred"),
        ({"cache": "cold"}, "transferred"),
        ({"batch": 8}, "transferred"),
        ({"kernel": "tiled", "tile": 16, "dtype": "fp32"}, "analytic"),
        ({"kernel": "bound"}, "bound"),
    ],
)
def test_basis_says_where_an_answer_stands(question: dict[str, object], basis: str) -> None:
    out = predict_table(ask(**question))
    assert out["status"][0] == "ok", out["reason"][0]
    assert out["basis"][0] == basis
    assert out["reason"][0]


def test_intervals_widen_down_the_ladder() -> None:
    def width(**q: object) -> float:
        out = predict_table(ask(m=4096, n=4096, k=4096, **q))
        return float(out["time_high_s"][0] / out["time_low_s"][0])

    learned, transferred = width(), width(dtype="fp16")
    assert learned < transferred < width(kernel="cutlass_tensor")


@settings(max_examples=60, deadline=None)
@given(m=sizes, n=sizes, k=sizes, device=st.sampled_from(DEVICES))
def test_physics_of_every_answer(m: int, n: int, k: int, device: str) -> None:
    dtype = "fp16" if device == "v100_sxm" else "bf16"
    out = predict_table(
        ask(2, m=[m, 2 * m], n=[n, 2 * n], k=[k, 2 * k], hardware=device, dtype=dtype)
    )
    row = {name: out[name] for name in OUTPUTS}
    assert (row["time_s"] >= row["bound_s"]).all()
    for q, unit in (("time", "s"), ("power", "w"), ("energy", "j")):
        low, mid, high = (row[f"{q}{end}_{unit}"] for end in ("_low", "", "_high"))
        assert (low <= mid).all() and (mid <= high).all()
    np.testing.assert_allclose(row["energy_j"], row["power_w"] * row["time_s"], rtol=1e-9)
    assert (row["power_w"] <= 1.05 * get(device).board_power).all()
    if out["basis"][0] in ("learned", "transferred"):
        ratio = row["time_s"][1] / row["time_s"][0]
        # doubling every size is never faster (a batch rounds in single precision), unless the
        # library is known to pick a slow kernel for the smaller shape
        assert ratio >= 1 - 1e-6 or ratio < 1 / 1.15


@settings(max_examples=30, deadline=None)
@given(
    m=sizes, n=sizes, k=sizes,
    field=st.sampled_from(["memory.bandwidth", "l2.capacity", "l2.bandwidth", "rates", "clock"]),
    name=st.sampled_from(["h200_sxm", "rtx_4090", "h100_pcie"]),  # measured, and two that were not
)  # fmt: skip
def test_a_better_device_is_never_slower(m: int, n: int, k: int, field: str, name: str) -> None:
    device = get(name)
    better = device.what_if({field: "+30%"})
    op = rc.Gemm(m, n, k)
    assert rc.predict(op, on=better).time <= rc.predict(op, on=device).time * (1 + 1e-9)


def test_same_answer_alone_and_in_a_batch() -> None:
    rng = np.random.default_rng(3)
    m, n, k = (np.floor(2.0 ** rng.uniform(3, 14, 300)) for _ in range(3))
    together = predict_table(ask(300, m=m, n=n, k=k))["time_s"]
    alone = [predict_table(ask(m=m[i], n=n[i], k=k[i]))["time_s"][0] for i in range(0, 300, 30)]
    np.testing.assert_allclose(together[::30], alone, rtol=1e-6)


def test_a_measured_point_comes_back_exactly(trained: Path) -> None:
    from ridgecast.store import read_table

    rows = read_table(trained / "rows.parquet")
    out = predict_table(ask(150, m=rows["m"], n=rows["n"], k=rows["k"]), model=trained / "model")
    assert set(out["basis"]) == {"measured"}
    first = np.unique(np.stack([rows[c] for c in "mnk"]), axis=1, return_index=True)[1]
    once = [
        i
        for i in first
        if sum(
            (rows["m"] == rows["m"][i]) & (rows["n"] == rows["n"][i]) & (rows["k"] == rows["k"][i])
        )
        == 1
    ]
    np.testing.assert_allclose(out["time_s"][once], rows["time_s"][once], rtol=1e-12)
    other = predict_table(ask(m=777, n=512, k=512), model=trained / "model")
    assert other["basis"][0] == "learned"


def test_a_users_folder_never_borrows_shipped_times(trained: Path) -> None:
    out = predict_table(ask(hardware="a100_sxm"), model=trained / "model")
    assert out["basis"][0] == "analytic"


@pytest.mark.parametrize("file", ["card.json", "model.txt.xz", "smooth.npz"])
def test_a_corrupt_model_folder_is_refused_by_name(
    trained: Path, tmp_path: Path, file: str
) -> None:
    broken = tmp_path / "model"
    shutil.copytree(trained / "model", broken)
    found = next(broken.glob(f"time/*/{file}"))
    found.write_bytes(found.read_bytes()[:20])
    out = predict_table(ask(), model=broken)
    assert out["status"][0] == "invalid" and str(found.parent) in out["reason"][0]
    (broken / "card.json").write_text("{")
    with pytest.raises(rc.SpecError, match=r"card\.json"):
        predict_table(ask(), model=broken)


def test_training_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    write_table(tmp_path / "few.parquet", ask(3, m=[1, 2, 3], time_s=1e-5, kernel="library"))
    with pytest.raises(rc.NoDataError, match="need 24"):
        train([tmp_path / "few.parquet"], tmp_path / "out", importer="plain")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(rc.SpecError, match="not a model folder"):
        train([tmp_path / "few.parquet"], tmp_path / "mine")


def test_folds_never_share_what_they_hold_out() -> None:
    rng = np.random.default_rng(1)
    m, n, k = (2.0 ** rng.integers(0, 8, 600) for _ in range(3))
    seen: set[str] = set()
    for fold in folds(m, n, k, np.ones(600), rng):
        seen.add(fold.split)
        assert not (fold.train & fold.test).any()
        train_pairs = set(zip(n[fold.train], k[fold.train], strict=True))
        test_pairs = set(zip(n[fold.test], k[fold.test], strict=True))
        if fold.split in ("unseen_shape", "off_grid"):
            assert not train_pairs & test_pairs
        if fold.split == "frontier":
            assert (m * n * k)[fold.train].max() <= (m * n * k)[fold.test].min()
    assert seen == {"unseen_shape", "random", "off_grid", "frontier"}


def test_distance_classes_by_hand() -> None:
    one = np.ones
    inside = Domain.of(
        np.array([1.0, 64, 64]), np.array([128.0, 256, 512]), np.array([32.0, 64, 128]), one(3)
    )
    m = np.array([8.0, 8, 8, 8, 128, 8])
    n = np.array([128.0, 128, 128, 200, 512, 1024])
    k = np.array([32.0, 64, 50, 50, 128, 64])
    names = [DISTANCES[i] for i in inside.distance(m, n, k, one(6))]
    assert names == ["seen_pair", "unseen_pair", "one_off_grid", "off_grid", "frontier", "outside"]


def test_conformal_covers_fresh_points() -> None:
    rng = np.random.default_rng(2)

    def draw(rows: int) -> tuple[np.ndarray, ...]:
        spread = rng.uniform(0.0, 0.1, rows)
        time = 10.0 ** rng.uniform(-6, -3, rows)
        residual = (0.01 + spread) * rng.standard_t(4, rows)
        return residual, time, np.ones(rows, np.int64), spread

    fitted = fit_conformal(*draw(20_000))
    residual, time, distance, spread = draw(20_000)
    for level in (0.5, 0.9, 0.99):
        low, high = fitted.interval(time, distance, spread, level)
        truth = time * np.exp(residual)
        assert abs(((truth >= low) & (truth <= high)).mean() - level) < 0.015


def test_network_gradient_matches_finite_differences() -> None:
    rng = np.random.default_rng(4)
    x, y = (
        rng.standard_normal((32, 3)).astype(np.float32),
        rng.standard_normal(32).astype(np.float32),
    )
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((3, 5), (5, 1))]
    biases = [np.zeros(5, np.float32), np.zeros(1, np.float32)]
    grads = [np.zeros_like(p) for p in (*weights, *biases)]
    _gradients(x, y, (weights, biases), grads, 0.5)

    def loss() -> float:
        z = x.astype(float) @ weights[0] + biases[0]
        out = (z / (1 + np.exp(-z))) @ weights[1] + biases[1]
        return float(np.sqrt((out[:, 0] - y) ** 2 + 0.25).mean())

    step, before = 1e-2, weights[0][1, 2]
    weights[0][1, 2] = before + step
    up = loss()
    weights[0][1, 2] = before - step
    assert grads[0][1, 2] == pytest.approx((up - loss()) / (2 * step), rel=1e-2, abs=1e-4)


def test_network_learns_a_smooth_function() -> None:
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, (2000, 2)).astype(np.float32)
    y = np.sin(x[:, 0]) * x[:, 1]
    net = fit_mlp(x[:1500], y[:1500], rng)
    assert np.abs(net.predict(x[1500:]) - y[1500:]).mean() < 0.03


def test_one_bad_tile_stops_nobody_and_a_missing_one_is_the_default() -> None:
    out = predict_table(ask(4, kernel="tiled", dtype="fp32", tile=[16, 99, np.nan, 16]))
    assert out["status"].tolist() == ["ok", "invalid", "ok", "ok"]
    assert "tile" in out["reason"][1]
    assert out["time_s"][0] == out["time_s"][2] == out["time_s"][3]


def test_epilogue_adds_its_bytes_and_says_so() -> None:
    plain = rc.predict(rc.Gemm(64, 512, 256), on="h200_sxm")
    added = rc.predict(rc.Gemm(64, 512, 256, beta=1.0, out_dtype="fp32"), on="h200_sxm")
    # out in fp32 (2 B more a cell) and C read in fp32 (4 B a cell)
    assert added.memory - plain.memory == 64 * 512 * 6
    assert added.time > plain.time and added.basis == "transferred"
    with pytest.raises(rc.UnsupportedError, match="b_dtype"):
        rc.predict(rc.Gemm(64, 512, 256, b_dtype="fp8"), on="h200_sxm")


def test_transferred_interval_follows_the_level() -> None:
    p = rc.predict(rc.Gemm(64, 4096, 4096, dtype="fp16"), on="h200_sxm")
    widths = [np.divide(*p.interval("time", level)[::-1]) for level in (0.5, 0.9, 0.99)]
    assert widths[0] < widths[1] < widths[2]
