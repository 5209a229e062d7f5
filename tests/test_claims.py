"""Published claims: the ledger, the rules of verdicts on made-up figures, recipes, the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgecast.claims import Finding, NotModelled, Property, check, check_all, evaluate, work, works
from ridgecast.claims.evaluate import FAILED, judge, recipe_of
from ridgecast.claims.ledger import Figure, Work
from ridgecast.claims.recipes import RECIPES
from ridgecast.claims.recipes.kit import gemm_work, reached, seconds, time_of, work_of
from ridgecast.claims.verdict import VERDICTS, verdict_of_figure, verdict_of_work
from ridgecast.cli.app import app
from ridgecast.errors import NoDataError, SpecError

PAGE = Path(__file__).resolve().parents[1] / "benchmarks" / "claims_page.py"
SPEEDUP = Figure("speedup", 2.0, "x")
SMALL = Figure("speedup", 1.16, "x")
LESS = Figure("memory_reduction", 40.0, "%")
UP_TO = Figure("speedup_max", 3.0, "x")
AT_LEAST = Figure("kv_cache_compression_min", 8.0, "x")
RANGE = Figure("speedup", (1.9, 38.8), "x")
AMOUNT = Figure("model_size", 810.0, "GB")
LIMIT = Figure("latency_max", 40.0, "ms")


def test_the_ledger_is_whole():
    found = works()
    assert len(found) == len({entry.id for entry in found}) == 346
    assert [sum(e.fit == f for e in found) for f in ("core", "catalog", "weak", "out")] == [
        236, 66, 22, 22,
    ]  # fmt: skip
    # all 786 figures but the two that come from mock benchmarks
    assert sum(len(entry.claims) for entry in found) == 784
    assert not work("turbomem").claims and "mock" in work("turbomem").caution
    assert [f.value for f in work("flops-to-footprints").claims if f.caution] == [93.0]
    assert [f.value for f in work("ngpc").claims if f.caution] == [58.0, 39.0]
    assert all(entry.shows and entry.mechanism and entry.title for entry in found)


def test_an_unknown_work_names_the_nearest():
    with pytest.raises(SpecError, match="flashattention, "):
        work("flash-atention")


@pytest.mark.parametrize(
    ("figure", "recomputed", "verdict"),
    [
        (SPEEDUP, 2.2, "reproduced"),  # within 15 %
        (SPEEDUP, 2.4, "direction only"),
        (SPEEDUP, 0.9, "contradicted"),
        (SPEEDUP, (1.0, 1.001), "contradicted"),  # no gain worth the name
        (SPEEDUP, (1.0, 4.0), "reproduced"),  # reached inside the range
        (SPEEDUP, (0.5, 1.5), "direction only"),
        (SPEEDUP, (2.2, 9.0), "reproduced"),
        (SPEEDUP, (2.5, 9.0), "direction only"),
        (SMALL, 1.06, "direction only"),  # within 15 %, but less than half of the gain
        (SMALL, 1.10, "reproduced"),
        (LESS, 36.0, "reproduced"),
        (LESS, 5.0, "direction only"),
        (LESS, -5.0, "contradicted"),
        (UP_TO, (1.1, 2.7), "reproduced"),
        (UP_TO, (1.1, 12.0), "reproduced"),  # reached on the way
        (UP_TO, (1.1, 50.0), "direction only"),  # so wide that it would hold anything
        (SPEEDUP, (0.5, 9.0), "direction only"),  # so it is here
        (UP_TO, (4.0, 50.0), "direction only"),  # never as small
        (UP_TO, (1.1, 2.0), "direction only"),
        (AT_LEAST, 9.0, "reproduced"),
        (AT_LEAST, (2.0, 9.0), "direction only"),
        (RANGE, (2.0, 37.0), "reproduced"),
        (RANGE, (2.0, 12.0), "direction only"),
        (RANGE, 12.0, "reproduced"),
        (AMOUNT, 800.0, "reproduced"),
        (AMOUNT, 400.0, "contradicted"),  # an amount has no direction
    ],
)
def test_verdicts_of_figures(figure, recomputed, verdict):
    found = Finding(0, recomputed, at="here", note="because")
    assert verdict_of_figure(figure, found) == verdict


def test_a_ceiling_is_kept_not_reached():
    assert verdict_of_figure(LIMIT, Finding(0, 12.0, at="here", ceiling=True)) == "reproduced"
    late = Finding(0, 60.0, at="here", ceiling=True, note="slower")
    assert verdict_of_figure(LIMIT, late) == "contradicted"


def test_contradictions_need_a_reason_and_tolerances_end_at_30_percent():
    with pytest.raises(SpecError, match="without a note"):
        verdict_of_figure(SPEEDUP, Finding(0, 0.9, at="here"))
    with pytest.raises(SpecError, match=r"tolerance 0\.5"):
        Finding(0, 1.0, at="here", tolerance=0.5)
    with pytest.raises(SpecError, match="finite"):
        Finding(0, float("nan"), at="here")


def test_verdicts_of_works():
    yes, way, no, none = VERDICTS
    assert verdict_of_work([yes, way, none]) == yes
    assert verdict_of_work([yes, way, way]) == way
    assert verdict_of_work([yes, yes, no]) == way  # contradicted in part
    assert verdict_of_work([yes, way, no]) == no
    assert verdict_of_work([none, none]) == verdict_of_work([]) == none


def made_up(*claims: Figure) -> Work:
    return Work("made-up", "Made up", "kernel", "gemm", "core", (), "m", "s", claims)


def test_properties_decide_where_there_are_no_figures():
    holds, fails = Property("order", True, "a < b"), Property("order", False, "a > b")
    assert judge(made_up(), [holds]).verdict == "reproduced"
    failed = judge(made_up(), [fails])
    assert failed.verdict == "contradicted" and "a > b" in failed.why
    both = judge(made_up(SPEEDUP), [Finding("speedup", 2.0, at="here"), fails])
    assert both.verdict == "reproduced" and len(both.figures) == 2
    assert judge(made_up(SPEEDUP), []).verdict == "not modelled"


def test_figures_are_named_once():
    two = made_up(SPEEDUP, SPEEDUP)
    with pytest.raises(SpecError, match="several"):
        judge(two, [Finding("speedup", 2.0, at="here")])
    with pytest.raises(SpecError, match="twice"):
        judge(two, [Finding(0, 2.0, at="here"), NotModelled(0, "why")])
    with pytest.raises(SpecError, match="need 0 to 1"):
        judge(two, [Finding(2, 2.0, at="here")])


def test_a_recipe_that_refuses_stops_no_other(monkeypatch):
    def refuses():
        raise NoDataError("no such table; import it first")

    monkeypatch.setattr(evaluate, "RECIPES", {"kivi": "kit:none", "marlin": "kit:none"})
    monkeypatch.setattr(evaluate, "recipe_of", lambda name: refuses)
    first, second = check_all(["kivi", "vbench"])
    assert first.verdict == second.verdict == "not modelled"
    assert "import it first" in first.why and second.why == "no resource content"
    monkeypatch.setattr(evaluate, "recipe_of", lambda name: lambda: 1 / 0)
    (broken,) = check_all(["kivi"])
    assert broken.verdict == "not modelled" and broken.why.startswith(FAILED)


@pytest.fixture(scope="module")
def checked():
    return {name: check(name) for name in RECIPES}


def test_sweeps_equal_single_points():
    sides = [1, 16, 256]
    swept = seconds("low_bit_gemm", "a100_sxm", m=np.array(sides), n=4096, k=4096, weight_bits=4.0)
    single = [seconds("low_bit_gemm", "a100_sxm", m=m, n=4096, k=4096, weight_bits=4.0)
              for m in sides]  # fmt: skip
    assert np.allclose(swept, np.array(single).ravel())
    # a 4096 x 4096 product of one row in fp16: 33.6 MB at 2.039 TB/s, and a launch of 2.477 us
    one = float(time_of(gemm_work(1, 4096, 4096), "a100_sxm"))
    assert one == pytest.approx(33.57e6 / 2.039e12 + 2.477e-6, rel=1e-3)
    with pytest.raises(SpecError, match="multiple of kv_heads"):
        work_of("attention", q_len=1, kv_len=np.array([8, 16]), q_heads=3, kv_heads=2)
    assert reached([1.0, 2.0, 4.0], 2.2, "abc") == "2 at b"


def test_every_recipe_belongs_to_a_work_and_loads():
    for name in RECIPES:
        assert work(name).id == name and callable(recipe_of(name))


def test_every_recipe_answers(checked):
    for name, found in checked.items():
        if found.verdict == "not modelled":
            assert found.why and not found.why.startswith(FAILED), name
        for line in found.figures:
            assert line.verdict in VERDICTS
            assert line.verdict == "not modelled" or line.at, (name, line.metric)
            assert line.verdict != "contradicted" or line.why, (name, line.metric)
        assert "without a note" not in found.why, (name, found.why)


def test_the_page_has_an_entry_for_each_recipe(checked):
    spec = importlib.util.spec_from_file_location("claims_page", PAGE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims_page"] = module
    spec.loader.exec_module(module)
    rest = [judge_nothing(e) for e in works() if e.id not in checked]
    text = module.page([*checked.values(), *rest])
    for name, found in checked.items():
        mark = f"| {name} |" if found.verdict == "not modelled" else f"### {name}\n"
        assert mark in text, name
    assert "| turbomem |" in text


def judge_nothing(entry):
    return evaluate._not_modelled(entry, "no recipe")


def test_command_line():
    run = CliRunner().invoke(app, ["claims", "vbench", "--json"])
    (row,) = json.loads(run.stdout)
    assert {"id", "verdict", "published", "recomputed"} <= set(row)
    assert row["verdict"] == "not modelled" and row["published"] is None
    wrong = CliRunner().invoke(app, ["claims", "--verdict", "reproduce", "--domain", "gemm"])
    assert wrong.exit_code == 2 and "reproduced" in wrong.output
    lost = CliRunner().invoke(app, ["claims", "kiwi"])
    assert lost.exit_code == 2 and "kivi" in lost.output
