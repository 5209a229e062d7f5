"""State-space networks: parameters, states, operations of a layer by hand, layouts, bad configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ridgecast.errors import InfeasibleError, SpecError
from ridgecast.models import Call, Layout, Network, Tokens
from ridgecast.models.config import read_config
from ridgecast.models.registry import config_of, get, names
from ridgecast.ops import op_class

KINDS = {"mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "nemotron_h", "zamba2"}
SHIPPED = [n for n in names() if config_of(n).get("model_type") in KINDS]
PRODUCTS = ("gemm", "attention", "convolution", "moe", "ssd")
ONE = Layout()


def flops(calls: Sequence[Call], ops: Sequence[str] = PRODUCTS) -> float:
    """Operations of matrix products of these calls."""
    return sum(op_class(c.op)(**c.fields).flops * c.count for c in calls if c.op in ops)


def by_part(network: Network, group: Tokens, layout: Layout = ONE) -> dict[str, float]:
    out: dict[str, float] = {}
    for call in network.calls([group], layout):
        out[call.part] = out.get(call.part, 0.0) + flops([call])
    return out


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_are_the_published_ones(name: str):
    published = config_of(name).get("_published_parameters")
    if published is None:
        pytest.skip("no exact count is published")
    assert get(name).parameters == pytest.approx(published, rel=1e-5)


def test_enough_are_shipped():
    assert len(SHIPPED) >= 12


def test_state_of_mamba_by_hand_and_whatever_the_length():
    net = get("mamba-2.8b")
    # 64 layers, 5120 channels: 16 states each, and 3 inputs of the convolution
    by_hand = 64 * 5120 * (16 + 3)
    for length in (1, 4096, 1_000_000):
        assert sum(c.elements(length) for c in net.caches()) == by_hand
    assert sum(c.elements(4096, tp=4) for c in net.caches()) == by_hand / 4


def test_a_token_of_mamba_by_hand():
    parts = by_part(get("mamba-2.8b"), Tokens(1, 1, 100))
    assert parts["in_projection"] == 64 * 2 * 2560 * 10240
    assert parts["x_projection"] == 64 * 2 * 5120 * (160 + 2 * 16)
    assert parts["dt_projection"] == 64 * 2 * 160 * 5120
    assert parts["out_projection"] == 64 * 2 * 5120 * 2560
    assert parts["short_convolution"] == 64 * 2 * 5120 * 4
    assert parts["head"] == 2 * 2560 * 50280


def test_a_token_of_mamba2_by_hand():
    parts = by_part(get("mamba2-2.7b"), Tokens(1, 1, 100))
    # gate and x 5120 each, B and C 128 each, dt 80
    assert parts["in_projection"] == 64 * 2 * 2560 * (2 * 5120 + 2 * 128 + 80)
    assert parts["short_convolution"] == 64 * 2 * (5120 + 2 * 128) * 4


def test_decode_steps_and_prefill_scans():
    net = get("mamba-2.8b")
    lengths = np.array([1.0, 512.0])
    scans = [c for c in net.calls([Tokens(2.0, lengths, lengths + 8)], ONE) if c.part == "scan"]
    counts = {c.fields["variant"]: np.asarray(c.count) for c in scans}
    assert counts["step"].tolist() == [64, 0] and counts["fused"].tolist() == [0, 64]
    assert all(c.fields["carry"] for c in scans if c.fields["variant"] == "fused")


@pytest.mark.parametrize(
    "name", ["mamba-130m", "mamba2-130m", "jamba-v0.1", "nemotron-h-8b", "zamba2-1.2b"]
)
def test_arrays_give_what_numbers_give(name: str):
    net = get(name)
    batch, q = np.array([1.0, 3.0, 0.0]), np.array([64.0, 1.0, 7.0])
    columns = net.calls([Tokens(batch, q, q + 5)], Layout(tp=2))
    for i in range(2):
        single = net.calls([Tokens(batch[i], q[i], q[i] + 5)], Layout(tp=2))
        assert flops(single) == pytest.approx(_at(columns, i))
    assert _at(columns, 2) == 0.0


def _at(calls: Sequence[Call], i: int) -> float:
    total = 0.0
    for call in calls:
        count = float(np.broadcast_to(call.count, (3,))[i])
        if call.op not in PRODUCTS or not count:
            continue
        fields: dict[str, Any] = {
            k: (int(v[i]) if isinstance(v, np.ndarray) else v) for k, v in call.fields.items()
        }
        total += op_class(call.op)(**fields).flops * count
    return total


def test_every_call_is_an_operation_that_exists():
    for name in (
        "mamba-130m",
        "codestral-mamba-7b",
        "falcon-mamba-7b",
        "jamba-v0.1",
        "bamba-9b",
        "zamba2-7b",
    ):
        for layout in (ONE, Layout(tp=2), Layout(dp=2, ep=2)):
            calls = get(name).calls([Tokens(4, 128, 128), Tokens(8, 1, 900)], layout)
            assert len(calls) <= 30
            for call in calls:
                assert op_class(call.op)(**call.fields) is not None


def test_tensor_parallelism_halves_the_products_and_sums_once_more_for_mamba():
    net, group = get("mamba-2.8b"), Tokens(4, 256, 256)
    one, two = by_part(net, group), by_part(net, group, Layout(tp=2))
    for part in ("in_projection", "x_projection", "dt_projection", "out_projection"):
        assert two[part] == one[part] / 2
    sums = [c for c in net.calls([group], Layout(tp=2)) if c.fields.get("kind") == "all_reduce"]
    assert sum(c.count for c in sums) == 2 * 64 + 1  # dt, B, C; the layer; the embedding


def test_jamba_has_four_attention_layers_and_published_active_parameters():
    net = get("jamba-v0.1")
    kv = [c for c in net.caches() if c.kind == "kv"]
    assert [(c.layers, c.per_token) for c in kv] == [(4, 2 * 8 * 128)]
    # arXiv:2403.19887: 12B active, 52B in all
    assert net.active_parameters == pytest.approx(12e9, rel=0.03)


def test_shared_blocks_are_stored_once_and_used_in_many_layers():
    net = get("zamba2-2.7b")  # two blocks, nine uses
    stored = {w.part: w.total for w in net.weights()}
    parts = by_part(net, Tokens(1, 1, 100))
    assert stored["ffn"] == pytest.approx(2 * 3 * 2560 * 10240)
    assert parts["ffn_up"] + parts["ffn_down"] == 9 * 2 * 3 * 2560 * 10240
    assert parts["qkv"] == 9 * 2 * 5120 * 3 * 5120
    assert parts["attention_out"] == 9 * 2 * 5120 * 2560
    assert next(c for c in net.caches() if c.kind == "kv").layers == 9


def test_layouts_that_cannot_be():
    net, group = get("mamba2-2.7b"), [Tokens(1, 64, 64)]
    with pytest.raises(InfeasibleError, match="heads of a Mamba-2 layer"):
        net.calls(group, Layout(tp=3))
    with pytest.raises(InfeasibleError, match="share a sequence"):
        net.calls(group, Layout(cp=2))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("nemotron-h-8b", {"hybrid_override_pattern": "M-X"}, "hybrid_override_pattern"),
        ("mamba2-2.7b", {"num_heads": 7}, "num_heads"),
        ("mamba2-2.7b", {"n_groups": 3}, "groups"),
        ("zamba2-7b", {"hybrid_layer_ids": [81]}, "hybrid_layer_ids"),
        ("jamba-v0.1", {"attn_layer_offset": 8}, "attn_layer_offset"),
        ("mamba-130m", {"state_size": 0}, "state_size"),
        ("mamba-130m", {"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_contradictory_configs_name_the_field(name: str, change: dict[str, Any], told: str):
    with pytest.raises(SpecError, match=told):
        read_config({**config_of(name), **change})
