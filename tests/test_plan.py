"""Plans: the answer keeps its limits, the cheapest is the cheapest, failures say why."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgecast.errors import InfeasibleError, SpecError, UnsupportedError
from ridgecast.scenario import Points, Scenario, Traffic, solve_points
from ridgecast.search.serving_plan import Limits, Space, evaluate_table, plan_serving

MODEL = "llama-3.1-8b"
SPACE = Space(("h100_sxm", "l40s"), dtypes=("bf16", "fp8"), tp=(1, 2), pp=(1,), batches=12,
              prices={"h100_sxm": 2.5, "l40s": 0.9})  # fmt: skip
TRAFFIC = Traffic(1024, 256, request_rate=20.0)


def test_the_best_keeps_the_limits_and_none_kept_is_cheaper():
    limits = Limits(ttft=0.5, tpot=0.02, devices=16)
    plan = plan_serving(MODEL, SPACE, TRAFFIC, limits)
    best = plan.row(plan.best)
    assert best["ttft_s"] <= 0.5 and best["tpot_s"] <= 0.02 and best["devices"] <= 16
    carried = best["replicas"] * best["output_tokens_per_s"] / TRAFFIC.osl
    assert carried >= TRAFFIC.request_rate
    kept = plan.kept
    assert best["cost_usd_per_h"] == plan.table["cost_usd_per_h"][kept].min()
    # brute force over the same table
    t = plan.table
    ok = (t["ttft_s"] <= 0.5) & (t["tpot_s"] <= 0.02) & (t["devices"] <= 16)
    assert (kept == ok).all()


def test_interpolated_batches_are_near_solved_ones():
    plan = plan_serving(MODEL, SPACE, Traffic(1024, 256))
    t = plan.table
    rows = np.flatnonzero((t["hardware"] == "h100_sxm") & (t["dtype"] == "bf16") & (t["tp"] == 1))
    s = Scenario(MODEL, "h100_sxm", 1, traffic=Traffic(1024, 256), dtype="bf16")
    exact = solve_points(s, Points.of(t["batch"][rows], 1024, 256))
    assert np.abs(t["tpot_s"][rows] / exact["tpot"] - 1.0).max() < 0.06


def test_every_rejected_option_says_why():
    plan = plan_serving("llama-3.1-70b", SPACE, TRAFFIC, Limits(tpot=0.004))
    assert plan.best is None and len(plan.front) == 0
    assert plan.rejected and all(r["reason"] for r in plan.rejected)
    assert any("does not fit" in r["reason"] for r in plan.rejected)
    assert any("tpot" in r["reason"] for r in plan.rejected)


def test_no_option_can_be():
    with pytest.raises(InfeasibleError, match="no option can be"):
        plan_serving("llama-3.1-405b", Space(("l40s",), tp=(1,), pp=(1,)), TRAFFIC)
    with pytest.raises(SpecError, match="objective"):
        plan_serving(MODEL, SPACE, TRAFFIC, objective="beauty")


def test_a_bad_option_does_not_stop_the_others():
    table = {
        "hardware": np.array(["h100_sxm", "t4"], object), "engine": np.array(["vllm"] * 2, object),
        "dtype": np.array(["bf16", "nvfp4"], object), "kv_dtype": np.array([""] * 2, object),
        "technique": np.array([""] * 2, object), "batch": np.array([4.0, 4.0]),
        **{n: np.array([1, 1]) for n in ("tp", "pp", "dp", "ep")},
    }  # fmt: skip
    out = evaluate_table(table, model=MODEL, isl=256, osl=64)
    assert out["status"].tolist() == ["ok", "no_answer"] and "nvfp4" in out["reason"][1]


def test_disaggregated_services_are_balanced_and_counted():
    space = Space(("h100_sxm",), tp=(1,), pp=(1,), batches=8, disaggregate=True)
    plan = plan_serving(MODEL, space, Traffic(4096, 128, request_rate=30.0), Limits(devices=32))
    t = plan.table
    pairs = np.array([bool(r) for r in t["reason"]]) & (t["status"] == "ok")
    assert pairs.any() and (t["devices_each"][pairs] >= 2).all()
    alone = ~pairs
    # decode never stops for a prompt: at equal batches it is at least as fast, at large ones faster
    theirs = dict(zip(t["batch"][alone].tolist(), t["tpot_s"][alone].tolist(), strict=True))
    gains = {}
    for i in np.flatnonzero(pairs):
        decode = int(t["reason"][i].split(", ")[1].split("x")[0])
        gains[t["batch"][i] / decode] = theirs[t["batch"][i] / decode] / t["tpot_s"][i]
    assert min(gains.values()) > 0.999 and gains[max(gains)] > 1.3


def test_decode_workers_are_judged_by_decode_and_share_formats_with_prefill():
    space = Space(("h100_sxm",), dtypes=("bf16", "fp8"), tp=(1,), pp=(1,), batches=8,
                  disaggregate=True)  # fmt: skip
    traffic = Traffic(4096, 128)
    t = plan_serving(MODEL, space, traffic).table
    pairs = np.array(["prefill" in r for r in t["reason"]])
    for name in space.dtypes:  # one prefill worker a format: waits of M/D/1 at 80 %, then its own
        mine = t["dtype"] == name
        alone = float(t["ttft_s"][mine & ~pairs & (t["batch"] == 1)][0])
        waits = t["ttft_s"][mine & pairs]
        cache = 2 * 32 * 8 * 128 * 4096 * 2 / 50e9
        np.testing.assert_allclose(waits, alone * (1 + 0.8 / 0.4) + cache, rtol=1e-6)
    largest = int(np.flatnonzero(~pairs)[np.argmax(t["batch"][~pairs])])
    limit = (t["decode_s"][largest] + t["tpot_s"][largest]) / 2  # only a worker apart keeps it
    plan = plan_serving(MODEL, space, traffic, Limits(tpot=float(limit), devices=32))
    kept = plan.table["batch"][plan.kept & np.array(["prefill" in r for r in plan.table["reason"]])]
    assert kept.max() >= t["batch"][largest]


def test_prefill_workers_of_another_device_cost_their_own_price():
    space = Space(("h100_sxm", "l40s"), tp=(1,), pp=(1,), batches=4, disaggregate=True,
                  prices={"h100_sxm": 4.0, "l40s": 1.0})  # fmt: skip
    t = plan_serving(MODEL, space, Traffic(2048, 128)).table
    seen = 0
    for i in np.flatnonzero(np.array(["prefill" in r for r in t["reason"]])):
        x, y = (int(part.split("x")[0]) for part in t["reason"][i].split(", "))
        ours = space.prices[t["hardware"][i]]
        theirs = space.prices[t["reason"][i].split(" on ")[1].split(",")[0]]
        assert t["cost_usd_per_h"][i] == pytest.approx(x * theirs + y * ours)
        seen += theirs != ours
    assert seen


def test_a_plan_in_processes_resumes_and_equals_the_plain_one(tmp_path):
    plain = plan_serving(MODEL, SPACE, TRAFFIC)
    first = plan_serving(MODEL, SPACE, TRAFFIC, workers=2, out=str(tmp_path))
    parts = sorted(p.name for p in tmp_path.iterdir())
    again = plan_serving(MODEL, SPACE, TRAFFIC, workers=2, out=str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == parts
    for found in (first, again):
        np.testing.assert_allclose(found.table["tpot_s"], plain.table["tpot_s"], rtol=1e-9)


def test_plan_on_the_command_line():
    from ridgecast.cli.app import app

    words = ["plan", "serve", MODEL, "--on", "h100_sxm", "--isl", "512", "--osl", "64", "--tp", "1",
             "--pp", "1", "--batches", "6"]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["best"]["hardware"] == "h100_sxm" and found["searched"] >= 6
    assert CliRunner().invoke(app, [*words, "--tpot", "1e-6"]).exit_code == 3
    assert CliRunner().invoke(app, [*words, "--tp", "x"]).exit_code == 2


def test_a_mix_is_served_by_no_more_than_the_best_single_kind():
    from ridgecast.search.fleet_plan import Mix, parse_mix, plan_mix

    mix = [Mix(512, 64, 30.0), Mix(8192, 256, 4.0)]
    plan = plan_mix(MODEL, SPACE, mix, Limits(ttft=1.5, tpot=0.03))
    known = [c for c in plan.alone.values() if c is not None]
    assert plan.fleet.bound - 1e-6 <= plan.fleet.cost <= min(known) + 1e-9
    for one in mix:
        assert sum(plan.fleet.assignment[one.name].values()) == pytest.approx(one.rate)
    with pytest.raises(SpecError, match="isl:osl"):
        parse_mix("1024:256")


@pytest.mark.parametrize(
    "change",
    [{"devices": ("nope",)}, {"engines": ("nope",)}, {"dtypes": ("fp7",)}, {"batches": 0},
     {"techniques": ("", "nope")}],
)  # fmt: skip
def test_wrong_names_are_not_options(change):
    with pytest.raises(SpecError):
        plan_serving(MODEL, replace(SPACE, **change), TRAFFIC)


def test_what_has_no_service_is_refused():
    with pytest.raises(UnsupportedError, match="does not generate text"):
        plan_serving("sdxl", SPACE, TRAFFIC)
    with pytest.raises(SpecError, match=r"limits\.ttft"):
        Limits(ttft=-1.0)


def test_a_price_holds_for_every_spelling_of_a_device():
    space = Space(("H100-SXM",), tp=(1,), pp=(1,), batches=2, prices={"h100_sxm": 7.0})
    assert set(plan_serving(MODEL, space, Traffic(64, 64)).table["cost_usd_per_h"]) == {7.0}
