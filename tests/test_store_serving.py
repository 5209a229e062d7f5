"""Importing measured serving points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ridgecast.store import import_files, write_table

FILE = Path(__file__).parents[2] / "shared" / "data" / "silicon" / "serving_end_to_end.csv"
SIZES = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")


def row(name, source, **columns):
    fixed = {
        "id": name, "silicon_data_source": source, "backend": "sglang", "backend_version": "0.5.9",
        "model_path": "zai/Any-1", "system": "h200_sxm", "precision": "fp8", "mode": "agg",
        "isl": 1024, "osl": 512, "gemm_quant_mode": "fp8", "moe_quant_mode": "fp8_block",
        "batch_size": 8.0, "silicon_ttft_ms": 250.0, "silicon_tpot_ms": 12.5,
    }  # fmt: skip
    for side in ("", "prefill_", "decode_"):
        fixed |= {side + size: np.nan for size in SIZES}
    fixed |= {f"{s}_{n}": np.nan for s in ("prefill", "decode") for n in
              ("batch_size", "num_workers")}  # fmt: skip
    return fixed | columns


def sizes(side, *values):
    return {side + name: value for name, value in zip(SIZES, values, strict=True)}


def imported(tmp_path, *rows):
    table = {}
    for name in rows[0]:
        values = [r[name] for r in rows]
        kind = object if isinstance(values[0], str) else np.float64
        table[name] = np.array(values, dtype=kind)
    write_table(tmp_path / "serving.csv", table)
    return import_files(tmp_path / "serving.csv")


X = "source_file=2026-0{}.csv; silicon_concurrency={}; measured=2026-03-04T18:53:03; image=a/b:v1"
MARCH, APRIL = X.format("3-25", 8), X.format("4-06", 8)


def test_units_names_and_formats(tmp_path):
    out = imported(
        tmp_path, row("x_agg_tp4_0_ep1_0_1", MARCH, **sizes("", 4, 1, 1, 4, 1)),
        row("y_tp1_ep1_2", APRIL.replace("=8", "=16"), model_path="openai/gpt-oss-120b",
            gemm_quant_mode="nvfp4", moe_quant_mode="nvfp4", **sizes("", 1, 1, 1, 1, 1)),
    )  # fmt: skip
    assert out["ttft_s"].tolist() == [0.25, 0.25] and out["tpot_s"].tolist() == [0.0125, 0.0125]
    assert out["concurrency"].tolist() == [8, 16] and out["hardware"][0] == "h200_sxm"
    assert out["gemm_format"].tolist() == ["fp8_e4m3", "bf16"]  # gpt-oss: experts in mxfp4 only
    assert out["moe_format"].tolist() == ["fp8_block", "mxfp4"]
    assert out["measured"][0] == "2026-03-04" and out["image"][0] == "a/b:v1"
    assert out["valid"].all()


def test_one_point_in_two_exports_is_one_with_the_true_layout(tmp_path):
    out = imported(
        tmp_path, row("a_tp8_ep8_9", APRIL, **sizes("", 64, 1, 1, 8, 8)),
        row("b_tp8_0_ep8_0_1", MARCH, **sizes("", 8, 1, 1, 1, 8), silicon_ttft_ms=250.0000001),
        row("c_tp8_0_ep8_0_2", MARCH, **sizes("", 8, 1, 1, 1, 8), silicon_tpot_ms=12.51),
    )  # fmt: skip
    for name, value in {"tp": 8, "dp": 1, "ep": 8, "moe_tp": 1, "devices": 8}.items():
        assert set(out[name]) == {value}
    assert out["valid"].sum() == 2 and out["copies"].sum() == 4  # the repeat is no copy
    assert sum("copy of" in r for r in out["reason"]) == 1


def test_data_parallel_attention(tmp_path):
    out = imported(
        tmp_path, row("a_tp4_ep4_9", APRIL, **sizes("", 1, 1, 16, 4, 4), batch_size=1.0),
        row("dump_cfg1", "db-dump/2026; config_id=1; silicon_concurrency=9",
            **sizes("", 2, 1, 2, 1, 4), batch_size=5.0),
        row("d_tp1_epnone_1", "source_file=local file; silicon_concurrency=10",
            **sizes("", 1, 1, np.nan, 4, 1)),
    )  # fmt: skip
    assert out["tp"].tolist() == [1, 1, 1] and out["dp"].tolist() == [4, 2, 4]
    assert out["devices"].tolist() == [4, 2, 4] and out["ep"].tolist() == [4, 2, 1]
    assert out["config_id"].tolist() == ["", "1", ""]


def test_disaggregated_rows_hold_what_the_source_knows(tmp_path):
    bare = row("g_disagg_tp4_0_ep4_0_1", MARCH, mode="disagg", system="gb200", batch_size=np.nan,
               **sizes("prefill_", 4, 1, 1, 1, 4), **sizes("decode_", 8, 1, 1, 2, 4))  # fmt: skip
    full = row("dump_cfg7", "db-dump/2026; silicon_concurrency=8", mode="disagg", system="gb200",
               **sizes("prefill_", 1, 1, 4, 1, 4), **sizes("decode_", 8, 1, 1, 1, 8),
               prefill_num_workers=2.0, decode_num_workers=5.0, batch_size=np.nan)  # fmt: skip
    early = row("h_tp28_ep1_3", APRIL, system="gb200", **sizes("", 28, 1, 1, 28, 1),
                silicon_tpot_ms=9.0)  # fmt: skip
    lone = dict(bare, silicon_tpot_ms=8.0)
    out = imported(tmp_path, bare, full, early, lone)
    assert out["valid"].tolist() == [False, True, True, True]
    assert out["devices"][1] == 2 * 4 + 5 * 8 and out["prefill_dp"][1] == 4
    assert out["mode"][2] == "disagg" and out["devices"][2] == 28
    assert out["decode_devices"][3] == 8 and np.isnan(out["decode_workers"][3])
    assert np.isnan(out["decode_ep"][3]) and np.isnan(out["decode_devices"][2])


def test_rows_without_values_are_marked(tmp_path):
    size = sizes("", 1, 1, 1, 1, 1)
    out = imported(tmp_path, row("a_tp1_ep1_1", MARCH, **size, silicon_tpot_ms=np.nan),
                   row("b_tp1_ep1_1", MARCH, **size, silicon_ttft_ms=-1.0),
                   row("c_tp1_ep1_1", MARCH, **size, system="h999"))  # fmt: skip
    assert out["valid"].tolist() == [False, False, True]
    assert "time to first token" in out["reason"][1] and "catalogue" in out["reason"][2]


def test_recipes_say_what_the_exports_do_not(tmp_path):
    r1 = dict(model_path="deepseek-ai/DeepSeek-R1", backend="trtllm", mode="disagg", osl=1024,
              moe_quant_mode="nvfp4", gemm_quant_mode="nvfp4", system="b200_sxm",
              batch_size=np.nan, **sizes("prefill_", 4, 1, 1, 1, 4))  # fmt: skip
    eight, four = sizes("decode_", 8, 1, 1, 2, 4), sizes("decode_", 4, 1, 1, 1, 4)
    one = MARCH.replace("concurrency=8", "concurrency=875")
    both = MARCH.replace("concurrency=8", "concurrency=6")
    out = imported(
        tmp_path, row("a_tp4_0_ep4_0_1", one, **r1, **eight),
        row("b_tp4_0_ep4_0_2", both, **r1, **eight), row("c_tp4_0_ep4_0_3", one, **r1, **four),
    )  # fmt: skip
    # 875: drafted, 5 decode workers of 8 with data-parallel attention; 6: with and without
    assert out["speculative"].tolist() == ["mtp", "", ""]
    assert out["layout_source"].tolist() == ["recipe", "recipe", ""]
    assert out["decode_workers"].tolist()[:2] == [5, 5] and np.isnan(out["decode_workers"][2])
    assert out["decode_dp"].tolist()[:2] == [8, 1] and out["devices"].tolist()[:2] == [44, 44]
    # the recipes' names say batch 16 an attention group with 3 drafted, and batch 1
    assert out["decode_slots"].tolist()[:2] == [128, 1] and out["drafted"].tolist()[:2] == [3, 3]
    assert np.isnan(out["decode_slots"][2])


def test_gpt_oss_on_h200_has_as_many_expert_groups_as_devices(tmp_path):
    oss = dict(model_path="openai/gpt-oss-120b", backend="trtllm")
    out = imported(
        tmp_path, row("a_tp4_ep1_1", MARCH, **oss, **sizes("", 4, 1, 1, 4, 1)),
        row("b_tp4_ep1_2", MARCH, **oss | {"system": "b200_sxm"}, **sizes("", 4, 1, 1, 4, 1)),
    )  # fmt: skip
    assert out["ep"].tolist() == [4, 1] and out["moe_tp"].tolist() == [1, 4]


def test_unknown_layouts_may_be_assumed(tmp_path):
    from ridgecast.store.importers.inferencex import assume

    r1 = dict(model_path="deepseek-ai/DeepSeek-R1", backend="trtllm", mode="disagg", osl=1024,
              moe_quant_mode="nvfp4", gemm_quant_mode="nvfp4", system="b200_sxm",
              batch_size=np.nan, **sizes("prefill_", 4, 1, 1, 1, 4))  # fmt: skip
    near = MARCH.replace("concurrency=8", "concurrency=900")
    one = row("a_tp4_0_ep4_0_1", near, **r1, **sizes("decode_", 8, 1, 1, 2, 4))
    alone = row("b_tp4_0_ep1_0_1", MARCH, **sizes("", 4, 1, 1, 4, 1))
    out = imported(tmp_path, one, alone)
    assert np.isnan(out["decode_workers"][0])
    full = assume(out)
    # 875 is the nearest concurrency of that device, format and engine with such workers
    assert full["decode_workers"][0] == 5 and full["decode_dp"][0] == 8
    assert full["layout_source"].tolist() == ["nearest", "row"] and full["devices"][0] == 44
    assert np.isnan(out["decode_workers"][0])  # the table that was given is as it was


@pytest.mark.skipif(not FILE.exists(), reason="the measured serving points are not here")
def test_measured_file():
    from ridgecast.store.importers.inferencex import assume

    out = import_files(FILE)
    good = out["valid"]
    assert len(good) == 2598 and good.sum() == 2191
    one = good & (out["mode"] == "agg")
    other = good & ~one
    assert np.isfinite(out["decode_workers"][other]).mean() > 0.6
    assert set(out["hardware"]) == {"h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200",
                                    "gb300"}  # fmt: skip
    assert set(out["devices"][one]) <= {1, 2, 4, 8, 16, 64}
    for left, right in (("tp", "dp"), ("moe_tp", "ep")):
        whole = out[left] * out[right] * out["pp"] * out["replicas"]
        assert (whole[one] == out["devices"][one]).all()
    assert np.isfinite(out["concurrency"][good]).all()
    full = assume(out)
    assert np.isfinite(full["decode_devices"][other]).all()
    assert np.isfinite(full["devices"][good]).all()


def test_split_and_floor(tmp_path):
    from ridgecast.accuracy.serving import network, repeats, score, unseen_network

    size = sizes("", 4, 1, 1, 4, 1)
    table = imported(
        tmp_path, row("a_tp4_ep1_1", MARCH, **size),
        row("b_tp4_ep1_2", MARCH, **size, silicon_tpot_ms=25.0),
        row("c_tp4_ep1_3", MARCH, **size, silicon_tpot_ms=50.0, backend_version="1"),
        row("d_tp4_ep1_4", MARCH, **size, model_path="nvidia/Qwen3-32B-NVFP4",
            silicon_tpot_ms=9.0),
        row("e_tp4_ep1_5", MARCH, **size, model_path="Qwen/Qwen3-32B", silicon_tpot_ms=-1.0),
    )  # fmt: skip
    split = unseen_network(table)
    assert split.train.tolist() == [False, False, False, True, False]
    assert split.test.tolist() == [True, True, True, False, False]
    # pairs 12.5-25, 12.5-50, 25-50: differences 1, 3, 1
    floor = repeats(table, "tpot_s")
    assert (floor.rows, floor.median) == (3, pytest.approx(1))
    assert floor.mape == pytest.approx(5 / 3)
    assert repeats(table, "tpot_s", beside=("engine_version",)).rows == 1
    assert network("deepseek-ai/DeepSeek-V3") == network("nvidia/DeepSeek-R1-NVFP4")
    assert score(np.array([1.0, 2.0, 4.0]), np.array([1.1, 1.0, np.nan])).mape == pytest.approx(0.3)


def test_runs_say_whether_aggregated_points_drafted(tmp_path):
    r1 = dict(model_path="deepseek-ai/DeepSeek-R1", system="b200_sxm", **sizes("", 8, 1, 1, 8, 1))
    trt = dict(r1, backend="trtllm", backend_version="1.1.0rc2.post2")
    january, december = (MARCH.replace("2026-03-04", d) for d in ("2026-01-14", "2025-12-15"))
    full = MARCH.replace("concurrency=8", "concurrency=128")
    gap = MARCH.replace("2026-03-25.csv", "qwen3.5-397b-gap-analysis.csv")
    qwen = dict(model_path="Qwen/Qwen3.5-397B-A17B", system="b200_sxm", **sizes("", 4, 1, 1, 4, 1))
    rows = [
        row("a_tp8_0_ep1_0_1", january, **trt), row("b_tp8_0_ep1_0_2", december, **trt),
        row("c_tp8_0_ep1_0_3", MARCH, **trt), row("d_tp8_0_ep1_0_4", MARCH, **r1),
        row("e_tp8_0_ep1_0_5", full, **r1), row("f_tp4_ep1_6", gap, **qwen),
    ]  # fmt: skip
    out = imported(tmp_path, *(dict(r, silicon_tpot_ms=9.0 + i) for i, r in enumerate(rows)))
    assert out["speculative"].tolist() == ["mtp", "none", "", "either", "mtp", "mtp"]
    assert out["drafted"].tolist()[3:] == [2, 2, 3]
    assert out["collection"][5] == "inferencex_gap"  # that export repeats InferenceX's points


def test_runs_say_whether_points_apart_drafted(tmp_path):
    r1 = dict(model_path="deepseek-ai/DeepSeek-R1", mode="disagg", backend_version="0.5.8.post1",
              batch_size=np.nan, **sizes("decode_", 8, 1, 1, 8, 1))  # fmt: skip
    first, later = (MARCH.replace("2026-03-04", d) for d in ("2026-02-07", "2026-02-13"))
    rows = [
        row("a_disagg_1", MARCH, system="gb200", **r1), row("b_disagg_2", first, **r1),
        row("c_disagg_3", first, system="b200_sxm", **r1),
        row("d_disagg_4", later, system="b200_sxm", **r1),
        row("e_disagg_5", first, system="b200_sxm", **r1 | {"moe_quant_mode": "nvfp4"}),
    ]  # fmt: skip
    out = imported(tmp_path, *(dict(r, silicon_tpot_ms=9.0 + i) for i, r in enumerate(rows)))
    assert out["speculative"].tolist() == ["none", "", "none", "mtp", ""]
