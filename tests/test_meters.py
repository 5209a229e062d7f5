"""Meters without their devices: a fake NVML, a fake powercap tree, recordings, energy windows."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ridgecast.errors import MeasurementError, MissingExtraError, NoDataError, SpecError
from ridgecast.measure import Meter, Reading, doctor
from ridgecast.measure.energy import (
    ENERGY_COLUMNS,
    EnergyProtocol,
    counter_power,
    energy_columns,
    measure_energy,
    measure_idle,
)
from ridgecast.measure.meters import METERS, get_meter
from ridgecast.measure.meters import nvml as nvml_module
from ridgecast.measure.meters.clock import ThrottleCount
from ridgecast.measure.meters.nvml import THROTTLE, Nvml
from ridgecast.measure.meters.rapl import Rapl, Zone, find_zones
from ridgecast.measure.meters.replay import Recorder, Replay
from ridgecast.measure.meters.sampling import Sampler, mean_over


class NVMLError(Exception):
    """What the binding raises, with the library's return code."""

    def __init__(self, value):
        self.value = value


class FakeNvml:
    """A board that draws `power` W; its counter moves every `step` s; any call can be made fail."""

    NVMLError = NVMLError

    def __init__(self, power=300.0, step=0.02):
        self.power, self.step, self.reasons = power, step, 0
        self.fail: dict[str, int] = {}
        self.pids: list[int] = []
        self.calls: list[str] = []
        self.begun = time.perf_counter()

    def __getattr__(self, name):
        answers = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByUUID": "handle", "nvmlSystemGetDriverVersion": b"580.1",
            "nvmlDeviceGetName": "NVIDIA H200", "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=141 * 10**9),
            "nvmlDeviceGetMaxClockInfo": 1980, "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetTemperature": 55, "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetPowerUsage": 250_000,
        }  # fmt: skip
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
            if name in self.fail:
                raise NVMLError(self.fail[name])
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                steps = (time.perf_counter() - self.begun) // self.step
                return round(1e3 * self.power * steps * self.step)  # mJ
            if name == "nvmlDeviceGetFieldValues":
                assert arguments[1] == [186]
                value = SimpleNamespace(uiVal=round(1e3 * self.power))
                return [SimpleNamespace(nvmlReturn=0, value=value)]
            if name == "nvmlDeviceGetCurrentClocksEventReasons":
                return self.reasons
            if name == "nvmlDeviceGetComputeRunningProcesses":
                return [SimpleNamespace(pid=pid) for pid in self.pids]
            return answers[name]

        return call


