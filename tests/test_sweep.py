"""Sweeps: plans, the protocol, folders that survive a kill, replay, budget, the command."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from ridgecast.cli.app import app
from ridgecast.errors import MeasurementError, NoDataError, SpecError
from ridgecast.measure import DeviceInfo, Point, Probe, Reading, protocol, shards, sweep
from ridgecast.measure.expressions import parse
from ridgecast.measure.plan import load_plan, read_plan
from ridgecast.measure.protocol import Protocol, measure_point
from ridgecast.measure.providers import replay
from ridgecast.measure.providers.replay import Replay
from ridgecast.measure.sampling import farthest, in_order, point_features, predictive_variance
from ridgecast.measure.shards import ShardWriter, plain_row, read_rows, read_shards, table_of
from ridgecast.measure.spread import run_spread
from ridgecast.measure.sweep import Options, dry_run, run_sweep
from ridgecast.store import import_report, read_table, tables, write_table

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# ---------------------------------------------------------------------------------------- plans


def test_a_grid_is_the_product_less_what_constraints_leave_out():
    plan = read_plan("""
        seed = 3
        provider = "blas"
        protocol = {time_cap = "200 ms", energy = {settle = 2}}
        [[grid]]
        kernel = "tiled"
        m = {from = 64, to = 4096, steps = 7, scale = "log2"}
        n = "m // 2"
        k = "2 * n"
        tile = [4, 16, 64]
        cache = ["hot", "cold"]
        where = ["tile <= n", 'not (cache == "cold" and tile in (4, 16))']
        [[list]]
        kernel = "library"
        dtype = ["half", "bf16"]
        points = [{shape = "8x8x8"}, {m = 8, n = 8, k = 8}, {m = 9, energy = true}]
    """)
    # 7 sizes x 3 tiles x 2 caches = 42; tile 64 > n = 32 costs 2, cold with a small tile 14 more
    assert (plan.excluded, plan.duplicates, len(plan.points)) == (16, 2, 26 + 4)
    assert {p.m for p in plan.points if p.kernel == "tiled"} == {64 << i for i in range(7)}
    assert all((p.n, p.k) == (p.m // 2, p.m) for p in plan.points if p.kernel == "tiled")
    assert [p.dtype for p in plan.points[-4:]] == ["fp16", "bf16", "fp16", "bf16"]
    assert plan.points[-1].energy and plan.points[-1].n == 1
    assert (plan.protocol.time_cap, plan.protocol.energy.settle) == (0.2, 2.0)


def test_samples_are_drawn_from_the_seed_and_fill_every_share_of_every_axis():
    text = """
        seed = {}
        [[latin_hypercube]]
        kernel = "tiled"
        count = 64
        m = {{from = 1, to = 64}}
        n = {{from = 16, to = 4096, scale = "log2", multiple = 16}}
        tile = [1, 2, 4, 8]
        repeats = 2
        [[random]]
        kernel = "library"
        count = 30
        m = {{from = 1, to = 100}}
        where = "m % 3 == 0"
    """
    plan = read_plan(text.format(1))
    cube, drawn = plan.points[:128], plan.points[128:]
    assert [p.repeat for p in cube] == [0] * 64 + [1] * 64  # a pass, then the whole again
    assert {p.config["tile"]: 0 for p in cube} == dict.fromkeys((1, 2, 4, 8), 0)
    assert sum(p.config["tile"] == 4 for p in cube[:64]) == 16
    assert sorted(p.m for p in cube[:64]) == list(range(1, 65))
    assert all(p.n % 16 == 0 for p in cube)
    assert len({p.key for p in drawn}) == 30 and all(p.m % 3 == 0 for p in drawn)
    assert read_plan(text.format(1)).points == plan.points
    assert read_plan(text.format(2)).points != plan.points


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[grid]]\nkernel = "t"\nm = 1\ntille = 3', r"grid\[0\].tille.*nearest: tile"),
        ('[[grid]]\nkernel = "t"\nm = {from = 1, to = 5}', r"grid\[0\].m: .*needs steps"),
        ('[[grid]]\nkernel = "t"\nm = "k"\nk = "m"', "computed from one another"),
        ('[[grid]]\nkernel = "t"\nm = 1\nn = "m / 0"', "division by zero"),
        ('[[grid]]\nkernel = "t"\nm = 1.5', r"grid\[0\].m: got 1.5, need a whole number"),
        ('[[grid]]\nkernel = "t"\nm = 1\nshape = "1x2x3"', "given twice"),
        ('[[grid]]\nkernel = "t"\nm = 1\nwhere = "tile <= m"', "no column tile"),
        ('[[grid]]\nkernel = "t"\nm = 1\nwhere = "m > 1"', "left out all 1"),
        ('[[grid]]\nkernel = "t"\nm = 1\ndtype = "bf61"', "nearest: bf16"),
        ('[[list]]\nkernel = "t"\npoints = [{m = 1, tyle = 3}]', r"points\[0\].tyle.*tile"),
        ('[[random]]\nkernel = "t"\nm = [1, 2]\ncount = 9', "only 2 different points of 9"),
        ('providr = "x"', "unknown key 'providr'; nearest: provider"),
        ('provider = "numbas"', "nearest: numba"),
        ('protocol = {time_cap = "5 W"}', "protocol.time_cap: unit 'W'"),
        ("schema_version = 9", "this version reads 1"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_a_wrong_sweep_file_is_refused_with_its_field(text, says):
    with pytest.raises(SpecError, match=f"(?s)mine.toml: .*{says}"):
        read_plan(text, origin="mine.toml")


def test_expressions_compute_and_nothing_else():
    known = ("m", "tile", "dtype")
    one = {"m": 64, "tile": 16, "dtype": "fp32"}
    for text, value in {
        "m // tile + 2 * -1": 2, "1 < tile <= m": True, "m % 5 / 2": 2.0,
        "dtype in ('fp32', 'bf16') and not m < 64": True, "m == 1 or tile == 1": False,
    }.items():  # fmt: skip
        assert parse(text, known, field="w").value(one) == value
    refused = ("__import__('os').system('true')", "m.real", "m[0]", "m ** 9", "lambda: m", "f'{m}'",
               "[x for x in m]", "m if m else 1", "m << 9", "(m := 3)", "m" + " + m" * 200,
               "m +")  # fmt: skip
    for text in refused:
        with pytest.raises(SpecError, match="w: "):
            parse(text, known, field="w")
    with pytest.raises(SpecError, match="nearest: tile"):
        parse("tiel < 3", known, field="w")
    with pytest.raises(SpecError, match="no value"):
        parse("dtype * 1000000000 == 1", known, field="w").value(one)


# ------------------------------------------------------------------------------------- protocol


class FakeWork:
    """Runs take `times` in turn on a clock of their own; keeps what was asked of it."""

    tolerance = 1e-3

    def __init__(self, times=(1e-3,), error=1e-6, fails=""):
        self.times, self.error, self.fails = times, error, fails
        self.now, self.runs, self.asked, self.facts = 0.0, 0, [], {"launch": "stream"}

    def clock(self):
        return self.now

    def _did(self, what):
        self.asked.append(what)
        if what == self.fails:
            raise RuntimeError("driver says no")

    def verify(self):
        self._did("verify")
        return self.error

    def sample(self, count):
        self._did("sample")
        found = [self.times[(self.runs + i) % len(self.times)] for i in range(count)]
        self.runs += count
        self.now += max(sum(found), 1e-3)
        return np.array(found)

    def enqueue(self, count):
        self._did("enqueue")

    def synchronize(self):
        self._did("synchronize")

    def close(self):
        self._did("close")


class FakeProvider:
    name = "fake"

    def __init__(self, work, alive=True):
        self.work, self.alive = work, alive

    def probe(self):
        return Probe(
            self.alive, "" if self.alive else "fell off the bus", device=DeviceInfo("d", "gpu")
        )

    def refusal(self, point):
        return "no fp64 here" if point.dtype == "fp64" else ""

    def prepare(self, point, rng):
        if self.work is None:
            raise MemoryError
        return self.work


class FakeMeter:
    """Throttled while `hot` says so; a window fails."""

    name = "fake"

    def __init__(self, hot):
        self.hot = iter(hot)

    def throttled(self):
        return ("thermal",) if next(self.hot, False) else ()

    def start(self):
        raise MeasurementError("meter unplugged")

    def stop(self):
        return Reading(0.0)


def measured(monkeypatch, work, point=None, meter=None, alive=True, **settings):
    if work is not None:
        monkeypatch.setattr(protocol, "time", SimpleNamespace(perf_counter=work.clock))
    point = point or Point("library", 8, 8, 8)
    return measure_point(
        FakeProvider(work, alive), point, rng=np.random.default_rng(0),
        protocol=Protocol(**settings), meter=meter,
    )  # fmt: skip


def test_verified_warmed_up_then_timed_and_closed(monkeypatch):
    work = FakeWork(times=(1e-3, 2e-3, 3e-3))
    row = measured(monkeypatch, work, precision=1e-9, max_samples=30)
    assert work.asked[0] == "verify" and work.asked[-1] == "close"
    assert work.asked.count("sample") >= 25 + 3  # 50 ms of warm-up in runs of 2 ms
    assert (row["status"], row["valid"], row["stopped_by"]) == ("ok", True, "max_samples")
    assert row["time_s"] == pytest.approx(2e-3) and row["samples"] == 30
    assert (row["time_low_s"], row["time_high_s"]) == (1e-3, 3e-3)
    assert row["op"] == "gemm" and row["launch"] == "stream" and row["point"]
    # 10 each of 1, 2, 3 ms: quartiles 1 and 3, so 1.2533 * 2 / 1.349 / sqrt(30) / 2
    assert row["median_error"] == pytest.approx(0.1696, abs=1e-4)
    assert measured(monkeypatch, FakeWork(), Point("copy", 4096))["op"] == "copy"


def test_sampling_stops_by_precision_or_at_the_cap(monkeypatch):
    steady = measured(monkeypatch, FakeWork(), precision=0.01)
    assert steady["stopped_by"] == "precision" and 20 <= steady["samples"] <= 40
    slow = measured(monkeypatch, FakeWork(times=(0.3, 0.5)), time_cap=1.0)
    assert slow["stopped_by"] == "time_cap" and slow["samples"] == 3 and slow["valid"]
    assert "stopped by time_cap" in slow["reason"]


@pytest.mark.parametrize("error", [0.5, np.nan, np.inf])
def test_garbage_is_never_timed(monkeypatch, error):
    work = FakeWork(error=error)
    row = measured(monkeypatch, work)
    assert work.asked == ["verify", "close"] and np.isnan(row["time_s"])
    assert row["status"] == "failed" and not row["valid"] and "wrong result" in row["reason"]


def test_throttled_samples_are_dropped_and_counted(monkeypatch):
    work = FakeWork()
    row = measured(monkeypatch, work, meter=FakeMeter([False, True]))
    assert row["throttled_samples"] == 20 and row["throttle_reasons"] == "thermal"
    assert row["valid"] and row["samples"] >= 20
    always = measured(monkeypatch, FakeWork(), meter=FakeMeter([True] * 10**6))
    assert always["status"] == "ok" and not always["valid"] and np.isnan(always["time_s"])
    assert "every sample was throttled (thermal)" in always["reason"]


def test_every_outcome_is_a_row_unless_the_device_is_lost(monkeypatch):
    assert measured(monkeypatch, FakeWork(), Point("x", 1, dtype="fp64"))["status"] == "refused"
    assert measured(monkeypatch, None)["reason"] == "out of memory"
    for step in ("verify", "sample", "close"):
        row = measured(monkeypatch, FakeWork(fails=step))
        assert row["status"] == "failed" and not row["valid"], step
        assert "RuntimeError: driver says no" in row["reason"]
    for impossible in (0.0, np.nan):
        row = measured(monkeypatch, FakeWork(times=(impossible,)))
        assert row["status"] == "failed" and "need times above 0" in row["reason"]
    with pytest.raises(MeasurementError, match=r"device was lost.*fell off the bus.*resume"):
        measured(monkeypatch, FakeWork(fails="sample"), alive=False)


def test_a_failing_meter_costs_the_energy_alone(monkeypatch):
    row = measured(monkeypatch, FakeWork(), Point("x", 1, energy=True), meter=FakeMeter([]))
    assert row["status"] == "ok" and row["valid"] and row["time_s"] == 1e-3
    assert np.isnan(row["energy_j"]) and "meter unplugged" in row["reason"]
    with pytest.raises(SpecError, match="min_samples"):
        Protocol(min_samples=2)


# --------------------------------------------------------------------------------- the folder

PLAN = """
    name = "kills"
    [[grid]]
    kernel = "tiled"
    m = {from = 64, to = 512, steps = 4, scale = "log2"}
    n = [64, 128, 256]
    k = "m"
    tile = [4, 8, 16]
    energy = [true, false]
