"""What lives elsewhere: bytes and seconds by hand, and that it can cost more than it gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ridgecast.errors import InfeasibleError, SpecError
from ridgecast.hardware import resolve
from ridgecast.models import Layout, Tokens, get
from ridgecast.scenario import Host, Points, Scenario, Traffic, evaluate, formats_of, solve_points
from ridgecast.scenario.solve import largest_batch
from ridgecast.scenario.tiers import Place, away
from ridgecast.techniques import Placement, Treatment, treatment_of
from ridgecast.techniques import get as technique

HOST = Host(memory_bandwidth=100e9, flops_per_s=1e12, memory_capacity=1e12)
EXPERTS = 32 * 8 * 3 * 4096 * 14336 * 2.0  # bytes of Mixtral's experts in 16 bits


def _away(treatment: Treatment, tokens: float = 1.0, host: Host = HOST):
    network, hw = get("mixtral-8x7b"), resolve("a40")
    place = Place(hw, host, Layout(), formats_of(network, hw, treatment=treatment))
    return away(network, place, [Tokens(tokens, 1.0, 128.0)], treatment), hw


def test_experts_are_fetched_as_they_are_picked() -> None:
    one, hw = _away(treatment_of("expert-offload:device_share=0.5"))
    link = hw.links["pcie"].bandwidth
    assert one.alone == pytest.approx(EXPERTS * 0.5 * 2 / 8 / link)
    many, _ = _away(treatment_of("expert-offload:device_share=0.5"), tokens=64.0)
    assert many.alone == pytest.approx(EXPERTS * 0.5 * (1 - 0.75**64) / link)
    none, _ = _away(treatment_of("expert-offload:device_share=1"))
    assert none.alone == 0.0


def test_host_and_link_share_the_work_so_that_both_end_together() -> None:
    host, hw = _away(treatment_of("experts-on-host:device_share=0"))
    both, _ = _away(treatment_of("hybrimoe:device_share=0:hit=0"))
    link = EXPERTS * 2 / 8 / hw.links["pcie"].bandwidth
    cpu = EXPERTS * 2 / 8 / 100e9  # memory limits at one token
    assert host.host_beside == pytest.approx(cpu)
    assert both.host_beside == pytest.approx(1 / (1 / link + 1 / cpu))
    assert both.waited(np.array([1e9])) == 0.0  # beside a long pass nothing waits


def test_small_reads_of_storage_cost_more() -> None:
    place = Placement(device_share=0.0, tier="storage", only="expert")
    long, _ = _away(Treatment(placement=place))
    small, _ = _away(Treatment(placement=replace(place, read_bytes=8192)))
    reads = EXPERTS * 2 / 8 / 8192
    assert small.alone - long.alone == pytest.approx(reads * HOST.storage_read)


def test_attention_elsewhere_leaves_the_device() -> None:
    traffic = Traffic(isl=512, osl=512, batch=8)
    base = Scenario("llama-2-7b", "a10", traffic=traffic, host=HOST, engine="hf")
    mine = evaluate(replace(base, techniques="apex-cpu-gpu:device_share=0"))
    assert "attention" not in mine.breakdown["decode"]
    assert mine.memory["kv"] == 0.0
    assert mine.memory["host"] > 0.0
    here = evaluate(base)
    assert here.breakdown["decode"]["attention"] > 0.0


def test_a_slow_host_makes_it_slower() -> None:
    traffic = Traffic(isl=512, osl=512, batch=16)
    slow = Host(memory_bandwidth=5e9)
    base = Scenario("llama-2-7b", "a10", traffic=traffic, host=slow)
    other = replace(base, techniques="apex-cpu-gpu:device_share=0.2")
    at = Points.of(16, 512, 512)
    assert solve_points(other, at)["tpot"][0] > solve_points(base, at)["tpot"][0]


def test_host_memory_bounds_the_batch() -> None:
    case = Scenario("llama-2-7b", "a10", traffic=Traffic(isl=512, osl=512), host=HOST,
                    techniques="kv-offload")  # fmt: skip
    each = 32 * 2 * 4096 * 2 * 1024  # bytes of cache a sequence
    small = replace(case, host=replace(HOST, memory_capacity=10.5 * each))
    assert largest_batch(small.made(), small) == 10
    drive = replace(case, host=replace(HOST, storage_capacity=7.5 * each),
                    techniques="kv-offload:nvme=1")  # fmt: skip
    assert largest_batch(drive.made(), drive) == 7
    assert largest_batch(case.made(), case) > 10


def test_storage_that_attends_reads_inside() -> None:
    traffic = Traffic(isl=1024, osl=1024, batch=32)
    at = Points.of(32, 1024, 1024)
    names = ("kv-offload:nvme=1", "instinfer:read=1", "instinfer:read=0.125")
    tpot = [
        float(solve_points(Scenario("opt-13b", "rtx_a6000", traffic=traffic, engine="hf",
                                    techniques=n), at)["tpot"][0]) for n in names
    ]  # fmt: skip
    assert tpot[0] / tpot[1] == pytest.approx(2.0, rel=0.05)  # twice the link inside
    assert tpot[2] < tpot[1] / 6


def test_exchanges_halve() -> None:
    t = treatment_of("exflow:stay=0.3")
    assert (t.exchanges, t.exchange_bytes) == (0.5, 0.7)


def test_what_excludes_what() -> None:
    with pytest.raises(InfeasibleError, match=r"exclude each other"):
        treatment_of("instinfer,apex-cpu-gpu")
    with pytest.raises(InfeasibleError, match=r"both set exchange"):
        treatment_of("exflow,lsh-moe")
    with pytest.raises(InfeasibleError, match=r"placement"):
        treatment_of("hybrimoe,llm-in-a-flash")
    with pytest.raises(SpecError, match=r"device_share"):
        technique("hybrimoe").apply(Treatment(), device_share=2)
