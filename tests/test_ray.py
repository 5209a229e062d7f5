"""Searches and sweeps on a Ray cluster of two local nodes, one killed in the middle."""

from __future__ import annotations

import importlib
import sys
import threading
import time

import numpy as np
import pytest

from ridgecast.errors import MeasurementError
from ridgecast.measure.plan import load_plan
from ridgecast.measure.shards import read_rows, read_shards, table_of
from ridgecast.measure.spread import BATCH, run_spread
from ridgecast.search import run
from ridgecast.store import write_table

pytestmark = pytest.mark.heavy  # starting a cluster takes longer than all other tests of a file
ray = pytest.importorskip("ray")

WORK = """
import time
import numpy as np

def slow(points):
    import ray
    time.sleep(0.2)
    if 7 in points["x"]:
        raise ValueError("seven")
    node = ray.get_runtime_context().get_node_id()
    return {"y": 2 * points["x"], "node": np.full(len(points["x"]), node, dtype=object)}
"""

PLAN = """
provider = "replay"
options = {{recording = "{recording}", pace = 1}}
[[grid]]
kernel = "tiled"
m = [64, 128, 256, 512]
n = [64, 128, 256, 512]
k = [64, 128, 256, 512]
tile = [16]
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two nodes of one processor each; the driver on the first. Yields the one to kill."""
    from ray.cluster_utils import Cluster

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "rayed.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    other = found.add_node(**small)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    try:
        yield lambda: found.remove_node(other, allow_graceful=False)
    finally:
        ray.shutdown()
        found.shutdown()
        sys.modules.pop("rayed", None)


def kill_when(reached, kill, report):
    """Kill the node in a thread as soon as the condition holds."""

    def wait():
        deadline = time.monotonic() + 120
        while not reached() and time.monotonic() < deadline:
            time.sleep(0.02)
        report.append(reached())
        kill()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_node_killed_in_mid_search_loses_and_repeats_nothing(cluster, tmp_path):
    out = tmp_path / "out"
    points = {"x": np.arange(120, dtype=float)}
    killed, seen = [], []
    thread = kill_when(lambda: len(seen) >= 14, cluster, killed)
    found = run(points, importlib.import_module("rayed").slow, out=out, engine="ray", chunk=2,
                progress=lambda at: seen.append(at.done))  # fmt: skip
    thread.join()
    assert killed == [True] and len(seen) == 60 and seen[-1] == 120
    assert found["x"].tolist() == points["x"].tolist()
    bad = found["status"] != "ok"
    assert np.flatnonzero(bad).tolist() == [6, 7] and found["reason"][7] == "ValueError: seven"
    assert (found["y"][~bad] == 2 * found["x"][~bad]).all()
    nodes = set(found["node"][~bad].tolist())
    assert len(nodes) == 2  # both took part
    last = {found["node"][i] for i in range(100, 120)}
    assert len(last) == 1  # and one finished
    assert len(list(out.glob("part-*.parquet"))) == 59
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.parquet")}
    again = run(points, "rayed:slow", out=out, engine="ray", chunk=2)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.parquet")} == before
    assert again["node"].tolist() == found["node"].tolist()


def test_a_node_killed_in_mid_sweep_loses_and_repeats_nothing(cluster, tmp_path):
    recorded, path = tmp_path / "recorded.parquet", tmp_path / "plan.toml"
    path.write_text(PLAN.format(recording=recorded))
    plan = load_plan(path)
    rows = [{**p.columns(), "device": "NVIDIA H200", "hardware": "h200_sxm", "status": "ok",
             "time_s": p.flops / 1e12, "elapsed_s": 0.05, "valid": True, "reason": ""}
            for p in plan.points]  # fmt: skip
    write_table(recorded, table_of(rows))
    out, killed, seen = tmp_path / "out", [], []
    thread = kill_when(lambda: len(seen) >= 2 * BATCH, cluster, killed)
    result = run_spread(plan, out, engine="ray", progress=lambda at: seen.append(at.done))
    thread.join()
    assert killed == [True] and result.ok == len(plan.points) == 64 and result.remaining == 0
    table = read_rows(out)
    assert sorted(table["point"].tolist()) == sorted(p.key for p in plan.points)
    assert set(table["attempt"]) == {1}
    assert read_shards(out)["point"].tolist() == [p.key for p in plan.points]
    assert read_shards(out)["time_s"].tolist() == pytest.approx(
        [p.flops / 1e12 for p in plan.points]
    )
    again = run_spread(plan, out, engine="ray")
    assert again.finished_before == 64 and again.ok == 0
    other = [{**row, "device": "NVIDIA L4"} for row in rows]
    write_table(recorded, table_of(other))
    (out / "journal.log").unlink()
    for shard in out.glob("rows-*.parquet"):
        shard.unlink()
    with pytest.raises(MeasurementError, match=r"device\.name"):
        run_spread(plan, out, engine="ray")
