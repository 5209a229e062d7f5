"""Accuracy: scores and floors by hand, published cards, nothing fitted called held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgecast.accuracy import AccuracyReport, consensus_score, floor_of, run
from ridgecast.accuracy.recompute import held_out, points_of, score_splits
from ridgecast.accuracy.report import COLUMNS, row
from ridgecast.errors import NoDataError, SpecError
from ridgecast.hardware import get
from ridgecast.kernels.bound import bound
from ridgecast.predict import time_model, utilisation
from ridgecast.predict.device_physics import START
from ridgecast.predict.mlp import MlpOptions
from ridgecast.predict.scores import derating, score, score_columns
from ridgecast.predict.train import train
from ridgecast.predict.utilisation import FitOptions
from ridgecast.store import canonical, import_files, make_split, read_table, select
from ridgecast.store import write_measurements as write

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
FIT_PHYSICS, FEW_ROWS = time_model.fit_physics, utilisation.FEW_ROWS
SMALL = FitOptions(trees=8, leaves=15, network=MlpOptions(hidden=(8,), epochs=1))


def measurements(rows=240, device="h200_sxm", seed=0):
    """Measurements with a known law: the roofline at 60 %, 2 us of launch and 2 % of noise."""
    rng = np.random.default_rng(seed)
    m, n, k = (2.0 ** rng.integers(6, 13, rows) for _ in range(3))
    best = bound(m, n, k, dtype="bf16", hardware=get(device), cache="cold")
    time = (best / 0.6 + 2e-6) * np.exp(rng.normal(0, 0.02, rows))
    return canonical(
        rows, op="gemm", hardware=device, dtype="bf16", m=m, n=n, k=k, layout="tn",
        kernel="library", time_s=time, cache="hot", launch="graph",
        collection=f"made/up-1/{device}", licence="none",
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_fits():
    """Fits in a fraction of a second: physical constants as they start, trees and a tiny network.

    What is tested here is what is trained on and scored, not how well.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_model, "fit_physics", lambda *_: START.copy())
        patch.setattr(utilisation, "FEW_ROWS", 0)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick_fits):
    """A model folder, and the table it was trained on."""
    folder = tmp_path_factory.mktemp("accuracy")
    table = points_of(measurements())[0][0].table
    write(folder / "raw.parquet", table)
    train([folder / "raw.parquet"], folder / "model", jobs=1, options=SMALL)
    return folder / "model", table


# -------------------------------------------------------------------------------- scores


def test_score_by_hand():
    truth, predicted = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.1, 2.0, 3.0, 16.0])
    found = score(truth, predicted, truth * 0.9, truth * [0.95, 1.1, 1.1, 1.1])
    assert found["mape"] == pytest.approx((0.1 + 0 + 0.25 + 1) / 4)
    assert found["median"] == pytest.approx(0.175)
    assert found["worst"] == [1.0, 0.25, 0.1, 0.0]
    assert found["coverage"] == 0.75
    logs = np.log([1.1, 1.0, 0.75, 2.0])
    spread = np.log(truth) - np.log(truth).mean()
    assert found["r2_log"] == pytest.approx(1 - (logs**2).sum() / (spread**2).sum(), abs=1e-5)


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=20), st.floats(0.05, 20.0))
def test_no_factor_derates_a_roofline_better(ratios, other):
    truth = np.array(ratios)
    roofline = np.ones(len(truth))

    def mape(factor):
        return np.abs(factor * roofline / truth - 1).mean()

    assert mape(derating(truth, roofline)) <= mape(other) + 1e-9


def test_buckets_carry_their_own_scores_and_baselines():
    time = np.concatenate([np.full(150, 1e-6), np.full(20, 50e-6)])
    held = {"truth_s": time, "time_s": time * 1.1, "roofline_s": time / 2, "derated_s": time}
    held |= {"time_low_s": time, "time_high_s": time * 1.2}
    found = score_columns(held)
    assert found["roofline_mape"] == 0.5 and found["derated_mape"] == 0.0
    assert found["buckets"]["<5us"]["coverage"] == 1.0
    assert found["buckets"]["<5us"]["mape"] == pytest.approx(0.1)
    assert found["buckets"]["20-200us"] == {"rows": 20}, "too few rows to publish"


# -------------------------------------------------------------------------------- the floor


def test_floor_is_looked_up_and_weighted_by_rows():
    small, large = floor_of("h200_sxm", "bf16", "<20us"), floor_of("h200_sxm", "bf16", ">200us")
    assert small == floor_of("h200_sxm", "bf16", "5-20us") == 0.0431
    assert large == 0.0622
    mixed = floor_of("h200_sxm", "bf16", {"<5us": 1, "5-20us": 1, ">200us": 2})
    assert mixed == pytest.approx((0.0431 + 0.0622) / 2)
    assert floor_of("h200_sxm", "fp8") is None and floor_of("rtx_3090", "bf16") is None
    with pytest.raises(SpecError, match=r"nearest.*closest_pair"):
        floor_of("h200_sxm", "bf16", kind="closest")
    with pytest.raises(SpecError, match="<20us"):
        floor_of("h200_sxm", "bf16", "<20 us")


