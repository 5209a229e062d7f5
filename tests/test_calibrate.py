"""Calibration: what is learned from few points, never from the test points, and what it leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ridgecast.errors import MeasurementError, NoDataError
from ridgecast.hardware import get
from ridgecast.kernels.library import library_time
from ridgecast.measure.calibrate import CalibrationOptions, calibrate, shape_pool
from ridgecast.measure.providers.replay import Replay
from ridgecast.measure.shards import read_shards
from ridgecast.predict import predict_table
from ridgecast.predict.bundle import open_bundle

DEVICE = "rtx_4090"
TEXT = ("kernel", "dtype", "layout")
OPTIONS = CalibrationOptions(dtype="bf16", budget=600.0, tests=12, rounds=(40, 60))


@pytest.fixture(scope="module")
def recording() -> Replay:
    """A library half as fast as the analytic kernel, with a fixed cost and noise."""
    hardware = get(DEVICE)
    points = shape_pool(hardware, "bf16", "gpu", seed=3, count=160)
    m, n, k = (np.array([float(getattr(p, c)) for p in points]) for c in ("m", "n", "k"))
    _, time, _ = library_time(m, n, k, np.ones(len(m)), dtype="bf16", hardware=hardware)
    noise = np.random.default_rng(0).normal(0, 0.01, len(m))
    table = {c: np.array([getattr(p, c) for p in points], dtype=object if c in TEXT else None)
             for c in ("kernel", "m", "n", "k", "dtype", "layout")}  # fmt: skip
    table["hardware"] = np.full(len(m), DEVICE, dtype=object)
    return Replay({**table, "time_s": (2.0 * time + 3e-6) * np.exp(noise)})


@pytest.fixture(scope="module")
def calibrated(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibration")
    hardware = get(DEVICE)
    found = calibrate(recording, out, hardware=hardware, options=OPTIONS, pool=recording.points())
    return out, found


def test_error_is_halved_and_the_interval_holds(calibrated):
    _, found = calibrated
    assert found.after["mape"] < 0.5 * found.before["mape"]
    assert found.after["coverage"] >= 0.75
    assert found.before_basis == "transferred"
    assert found.points == 60
    assert found.tests == 12
    assert found.floor is None  # a recording holds each point once


def test_no_test_point_is_learned_from(calibrated, recording):
    out, found = calibrated
    measured = set(read_shards(out / "points")["point"].tolist())
    assert len(measured) == found.points + found.tests


def test_the_folder_serves_as_a_model(calibrated):
    out, _ = calibrated
    table = {"op": ["gemm"] * 2, "hardware": [DEVICE] * 2, "dtype": ["bf16"] * 2,
             "m": [512, 40], "n": [1024, 2048], "k": [768, 4096]}  # fmt: skip
    found = predict_table(table, model=out)
    assert found["basis"].tolist() == ["learned", "learned"]
    assert (found["time_low_s"] < found["time_s"]).all()
    assert (found["time_s"] < found["time_high_s"]).all()


def test_a_second_run_measures_nothing_again(calibrated, recording):
    out, found = calibrated
    before = read_shards(out / "points")
    again = calibrate(
        recording, out, hardware=get(DEVICE), options=OPTIONS, pool=recording.points()
    )
    assert again.after == found.after
    assert read_shards(out / "points")["utc"].tolist() == before["utc"].tolist()
    assert len(open_bundle(out).entries) == 1
    assert json.loads((out / "calibration.json").read_text())["points"] == again.points


def test_what_cannot_be_calibrated_says_why(recording, tmp_path):
    with pytest.raises(NoDataError, match="at least 20"):
        calibrate(recording, tmp_path, hardware=get(DEVICE), pool=recording.points()[:10])
    with pytest.raises(MeasurementError, match="no recording"):
        calibrate(Replay(""), tmp_path, hardware=get(DEVICE))
