"""The accuracy page: kept points say what the cards say, filters keep their meaning."""

from __future__ import annotations

import json
import shlex
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgecast.accuracy import run
from ridgecast.accuracy.measured import measured_collections
from ridgecast.cli.app import app
from ridgecast.errors import SpecError
from ridgecast.hardware import get
from ridgecast.kernels.bound import bound
from ridgecast.predict import time_model, utilisation
from ridgecast.predict.bundle import SHIPPED
from ridgecast.predict.device_physics import START
from ridgecast.predict.mlp import MlpOptions
from ridgecast.predict.parity import FILE, MOST, agrees, parity_of, sample
from ridgecast.predict.train import train
from ridgecast.predict.utilisation import FitOptions
from ridgecast.report.accuracy_figures import NO_POINTS
from ridgecast.report.accuracy_view import accuracy_options, accuracy_view
from ridgecast.report.questions_accuracy import AccuracyQuestion
from ridgecast.store import canonical, write_measurements

LEAST = 60  # points, from which a sample's median is compared with its card's
SMALL = FitOptions(trees=8, leaves=15, network=MlpOptions(hidden=(8,), epochs=1))


@pytest.fixture(scope="module")
def rows():
    return [r for r in run().rows if r["bucket"] == "all" and r["status"] == "ok"]


def kept(row, model=None):
    texts = (str(row[n] or "") for n in ("hardware", "op", "dtype", "collection", "split"))
    return parity_of(row["target"], *texts, model=model)


# ------------------------------------------------------------------------------ kept points


def test_kept_points_say_what_the_cards_say(rows):
    """A sample estimates its card: median error within a factor 1.6, coverage within 4 sigma."""
    found = [(r, p) for r in rows if (p := kept(r)) and len(p.measured) >= LEAST]
    assert len({(r["target"], r["hardware"], r["dtype"], r["op"]) for r, _ in found}) >= 10
    far = []
    for row, p in found:
        truth, guess = np.array(p.measured), np.array(p.predicted)
        ratio = float(np.median(np.abs(guess / truth - 1.0))) / row["median"]
        if not 1 / 1.6 < ratio < 1.6:
            far.append((row["hardware"], row["dtype"] or row["op"], p.split, ratio))
        if row["coverage"] is not None:
            inside = np.mean((truth >= p.low) & (truth <= p.high))
            noise = np.sqrt(row["coverage"] * (1 - row["coverage"]) / len(truth))
            assert abs(inside - row["coverage"]) < 4 * noise + 0.02, (row["hardware"], p.split)
    # of hundreds of samples of 100 points a few lie outside by chance
    assert len(far) <= 0.05 * len(found), far


def test_every_shipped_score_has_points(rows):
    assert [r for r in rows if kept(r) is None] == []
    units = {r["target"]: kept(r).unit for r in rows}
    assert units["power"] == "W" and units["energy"] == "J" and units["time_operator"] == "s"


def test_recomputed_scores_agree_with_the_cards(rows):
    """What was fitted again is what ships; a few models keep an older recipe, and lie close."""
    found = [(r, p) for r in rows if (p := kept(r))]
    off = [(r, p) for r, p in found if not agrees(p.mape, r["mape"])]
    assert len(off) <= 0.08 * len(found)
    assert all(p.mape == pytest.approx(r["mape"], rel=0.05) for r, p in off)
    assert all(p.rows == r["rows"] for r, p in found if r["rows"])
    caption = accuracy_view(AccuracyQuestion()).figures["parity_time"].caption
    assert all(f"{100 * p.mape:.2f} %" in caption for r, p in off if r["target"] == "time")


def test_files_are_small_and_name_source_and_licence():
    files = list(SHIPPED.rglob(FILE))
    assert files and sum(f.stat().st_size for f in files) < 1.8e6
    for file in files:
        head = json.loads(file.read_text())
        assert head["licence"] in ("Apache-2.0", "MIT") and head["source"] and head["files"]
        for s in head["samples"]:
            (points,) = (v for key, v in s.items() if key.startswith("measured_"))
            assert 0 < len(points) <= MOST and s["split"], file


