"""Tighten benchmarks/thresholds.json from a fresh accuracy.json; it never loosens.

    ridgecast accuracy --out DIR
    python benchmarks/tighten.py DIR/accuracy.json [--slack 0.1]

Takes the rows over all sizes of a published table (`ridgecast accuracy` without --data). A score
that is lower than its limit by more than the slack moves the limit down to score * (1 + slack);
a new row gets a limit; a row that got worse keeps its old one, and the test of it fails.
The list `recomputed` (scores that `pytest -m heavy` computes again from raw tables) is written by
benchmarks/targets.py --tighten.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

THRESHOLDS = Path(__file__).parent / "thresholds.json"
KEYS = ("target", "op", "hardware", "dtype", "collection", "split")


def tighten(
    name: str, scores: list[dict[str, Any]], keys: tuple[str, ...], *, slack: float
) -> list[str]:
    """Lower limits of one list by fresh scores (each with measure and score); say what moved."""
    limits = json.loads(THRESHOLDS.read_text())
    known = {tuple(str(x.get(k)) for k in (*keys, "measure")): x for x in limits[name]}
    told: list[str] = []
    for found in scores:
        key = tuple(str(found[k]) for k in (*keys, "measure"))
        at_most = round(found["score"] * (1.0 + slack), 4)
        old = known.get(key)
        if old is None or at_most < old["at_most"]:
            known[key] = {k: found[k] for k in (*keys, "measure")} | {"at_most": at_most}
            told.append(f"{' '.join(key)}: {old['at_most'] if old else 'new'} -> {at_most}")
        elif found["score"] > old["at_most"]:
            told.append(f"{' '.join(key)}: {found['score']} is ABOVE {old['at_most']}, kept")
    limits[name] = [known[key] for key in sorted(known)]
    fresh = THRESHOLDS.with_name(f".{THRESHOLDS.name}.{os.getpid()}")
    lines = (
        f'"{k}": [\n' + ",\n".join(f"  {json.dumps(x)}" for x in v) + "\n]"
        for k, v in limits.items()
    )
    fresh.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    fresh.replace(THRESHOLDS)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="accuracy.json of `ridgecast accuracy --out`")
    parser.add_argument("--slack", type=float, default=0.1)
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())
    if report["data"] is not None:
        parser.error("that table was computed from --data; pass the published one")
    scores = [
        {**{k: row[k] for k in KEYS}, "measure": measure, "score": row[measure]}
        for row in report["rows"]
        if row["status"] == "ok" and row["bucket"] == "all"
        for measure in ("mape", "median")
        if row[measure] is not None
    ]
    told = tighten("published", scores, KEYS, slack=arguments.slack)
    print("\n".join(told) or "nothing to tighten")


if __name__ == "__main__":
    main()
