"""The study: its floor, splits, conclusions and pages, on rows whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgecast.accuracy.conclusions import conclude, ranking, repeat_floor
from ridgecast.accuracy.study import StudyOptions, run_study
from ridgecast.accuracy.study_sweep import study_points
from ridgecast.cli.app import app
from ridgecast.errors import NoDataError
from ridgecast.predict.sweep_features import device_of
from ridgecast.store import read_table, write_table

pytest.importorskip("sklearn", reason="needs scikit-learn (pip install 'ridgecast[study]')")
TILES = (1, 2, 4, 8, 16, 32)
GPPERF = Path(__file__).resolve().parents[2] / "shared" / "data" / "gpperf"


def sweep(shapes=24, repeats=3, noise=0.02, power=False, seed=0):
    """Rows of a device whose time is 2 us + multiply-adds / (1e9 * tile) + bytes / 1e10."""
    rng = np.random.default_rng(seed)
    sizes = np.unique(16 * rng.integers(1, 17, (shapes, 3)), axis=0)
    rows = [(*size, tile, r) for r in range(repeats) for size in sizes for tile in TILES]
    m, n, k, tile, repeat = (np.array(c, np.int64) for c in zip(*rows, strict=True))
    true = 2e-6 + 1.0 * m * n * k / (1e9 * tile) + 4.0 * (m * k + k * n + m * n) / 1e10
    time = true * np.exp(rng.normal(0, noise, len(m)))
    table = {
        "kernel": np.full(len(m), "tiled", object), "hardware": np.full(len(m), "", object),
        "dtype": np.full(len(m), "fp32", object), "m": m, "n": n, "k": k, "tile": tile,
        "repeat": repeat, "time_s": time, "valid": np.ones(len(m), bool),
        "status": np.full(len(m), "ok", object),
    }  # fmt: skip
    if power:
        watts = 20.0 + 3.0 * tile
        table |= {"power_w": watts, "power_valid": np.ones(len(m), bool), "energy_j": watts * time}
    return table


def test_floor_of_two_half_labels_by_hand():
    table = {name: np.array([8] * 5) for name in "mnk"}
    table |= {"m": np.array([8, 8, 8, 8, 16]), "time_s": np.array([1.0, 1.2, 1.0, 1.4, 9.0])}
    found = repeat_floor(table)
    # halves (1.0, 1.0) and (1.2, 1.4): medians 1.0 and 1.3; the fifth row was not repeated
    assert (found["points"], found["pairs"], found["mean"]) == (1, 3, 0.3)
    assert found["single"] == pytest.approx((0.2 + 1 / 6 + 0.4) / 3, abs=1e-5)
    alone = {name: column[4:] for name, column in table.items()}
    assert repeat_floor(alone)["mean"] is None


def test_conclusions_by_hand():
    time = np.array([8.0, 4.0, 2.0, 1.0, 1.02, 1.5])
    table = {name: np.full(6, 64) for name in "mnk"} | {"tile": np.array(TILES), "time_s": time}
    table |= {"energy_j": time * np.array([1, 1, 1, 3, 2, 2.0]), "power_w": np.full(6, 30.0)}
    device = device_of(None, "fp32", 1e12)
    said = conclude(table, {"mean": 0.03}, device)
    shape = said["shapes"][0]
    assert (shape["best"], shape["worst"], shape["tie"]) == ("tile 8", "tile 1", True)
    assert (shape["gain_over_worst"], shape["gain_over_default"]) == (8.0, 1.02)
    # the fastest takes 3 J, tile 4 and tile 16 about 2 J: the first of the cheapest is tile 4
    assert (shape["cheapest"], shape["fastest_is_cheapest"]) == ("tile 4", False)
    assert conclude(table, {"mean": 0.01}, device)["shapes"][0]["tie"] is False


def test_ranking_counts_what_a_pick_costs():
    table = {name: np.full(3, 64) for name in "mnk"} | {"tile": np.array([4, 8, 16])}
    table["time_s"] = np.array([1.0, 1.1, 2.0])
    good, bad = ranking(table, np.array([1.0, 2.0, 3.0])), ranking(table, np.array([3.0, 1.0, 2.0]))
    assert (good["within"], good["mean_loss"]) == (1.0, 0.0)
    assert (bad["within"], bad["mean_loss"]) == (0.0, pytest.approx(0.1))


@pytest.fixture(scope="module")
def result():
    return run_study(sweep(power=True), options=StudyOptions(repeats=1))


def score_of(result, split, model, target="time"):
    rows = [
        s for s in result.scores if (s["split"], s["model"], s["target"]) == (split, model, target)
    ]
    return rows[0]


def test_no_split_but_raw_random_leaks_and_ours_is_the_best(result):
    for split in ("random", "unseen_shape", "off_grid", "frontier"):
        ours, original = (score_of(result, split, m) for m in ("ridgecast", "original"))
        assert ours["leak"] == 0.0
        assert ours["mape"] < 0.06 < original["mape"], split
        assert ours["floor"] == result.floor["mean"]
    assert 0.005 < result.floor["mean"] < 0.05  # 2 % noise, halves of one and two repeats
    raw = run_study(
        sweep(), options=StudyOptions(repeats=1, models=("original",), splits=("random",),
                                      raw_random=True),
    )  # fmt: skip
    assert score_of(raw, "random", "original")["leak"] > 0.8


def test_power_and_energy_are_learned_where_they_were_measured(result):
    assert score_of(result, "unseen_shape", "ridgecast", "power")["mape"] < 0.02
    assert score_of(result, "unseen_shape", "ridgecast", "energy")["mape"] < 0.06
    none = run_study(
        sweep(shapes=8, repeats=1), no_power="no meter here",
        options=StudyOptions(repeats=1, models=("ridgecast",), splits=("unseen_shape",)),
    )  # fmt: skip
    found = score_of(none, "unseen_shape", "ridgecast", "energy")
    assert (found["status"], found["reason"], found.get("mape")) == (
        "no_data",
        "no meter here",
        None,
    )


def test_rows_that_broke_a_rule_are_not_learned_from():
    table = sweep(shapes=4, repeats=1)
    with pytest.raises(NoDataError, match="no row has a valid time"):
        run_study({**table, "valid": np.zeros(len(table["m"]), bool)})


def test_points_of_a_study_are_distinct_and_cover_every_tile():
    points = study_points("cpu", "quick", energy=False)
    assert len({p.key for p in points}) == len(points)
    assert {p.config["tile"] for p in points} == set(TILES)
    assert replace(points[0], repeat=1).key != points[0].key


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attrs):
        self.loads += [
            v for k, v in attrs if k in ("src", "srcset") or (k, tag) == ("href", "link")
        ]


def test_command_writes_a_page_that_stands_alone_with_its_data(tmp_path):
    pytest.importorskip("matplotlib")
    write_table(tmp_path / "rows.parquet", sweep(shapes=10))
    done = CliRunner().invoke(
        app, ["study", "--quick", "--data", str(tmp_path / "rows.parquet"),
              "--out", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert {s["split"] for s in said["scores"]} >= {"random", "unseen_shape", "unseen_config"}
    assert said["conclusions"]["shapes"] and said["floor"]["mean"] > 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    seen = Links()
    seen.feed(page)
    view = json.loads((tmp_path / "out" / "data" / "view.json").read_text(encoding="utf-8"))
    figures = [b for b in view["blocks"] if b["kind"] == "figure"]
    assert seen.loads == [] and page.count('data-figure="') == len(figures) == 9
    scores = next(b for b in view["blocks"] if b.get("name") == "splits")
    texts = [c["heading"] for c in scores["columns"]]
    mape = scores["cells"][0][texts.index("mean error")]
    assert mape == f"{100 * said['scores'][0]['mape']:.1f} %" and mape in page
    assert view["answer"]["floor"] == said["floor"] and view["view"] == "study"
    assert len(read_table(tmp_path / "out" / "data" / "rows.parquet")["m"]) == len(
        sweep(shapes=10)["m"]
    )
    assert (
        json.loads((tmp_path / "out" / "data" / "study.json").read_text())["points"]
        == said["points"]
    )


def test_command_refuses_what_it_does_not_know():
    done = CliRunner().invoke(app, ["study", "--replay", "gperf"])
    assert done.exit_code == 2 and "gpperf" in done.stderr
    done = CliRunner().invoke(app, ["study", "--provider", "replay"])
    assert done.exit_code == 2 and "--data" in done.stderr


@pytest.mark.skipif(not GPPERF.is_dir(), reason="no measured data beside the checkout")
@pytest.mark.heavy
def test_published_rows_reproduce_the_published_figures_and_show_the_leak(tmp_path):
    done = CliRunner().invoke(
        app, ["study", "--quick", "--replay", "gpperf", "--data", str(GPPERF),
              "--out", str(tmp_path), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    leak = [s["leak"] for s in said["scores"] if s["split"] == "random" and s.get("leak")]
    assert leak and min(leak) > 0.9