@pytest.fixture
def board(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


class Load:
    """Work of 2 ms a run."""

    run = 0.002

    def __init__(self):
        self.largest, self.pending = 0, 0

    def enqueue(self, count):
        self.largest, self.pending = max(self.largest, count), self.pending + count

    def synchronize(self):
        time.sleep(self.run * self.pending)
        self.pending = 0


SHORT = EnergyProtocol(settle=0.1, window=0.4, max_window=1.0, ahead=0.05, resolution=0.1)


# --------------------------------------------------------------------------------------- NVML


def test_nvml_speaks_si_and_says_what_it_is(board):
    probe = Nvml().probe()
    assert probe.ok and probe.device and probe.device.name == "NVIDIA H200"
    facts = probe.device.facts
    assert facts["power_limit_w"] == 700.0 and facts["clock_limit_hz"] == 1.98e9
    assert facts["power_sensor"] == "instant" and facts["driver"] == "580.1"
    meter = Nvml(uuid="1", period=0.01)
    meter.start()
    with pytest.raises(MeasurementError, match="open already"):
        meter.start()
    time.sleep(0.15)
    reading = meter.stop()
    assert reading.duration == pytest.approx(0.15, abs=0.1)
    assert reading.energy == pytest.approx(300 * reading.duration, abs=300 * 0.021)
    assert reading.samples["clock"][0] == 1.755e9 and reading.samples["power"][-1] == 300.0
    assert reading.facts["energy_source"] == "counter" and reading.throttle == ()
    with pytest.raises(MeasurementError, match="no window"):
        meter.stop()
    meter.close()
    meter.close()
    changing = [c for c in board.calls if "Set" in c or "Reset" in c or "Clear" in c]
    assert not changing and board.calls.count("nvmlShutdown") == 1


def test_nvml_falls_back_and_flags_it(board):
    board.fail = {"nvmlDeviceGetFieldValues": 3, "nvmlDeviceGetTotalEnergyConsumption": 3}
    meter = Nvml(period=0.01)
    meter.start()
    time.sleep(0.03)
    reading = meter.stop()
    assert reading.facts["energy_source"] == reading.facts["power_sensor"] == "averaged"
    assert reading.mean_power == pytest.approx(250.0)
    board.fail["nvmlDeviceGetPowerUsage"] = 3
    meter.start()
    reading = meter.stop()
    assert np.isnan(reading.energy) and "neither" in reading.reason


@pytest.mark.parametrize(
    ("code", "words"), [(4, "permission"), (9, "modprobe"), (12, "driver here"), (77, "error 77")]
)
def test_nvml_errors_are_reasons_with_a_cure(board, code, words):
    board.fail = {"nvmlInit": code}
    probe = Nvml().probe()
    assert not probe.ok and words in f"{probe.reason} | {probe.cure}"
    with pytest.raises(MeasurementError, match=re.escape(probe.reason)):
        Nvml().start()


def test_nvml_lost_in_a_window_is_an_error(board):
    meter = Nvml(period=0.005)
    meter.start()
    board.fail = {"nvmlDeviceGetTotalEnergyConsumption": 15}
    time.sleep(0.03)
    with pytest.raises(MeasurementError, match="lost"):
        meter.stop()
    assert not meter.probe().ok


def test_nvml_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    probe = Nvml().probe()
    assert not probe.ok and probe.cure == "pip install nvidia-ml-py"
    with pytest.raises(MissingExtraError, match="pip install"):
        Nvml().throttled()


def test_throttle_reasons_have_names_and_are_cached(board):
    board.reasons = 0x1 | 0x2 | 0x4 | 0x20  # idle, a clock that somebody set, cap, heat
    meter = Nvml()
    assert meter.throttled() == ("power_cap", "thermal")
    count = len(board.calls)
    begun, asked = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.05:
        meter.throttled()
        asked += 1
    assert len(board.calls) - count <= 6 < asked
    assert len(set(THROTTLE.values())) == len(THROTTLE)


def test_another_process_is_seen(board, monkeypatch):
    monkeypatch.setattr(nvml_module, "_related", lambda pid: pid == 10)
    board.pids = [10, 1]  # ours, and one that exists
    assert Nvml().throttled() == ("other_process",)
    assert Nvml(shared=True).throttled() == ()
    assert "1 other process on" in Nvml().probe().reason
    board.pids = [2**30]  # numbers that mean nothing here: taken to be ours
    assert Nvml().throttled() == ()
    monkeypatch.undo()
    assert nvml_module._related(os.getpid()) and nvml_module._related(os.getppid())


# --------------------------------------------------------------------------------------- RAPL


@pytest.fixture
def powercap(tmp_path):
    """Two packages, one dram zone, a core zone, the same package again through MMIO."""
    root = tmp_path / "powercap"
    zones = {
        "intel-rapl:0": ("package-0", 900), "intel-rapl:0:0": ("core", 5),
        "intel-rapl:0:1": ("dram", 100), "intel-rapl:1": ("package-1", 200),
        "intel-rapl:2": ("psys", 1), "intel-rapl-mmio:0": ("package-0", 7),
    }  # fmt: skip
    for folder, (name, value) in zones.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "energy_uj").write_text(f"{value}\n")
        (root / folder / "max_energy_range_uj").write_text("1000\n")
    return root


def test_rapl_zones_are_counted_once(powercap):
    zones = find_zones(powercap)
    assert sorted(z.name for z in zones) == ["package-0", "package-0/dram", "package-1"]
    assert {z.path.name for z in zones} == {"intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"}


def test_rapl_counter_wraps(powercap):
    zone = Zone("package-0", powercap / "intel-rapl:0", range=1e-3)
    assert zone.read() == 0.0
    for value in (950, 30, 80):
        (powercap / "intel-rapl:0" / "energy_uj").write_text(str(value))
        total = zone.read()
    # 900 -> 950 is 50; 950 -> 30 wraps at 1000: 80; 30 -> 80 is 50; in uJ
    assert total == pytest.approx(180e-6)


