"""Weights and caches of few bits: bytes by hand, what they cost, where they lose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.claims.evaluate import check
from ridgecast.errors import InfeasibleError, SpecError
from ridgecast.hardware import get as device
from ridgecast.models import Layout, Tokens, get
from ridgecast.scenario import Points, Scenario, Traffic, formats_of, memory_at, solve_points
from ridgecast.scenario.memory import kv_bytes, weight_bytes
from ridgecast.scenario.passes import Job, Machine, _projected_again
from ridgecast.scenario.rows import gemm_work
from ridgecast.techniques import Storage, treatment_of


def stored(use: str, what: str = "weights") -> float:
    t = treatment_of(use)
    return (t.kv.storage if what == "kv" else getattr(t, what)).bits_each


@pytest.mark.parametrize(("use", "bits"), [
    ("gptq:bits=3", 3.0),
    ("gptq:bits=4:group=128", 4 + 20 / 128),
    ("marlin", 4 + 16 / 128),
    # SpQR, arXiv:2306.03078, equation of the average bits: 3 + 6/16 + 64/256 + 32 x 1 %
    ("spqr", 3 + 6 / 16 + 64 / 256 + 0.32),
    ("efficientqat", 2 + 18 / 64),
    ("qserve", 4 + 12 / 128),
    ("flash-llm:zeros=0.8", 0.2 * 32),
    ("gqsa", 0.5 * (4 + 36 / 16)),
    ("minima:kept=0.6", 9.6),
    ("dfloat11", 11.0),
])  # fmt: skip
def test_bits_of_a_weight_by_hand(use, bits):
    assert stored(use) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(("use", "bits"), [
    ("kivi", 3.0),
    ("qserve", 4.25),
    ("zipcache", 0.6 * 4 + 0.4 * 2 + 32 / 1024),
    ("mikv:salient=1", 16.0),
    ("bfp-outlier-kv", 8.125),
])  # fmt: skip
def test_bits_of_a_cached_element_by_hand(use, bits):
    assert stored(use, "kv") == pytest.approx(bits, rel=1e-12)


def test_embedding_and_head_keep_their_format_unless_a_technique_says_so():
    network, on = get("llama-3.1-8b"), device("h100_sxm")

    def size(use: str) -> float:
        t = treatment_of(use)
        return weight_bytes(network, formats_of(network, on, treatment=t), Layout(), t)

    ends, norms = 2 * 128256 * 4096, 65 * 4096
    linear = 8_030_261_248 - ends - norms
    assert size("gptq:bits=4") == pytest.approx(linear / 2 + 2 * (ends + norms))
    assert size("dfloat11") == pytest.approx((linear + ends) * 11 / 8 + 2 * norms)


def test_the_last_tokens_of_the_cache_stay_in_16_bits():
    network, on = get("llama-2-7b"), device("a100_sxm")
    t = treatment_of("kivi:residual=128")
    t = replace(t, kv=replace(t.kv, page=0))
    f = formats_of(network, on, treatment=t)
    each = 2 * 32 * 32 * 128  # elements of a token: K and V, layers, heads, width
    found = kv_bytes(network, f, Layout(), t, np.array([64.0, 1128.0]))
    assert found == pytest.approx([64 * each * 2, (1000 * 3 / 8 + 128 * 2) * each])


def test_inputs_instead_of_keys_and_values_are_projected_again():
    network, on = get("llama-2-7b"), device("h100_sxm")
    t = treatment_of("xquant")
    machine = Machine(on, Layout(), formats_of(network, on, treatment=t), _engine())
    decode, prefill = Tokens(8.0, 1.0, 1000.0), Tokens(1.0, 512.0, 512.0)
    again, none = _projected_again(Job(network, machine, [decode, prefill], t))
    assert float(again.count) == 32 and float(none.count) == 0
    # every cached token times both matrices of 4096 x 4096
    assert [float(again.fields[x]) for x in "mnk"] == [8000.0, 8192.0, 4096.0]


def _engine():
    from ridgecast.scenario import engine

    return engine("vllm")


def test_work_of_codes_factors_and_look_ups_by_hand():
    cells = 4096 * 4096
    coded = gemm_work(256, 4096, 4096, "bf16", treatment_of("dfloat11").weights)
    assert coded.flops["vector"] == 16 * cells  # decoded once, not once a block of rows
    assert coded.read == 2 * 256 * 4096 + cells * (11 / 8 + 2)
    factors = gemm_work(16, 4096, 4096, "bf16", treatment_of("minima:kept=0.5").weights)
    assert factors.flops["bf16"] == 16 * cells and factors.read == 2 * 16 * 4096 + cells
    one, many = (gemm_work(m, 4096, 4096, "bf16", treatment_of("lut-gemm").weights)
                 for m in (1, 16))  # fmt: skip
    assert many.flops["vector"] == 16 * one.flops["vector"]  # every row looks up again


def tpot(use: str, batch: int, *, isl: int = 512, model: str = "llama-2-7b") -> float:
    s = Scenario(model, "a100_sxm", traffic=Traffic(isl, 128, batch), techniques=use)
    return float(solve_points(s, Points.of(batch, isl, 128))["tpot"][0])


def test_techniques_can_lose():
    assert tpot("gptq-eager", 1) > tpot("", 1)  # a copy of every weight, each pass
    assert tpot("dfloat11", 1) > tpot("", 1)
    assert tpot("xquant", 16, isl=4096) > tpot("", 16, isl=4096)  # products cost more than bytes
    assert tpot("marlin", 512) > 0.95 * tpot("", 512)  # nothing to gain where products bound
    assert tpot("lut-gemm", 64) > tpot("gptq:bits=3", 64)  # no sharing between rows


def test_scores_through_memory_take_room():
    s = Scenario("llama-3-8b", "a100_sxm", traffic=Traffic(4096, 1, 2), engine="hf")
    flash = memory_at(s.made(), s, 2).activations
    wide = replace(s, techniques=replace(treatment_of(""), attention="standard"))
    # two of them in 16 bits: 32 heads x 8192 new tokens x 4096
    assert memory_at(wide.made(), wide, 2).activations - flash == 2 * 2 * 32 * 8192 * 4096


def test_exclusions_and_bad_parameters():
    for pair in ("gptq,marlin", "qserve,kivi", "xquant,zipcache", "spqr,dfloat11"):
        with pytest.raises(InfeasibleError, match="exclude each other"):
            treatment_of(pair)
    assert treatment_of("gptq,kivi").techniques == ("gptq", "kivi")
    with pytest.raises(SpecError, match=r"gptq.bits: got 1"):
        treatment_of("gptq:bits=1")
    with pytest.raises(SpecError, match="rows"):
        Storage(4, rows=0)
    with pytest.raises(InfeasibleError, match="does not multiply int4"):
        Scenario("llama-2-7b", "h100_sxm", techniques="comet-w4a4kv4").made()


@pytest.mark.parametrize("work", ["gptq", "efficientqat", "xquant", "spqr"])
def test_published_sizes_are_reproduced(work):
    assert check(work).verdict == "reproduced"


def test_sizes_of_qmoe_are_reproduced_its_overhead_is_not():
    found = {line.metric: line.verdict for line in check("qmoe").figures}
    sizes = ("parameters", "memory_uncompressed", "memory_compressed_max", "compression")
    assert {found[name] for name in sizes} == {"reproduced"}


def test_what_contradicts_a_work_is_said():
    found = check("qserve")
    assert found.verdict == "direction only"
    assert {line.verdict for line in found.figures} >= {"reproduced", "contradicted"}
