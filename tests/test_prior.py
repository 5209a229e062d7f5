"""Times on devices that nobody measured: what the speed of light says of what a prior says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ridgecast as rc
from ridgecast.kernels.bound import CLOSEST
from ridgecast.predict.device_spread import PROBABILITIES, possible

SHARES = st.floats(0.2, 5.0)
# residuals spread evenly in log time: a uniform distribution from -0.4 to 0.4
EVEN = np.tile(0.8 * (PROBABILITIES - 0.5), (4, 1))


@given(SHARES, st.floats(0.5, 0.99))
def test_no_time_below_the_bound_and_the_interval_holds_it(share, level):
    floor = np.array([1e-5])
    time, low, high = possible(floor * share, floor, EVEN, level)
    assert time >= CLOSEST * floor and floor <= low <= time <= high


def test_what_lies_far_above_the_bound_is_left_as_it_was():
    time = np.array([1e-6, 1e-5, 1e-4, 1e-3])
    got, low, high = possible(time, 0.3 * time, EVEN, 0.9)
    assert got == pytest.approx(time)
    assert low == pytest.approx(time * np.exp(0.8 * -0.45))
    assert high == pytest.approx(time * np.exp(0.8 * 0.45))


def test_at_the_bound_the_slower_half_is_left():
    """A prior at the bound: of residuals even in log time the upper half can be."""
    time = np.array([1e-5])
    got, low, high = possible(time, time / CLOSEST, EVEN, 0.9)
    near = {"rel": 0.005}  # quantiles begin at 0.5 %
    assert got == pytest.approx(time * np.exp(0.8 * 0.25), **near)  # the 75 % quantile
    assert high == pytest.approx(time * np.exp(0.8 * (0.975 - 0.5)), **near)
    assert low == pytest.approx(time * np.exp(0.8 * 0.025), **near)


@given(st.floats(0.5, 2.0), st.floats(1.0, 1.2))
def test_a_slower_answer_of_the_prior_is_no_faster_answer(share, more):
    floor = np.array([1e-5])
    before = possible(floor * share, floor, EVEN, 0.9)
    after = possible(floor * share * more, floor, EVEN, 0.9)
    assert all(b >= a * (1 - 1e-9) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("device", ["gtx_1080_ti", "v100_sxm", "rtx_3090", "rtx_4090"])
def test_large_gemms_of_unmeasured_devices_are_not_at_the_bound(device):
    dtype = {"gtx_1080_ti": "fp32", "v100_sxm": "fp16"}.get(device, "bf16")
    found = rc.predict(rc.Gemm(4096, 4096, 4096, dtype=dtype), device)
    assert found.basis == "transferred" and 0.75 < found.utilisation < 0.95
    low, high = found.interval()
    assert found.bound <= low < found.time < high
