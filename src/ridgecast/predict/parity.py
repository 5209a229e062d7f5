"""Held-out points that a model folder keeps: measured beside predicted, with the 90 % interval.

    held-out rows that made a score -> a sample of at most MOST rows of each split
    -> parity.json beside the model's card -> `parity_of`

Owns the sample and its file. A sample is drawn from the very rows that its score counts, one of
each equal part of them in order of measured time, so that it is spread over all sizes and its
median and coverage estimate those of the split. Fits and predicts nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from .bundle import SHIPPED, open_bundle
from .scores import score

__all__ = ["FILE", "MOST", "Parity", "agrees", "parity_of", "sample", "save_parity"]

FILE = "parity.json"
FORMAT = 1
MOST = 100
"""Points kept of a split."""
_NAMES = ("measured", "predicted", "low", "high")
# columns of a held-out table, in the order of _NAMES, by unit
_COLUMNS = {
    "s": ("truth_s", "time_s", "time_low_s", "time_high_s"),
    "w": ("truth_w", "power_w", "power_low_w", "power_high_w"),
    "j": ("truth_j", "energy_j", "energy_low_j", "energy_high_j"),
}
_PLACES = {"time_config": "clblast_sgemm", "power": "power", "energy": "power"}


@dataclass(frozen=True, slots=True)
class Parity:
    """Sample of the held-out rows of one model and split, one value a point.

    `unit` is that of the values: "s" of time, "W" of power, "J" of energy. `low` and `high` are the
    ends of the 90 % interval, empty where none was made. `rows` is how many held-out rows the
    sample stands for; `mape`, `median` and `coverage` (None without an interval) are those of all
    of them, as scored when the sample was drawn.
    """

    split: str
    rows: int
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    mape: float
    median: float
    coverage: float | None
    source: str
    licence: str
    unit: str = "s"


def sample(held: Mapping[str, npt.NDArray[Any]], seed: int = 0, **labels: Any) -> dict[str, Any]:
    """Draw at most MOST held-out rows, as plain values to 4 significant digits.

    `held` has the columns of `scores.score_columns` [rows], or truth_w, power_w, power_low_w and
    power_high_w, or the same of energy in J; the ends may be missing. The rows are put in order of
    the measured value and cut into MOST equal parts; the seed picks one row of each. `labels`
    (split, and target, hardware or dtype where a folder serves several) say whose rows they are.
    """
    unit = next(unit for unit, names in _COLUMNS.items() if names[0] in held)
    found = {key: held[name] for key, name in zip(_NAMES, _COLUMNS[unit], strict=True)
             if name in held and np.isfinite(held[name]).all()}  # fmt: skip
    truth = found["measured"]
    order = np.argsort(truth, kind="stable")
    edges = np.linspace(0, len(truth), min(MOST, len(truth)) + 1).astype(np.int64)
    at = order[np.random.default_rng(seed).integers(edges[:-1], edges[1:])]
    whole = score(truth, found["predicted"], found.get("low"), found.get("high"))
    kept = {key: whole[key] for key in ("rows", "mape", "median", "coverage") if key in whole}
    points = {f"{key}_{unit}": [float(f"{v:.4g}") for v in column[at].tolist()]
              for key, column in found.items()}  # fmt: skip
    return {**labels, **kept, **points}


def agrees(mape: float, card: float) -> bool:
    """Whether a mean error is a card's, but for rounding and the order of additions."""
    return abs(mape - card) <= max(5e-5, 5e-4 * card)


def save_parity(
    folder: str | os.PathLike[str], samples: Sequence[Mapping[str, Any]], *,
    source: str, licence: str, files: Sequence[str] = (), seed: int = 0,
) -> None:  # fmt: skip
    """Write parity.json into an existing folder, to a temporary name first; none without points.

    `source` names the collection that was measured, `licence` and `files` its terms and tables.
    """
    if not samples:
        return (Path(folder) / FILE).unlink(missing_ok=True)
    head = {
        "format": FORMAT,
        "what": "held-out points: measured, predicted, and the ends of the 90 % interval",
        "source": source, "licence": licence, "files": list(files), "seed": seed,
    }  # fmt: skip
    lines = ",\n".join(json.dumps(dict(s), separators=(",", ":"), allow_nan=False) for s in samples)
    text = f'{json.dumps(head, indent=1)[:-2]},\n "samples": [\n{lines}\n]\n}}\n'
    draft = Path(folder) / f".{FILE}.{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(Path(folder) / FILE)
    return None


def parity_of(
    target: str, hardware: str, op: str, dtype: str, collection: str, split: str, *,
    model: str | Path | None = None,
) -> Parity | None:  # fmt: skip
    """Sample of the held-out rows behind one row of the accuracy table; None where none was kept.

    The arguments are that row's columns ("" for what it lacks); `model` is a folder made by
    `ridgecast train`, by default the shipped one. Files are read when they are first asked for.
    Raises SpecError for a folder that is no model, or a parity.json that is damaged or newer.
    """
    root = SHIPPED if model is None else Path(model)
    wanted = {"split": split, "target": target, "hardware": hardware, "dtype": dtype}
    for folder in _folders(root, target, hardware, op, dtype, collection):
        path = folder / FILE
        if not path.exists():
            continue
        document = _read(path, path.stat().st_mtime_ns)
        for one in document["samples"]:
            if all(one[key] == value for key, value in wanted.items() if key in one):
                return _parity(one, document, path)
    return None


def _folders(
    root: Path, target: str, hardware: str, op: str, dtype: str, collection: str
) -> Iterator[Path]:
    """Folders whose models a row of the accuracy table may be of."""
    if target in _PLACES:
        yield root / _PLACES[target]
    elif target == "time" and not collection:
        yield root / "siblings"
        yield root / "prior"
    elif target == "time":
        for e in open_bundle(root).entries:
            if (e.hardware, e.dtype, e.collection) == (hardware, dtype, collection):
                yield root / e.folder
    elif not collection:
        yield root / "operators" / f"pooled-{op}"
    else:
        name, _, kind = op.partition(", ")
        for line in open_bundle(root).card.get("operators", ()):
            found = (line["op"], line.get("kind") or "", line["hardware"], line["collection"])
            if found == (name, kind, hardware, collection):
                yield root / line["folder"]


@lru_cache(maxsize=256)
def _read(path: Path, stamp: int) -> Mapping[str, Any]:
    """Read a parity.json; the stamp makes a rewritten file another one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, samples = found["format"], found["samples"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} cannot be read ({error!r}); train the model again") from error
    if version != FORMAT or not isinstance(samples, list):
        raise SpecError(f"{path}: format {version!r}, this version reads {FORMAT}; upgrade")
    return found


def _parity(one: Mapping[str, Any], document: Mapping[str, Any], path: Path) -> Parity:
    try:
        unit = next(unit for unit in _COLUMNS if f"{_NAMES[0]}_{unit}" in one)
        columns = {key: tuple(map(float, one.get(f"{key}_{unit}", ()))) for key in _NAMES}
        if not len(columns["measured"]) == len(columns["predicted"]):
            raise ValueError("as many predicted as measured values")
        return Parity(
            str(one["split"]), int(one["rows"]), **columns, mape=one["mape"], median=one["median"],
            coverage=one.get("coverage"), source=str(document["source"]),
            licence=str(document["licence"]), unit=unit if unit == "s" else unit.upper(),
        )  # fmt: skip
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise SpecError(f"{path} is damaged ({error!r}); train the model again") from error
