"""Traces: spans nest, never overlap, and sum to what is predicted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import ridgecast as rc
from ridgecast.cli.app import app
from ridgecast.errors import SpecError
from ridgecast.models import Layout, get
from ridgecast.report.timeline import Counter, Span, Timeline, Track, beside, in_sequence
from ridgecast.report.traces import (
    explanation_timeline,
    pass_timeline,
    request_timeline,
    step_timeline,
)
from ridgecast.scenario import Scenario, Traffic
from ridgecast.scenario.detail import pieces_of, workings_of
from ridgecast.training import Plan, step_time

BESIDE = "beside other work"


def check_events(document):
    """The rules of the Trace Event Format that viewers rely on; returns the complete events."""
    json.dumps(document, allow_nan=False)
    events = document["traceEvents"]
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    assert spans and {e["ph"] for e in events} <= {"X", "M", "C"}
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for e in spans:
        start, end = round(e["ts"] * 1000), round((e["ts"] + e["dur"]) * 1000)  # whole ns
        assert 0 <= start <= end and (e["pid"], e["tid"]) in named
        open_ = rows.setdefault((e["pid"], e["tid"]), [])
        while open_ and open_[-1][1] <= start:
            open_.pop()
        assert not open_ or (open_[-1][0] <= start and end <= open_[-1][1]), e
        open_.append((start, end))
    for e in events:
        if e["ph"] == "C":
            assert e["ts"] >= 0 and all(v >= 0 for v in e["args"].values())
    return spans


def leaves(timeline, *, beside_too=False):
    return [s for t in timeline.tracks if beside_too or t.name != BESIDE for s in t.leaves()]


CASES = {
    "dense": ("llama-3.1-8b", "h100_sxm", 1, {}),
    "stages": ("llama-3.1-70b", "h100_sxm", 8, {"layout": Layout(tp=4, pp=2)}),
    "experts": ("deepseek-v3", "h200_sxm", 8, {}),
    "overlap": ("llama-3.1-70b", "h100_sxm", 8, {"techniques": "nanoflow"}),
    "static": ("llama-3.1-8b", "a100_sxm", 1, {"engine": "hf"}),
    "states": ("jamba-v0.1", "h100_sxm", 8, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pass_is_the_sum_of_its_calls_and_a_request_of_its_tokens(name):
    model, device, count, more = CASES[name]
    w = workings_of(Scenario(model, device, count, traffic=Traffic(1024, 64, 8), **more))
    for point in range(4):
        whole = float(w.run.time[point])
        timeline = pass_timeline(w.job, w.run, point)
        assert timeline.duration == pytest.approx(whole, rel=1e-9)
        assert sum(s.duration for s in leaves(timeline)) == pytest.approx(whole, rel=1e-9)
        pieces = pieces_of(w.job, w.run, point)
        assert sum(p.time - p.beside for p in pieces) == pytest.approx(whole, rel=1e-9)
        layers = sorted({p.layer for p in pieces if p.layer is not None})
        assert layers == list(range(w.made.network.layers))
        assert [p.stage for p in pieces] == sorted(p.stage for p in pieces) or name == "static"
        if "overlapped" not in w.run.parts:
            power = sum(c.integral(c.times[-1]) for c in timeline.counters)
            each = float(w.run.energy[point]) / w.made.layout.stage_devices
            assert power == pytest.approx(each, rel=1e-6)
    if name == "overlap":
        hidden = -float(w.run.parts["overlapped"][0])
        drawn = sum(s.duration for t in pass_timeline(w.job, w.run).tracks if t.name == BESIDE
                    for s in t.spans)  # fmt: skip
        assert drawn == pytest.approx(hidden, rel=1e-9)
    traced = request_timeline(w)
    request = traced.track("a request", "request")
    assert request.total == pytest.approx(w.answer.e2e, rel=1e-9)
    first = [s for s in request.spans[0].children if s.args["kind"] in ("waiting", "prefill")]
    assert sum(s.duration for s in first) == pytest.approx(w.answer.ttft, rel=1e-9)
    check_events(traced.to_trace_events())


def test_calls_stand_in_their_layer_in_the_order_in_which_they_run():
    w = workings_of(Scenario("llama-3.1-8b", "h100_sxm", traffic=Traffic(128, 8, 4)))
    timeline = pass_timeline(w.job, w.run)
    (whole,) = timeline.track("h100_sxm", "compute").spans
    names = [s.name for s in whole.children]
    assert names[0] == "embedding" and names[-2:] == ["norm", "head"]
    layer = next(s for s in whole.children if s.name == "layer 3")
    assert [s.name for s in layer.children] == [
        "norm", "qkv", "rotary", "attention", "attention_out", "norm", "ffn_up", "activation",
        "ffn_down",
    ]  # fmt: skip
    assert {"basis", "limiter", "power_w"} <= layer.children[1].args.keys()


def test_parts_of_an_explanation_are_its_spans():
    told = rc.explain(rc.Gemm(4096, 4096, 4096), "h200_sxm", what_if={"clock": "+10%"})
    timeline = explanation_timeline(told)
    (whole,) = timeline.track("gemm on h200_sxm", "parts of the time").spans
    assert sum(s.duration for s in whole.leaves()) == pytest.approx(told.prediction.time, rel=1e-9)
    assert timeline.track("gemm on h200_sxm", "bound").total == told.prediction.bound
    spans = check_events(timeline.to_trace_events())
    assert {s["name"] for s in spans} >= {"speed of light", "clock +10%"}


@pytest.mark.parametrize(("pp", "interleave"), [(1, 1), (4, 1), (4, 2)])
def test_a_training_step_fills_its_stages(pp, interleave):
    plan = Plan(batch=1, length=512, data=2, layout=Layout(pp=pp), accumulate=8, zero=1)
    step = step_time(get("llama-3.1-8b"), "h100_sxm", plan, interleave=interleave)
    timeline = step_timeline(step, plan, interleave=interleave)
    assert timeline.track("step", "step").total == pytest.approx(step.time, rel=1e-9)
    for track in timeline.tracks[1:]:
        assert track.total == pytest.approx(step.compute, rel=1e-9)  # the rest is the bubble
        assert max(s.end for s in track.spans) <= (step.compute + step.bubble) * (1 + 1e-9)
    last = max(s.end for t in timeline.tracks[1:] for s in t.spans)
    assert last == pytest.approx(step.compute + step.bubble, rel=1e-9)
    check_events(timeline.to_trace_events())


def test_timelines_compose_and_refuse_spans_that_overlap():
    one = Timeline("a", (Track("p", "t", (Span("x", 0.0, 1.0),)),),
                   (Counter("p", "power", "W", (0.0, 1.0), (5.0, 0.0)),))  # fmt: skip
    both = in_sequence("b", one, one)
    assert both.duration == 2.0 and both.track("p", "t").total == 2.0
    assert both.counters[0].integral(2.0) == 10.0
    with pytest.raises(SpecError, match="'x'"):
        beside("c", one, one)
    with pytest.raises(SpecError, match="child"):
        Track("p", "t", (Span("x", 0.0, 1.0, {}, (Span("child", 0.5, 1.0),)),))
    rng = np.random.default_rng(1)
    lasts = rng.random(500) * 1e-8  # a few ns each: rounding must not break the nesting
    starts = np.concatenate([[0.0], np.cumsum(lasts)])
    inner = tuple(Span("k", float(s), float(d)) for s, d in zip(starts, lasts, strict=False))
    tight = Timeline("d", (Track("p", "t", (Span("all", 0.0, float(starts[-1]), {}, inner),)),))
    assert len(check_events(tight.to_trace_events())) == 501


def test_commands_write_traces_and_refuse_other_suffixes(tmp_path):
    path = tmp_path / "out.json"
    done = CliRunner().invoke(
        app, ["llm", "llama-3.1-8b", "--on", "h100_sxm", "--isl", "256", "--osl", "16", "--json",
              "--trace", str(path)],
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    answer, document = json.loads(done.stdout), json.loads(path.read_text(encoding="utf-8"))
    spans = check_events(document)
    request = next(s for s in spans if s["name"] == "request")
    assert request["args"]["time_s"] == pytest.approx(answer["e2e_s"], rel=1e-9)
    assert {"command", "version", "basis"} <= document["otherData"].keys()
    done = CliRunner().invoke(
        app, ["explain", "gemm", "64x64x64", "--on", "l4", "--trace", str(tmp_path / "x.txt")]
    )
    assert done.exit_code == 2 and ".json" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