def test_rapl_sums_packages_and_keeps_dram_apart(powercap):
    meter = Rapl(root=powercap, period=10.0)
    assert meter.probe().ok
    meter.start()
    for folder, value in (("intel-rapl:0", 20), ("intel-rapl:1", 260), ("intel-rapl:0:1", 103)):
        (powercap / folder / "energy_uj").write_text(str(value))
    reading = meter.stop()
    assert reading.energy == pytest.approx(120e-6 + 60e-6)  # package-0 wrapped
    assert reading.facts["window_dram_j"] == pytest.approx(3e-6)
    assert reading.mean_power == pytest.approx(reading.energy / reading.duration)


def test_rapl_says_what_is_missing(powercap, tmp_path, monkeypatch):
    assert "no " in Rapl(root=tmp_path / "none").probe().reason
    (powercap / "intel-rapl:1" / "name").write_text("psys")

    def refuse(self):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(Zone, "read", refuse)
    probe = Rapl(root=powercap).probe()
    assert not probe.ok and "permission" in probe.reason
    assert probe.cure.startswith("sudo chmod a+r ") and "intel-rapl:0/energy_uj" in probe.cure
    with pytest.raises(MeasurementError, match="chmod"):
        Rapl(root=powercap).start()


def test_cpu_throttle_counts_rise(tmp_path):
    for cpu in (0, 1):  # two processors of one package: one counter
        folder = tmp_path / f"cpu{cpu}"
        (folder / "thermal_throttle").mkdir(parents=True)
        (folder / "topology").mkdir()
        (folder / "topology" / "physical_package_id").write_text("0")
        (folder / "thermal_throttle" / "package_throttle_count").write_text("5")
    count = ThrottleCount(tmp_path, max_age=0.0)
    assert count.look() == ()
    (tmp_path / "cpu0/thermal_throttle/package_throttle_count").write_text("6")
    assert count.look() == ("thermal",) and count.look() == ()
    assert ThrottleCount(tmp_path / "none").look() == ()


# --------------------------------------------------------------------------- clock, replay, sampler


def test_clock_knows_no_power():
    meter = get_meter("clock")
    meter.start()
    reading = meter.stop()
    assert np.isnan(reading.energy) and np.isnan(reading.mean_power) and "nvml" in reading.reason
    assert isinstance(meter, Meter) and list(METERS) == ["clock", "nvml", "rapl", "replay"]
    with pytest.raises(SpecError, match="nvml"):
        get_meter("nvmll")


