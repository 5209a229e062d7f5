"""Transfer to devices with few measurements: constants, processes and priors on made-up devices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.predict.device_physics import (
    CONSTANTS,
    NO_POWER_LIMIT,
    START,
    Device,
    Shapes,
    fit_device,
    physical_time,
)
from ridgecast.predict.gp import GaussianProcess, fit_gp
from ridgecast.predict.transfer import (
    Calibrated,
    Prior,
    Rows,
    Small,
    calibrate,
    choose_points,
    fit_prior,
    fit_small,
)

DEVICE = Device(132, 1.98e9, 989e12, 4.8e12, 50e6, 700.0, warpgroup=True)


def _shapes(rows: int, seed: int) -> Shapes:
    rng = np.random.default_rng(seed)
    m, n, k = (np.round(2.0 ** rng.uniform(lo, 14, rows)) for lo in (0, 5, 5))
    return Shapes(m, n, k)


def _rows(device: Device, rows: int, seed: int, family: str = "", slow: float = 0.1) -> Rows:
    s = _shapes(rows, seed)
    time, _ = physical_time(s, device, START)
    features = np.stack([np.log2(s.m), np.log2(s.n), np.log2(s.k)], 1).astype(np.float32)
    rng = np.random.default_rng(seed + 1)
    noise = 0.01 * rng.standard_normal(rows)
    return Rows(device, s, features, np.log(time) + slow * np.sin(np.log2(s.k)) + noise, family)


def _error(predicted: np.ndarray, rows: Rows) -> float:
    return float(np.mean(np.abs(np.expm1(predicted - rows.measured()))))


def test_large_gemm_takes_rate_and_long_vector_takes_bandwidth() -> None:
    s = Shapes(np.array([8192.0, 1.0]), np.array([8192.0, 65536.0]), np.array([8192.0, 65536.0]))
    theta = START.copy()
    theta[CONSTANTS.index("power")] = NO_POWER_LIMIT
    time, _ = physical_time(s, DEVICE, theta)
    by_rate = 2 * 8192.0**3 / (0.85 * 989e12)
    by_bandwidth = 2 * 65536.0**2 / (0.9 * 4.8e12)
    assert 1.0 <= time[0] / by_rate < 1.3
    assert 1.0 <= time[1] / by_bandwidth < 1.1


def test_power_limit_slows_a_large_gemm() -> None:
    s = Shapes(*(np.array([16384.0]) for _ in range(3)))
    theta = START.copy()
    theta[CONSTANTS.index("power")] = np.log(0.5)
    time, _ = physical_time(s, DEVICE, theta)
    assert time[0] >= 2 * 16384.0**3 / (0.5e12 * DEVICE.power)


def test_fit_finds_a_slower_memory() -> None:
    truth = START.copy()
    truth[CONSTANTS.index("bandwidth")] = np.log(0.6)
    s = _shapes(300, 3)
    y = np.log(physical_time(s, DEVICE, truth)[0])
    found = fit_device(s, y, DEVICE)
    assert np.exp(found[CONSTANTS.index("bandwidth")]) == pytest.approx(0.6, rel=0.05)


def test_process_interpolates_a_smooth_function_and_survives_a_wild_row() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, (150, 3))
    y = np.sin(x[:, 0]) * 0.2
    y[7] += 3.0
    gp = fit_gp(x, y, rng)
    new = rng.uniform(-1.8, 1.8, (200, 3))
    predicted = gp.predict(new)
    assert np.median(np.abs(predicted - np.sin(new[:, 0]) * 0.2)) < 0.02
    again = GaussianProcess.from_arrays(gp.to_arrays())
    np.testing.assert_allclose(again.predict(new), predicted, rtol=1e-12)


def test_small_table_alone() -> None:
    pytest.importorskip("lightgbm")
    small = fit_small(_rows(DEVICE, 300, 1), members=2)
    test = _rows(DEVICE, 500, 11)
    assert _error(small.predict(test), test) < 0.05
    again = Small.from_arrays(small.to_arrays())
    np.testing.assert_allclose(again.predict(test), small.predict(test), rtol=1e-9)


def test_prior_then_points() -> None:
    pytest.importorskip("lightgbm")
    other = replace(DEVICE, bandwidth=3.3e12)
    tables = [_rows(DEVICE, 1500, 1, "a"), _rows(other, 1500, 5, "b")]
    prior = fit_prior(tables, warpgroup=True)
    new = replace(DEVICE, sm_count=148, rate=1.4e15, bandwidth=6e12)
    pool = _rows(new, 1000, 21, slow=0.1)
    assert _error(prior.predict(pool), pool) < 0.3
    points = pool.take(choose_points(prior, pool, 100, rng=np.random.default_rng(0)))
    assert len(np.unique(points.shapes.m * 1e10 + points.shapes.n * 1e5 + points.shapes.k)) == 100
    bent = calibrate(prior, points)
    test = _rows(new, 500, 31)
    assert _error(bent.predict(test), test) < 0.05
    loaded = Calibrated.from_arrays(bent.to_arrays(), Prior.from_arrays(prior.to_arrays()))
    np.testing.assert_allclose(loaded.predict(test), bent.predict(test), rtol=1e-9)


def test_wrong_kind_is_refused() -> None:
    table = _rows(DEVICE, 50, 1, "a")
    with pytest.raises(ValueError, match="warpgroup=False"):
        fit_prior([table], warpgroup=False)
    with pytest.raises(ValueError, match="log_time"):
        fit_small(Rows(DEVICE, table.shapes, table.features))
