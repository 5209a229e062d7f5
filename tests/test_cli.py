"""The command line: documents on stdout, refusals on stderr, exit codes, spelling help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import ridgecast.predict as predict_room
from ridgecast import errors
from ridgecast.cli.app import app
from ridgecast.cli.output import exit_code, plain
from ridgecast.cli.parse import parse_shape
from ridgecast.kernels.asked import config_columns
from ridgecast.store import read_table, write_table
from ridgecast.units import format_field as cell
from ridgecast.units import key_values

GEMM = ["gemm", "4096x4096x4096", "--dtype", "bf16", "--on", "h200_sxm"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def fake_table(table, **_options):
    """Stand-in for the predictor: 1 us per unit of m; rows of the dtype fp64 have no answer."""
    rows = len(table["m"])
    ok = np.asarray(table["dtype"]) != "fp64"
    nothing = np.where(ok, 1.0, np.nan)
    return {
        **table,
        "time_s": np.asarray(table["m"], dtype=float) * 1e-6 * nothing,
        "time_low_s": 0.5e-6 * nothing,
        "time_high_s": 2e-6 * nothing,
        "bound_s": 1e-7 * nothing,
        "memory_bytes": 3e9 * nothing,
        "limiter": np.full(rows, "tensor", dtype=object),
        "basis": np.full(rows, "learned", dtype=object),
        "status": np.where(ok, "ok", "unsupported").astype(object),
        "reason": np.where(ok, "", "no such unit").astype(object),
    }


@pytest.fixture
def predictor(monkeypatch):
    seen = []

    def spy(table, **options):
        seen.append((table, options))
        return fake_table(table, **options)

    monkeypatch.setattr(predict_room, "predict_table", spy, raising=False)
    return seen


def test_predict_json_is_one_document_with_the_batch_columns(predictor):
    done = run("predict", *GEMM, "--cache", "hot", "--json")
    assert done.exit_code == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["op"] == "gemm" and row["hardware"] == "h200_sxm" and row["cache"] == "hot"
    assert (row["m"], row["batch"], row["layout"]) == (4096, 1, "tn")
    assert row["time_s"] == pytest.approx(4096e-6) and row["basis"] == "learned"


def test_predict_passes_configuration_model_and_level(predictor, tmp_path):
    done = run(
        "predict", *GEMM, "--kernel", "clblast", "--config", "MWG=32", "--config", "vwm=2",
        "--model", tmp_path, "--level", 0.8, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    (table, options) = predictor[0]
    assert (table["kernel"][0], table["mwg"][0], table["vwm"][0]) == ("clblast", 32, 2)
    assert options["model"] == tmp_path and options["level"] == 0.8


def test_predict_draws_a_card_with_units(predictor):
    done = run("predict", *GEMM)
    assert done.exit_code == 0
    for text in ("4.10 ms", "500 ns to 2.00 µs in 90 % of cases", "3.00 GB", "tensor", "learned"):
        assert text in done.stdout
    assert re.search(r"power +n/a", done.stdout)  # unknown is said, never shown as 0


def test_no_answer_is_exit_3_with_the_reason_on_stderr_and_nulls_in_json(predictor):
    done = run("predict", "gemm", "8x8x8", "--dtype", "fp64", "--on", "h200_sxm", "--json")
    assert done.exit_code == 3
    assert "no such unit" in done.stderr
    row = json.loads(done.stdout)
    assert row["time_s"] is None and row["status"] == "unsupported"


def test_predict_table_keeps_bad_rows_and_exits_0(predictor, tmp_path):
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    words = {"op": "gemm", "hardware": "h200_sxm"}
    table = {key: np.full(3, word, dtype=object) for key, word in words.items()}
    table |= {"dtype": np.array(["bf16", "fp64", "bf16"], dtype=object)}
    table |= {key: np.array([1, 2, 3]) for key in "mnk"}
    write_table(source, table)
    done = run("predict", "--table", source, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "rows": 3, "ok": 2, "not_ok": 1, "reasons": {"no such unit": 1}, "out": str(out),
    }  # fmt: skip
    assert read_table(out)["status"].tolist() == ["ok", "unsupported", "ok"]
    rows = json.loads(run("predict", "--table", source, "--json").stdout)
    assert [row["time_s"] for row in rows] == [pytest.approx(1e-6), None, pytest.approx(3e-6)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "gemm", "4096x4096", "--on", "h200_sxm"], "need MxNxK"),
        (["predict", "gemm", "4096,4096,4096", "--on", "h200_sxm"], "4096x4096x4096"),
        (["predict", "gemm", "4x-2x3", "--on", "h200_sxm"], "gemm.n"),
        (["predict", "gemm", "0x2x3", "--on", "h200_sxm"], "gemm.m"),
        (["predict", "gemn", "1x2x3", "--on", "h200_sxm"], "nearest: gemm"),
        (["predict", "gemm", "1x2x3", "--on", "h201_sxm"], "h200_sxm"),
        (["predict", "gemm", "1x2x3"], "--on NAME"),
        (["predict", "gemm", "1x2x3", "--on", "l4", "--hardware", "my.toml"], "both"),
        (["predict", "gemm", "1x2x3", "--on", "l4", "--dtype", "bf61"], "bf16"),
        (["predict", "gemm", "1x2x3", "--on", "l4", "--tile", "16"], "--kernel"),
        (["predict", *GEMM, "--kernel", "tile"], "nearest: tiled"),
        (["predict", *GEMM, "--kernel", "tiled", "--tile", "64"], "tiled.tile"),
        (["predict", *GEMM, "--kernel", "tiled", "--config", "stage=3"], "parameter of kernel"),
        (["tune", *GEMM, "--kernel", "cutlas"], "cutlass_simt"),
        (["predict", "gemm", "1x2x3", "--on", "l4", "--level", "90"], "between 0 and 1"),
        (["predict", "gemm", "1x2x3", "--on", "l4", "--cache", "warm"], "hot, cold"),
        (["predict"], "--table FILE"),
        (["predict", "--table", "in.parquet"], "--out FILE"),
        (["predict", "--table", "in.parquet", "gemm", "1x2x3"], "are columns"),
        (["predikt", "gemm"], "nearest: predict"),
        (["explain", *GEMM, "--what-if", "memory.bandwidth"], "FIELD=VALUE"),
        (["tune", *GEMM, "--objective", "tme"], "nearest: time"),
        (["hardware", "compare", "l4"], "need two"),
        (["hardware", "l44"], "l4"),
        (["ops", "gem"], "nearest: gemm"),
        (["--no-such-option"], "No such option"),
        (["predict", "--no-such-option"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_2_with_help_and_nothing_on_stdout(arguments, said):
    done = run(*arguments)
    assert done.exit_code == 2, (done.stdout, done.stderr)
    assert said in done.stderr and done.stdout == ""


def test_missing_table_says_so():
    done = run("predict", "--table", "no_such_file.parquet", "--json")
    assert done.exit_code == 3 and "no_such_file.parquet" in done.stderr


EXIT_CODES = {
    "RidgecastError": 2, "SpecError": 2, "MissingExtraError": 2, "UnsupportedError": 3,
    "OutOfDomainError": 3, "NoDataError": 3, "InfeasibleError": 3, "MeasurementError": 4,
}  # fmt: skip


def test_every_error_class_has_its_exit_code():
    family = {name for name in errors.__all__ if name.endswith("Error")}
    assert family == set(EXIT_CODES)
    for name, code in EXIT_CODES.items():
        assert exit_code(getattr(errors, name)("x")) == code


@pytest.mark.parametrize("name", ["UnsupportedError", "MeasurementError"])
def test_an_error_inside_a_command_becomes_its_code(monkeypatch, name):
    def refuse(table, **_):
        raise getattr(errors, name)("cannot, because")

    monkeypatch.setattr(predict_room, "predict_table", refuse, raising=False)
    done = run("predict", *GEMM, "--json")
    assert done.exit_code == EXIT_CODES[name]
    assert done.stdout == "" and done.stderr == "ridgecast: cannot, because\n"


def test_an_unforeseen_exception_is_our_bug(monkeypatch):
    def fail(table, **_):
        raise ZeroDivisionError

    monkeypatch.setattr(predict_room, "predict_table", fail, raising=False)
    done = run("predict", *GEMM)
    assert done.exit_code == 1 and isinstance(done.exception, ZeroDivisionError)


class Result(SimpleNamespace):
    def to_dict(self):
        return vars(self)


def install(monkeypatch, module, function, result):
    """Put a recording stand-in in place of `module.function`."""
    calls = []

    def stand_in(*arguments, **options):
        calls.append((arguments, options))
        return result

    fake = ModuleType(module)
    setattr(fake, function, stand_in)
    monkeypatch.setitem(sys.modules, module, fake)
    return calls


def test_explain_passes_the_counterfactuals(monkeypatch):
    rows = [{"part": "tensor", "time_s": 1e-4, "share": 0.75}]
    calls = install(monkeypatch, "ridgecast.predict.explain", "explain", Result(rows=rows))
    what_if = ["--what-if", "memory.bandwidth=+20%", "--what-if", "clock=-10%"]
    done = run("explain", *GEMM, *what_if, "--kernel", "tiled", "--tile", 16, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"rows": rows}
    (work, device), options = calls[0]
    assert (work.name, work.m, device.name) == ("gemm", 4096, "h200_sxm")
    assert options["what_if"] == {"memory.bandwidth": "+20%", "clock": "-10%"}
    assert (options["config"].kernel, options["config"].tile) == ("tiled", 16)
    text = run("explain", *GEMM).stdout
    assert "100 µs" in text and "75.0 %" in text


def test_tune_shows_the_top(monkeypatch):
    rows = [{"tile_m": 64 * i, "energy_j": 0.01 * i} for i in range(1, 6)]
    calls = install(monkeypatch, "ridgecast.predict.tune", "tune", Result(rows=rows))
    done = run("tune", *GEMM, "--objective", "energy", "--top", 2, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == rows[:2]
    assert calls[0][1]["objective"] == "energy" and calls[0][1]["kernel"] is None


def test_train_takes_many_files_and_keeps_stdout_for_json(monkeypatch, tmp_path):
    calls = install(monkeypatch, "ridgecast.predict.train", "train", Result(rows=12))
    done = run("train", "--data", "a.parquet", "b.parquet", "--out", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    assert calls[0][0] == (["a.parquet", "b.parquet"], tmp_path)
    assert json.loads(done.stdout) == {"rows": 12} and "2 files" in done.stderr


def test_accuracy_passes_its_folders(monkeypatch, tmp_path):
    rows = [{"split": "unseen_shape", "mape": 0.03}]
    calls = install(monkeypatch, "ridgecast.accuracy", "run", Result(rows=rows))
    done = run("accuracy", "--model", tmp_path, "--data", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == rows
    assert calls[0][1] == {
        "model": tmp_path, "data": [tmp_path], "out": None, "splits": None,
    }  # fmt: skip
    assert run("accuracy", "--data", tmp_path / "none").exit_code == 2


def test_hardware_lists_shows_and_compares():
    listed = json.loads(run("hardware", "--json").stdout)
    assert {"h200_sxm", "a100_sxm", "mi300x"} <= {row["name"] for row in listed}
    shown = json.loads(run("hardware", "h200_sxm", "--json").stdout)
    fields = {row["field"]: row for row in shown["fields"]}
    assert fields["memory.bandwidth"]["value"] == 4.8e12  # NVIDIA's data sheet of the H200 SXM
    assert fields["memory.bandwidth"]["kind"] and fields["memory.bandwidth"]["source"]
    compared = json.loads(run("hardware", "compare", "h100_sxm", "h200_sxm", "--json").stdout)
    ratio = {row["field"]: row["ratio"] for row in compared["fields"]}["memory.bandwidth"]
    assert ratio == pytest.approx(4.8 / 3.35, rel=0.01)
    assert "h200_sxm" in run("hardware").stdout
    assert "4.80 TB/s" in run("hardware", "h200_sxm").stdout


def test_ops_and_doctor_speak_json():
    listed = json.loads(run("ops", "--json").stdout)
    assert [row["name"] for row in listed][:2] == ["gemm", "attention"] and len(listed) > 30
    assert json.loads(run("ops", "gemm", "--json").stdout)["fields"][0]["field"] == "m"
    report = json.loads(run("doctor", "--json").stdout)
    assert {"python", "packages", "gpus", "data", "advice"} <= set(report) and report["ok"]
    assert run("doctor").exit_code == 0


def test_shapes_and_pairs():
    assert parse_shape("1×2X3") == {"m": 1, "n": 2, "k": 3}
    assert key_values(["a=b=c"], "--x") == {"a": "b=c"}
    assert config_columns("k", {"tile": 8, "tile_m": None}, ["a=1", "b=1.5", "c=z"]) == {
        "kernel": "k", "tile": 8, "a": 1, "b": 1.5, "c": "z",
    }  # fmt: skip
    with pytest.raises(errors.SpecError, match="twice"):
        key_values(["a=1", "a=2"], "--what-if")


def test_plain_turns_what_json_lacks_into_null():
    assert plain({"a": np.float64("inf"), "b": np.array([1.0, np.nan]), "c": np.int64(3)}) == {
        "a": None, "b": [1.0, None], "c": 3,
    }  # fmt: skip
    json.dumps(plain([np.bool_(True), np.str_("x"), float("nan")]), allow_nan=False)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [("memory_bytes_per_s", 4.8e12, "4.80 TB/s"), ("batch", 3, "3"), ("time_s", float("nan"), "")],
)
def test_cells_take_their_unit_from_the_key(key, value, text):
    assert cell(key, value) == text


def test_installed_command_exits_as_the_runner_does():
    command = [sys.executable, "-c", "from ridgecast.cli import main; main()"]
    done = subprocess.run([*command, "predikt"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "nearest: predict" in done.stderr and done.stdout == ""


def test_help_and_usage_errors_do_not_load_rich():
    code = """
import sys
from ridgecast.cli import main
sys.argv = ["ridgecast", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"rich", "numpy", "duckdb", "lightgbm"} & set(sys.modules)
    print(sorted(heavy), file=sys.stderr)
"""
    for arguments, status in ((["--help"], 0), (["predict", "--help"], 0), (["predict"], 2)):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status and done.stderr.endswith("[]\n"), done.stderr
