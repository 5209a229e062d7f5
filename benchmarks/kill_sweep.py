"""A sweep killed at random moments beside one that nobody disturbs: the tables must be equal.

    python benchmarks/kill_sweep.py [--kills 20] [--points 600] [--seed 0]

`ridgecast measure` runs a replayed recording (each point takes 20 ms) and is killed with SIGKILL
after a random time: while it starts, reads what is there, measures, or writes a shard. Checked:
every row that was on the disk at a kill is in the end still the same row (none lost, none
measured again), every point has one row, and the table is that of the undisturbed sweep.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ridgecast.errors import NoDataError
from ridgecast.measure.plan import Plan, load_plan
from ridgecast.measure.shards import read_rows, read_shards, table_of
from ridgecast.store import write_table

PAUSE = 0.02  # s a point
PLAN = """
provider = "replay"
options = {{recording = {recording!r}, pace = 1.0}}
[[random]]
kernel = "tiled"
count = {points}
m = {{from = 16, to = 4096, scale = "log2"}}
n = {{from = 16, to = 4096, scale = "log2"}}
k = {{from = 16, to = 4096, scale = "log2"}}
tile = [1, 2, 4, 8, 16, 32]
cache = ["hot", "cold"]
"""


def recording_of(plan: Plan) -> dict[str, np.ndarray]:
    """Made-up rows; every seventh point failed, every fifth lacks a fact."""
    rows = []
    for i, point in enumerate(plan.points):
        ok = i % 7 != 0
        rows.append({
            **point.columns(), "device": "made up", "hardware": "made_up", "elapsed_s": PAUSE,
            "time_s": point.flops * 1e-12 if ok else None, "status": "ok" if ok else "failed",
            "valid": ok, "reason": "" if ok else "made to fail",
            "registers": i % 255 if i % 5 else None,
        })  # fmt: skip
    return table_of(rows)


def stamps(folder: Path) -> dict[str, str]:
    """When each point on the disk was measured."""
    try:
        table = read_rows(folder)
    except NoDataError:
        return {}
    return dict(zip(table["point"].tolist(), table["utc"].tolist(), strict=True))


def disturbed(command: list[str], out: Path, kills: int, rng: np.random.Generator) -> list[int]:
    """Run the command again and again, killing it; returns finished points at each kill.

    Raises AssertionError when a row that was there changed or went away.
    """
    begun = time.monotonic()
    subprocess.run([*command, "--dry-run"], check=True, capture_output=True)
    startup = time.monotonic() - begun
    counts: list[int] = []
    known: dict[str, str] = {}
    while len(counts) < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(float(rng.uniform(0.3 * startup, 2.0 * startup + 1.2)))
        if process.poll() is not None:
            assert process.returncode == 0, f"ended with {process.returncode}"
            break  # all points are done
        process.kill()
        process.wait()
        now = stamps(out)
        changed = [key for key, when in known.items() if now.get(key) != when]
        assert not changed, f"{len(changed)} finished rows were lost or measured again"
        known = now
        counts.append(len(now))
        print(f"kill {len(counts):2d}: {len(now)} points finished", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, capture_output=True)
    final = stamps(out)
    assert all(final[key] == when for key, when in known.items()), "finished rows changed"
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--points", type=int, default=600)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    rng = np.random.default_rng(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, recording = folder / "plan.toml", folder / "recording.parquet"
        file.write_text(PLAN.format(recording=str(recording), points=asked.points))
        plan = load_plan(file)
        write_table(recording, recording_of(plan))
        command = [sys.executable, "-m", "ridgecast", "measure", str(file), "--out"]
        subprocess.run([*command, str(folder / "calm")], check=True, capture_output=True)
        out = folder / "killed"
        counts = disturbed([*command, str(out)], out, asked.kills, rng)
        calm, table = read_shards(folder / "calm"), read_shards(out)
        rows = len(read_rows(out)["point"])
        for column in calm:
            if column != "utc":
                same = np.array_equal(
                    calm[column], table[column], equal_nan=calm[column].dtype.kind == "f"
                )
                assert same, f"column {column} differs"
        shards = len(list(out.glob("rows-*.parquet")))
    busy = sum(b > a for a, b in zip([0, *counts], counts, strict=False))
    assert rows == asked.points and set(table["attempt"].tolist()) == {1}
    print(
        f"{len(counts)} kills ({busy} after new points): {rows} rows for {asked.points} points in "
        f"{shards} shards; none lost, none repeated, {len(calm) - 1} columns equal to the "
        "undisturbed sweep's"
    )


if __name__ == "__main__":
    main()