def test_a_sample_is_spread_over_measured_time():
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(-9, 2, 5000))
    found = sample({"truth_s": truth, "time_s": truth * 1.1}, split="random")
    measured = np.array(found["measured_s"])
    assert (np.diff(measured) >= 0).all() and len(measured) == MOST
    for share in (0.1, 0.5, 0.9):
        assert np.mean(measured <= np.quantile(truth, share)) == pytest.approx(share, abs=0.01)
    assert found["rows"] == 5000 and found["mape"] == 0.1 and "low_s" not in found
    assert found == sample({"truth_s": truth, "time_s": truth * 1.1}, split="random")
    few = sample({"truth_s": truth[:7], "time_s": truth[:7]}, split="random")
    assert few["measured_s"] == sorted(float(f"{t:.4g}") for t in truth[:7])


# -------------------------------------------------------------------------- a user's own model


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder trained in seconds: physics as it starts, few trees, a tiny network."""
    rng = np.random.default_rng(0)
    m, n, k = (2.0 ** rng.integers(6, 13, 240) for _ in range(3))
    best = bound(m, n, k, dtype="bf16", hardware=get("h200_sxm"), cache="cold")
    table = canonical(
        240, op="gemm", hardware="h200_sxm", dtype="bf16", m=m, n=n, k=k, layout="tn",
        kernel="library", time_s=(best / 0.6 + 2e-6) * np.exp(rng.normal(0, 0.02, 240)),
        cache="hot", launch="graph", collection="made/up-1/h200_sxm", licence="none",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("parity")
    write_measurements(folder / "raw.parquet", table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_model, "fit_physics", lambda *_: START.copy())
        patch.setattr(utilisation, "FEW_ROWS", 0)
        train([folder / "raw.parquet"], folder / "model", jobs=1, options=SMALL)
    return folder / "model"


def test_training_keeps_points_whose_scores_are_the_cards(own):
    scores = [r for r in run(model=own).rows if r["bucket"] == "all"]
    assert {r["split"] for r in scores} >= {"random", "unseen_shape", "off_grid", "frontier"}
    for row in scores:
        p = kept(row, own)
        assert (p.rows, p.mape, p.median) == (row["rows"], row["mape"], row["median"])
        assert p.coverage == row["coverage"] and len(p.low) == len(p.measured)
        assert p.source == "made/up-1/h200_sxm" and p.licence == "none"
        if p.rows <= MOST:  # the sample is all of them
            error = np.abs(np.array(p.predicted) / np.array(p.measured) - 1.0)
            assert error.mean() == pytest.approx(row["mape"], rel=0.01)
    assert kept(scores[0]) is None, "the shipped folder has no such collection"


def test_the_page_shows_a_users_own_model(own, tmp_path):
    view = accuracy_view(AccuracyQuestion(), model=own)
    assert {r["collection"] for r in view.answer["rows"]} == {"made/up-1/h200_sxm"}
    panels = view.figures["parity_time"].panels
    assert panels and not any(p.reason for p in panels)
    (line,) = view.table("collections").rows
    trained = json.loads((own / "card.json").read_text())["models"][0]
    assert (line["framework"], line["version"], line["rows"]) == ("up", "1", trained["rows"])
    copy = shutil.copytree(own, tmp_path / "model")
    (copy / trained["folder"] / FILE).write_text('{"format": 9, "samples": []}')
    with pytest.raises(SpecError, match="format 9"):
        accuracy_view(AccuracyQuestion(), model=copy)


# ------------------------------------------------------------------------------------ the page


def test_the_answer_is_the_commands_document_filtered():
    whole = json.loads(json.dumps(run().to_dict()))
    view = accuracy_view(AccuracyQuestion())
    assert view.answer["rows"] == whole["rows"] and set(view.answer) == set(whole)
    part = accuracy_view(AccuracyQuestion(hardware="H200", split="off_grid", target="time"))
    wanted = [r for r in whole["rows"] if r["target"] == "time" and r["split"] == "off_grid"
              and r["hardware"] == "h200_sxm"]  # fmt: skip
    assert wanted and part.answer["rows"] == wanted
    assert part.address == "/accuracy?target=time&hardware=h200_sxm&split=off_grid"
    scope = {}
    exec(part.python.rpartition("for r in rows")[0], scope)
    assert [dict(r) for r in scope["rows"]] == wanted
    words = shlex.split(part.command)
    done = CliRunner().invoke(app, [*words[1:], "--json"])
    assert json.loads(done.stdout)["rows"] == wanted
    two = run().only(hardware=["h200_sxm", "H100"], split="off_grid").rows
    assert {r["hardware"] for r in two} == {"h200_sxm", "h100_sxm"}


def test_filters_by_operation_take_its_kinds_and_unknown_names_are_refused():
    def ops(op):
        return {r["op"] for r in accuracy_view(AccuracyQuestion(op=op)).answer["rows"]}

    assert ops("attention") == {"attention", "attention, latent", "attention, delta"}
    assert ops("attention, latent") == {"attention, latent"} and ops("gemm") == {None}
    with pytest.raises(SpecError, match="unseen_shape"):
        accuracy_view(AccuracyQuestion(split="unseen_shapes"))
    nothing = accuracy_view(AccuracyQuestion(target="power", op="moe"))
    assert nothing.answer["rows"] == [] and not nothing.figures
    options = accuracy_options()
    assert options["scored_splits"][0] == "random" and "h200_sxm" in options["scored_devices"]


@pytest.mark.parametrize("asked", [{}, {"hardware": "b200_sxm", "dtype": "bf16"}])
def test_no_score_is_shown_without_its_split(asked):
    view = accuracy_view(AccuracyQuestion(**asked))
    splits = {r["split"] for r in view.answer["rows"]}
    for name in ("splits", "scores"):
        assert all(r["split"] in splits for r in view.table(name).rows)
    for name, figure in view.figures.items():
        for panel in figure.panels:
            if name.startswith("error_"):
                assert set(panel.x.categories) <= splits
            elif name.startswith("coverage_"):
                assert {s.name for s in panel.series if s.style != "guide"} <= splits
            else:
                assert any(panel.title.startswith(split) for split in splits)
                assert panel.reason in ("", NO_POINTS) and bool(panel.reason) != bool(panel.series)
    json.dumps(view.to_dict(), allow_nan=False)


def test_collections_are_the_cards_and_say_what_is_missing():
    card = json.loads((SHIPPED / "card.json").read_text())
    found = measured_collections()
    times = [r for r in found if r["op"] == "gemm" and r["dtype"] != "fp32"]
    assert [(r["collection"], r["rows"]) for r in times] == [
        (line["collection"], line["rows"]) for line in card["models"]
    ]
    assert {r["licence"] for r in found} == {"Apache-2.0", "MIT"}
    for row in found:
        assert row["driver"] is None and "no driver" in row["reason"]
        assert row["rows"] or "not told apart" in row["reason"]
    by_op = {r["op"] for r in found if r["hardware"] == "gb200"}
    assert "attention, latent" in by_op and "moe, w4a8" in by_op


def test_intervals_that_miss_their_point_are_drawn(tmp_path):
    """An interval of other devices' errors need not hold the prediction."""
    drawn = tmp_path / "parity.png"
    done = CliRunner().invoke(
        app, ["accuracy", "--on", "h100_sxm", "--op", "moe", "--plot", str(drawn)]
    )
    assert done.exit_code == 0, done.output
    assert drawn.read_bytes()[:4] == b"\x89PNG"
