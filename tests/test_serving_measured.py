"""The serving model on measured points of networks that its constants never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgecast.accuracy.serving import TRAIN_MODELS, network
from ridgecast.scenario.measured import answer_rows, rows_of
from ridgecast.store import import_files, select

DATA = Path(__file__).resolve().parents[2] / "shared/data/silicon/serving_end_to_end.csv"


@pytest.fixture(scope="module")
def points():
    if not DATA.exists():
        pytest.skip("needs the measured serving points beside the checkout (shared/data)")
    table = import_files([DATA])
    unseen = ~np.isin([network(m) for m in table["model"]], TRAIN_MODELS)
    use = np.flatnonzero(unseen & table["valid"].astype(bool) & (table["mode"] == "agg"))
    table = select(table, np.random.default_rng(0).choice(use, 160, replace=False))
    return table, answer_rows(rows_of(table))


def test_every_row_is_answered(points):
    _, found = points
    assert np.isfinite(found["tpot_s"]).all(), set(found["reason"].tolist())


@pytest.mark.parametrize("name,median,mape", [("tpot", 0.15, 0.22), ("ttft", 0.38, 0.55)])
def test_errors_and_coverage_on_networks_never_seen(points, name, median, mape):
    table, found = points
    truth = table[f"{name}_s"]
    error = np.abs(found[f"{name}_s"] / truth - 1.0)
    assert np.median(error) < median and error.mean() < mape
    inside = (truth >= found[f"{name}_low_s"]) & (truth <= found[f"{name}_high_s"])
    assert 0.8 < inside.mean() < 0.99


def test_a_row_without_a_layout_says_so(points):
    table, _ = points
    row = {k: v[:1].copy() for k, v in table.items()}
    row["tp"] = np.array([np.nan])
    assert rows_of(row) == ["its layout is not known"]
