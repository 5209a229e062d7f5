"""Decoders: published parameter counts, cache bytes by hand, operations of a pass, bad configs."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from ridgecast.dtypes import dtype
from ridgecast.errors import InfeasibleError, MissingExtraError, SpecError, UnsupportedError
from ridgecast.models import Layout, Tokens, get, load, names
from ridgecast.models.config import READERS, formats_in, read_config
from ridgecast.models.registry import CATALOG, config_of
from ridgecast.models.transformer import Decoder
from ridgecast.ops import op_class

ONE = Layout()
LLAMA = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 512, "vocab_size": 1000,
}  # fmt: skip
MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 4,
               "moe_intermediate_size": 128}  # fmt: skip
LATENT = {
    "model_type": "deepseek_v3", "hidden_size": 256, "num_hidden_layers": 3, "vocab_size": 1000,
    "num_attention_heads": 8, "q_lora_rank": 96, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 512, "n_routed_experts": 16,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
}  # fmt: skip


def decoders():
    """Shipped networks that the readers of `decoders` read."""
    kinds = {n: str(config_of(n).get("model_type", "")).lower() for n in names()}
    return [n for n, kind in kinds.items() if READERS.get(kind, "").startswith("decoders:")
            and config_of(n).get("ridgecast_family", "decoder") == "decoder"
            and "vision_config" not in config_of(n)]  # fmt: skip


def flops(net, groups, layout=ONE, skip=("attention", "indexer", "recurrence")):
    """Matrix operations of all calls but those over the context."""
    found = 0.0
    for c in net.calls(groups, layout):
        if c.op in ("gemm", "moe") and c.part not in skip:
            found += float(np.sum(c.count * op_class(c.op)(**dict(c.fields)).flops))
    return found


# ------------------------------------------------------------------ counts


def test_shipped_decoders_have_their_published_parameters():
    checked, exact = 0, 0
    for name in decoders():
        config = config_of(name)
        published = config.get("_published_parameters")
        if published is None:
            continue
        net = get(name)
        assert net.parameters == pytest.approx(published, rel=0.005), name
        checked += 1
        exact += net.parameters == published
    assert len(decoders()) >= 45 and checked >= 90 and exact >= 70


# The published totals of these count one prediction module (a layer, a product of two hidden
# states, three or four norms; with GLM also an embedding and a head of its own).
@pytest.mark.parametrize(
    ("name", "total", "tables"),
    [("glm-4.5-air", 110_468_824_832, 2), ("glm-4.5", 358_337_791_296, 2),
     ("qwen3-next-80b-a3b", 81_324_862_720, 0)],
)  # fmt: skip
def test_totals_with_a_prediction_module(name, total, tables):
    net = get(name)
    assert isinstance(net, Decoder)
    last = net.blocks[-1]
    module = sum(w.total for w in (*last.mixer.weights(net.hidden), *last.ffn.weights(net.hidden)))
    module += 2 * net.hidden**2 + tables * net.vocab * net.hidden
    assert net.parameters + module == pytest.approx(total, rel=1e-6)


def test_both_llama_4_leave_out_the_same_vision_tower():
    # published totals of Scout and Maverick, the tower included
    scout = 108_641_793_536 - get("llama-4-scout-17b-16e").parameters
    maverick = 401_583_781_376 - get("llama-4-maverick-17b-128e").parameters
    assert scout == maverick == 871_932_416


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3-235b-a22b", "gpt-oss-120b",
                                  "glm-5", "kimi-k2", "gpt-oss-20b", "minimax-m2"])  # fmt: skip
def test_published_active_parameters(name):
    # figures are rounded to whole billions, and some count the embedding
    assert get(name).active_parameters == pytest.approx(config_of(name)["_active"], rel=0.05)


def test_cache_elements_against_hand_counts():
    def each(name, length=10_000, tp=1):
        return sum(c.elements(length, tp) for c in get(name).caches())

    assert each("llama-3.1-8b", 1) == 2 * 32 * 8 * 128
    assert each("llama-3.1-70b", 1, tp=8) == 2 * 80 * 1 * 128
    assert each("llama-3.1-70b", 1, tp=16) == 2 * 80 * 1 * 128  # heads are repeated
    assert each("opt-13b", 1) == 2 * 40 * 5120
    assert each("deepseek-v3", 1) == each("deepseek-v3", 1, tp=8) == 61 * 576
    assert each("deepseek-v3.2", 1) == 61 * (576 + 128)
    # half of the layers slide over 128 tokens (gpt-oss), over 4096 (Gemma 2), 5 of 6 over 1024
    assert each("gpt-oss-20b") == 2 * 8 * 64 * (12 * 10_000 + 12 * 128)
    assert each("gemma-2-9b") == 2 * 8 * 256 * (21 * 10_000 + 21 * 4096)
    assert each("gemma-3-27b") == 2 * 16 * 128 * (10 * 10_000 + 52 * 1024)
    # 15 of 60 layers keep keys and values, 45 a state of 64 heads of 128 x 128 and 3 tokens
    state = 64 * 128 * 128 + 3 * (2 * 16 * 128 + 64 * 128)
    assert each("qwen3.5-397b-a17b") == 15 * 2 * 2 * 256 * 10_000 + 45 * state


# ------------------------------------------------------------------ operations


@pytest.mark.parametrize("name", decoders())
def test_products_are_two_a_parameter_and_token(name):
    """An independent count: every parameter but gathered rows, norms and convolutions."""
    net = get(name)
    batch, length = 2, 256
    used = sum(w.total * w.per_token for w in net.weights()
               if w.role in ("linear", "expert", "head", "router"))  # fmt: skip
    assert isinstance(net, Decoder)
    if net.tied:
        used += net.vocab * (net.embed_dim or net.hidden)
    group = Tokens(batch, length, length, length)
    assert flops(net, [group]) == pytest.approx(2 * used * batch * length, rel=0.01)


def test_attention_of_decode_by_hand():
    calls = [c for c in get("llama-3.1-8b").calls([Tokens(4, 1, 1000)], ONE)
             if c.part == "attention"]  # fmt: skip
    assert len(calls) == 1 and calls[0].count == 32 and calls[0].phase == "decode"
    # scores and values: 2 x 2 flop a key, head and column
    assert op_class("attention")(**dict(calls[0].fields)).flops == 4 * 1000 * 32 * 4 * 128


def test_latent_attention_turns_where_the_counts_say():
    net = get("deepseek-v3")
    kinds = {}
    for q in (1, 169, 171, 4096):
        calls = net.calls([Tokens(1, q, 8192)], ONE)
        kinds[q] = [c.fields.get("shared_kv", False) for c in calls if c.part == "attention"]
    assert kinds == {1: [True], 169: [True], 171: [False], 4096: [False]}
    # one sequence of 8192 keys in decode reads 576 elements a key, not 128 heads of them
    (call,) = [c for c in net.calls([Tokens(1, 1, 8192)], ONE) if c.part == "attention"]
    assert op_class("attention")(**dict(call.fields)).kv_bytes == 2 * 576 * 8192


def test_sparse_attention_of_short_prefill_sees_all_keys():
    for length, shared in ((2048, False), (4096, True)):
        calls = get("deepseek-v3.2").calls([Tokens(1, length, length)], ONE)
        (call,) = [c for c in calls if c.part == "attention"]
        assert call.fields.get("shared_kv", False) is shared


def test_sparse_attention_sees_the_chosen_keys_only():
    net = get("deepseek-v3.2")
    calls = {c.part: c for c in net.calls([Tokens(1, 1, 65536)], ONE)}
    seen = op_class("attention")(**dict(calls["attention"].fields))
    assert seen.flops == 2 * 2048 * 128 * (576 + 512)
    scored = op_class("attention")(**dict(calls["indexer"].fields))
    assert scored.flops == 2 * 65536 * 64 * 129 and scored.kv_bytes == 2 * 128 * 65536


def test_chunked_attention_of_llama_4():
    net = get("llama-4-scout-17b-16e")

    def keys(tokens):
        calls = [c for c in net.calls([tokens], ONE) if c.part == "attention"]
        return sorted((c.count, c.fields["batch"], c.fields["q_len"], c.fields["kv_len"])
                      for c in calls)  # fmt: skip

    # 12 of 48 layers see everything; the others see their chunk of 8192
    assert keys(Tokens(1, 1, 20_000)) == [(12, 1, 1, 20_000), (36, 1, 1, 20_000 - 2 * 8192)]
    assert keys(Tokens(1, 16_384, 16_384)) == [(12, 1, 16_384, 16_384), (36, 2, 8192, 8192)]


@pytest.mark.parametrize("name", ["llama-3.1-70b", "mixtral-8x7b", "deepseek-v3.2", "gpt-oss-20b",
                                  "qwen3-next-80b-a3b", "gemma-3-27b", "minimax-text-01",
                                  "llama-4-maverick-17b-128e", "falcon-40b"])  # fmt: skip
@pytest.mark.parametrize("layout", [ONE, Layout(tp=2), Layout(tp=2, dp=2, ep=4),
                                    Layout(tp=2, dp=8, ep=8), Layout(tp=2, cp=4)])  # fmt: skip
def test_numbers_and_arrays_agree_and_are_operations(name, layout):
    net = get(name)
    points = [(16.0, 1.0, 3000.0), (16.0, 700.0, 1200.0), (0.0, 1.0, 1.0)]
    columns = [np.array(c) for c in zip(*points, strict=True)]
    arrays = net.calls([Tokens(*columns)], layout)
    assert len(arrays) <= 40
    for i, point in enumerate(points):
        amounts: dict[tuple[str, str], float] = {}
        for c in net.calls([Tokens(*point)], layout):
            made = op_class(c.op)(**dict(c.fields))  # fields hold for the operation
            key = (c.part, c.op)
            amounts[key] = amounts.get(key, 0.0) + c.count * made.bytes
        got: dict[tuple[str, str], float] = {}
        for c in arrays:
            count = float(np.broadcast_to(c.count, 3)[i])
            fields = {k: _at(v, i) for k, v in c.fields.items()}
            if count:
                key = (c.part, c.op)
                got[key] = got.get(key, 0.0) + count * op_class(c.op)(**fields).bytes
        assert got == pytest.approx(amounts)
        assert bool(got) == (point[0] > 0)


def _at(value, i):
    if not isinstance(value, np.ndarray):
        return value
    return int(value[i]) if value[i] == int(value[i]) else float(value[i])


def test_tensor_parallel_shards_add_up():
    net, group = get("llama-3.1-70b"), [Tokens(8, 128, 128, 128)]
    assert 8 * flops(net, group, Layout(tp=8)) == pytest.approx(flops(net, group))


def test_collectives_of_a_pass():
    def kinds(name, layout):
        out: dict[tuple[str, int], float] = {}
        for c in get(name).calls([Tokens(8, 1, 100)], layout):
            if c.op == "collective":
                key = (c.fields["kind"], c.fields["gpus"])
                out[key] = out.get(key, 0) + c.count
        return out

    assert kinds("llama-3.1-8b", ONE) == {}
    # two a layer, the embedding's; logits are gathered
    assert kinds("llama-3.1-8b", Layout(tp=4)) == {("all_reduce", 4): 65, ("all_gather", 4): 1}
    assert kinds("falcon-40b", Layout(tp=4)) == {("all_reduce", 4): 61, ("all_gather", 4): 1}
    wide = kinds("deepseek-v3", Layout(dp=16, ep=16))
    assert wide == {("all_to_all", 16): 2 * 58}
    near = kinds("deepseek-v3", Layout(dp=8, ep=8))
    assert near == {("all_gather", 8): 58, ("reduce_scatter", 8): 58}


def test_transients_grow_with_tokens_and_shrink_with_devices():
    net = get("llama-3.1-8b")
    # residual, and the first product of the feed-forward part: 4096 in, 2 x 14336 out
    assert net.activations(1000.0, ONE) == 1000 * (4096 + 4096 + 2 * 14336)
    assert net.activations(1000.0, Layout(tp=4)) == 1000 * (4096 + 4096 + 2 * 14336 / 4)
    several = net.activations(np.array([1.0, 1000.0]), ONE)
    assert several[1] == net.activations(1000.0, ONE)
    assert several[0] == 4096 + 128256  # logits of the one token


# ------------------------------------------------------------------ layouts, configs, names


@pytest.mark.parametrize(
    ("name", "layout", "told"),
    [("llama-3.1-8b", {"tp": 3}, "layout.tp"), ("falcon-7b", {"tp": 2}, "layout.tp"),
     ("qwen2.5-7b", {"tp": 8}, "layout.tp"), ("mixtral-8x7b", {"tp": 16, "ep": 16}, "layout.ep"),
     ("qwen3-30b-a3b", {"tp": 4, "dp": 128}, "columns of an expert"),
     ("deepseek-v3", {"tp": 3}, "layout.tp")],
)  # fmt: skip
def test_layouts_that_do_not_divide(name, layout, told):
    with pytest.raises(InfeasibleError, match=told):
        get(name).calls([Tokens(8, 1, 100)], Layout(**layout))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "llama"}, "hidden_size: not given"),
        (LLAMA | {"hidden_size": 250}, "num_attention_heads: got 8, need a divisor of hidden_size"),
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads: got 3"),
        (LLAMA | {"num_hidden_layers": -2}, "num_hidden_layers: got -2"),
        (LLAMA | {"num_hidden_layers": 2.5}, "num_hidden_layers: got 2.5"),
        (LLAMA | {"num_hidden_layers": 2**39}, "at most 100000"),
        (MOE | {"mlp_only_layers": 3}, "mlp_only_layers: got 3"),
        (LLAMA | {"vocab_size": "many"}, "vocab_size: got 'many'"),
        (LLAMA | {"vocab_size": float("nan")}, "vocab_size: got nan"),
        (LLAMA | {"hidden_act": "slu"}, "unknown config.hidden_act 'slu'; nearest: silu"),
        (LLAMA | {"attention_bias": "yes"}, "attention_bias: got 'yes'"),
        (MOE | {"num_experts_per_tok": 17}, "num_experts_per_tok: got 17"),
        (LLAMA | {"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types"),
        ({"text_config": LLAMA | {"hidden_size": 0}}, "config.text_config.hidden_size: got 0"),
        ({k: v for k, v in LLAMA.items() if k != "model_type"}, "model_type: not given"),
        ([LLAMA], "need an object"),
    ],
)
def test_bad_configs_name_the_field(config, told):
    with pytest.raises(SpecError, match=told.replace("(", r"\(")):
        read_config(config)


def test_unknown_architectures_and_formats_say_what_to_do():
    with pytest.raises(UnsupportedError, match=r"nearest: qwen3.*ONNX"):
        read_config(LLAMA | {"model_type": "qwen33"})
    with pytest.raises(UnsupportedError, match="quantization_config"):
        read_config(LLAMA | {"quantization_config": {"quant_method": "aqlm"}})


def test_every_reader_can_be_imported():
    from importlib import import_module

    for name, where in READERS.items():
        module, _, function = where.partition(":")
        assert callable(getattr(import_module(f"ridgecast.models.{module}"), function)), name


@pytest.mark.parametrize(
    ("quantised", "formats"),
    [
        (None, ("bf16", "bf16", "")),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8_block", "fp8_block", "")),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
         ("bf16", "mxfp4", "")),
        ({"quant_method": "awq", "bits": 4}, ("int4_wo", "int4_wo", "")),
        ({"quant_method": "gptq", "bits": 8}, ("int8_wo", "int8_wo", "")),
        ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
         ("fp8_e4m3", "fp8_e4m3", "fp8_e4m3")),
        ({"quant_algo": "NVFP4", "exclude_modules": ["model.layers.0.self_attn.q_a_proj"]},
         ("bf16", "nvfp4", "")),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {
            "weights": {"type": "int", "num_bits": 4}, "input_activations": None}}},
         ("int4_wo", "int4_wo", "")),
    ],
)  # fmt: skip
def test_formats_of_published_checkpoints(quantised, formats):
    config = LLAMA | ({"quantization_config": quantised} if quantised else {})
    assert formats_in(config) == formats


def test_parts_quantised_beside_attention_left_alone():
    roles = {w.part: w.role for w in get("deepseek-r1-nvfp4").weights()}
    assert roles["qkv_down"] == roles["kv_up"] == "linear"
    assert roles["attention_out"] == roles["shared_expert"] == roles["ffn"] == "expert"
    calls = get("deepseek-r1-nvfp4").calls([Tokens(1, 1, 10)], ONE)
    assert {c.role for c in calls if c.part.startswith("ffn_") and c.op == "gemm"} == {"expert"}
    # Kimi-K2.5 keeps all but routed experts in 16 bits; 32 weights share a scale
    kimi = get("kimi-k2.5")
    assert isinstance(kimi, Decoder)
    assert {w.part for w in kimi.weights() if w.role == "expert"} == {"experts"}
    assert (kimi.native_dtype, kimi.expert_dtype, kimi.weight_group) == ("bf16", "int4_wo", 32)
    v3 = get("deepseek-v3")
    assert isinstance(v3, Decoder) and v3.weight_group == 128 * 128


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_checkpoints_of_gpt_oss_have_their_published_size(name, gib):
    # arXiv:2508.10925, table 1
    net = get(name)
    assert isinstance(net, Decoder)
    held = sum(dtype(net.expert_dtype if w.role == "expert" else "bf16").bytes_of(w.total)
               for w in net.weights())  # fmt: skip
    assert held / 2**30 == pytest.approx(gib, rel=0.005)


def test_nested_and_unnamed_configs(tmp_path):
    plain = read_config(LATENT)
    nested = read_config({"model_type": "kimi_k25", "text_config": LATENT})
    by_class = dict(LATENT, model_type=None, architectures=["DeepseekV3ForCausalLM"])
    assert plain.parameters == nested.parameters == read_config(by_class).parameters
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LATENT))
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "NVFP4"}})
    )
    for where in (folder, str(folder / "config.json")):
        assert get(where).name == "my-model" and get(where).native_dtype == "nvfp4"
    (folder / "config.json").write_text("{")
    with pytest.raises(SpecError, match="not valid JSON"):
        load(folder)
    with pytest.raises(SpecError, match="cannot read"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"), ("llama-33b", "llama-30b"),
     ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"), ("deepseek-ai/DeepSeek-R1", "deepseek-r1"),
     ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"), ("GPT2", "gpt2"),
     ("google/gemma-2-9b-it", "gemma-2-9b"), ("openai/gpt-oss-120b", "gpt-oss-120b")],
)  # fmt: skip
def test_names_and_ids(spelling, name):
    assert get(spelling).name == name


def test_ids_that_are_not_shipped_need_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"ridgecast\[hf\]"):
        get("someone/some-new-model")
    with pytest.raises(SpecError, match=r"nearest: llama-3\.1-70b"):
        get("lama-3.1-70b")


def test_catalogue_files_name_their_source():
    for name in decoders():
        assert config_of(name).get("_source"), name
        assert (CATALOG / f"{name}.json").stat().st_size < 3000, name
