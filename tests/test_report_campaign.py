"""Reports of measured rows: what a folder holds, what is told of it, and the study's beside it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ridgecast.errors import NoDataError, SpecError
from ridgecast.measure import Point
from ridgecast.measure.plan import Plan
from ridgecast.measure.providers import get_provider
from ridgecast.measure.providers.replay import Replay
from ridgecast.measure.shards import read_rows, table_of
from ridgecast.measure.sweep import Options, run_sweep
from ridgecast.predict import predict_table
from ridgecast.report.campaign_view import (
    MOST_ROWS,
    campaign_view,
    is_campaign,
    is_study,
    reports_in,
)
from ridgecast.store import write_table

SIDES = (256, 512, 1024, 2048)


def recorded(points, **more):
    """Rows of an H200 that takes 1.25 times what is predicted; the first fails, one is invalid."""
    shapes = {name: np.array([getattr(p, name) for p in points]) for name in "mnk"}
    words = {"op": "gemm", "hardware": "h200_sxm", "dtype": "bf16", "layout": "nn"}
    table = shapes | {k: np.full(len(points), v, object) for k, v in words.items()}
    guess = predict_table(table)["time_s"]
    rows = [
        {**p.columns(), "device": "NVIDIA H200", "hardware": "h200_sxm", "time_s": 1.25 * t,
         "time_p10_s": 1.2 * t, "time_p90_s": 1.3 * t, "elapsed_s": 0.5, "status": "ok",
         "valid": True, "reason": "", **more}
        for p, t in zip(points, guess, strict=True)
    ]  # fmt: skip
    rows[0] |= {"status": "failed", "valid": False, "reason": "boom", "time_s": None}
    rows[1] |= {"valid": False, "reason": "power changed"}
    return table_of(rows)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "replayed"
    points = [Point("library", n, n, k, dtype="bf16") for n in SIDES for k in SIDES]
    plan = Plan.of(points, name="tiny", seed=1)
    run_sweep(plan, folder, provider=Replay(recorded(points[:-2])), options=Options(budget=None))
    return folder


def test_every_point_is_counted_and_scored_beside_what_was_predicted(campaign):
    view = campaign_view(campaign)
    said = view.answer
    assert [said[n] for n in ("asked", "ok", "invalid", "failed", "refused", "waiting")] == [
        16, 12, 1, 1, 2, 0,
    ]  # fmt: skip
    assert {(r["status"], r["reason"]) for r in said["reasons"]} >= {
        ("failed", "boom"), ("invalid", "power changed"),
    }  # fmt: skip
    (score,) = said["agreement"]
    assert (score["points"], score["mape"]) == (12, pytest.approx(1 - 1 / 1.25))
    rows = view.table("results").rows
    assert all(r["time_error"] == pytest.approx(1 / 1.25 - 1) for r in rows if r["status"] == "ok")
    drawn = view.figures["predicted_measured"].panels[0].series[0]
    assert len(drawn.x) == 12 and np.allclose(drawn.y, np.asarray(drawn.x) / 1.25)
    plain = view.to_dict()
    json.dumps(plain, allow_nan=False)
    record = next(b for b in plain["blocks"] if b.get("name", "").startswith("environment"))
    assert ["must agree: device: name", "NVIDIA H200"] in record["cells"]


def test_a_run_on_this_machine_shows_without_predictions_and_says_what_waits(tmp_path):
    points = [Point("library", n, n, n) for n in (8, 16)]
    plan = Plan.of([*points, Point("tiled", 8, 8, 8, config={"tile": 4})], seed=1)
    folder = tmp_path / "out" / "blas"  # as a campaign's script: one folder a provider
    run_sweep(plan, folder, provider=get_provider("blas"))
    order = json.loads((folder / "order.json").read_text())
    (folder / "order.json").write_text(json.dumps({"points": [*order["points"], "not yet"]}))
    (tmp_path / "out" / "skipped.json").write_text('["cuda: no device"]')
    view = campaign_view(tmp_path / "out")
    assert (view.answer["asked"], view.answer["refused"], view.answer["waiting"]) == (4, 1, 1)
    assert view.answer["skipped"] == ["cuda: no device"]
    assert view.figures["predicted_measured"].reason.startswith("no prediction: ")
    assert len(view.figures["rate_by_size"].panels[0].series[0].x) == 2


def test_collected_tables_are_a_campaign_and_many_rows_are_thinned(tmp_path, campaign):
    table = read_rows(campaign)
    many = {name: np.tile(column, 60) for name, column in table.items()}
    many["point"] = np.array([f"p{i}" for i in range(len(many["point"]))], object)
    write_table(tmp_path / "c_library.parquet", many)
    assert not is_campaign(tmp_path)  # any table: nothing says that it was measured
    for path in campaign.glob("environment-*.json"):
        (tmp_path / f"c_library_{path.name}").write_bytes(path.read_bytes())
    view = campaign_view(tmp_path)
    assert (view.answer["asked"], len(view.table("results").rows)) == (960, MOST_ROWS)


def test_reports_are_found_in_a_folder_or_its_children(tmp_path, campaign):
    study = tmp_path / "study"
    (study / "data").mkdir(parents=True)
    document = {"schema_version": 1, "title": "A study", "blocks": []}
    (study / "data" / "view.json").write_text(json.dumps(document))
    (tmp_path / "other").mkdir()
    assert is_study(study) and not is_campaign(study)
    found = reports_in([tmp_path, campaign.parent, campaign])
    assert found == [("A study", "study", study), ("replayed: NVIDIA H200", "campaign", campaign)]
    (study / "data" / "view.json").write_text("torn")
    assert reports_in([study])[0].title == "study"
    with pytest.raises(SpecError, match="is no folder"):
        reports_in([tmp_path / "nothing"])
    with pytest.raises(NoDataError, match="no measured rows"):
        campaign_view(tmp_path / "other")
