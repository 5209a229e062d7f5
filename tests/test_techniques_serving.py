"""Techniques of batching and speculation: by hand, where they lose, what they exclude."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.claims.recipes.serving import _pipeline
from ridgecast.errors import InfeasibleError, SpecError
from ridgecast.hardware import get as device
from ridgecast.models import Layout, get
from ridgecast.models.network import Tokens
from ridgecast.scenario import Points, Scenario, Traffic, run_pass, solve_points
from ridgecast.scenario.engine import Engine, engine
from ridgecast.scenario.queueing import Load, Phases, serve
from ridgecast.scenario.solve import machine_of
from ridgecast.techniques import Batching, Speculation, Treatment, treatment_of
from ridgecast.techniques.speculation import tokens_a_pass


def case(use="", model="llama-3.1-8b", on="a100_sxm", isl=1024, osl=128, **more) -> Scenario:
    traffic = Traffic(isl, osl, rounds=1e9)
    return Scenario(model, on, traffic=traffic, techniques=use, **more)


def one_pass(s: Scenario, *groups: Tokens):
    made = s.made()
    return run_pass(made.network, machine_of(made, s), groups, made.treatment)


def rate(use, batch, isl=1024, osl=128, **more) -> float:
    s = case(use, isl=isl, osl=osl, **more)
    return float(solve_points(s, Points.of(batch, isl, osl))["output_tokens_per_s"][0])


def served(t: Treatment, batch=9.0, osl=10.0, rounds=1.0, *, mixed=True):
    """Passes of 10 ms (decode), 30 ms (a prompt) and 34 ms (both)."""
    one = {
        k: {x: np.array([v]) for x in ("time", "low", "high", "energy")}
        for k, v in {"decode": 0.010, "prefill": 0.030, "packed": 0.030, "mixed": 0.034}.items()
    }
    p = Phases(**one, together=np.ones(1), rounds=np.array([rounds]), launches=np.zeros(1))
    load = Load(np.array([batch]), np.array([batch]), np.array([osl]), rounds=1e9)
    return serve(p, load, Engine("x", mixed=mixed), t)


def test_expected_tokens_of_a_pass_are_a_geometric_sum():
    assert tokens_a_pass(0.8, 3) == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert tokens_a_pass(0.0, 7) == 1.0
    assert tokens_a_pass(1.0, 7) == 8.0


def test_prompts_ride_on_no_more_passes_than_there_are():
    # 8 other prompts over 10 decode steps: each adds 24 ms to a step
    assert served(Treatment()).tpot[0][0] == pytest.approx(0.010 + 8 / 10 * 0.024)
    # in 5 parts each: 40 passes, of which 10 carry decodes and 30 hold a part of 30 ms alone
    chunked = served(Treatment(batching=Batching(chunk=64)), rounds=5.0, mixed=False)
    assert chunked.tpot[0][0] == pytest.approx(0.010 + (10 * 0.024 + 30 * 0.030) / 10)


def test_prefill_on_half_of_the_units_hides_half_of_a_decode():
    split = served(Treatment(batching=Batching(overlap=0.5)))
    # 8 prompts of 30 ms; 10 steps of 10 ms hide half of their own length of it
    assert split.tpot[0][0] == pytest.approx(0.010 + (8 * 0.030 - 0.5 * 10 * 0.010) / 10)


def test_kernels_of_different_limits_hide_all_but_the_longest():
    s = case(Treatment(batching=Batching(unit_overlap=1.0)), "llama-2-70b", devices=8,
             layout=Layout(tp=8))  # fmt: skip
    run = one_pass(s, Tokens(256.0, 1.0, 1024.0))
    kinds = {"compute": 0.0, "memory": 0.0, "links": 0.0}
    for i, call in enumerate(run.timed.calls):
        limit = "compute" if run.timed.limiter[i, 0] == "compute" else "memory"
        kinds["links" if call.op == "collective" else limit] += float(run.timed.time[i, 0])
    host = engine("vllm").pass_host
    assert run.time[0] == pytest.approx(max(kinds.values()) + host, rel=1e-9)


def test_nano_batches_of_a_small_batch_lose():
    # 8 sequences wait for weights, which every part reads again
    small = dict(batch=8, model="llama-2-70b", devices=8)
    assert rate("nanoflow:overlap=0.5", **small) < rate("", **small)
    large = dict(small, batch=1024)
    assert rate("nanoflow:overlap=0.5", **large) > rate("", **large)


def test_a_shared_prefix_is_read_once():
    plain = rate(_shared(0.8, groups=False), 64, 4000, 128)
    assert rate("batchllm:prefix=0.8", 64, 4000, 128) > plain
    assert rate("batchllm:prefix=0.8", 1, 4000, 128) == pytest.approx(
        rate(_shared(0.8, groups=False), 1, 4000, 128)
    )  # alone it shares with nobody


def _shared(share: float, *, groups: bool) -> Treatment:
    t = treatment_of(f"batchllm:prefix={share}")
    return replace(t, batching=replace(t.batching, prefix_groups=groups))


def test_adapters_cost_their_bytes():
    run = one_pass(case("s-lora:adapters=4:rank=64"), Tokens(16.0, 1.0, 512.0))
    kinds = [w for w in get("llama-3.1-8b").weights() if w.role == "linear"]
    each = sum(2 * 64 * w.elements**0.5 * w.count for w in kinds) * 2  # bytes
    least = 4 * each / device("a100_sxm").memory.bandwidth
    launches = 2 * sum(w.count for w in kinds) * device("a100_sxm").launch_latency
    assert run.parts["adapters"][0] == pytest.approx(least + launches, rel=0.05)
    assert rate("s-lora:adapters=4:rank=64", 16) < rate("", 16)


def test_riding_tokens_slow_decode_less_than_they_take_alone():
    alone = one_pass(case(), Tokens(1.0, 128.0, 128.0))
    both = solve_points(case("flexllm:tokens=128"), Points.of(64, 512, 128))["tpot"][0]
    bare = solve_points(case(), Points.of(64, 512, 128))["tpot"][0]
    assert bare < both < bare + float(alone.time[0])


def test_a_bad_draft_loses_and_a_good_one_gains():
    assert rate("speculative-decoding:accept=0.1:share=0.2", 1) < rate("", 1)
    assert rate("speculative-decoding:accept=0.8:share=0.05", 1) > 1.5 * rate("", 1)
    # at a batch where products limit, what is checked in vain costs time
    bad = treatment_of("parallel-prompt-decoding:accept=0.3:nodes=64")
    assert rate(bad, 256) < rate("", 256)


def test_layers_side_by_side_shorten_a_draft_and_the_repair_adds_one_pass():
    t = treatment_of("easyspec:drafted=4:width=4:cut=0.5")
    assert t.speculation.draft_steps == pytest.approx(4 * (0.5 + 0.5 / 4) + 1)
    assert treatment_of("graft:depth=3").speculation == replace(
        Speculation(61.0, tokens_a_pass(0.8, 6), 0.05, 3.0, 0.05)
    )


def test_equal_chunks_keep_a_pipeline_full():
    # a stage takes a second for decodes, and one more a thousand prompt tokens
    stage = (np.array([0.0, 1e5]), np.array([1.0, 101.0]), 0.0)
    whole, idle = _pipeline(False, stage, 1.0, 120)
    chunked, less = _pipeline(True, stage, 1.0, 120)
    assert less / chunked < 0.1 * idle / whole


@pytest.mark.parametrize(
    ("use", "field"),
    [("sarathi,nexus-intra-gpu-pd", "batching.chunk"), ("graft,easyspec", "speculation"),
     ("deepspeed-inference,dovetail", "placement")],
)  # fmt: skip
def test_what_sets_the_same_excludes_each_other(use, field):
    with pytest.raises(InfeasibleError, match=field):
        treatment_of(use)


def test_shares_are_shares():
    with pytest.raises(SpecError, match=r"nexus-intra-gpu-pd\.share"):
        treatment_of("nexus-intra-gpu-pd:share=1.5")
