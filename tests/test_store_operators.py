"""Importing measured tables of attention, mixtures of experts and collectives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgecast.errors import NoDataError
from ridgecast.hardware import get
from ridgecast.store import import_files, write_table
from ridgecast.store.importers import import_report

SILICON = Path(__file__).parents[2] / "shared" / "data" / "silicon"


def table_of(**columns):
    rows = max(len(v) for v in columns.values() if isinstance(v, list))
    return {
        k: np.array(v if isinstance(v, list) else [v] * rows,
                    dtype=object if isinstance(v[0] if isinstance(v, list) else v, str) else None)
        for k, v in columns.items()
    }  # fmt: skip


def raw(op, **columns):
    stack = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200", "op_name": op,
             "kernel_source": "some_kernel", "latency": [0.5, 2.0]}  # fmt: skip
    return table_of(**{**stack, **columns})


def attention(op, **columns):
    fixed = {
        "batch_size": 4, "isl": [128, 2048], "num_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "beam_width": 1, "attn_dtype": "bfloat16", "kv_cache_dtype": "fp8",
        "window_size": [1024, 1024], "step": [0, 0],
    }  # fmt: skip
    return raw(op, **{**fixed, **columns})


def imported(tmp_path, table):
    write_table(tmp_path / "some.parquet", table)
    return import_files(tmp_path / "some.parquet")


def test_context_attention_rows(tmp_path):
    out = imported(tmp_path, attention("context_attention", step=[0, 64]))
    assert set(out["op"]) == {"attention"} and set(out["phase"]) == {"context"}
    assert out["q_len"].tolist() == [128, 2048] and out["kv_len"].tolist() == [128, 2112]
    kept = np.minimum(1024, out["kv_len"]).tolist()
    assert out["window"].tolist() == kept  # one beyond the keys is still a window
    assert set(out["dtype"]) == {"bf16"} and set(out["kv_dtype"]) == {"fp8_e4m3"}
    assert out["time_s"].tolist() == [0.0005, 0.002] and out["causal"].all() and out["valid"].all()
    assert out["collection"][0] == "aiconfigurator/vllm-0.24.0/h200_sxm"
    assert np.isnan(out["m"]).all() and out["batch"].tolist() == [4, 4]


def test_generation_attends_to_the_cache_and_itself(tmp_path):
    table = attention("generation_attention", isl=[1, 1], step=[127, 2047])
    del table["window_size"]
    out = imported(tmp_path, table)
    assert set(out["phase"]) == {"generation"} and out["q_len"].tolist() == [1, 1]
    assert out["kv_len"].tolist() == [128, 2048] and not out["window"].any()


def test_moe_rows(tmp_path):
    out = imported(tmp_path, raw(
        "moe", moe_dtype=["w4a16_mxfp4", "fp8_block"], num_tokens=[1, 4096], hidden_size=7168,
        inter_size=2048, topk=8, num_experts=256, moe_tp_size=1, moe_ep_size=[1, 8],
        distribution=["power_law_1.01", "balanced"],
    ))  # fmt: skip
    assert out["dtype"].tolist() == ["bf16", "fp8_block"]
    assert out["weight_dtype"].tolist() == ["mxfp4", "fp8_block"]
    assert out["distribution"].tolist() == ["power_law", "balanced"]
    assert out["exponent"].tolist() == [1.01, 0.0] and out["ep"].tolist() == [1, 8]
    assert out["gated"].all() and not out["router"].any()
    assert (out["experts"][0], out["top_k"][0], out["inter"][0]) == (256, 8, 2048)


def test_experts_of_two_matrices_are_told_by_their_shape(tmp_path):
    out = imported(tmp_path, raw(
        "moe", version=["0.14.0", "0.24.0"], moe_dtype="bfloat16", num_tokens=64, hidden_size=2688,
        inter_size=1856, topk=6, num_experts=128, moe_tp_size=1, moe_ep_size=1,
        distribution="balanced",
    ))  # fmt: skip
    assert out["gated"].tolist() == [True, False] and "not gated" in out["reason"][1]


def test_message_sizes_are_elements(tmp_path):
    out = imported(tmp_path, raw(
        "alltoall", framework="TRTLLM", version="2.29.2", kernel_source="NCCL", num_gpus=8,
        nccl_dtype=["half", "int8"], message_size=[256, 256],
    ))  # fmt: skip
    assert out["bytes"].tolist() == [512, 256] and set(out["kind"]) == {"all_to_all"}
    assert set(out["collection"]) == {"aiconfigurator/nccl-2.29.2/h200_sxm"}


def test_graph_and_eager_all_reduce_are_two_collections(tmp_path):
    out = imported(tmp_path, raw(
        "all_reduce", num_gpus=2, allreduce_dtype="bfloat16", message_size=[128, 128],
        backend=["vllm_graph", "vllm_eager"],
    ))  # fmt: skip
    assert out["launch"].tolist() == ["graph", "stream"]
    assert [c.rpartition("/")[2] for c in out["collection"]] == ["graph", "eager"]


def test_tokens_travel_once_to_each_device_of_their_experts(tmp_path):
    sizes = {"num_tokens": 64, "hidden_size": 7168, "topk": 8, "num_experts": 256}
    out = imported(tmp_path, raw(
        ["alltoall_dispatch", "alltoall_combine", "alltoall_prepare"], moe_ep_size=[4, 4, 4],
        framework="TRTLLM", moe_dtype="nvfp4", latency=[0.016, 0.021, 0.01], **sizes,
        kernel_source=["NVLinkOneSided", "NVLinkOneSided", "NVLinkTwoSided"],
    ))  # fmt: skip
    met = 4 * (1 - 0.75**8)  # 3.6 of 4 devices have one of 8 experts
    assert out["bytes"][:2] == pytest.approx([64 * met * 7168 * 4.5 / 8, 64 * met * 7168 * 2])
    assert out["valid"].tolist() == [True, True, False] and set(out["kind"]) == {"all_to_all"}
    assert [c.rpartition("/")[2] for c in out["collection"][:2]] == ["dispatch", "combine"]
    ll = imported(tmp_path, raw(
        "ll", device="NVIDIA GB200", framework="sglang", node_num=1, hidden_size=2048, num_token=1,
        num_topk=8, num_experts=128, dispatch_avg_t_us=[12.784], combine_avg_t_us=[11.702],
        latency=[0.0],
    ))  # fmt: skip
    # the table's own bandwidths: 1.33166458 and 2.8002051 GB/s
    assert ll["bytes"] / ll["time_s"] == pytest.approx([1.33166458e9, 2.8002051e9], rel=1e-6)
    assert ll["gpus"].tolist() == [4, 4] and ll["valid"].all()


def test_bad_rows_are_kept_and_marked_and_unknown_ops_are_refused(tmp_path):
    table = attention("context_attention", isl=[0, 128], attn_dtype=["bfloat16", "odd"])
    out = imported(tmp_path, table)
    assert not out["valid"].any()
    assert "q_len is not a whole number" in out["reason"][0]
    assert "unknown dtype" in out["reason"][1]
    with pytest.raises(NoDataError, match="op msa_context is not imported yet"):
        imported(tmp_path, attention("msa_context"))


def latent(op, **columns):
    fixed = {"framework": "TRTLLM", "version": "1.3.0rc20", "kernel_source": "default",
             "mla_dtype": "bfloat16", "kv_cache_dtype": ["bfloat16", "fp8"], "num_heads": 32,
             "batch_size": 4, "isl": 1, "tp_size": 4, "step": [127, 2047]}  # fmt: skip
    return raw(op, **{**fixed, **columns})


def test_latent_attention_is_absorbed_in_decode_and_expanded_in_prefill(tmp_path):
    out = imported(tmp_path, latent("mla_generation"))
    assert out["shared_kv"].all() and out["valid"].all() and set(out["kv_heads"]) == {1}
    assert out["q_heads"].tolist() == [32, 32] and out["kv_len"].tolist() == [128, 2048]
    assert (out["head_dim"][0], out["v_head_dim"][0]) == (512 + 64, 512)
    assert out["dtype"].tolist() == out["kv_dtype"].tolist() == ["bf16", "fp8_e4m3"]
    out = imported(tmp_path, latent("mla_context", isl=[128, 2048], step=[0, 0]))
    assert not out["shared_kv"].any() and set(out["kv_heads"]) == {32}
    assert (out["head_dim"][0], out["v_head_dim"][0]) == (128 + 64, 128)
    assert out["q_len"].tolist() == out["kv_len"].tolist() == [128, 2048]
    hopper = latent("mla_generation", framework="SGLang", kernel_source="flash_attention")
    assert imported(tmp_path, hopper)["dtype"].tolist() == ["bf16", "bf16"]  # turns fp8 into bf16
    hopper = latent("mla_context", framework="SGLang", kernel_source="flash_attention")
    assert not imported(tmp_path, hopper)["valid"].any()
    with pytest.raises(NoDataError, match="mla_context_module is not imported"):
        imported(tmp_path, latent("mla_context_module"))


def test_gated_delta_rule_without_its_convolution(tmp_path):
    kernels = ["fused_recurrent_gated_delta_rule_packed_decode", "causal_conv1d_update"]
    table = raw(
        "gdn", kernel_source=kernels, phase="generation", batch_size=[8, 8], seq_len=1,
        num_tokens=8, d_model=4096, d_conv=4, num_k_heads=16, head_k_dim=128, num_v_heads=32,
        head_v_dim=128,
    )  # fmt: skip
    out = imported(tmp_path, table)
    assert out["valid"].tolist() == [True, False] and "convolution" in out["reason"][1]
    assert out["variant"][0] == "linear" and (out["q_heads"][0], out["kv_heads"][0]) == (32, 32)
    assert (out["q_len"][0], out["kv_len"][0], out["block"][0]) == (1, 1, 64)
    assert out["collection"][0] == "aiconfigurator/vllm-0.24.0/h200_sxm/delta"
    prompt = {**table, "phase": np.array(["context"] * 2, object)}
    assert not imported(tmp_path, prompt)["valid"].any()  # one token is a decode step
    other = {**table, "framework": np.array(["TRTLLM", "TRTLLM"], object)}
    assert not imported(tmp_path, other)["valid"].any()


def test_latent_attention_never_beats_the_memory():
    pytest.importorskip("aiconfigurator_core")
    from ridgecast.store.importers.aiconfigurator_core import files

    for device, bandwidth in (("h200_sxm", 4.8e12), ("gb200", 8e12)):
        t = import_files(files(f"{device}/mla/trtllm/*/generation_mla_perf.parquet"))
        cached = np.where(t["kv_dtype"] == "bf16", 2.0, 1.0) * 576 * t["batch"] * t["kv_len"]
        rate = (cached / t["time_s"])[t["time_s"] > 2e-4].max()
        assert 0.8 * bandwidth < rate < bandwidth
        flops = 2.0 * t["batch"] * t["q_heads"] * t["kv_len"] * (576 + 512) / t["time_s"]
        narrow = t["dtype"] == "fp8_e4m3"
        peak = get(device).rates["bf16"]
        assert flops[~narrow].max() < peak and (device != "gb200" or flops[narrow].max() > peak)


@pytest.mark.skipif(not SILICON.exists(), reason="needs the shared measurements")
def test_measured_tables():
    h100 = import_report(SILICON / "h100_sxm" / "attention").table
    assert h100["valid"].all() and len(h100["time_s"]) == 50830 + 62166
    decode = (h100["phase"] == "generation") & (h100["window"] == 0) & (h100["kv_dtype"] == "bf16")
    cached = 4.0 * h100["batch"] * h100["kv_heads"] * h100["head_dim"] * h100["kv_len"]
    rate = (cached / h100["time_s"])[decode & (h100["time_s"] > 1e-3)].max()
    assert 2.9e12 < rate < 3.35e12  # bytes/s; the memory gives 3.35 TB/s
    comm = import_report(SILICON / "h100_sxm" / "comm").table
    nccl = (comm["kernel_source"] == "NCCL") & (comm["kind"] == "all_reduce")
    share = 2 * (comm["gpus"] - 1) / comm["gpus"]
    assert 400e9 < (share * comm["bytes"] / comm["time_s"])[nccl].max() < 450e9
    assert set(comm["valid"]) == {True} and set(comm["op"]) == {"collective"}
