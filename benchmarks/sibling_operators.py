"""How well the nearest measured device stands for one without measurements (collectives).

    python benchmarks/sibling_operators.py [--data DIR]

Each device's table is predicted with the model of its nearest relative, physics re-predicted; the
last line is the factor by which intervals must widen to hold 90 % of the rows (predict.operators).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ship_operators import DATA, files_of

from ridgecast.hardware import get
from ridgecast.ops import op_class
from ridgecast.predict.bundle import open_bundle
from ridgecast.predict.operator_features import known
from ridgecast.predict.operator_rows import op_parts
from ridgecast.predict.operators import _NEAR, _SWITCHED, _measured, _scale
from ridgecast.store import import_files, select


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    a = parser.parse_args()
    bundle, beyond = open_bundle(None), []
    names = {str(e["hardware"]) for e in bundle.card["operators"] if e["op"] == "collective"}
    for paths in files_of(a.data, "collective").values():
        table = import_files(list(paths))
        device = get(str(table["hardware"][0]))
        far = {
            n: sum(abs(np.log(x / y)) for x, y in zip(_scale(get(n)), _scale(device), strict=True))
            for n in names - {device.name}
            if get(n).vendor == device.vendor
        }
        far = {n: v for n, v in far.items() if _similar(get(n), device)}
        if not far:
            continue
        near = min(far, key=lambda n: far[n])
        table = select(table, np.flatnonzero(table["valid"].astype(bool)))
        ratio = score(table, device, near, bundle)
        beyond.append(ratio)
        print(f"{device.name:14s} by {near:10s} {len(ratio):5d} rows: 90 % within a further factor "
              f"{np.quantile(ratio, 0.9):.2f}", flush=True)  # fmt: skip
    print(round(float(np.quantile(np.concatenate(beyond), 0.9)), 3))


def _similar(one: Any, other: Any) -> bool:
    ratios = [abs(np.log(x / y)) for x, y in zip(_scale(one), _scale(other), strict=True)]
    linked = all(_SWITCHED & set(d.links) for d in (one, other))
    return linked and max(ratios) <= np.log(_NEAR)


def score(table: dict[str, Any], device: Any, near: str, bundle: Any) -> np.ndarray:
    """Return by what factor each row lies outside its relative's interval (1: inside)."""
    rows = np.arange(len(table["op"]))
    found = []
    for part in op_parts(op_class("collective"), table, rows, ("hardware",), most=10**6):
        if part.op is None:
            continue
        k = known(part.op, len(part.rows), device, "hot")
        for model, mine in bundle.operators(part.op, len(part.rows), near):
            if model is None:
                continue
            got = _measured(part.op, k, device, model, 0.9, "hot")
            truth = table["time_s"][part.rows]
            out = np.maximum(np.maximum(got.low / truth, truth / got.high), 1.0)
            found.append(out[mine])
    return np.concatenate(found)


if __name__ == "__main__":
    main()
