"""Published measurements of operations and devices that taught no model: an independent oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgecast import predict_table
from ridgecast.store.tables import read_table

TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "published_ops.csv"
# mean errors as shares over all variants, and a tenth more
MOST = {
    ("gemm", "a100_pcie_40gb"): 0.075,
    ("gemm", "v100_pcie"): 0.47,
    ("gemm", "t4"): 0.46,
    ("gemm", "p100"): 0.44,
    ("softmax", "a100_pcie_40gb"): 0.275,
    ("convolution", "a100_pcie"): 0.33,
    ("normalisation", "a100_pcie"): 0.09,
    ("normalisation", "h100_nvl"): 0.17,
}


@pytest.fixture(scope="module")
def done():
    return predict_table(read_table(TABLE))


@pytest.mark.parametrize(("op", "device"), MOST)
def test_intervals_hold_what_others_measured(done, op, device):
    at = (done["op"] == op) & (done["hardware"] == device)
    assert (done["status"][at] == "ok").all()
    truth = np.asarray(done["measured_s"], float)[at]
    held = (done["time_low_s"][at] <= truth) & (truth <= done["time_high_s"][at])
    assert held.mean() >= 0.84
    assert np.abs(done["time_s"][at] / truth - 1.0).mean() <= MOST[op, device]


def test_the_bound_is_below_every_measured_time(done):
    assert (done["bound_s"] <= np.asarray(done["measured_s"], float)).all()
    assert set(done["basis"]) == {"transferred", "analytic"}  # none was learned