def test_consensus_score_divides_by_the_floor_of_its_buckets():
    truth = np.array([10e-6, 10e-6, 1e-3])
    floor = (2 * 0.0421 + 0.0615) / 3
    found = consensus_score(truth, truth * 1.05, "h200_sxm")
    assert found["floor"] == pytest.approx(floor)
    assert found["error_over_floor"] == pytest.approx(0.05 / floor)
    assert consensus_score(truth, truth, "rtx_3090")["error_over_floor"] is None


@pytest.mark.skipif(not DATA.is_dir(), reason="no measured data beside the checkout")
def test_floors_are_those_of_the_source():
    table = read_table(DATA / "gemm_consensus" / "bf16_floor_by_device.parquet")
    names = {
        "same framework, different version": "same_framework",
        "different framework": "other_framework",
        "one source vs median of the others": "one_vs_rest",
        "closest pair of sources": "closest_pair",
    }
    for i in range(len(table["system"])):
        device, bucket = get(str(table["system"][i])).name, str(table["bucket"][i])
        for measure in ("mean", "median", "p90"):
            found = floor_of(
                device, "bf16", bucket, kind=names[table["tier"][i]], measure=measure
            )  # fmt: skip
            assert found == pytest.approx(table[measure][i] / 100, abs=5.1e-5)


# -------------------------------------------------------------------------------- published


def test_published_rows_come_from_the_cards(trained):
    model, table = trained
    report = run(model)
    assert all(tuple(r) == COLUMNS for r in report.rows)
    card = json.loads((model / "card.json").read_text())
    scores = card["models"][0]["scores"]["unseen_shape"]
    (found,) = [r for r in report.rows if r["split"] == "unseen_shape" and r["bucket"] == "all"]
    assert found["mape"] == scores["mape"] and found["rows"] == len(table["m"])
    assert found["roofline_mape"] == scores["roofline_mape"] > found["derated_mape"]
    assert found["floor"] is not None and found["error_over_floor"] > 0
    json.dumps(report.to_dict(), allow_nan=False)


def test_shipped_cards_have_power_with_its_floor_and_configurations():
    rows = run().rows
    power = [r for r in rows if r["target"] == "power"]
    assert power and all(r["floor_median"] == 0.27 and "63" in r["reason"] for r in power)
    assert any(r["target"] == "energy" and r["coverage"] for r in rows)
    assert any(r["target"] == "time_config" and r["split"] == "unseen_config" for r in rows)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(SpecError, match="card"):
        run(tmp_path)
    with pytest.raises(SpecError, match="not a folder"):
        run(tmp_path / "none")


def test_report_is_written_whole_and_reads_as_a_table(trained, tmp_path):
    report = run(trained[0], out=tmp_path / "made" / "here")
    written = sorted(p.name for p in (tmp_path / "made" / "here").iterdir())
    assert written == ["accuracy.json", "accuracy.md"]
    text = report.to_markdown(compact=True)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "MAPE" in lines[0] and lines[2].split()[1:6:2] == ["h200_sxm", "bf16", "up-1"]
    assert len({line.count("|") for line in lines}) == len({len(line) for line in lines}) == 1
    easy = [line.split("|")[4].strip() for line in lines[2:]]
    assert easy == ["random", "unseen_shape", "off_grid", "frontier"]


def test_a_row_has_known_columns_only():
    with pytest.raises(TypeError, match="mappe"):
        row({}, target="time", hardware="h200_sxm", dtype="bf16", mappe=1.0)
    empty = AccuracyReport((), {})
    assert empty.to_markdown().strip() == "" and empty.compact() == []


# -------------------------------------------------------------------------------- a given model


def test_rows_that_trained_the_model_are_never_held_out(trained, tmp_path):
    model, table = trained
    write(tmp_path / "same.parquet", table)
    (only,) = run(model, tmp_path / "same.parquet").rows
    assert only["status"] == "no_score" and only["mape"] is None
    assert f"{len(table['m'])} of {len(table['m'])} points were trained on" in only["reason"]

    fresh = measurements(rows=300, seed=1)
    fresh["m"] = fresh["m"] + 1  # no point in common, every m new
    write(tmp_path / "mixed.parquet", {k: np.concatenate([v, fresh[k]]) for k, v in table.items()})
    report = run(model, [tmp_path / "mixed.parquet"])
    total = report.rows[0]
    assert total["split"] == "held_out" and total["rows"] == len(points_of(fresh)[0][0].time)
    assert f"{len(table['m'])} of" in total["reason"]
    parts = [r for r in report.rows if r["bucket"] == "all" and r["split"] != "held_out"]
    assert sum(r["rows"] for r in parts) == total["rows"]


