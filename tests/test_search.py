"""Searching: chunks that resume, the non-dominated set, fleets by integer program."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgecast.errors import InfeasibleError, MissingExtraError, SpecError
from ridgecast.search import Bucket, DeviceType, front, non_dominated, plan_fleet, run
from ridgecast.search.engine import Function
from ridgecast.search.fleet import single_types
from ridgecast.store import read_table, write_table

# ---------------------------------------------------------------------------------- the engine

WORK = """
import os, time
import numpy as np

def double(points, pause=0.0, times=2):
    time.sleep(pause)
    return {"y": times * points["x"], "text": np.array([f"n{x:g}" for x in points["x"]], object),
            "pid": np.full(len(points["x"]), os.getpid())}

def fragile(points):
    if 30 in points["x"]:
        raise ValueError("no thirty")
    if 50 in points["x"]:
        os._exit(3)
    return {"y": points["x"] + 1}

def short(points):
    return {"y": points["x"][1:]}

def drawn(points, rng):
    return {"u": rng.random(len(points["x"]))}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that this process and others can import."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "searched.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    yield importlib.import_module("searched")
    sys.modules.pop("searched")


def numbers(count):
    return {"x": np.arange(count, dtype=float)}


def test_chunks_come_back_in_order_and_are_read_the_second_time(work, tmp_path):
    seen = []
    first = run(numbers(10), work.double, out=tmp_path / "o", chunk=3, workers=1,
                progress=lambda at: seen.append((at.done, at.total, at.failed)))  # fmt: skip
    assert first["x"].tolist() == list(range(10)) and first["y"].tolist() == list(range(0, 20, 2))
    assert first["text"].tolist()[-1] == "n9" and set(first["status"]) == {"ok"}
    assert seen == [(3, 10, 0), (6, 10, 0), (9, 10, 0), (10, 10, 0)]
    parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "o").glob("part-*.parquet")}
    assert len(parts) == 4
    again = run(numbers(10), "searched:double", out=tmp_path / "o", chunk=3, workers=2)
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in first.items()}
    assert {k: v.dtype for k, v in again.items()} == {k: v.dtype for k, v in first.items()}
    for question in (
        Function("searched:double", {"times": 3}),
        Function("searched:double", {}, "2"),
    ):
        other = run(numbers(10), question, out=tmp_path / "o", chunk=3, workers=1)
        assert other["y"][1] == question.settings.get("times", 2)
    assert len(list((tmp_path / "o").glob("part-*.parquet"))) == 12


def test_a_chunk_that_raises_or_dies_is_rows_and_stops_no_other(work, tmp_path):
    found = run(numbers(80), work.fragile, out=tmp_path, chunk=10, workers=2)
    assert found["x"].tolist() == list(range(80))
    bad = found["status"] != "ok"
    assert np.flatnonzero(bad).tolist() == [*range(30, 40), *range(50, 60)]
    assert found["reason"][30] == "ValueError: no thirty" and "died twice" in found["reason"][50]
    assert np.isnan(found["y"][bad]).all() and (found["y"][~bad] == found["x"][~bad] + 1).all()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 6  # the others are tried again
    assert "need a Table of 5 rows" in run(numbers(5), work.short, workers=1)["reason"][0]


def test_equal_chunks_run_once_and_seeds_hold_whatever_runs_first(work, tmp_path):
    points = {"x": np.array([1.0, 2.0, 1.0, 2.0, 3.0, 4.0])}
    one = run(points, work.drawn, chunk=2, workers=1, seed=7)
    two = run({"x": points["x"][[4, 5, 0, 1]]}, work.drawn, chunk=2, workers=1, seed=7)
    assert one["u"][:2].tolist() == one["u"][2:4].tolist() == two["u"][2:].tolist()
    assert one["u"][4:].tolist() == two["u"][:2].tolist()
    assert one["u"].tolist() != run(points, work.drawn, chunk=2, workers=1, seed=8)["u"].tolist()
    assert run({"x": np.empty(0)}, work.double) == {"x": pytest.approx([])}


def test_what_no_other_process_could_import_is_refused(work):
    for wrong, says in (
        (lambda t: t, "no function of a module"),
        ("searched:duoble", "nearest: double"),
        ("searched", "module:function"),
        ("no_such_module:f", "No module named"),
        (Function("searched:double", {"times": object()}), "must be JSON"),
    ):
        with pytest.raises(SpecError, match=says):
            run(numbers(2), wrong)
    for options, says in (({"engine": "rey"}, "nearest: ray"), ({"chunk": 0}, "from 1"),
                          ({"workers": 0}, "from 1")):  # fmt: skip
        with pytest.raises(SpecError, match=says):
            run(numbers(2), work.double, **options)


