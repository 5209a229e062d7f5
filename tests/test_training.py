"""Training: memory and time of a step against published formulas and hand counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ridgecast.errors import SpecError
from ridgecast.models import Layout, get
from ridgecast.techniques import Treatment, treatment_of
from ridgecast.training import Plan, activations_of, step_time, training_memory
from ridgecast.training.memory import adapter_parameters
from ridgecast.training.step import model_flops

H, S, L, A = 12288, 2048, 96, 96  # GPT-3 175B


@pytest.mark.parametrize(
    ("tp", "shared", "factor"),
    [
        (1, False, 34 + 5 * A * S / H),
        (8, False, 10 + 24 / 8 + 5 * A * S / H / 8),
        (8, True, (34 + 5 * A * S / H) / 8),
    ],
)
def test_activations_are_those_of_korthikanti(tp: int, shared: bool, factor: float) -> None:
    # arXiv:2205.05198, equations 1, 2 and 4; ours has the final norm too
    plan = Plan(1, S, flash=False, dropout=True, layout=Layout(tp=tp), sequence_parallel=shared)
    kept = activations_of(get("gpt-3-175b"), plan).layers
    final = 2 * S * H / (tp if shared else 1)
    assert kept - final == pytest.approx(S * H * L * factor, rel=1e-9)


def test_recomputation_keeps_inputs_of_layers() -> None:
    # arXiv:2205.05198, section 5.1: 2 s b h a layer
    network, plan = get("gpt-3-175b"), Plan(1, S, flash=False, recompute="full")
    a = activations_of(network, plan)
    assert a.inputs == 2 * S * H * L
    kept = training_memory(network, plan).activations
    assert kept == pytest.approx(a.inputs + a.layers / L + a.logits)


def test_sixteen_bytes_a_parameter_and_zero() -> None:
    network = get("llama-2-7b")
    n = network.parameters
    m = training_memory(network, Plan(1, 64))
    assert (m.weights, m.gradients, m.states) == pytest.approx((2 * n, 2 * n, 12 * n))
    for zero, parts in ((1, (2, 2, 1.5)), (2, (2, 0.25, 1.5))):
        m = training_memory(network, Plan(1, 64, data=8, zero=zero))
        assert (m.weights, m.gradients, m.states) == pytest.approx(tuple(p * n for p in parts))
    m = training_memory(network, Plan(1, 64, data=8, zero=3))
    assert m.weights == pytest.approx(2 * n * (1 / 8 + 2 / 32))  # two layers gathered whole


def test_published_memory_of_llama_2_7b() -> None:
    # LISA (arXiv:2403.17919), table 1, all in 16 bits: 59 GB all trained, 23 GB adapters of 128
    network, held = get("llama-2-7b"), {}
    for name in ("", "lora:rank=128"):
        t = treatment_of(name)
        t = replace(t, tuning=replace(t.tuning, state_bytes=4.0, master_bytes=0.0))
        held[name] = training_memory(network, Plan(1, 1024), t).total / 1e9
    assert held[""] == pytest.approx(59, rel=0.05)
    assert held["lora:rank=128"] == pytest.approx(23, rel=0.15)


def test_adapters_by_hand() -> None:
    # rank (rows + columns) of the seven matrices of each of 32 layers
    each = 4 * (4096 + 4096) + 2 * (4096 + 11008) + (11008 + 4096)
    assert adapter_parameters(get("llama-2-7b"), 16) == 16 * 32 * each
    assert adapter_parameters(get("llama-2-7b"), 0) == 0.0


def test_offload_moves_and_narrow_storage_can_need_more() -> None:
    network = get("llama-2-7b")
    plan = Plan(1, 512, recompute="full", offload=frozenset({"states"}))
    away, here = training_memory(network, plan), training_memory(network, Plan(1, 512))
    assert away.states == 0.0
    assert away.host == here.states
    # a small share trained at full states costs more than nothing trained
    more = training_memory(network, plan, treatment_of("perp:share=0.5")).total
    assert more > training_memory(network, plan, treatment_of("perp")).total


def test_work_by_hand() -> None:
    network, plan = get("llama-2-7b"), Plan(2, 1024)
    dense = network.parameters - 32000 * 4096  # the embedding is looked up
    attention = 3 * 2 * 32 * 32 * (1024 * 1024 / 2) * 256 * 2
    assert model_flops(network, plan) == pytest.approx(6 * dense * 2048 + attention)


def test_time_of_a_step() -> None:
    network, plan = get("llama-2-7b"), Plan(4, 1024)
    plain = step_time(network, "a100_sxm", plan)
    again = step_time(network, "a100_sxm", replace(plan, recompute="full"))
    assert 1.2 < again.compute / plain.compute < 1.34  # a fourth pass for three
    assert plain.flops == again.flops < again.executed
    frozen = step_time(network, "a100_sxm", plan, Treatment(trainable=0.0))
    assert 0.6 < frozen.compute / plain.compute < 0.8  # two passes for three
    # adapters are no gift: they run beside every product
    assert step_time(network, "a100_sxm", plan, treatment_of("lora")).compute > frozen.compute
    assert plain.flops_per_s < 312e12


def test_bubble_of_stages() -> None:
    plan = Plan(1, 2048, layout=Layout(tp=8, pp=12), accumulate=24)
    step = step_time(get("gpt-3-175b"), "a100_sxm", plan)
    assert step.bubble / step.compute == pytest.approx(11 / 24)
    half = step_time(get("gpt-3-175b"), "a100_sxm", plan, interleave=2)
    assert half.bubble == pytest.approx(step.bubble / 2)
    assert half.exchange > step.exchange  # more messages between stages


@pytest.mark.parametrize(
    "bad",
    [{"recompute": "some"}, {"zero": 4}, {"batch": 0}, {"offload": frozenset({"all"})}],
)
def test_plans_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=r"plan"):
        Plan(**bad)  # type: ignore[arg-type]