def test_a_folder_without_points_gives_unknown_pairs_only(trained, tmp_path):
    table = trained[1]
    bare = tmp_path / "bare"
    write(tmp_path / "raw.parquet", table)
    train([tmp_path / "raw.parquet"], bare, jobs=1, options=SMALL, keep_points=False)
    fresh = measurements(rows=100, seed=2)
    fresh["m"], fresh["n"] = np.full(100, 96.0), np.repeat([512.0, 640.0], 50)
    write(tmp_path / "fresh.parquet", fresh)
    total = run(bare, tmp_path / "fresh.parquet").rows[0]
    points = points_of(fresh)[0][0].table
    known = set(zip(table["n"].tolist(), table["k"].tolist(), strict=True))
    new = [pair not in known for pair in zip(points["n"], points["k"], strict=True)]
    assert total["rows"] == sum(new) and "does not keep its points" in total["reason"]


def test_data_without_a_usable_row_is_refused(trained, tmp_path):
    table = measurements(rows=30)
    table["valid"] = np.zeros(30, dtype=bool)
    write(tmp_path / "bad.parquet", table)
    with pytest.raises(NoDataError, match="30 rows are marked as not valid"):
        run(trained[0], tmp_path / "bad.parquet")


# -------------------------------------------------------------------------------- splits


def test_repeats_of_a_point_become_one_point():
    table = measurements(rows=40)
    twice = {key: np.concatenate([v, v]) for key, v in table.items()}
    twice["time_s"][40:] *= 3.0
    (points,), notes = points_of(twice)
    (single,), _ = points_of(table)
    assert len(points.time) == len(single.time) and not notes
    assert points.time.sum() == pytest.approx(2.0 * single.time.sum(), rel=0.2)


def test_splits_are_trained_and_scored_end_to_end():
    rows, notes = score_splits(measurements(), ["unseen_shape", "frontier"], options=SMALL)
    whole = [r for r in rows if r["bucket"] == "all"]
    assert [r["split"] for r in whole] == ["unseen_shape", "frontier"] and not notes
    for r in whole:
        assert r["status"] == "ok" and 0 < r["mape"] < r["roofline_mape"]
        assert r["reason"], "the split says what was held out"
    with pytest.raises(SpecError, match="unseen_shape"):
        score_splits(measurements(), ["unseen_shap"])


def test_held_out_predictions_never_meet_their_truth():
    points = points_of(measurements())[0][0]
    split = make_split("unseen_shape", points.table)
    done = held_out(points, split, options=SMALL)
    assert set(done["basis"]) <= {"learned", "transferred"}
    assert len(done["time_s"]) == split.test.sum()
    wrong = points.take(split.test).table
    wrong["time_s"] = wrong["time_s"] * 100.0  # other labels on the test rows change nothing
    table = {key: column.copy() for key, column in points.table.items()}
    table["time_s"][split.test] *= 100.0
    again = held_out(points_of(table)[0][0], split, options=SMALL)
    assert np.array_equal(done["time_s"], again["time_s"])


def test_too_few_rows_say_so_instead_of_scoring():
    rows, _ = score_splits(measurements(rows=12), ["random"], options=SMALL)
    assert rows[0]["status"] == "no_score" and "12" not in (rows[0]["mape"] or "")
    assert "need" in rows[0]["reason"]


def test_unseen_device_needs_other_devices():
    rows, _ = score_splits(measurements(), ["unseen_device"])
    assert rows[0]["status"] == "no_score" and "0 other device(s)" in rows[0]["reason"]


# -------------------------------------------------------------------------------- real data

THRESHOLDS = ROOT / "benchmarks" / "thresholds.json"


def test_thresholds_hold_for_what_is_published():
    """The file only tightens (benchmarks/tighten.py); a shipped score above it is a regression."""
    limits = json.loads(THRESHOLDS.read_text())["published"]
    found = {key_of(r): r for r in run().rows if r["bucket"] == "all"}
    present = [limit for limit in limits if key_of(limit) in found]
    assert present
    for limit in present:
        assert found[key_of(limit)][limit["measure"]] <= limit["at_most"], limit


def key_of(r):
    return tuple(
        str(r.get(key) or "")
        for key in ("target", "op", "hardware", "dtype", "collection", "split")
    )


def subset(table, dtype, rows):
    """Rows of one format, and of these the number that benchmarks/targets.py took."""
    table = select(table, np.flatnonzero(table["dtype"] == dtype))
    order = np.random.default_rng(0).permutation(len(table["m"]))
    return select(table, np.sort(order[:rows]))


@pytest.mark.heavy
@pytest.mark.skipif(not DATA.is_dir(), reason="no measured data beside the checkout")
@pytest.mark.parametrize("limit", json.loads(THRESHOLDS.read_text())["recomputed"],
                         ids=lambda x: "-".join(str(v) for v in x.values()))  # fmt: skip
def test_thresholds_hold_on_real_data(limit, monkeypatch):
    monkeypatch.setattr(time_model, "fit_physics", FIT_PHYSICS)
    monkeypatch.setattr(utilisation, "FEW_ROWS", FEW_ROWS)
    table = subset(import_files(DATA / limit["file"]), limit["dtype"], limit["rows"])
    rows, _ = score_splits(table, [limit["split"]], train_rows=limit["train_rows"])
    (found,) = [r for r in rows if r["bucket"] == "all"]
    assert found[limit["measure"]] <= limit["at_most"]
    assert found["mape"] <= found["derated_mape"]
