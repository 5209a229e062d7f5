"""Models on machines under traffic: memory by hand, published cases, what techniques do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgecast.errors import InfeasibleError, SpecError, UnsupportedError
from ridgecast.hardware import get as device
from ridgecast.models import Layout, get
from ridgecast.scenario import (
    Host,
    Points,
    Scenario,
    Traffic,
    evaluate,
    formats_of,
    largest_batch,
    memory_at,
    solve_points,
)
from ridgecast.scenario.rows import gemm_work
from ridgecast.techniques import Storage, Treatment, treatment_of

GIB = 2.0**30


def case(model="llama-3.1-8b", on="h100_sxm", n=1, *, traffic=None, **more) -> Scenario:
    return Scenario(model, on, n, traffic=traffic or Traffic(2048, 512, 16), **more)


def weights_and_cache(s: Scenario, batch: int) -> tuple[float, float]:
    memory = memory_at(s.made(), s, batch)
    return memory.weights, memory.kv


def test_weights_and_cache_are_counted_exactly():
    s = case()
    weights, kv = weights_and_cache(s, 16)
    assert weights == pytest.approx(8_030_261_248 * 2, rel=1e-9)
    # 32 layers x 8 heads x 128 x (K and V) x 2 bytes a token, and half a page of 16 tokens
    assert kv == pytest.approx(16 * (2560 + 8) * 131072, rel=1e-9)


def test_tensor_parallel_shards_what_it_can():
    one = weights_and_cache(case("llama-3.1-70b", n=8, layout=Layout(tp=8)), 8)
    two = weights_and_cache(case("llama-3.1-70b", n=4, layout=Layout(tp=4)), 8)
    assert two[0] / one[0] == pytest.approx(2.0, rel=0.01)
    assert two[1] / one[1] == pytest.approx(2.0, rel=1e-6)
    # 8 heads of keys do not divide by 16 devices: every shard keeps one head
    more = weights_and_cache(case("llama-3.1-70b", n=16, layout=Layout(tp=16)), 8)
    assert more[1] == pytest.approx(one[1])


FITS = [
    # published: 70B in 16 bits on 8 x 80 GB (Meta's model card of Llama 3.1)
    ("llama-3.1-70b", "h100_sxm", 8, "", "", 1, 8192, True),
    ("llama-3.1-70b", "h100_sxm", 1, "", "", 1, 8192, False),
    # DFloat11 (arXiv:2504.11651): 405B lossless on 8 x 80 GB, 810 GB in bf16
    ("llama-3.1-405b", "h100_sxm", 8, "", "dfloat11", 1, 1024, True),
    ("llama-3.1-405b", "h100_sxm", 8, "", "", 1, 1024, False),
    # SpQR (arXiv:2306.03078): 33B at 3 to 4 bits on 24 GB
    ("llama-30b", "rtx_4090", 1, "", "spqr", 1, 1024, True),
    ("llama-30b", "rtx_4090", 1, "", "", 1, 1024, False),
    # 128K tokens of an 8B on 24 GB once the cache is eight times smaller
    ("llama-3.1-8b", "rtx_4090", 1, "", "kivi:bits=2:group=256", 1, 131072, True),
    ("llama-3.1-8b", "rtx_4090", 1, "", "", 1, 131072, False),
    # GPTQ (arXiv:2210.17323): 175B at 3 bits on one 80 GB device, where 16 bits need five
    ("opt-175b", "a100_sxm", 1, "", "gptq:bits=3", 1, 1024, True),
    ("opt-175b", "a100_sxm", 4, "", "", 1, 1024, False),
]


@pytest.mark.parametrize("model,on,n,dtype,technique,batch,length,expected", FITS)
def test_published_cases_fit_or_not(  # noqa: PLR0917 - a row of the table above
    model, on, n, dtype, technique, batch, length, expected
):
    s = Scenario(model, on, n, traffic=Traffic(max(length - 128, 1), 128, batch), dtype=dtype,
                 engine="hf", techniques=technique, layout=Layout(tp=n))  # fmt: skip
    made = s.made()
    s = replace(s, techniques=replace(made.treatment, batching=replace(
        made.treatment.batching, chunk=2048)))  # fmt: skip
    assert (memory_at(s.made(), s, batch).total <= made.hardware.memory.capacity) == expected


def test_minima_qwen3_32b_memory():
    """Minima: 64 GiB before, weights and 8k of cache."""
    s = Scenario("qwen3-32b", "h100_sxm", 1, traffic=Traffic(8064, 128, 1), engine="hf")
    weights, kv = weights_and_cache(s, 1)
    assert (weights + kv) / GIB == pytest.approx(64, rel=0.04)


def test_largest_batch_is_the_edge():
    s = case()
    made = s.made()
    most = largest_batch(made, s)
    limit = made.hardware.memory.capacity * made.engine.memory_share
    assert memory_at(made, s, most).total <= limit < memory_at(made, s, most + 1).total


def test_fewer_bits_of_cache_fit_larger_batches_and_raise_throughput():
    plain = evaluate(case(traffic=Traffic(2048, 512, "max")))
    small = evaluate(case(traffic=Traffic(2048, 512, "max"), techniques="kivi"))
    # 2 bits and 32 bits of scale and zero a group of 32: 3 bits an element
    assert small.max_batch / plain.max_batch == pytest.approx(16 / 3, rel=0.1)
    assert small.output_tokens_per_s_per_gpu > 1.3 * plain.output_tokens_per_s_per_gpu


def test_a_smaller_format_can_be_slower():
    """Rebuilding all weights in memory costs more than the bytes that it saves."""
    stored = Storage(11, unpack=20.0, rebuild=True)
    slow = Treatment(weights=stored)
    plain = evaluate(case(traffic=Traffic(128, 128, 1)))
    packed = evaluate(case(traffic=Traffic(128, 128, 1), techniques=slow))
    assert packed.memory_total < plain.memory_total
    assert packed.tpot > plain.tpot


def test_four_bit_weights_gain_at_small_batches_only():
    def tpot(technique: str, batch: int) -> float:
        return evaluate(case(traffic=Traffic(256, 64, batch), techniques=technique)).tpot

    assert tpot("", 1) / tpot("marlin", 1) > 1.6
    assert tpot("", 1) / tpot("marlin", 1) > tpot("", 256) / tpot("marlin", 256)


def test_gemm_work_of_stored_weights_by_hand():
    work = gemm_work(16, 4096, 4096, "bf16", Storage(4, 128, 16, unpack=2.0))
    cells = 4096 * 4096
    assert work.read == 2 * 16 * 4096 + cells * (4 + 16 / 128) / 8
    assert work.flops["vector"] == 2.0 * cells and work.flops["bf16"] == 2 * 16 * cells


def test_prediction_is_never_below_light_and_grows_with_work():
    s = case()
    out = solve_points(s, Points.of([1, 8, 64, 128], 2048, 512))
    bytes_read = 8.03e9 * 2
    assert (out["tpot"] > bytes_read / device("h100_sxm").memory.bandwidth).all()
    assert (np.diff(out["tpot"]) > 0).all()
    assert (np.diff(out["output_tokens_per_s"]) > 0).all()
    for name in ("ttft", "tpot", "e2e"):
        assert (out[f"{name}_low"] <= out[name]).all() and (out[name] <= out[f"{name}_high"]).all()


def test_little_s_law_ties_rate_and_batch():
    answer = evaluate(case(traffic=Traffic(1024, 256, request_rate=4.0)))
    carried = answer.batch / answer.e2e
    assert carried >= 4.0
    with pytest.raises(InfeasibleError, match="replicas"):
        evaluate(case(traffic=Traffic(1024, 256, request_rate=4000.0)))


def test_random_arrivals_wait_the_longer_the_busier_it_is():
    waits = [evaluate(case(traffic=Traffic(4096, 64, request_rate=r))).ttft for r in (0.1, 2, 6)]
    assert waits == sorted(waits)
    alone = evaluate(case(traffic=Traffic(4096, 64, 1))).ttft
    assert waits[0] == pytest.approx(alone, rel=0.05)


def test_what_does_not_fit_says_what_would():
    answer = evaluate(case("llama-3.1-70b"))
    assert not answer.fits and answer.ttft is None
    assert any(r.startswith("fits with dtype") for r in answer.reasons)
    assert any("GB on a device" in r for r in answer.reasons)


def test_layouts_that_do_not_divide_say_what_does():
    with pytest.raises(InfeasibleError, match="use one of 1, 2, 4, 8"):
        evaluate(case(n=3, layout=Layout(tp=3)))
    with pytest.raises(InfeasibleError, match="needs 16 devices"):
        evaluate(case(n=8, layout=Layout(tp=8, pp=2)))


def test_a_format_that_the_device_lacks_names_others():
    with pytest.raises(InfeasibleError, match=r"does not multiply nvfp4.*int4_wo"):
        formats_of(get("llama-3.1-8b"), device("a100_sxm"), "nvfp4")


def test_exclusive_techniques_say_so():
    with pytest.raises(InfeasibleError, match=r"kivi and .* exclude each other"):
        treatment_of("kivi,qserve")


@pytest.mark.parametrize("field,value", [("isl", 0), ("osl", 1.5), ("batch", "many"),
                                         ("request_rate", -1.0), ("prefix", 1.0)])  # fmt: skip
def test_bad_traffic_is_refused_by_field(field, value):
    with pytest.raises(SpecError, match=f"traffic.{field}"):
        Traffic(**{field: value})


def run_cli(*words: str):
    from ridgecast.cli.app import app

    return CliRunner().invoke(app, list(words))


def test_llm_json_has_the_contract():
    done = run_cli("llm", "llama-3.1-8b", "--on", "h100_sxm", "--isl", "512", "--osl", "64",
                   "--batch", "4", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    for name in ("ttft_s", "tpot_s", "e2e_s", "output_tokens_per_s_per_gpu", "power_w",
                 "energy_per_token_j", "memory_bytes"):  # fmt: skip
        assert answer[f"{name}_low"] <= answer[name] <= answer[f"{name}_high"], name
    assert answer["fits"] is True and answer["batch"] == 4
    assert {"limiter", "basis", "breakdown"} <= answer.keys()
    assert sum(answer["breakdown"]["decode"].values()) <= answer["tpot_s"] * 1.01


def test_llm_that_does_not_fit_is_no_answer():
    done = run_cli("llm", "llama-3.1-70b", "--on", "h100_sxm", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["fits"] is False


def test_compare_shows_ratios_and_parts():
    done = run_cli("compare", "llama-3.1-8b@h100_sxm", "llama-3.1-8b@h200_sxm+marlin", "--isl",
                   "256", "--osl", "32", "--json")  # fmt: skip
    found = json.loads(done.stdout)
    assert {r["quantity"] for r in found["ratios"]} >= {"ttft_s", "tpot_s"}
    assert found["parts"][0]["a_s"] is not None
    assert run_cli("compare", "llama-3.1-8b", "x@y").exit_code == 2


@pytest.mark.parametrize("model", ["sdxl", "sd-1.5-unet", "bert-base", "resnet-50", "var-d16"])
def test_networks_that_write_no_text_are_refused(model):
    with pytest.raises(UnsupportedError, match=f"{model} does not generate text"):
        evaluate(case(model))


def test_states_are_neither_paged_nor_shared_nor_negative():
    plain = weights_and_cache(case("mamba2-1.3b", traffic=Traffic(2048, 512, 9)), 9)[1]
    # 48 layers x (4096 x 128 of the scan, 4 x (4096 + 2 x 128) of the convolution) in fp32 at most
    assert 9 * 48 * 4096 * 128 * 4 < plain < 9 * 48 * (4096 * 128 + 4 * 4352) * 4 * 1.001
    shared = case("mamba2-1.3b", traffic=Traffic(2048, 512, 9, prefix=0.9))
    assert weights_and_cache(shared, 9)[1] == pytest.approx(plain)


def test_a_shared_prefix_is_held_once():
    kv = weights_and_cache(case(traffic=Traffic(2000, 512, 10, prefix=0.5)), 10)[1]
    # 1000 tokens once; 1512 and half a page of 16 for each of ten sequences
    assert kv == pytest.approx((10 * (1512 + 8) + 1000 + 8) * 131072, rel=1e-9)


def test_slow_arrivals_leave_the_device_idle():
    busy = evaluate(case(traffic=Traffic(2048, 512, 1), price_per_h=2.0))
    slow = evaluate(case(traffic=Traffic(2048, 512, request_rate=0.01), price_per_h=2.0))
    assert slow.output_tokens_per_s_per_gpu == pytest.approx(0.01 * 512)
    assert slow.cost_per_million_tokens == pytest.approx(2.0 / 3600 / 5.12 * 1e6)
    assert slow.power < 0.5 * busy.power and slow.energy_per_token > busy.energy_per_token
    assert slow.power == pytest.approx(slow.energy_per_token * 5.12)


def test_stages_of_a_pipeline_work_at_a_time_and_draw_at_least_idle_power():
    layouts = (Layout(tp=8), Layout(tp=8, pp=4))
    flat, deep = (evaluate(case(n=lay.devices, layout=lay, traffic=Traffic(512, 256, 512)))
                  for lay in layouts)  # fmt: skip
    gain = deep.output_tokens_per_s_per_gpu * 32 / (flat.output_tokens_per_s_per_gpu * 8)
    assert 1.5 < gain < 4.0
    alone = evaluate(case(n=32, layout=layouts[1], traffic=Traffic(512, 256, 1)))
    assert alone.power > 0.1 * device("h100_sxm").board_power
    with pytest.raises(InfeasibleError, match="at most 32"):
        case(n=64, layout=Layout(pp=64)).made()


def test_a_breakdown_adds_up_to_its_pass():
    answer = evaluate(case(traffic=Traffic(2048, 512, 1)))
    assert sum(answer.breakdown["decode"].values()) == pytest.approx(answer.tpot)
    assert sum(answer.breakdown["prefill"].values()) == pytest.approx(answer.ttft)


def test_the_host_holds_no_more_than_it_has():
    host = Host(memory_capacity=100e9)
    s = case("mixtral-8x22b", "rtx_4090", techniques="experts-on-host", host=host)
    answer = evaluate(s)  # 203 GB of experts in bf16
    assert not answer.fits and answer.reasons[1].startswith("needs 202.9 GB of host memory")
    assert answer.reasons[2] == "fits with 8 devices"
    assert evaluate(replace(s, devices=8)).fits


def test_what_was_not_used_or_exceeded_is_said():
    told = evaluate(case(n=7, traffic=Traffic(200000, 10, 1))).reasons
    assert told[0].startswith("3 of 7 devices are left over")
    assert told[1] == "llama-3.1-8b was made for 131072 tokens; 200010 are asked for"


@pytest.mark.parametrize("on", ["v100_sxm", "t4", "mi50"])
def test_weight_only_formats_need_no_unit(on):
    """AWQ, GPTQ and mxfp4 weights run on devices without bf16: unpacked, multiplied in fp16."""
    wide, narrow = (case("qwen3-0.6b", on, dtype=d, traffic=Traffic(64, 64, 1))
                    for d in ("", "int4_wo"))  # fmt: skip
    assert evaluate(narrow).tpot < evaluate(wide).tpot
    assert evaluate(narrow).formats["linear"] == "fp16, weights at 4.12 bits"
    formats = case("gpt-oss-20b", on).made().formats
    assert formats.expert == "fp16" and formats.expert_storage.bits_each == pytest.approx(4.25)


def test_published_fp8_stays_8_bits_in_memory_without_a_unit():
    weights = [weights_and_cache(case("qwen3-32b-fp8", on), 1)[0]
               for on in ("h100_sxm", "a100_sxm")]  # fmt: skip
    assert weights[1] == pytest.approx(weights[0])
    with pytest.raises(InfeasibleError, match="weight-only"):
        case("qwen3-32b", "a100_sxm", dtype="fp8").made()


def test_what_a_pass_uses_once_comes_from_memory():
    """Kernels timed alone find a small cache in a large L2; those of a network do not."""
    layers, batch, kv = 32, 16, 1024 + 64  # of 65 MB a layer, the L2 of an L40S holds 96
    s = case(on="l40s", traffic=Traffic(1024, 128, batch), dtype="fp8")
    cached = layers * batch * kv * 8 * 128 * 2 * 2
    part = evaluate(s).breakdown["decode"]["attention"]
    least = cached / device("l40s").memory.bandwidth
    assert 0.9 * least < part < 3 * least
    # states of a scan: twice the sequences take twice the time, on either side of the L2's size
    s = case("mamba2-130m", "rtx_4090", traffic=Traffic(128, 128, 1))
    out = solve_points(s, Points.of([32, 64, 128, 256], 128, 128))
    assert (np.diff(out["output_tokens_per_s"]) > 0).all()


def test_collectives_of_a_cut_down_chip_are_those_of_its_sibling():
    """An H20 has a seventh of the H100's rate, and the same links: its all-reduces are alike."""
    shares = [evaluate(case("llama-3.1-8b", on, 8, traffic=Traffic(512, 64, 1))).breakdown["decode"]
              ["attention_sum"] for on in ("h20", "h100_sxm")]  # fmt: skip
    assert 0.7 < shares[0] / shares[1] < 1.4


def test_techniques_that_find_nothing_to_change_say_so():
    told = evaluate(case(techniques="experts-on-host")).reasons
    assert told[0] == "placement: llama-3.1-8b has no experts to place elsewhere"
    assert evaluate(case(techniques="exflow")).reasons[0].startswith("exflow: experts spread")