def test_a_search_that_was_killed_resumes_and_leaves_no_process_behind(work, tmp_path):
    out = tmp_path / "killed"
    question = Function("searched:double", {"pause": 0.02})
    command = [sys.executable, "-c",
               "import numpy as np\nfrom ridgecast.search.engine import Function, run\n"
               "if __name__ == '__main__':\n"
               "    run({'x': np.arange(120.0)}, Function('searched:double', {'pause': 0.02}),"
               f" out={str(out)!r}, chunk=2, workers=2)"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*.parquet"))) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -9
    assert len(list(out.glob("part-*.parquet"))) < 60
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.parquet")}
    found = run(numbers(120), question, out=out, chunk=2, workers=1)
    assert found["x"].tolist() == list(range(120)) and (found["y"] == 2 * found["x"]).all()
    pids = set(found["pid"].tolist())
    assert len(pids) >= 2 and os.getpid() in pids  # parts of the killed run were kept
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.parquet")}
    assert len(after) == 60 and kept.items() <= after.items()  # none evaluated twice
    for pid in pids - {os.getpid()}:  # and no process outlived the one that was killed
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not os.path.exists(f"/proc/{pid}")


def test_what_is_missing_or_spoilt_is_said_or_made_again(work, tmp_path, monkeypatch):
    first = run(numbers(6), work.double, out=tmp_path / "o", chunk=2, workers=1)
    spoilt, short, _ = sorted((tmp_path / "o").glob("part-*.parquet"))
    spoilt.write_bytes(spoilt.read_bytes()[:40])
    write_table(short, {"x": np.arange(9.0)})
    again = run(numbers(6), work.double, out=tmp_path / "o", chunk=2, workers=1)
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in first.items()}
    assert read_table(short)["x"].shape == (2,)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ridgecast\[ray\]"):
        run(numbers(6), work.double, chunk=2, engine="ray")
    with pytest.raises(SpecError, match="is a file"):
        run(numbers(6), work.double, out=short)


def test_parts_lie_at_any_url(work):
    fsspec = pytest.importorskip("fsspec")
    first = run(numbers(6), work.double, out="memory://search", chunk=2, workers=1)
    again = run(numbers(6), work.double, out="memory://search", chunk=2, workers=1)
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in first.items()}
    files = [f for f in fsspec.filesystem("memory").find("/search") if "part-" in f]
    assert len(files) == 3 and not any("tmp" in f for f in files)


# ------------------------------------------------------------------------------ Pareto front


def brute(values):
    """The definition."""
    return [not ((values <= row).all(1) & (values < row).any(1)).any() for row in values]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_set_is_that_of_the_definition(data):
    rows = data.draw(st.integers(1, 60))
    width = data.draw(st.integers(1, 5))
    levels = data.draw(st.sampled_from([2, 5, 1000]))
    cells = st.lists(st.integers(0, levels), min_size=width, max_size=width)
    values = np.array(data.draw(st.lists(cells, min_size=rows, max_size=rows)), dtype=float)
    ways = data.draw(st.lists(st.sampled_from(["min", "max"]), min_size=width, max_size=width))
    signs = np.array([1 if way == "min" else -1 for way in ways])
    assert non_dominated(values, ways).tolist() == brute(values * signs)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_large_sets_with_ties_and_dominated_rows(width):
    rng = np.random.default_rng(width)
    values = rng.random((2500, width))
    values /= values.sum(axis=1, keepdims=True)  # nearly all in the set
    values[rng.random(2500) < 0.3] += 0.01
    values = np.round(values, 3)  # ties, and equal rows
    found = non_dominated(values)
    assert found.tolist() == brute(values) and found.sum() > 1000
    one = {"a": values[:, 0], "b": -values[:, 1]}
    best = front(one, {"a": "min", "b": "max"})
    assert best["a"].tolist() == sorted(best["a"].tolist())
    assert len(best["a"]) == non_dominated(values[:, :2]).sum()


def test_missing_objectives_are_never_in_the_set_and_wrong_ones_are_refused():
    values = np.array([[1.0, np.nan], [2.0, 2.0], [np.nan, 0.0], [3.0, np.inf]])
    assert non_dominated(values).tolist() == [False, True, False, False]
    assert non_dominated(np.empty((0, 3))).tolist() == []
    table = {"cost": np.array(["1", "x"], dtype=object)}
    for wrong, says in (({"cost": "min"}, "row 1 is 'x'"), ({"cots": "min"}, "nearest present"),
                        ({}, "none given"), ({"cost": "least"}, "row 1")):  # fmt: skip
        with pytest.raises(SpecError, match=says):
            front(table, wrong)
    with pytest.raises(SpecError, match="allowed: min, max"):
        non_dominated(np.ones((2, 1)), ["least"])


# --------------------------------------------------------------------------------------- fleets