def test_a_recording_says_the_same_again(board, tmp_path):
    path = tmp_path / "run.jsonl"
    recorder = Recorder(Nvml(period=0.01), path)
    board.reasons = 0x4
    assert recorder.throttled() == recorder.throttled() == ("power_cap",)
    said = [measure_energy(Load(), 0.002, recorder, SHORT) for _ in range(2)]
    with path.open("a") as file:
        file.write('{"kind": "wind')  # killed while writing
    twin = Replay(path)
    assert twin.recorded == "nvml" and "4 windows left" in twin.probe().reason
    assert twin.throttled() == twin.throttled() == ("power_cap",)
    again = [measure_energy(Load(), 0.002, twin, SHORT) for _ in range(2)]
    for one, two in zip(said, again, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert value == pytest.approx(two[name], nan_ok=True)
    assert not twin.probe().ok
    with pytest.raises(MeasurementError, match="all were used"):
        twin.start()
    Recorder(get_meter("clock"), path).note({"x": 1})  # appends after the torn line was cut
    assert json.loads(path.read_text().splitlines()[-1])["facts"] == {"x": 1}


def test_bad_recordings(tmp_path):
    with pytest.raises(NoDataError, match="no recording"):
        Replay(tmp_path / "none.jsonl")
    path = tmp_path / "bad.jsonl"
    for text, words in (
        ('{"kind": "meter", "schema_version": 9, "name": "nvml"}\n', "schema_version 9"),
        ('{"kind": "window"}\n', "lacks"),
        ("no json\n\n", "line 1"),
        ("", "no head"),
    ):
        path.write_text(text)
        with pytest.raises(SpecError, match=words):
            Replay(path)


def test_sampler_keeps_pace_and_slow_columns():
    slow = []
    sampler = Sampler(lambda s: slow.append(s) or {"power": 1.0}, period=0.005, slow_every=4)
    sampler.begin()
    time.sleep(0.08)
    duration, columns = sampler.end()
    assert duration == columns["time"][-1] and (np.diff(columns["time"]) >= 0).all()
    assert 5 <= len(columns["time"]) <= 20 and np.isnan(columns["clock"]).all()
    assert slow[0] and slow[-1] and 0.1 < np.mean(slow) < 0.7
    # trapezoid over uneven steps: (1 + 3) / 2 * 1 + (3 + 3) / 2 * 3 over 4
    t, v = np.array([0.0, 0.5, 1.0, 4.0]), np.array([1.0, np.nan, 3.0, 3.0])
    assert mean_over(t, v) == pytest.approx(11 / 4)


# ------------------------------------------------------------------------------------ energy


def window(power=300.0, step=0.1, pace=0.02, length=3.0, **changes):
    """What a meter sees of a constant load: its counter moves every `step` s, 30 ms in."""
    t = np.arange(0.0, length + 1e-9, pace)
    energy = power * step * np.floor((t - 0.03) / step + 1 + 1e-9)
    samples = {"time": t, "energy": energy, "power": np.full(len(t), power)}
    for name, value in (("clock", 1.7e9), ("memory_clock", 3.2e9), ("temperature", 60.0)):
        samples[name] = np.full(len(t), value)
    facts = {"energy_source": "counter", "power_sensor": "instant", "power_limit_w": 700.0}
    reading = Reading(length, energy[-1] - energy[0], power, samples=samples, facts=facts)
    return replace(reading, **changes)


def test_counter_slope_ignores_what_lies_outside_its_steps():
    # steps at 0.03 + 0.1 i, seen at the next reading of 0.02: 0.04, 0.14, ... 2.94: 29 steps
    power, error, span = counter_power(window())
    assert power == pytest.approx(300.0) and error == pytest.approx(0.02 / 2.9)
    assert window().samples["time"][span][[0, -1]] == pytest.approx([0.04, 2.94])
    raw = window(length=3.02).energy / 3.02
    assert raw == pytest.approx(300.0, rel=0.04) and raw != pytest.approx(300.0, rel=0.001)


def test_energy_row_by_hand():
    row = energy_columns(window(), 1500, 3.0, EnergyProtocol(idle_power=100.0))
    assert row["sustained_time_s"] == 2e-3 and row["energy_j"] == pytest.approx(0.6)
    assert row["energy_dynamic_j"] == pytest.approx(0.4) and row["energy_valid"]
    assert row["power_instant_w"] == pytest.approx(300.0) and row["clock_mean_hz"] == 1.7e9
    assert row["counter_step_s"] == pytest.approx(0.1) and row["energy_reason"] == ""
    assert row["power_spread"] == row["power_drift"] == 0.0 and row["power_limit_w"] == 700.0
    unknown = energy_columns(window(), 1500, 3.0, EnergyProtocol())
    assert np.isnan(unknown["energy_dynamic_j"]) and "idle" in unknown["energy_reason"]
    assert unknown["energy_valid"]


def broken():
    good = window()
    t, power = good.samples["time"], good.samples["power"]
    drift = {**good.samples, "power": power * np.linspace(0.95, 1.05, len(t))}
    apart = {**good.samples, "power": power * 1.05}
    yield replace(good, samples=drift), "still moved"
    yield replace(good, samples=apart), "differ by 5.0%"
    yield replace(good, throttle=("power_cap", "thermal")), "throttled in the energy window: therm"
    yield replace(good, facts={**good.facts, "other_processes": 1}), "other process"
    yield window(step=1.0, pace=0.2), "the energy counter leaves 10.0%"
    yield Reading(3.0, reason="no sensor"), "no power: no sensor"


@pytest.mark.parametrize(("reading", "words"), list(broken()), ids=range(6))
def test_broken_windows_are_kept_and_flagged(reading, words):
    row = energy_columns(reading, 1500, 3.0, EnergyProtocol(idle_power=90.0))
    assert not row["energy_valid"] and not row["power_valid"] and words in row["energy_reason"]
    assert np.isfinite(row["energy_j"]) or "no power" in words


def test_the_power_cap_is_normal_under_sustained_load():
    row = energy_columns(window(throttle=("power_cap",)), 10, 3.0, EnergyProtocol(idle_power=9.0))
    assert row["energy_valid"] and row["window_throttle"] == "power_cap"


def test_energy_window_over_a_load(board):
    board.power = 100.0
    idle = measure_idle(Nvml(period=0.01), settle=0.0, window=0.3)
    assert idle == pytest.approx(100.0, rel=0.15)
    board.power, board.begun = 300.0, time.perf_counter() - 3.0
    load = Load()
    row = measure_energy(load, 0.001, Nvml(period=0.01), replace(SHORT, idle_power=idle))
    assert row["energy_valid"], row["energy_reason"]
    assert set(ENERGY_COLUMNS) <= set(row) and row["window_s"] >= 0.4
    assert row["power_w"] == pytest.approx(300.0, rel=0.1)
    assert row["sustained_time_s"] == pytest.approx(0.002, rel=0.3)  # not the 1 ms of a burst
    assert load.largest <= 0.05 / 0.001 + 1  # what was ahead of the device


def test_coarse_counters_stretch_the_window(board):
    board.step = 0.1
    protocol = replace(SHORT, settle=0.35, agreement=0.5, resolution=0.02, max_window=0.75)
    row = measure_energy(Load(), 0.002, Nvml(period=0.01), protocol)
    assert 0.65 <= row["window_s"] <= 1.1 and row["counter_step_s"] == pytest.approx(0.1, rel=0.3)


class Broken(Load):
    def synchronize(self):
        raise MeasurementError("lost")


def test_no_meter_no_time_and_a_lost_device(board):
    row = measure_energy(Load(), 0.001, None, SHORT)
    assert np.isnan(row["power_w"]) and "--meter" in row["energy_reason"]
    assert "time of a run" in measure_energy(Load(), np.nan, Nvml(), SHORT)["energy_reason"]
    row = measure_energy(Load(), 0.002, get_meter("clock"), SHORT)
    assert np.isnan(row["energy_j"]) and row["sustained_time_s"] > 0 and not row["power_valid"]
    meter = Nvml()
    with pytest.raises(MeasurementError, match="lost"):
        measure_energy(Broken(), 0.001, meter, SHORT)
    meter.start()  # the window of the lost run was closed
    meter.stop()
    for wrong in ({"window": 0.0}, {"settle": -1.0}, {"max_window": 0.1}):
        with pytest.raises(SpecError):
            replace(SHORT, **wrong)


# ------------------------------------------------------------------------------------ doctor


def test_doctor_survives_drivers_that_hang_crash_and_chatter(monkeypatch, tmp_path):
    say = "from ridgecast.measure.doctor import _say; "
    code = f"""import os, sys, time; name = sys.argv[2]
if name == "hang": time.sleep(60)
if name == "crash": os.abort()
print("a driver says hello", end=""); {say} _say({{"name": name, "ok": True, "reason": ""}})"""
    monkeypatch.setattr(doctor, "_CODE", code)
    begun = time.monotonic()
    names = dict.fromkeys(("crash", "chatter", "hang"), "")
    found = doctor.examine(out=tmp_path / "new" / "er", timeout=1.5, providers=names, meters={})
    assert time.monotonic() - begun < 10
    crash, chatter, hang = found["providers"]
    assert crash["ok"] is False and "died" in crash["reason"]
    assert chatter["ok"] is True or chatter["ok"] is None  # None on a machine that is very busy
    assert hang["ok"] is None and "--timeout" in hang["cure"]
    assert any("provider hang" in line for line in found["advice"])
    assert found["machine"]["out"] == str(tmp_path) and found["machine"]["free_bytes"] > 0


def test_doctor_rows_are_reasons_not_crashes(board):
    assert "nearest" in doctor.probe_row("provider", "cudaa")["reason"]
    row = doctor.probe_row("meter", "nvml")
    assert row["ok"] and row["device"]["name"] == "NVIDIA H200"
    json.dumps(row)
    board.fail = {"nvmlInit": 9}
    assert "modprobe" in doctor.probe_row("meter", "nvml")["cure"]


def test_doctor_advises_on_what_disturbs():
    host = {"governor": "powersave", "load": 4.0, "cores": 4, "out": "x", "writable": True,
            "chromium": None}  # fmt: skip
    lines = doctor._advice({"providers": [], "meters": [], "machine": host | {"free_bytes": 1e6}})
    assert [line.split()[0] for line in lines] == ["CPU", "load", "no", "x"]
    assert "apt-get install chromium" in lines[2]
