"""The published study of an RTX 4070 (GPPerf), replayed: its rows, its figures, what they hide.

Owns finding the published tables, the figures that were published for them, and the statements
about the data, which are counted from the rows. Fits nothing.

Source: github.com/pavlyhalim/GPPerf; R2 and mean error as its authors state them for a random
split. The rows have no licence, so nothing fitted to them is shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NoDataError
from ..hardware import Hardware, get
from ..predict.sweep_model import point_codes
from ..predict.sweep_parts import codes_of
from ..store import import_files
from ..store.tables import Table, length, numeric, select
from .study import StudyResult

__all__ = ["PUBLISHED", "REPLAYS", "Recorded", "beside_published", "load_gpperf"]

REPLAYS = ("gpperf",)
PUBLISHED = {"r2": 0.98, "mape": 0.1557}
_LOOKED_FOR = ("shared/data/gpperf", "../shared/data/gpperf", "data/gpperf", "gpperf")
_FILES = ("cutlass_rtx4070.parquet", "results.csv")
NO_POWER = "its power was sampled after the kernel had ended, so no value is usable"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The published rows: `table` to learn from, `swept` with tile sides, what they cannot tell."""

    table: Table
    swept: Table | None
    hardware: Hardware
    notes: tuple[str, ...]
    meta: Mapping[str, Any]


def load_gpperf(path: Path | None = None) -> Recorded:
    """Read the published tables from a folder or file, or from where they usually lie.

    Raises NoDataError that says where it looked.
    """
    folder = _find(path)
    table = import_files(folder)
    sweep = select(table, table["kernel"] == "cutlass_simt")
    tiled = select(table, (table["kernel"] == "tiled") & table["valid"])
    if not length(sweep):
        raise NoDataError(f"{folder}: holds no row of the CUTLASS sweep ({' or '.join(_FILES)})")
    meta = {"source": "published rows, replayed", "device": "RTX 4070 (GPPerf)", "provider": None,
            "collection": "gpperf", "licence": "none stated"}  # fmt: skip
    swept = tiled if length(tiled) else None
    return Recorded(sweep, swept, get("rtx_4070"), tuple(_notes(sweep, tiled)), meta)


def _find(path: Path | None) -> Path:
    if path is not None:
        if not path.exists():
            raise NoDataError(f"--data: {path} does not exist")
        return path
    for place in _LOOKED_FOR:
        folder = Path(place)
        if any((folder / name).is_file() for name in _FILES):
            return folder
    raise NoDataError(
        f"the published rows are not here: looked for {' or '.join(_FILES)} in "
        f"{', '.join(_LOOKED_FOR)} below the current folder; name the folder with --data"
    )


def _distinct(table: Table, names: Sequence[str]) -> int:
    present = [table[name] for name in names if name in table]
    return int(codes_of(present).max()) + 1


def _notes(sweep: Table, tiled: Table) -> list[str]:
    """Say what the rows cannot tell, counted from them."""
    shapes, layouts = _distinct(sweep, "mnk"), _distinct(sweep, ["layout"])
    groups = codes_of([*(sweep[name] for name in "mnk"), sweep["layout"]])
    repeats = int(np.median(np.bincount(groups)))
    ran = _distinct(sweep, ["tile_m", "tile_n", "tile_k", "stages"])
    asked = _distinct(sweep, ["req_tb_m", "req_tb_n", "req_tb_k", "req_stages"])
    power, _ = numeric(sweep, "power_w")
    missing = float(np.mean(~np.isfinite(power)))
    out = [
        f"Which tile or stage count is better: {asked} block shapes were asked for, but the "
        f"profiler has no such option, and the kernels' names show that {ran} "
        f"configuration{'s' if ran > 1 else ''} ran (128x128x8, 2 stages).",
        f"Whether a model carries over to new shapes, from a random split: {length(sweep):,} rows "
        f"are {shapes} shapes x {layouts} layouts, each measured {repeats} times (median), so "
        "almost every random test row has its very point in training.",
        f"Power and energy: {NO_POWER} ({100 * missing:.0f} % of the rows hold none at all).",
        f"How other kernels, formats or devices behave: one kernel in fp32 on one RTX 4070, "
        f"{shapes} shapes.",
    ]
    if length(tiled):
        time, _ = numeric(tiled, "time_s")
        least = float(time.min())
        out.append(
            f"How fast the naive tiled kernel is at small sizes: its {length(tiled)} times (the "
            f"least is {least * 1e3:.1f} ms) look like those of the whole process, each was taken "
            "once, and the tile conclusions rest on them."
        )
    return out


def beside_published(result: StudyResult) -> dict[str, Any]:
    """Put the same recipe on the same rows, by honest splits, beside the published figures."""
    rows: list[dict[str, Any]] = [{
        "what": "published for its random forest", "split": "random rows (as published)",
        **PUBLISHED, "lead": True,
    }]  # fmt: skip
    names = {"original": "the same recipe here", "ridgecast": "ridgecast"}
    for model, what in names.items():
        for split in ("random", "unseen_shape", "off_grid", "frontier"):
            found = [s for s in result.scores if s["status"] == "ok" and s["target"] == "time"
                     and (s["model"], s["split"]) == (model, split)]  # fmt: skip
            for s in found:
                rows.append({
                    "what": what, "split": split, "r2": s["r2_raw"], "mape": s["mape"],
                    "median": s["median"], "leak": s["leak"], "lead": False,
                })  # fmt: skip
    leaks = [
        row["leak"] for row in rows if row.get("leak") is not None and row["split"] == "random"
    ]
    told = f"{100 * leaks[0]:.0f} %" if leaks else "an unknown share"
    text = (
        f"A random split of these rows leaks: {told} of its test rows have a repeat of the same "
        "point among the training rows. Splits that hold whole shapes out ask what the study was "
        "meant to answer. R² of raw times is close to 1 whenever the largest times are about "
        "right; the error is what tells."
    )
    return {"text": text, "rows": rows, "distinct_points": int(point_codes(result.rows).max()) + 1}
