"""Learned time of collectives: physics by hand, curves that never fall, counts never measured."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from ridgecast import predict_table
from ridgecast.errors import SpecError
from ridgecast.hardware import get
from ridgecast.ops.collective import Collective
from ridgecast.predict.collective_basis import Fabric, balance, base, calls_of, terms
from ridgecast.predict.collective_model import CollectiveModel, fit_collective
from ridgecast.predict.operator_features import known
from ridgecast.predict.operator_model import load_operator, operator_rows
from ridgecast.predict.operator_train import held_out
from ridgecast.store import import_files

H200 = get("h200_sxm")
TABLE = Path(__file__).resolve().parents[2] / (
    "shared/data/silicon/h200_sxm/comm/nccl-nccl-2.29.2.parquet"
)


def _calls(kind: str, gpus: int, size: float):
    op = Collective(kind=kind, bytes=size, gpus=gpus, gpus_per_node=gpus)
    return calls_of(op, 1, np.zeros(1))


def test_terms_and_balance_by_hand():
    fabric = Fabric(link=100e9, shared=True, host=8)
    found = {n: float(v[0]) for n, v in terms(_calls("all_reduce", 8, 8e6), fabric).items()}
    # 2 x 7 steps, 2 log2 8 = 6; 2 x 8 MB x 7/8 = 14 MB over 100 GB/s, eight times over a bus
    want = {"call": 1e-6, "ring": 14e-6, "tree": 6e-6, "bus": 140e-6, "shared": 1120e-6}
    assert {n: found[n] for n in want} == pytest.approx(want)
    apart = {n: float(v[0]) for n, v in terms(_calls("all_to_all", 8, 8e6), fabric).items()}
    # one step however many take part, seven peers, half of the bytes of an all-reduce
    want = {"ring": 1e-6, "tree": 1e-6, "peers": 7e-6, "exchange": 1e-6, "bus": 70e-6}
    assert {n: apart[n] for n in want} == pytest.approx(want)
    coefficients = {"call": 2.0, "ring": 0.5, "bus": 1.25}
    calls = _calls("all_reduce", 8, 8e6)
    assert base(calls, fabric, coefficients) == pytest.approx(2e-6 + 7e-6 + 175e-6)
    assert balance(calls, fabric, coefficients) == pytest.approx(np.log2(175.0 / 9.0))


@pytest.fixture(scope="module")
def rows():
    if not TABLE.exists():
        pytest.skip(f"no measured table {TABLE.name} in ../shared")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return operator_rows(import_files([str(TABLE)]), "collective", H200)


def _times(model: CollectiveModel, **fields):
    sizes = 2.0 ** np.arange(6.0, 34.0, 0.37)
    op = Collective.of_columns({"bytes": sizes, "algorithm": "auto", **fields}, len(sizes))[0]
    assert op is not None
    return model.predict(op, known(op, len(sizes), H200), H200, 0.9)


def test_no_curve_falls_and_it_is_saved(rows, tmp_path):
    model = fit_collective(rows, H200, "test")
    for kind in ("all_reduce", "all_gather", "all_to_all"):
        for gpus, near in ((2, 2), (6, 6), (8, 8), (16, 8)):
            fields = {"kind": kind, "gpus": gpus, "gpus_per_node": near, "dtype": "bf16"}
            time, low, high, place = _times(model, **fields)
            assert (np.diff(time) >= -1e-12).all() and (low <= time).all() and (time <= high).all()
            assert (place[:2] == 2).all()  # smaller than any measured
    model.save(tmp_path)
    again = load_operator(tmp_path)
    fields = {"kind": "all_reduce", "gpus": 8, "gpus_per_node": 8, "dtype": "bf16"}
    assert again.knows(Collective(kind="all_reduce", bytes=1e6, dtype="bf16"))
    for one, other in zip(_times(model, **fields), _times(again, **fields), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)  # intervals are rounded


def test_counts_never_measured(rows):
    held = held_out(rows, "collective", H200, split="unseen_structure", folds=5)
    error = np.abs(held["time_s"] / held["truth_s"] - 1.0)
    inside = (held["time_low_s"] <= held["truth_s"]) & (held["truth_s"] <= held["time_high_s"])
    assert error.mean() < 0.07 and 0.85 < inside.mean() < 0.96  # trees on raw counts: 0.069, 0.80


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_engines_own_all_reduces_never_leave_their_node(dtype):
    near, far = (
        predict_table({
            "op": ["collective"], "kind": ["all_reduce"], "bytes": [14336], "gpus": [gpus],
            "gpus_per_node": [8], "dtype": [dtype], "hardware": ["h100_sxm"],
            "collection": ["vllm"],
        }) for gpus in (8, 16)
    )  # fmt: skip
    assert near["time_s"][0] < 10e-6  # vLLM's own kernel on mapped memory
    # NCCL's: a message to the other node and one back, 5 us each, are the least
    assert far["status"][0] == "ok" and far["time_s"][0] > near["time_s"][0] + 10e-6


@pytest.mark.parametrize(("device", "gpus"), [("h200_sxm", 16), ("gb200", 72)])
def test_no_time_falls_with_bytes_on_more_devices_than_were_measured(device, gpus):
    sizes = 2.0 ** np.arange(10.0, 30.0, 0.5)
    table = {
        "op": ["collective"], "kind": ["all_reduce"], "gpus": [gpus], "gpus_per_node": [gpus],
        "dtype": ["bf16"], "hardware": [device], "collection": ["nccl"],
    }  # fmt: skip
    found = predict_table({n: v * len(sizes) for n, v in table.items()} | {"bytes": sizes})
    assert (np.diff(found["time_s"]) >= -1e-12).all()


def test_on_a_device_that_nobody_measured_a_row_is_the_same_alone_and_beside_a_far_one():
    def times(*gpus):
        table = {"op": "collective", "kind": "all_reduce", "bytes": 14336, "gpus_per_node": 8,
                 "dtype": "bf16", "hardware": "h100_nvl"}  # fmt: skip
        rows = {n: [v] * len(gpus) for n, v in table.items()} | {"gpus": list(gpus)}
        return predict_table(rows)["time_s"]

    assert times(8, 16) == pytest.approx([times(8)[0], times(16)[0]], rel=1e-9)


def test_a_model_of_a_form_that_is_not_known_is_refused_by_name(tmp_path):
    (tmp_path / "card.json").write_text('{"card_version": 1, "form": "later"}')
    with pytest.raises(SpecError, match="later"):
        load_operator(tmp_path)
