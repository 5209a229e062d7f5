"""Techniques of the cache's contents and place: bytes by hand, what they cost, exclusions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.errors import InfeasibleError, SpecError
from ridgecast.models import Layout
from ridgecast.models.network import Tokens
from ridgecast.scenario import Points, Scenario, Traffic, memory_at, solve_points
from ridgecast.scenario.memory import kv_bytes
from ridgecast.scenario.passes import Job, _case, _selected
from ridgecast.scenario.rows import row_of
from ridgecast.scenario.solve import machine_of, phases_of
from ridgecast.techniques import Treatment, get, treatment_of
from ridgecast.techniques.kv_policies import accepted

TOKEN = 131072  # Llama-3.1-8B: 32 layers x 8 heads x 128 x (K and V) x 2 bytes


def case(use="", isl=122880, on="a100_sxm", **more) -> Scenario:
    return Scenario("llama-3.1-8b", on, traffic=Traffic(isl, 128, 1), techniques=use, **more)


def cache(s: Scenario, tokens: int) -> float:
    made = s.made()
    return float(kv_bytes(made.network, made.formats, made.layout, made.treatment, tokens))


def decode(s: Scenario, batch=1):
    phases, run = phases_of(s.made(), s, Points.of(batch, s.traffic.isl, s.traffic.osl))
    return float(phases.decode["time"][0]), {k: float(v[0]) for k, v in run.parts.items()}


@pytest.mark.parametrize(
    ("use", "tokens"),
    [("h2o", 0.2 * 122880), ("kvmerger:keep=0.35", 0.35 * 122880), ("locret", 16384)],
)
def test_evicted_tokens_leave_the_cache(use, tokens):
    assert cache(case(use), 122880) == pytest.approx((tokens + 8) * TOKEN, rel=1e-9)


def test_shadows_by_hand():
    # per token: keys of rank 160 of 2 x 1024 elements and 1.56 % of all on the device, and means of
    # 8 tokens: 128 x 2 / 8 bytes a head; values on the host
    s = case("shadowkv")
    memory = memory_at(s.made(), s, 1)
    tokens = 122880 + 128
    index = 32 * 8 * 32 * tokens
    whole = TOKEN * (tokens + 8) + index * 8 / tokens
    assert memory.kv == pytest.approx(index + whole * (160 / 2048 + 0.0156), rel=1e-6)
    assert memory.host == pytest.approx(0.5 * whole, rel=1e-6)
    # 40 % of the chosen values cross a link of 32 GB/s
    apart = replace(s.made().treatment, placement=Treatment().placement)
    _, parts = decode(replace(s, techniques=apart))
    crossing = 0.5 * 0.4 * 0.0156 * TOKEN * (122880 + 64 + 8)
    assert parts["fetch"] == pytest.approx(crossing / 32e9, rel=1e-3)


def test_selection_reads_its_index_and_makes_keys_again():
    s = case("shadowkv")
    made = s.made()
    job = Job(made.network, machine_of(made, s), [Tokens(4, 1, 100000)], made.treatment)
    look, more, again = _selected(job)
    # 32 bytes a head and token, 8 heads, 4 sequences; entries of 128 elements of 2 bytes
    assert float(look.fields["rows"]) == 4 * 100000 * 8 * 32 / 256
    assert float(look.count) == float(more.count) == 32
    assert [float(again.fields[x]) for x in ("m", "n", "k")] == [6240, 1024, 160]
    prefill = replace(job, groups=[Tokens(1, 8192, 65536)])
    assert not any(np.any(c.count) for c in _selected(prefill))  # a chunk of a prompt is no step


def test_fetching_loses_where_the_cache_is_short():
    for use in ("shadowkv:hit=0", "sentencekv:read=0.5"):
        assert decode(case(use, isl=2048))[0] > decode(case(isl=2048))[0]
    assert decode(case("shadowkv"), 8)[0] < 0.5 * decode(case(), 8)[0]


def test_prefill_holds_what_it_drops_later():
    full, ours, goes = (case(u, isl=131072) for u in ("", "gemfilter:kept=0.01", "h2o:keep=0.01"))
    kv = [memory_at(s.made(), s, 1).kv for s in (full, ours, goes)]
    assert kv[1] / kv[0] == pytest.approx(13 / 32, rel=0.01)
    assert kv[2] / kv[0] == pytest.approx(0.01, rel=0.02)
    many = [memory_at(s.made(), s, 8).kv for s in (full, ours)]  # one of eight is being read in
    assert many[1] / many[0] == pytest.approx((13 / 32 + 7 * 0.01) / 8, rel=0.01)


def test_chunks_of_a_prompt_see_what_earlier_ones_left():
    made = case("locret:budget=4096:chunk=1024").made()
    job = Job(made.network, machine_of(made, case("locret")), [Tokens(1, 1024, 65536)],
              made.treatment)  # fmt: skip
    work = _case(job)
    seen = [row_of(c, work).fields["kv_len"] for c in work.calls if c.op == "attention"]
    assert [float(np.max(x)) for x in seen] == [4096 + 1024]


def test_drafts_of_the_model_itself():
    assert accepted(0.9, 6) == pytest.approx(sum(0.9**i for i in range(7)))
    assert accepted(1.0, 6) == 7
    base = Scenario("llama-2-7b", "a100_sxm", traffic=Traffic(122880, 256, 1))
    plain, _ = decode(base)
    phases, _ = phases_of(
        (s := replace(base, techniques="triforce")).made(), s, Points.of(1, 122880, 256)
    )
    assert phases.draft is not None
    short, _ = decode(replace(base, traffic=Traffic(4096, 2, 1)))
    assert float(phases.draft["time"][0]) == pytest.approx(short, rel=0.02)
    assert float(phases.decode["time"][0]) > plain  # seven positions take longer than one
    # where the cache is short there is nothing to save: drafting costs as much as decoding
    brief = replace(base, traffic=Traffic(2048, 256, 1))
    one, two = (
        float(solve_points(replace(brief, techniques=u), Points.of(1, 2048, 256))["tpot"][0])
        for u in ("", "triforce:rate=0.5")
    )
    assert two > one


def test_pooled_instances_hold_longer_contexts():
    s = Scenario("llama-2-13b", "a100_sxm", 32, traffic=Traffic(1_880_000, 1, 1))
    pooled = replace(s, layout=Layout(cp=32))
    assert memory_at(pooled.made(), pooled, 1).kv == pytest.approx(
        40 * 40 * 128 * 2 * 2 * 1_880_009 / 32, rel=1e-6
    )


def test_exclusions_and_bad_values():
    with pytest.raises(InfeasibleError, match=r"kv\.keep"):
        treatment_of("h2o,kvmerger")
    with pytest.raises(InfeasibleError, match=r"kv\.place"):
        treatment_of("shadowkv,sentencekv")
    assert treatment_of("kivi,kvmerger").kv.keep == 0.5
    with pytest.raises(SpecError, match=r"h2o\.keep"):
        get("h2o").apply(Treatment(), keep=1.5)


def test_128k_tokens_of_an_8b_on_24_gb():
    # published: Locret serves them on one card with 8 times fewer cached tokens; not without it
    full, ours = (case(u, isl=131072, on="rtx_4090") for u in ("", "locret:budget=16384"))
    need = [memory_at(s.made(), s, 1).total for s in (full, ours)]
    assert need[1] < 24e9 < need[0]
    assert cache(full, 131072) / cache(ours, 131072) == pytest.approx(8.0, rel=0.001)


def test_padded_tiles_waste_what_few_heads_leave():
    from ridgecast.claims.recipes.sparse_attention import _kernels
    from ridgecast.hardware import get as device

    hw = replace(device("h100_sxm"), l2=replace(device("h100_sxm").l2, bandwidth=1e18))
    one, four, sixteen = (_kernels(hw, g, 64, 16)[0] for g in (1, 4, 16))
    # 32 heads, 64K tokens, 1024 keys, 4 x 128 operations: rows padded to 16 cost 16 and 4 times
    exact = 65536 * 32 * 1024 * 4 * 128 / hw.rate("bf16")
    assert (one / exact, four / exact, sixteen / exact) == pytest.approx((16, 4, 1))