"""


def recording(plan, pause=0.25):
    """Rows as a GPU would have given them: one failure, one refusal, facts that some rows lack."""
    rows = []
    for i, p in enumerate(plan.points):
        seconds = p.flops / 1e12 + 1e-6 * p.config["tile"]
        rows.append({
            **p.columns(), "device": "NVIDIA H200", "hardware": "h200_sxm", "time_s": seconds,
            "time_low_s": 0.9 * seconds, "time_high_s": 2 * seconds, "elapsed_s": pause,
            "status": "ok", "valid": True, "reason": "", "launch": "graph",
            "registers": 32 + i if i % 3 else None, "note": "odd" if i % 2 else None,
        })  # fmt: skip
    rows[5] |= {"status": "failed", "valid": False, "reason": "boom", "time_s": None}
    rows[9] |= {"status": "refused", "valid": False, "reason": "too big", "time_s": None}
    return table_of(rows)


def same(table):
    """What must not depend on when and how often a run was cut off."""
    return {n: c.tolist() for n, c in table.items() if n not in ("utc", "environment")}


def assert_same(one, other):
    assert list(one) == list(other)
    for name, column in one.items():
        assert json.dumps(column) == json.dumps(other[name]), name  # NaN is NaN there


def test_a_sweep_killed_at_random_moments_ends_with_the_same_table(tmp_path):
    plan = read_plan(PLAN)
    write_table(tmp_path / "recorded.parquet", recording(plan, 0.01))
    options = (
        f'provider = "replay"\noptions = {{recording = "{tmp_path}/recorded.parquet", pace = 1}}\n'
    )
    (tmp_path / "plan.toml").write_text(options + PLAN)
    plan = load_plan(tmp_path / "plan.toml")
    quiet = Replay(str(tmp_path / "recorded.parquet"))
    run_sweep(plan, tmp_path / "calm", provider=quiet)
    out = tmp_path / "killed"
    command = [sys.executable, "-c", "from ridgecast.measure.plan import load_plan as l\n"
               "from ridgecast.measure.session import find_provider as f\n"
               "from ridgecast.measure.sweep import Options, run_sweep as r\n"
               f"p = l({str(tmp_path / 'plan.toml')!r})\n"
               f"r(p, {str(out)!r}, provider=f(p), options=Options(shard_rows=4))"]  # fmt: skip
    rng = np.random.default_rng(0)

    journal, order = out / "journal.log", out / "order.json"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        before = len(shards.finished_points(out))
        old = order.stat().st_ino if before else 0
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        # the order is written anew after a journal was folded: then wait for a row of this run
        while not (order.exists() and order.stat().st_ino != old and journal.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(float(rng.uniform(0.0, 0.2)))
        process.send_signal(number)
        assert process.wait(60) in (-9, 143)  # still at work when it was stopped
        assert before < len(shards.finished_points(out)) < len(plan.points)
    run_sweep(plan, out, provider=quiet, options=Options(mix=True))
    assert len(read_rows(out)["point"]) == len(plan.points)  # none lost, none twice
    assert set(read_rows(out)["attempt"]) == {1}
    assert_same(same(read_shards(tmp_path / "calm")), same(read_shards(out)))
    assert read_shards(out)["point"].tolist() == [p.key for p in plan.points]


def rows_of(count, start=0, **more):
    return [{"point": f"{i:016x}", "attempt": 1, "status": "ok", "valid": True,
             "time_s": 1.0 + i, **more}
            for i in range(start, start + count)]  # fmt: skip


def test_the_journal_holds_what_no_shard_has_and_a_torn_line_is_no_row(tmp_path):
    with ShardWriter(tmp_path, rows=3) as writer:
        for row in rows_of(3):
            writer.append(row)
    lines = "".join(json.dumps(row) + "\n" for row in rows_of(3, start=2))  # row 2 is in the shard
    (tmp_path / "journal.log").write_text(lines + '{"point": "torn", "att')
    assert len(read_rows(tmp_path)["point"]) == 5  # readable without the writer
    with ShardWriter(tmp_path):
        assert (tmp_path / "journal.log").read_text() == ""
    assert read_rows(tmp_path)["time_s"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    (tmp_path / "journal.log").write_text("{broken\n" + lines)
    with pytest.raises(NoDataError, match="line 1 is damaged"):
        ShardWriter(tmp_path)
    with pytest.raises(NoDataError, match="no such folder"):
        read_rows(tmp_path / "nothing")


def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = ShardWriter(tmp_path, rows=100)
    for row in rows_of(2):
        writer.append(row)
    written = shards._write_all

    def half(handle, content):
        written(handle, content[:9])
        full()

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_all", half)
        with pytest.raises(MeasurementError, match=r"No space left.*make room.*resume"):
            writer.append(rows_of(1, start=2)[0])
        patch.setattr(shards, "write_table", full)
        with pytest.raises(MeasurementError, match=r"2 rows wait in journal\.log"):
            writer.close()
    assert len(read_rows(tmp_path)["point"]) == 2
    with ShardWriter(tmp_path) as again:
        again.append(rows_of(1, start=2)[0])
    assert read_rows(tmp_path)["time_s"].tolist() == [1.0, 2.0, 3.0]


def test_one_writer_and_one_environment_a_folder(tmp_path):
    plan = read_plan(PLAN)
    table = recording(plan)
    with (
        ShardWriter(tmp_path),
        pytest.raises(MeasurementError, match=r"process .* is writing there"),
    ):
        run_sweep(plan, tmp_path, provider=Replay(table))
    run_sweep(plan, tmp_path, provider=Replay(table))
    other = {**table, "device": np.full(len(table["m"]), "NVIDIA B200", dtype=object)}
    with pytest.raises(MeasurementError, match=r"device.name: NVIDIA H200 there, NVIDIA B200 here"):
        run_sweep(plan, tmp_path, provider=Replay(other))
    mixed = run_sweep(plan, tmp_path, provider=Replay(other), options=Options(mix=True))
    assert mixed.finished_before == 72 and len(list(tmp_path.glob("environment-*.json"))) == 2
    record = json.loads(next(tmp_path.glob("environment-*.json")).read_text())
    assert {"must_agree", "protocol", "command", "utc", "cpu", "git_hash"} <= set(record)


def test_rows_come_back_alike_however_they_were_cut_into_shards(tmp_path):
    rows = [plain_row(r) for r in rows_of(6)]
    rows[1] |= {"registers": 3, "flag": True, "energy_j": float("nan")}
    rows[4] |= {"note": "x", "registers": 5}
    for size in (1, 2, 6):
        with ShardWriter(tmp_path / str(size), rows=size) as writer:
            for row in rows:
                writer.append(row)
    one, *others = (same(read_shards(tmp_path / str(size))) for size in (1, 2, 6))
    for other in others:
        assert_same(one, other)
    assert one["note"] == ["", "", "", "", "x", ""] and one["registers"][1] == 3.0


# ------------------------------------------------------------------------------------- sweeps


def test_finished_points_are_skipped_and_failures_measured_again_only_when_asked(tmp_path):
    plan = read_plan(PLAN)
    seen = []
    first = run_sweep(plan, tmp_path, provider=Replay(recording(plan)), progress=seen.append)
    assert (first.ok, first.failed, first.refused, first.remaining) == (70, 1, 1, 0)
    assert [p.done for p in seen] == list(range(1, 73)) and seen[-1].eta == 0.0
    again = run_sweep(plan, tmp_path, provider=Replay(recording(plan)))
    assert again.finished_before == 72 and again.ok + again.failed + again.refused == 0
    cured = recording(plan)
    cured["status"][5], cured["valid"][5], cured["time_s"][5] = "ok", True, 1e-3
    retry = run_sweep(plan, tmp_path, provider=Replay(cured), options=Options(retry_failed=True))
    assert (retry.finished_before, retry.ok, retry.refused) == (70, 1, 1)
    table = read_shards(tmp_path)
    assert len(table["point"]) == 72 and table["attempt"][5] == 2 and table["time_s"][5] == 1e-3
    assert len(read_rows(tmp_path)["point"]) == 74


def test_dry_run_counts_and_expects(tmp_path):
    plan = read_plan(PLAN)
    told = dry_run(plan, tmp_path, provider=Replay(recording(plan)))
    assert (told.points, told.finished, told.refused) == (72, 0, {"too big": 1})
    # 36 of the points hold the device for settle + window, but for the refused one if it does
    assert 35 * 4.0 < told.duration < told.longest < 72 * 8.0
    run_sweep(plan, tmp_path, provider=Replay(recording(plan)))
    done = dry_run(plan, tmp_path, provider=Replay(recording(plan)))
    assert done.finished == 72 and done.duration == 0.0


def test_a_budget_ends_the_run_and_spreads_its_points(tmp_path, monkeypatch):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(replay, "time", SimpleNamespace(sleep=sleep))
    text = PLAN.replace("[true, false]", "false")
    plan = read_plan(text.replace("[64, 128, 256]", "{from = 64, to = 512, steps = 15}"))
    provider = Replay(recording(plan), pace=1.0)  # 0.25 s each
    result = run_sweep(plan, tmp_path, provider=provider, options=Options(budget=16.0))
    assert result.ended_by == "budget" and 15.0 < result.elapsed <= 16.0
    assert 60 <= result.ok + result.failed + result.refused <= 66 and result.remaining > 100
    table = read_rows(tmp_path)  # in the order of measuring
    first = {name: set(table[name][:24].tolist()) for name in ("m", "tile")}
    assert first["m"] == {64, 128, 256, 512} and first["tile"] == {4, 8, 16}
    assert {64, 512} <= set(table["n"][:24].tolist())


def test_selection_spreads_and_then_goes_where_the_model_is_least_sure():
    x = np.linspace(-2.0, 2.0, 41)[:, None]
    spread = farthest(x, np.empty(0, np.int64), np.arange(41), 5)
    assert spread[0] == 20 and set(spread[1:3]) == {0, 40} and set(spread[3:]) == {10, 30}
    known = np.r_[0:16, 25:41]  # a hole in the middle
    rng = np.random.default_rng(0)
    variance, chosen = predictive_variance(x[known], np.sin(3 * x[known, 0]), x, rng, count=2)
    assert 18 <= chosen[0] <= 22 and variance[20] > 10 * variance[5]
    points = [Point("t", m, m, m, cache=c, config={"tile": t})
              for m in (64, 256) for c in ("hot", "cold") for t in (4, 8)]  # fmt: skip
    features = point_features(points)
    assert np.allclose(features.mean(0), 0) and np.allclose(features.std(0), 1)
    assert point_features(points[:1]).shape == (1, 1)


def test_energy_points_run_beside_their_like_and_repeats_passes_apart():
    points = [Point("t", m, m, m, pattern=p, energy=e, repeat=r)
              for r in (0, 1) for m in (512, 64) for p in ("normal", "zeros")
              for e in (True, False)]  # fmt: skip
    order = in_order(points)
    assert [p.repeat for p in order] == [0] * 8 + [1] * 8
    assert [p.energy for p in order[:8]] == [False] * 4 + [True] * 4
    assert [(p.pattern, p.m) for p in order[4:8]] == [
        ("normal", 64), ("normal", 512), ("zeros", 64), ("zeros", 512)]  # fmt: skip


def test_replayed_rows_are_the_recorded_ones_and_say_so(tmp_path):
    plan = read_plan(PLAN)
    run_sweep(plan, tmp_path / "a", provider=Replay(recording(plan)))
    run_sweep(plan, tmp_path / "b", provider=Replay(tmp_path / "a"))
    a, b = read_shards(tmp_path / "a"), read_shards(tmp_path / "b")
    assert np.array_equal(a["time_s"], b["time_s"], equal_nan=True)
    assert set(b["recorded_collection"]) - {""} == set(a["collection"])
    provider = Replay(tmp_path / "a")
    assert provider.refusal(Point("tiled", 7)) == "not in the recording"
    work = provider.prepare(plan.points[0], np.random.default_rng(0))
    times = work.sample(20)
    assert np.median(times) == a["time_s"][0] and len(set(times)) > 3
    probe = Replay("nowhere.parquet").probe()
    assert not probe.ok and "no such file" in probe.reason and "--replay" in probe.cure


def test_shards_are_imported_with_cold_and_hot_apart(tmp_path):
    plan = read_plan(PLAN.replace("energy = [true, false]", 'cache = ["hot", "cold"]'))
    run_sweep(plan, tmp_path, provider=Replay(recording(plan)), options=Options(shard_rows=40))
    report = import_report(tmp_path)  # the records beside the shards are no tables
    assert {f.importer for f in report.files} == {"ridgecast_shards"}
    table = report.table
    assert len(table["m"]) == 72 and table["valid"].sum() == 70
    assert set(table["hardware"]) == {"h200_sxm"} and set(table["kernel"]) == {"tiled"}
    assert {c.split("/")[1:][0] for c in table["collection"]} == {"hot", "cold"}
    assert "boom" in table["reason"].tolist() and set(table["tile"]) == {4.0, 8.0, 16.0}


def test_tables_through_pyarrow_are_those_of_duckdb(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    table = recording(read_plan(PLAN))
    for suffix in ("parquet", "csv.gz"):
        write_table(tmp_path / f"duck.{suffix}", table)
        wanted = read_table(tmp_path / f"duck.{suffix}")
        with monkeypatch.context() as patch:
            patch.setattr(tables, "_engine", lambda: "pyarrow")
            write_table(tmp_path / f"arrow.{suffix}", table, durable=True)
            for name in ("duck", "arrow"):
                assert_same(same(wanted), same(read_table(tmp_path / f"{name}.{suffix}")))
            (tmp_path / "no.parquet").write_text("m,n\n1,2\n")
            with pytest.raises(SpecError, match="cannot be read as Parquet"):
                read_table(tmp_path / "no.parquet")
        assert_same(same(wanted), same(read_table(tmp_path / f"arrow.{suffix}")))


def test_a_bare_machine_with_numpy_and_pyarrow_measures(tmp_path):
    pytest.importorskip("pyarrow")
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("duckdb", "lightgbm", "pydantic", "typer", "rich", "numba"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from ridgecast.measure.plan import read_plan
from ridgecast.measure.session import find_provider
from ridgecast.measure.shards import read_shards
from ridgecast.measure.sweep import Options, run_sweep
plan = read_plan('provider = "blas"\\n[[grid]]\\nkernel = "library"\\nm = [8, 16]\\n'
                 '[protocol]\\ntime_cap = 0.01')
run_sweep(plan, {str(tmp_path)!r}, provider=find_provider(plan), options=Options(budget=30))
assert (read_shards({str(tmp_path)!r})["time_s"] > 0).all()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# ---------------------------------------------------------------------------------- the command


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def test_measure_on_the_command_line(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    write_table(tmp_path / "r.parquet", recording(read_plan(PLAN)))
    sweep = ["measure", plan, "--replay", tmp_path / "r.parquet", "--out", tmp_path / "out"]
    told = json.loads(run(*sweep, "--dry-run", "--json").stdout)
    assert told["points"] == 72 and told["duration_s"] > 100
    done = run(*sweep, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ok"], result["failed"]) == (70, 1) and result["reasons"]["failed: boom"] == 1
    assert "70 measured" not in done.stdout and run(*sweep).exit_code == 0
    one = run("measure", "gemm", "48x32x16", "--provider", "blas", "--json")
    row = json.loads(one.stdout)
    assert one.exit_code == 0 and row["flops_per_s"] > 0 and row["error_frobenius"] < 1e-5
    card = run("measure", "gemm", "48x32x16", "--provider", "blas")
    assert card.exit_code == 0 and "allowed" in card.stdout and "not asked for" in card.stdout
    refused = run("measure", "gemm", "8x8x8", "--provider", "blas", "--kernel", "nosuch")
    assert refused.exit_code == 4 and "not measured" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gem"], "nearest: gemm"),
        (["gemm"], "need a shape"),
        (["gemm", "8x8x8"], "no provider is named"),
        (["gemm", "8x8x8", "--provider", "blass"], "nearest: blas"),
        (["nothing.toml"], "cannot read it"),
        (["gemm", "8x8x8", "--provider", "blas", "--config", "tyle=3"], "nearest: tile"),
    ],
)
def test_measure_refuses_what_it_cannot_mean(arguments, says):
    done = run("measure", *arguments)
    assert done.exit_code == 2 and says in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_sweep_in_batches_elsewhere_gives_the_same_table(tmp_path):
    write_table(tmp_path / "recorded.parquet", recording(read_plan(PLAN)))
    quiet = f'provider = "replay"\noptions = {{recording = "{tmp_path}/recorded.parquet"}}\n'
    (tmp_path / "plan.toml").write_text(quiet + PLAN)
    whole = load_plan(tmp_path / "plan.toml")
    plan = replace(whole, points=whole.points[:18])  # two batches and a bit
    run_sweep(plan, tmp_path / "here", provider=Replay(str(tmp_path / "recorded.parquet")))
    seen = []
    result = run_spread(plan, tmp_path / "there", engine="local", workers=1,
                        progress=lambda at: seen.append(at.done))  # fmt: skip
    assert (result.ok, result.failed, result.refused) == (len(plan.points) - 2, 1, 1)
    assert seen == list(range(1, len(plan.points) + 1))
    assert_same(same(read_shards(tmp_path / "here")), same(read_shards(tmp_path / "there")))
    again = run_spread(plan, tmp_path / "there", engine="local", workers=1,
                       options=Options(retry_failed=True))  # fmt: skip
    assert again.finished_before == len(plan.points) - 2 and again.failed == 1
    assert len(read_rows(tmp_path / "there")["point"]) == len(plan.points) + 2
    (tmp_path / "recorded.parquet").unlink()
    lost = run_spread(plan, tmp_path / "lost", engine="local", workers=1)
    assert lost.failed == len(plan.points)
    assert "cannot run here" in read_shards(tmp_path / "lost")["reason"][0]
    with pytest.raises(SpecError, match="leave the budget out"):
        run_spread(plan, tmp_path / "b", engine="local", options=Options(budget=1.0))


def test_the_engine_on_the_command_line(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text('provider = "blas"\n' + PLAN)
    for words, says in (
        ((str(path), "--engine", "rey", "--out", str(tmp_path)), "nearest: ray"),
        (("gemm", "64x64x64", "--provider", "blas", "--engine", "ray"), "points of a sweep file"),
    ):
        done = CliRunner().invoke(app, ["measure", *words])
        assert done.exit_code == 2 and says in done.stderr


def test_a_signal_waits_for_the_end_of_a_write():
    from ridgecast.measure.interrupts import Interrupts

    ended = False
    with pytest.raises(SystemExit, match="143"), Interrupts() as interrupts, interrupts.held():
        os.kill(os.getpid(), signal.SIGTERM)
        ended = True
    assert ended and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_example_sweep_files_load():
    plans = {p.stem: load_plan(p) for p in EXAMPLES.glob("sweep_*.toml")}
    assert len(plans["sweep_tiled_cpu"].points) == 4 * 6 + 60
    gpu = plans["sweep_library_gpu"]
    assert sum(p.energy for p in gpu.points) == 3 * 2 * 3 and gpu.meters == ("nvml",)