def test_a_fleet_solved_by_hand():
    """Chat at 10/s, documents at 1/s; small 2 and 0.1 a second at 1 USD/h, large 5 and 1 at 4.

    Large alone: 10/5 + 1/1 = 3 (12 USD/h). Small alone: 5 + 10 = 15 USD/h. One large for the
    documents and five small for the chat: 9 USD/h; a large one less needs ten small in its place.
    """
    types = [DeviceType("small", 1.0, power=100.0), DeviceType("large", 4.0, power=300.0)]
    buckets = [Bucket("chat", 10.0), Bucket("documents", 1.0)]
    able = [[2.0, 5.0], [0.1, 1.0]]
    fleet = plan_fleet(buckets, types, able)
    assert dict(fleet.counts) == {"small": 5, "large": 1}
    assert fleet.cost == 9.0 and fleet.power == 800.0 and np.isnan(fleet.carbon)
    assert fleet.bound == pytest.approx(9.0)
    assert fleet.assignment["chat"]["small"] == pytest.approx(10.0)
    assert fleet.busy == pytest.approx({"small": 1.0, "large": 1.0})
    alone = single_types(buckets, types, able)
    assert [alone[t.name].cost for t in types] == [15.0, 12.0]
    assert plan_fleet(buckets, types, able, objective="power").power == 800.0
    assert dict(plan_fleet(buckets, types, able, power_limit=900.0).counts) == dict(fleet.counts)


def test_what_cannot_be_served_is_said_by_bucket_and_amount():
    types = [DeviceType("small", 1.0, 100.0, available=3), DeviceType("large", 4.0, 300.0,
                                                                      available=1)]  # fmt: skip
    buckets = [Bucket("chat", 10.0), Bucket("documents", 1.0)]
    with pytest.raises(InfeasibleError, match=r"documents \(1 requests/s\) within the latency"):
        plan_fleet(buckets, types, [[2.0, 5.0], [0.0, np.nan]])
    # 3 small serve 6 of the chat; the large one has room for 4 of it (4/5), or for the documents:
    # 0.8 of its time for the chat leaves 0.2 documents, so 0.8 documents stay
    with pytest.raises(InfeasibleError, match=r"documents: 0\.8 of 1 requests/s"):
        plan_fleet(buckets, types, [[2.0, 5.0], [0.1, 1.0]])
    with pytest.raises(InfeasibleError, match="under 700 W"):
        plan_fleet(buckets, [DeviceType("small", 1.0, 100.0)], [[2.0], [0.1]], power_limit=700.0)
    for wrong, says in (({"objective": "prise"}, "nearest: "), ({"slices": 0}, "from 1"),
                        ({"objective": "carbon"}, "carbon of")):  # fmt: skip
        with pytest.raises(SpecError, match=says):
            plan_fleet(buckets, types, [[2.0, 5.0], [0.1, 1.0]], **wrong)
    with pytest.raises(SpecError, match=r"need \[buckets, types\]"):
        plan_fleet(buckets, types, [[2.0, 5.0]])


def cheapest(buckets, types, able, slices):
    """Every assignment of slices, the counts rounded up."""
    best = np.inf
    shares = [c for c in itertools.product(range(slices + 1), repeat=len(types))
              if sum(c) == slices]  # fmt: skip
    for choice in itertools.product(shares, repeat=len(buckets)):
        load = np.zeros(len(types))
        for b, share in enumerate(choice):
            for d, s in enumerate(share):
                if s:
                    load[d] += (
                        np.inf if able[b, d] == 0 else buckets[b].rate * s / slices / able[b, d]
                    )
        if np.isfinite(load).all():
            counts = np.ceil(load - 1e-9)
            best = min(best, float(sum(n * t.cost for n, t in zip(counts, types, strict=True))))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_fleets_are_the_cheapest_of_all_and_above_their_bound(seed):
    rng = np.random.default_rng(seed)
    types = [DeviceType(f"t{i}", float(rng.integers(1, 9))) for i in range(3)]
    buckets = [Bucket(f"b{i}", float(rng.uniform(0.5, 9.0))) for i in range(2)]
    able = rng.uniform(0.5, 6.0, (2, 3)) * (rng.random((2, 3)) < 0.8)
    able[:, 0] = np.maximum(able[:, 0], 0.5)
    sliced = plan_fleet(buckets, types, able, slices=4)
    assert sliced.cost == pytest.approx(cheapest(buckets, types, able, 4))
    free = plan_fleet(buckets, types, able)
    assert free.bound - 1e-9 <= free.cost <= sliced.cost + 1e-9
    # without whole devices each bucket goes where a request is cheapest
    least = sum(b.rate * min(t.cost / a for t, a in zip(types, row, strict=True) if a)
                for b, row in zip(buckets, able, strict=True))  # fmt: skip
    assert free.bound == pytest.approx(least)
    for bucket in buckets:
        assert sum(free.assignment[bucket.name].values()) == pytest.approx(bucket.rate)
