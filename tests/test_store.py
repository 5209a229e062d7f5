"""The store: tables in and out of files, importers, validity, honest splits."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgecast.errors import MissingExtraError, NoDataError, SpecError
from ridgecast.store import (
    COLUMNS,
    IMPORTERS,
    SPLITS,
    canonical,
    chip_family,
    concat,
    import_files,
    import_report,
    length,
    make_split,
    numeric,
    read_table,
    require_columns,
    validate,
    write_measurements,
    write_table,
)
from ridgecast.store.importers import aiconfigurator_core, get_importer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no measured data beside the checkout")


def table_of(**columns):
    return {
        name: np.array(values, dtype=object if isinstance(values[0], str) else None)
        for name, values in columns.items()
    }


def aic(**changes):
    base = {
        "framework": ["VLLM"], "version": ["0.24.0"], "device": ["NVIDIA H200"],
        "op_name": ["gemm"], "kernel_source": ["x"], "gemm_dtype": ["bfloat16"],
        "m": [128], "n": [256], "k": [512], "latency": [0.25],
    }  # fmt: skip
    rows = max(len(v) for v in changes.values()) if changes else 1
    return table_of(**{k: v * rows if len(v) == 1 else v for k, v in {**base, **changes}.items()})


# -------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_round_trip_keeps_values_and_kinds(tmp_path, suffix):
    table = table_of(
        m=[1, 2, 3], t=[0.5, np.nan, 2.0], s=["a", "", "b,\"c'"], f=[True, False, True]
    )
    write_table(tmp_path / f"t{suffix}", table)
    back = read_table(tmp_path / f"t{suffix}")
    assert back["m"].dtype == np.int64 and back["m"].tolist() == [1, 2, 3]
    assert np.array_equal(back["t"], table["t"], equal_nan=True)
    assert back["s"].tolist() == table["s"].tolist()
    assert back["f"].dtype == bool and back["f"].tolist() == [True, False, True]
    assert [p.name for p in tmp_path.iterdir()] == [f"t{suffix}"]  # no temporary left


def test_json_lines_and_ints_with_holes(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"m": 1, "s": "a"}\n{"m": null}\n')
    table = read_table(tmp_path / "t.jsonl")
    assert table["m"].dtype == np.float64 and np.isnan(table["m"][1])
    assert table["s"].tolist() == ["a", ""]


def test_a_bad_cell_does_not_stop_a_csv(tmp_path):
    (tmp_path / "t.csv").write_text("m,t\n" + "1,0.5\n" * 30000 + "2,oops\n3,\n")
    values, bad = numeric(read_table(tmp_path / "t.csv"), "t")
    assert values[0] == 0.5 and np.isnan(values[-2:]).all()
    assert bad.sum() == 1 and bad[-2]


def test_file_errors_say_what_to_do(tmp_path):
    with pytest.raises(NoDataError, match=r"nearest in its folder: good\.parquet"):
        (tmp_path / "good.parquet").write_bytes(b"not parquet")
        read_table(tmp_path / "god.parquet")
    with pytest.raises(SpecError, match="cannot be read as Parquet"):
        read_table(tmp_path / "good.parquet")
    with pytest.raises(SpecError, match="differ in length"):
        write_table(tmp_path / "x.parquet", table_of(a=[1], b=[1, 2]))
    with pytest.raises(SpecError, match=r"'latency' \(nearest present: latncy.*'power'"):
        require_columns(table_of(latncy=[1]), ["latency", "power"])


def test_concat_is_the_union_of_columns():
    out = concat([table_of(m=[1], s=["a"]), table_of(m=[2], t=[0.5], f=[True])])
    assert out["m"].dtype == np.int64 and out["m"].tolist() == [1, 2]
    assert out["s"].tolist() == ["a", ""] and out["f"].tolist() == [False, True]
    assert np.isnan(out["t"][0]) and out["t"][1] == 0.5


# -------------------------------------------------------------------------------------- schema


def test_validate_marks_bad_rows_and_drops_none():
    m = np.array([0, 4, 4, 4, 2**31], dtype=np.int64)
    out = validate(
        canonical(5, op="gemm", dtype="bf16", m=m, n=8, k=8,
                  time_s=np.array([1.0, 1.0, -1.0, np.nan, 1.0]))
    )  # fmt: skip
    assert out["valid"].tolist() == [False, True, False, False, False]
    assert "m is not a whole number" in out["reason"][0] and out["reason"][1] == ""
    assert "not positive" in out["reason"][2] and out["reason"][3] == "no time"
    assert list(out)[: len(COLUMNS)] == list(COLUMNS)


def test_measurements_round_trip_and_newer_schema_is_refused(tmp_path):
    write_table(tmp_path / "raw.parquet", aic(m=[128, 0]))
    first = import_files(tmp_path / "raw.parquet")
    first["note_of_source"] = np.array(["kept"] * 2, dtype=object)
    write_measurements(tmp_path / "ours.parquet", first)
    again = import_files(tmp_path / "ours.parquet")
    for name in ("time_s", "valid", "reason", "collection", "note_of_source"):
        assert again[name].tolist() == first[name].tolist()
    write_table(tmp_path / "new.parquet", {**first, "schema_version": np.array([99, 99])})
    with pytest.raises(NoDataError, match="newer than 1"):
        import_files(tmp_path / "new.parquet")


# ----------------------------------------------------------------------------------- importers


def test_every_importer_loads_and_says_what_it_needs():
    for name in IMPORTERS:
        importer = get_importer(name)
        assert importer.name == name and importer.needs
    with pytest.raises(SpecError, match="nearest: aiconfigurator"):
        get_importer("aiconfigurater")


def test_aiconfigurator_rows(tmp_path):
    raw = aic(
        gemm_dtype=["bfloat16", "fp8", "fp8_block", "sq", "mystery"],
        m=[1, 2, 3, 0, 5],
    )
    write_table(tmp_path / "gemm.parquet", raw)
    out = import_files(tmp_path / "gemm.parquet")
    assert out["time_s"].tolist() == [0.25e-3] * 5
    assert out["hardware"][0] == "h200_sxm"
    assert out["dtype"].tolist() == ["bf16", "fp8_e4m3", "fp8_block", "int8", "mystery"]
    assert out["launch"].tolist() == ["graph", "graph", "stream", "graph", "graph"]
    assert out["valid"].tolist() == [True, True, True, False, False]
    assert out["collection"][0] == "aiconfigurator/vllm-0.24.0/h200_sxm"
    assert not out["sustained"].any() and out["layout"][0] == "tn"


def test_aiconfigurator_power_needs_long_kernels(tmp_path):
    raw = aic(version=["0.22.0"], latency=[0.055, 0.057], power=[300.0, 400.0])
    write_table(tmp_path / "gemm.parquet", raw)
    out = import_files(tmp_path / "gemm.parquet")
    assert out["power_valid"].tolist() == [False, True] and out["sustained"].all()
    assert "too short" in out["reason"][0] and out["reason"][1] == ""


def test_other_ops_and_unknown_tables_are_refused_but_stop_nothing(tmp_path):
    attention = aic()
    attention["op_name"][:] = "context_attention"
    del attention["gemm_dtype"], attention["n"]
    write_table(tmp_path / "a.parquet", attention)
    write_table(tmp_path / "b.parquet", aic())
    write_table(tmp_path / "c.csv", table_of(x=[1]))
    (tmp_path / "d.parquet").write_bytes(b"junk")
    report = import_report(tmp_path)
    assert [f.status for f in report.files] == ["refused", "ok", "refused", "refused"]
    assert "op context_attention is not imported yet" in report.files[0].reason
    assert "plain needs m, n, k, time_s" in report.files[2].reason
    with pytest.warns(UserWarning, match="3 file"):
        assert length(import_files(tmp_path)) == 1
    with pytest.raises(NoDataError, match="no file could be imported"):
        import_files(tmp_path / "c.csv")


def test_byte_copies_count_once(tmp_path):
    write_table(tmp_path / "a.parquet", aic())
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    out = import_files(tmp_path)
    assert out["valid"].tolist() == [True, False] and "byte copy of" in out["reason"][1]


def test_installed_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(aiconfigurator_core, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install ridgecast\[silicon\]"):
        import_files("aiconfigurator-core")
    for system in ("h200_sxm", "b300_sxm"):  # the second holds rows of another device
        folder = tmp_path / "systems" / "data" / system / "gemm" / "vllm" / "0.24.0"
        folder.mkdir(parents=True)
        write_table(folder / "gemm_perf.parquet", aic(m=[1 if system == "h200_sxm" else 2]))
    monkeypatch.setattr(aiconfigurator_core, "_root", lambda: tmp_path)
    out = import_files("aiconfigurator-core")
    assert out["valid"].tolist() == [False, True] and "folder of b300_sxm" in out["reason"][0]
    assert length(import_files("aiconfigurator-core:h200_sxm/vllm")) == 1
    with pytest.raises(NoDataError, match="nearest: h200_sxm"):
        import_files("aiconfigurator-core:h200")


def test_consensus(tmp_path):
    raw = table_of(
        system=["h200_sxm"], device=["NVIDIA H200"], m=[1], n=[32], k=[32], n_sources=[4],
        latency_us_median=[2.5], latency_us_min=[2.0], latency_us_max=[3.0], spread_pct=[40.0],
    )  # fmt: skip
    write_table(tmp_path / "c.parquet", raw)
    out = import_files(tmp_path / "c.parquet")
    got = [out[f"time{x}_s"][0] for x in ("_low", "", "_high")]
    assert got == pytest.approx([2e-6, 2.5e-6, 3e-6]) and out["samples"][0] == 4


def test_kernel_tuner_cache_json_keeps_failures(tmp_path):
    cache = {
        "32,16": {"MWG": 32, "NWG": 16, "time": 2.0, "times": [1.0, 2.0, 6.0]},
        "64,16": {"MWG": 64, "NWG": 16, "time": "CompilationFailedConfig"},
        "64,32": {"MWG": 64, "NWG": 32, "time": 1.0, "times": [[0, 2.0], [0, 2.0]]},
        "64,64": {"MWG": 64, "NWG": 64, "time": 1e20},
    }
    document = {"device_name": "NVIDIA H200", "kernel_name": "Xgemm",
                "problem_size": [4096, 4096], "cache": cache}  # fmt: skip
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    out = import_files(tmp_path / "c.json.gz")
    assert out["valid"].tolist() == [True, False, True, False]
    assert out["time_s"][0] == 2e-3 and out["time_low_s"][0] == 1e-3 and out["samples"][0] == 3
    assert out["time_s"][2] == 2e-3 and "zeros dropped" in out["reason"][2]
    assert out["mwg"].tolist() == [32, 64, 64, 64] and out["k"].tolist() == [4096] * 4
    assert out["reason"][1] == "status CompilationFailedConfig"
    text = json.dumps({**document, "kernel_name": "convolution"})
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(NoDataError, match="kernel convolution is not imported yet"):
        import_files(tmp_path / "d.json")


def test_kernel_tuner_t4_json(tmp_path):
    def entry(invalidity, value, unit):
        return {"configuration": {"MWG": 32, "NWG": 16}, "invalidity": invalidity,
                "measurements": [{"name": "time", "value": value, "unit": unit}]}  # fmt: skip

    results = [entry("correct", 3.0, "ms"), entry("correct", 0.004, "s"), entry("compile", "", "")]
    (tmp_path / "t4.json").write_text(json.dumps({"schema_version": "1.0.0", "results": results}))
    defaults = {"hardware": "NVIDIA H200", "m": 64, "n": 32, "k": 16}
    out = import_files(tmp_path / "t4.json", defaults=defaults)
    assert out["time_s"][:2] == pytest.approx([3e-3, 4e-3])
    assert out["valid"].tolist() == [True, True, False] and out["hardware"][0] == "h200_sxm"
    assert (out["m"][0], out["n"][0], out["k"][0]) == (64, 32, 16)


CUTLASS = """\
Problem,Provider,OperationKind,Operation,Disposition,Status,gemm_kind,m,n,k,A,B,C,alpha,beta,\
split_k_slices,batch_count,op_class,accum,cta_m,cta_n,cta_k,stages,warps_m,warps_n,warps_k,\
inst_m,inst_n,inst_k,min_cc,max_cc,Bytes,Flops,Flops/Byte,Runtime,GB/s,GFLOPs
1,CUTLASS,gemm,cutlass_simt_sgemm_128x128_8x2_nt_align1,passed,success,universal,8,16,32,\
f32:column,f32:row,f32:column,1,0,2,3,simt,f32,128,64,8,2,4,2,1,1,1,1,50,1024,1,1,1,0.5,1,1
1,CUTLASS,gemm,cutlass_tensorop_s1688tf32gemm_x,passed,success,universal,8,16,32,f32:row,\
f32:column,f32:column,1,0,1,1,tensorop,f32,256,128,16,3,4,2,1,16,8,8,80,1024,1,1,1,0.5,1,1
1,CUTLASS,gemm,cutlass_tensorop_s1688f16gemm_x,failed,success,universal,8,16,32,f16:row,\
f16:column,f32:column,1,0,1,1,tensorop,f32,256,128,16,3,4,2,1,16,8,8,80,1024,1,1,1,0.5,1,1
1,CUTLASS,gemm,cutlass_tensorop_y,not_run,error_internal,universal,8,16,32,bf16:row,\
bf16:column,f32:column,1,0,1,1,tensorop,f32,256,128,16,3,4,2,1,16,8,8,80,1024,1,1,1,0,0,0
"""


def test_cutlass_profiler(tmp_path):
    (tmp_path / "c.csv").write_text(CUTLASS)
    out = import_files(tmp_path / "c.csv", defaults={"hardware": "a100_sxm"})
    assert out["time_s"][0] == 0.5e-3 and set(out["hardware"]) == {"a100_sxm"}
    assert out["dtype"].tolist() == ["fp32", "tf32", "fp16", "bf16"]
    assert out["layout"].tolist() == ["nt", "tn", "tn", "tn"]
    assert out["kernel"].tolist() == ["cutlass_simt"] + ["cutlass_tensor"] * 3
    assert (out["tile_n"][0], out["split_k"][0], out["batch"][0]) == (64, 2, 3)
    assert out["valid"].tolist() == [True, True, False, False]
    assert "status error_internal" in out["reason"][3]


def test_gpperf_original_csv_and_its_traps(tmp_path):
    (tmp_path / "results.csv").write_text(
        "Energy_Joules,GFLOPS_per_Watt,TFLOPS1731372844,512,1024,2048,"
        "cutlass_simt_sgemm_128x128_8x2_nt_align1,nn,64,64,32,2,linear_combination,1,0,0.04352,,"
        "70.17, 2760, 10251, 47, 100, 0,NVIDIA GeForce RTX 4070, 8.9,kernel_name,x\n"
        "arithmetic_intensity,85.33\nproblem_size_m,512\n"
        "1731372849,512,512,512,cutlass_simt_sgemm_128x128_8x2_nn_align1,tt,64,64,32,2,"
        "linear_combination,0.5,0.5,0.05,,N/A, 2760, 10251, 47, 100, 0,NVIDIA GeForce RTX 4070, 8\n"
    )
    out = import_files(tmp_path / "results.csv")
    assert out["time_s"] == pytest.approx([4.352e-5, 5e-5])
    assert (out["m"][0], out["n"][0], out["k"][0]) == (512, 1024, 2048)
    assert out["layout"].tolist() == ["nt", "nn"]  # the kernel's, not the asked-for
    assert out["tile_m"][0] == 128 and out["req_tb_m"][0] == 64 and out["beta"][1] == 0.5
    assert not out["power_valid"].any() and not out["kernel_config_valid"].any()
    assert "after the kernel had ended" in out["reason"][0]


def test_plain_column_map_and_units(tmp_path):
    (tmp_path / "p.csv").write_text("M,N,K,latency,pw,kind\n1,2,3,5,2,half\n4,5,6,bad,3,half\n")
    column_map = {"m": "M", "n": "N", "k": "K", "time_s": "latency [us]", "power_w": "pw [kW]",
                  "dtype": "kind", "hardware": "=NVIDIA H200"}  # fmt: skip
    out = import_files(tmp_path / "p.csv", column_map=column_map)
    assert out["time_s"][0] == pytest.approx(5e-6) and out["power_w"][0] == 2000.0
    assert out["dtype"][0] == "fp16" and out["hardware"][0] == "h200_sxm"
    assert out["valid"].tolist() == [True, False] and "time_s is not a number" in out["reason"][1]

    def refused(change):
        report = import_report(tmp_path / "p.csv", column_map={**column_map, **change})
        return report.files[0].reason

    assert "does not measure time" in refused({"time_s": "latency [W]"})
    assert "missing column 'latancy' (nearest present: latency" in refused({"time_s": "latancy"})
    assert "nearest: time_s" in refused({"times_s": "latency"})


# -------------------------------------------------------------------------------------- splits


def grid(ms=4, ns=20, ks=20):
    axes = (np.arange(1, size + 1) for size in (ms, ns, ks))
    m, n, k = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    return {"m": m, "n": n, "k": k, "mwg": (m % 3).astype(float), "kernel": n.astype(str)}


def groups(table, columns, mask):
    return set(zip(*(table[c][mask].tolist() for c in columns), strict=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), fraction=st.floats(0.05, 0.6))
def test_no_split_leaks(seed, fraction):
    table = grid()
    for name in ("random", "unseen_shape", "off_grid", "unseen_config", "frontier"):
        split = make_split(name, table, seed=seed, fraction=fraction)
        assert not (split.train & split.test).any()
        assert split.train.any() and split.test.any()
    shape = make_split("unseen_shape", table, seed=seed, fraction=fraction)
    assert not groups(table, "nk", shape.train) & groups(table, "nk", shape.test)
    grid_split = make_split("off_grid", table, seed=seed, fraction=fraction)
    for column in "nk":
        assert not groups(table, column, grid_split.train) & groups(table, column, grid_split.test)
    group = make_split("unseen_group", table, seed=seed, fraction=fraction, columns=["m", "kernel"])
    keys = ("m", "kernel")
    assert not groups(table, keys, group.train) & groups(table, keys, group.test)


def test_one_seed_holds_the_same_shapes_out_of_every_table():
    table = grid()
    order = np.random.default_rng(1).permutation(length(table))[:800]
    other = {name: column[order].astype(float) for name, column in table.items() if name in "mnk"}
    first = make_split("unseen_shape", table, seed=7)
    second = make_split("unseen_shape", other, seed=7)
    assert groups(other, "nk", second.test) <= groups(table, "nk", first.test)
    assert 0.05 < first.test.mean() < 0.16
    assert (make_split("unseen_shape", table, seed=8).test != first.test).any()


def test_frontier_holds_the_largest():
    table = grid()
    split = make_split("frontier", table)
    work = table["m"] * table["n"] * table["k"]
    assert work[split.test].min() > work[split.train].max()
    assert 0.1 <= split.test.mean() < 0.13


def test_unseen_device_and_its_family():
    table = {"hardware": np.array(["h100_sxm", "h200_sxm", "l40s", "b200_sxm"], dtype=object)}
    assert make_split("unseen_device", table, devices="h200_sxm").train.tolist() == [1, 0, 1, 1]
    split = make_split("unseen_device", table, devices="h200_sxm", exclude_family=True)
    assert split.train.tolist() == [False, False, True, True]
    assert chip_family("b200_sxm") == chip_family("b300_sxm") != chip_family("rtx_pro_6000")
    with pytest.raises(NoDataError, match="nearest: h200_sxm"):
        make_split("unseen_device", table, devices="h200")
    with pytest.raises(SpecError, match="nearest: unseen_shape"):
        make_split("unseen_shapes", table)
    assert set(SPLITS) >= {"random", "unseen_shape", "off_grid", "unseen_config", "frontier"}


# ------------------------------------------------------------------------------- measured data


@needs_data
def test_measured_tables():
    silicon = DATA / "silicon"
    h200 = import_files(silicon / "h200_sxm" / "gemm" / "gemm-vllm-0.22.0.parquet")
    assert length(h200) == 65268 and h200["sustained"].all() and h200["valid"].all()
    assert (h200["time_s"][h200["power_valid"]] > 56e-6).all()
    assert set(h200["dtype"]) == {"bf16", "fp8_block"}
    assert set(h200["launch"][h200["dtype"] == "fp8_block"]) == {"stream"}
    consensus = import_files(DATA / "gemm_consensus" / "bf16_consensus.parquet")
    assert length(consensus) == 323438 and consensus["valid"].all()
    assert (consensus["time_low_s"] <= consensus["time_s"]).all()
    tuner = import_files(DATA / "kernel_tuner" / "gemm.parquet")
    assert length(tuner) == 80137 and set(tuner["k"]) == {4096}
    gpperf = import_files(DATA / "gpperf")
    assert length(gpperf) == 16323 and not gpperf["power_valid"].any()
    cutlass = gpperf["kernel"] == "cutlass_simt"
    keys = groups(gpperf, ("m", "n", "k", "layout"), cutlass)
    assert len(keys) == 144 and set(gpperf["tile_m"][cutlass]) == {128.0}
