"""Published measurements of operations and devices that taught no model: an independent oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgecast import predict_table
from ridgecast.store.tables import read_table

TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "published_ops.csv"
# mean errors as shares: what benchmarks/published_ops.py prints, and a tenth more
MOST = {"gemm": 0.075, "softmax": 0.275, "convolution": 0.33, "normalisation": 0.16}


@pytest.fixture(scope="module")
def done():
    return predict_table(read_table(TABLE))


@pytest.mark.parametrize("op", MOST)
def test_intervals_hold_what_others_measured(done, op):
    at = done["op"] == op
    assert (done["status"][at] == "ok").all()
    truth = np.asarray(done["measured_s"], float)[at]
    held = (done["time_low_s"][at] <= truth) & (truth <= done["time_high_s"][at])
    assert held.mean() >= 0.9
    assert np.abs(done["time_s"][at] / truth - 1.0).mean() <= MOST[op]


def test_the_bound_is_below_every_measured_time(done):
    assert (done["bound_s"] <= np.asarray(done["measured_s"], float)).all()
    assert set(done["basis"]) == {"transferred", "analytic"}  # none was learned
