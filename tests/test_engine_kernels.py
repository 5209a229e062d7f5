"""Which measured kernels an engine's passes are made of, and what runs beside what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ridgecast.errors import SpecError
from ridgecast.models.network import Layout
from ridgecast.predict.bundle import SHIPPED, open_bundle
from ridgecast.scenario import Points, Scenario, Traffic, evaluate, solve_points
from ridgecast.scenario.engine import engine
from ridgecast.scenario.measured import answer, prepare, rows_of
from ridgecast.store import import_files, select

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
        "collective", "gb200", "/sglang-", but=("/dispatch", "/combine"), until=until
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
    use = (table["engine"] == "vllm") & (table["mode"] == "agg") & table["valid"].astype(bool)
    fp4 = use & (table["gemm_format"] == "nvfp4")
    rows = rows_of(select(table, np.flatnonzero(fp4)[:40]))
    assert all(r.scenario.model.endswith("-nvfp4") and not r.scenario.dtype for r in rows)
    later = [replace(r, scenario=replace(r.scenario, engine=replace(
        r.scenario.engine, pass_host=1e-3))) for r in rows]  # fmt: skip
    for name in ("tpot_s", "ttft_s"):
        found = answer(*prepare(rows), {"pass_host": 1e-3})[name]
        assert found == pytest.approx(answer(*prepare(later))[name], rel=1e-9)
