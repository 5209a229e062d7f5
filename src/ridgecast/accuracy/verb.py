"""The verb of this room: print what is published, or score again from raw measurements."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..predict.bundle import SHIPPED
from ..store import import_report
from .published import published_rows
from .recompute import score_model, score_splits
from .report import AccuracyReport

__all__ = ["run"]

PathLike = str | Path


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def run(
    model: PathLike | None = None,
    data: PathLike | Sequence[PathLike] | None = None,
    out: PathLike | None = None,
    *,
    splits: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = _to_stderr,
) -> AccuracyReport:
    """Scores on held-out rows, next to a plain and a derated roofline and the label floor.

    Without `data`, the scores in the cards of `model`, a folder made by `ridgecast train` (by
    default the shipped one). With `data` (raw tables of any importer, or folders of them) the
    scores are computed again: of `model` on the rows that it was not trained on, or without
    `model` by training on the rest of each of `splits` (random, unseen_shape, off_grid, frontier,
    and unseen_device where the data hold several devices) and predicting the part held out.
    `out` is a folder for accuracy.json and accuracy.md.

    Raises SpecError for a folder that is no model or an unknown split, NoDataError when no row of
    `data` can be used.
    """
    meta: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": "shipped" if model is None and data is None else model and str(model),
        "data": None,
        "notes": [],
    }
    if data is None:
        rows, found = published_rows(SHIPPED if model is None else Path(model))
        meta |= found
    else:
        paths = [data] if isinstance(data, str | Path) else list(data)
        report = import_report([str(path) for path in paths])
        meta["data"] = [Path(f.path).name for f in report.files if f.status == "ok"]
        meta["notes"] = [f"{f.path}: {f.reason}" for f in report.files if f.status != "ok"]
        if model is not None:
            rows, notes = score_model(model, report.table, progress=progress)
        else:
            meta["seed"] = seed
            rows, notes = score_splits(report.table, splits, seed=seed, progress=progress)
        meta["notes"] += notes
    result = AccuracyReport(tuple(rows), meta)
    if out is not None:
        result.save(out)
    return result
