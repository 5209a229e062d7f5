"""Error against the consensus of several collections, divided by the label floor.

    python benchmarks/consensus.py [--device h200_sxm] [--rows 5000] [--split unseen_shape]
    python benchmarks/consensus.py --write-floor

The label of a point is the median over at least --collections independent collections. A model is
trained on the training part of the split and scored on the part held out; its error is divided by
four floors: how far one collection lies from the median of the others, how far two versions of
one framework, two frameworks, and the two best agreeing collections lie apart. The goal is 1.2 of
the first two. --write-floor makes src/ridgecast/accuracy/floor.toml anew from the floor table.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from ridgecast.accuracy import consensus_score
from ridgecast.accuracy import floor as floors
from ridgecast.accuracy.recompute import held_out, points_of
from ridgecast.hardware import get
from ridgecast.store import import_files, make_split, read_table, select

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gemm_consensus"
TIERS = {
    "same framework, different version": "same_framework",
    "different framework": "other_framework",
    "one source vs median of the others": "one_vs_rest",
    "closest pair of sources": "closest_pair",
}
GOAL = 1.2


def write_floor(data: Path) -> None:
    """Replace the facts of floor.toml below its head, which stays as it is."""
    path = Path(floors.__file__).parent / "floor.toml"
    head = path.read_text().split("[gemm_time.", 1)[0]
    table = read_table(data / "bf16_floor_by_device.parquet")
    found = {
        (str(table["system"][i]), str(table["bucket"][i]), TIERS[str(table["tier"][i])]): i
        for i in range(len(table["system"]))
    }
    blocks = []
    for system in sorted({key[0] for key in found}):
        lines = [f"[gemm_time.bf16.{get(system).name}]"]
        for bucket in floors.FLOOR_BUCKETS:
            for kind in floors.KINDS:
                i = found[system, bucket, kind]
                shares = ", ".join(f"{c} = {table[c][i] / 100:.4f}" for c in
                                   ("mean", "median", "p90"))  # fmt: skip
                lines.append(f'"{bucket}".{kind} = {{ pairs = {table["n"][i]}, {shares} }}')
        blocks.append("\n".join(lines))
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(head + "\n\n".join(blocks) + "\n")
    fresh.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--device", action="append", help="repeatable; by default all")
    parser.add_argument("--rows", type=int, help="random points of each device to use")
    parser.add_argument("--split", default="unseen_shape")
    parser.add_argument("--collections", type=int, default=3, help="behind a label, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write-floor", action="store_true")
    a = parser.parse_args()
    if a.write_floor:
        return write_floor(a.data)
    table = import_files(a.data / "bf16_consensus.parquet")
    table = select(table, np.flatnonzero(table["samples"] >= a.collections))
    groups, _ = points_of(table)
    kinds = ("one_vs_rest", "same_framework", "other_framework", "closest_pair")
    print(f"split {a.split}; error over floor: MAPE over mean floor / median over median floor")
    print(f"{'device':14s}{'scored':>7s}{'MAPE':>7s}{'median':>8s}{'covered':>9s}"
          + "".join(f"{kind:>18s}" for kind in kinds))  # fmt: skip
    for points in groups:
        if a.device and points.hardware not in a.device:
            continue
        order = np.random.default_rng(a.seed).permutation(len(points.time))
        some = points.take(np.sort(order[: a.rows]))
        split = make_split(a.split, some.table, seed=a.seed)
        done = held_out(some, split, seed=a.seed)
        truth, got = done["truth_s"], done["time_s"]
        inside = (done["time_low_s"] <= truth) & (truth <= done["time_high_s"])
        scores = [consensus_score(truth, got, points.hardware, kind=kind) for kind in kinds]
        ratios = "".join(
            f"{s['error_over_floor']:9.2f} /{s['median_over_floor']:5.2f} "
            f"{'*' if s['error_over_floor'] <= GOAL else ' '}"
            for s in scores
        )
        print(f"{points.hardware:14s}{len(truth):7d}{100 * scores[0]['mape']:7.2f}"
              f"{100 * scores[0]['median']:8.2f}{100 * inside.mean():9.1f}{ratios}")  # fmt: skip
    return None


if __name__ == "__main__":
    main()
