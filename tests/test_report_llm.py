"""The model planner's views: what the command line prints, bars that add up, limits that hold."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from ridgecast.cli.app import app
from ridgecast.errors import InfeasibleError, SpecError
from ridgecast.report.llm_limits import limits_view
from ridgecast.report.llm_plan import plan_view
from ridgecast.report.llm_view import largest_parts, llm_view
from ridgecast.report.llm_waterfall import waterfall_view
from ridgecast.report.questions import LlmQuestion
from ridgecast.report.questions_llm import LimitsQuestion, PlanQuestion, WaterfallQuestion
from ridgecast.scenario import Scenario, Traffic, evaluate, largest_batch_within, longest_context
from ridgecast.scenario.inverse import LONGEST
from ridgecast.scenario.solve import holds

ONE = {"model": "llama-3.1-8b", "devices": 1}
ODD = {**ONE, "on": "l40s", "dtype": "fp8", "kv_dtype": "fp8", "isl": 700, "osl": 80,
       "batch": "6", "prefix": 0.25, "price_per_h": 1.5, "engine": "sglang",
       "technique": ["sarathi"]}  # fmt: skip


def run(command):
    words = shlex.split(command)
    assert words[0] == "ridgecast"
    return CliRunner().invoke(app, [*words[1:], "--json"])


def documents(command):
    """What each line of a command prints."""
    return [json.loads(run(line).stdout) for line in command.splitlines()]


def ran(python):
    """Names that lines of Python leave behind."""
    names: dict[str, object] = {"print": lambda *_: None}
    exec(python, names)
    return names


def plain(view):
    """The view as JSON would bring it, checked to be JSON."""
    found = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    names = [b["name"] for b in found["blocks"] if "name" in b]
    assert len(names) == len(set(names))
    return found


@pytest.mark.parametrize(
    "asked",
    [{}, ODD, {**ONE, "devices": 2, "tp": 2, "batch": "max"}, {**ONE, "request_rate": 3.0},
     {"devices": 1}, {**ODD, "what_if": ["memory.bandwidth=+20%", "board_power=-30%"]}],
    ids=["default", "odd", "max", "rate", "does not fit", "what if"],
)  # fmt: skip
def test_the_answer_is_the_document_of_the_command_line(asked):
    q = LlmQuestion(**asked)
    view = llm_view(q)
    assert plain(view)["answer"] == documents(view.command)[0]
    answer = ran(view.python)["a"]
    assert answer.tpot == view.answer["tpot_s"]
    assert answer.memory_total == view.answer["memory_bytes"]


def test_a_changed_device_stands_beside_the_device_as_it_is():
    view = llm_view(LlmQuestion(**ONE, what_if=["board_power=-50%"]))
    rows = {r["quantity"]: r for r in view.table("what_if").rows}
    before, after = llm_view(LlmQuestion(**ONE)).answer, view.answer
    assert rows["power of a device"]["ratio"] == after["power_w"] / before["power_w"] < 0.9
    assert 1.0 < rows["TTFT"]["ratio"] < 1.4 and rows["energy per token"]["ratio"] < 1.0
    assert any("another power cap" in reason for reason in after["reasons"])


def test_the_memory_bar_sums_to_the_total_under_its_guides():
    for q in (LlmQuestion(**ONE), LlmQuestion(devices=1), LlmQuestion(technique=["kv-offload"])):
        view = llm_view(q)
        (panel,) = view.figures["memory"].panels
        stack = [s for s in panel.series if s.style == "stack"]
        ends = np.cumsum([s.y[0] for s in stack])
        assert [s.base[0] for s in stack] == pytest.approx([0.0, *ends[:-1]])
        assert ends[-1] * 1e9 == pytest.approx(view.answer["memory_bytes"])
        capacity, usable = (s.y[0] for s in panel.series if s.style == "guide")
        assert capacity * 1e9 == view.answer["memory_capacity_bytes"] and usable < capacity
        assert (ends[-1] <= usable) == view.answer["fits"]
        rows = view.table("components").rows
        device = [r["memory_bytes"] for r in rows[:-1] if r["where"] == "device"]
        assert sum(device) == pytest.approx(rows[-1]["memory_bytes"])


def test_a_model_that_does_not_fit_says_what_would():
    view = llm_view(LlmQuestion(devices=1))
    words = [b for b in view.blocks if getattr(b, "tone", "") == "warning"]
    assert any("fits with" in text for text in words[0].texts)
    facts = {f["label"]: f["text"] for f in plain(view)["blocks"][2]["items"]}
    assert facts["TPOT"] == "–" and facts["fits"] == "no" and facts["largest batch"] == "0"
    assert view.figures["phases"].reason and "passes" not in view.tables


def test_parts_of_a_pass_are_pooled_and_lose_nothing():
    view = llm_view(LlmQuestion())
    for phase, panel in zip(("decode", "prefill"), view.figures["phases"].panels, strict=True):
        parts = view.answer["breakdown_s"][phase]
        pooled = largest_parts(parts)
        assert len(pooled) == 10 and sum(pooled.values()) == pytest.approx(sum(parts.values()))
        assert len(panel.y.categories) == 10
    assert largest_parts({"a": 1.0, "b": -2.0}) == {"b": -2.0, "a": 1.0}


@pytest.mark.parametrize("quantity", ["tpot", "throughput", "memory"])
def test_floating_bars_chain_from_the_plain_case_to_all_techniques(quantity):
    q = WaterfallQuestion(**ONE, technique=["kivi", "marlin", "sarathi"], quantity=quantity)
    view = waterfall_view(q)
    rows = view.table("steps").rows
    assert [r["technique"] for r in rows] == ["none", "kivi", "marlin", "sarathi"]
    for panel in view.figures["waterfall"].panels:
        whole, *moves = panel.series
        bars = sorted(
            b for s in moves for b in zip(s.x, s.base, s.y, strict=True) if b[2] is not None
        )
        assert [x for x, _, _ in bars] == [1, 2, 3]
        ends = [whole.y[0], *(start + size for _, start, size in bars)]
        assert [start for _, start, _ in bars] == pytest.approx(ends[:-1])
        assert ends[-1] == pytest.approx(whole.y[1])
    assert view.answer["steps"] == documents(view.command)


def test_the_largest_batch_of_a_step_is_the_command_lines():
    q = WaterfallQuestion(**ONE, technique=["kivi"], quantity="energy")
    row = waterfall_view(q).table("steps").rows[1]
    most = evaluate(Scenario("llama-3.1-8b", "h100_sxm", traffic=Traffic(2048, 512, "max"),
                             techniques="kivi"))  # fmt: skip
    assert row["max_batch"] == most.batch
    assert row["largest_energy_per_token_j"] == pytest.approx(most.energy_per_token)


def test_a_technique_that_cannot_be_applied_is_a_row_and_stops_no_other():
    view = waterfall_view(WaterfallQuestion(**ONE, technique=["marlin", "qserve", "nope", "kivi"]))
    rows = {r["technique"]: r for r in view.table("steps").rows}
    assert "exclude each other" in rows["qserve"]["reason"] and rows["qserve"]["tpot_s"] is None
    assert "nearest" in rows["nope"]["reason"]
    assert rows["kivi"]["status"] == "ok" and rows["kivi"]["applied"] == "marlin + kivi"
    assert view.command.endswith("--technique marlin,kivi") and "qserve" not in view.python
    assert [s.get("status") for s in view.answer["steps"]].count("no_answer") == 2
    nothing = waterfall_view(WaterfallQuestion(**ONE))
    assert any("marlin" in t for b in nothing.blocks for t in getattr(b, "texts", ()))


@pytest.mark.parametrize("technique", ["", "h2o", "kv-offload", "superpipeline"])
def test_the_longest_context_fits_and_one_token_more_does_not(technique):
    s = Scenario("llama-3.1-8b", "l40s", traffic=Traffic(1, 200, 3), techniques=technique)
    made = s.made()
    isl = longest_context(made, s)
    assert isl > 1

    def fits(tokens):
        return evaluate(replace(s, traffic=replace(s.traffic, isl=tokens))).max_batch >= 3

    assert fits(isl)
    assert isl == LONGEST or not fits(isl + 1)


def test_the_largest_batch_within_a_limit_keeps_it_and_the_next_does_not():
    s = Scenario("llama-3.1-8b", "h100_sxm", traffic=Traffic(2048, 512, "max"))
    made = s.made()
    batch = largest_batch_within(made, s, tpot=0.02)
    times = [evaluate(replace(s, traffic=replace(s.traffic, batch=b))).tpot
             for b in (batch, batch + 1)]  # fmt: skip
    assert times[0] <= 0.02 < times[1] and holds(made, s, batch)
    with pytest.raises(InfeasibleError, match="already takes tpot"):
        largest_batch_within(made, s, tpot=1e-5)
    with pytest.raises(SpecError, match=r"traffic\.batch"):
        longest_context(made, s)


def test_limits_are_the_command_lines_and_work_without_an_answer():
    q = LimitsQuestion(**ONE, tpot=0.02, ttft=0.5, batch="4")
    view = limits_view(q)
    assert list(plain(view)["answer"].values()) == documents(view.command)
    answer = view.answer
    assert answer["largest_batch_within"]["tpot_s"] <= 0.02
    assert answer["longest_context"]["max_batch"] >= 4
    ran(view.python)
    rows = view.table("context_rows").rows
    sizes = [r["max_batch"] for r in rows]
    assert len(rows) == 12 and sizes == sorted(sizes, reverse=True) and sizes[-1] == 1
    none = limits_view(LimitsQuestion(devices=1, tpot=0.02))
    assert not none.tables and none.figures["contexts"].reason
    assert none.answer["longest_context"]["status"] == "no_answer"


def test_a_plan_is_the_command_lines():
    q = PlanQuestion(model="llama-3.1-8b", on=["h100_sxm", "l40s"], dtype=["", "fp8"], tp=[1, 2],
                     pp=[1], technique=["", "kivi,marlin"], price=["l40s=0.9", "h100_sxm=2.5"],
                     request_rate=20.0, tpot=0.02, ttft=0.6, devices=16)  # fmt: skip
    view = plan_view(q)
    assert plain(view)["answer"] == documents(view.command)[0]
    assert ran(view.python)["plan"].to_dict()["kept"] == view.answer["kept"]
    (panel,) = view.figures["pareto"].panels
    points = [s for s in panel.series if s.style == "points" and s.name != "best"]
    assert sum(len(s.x) for s in points) == view.answer["kept"]
    front = next(s for s in panel.series if s.name == "front")
    assert len(front.x) > 2 and (np.diff(front.x) > 0).all() and (np.diff(front.y) > 0).all()
    assert view.answer["best"]["hardware"] in plain(view)["blocks"][0]["texts"][0]


def test_a_plan_that_nothing_keeps_says_how_near_each_came():
    view = plan_view(PlanQuestion(model="llama-3.1-8b", on=["l40s"], tp=[1], pp=[1], tpot=1e-4))
    assert view.figures["pareto"].reason and view.answer["best"] is None
    assert "comes nearest" in view.table("rejected").rows[0]["reason"]
    assert run(view.command).exit_code == 3


def test_a_plan_is_bounded_and_its_words_cannot_be_split():
    with pytest.raises(ValidationError, match=r"tp: .* are 96 options"):
        PlanQuestion(on=["h100_sxm", "h200_sxm"], dtype=["", "fp8"], tp=[1, 2, 4, 8, 16, 32],
                     pp=[1, 2, 4, 8])  # fmt: skip
    with pytest.raises(ValidationError):
        PlanQuestion(on=["h100_sxm,h200_sxm"])
    with pytest.raises(SpecError, match="nearest"):
        plan_view(PlanQuestion(on=["h100"], model="llama-3.1-8q"))


def test_the_command_line_refuses_what_has_no_longest_prompt():
    base = ["llm", "llama-3.1-8b", "--on", "h100_sxm"]
    for words, code, told in (
        (["--isl", "max", "--batch", "max"], 2, "--isl: max needs"),
        (["--isl", "many"], 2, "--isl: got 'many'"),
        (["--tpot", "0.02"], 2, "--tpot: limits --batch max"),
        (["--isl", "max", "--batch", "100000"], 3, "no prompt fits"),
        (["--batch", "max", "--tpot", "1e-6"], 3, "already takes"),
    ):
        done = CliRunner().invoke(app, [*base, *words])
        assert done.exit_code == code and told in done.stderr
