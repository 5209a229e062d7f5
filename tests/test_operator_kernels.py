"""Kernel families: names in tables, who runs what, what is taken where nobody measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ridgecast import predict_table
from ridgecast.hardware import get
from ridgecast.ops import op_class
from ridgecast.predict.operator_base import base_time, fit_base
from ridgecast.predict.operator_features import known
from ridgecast.predict.operator_fit import fit_operator
from ridgecast.predict.operator_kernels import Kernels, family_of, formats_of, learn_kernels
from ridgecast.predict.operator_model import NEW_BEYOND, RARE, load_operator, operator_rows
from ridgecast.predict.operator_rows import op_parts
from ridgecast.predict.operator_train import predict_rows
from ridgecast.predict.sweep_parts import _scaled, fit_intervals

BF16, MXFP4, INT4 = ("bf16", "bf16"), ("bf16", "mxfp4"), ("int4_wo", "int4_wo")


@pytest.mark.parametrize(
    ("source", "family"),
    [
        ("vllm_unquantizedfusedmoe_triton_tritonexperts", "triton"),
        ("vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts", "cutlass"),
        ("vllm_fp8moe_flashinfer_trtllm_trtllmfp8expertsmodular", "trtllm"),
        ("vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic", "oaitriton"),
        ("vllm_compressedtensorsw4a4mxfp4moe_marlin_marlinexperts_situ_as_silu", "marlin"),
        ("vllm_fused_moe", "triton"),
        ("something new", ""),
    ],
)
def test_families(source: str, family: str) -> None:
    assert family_of(source) == family


def learned(architecture: str = "hopper") -> Kernels:
    """Three structures in bf16, the last by another kernel; one in MXFP4, spread experts apart."""
    kernel = ["triton", "triton", "cutlass", "oaitriton", "cutlass", "cutlass"]
    formats = [BF16, BF16, BF16, MXFP4, BF16, BF16]
    structure = np.array([[1.0], [2.0], [3.0], [4.0], [1.0], [2.0]])
    flag = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    return learn_kernels([*kernel, "marlin"], [*formats, INT4], np.vstack([structure, [[5.0]]]),
                         np.append(flag, 1.0), architecture)  # fmt: skip


def chosen(kernels: Kernels, formats: tuple[str, ...], structure: float, flag: float = 1.0) -> str:
    at = kernels.choose(formats, np.array([[structure]]), np.array([flag]))
    return kernels.names[int(at[0])]


def test_a_structure_keeps_its_own_kernel_and_a_new_one_takes_the_usual() -> None:
    kernels = learned()
    assert chosen(kernels, BF16, 3.0) == "cutlass"
    assert chosen(kernels, BF16, 9.0) == "triton"
    assert chosen(kernels, BF16, 9.0, 2.0) == "cutlass"


def test_a_format_of_few_structures_takes_what_the_engine_documents() -> None:
    assert chosen(learned(), MXFP4, 9.0) == "oaitriton"
    assert chosen(learned("ada"), MXFP4, 9.0) == "marlin"
    assert chosen(learned("ada"), MXFP4, 4.0) == "oaitriton"  # measured there
    assert chosen(learned(), INT4, 9.0) == "marlin"


def test_formats_that_nobody_measured_take_the_kernel_of_their_products() -> None:
    assert chosen(learned(), ("bf16", "fp8_e4m3"), 9.0) == "triton"


def test_card_round_trip() -> None:
    kernels = learned()
    assert Kernels.from_card(kernels.to_card()) == kernels


def test_formats_of_words() -> None:
    assert formats_of(("bf16", "mxfp4", "True", "balanced")) == MXFP4


def test_layers_that_are_the_same_on_a_device_have_the_same_traits() -> None:
    moe = op_class("moe")
    whole = {"hidden": 1024, "top_k": 2, "router": False}
    wide = moe(num_tokens=64, inter=512, experts=8, **whole).traits
    cut = moe(num_tokens=64, inter=1024, experts=8, tp=2, **whole).traits
    assert wide.sizes["columns"] == cut.sizes["columns"]
    assert wide.sizes["expert_bytes"] == cut.sizes["expert_bytes"]
    assert wide.dealt == cut.dealt


def test_traits_by_hand() -> None:
    op = op_class("moe")(num_tokens=8, hidden=256, inter=128, experts=4, top_k=2, router=False)
    assert op.traits.sizes["expert_rows"] == 4.0  # 16 rows over 4 experts
    assert op.traits.padded["16"] == 4.0  # each of them fills a quarter of a tile
    assert op.traits.dealt["up16"] == (4 * 2, 256 / 64)  # 2 x 128 columns in blocks of 128
    assert op.traits.streams["sums"] == 8 * 2 * 256 * 2  # all pairs in bf16, wherever experts are
    assert replace(op, ep=4).traits.streams["sums"] == op.traits.streams["sums"]
    assert op.traits.padded["odd"] == 0.0
    odd = replace(op, tp=16).traits  # 8 columns a device: copied one by one
    assert odd.padded["odd"] == odd.padded["16"]
    assert odd.sizes["even_columns"] == 8


def test_a_family_has_its_own_physics_where_enough_structures_tell_it() -> None:
    code = np.arange(60) % 6
    terms = {"call": np.full(60, 1e-6), "memory": 1e-6 * (1.0 + np.arange(60.0)),
             "padded_odd": np.zeros(60)}  # fmt: skip
    family = np.where(code < 4, "fast bf16", "slow bf16")
    time = terms["memory"] * np.where(code < 4, 2.0, 4.0)
    found = fit_base(terms, time, family, code)
    assert found["fast bf16: memory"] == pytest.approx(2.0, rel=0.05)
    assert not any(name.startswith("slow") for name in found)  # of two structures only
    whole = base_time(terms, family, {**found, "memory": 3.0, "call": 0.0})
    assert whole[code < 4] == pytest.approx(time[code < 4], rel=0.1)
    assert whole[code >= 4] == pytest.approx(3.0 * terms["memory"][code >= 4])
    flat = {name: value for name, value in found.items() if ":" not in name}  # an older card
    assert (base_time(terms, family, flat) == base_time(terms, np.full(60, ""), flat)).all()


def test_eight_bits_take_four_without_unpacking() -> None:
    asked = {"num_tokens": 8, "hidden": 256, "inter": 128, "experts": 4, "top_k": 2}
    moe = op_class("moe")
    native = moe(dtype="fp8_e4m3", weight_dtype="mxfp4", router=False, **asked).work()
    unpacked = moe(dtype="bf16", weight_dtype="mxfp4", router=False, **asked).work()
    assert native.flops["integer"] == 0.0 < unpacked.flops["integer"]


def test_groups_that_differ_widen_and_alike_ones_narrow() -> None:
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(8), 200)
    apart = rng.normal(0.0, 0.3, 8)[code] + rng.normal(0.0, 0.02, 1600)
    alike = rng.normal(0.0, 0.1, 1600)
    assert _scaled(alike, code) == pytest.approx(1.0, abs=0.1)
    assert _scaled(apart, code) > _scaled(alike, code)
    assert _scaled(alike, np.zeros(1600, np.int64)) == 2.0


def test_scaled_residuals_hold_left_out_groups() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(60):
        code = np.repeat(np.arange(20), 50)
        residual = rng.normal(0.0, 0.1, 20)[code] + rng.normal(0.0, 0.05, 1000)
        place, value = np.ones(1000, np.int64), np.zeros(1000)
        found = fit_intervals(residual, value, place, 20, together=code)
        low, high = found.limits(np.zeros(1), np.ones(1, np.int64), 0.9)
        new = rng.normal(0.0, 0.1) + rng.normal(0.0, 0.05, 50)
        held.append(((new >= low) & (new <= high)).mean())
    assert 0.84 < np.mean(held) < 0.96


def experts(rows: int = 240) -> dict[str, np.ndarray]:
    """Made rows of four layers by two kernels, one of which takes twice the time."""
    at = np.arange(rows)
    layer = at % 4
    tokens = 2.0 ** (at // 4 % 12)
    slow = np.where(layer == 3, 2.0, 1.0)
    words = {"op": "moe", "hardware": "h200_sxm", "dtype": "bf16", "weight_dtype": "bf16",
             "distribution": "balanced", "gated": "true", "router": "false"}  # fmt: skip
    return {
        "num_tokens": tokens, "hidden": 1024.0 * (1 + layer), "inter": np.full(rows, 512.0),
        "experts": np.full(rows, 16.0), "top_k": np.full(rows, 2.0), "tp": np.ones(rows),
        "ep": 1.0 + (at // 48 % 2), "time_s": slow * 1e-6 * (10.0 + tokens * (1 + layer) / 64),
        "kernel_source": np.where(layer == 3, "x_cutlassexperts", "x_tritonexperts").astype(object),
        **{k: np.full(rows, v, object) for k, v in words.items()},
    }  # fmt: skip


def test_fit_save_load_and_predict_with_kernels(tmp_path: Path) -> None:
    device = get("h200_sxm")
    rows = operator_rows(experts(), "moe", device)
    model = fit_operator(rows, "moe", device, "made/up")
    model.save(tmp_path)
    again = load_operator(tmp_path)
    assert again.kernels == model.kernels
    assert again.kernels is not None
    assert again.kernels.names == ("cutlass", "triton")
    op = op_class("moe")(num_tokens=64, hidden=4096, inter=512, experts=16, top_k=2, router=False)
    time, low, high, place = again.predict(op, known(op, 1, device), device, 0.9)
    assert time[0] == pytest.approx(2e-6 * 14.0, rel=0.2)
    assert low[0] <= time[0] <= high[0]
    assert place[0] == 0
    new = replace(op, hidden=512, dtype="fp8_e4m3", weight_dtype="fp8_e4m3")
    *_, place = again.predict(new, known(new, 1, device), device, 0.9)
    assert place[0] == NEW_BEYOND
    between = replace(op, hidden=1536, dtype="fp8_e4m3", weight_dtype="fp8_e4m3")
    time, low, high, place = again.predict(between, known(between, 1, device), device, 0.9)
    assert place[0] == RARE
    assert low[0] < time[0] < high[0]


def test_scores_are_of_what_predict_answers() -> None:
    device, table = get("h200_sxm"), experts()
    rows = operator_rows(table, "moe", device)
    table["num_tokens"] = table["num_tokens"] * 16.0  # inside, at the edge and beyond
    asked = operator_rows(table, "moe", device)
    model = fit_operator(rows, "moe", device, "made/up")
    scored, *_ = predict_rows(model, asked, 0.9)
    done = np.zeros(len(asked.time))
    for part in op_parts(op_class("moe"), table, np.arange(len(done))):
        assert part.op is not None
        k = known(part.op.settled(), len(part.rows), device)
        done[part.rows] = np.maximum(model.predict(part.op, k, device, 0.9)[0], k.bound)
    assert scored == pytest.approx(done[asked.positions])


def test_an_exponent_that_does_nothing_is_settled() -> None:
    moe = op_class("moe")
    asked = {"num_tokens": 8, "hidden": 256, "inter": 128, "experts": 4, "top_k": 2}
    assert moe(**asked, exponent=1.0).settled().exponent == 0.0
    assert moe(**asked, exponent=1.2, distribution="power_law").settled().exponent == 1.2


@pytest.mark.parametrize("device", ["h200_sxm", "b200_sxm", "b300_sxm"])
@pytest.mark.parametrize("weights", ["mxfp4", "bf16"])
def test_more_tokens_of_a_layer_that_nobody_measured_are_no_surer(device, weights):
    """From the largest work that was measured on: beyond it, intervals open and do not close."""
    tokens = [4096, 8192, 16384, 32768, 65536]
    layer = {"hidden": 6144, "inter": 10240, "experts": 128, "top_k": 8, "router": False}
    asked = {"op": "moe", "hardware": device, "dtype": "bf16", "weight_dtype": weights, **layer}
    table = {n: np.full(len(tokens), v, object) for n, v in asked.items()}
    done = predict_table({**table, "num_tokens": np.array(tokens)})
    width = done["time_high_s"] / done["time_low_s"]
    assert (done["status"] == "ok").all() and (width >= 0.999 * width[0]).all()
