"""Which measured kernels an engine's passes are made of, and what runs beside what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.models.network import Layout, Tokens
from ridgecast.predict.bundle import SHIPPED, open_bundle
from ridgecast.scenario import Points, Scenario, Traffic, evaluate, solve_points
from ridgecast.scenario.detail import pieces_of
from ridgecast.scenario.engine import engine
from ridgecast.scenario.measured import answer, prepare, rows_of
from ridgecast.scenario.passes import Job, run_passes
from ridgecast.scenario.solve import machine_of
from ridgecast.store import import_files, select
from ridgecast.techniques import Treatment

DATA = Path(__file__).resolve().parents[2] / "shared/data/silicon/serving_end_to_end.csv"


def tpot(software, model="deepseek-r1", batch=32, on="b200_sxm", **more):
    s = Scenario(model, on, 8, Layout(tp=8), engine=software, **more)
    return float(solve_points(s, Points.of(batch, 1024, 1024))["tpot"][0])


def test_shared_experts_beside_the_routed_ones_save_what_was_published():
    # vLLM pull request 26440: DeepSeek-R1 in fp8, 8 x B200, 32 requests, 23.35 to 22.09 ms a token
    both = engine("vllm")
    alone = replace(both, beside=())
    assert 0.02 < 1.0 - tpot(both) / tpot(alone) < 0.10
    # beyond the tokens that the second stream is for, nothing hides
    assert tpot(both, batch=512) == pytest.approx(tpot(alone, batch=512), rel=1e-9)


def one_pass(model, on, layout, groups, treatment=None, **engine_changes):
    s = Scenario(
        model, on, layout.devices, layout, engine=replace(engine("vllm"), **engine_changes)
    )
    job = Job(s.made().network, machine_of(s.made(), s), groups, treatment or Treatment())
    return job, run_passes([job])[0]


def test_what_runs_beside_works_and_takes_its_bytes_from_memory():
    few = [Tokens(4.0, 1.0, 640.0), Tokens(np.array([0.0, 1.0]), 1.0, 640.0)]  # shapes may differ
    for model, on, tp in (("deepseek-r1", "b200_sxm", 8), ("qwen1.5-moe-a2.7b", "l40s", 1)):
        job, both = one_pass(model, on, Layout(tp=tp), few)
        _, alone = one_pass(model, on, Layout(tp=tp), few, beside=())
        shared = np.array([c.part == "shared_expert" for c in both.timed.calls])
        own, least = (x[shared].sum(axis=0) for x in (both.timed.time, both.timed.least))
        assert (alone.time - both.time == pytest.approx(both.beside)) and (both.beside > 0).all()
        assert (both.beside <= own - least + 1e-12).all()
        assert both.energy == pytest.approx(alone.energy, rel=0.01)
        pieces = pieces_of(job, both)
        assert sum(p.time - p.beside for p in pieces) == pytest.approx(both.time[0])
        assert not any("scaled" in p.note for p in pieces)
        assert {p.name for p in pieces if p.beside > 0} == {"shared_expert"}


def test_a_pass_is_no_shorter_than_what_it_sends():
    layout = Layout(dp=16, ep=16)
    _, run = one_pass("deepseek-v2-lite", "l40s", layout, [Tokens(128.0, 1.0, 640.0)],
                      Treatment(comm_overlap=1.0))  # fmt: skip
    sent = sum(float(run.timed.time[i, 0]) for i, c in enumerate(run.timed.calls)
               if c.op in ("collective", "transfer"))  # fmt: skip
    assert run.time[0] >= sent


def reasons(model, software):
    s = Scenario(model, "h200_sxm", 8, Layout(tp=8), Traffic(1024, 128, 4), engine=software)
    return " ".join(evaluate(s).reasons)


def test_an_engine_answers_with_its_own_kernels():
    own = reasons("llama-3.1-70b-fp8", "trtllm")
    assert "trtllm-1.3.0rc20/h200_sxm/static" in own and "trtllm-1.3.0rc20/h200_sxm/dense" in own
    other = reasons("llama-3.1-70b-fp8", "vllm")
    assert "vllm-0.24.0/h200_sxm" in other and "trtllm" not in other
    # latent attention has a collection of its own, whichever engine
    assert "/dense" not in reasons("deepseek-v3", "trtllm")


def test_products_that_hold_the_hosts_launches_are_no_engines():
    bundle = open_bundle(SHIPPED)
    eager = [e for e in bundle.entries if e.launch == "stream" and "/vllm-" in e.collection]
    assert eager  # vLLM's fp8_block on Hopper
    for e in eager:
        assert bundle.gemm_collection_of(e.hardware, e.dtype, "/vllm-") != e.collection
    assert bundle.gemm_collection_of("h200_sxm", "fp8_e4m3", "/nobody-") == ""


@pytest.mark.parametrize("until,found", [("", "0.5.14"), ("0.5.14", "0.5.14"), ("0.5.12", "0.5.10"),
                                         ("0.5.10", "0.5.10"), ("0.5.5", "0.5.10")])  # fmt: skip
def test_of_releases_the_last_before_counts_or_else_the_oldest(until, found):
    name = open_bundle(SHIPPED).collection_of(
        "collective", "b200_sxm", "/sglang-", but=("/dispatch", "/combine"), until=until
    )
    assert f"/sglang-{found}/" in name and name.endswith("/graph")


def test_an_older_all_reduce_makes_a_slower_service():
    assert tpot("sglang:0.5.9", batch=4) > 1.01 * tpot("sglang", batch=4)
    assert engine("TensorRT-LLM:1.2.0rc5").release == "1.2.0rc5"
    with pytest.raises(SpecError, match="need a number"):
        engine("sglang:main")


def test_rows_are_of_the_published_checkpoint_and_constants_shift_prepared_passes():
    if not DATA.exists():
        pytest.skip("needs the measured serving points beside the checkout (shared/data)")
    table = import_files([DATA])
    moe = table["moe_format"].astype(str) == "nvfp4"
    fp4 = (table["gemm_format"].astype(str) == "nvfp4") & moe & table["valid"].astype(bool)
    every = [r for r in rows_of(select(table, np.flatnonzero(fp4))) if not isinstance(r, str)]
    plain = {r.scenario.model for r in every if not r.scenario.model.endswith("-nvfp4")}
    assert plain == {"meta-llama/Llama-3.1-70B"}  # quantised throughout, and not shipped so
    rows = [r for r in every if r.prefill is None][:40]
    later = [replace(r, scenario=replace(r.scenario, engine=replace(
        r.scenario.engine, pass_host=1e-3))) for r in rows]  # fmt: skip
    for name in ("tpot_s", "ttft_s"):
        found = answer(*prepare(rows), {"pass_host": 1e-3})[name]
        assert found == pytest.approx(answer(*prepare(later))[name], rel=1e-9)
