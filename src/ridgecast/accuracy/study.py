"""The study: measured rows of one device in, models, scores by every split and conclusions out.

    rows -> points (repeats as medians) -> models x splits x targets -> scores beside the floor
                                        -> conclusions, ranking, importance

Owns the order of these steps and the tables that they share. Draws nothing and measures nothing:
`study_sweep` collects rows, `report` shows the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, RidgecastError, SpecError
from ..hardware import Hardware
from ..predict.scores import score
from ..predict.sweep_features import column, device_of
from ..predict.sweep_model import collapse, point_codes, usable
from ..predict.sweep_parts import codes_of
from ..store import CONFIG_COLUMNS, Split, make_split
from ..store.tables import Table, concat, length, select
from .conclusions import conclude, ranking, repeat_floor
from .study_models import MODELS, TARGETS, Fitted, target_values

__all__ = ["SPLITS", "StudyOptions", "StudyResult", "run_study"]

F64 = npt.NDArray[np.float64]
SPLITS = ("random", "unseen_shape", "off_grid", "unseen_config", "frontier")
QUANTITIES = ("time", "rate", "power", "energy")
_FRACTIONS = {"random": 0.2, "unseen_shape": 0.2, "off_grid": 0.35, "unseen_config": 0.2,
              "frontier": 0.1}  # fmt: skip
_SEEDLESS = ("frontier",)


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """How thorough: `repeats` seeds per split, whose test rows are pooled.

    `raw_random` scores the split `random` on every single row, repeats and all, as publications
    that do not look for repeats do; otherwise rows are points, each repeat set a median. After
    `seconds` no further seed is drawn: every split is scored once at least.
    """

    repeats: int = 4
    seed: int = 0
    models: tuple[str, ...] = tuple(MODELS)
    splits: tuple[str, ...] = SPLITS
    raw_random: bool = False
    default_tile: int = 16
    seconds: float = math.inf

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise SpecError(f"study.repeats: got {self.repeats}, need 1 or more")


@dataclass(frozen=True, slots=True)
class StudyResult:
    """Everything that a report shows.

    `rows` are all usable measured rows, `points` one row per point, `swept` the points that the
    conclusions and the curves over tile sides are drawn from (usually the same). `scores` are dicts
    (model, split, target, errors as shares). `held` holds per (split, model) the pooled held-out
    table: the points' columns with predicted_s, low_s, high_s (_w and _j likewise) and seed.
    """

    meta: Mapping[str, Any]
    rows: Table
    points: Table
    swept: Table
    floor: Mapping[str, Any]
    scores: tuple[dict[str, Any], ...]
    held: Mapping[tuple[str, str], Table]
    fitted: Mapping[str, Fitted]
    conclusions: Mapping[str, Any]
    ranking: Mapping[str, Any]
    published: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        """Return one JSON document, without the tables."""
        return {
            "schema_version": 1, **self.meta, "points": length(self.points),
            "rows": length(self.rows), "floor": dict(self.floor),
            "scores": [dict(s) for s in self.scores], "ranking": dict(self.ranking),
            "conclusions": dict(self.conclusions), "published": dict(self.published),
            "models": {
                name: {"what": MODELS[name].what, "settings": dict(f.settings),
                       "importance": dict(f.importance)}
                for name, f in self.fitted.items()
            },
        }  # fmt: skip


def run_study(
    table: Table,
    hardware: Hardware | None = None,
    *,
    options: StudyOptions | None = None,
    meta: Mapping[str, Any] | None = None,
    no_power: str = "",
    swept: Table | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> StudyResult:
    """Learn from measured rows of one device and score on rows that were held out.

    `no_power` says why rows lack power and energy. `swept` are other rows of the device to draw
    conclusions from, where `table` has no configuration to choose. Raises NoDataError when no row
    is usable, MissingExtraError without scikit-learn.
    """
    o = options or StudyOptions()
    good = usable(table)
    if not good.any():
        raise NoDataError("no row has a valid time: nothing to study")
    rows = select(table, good)
    deadline = time.monotonic() + o.seconds
    points = _points(rows)
    floor = repeat_floor(rows)
    fitted: dict[str, Fitted] = {}
    for name in o.models:
        progress(f"fitting {name} to {length(points)} points")
        fitted[name] = MODELS[name].fit(points, hardware, o.seed)
    known = _Known(rows, points, hardware, floor, no_power, deadline)
    scores, held = _score_all(known, o, progress)
    dtype = str(points["dtype"][0]) if "dtype" in points else "fp32"
    device = device_of(hardware, dtype, float(points["rate_flops_per_s"].max()))
    chosen, chosen_floor = points, floor
    if swept is not None:
        apart = select(swept, usable(swept))
        chosen, chosen_floor = _points(apart), repeat_floor(apart)
    said = conclude(
        chosen, chosen_floor, device, hardware=hardware, default_tile=o.default_tile,
        no_power=no_power,
    )  # fmt: skip
    about = {
        "hardware": hardware.name if hardware else None, "seed": o.seed,
        "peak_flops_per_s": device.rate,
        "peak_source": "device file" if hardware else "best measured rate",
        "bandwidth_bytes_per_s": float(device.bandwidth) if hardware else None,
        "rows_refused": int((~good).sum()), "no_power": no_power,
    }  # fmt: skip
    return StudyResult(
        {**about, **(meta or {})}, rows, points, chosen, floor, tuple(scores), held, fitted, said,
        _rankings(held),
    )  # fmt: skip


def _points(rows: Table) -> Table:
    points = collapse(rows)
    points["rate_flops_per_s"] = _flops(points) / points["time_s"]
    return points


def _flops(table: Table) -> F64:
    m, n, k, batch = (column(table, name, 1.0) for name in ("m", "n", "k", "batch"))
    return 2.0 * batch * m * n * k


def _rankings(held: Mapping[tuple[str, str], Table]) -> dict[str, Any]:
    """Pick of each model on shapes that it never saw; a shape held out twice counts once."""
    out: dict[str, Any] = {}
    for (split, model), table in held.items():
        if split == "unseen_shape":
            _, first = np.unique(point_codes(table), return_index=True)
            part = select(table, first)
            out[model] = ranking(part, part["predicted_s"])
    return out


# --------------------------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True)
class _Known:
    """What every score needs: all rows, the points, the device, the floor, why there is no power.

    `deadline` is on the monotonic clock.
    """

    rows: Table
    points: Table
    hardware: Hardware | None
    floor: Mapping[str, Any]
    no_power: str
    deadline: float


def _score_all(
    known: _Known, o: StudyOptions, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Table]]:
    """Scores and pooled held-out tables of every split and model."""
    scores: list[dict[str, Any]] = []
    held: dict[tuple[str, str], Table] = {}
    for name in o.splits:
        raw = o.raw_random and name == "random"
        table = known.rows if raw else known.points
        splits, reason = _splits(name, table, o, 1 if raw or name in _SEEDLESS else o.repeats)
        for model in o.models:
            common: dict[str, Any] = {
                "model": model, "split": name, "floor": known.floor["mean"],
                "floor_median": known.floor["median"],
            }  # fmt: skip
            parts: list[Table] = []
            if splits:
                progress(f"{name}: {model}")
                parts, reason = _predict_held_out(splits, table, known, model, o.seed)
            if not parts:
                scores += [{**common, **_none(quantity, reason)} for quantity in QUANTITIES]
                continue
            pooled = concat(parts)
            held[name, model] = pooled
            used = splits[: len(parts)]
            common |= {
                "describe": used[0].describe, "seeds": len(parts), "leak": _leak(used, table),
                "train_rows": int(np.median([s.train.sum() for s in used])),
            }  # fmt: skip
            scores += [{**common, **_score(pooled, q, known.no_power)} for q in QUANTITIES]
    return scores, held


def _splits(name: str, table: Table, o: StudyOptions, turns: int) -> tuple[list[Split], str]:
    """Split `turns` times; the reason when it cannot be done at all."""
    found: list[Split] = []
    reason = ""
    if name == "unseen_config" and _configs(table) < 2:
        return [], "every row ran one configuration: none can be held out"
    for turn in range(turns):
        try:
            found.append(make_split(name, table, seed=o.seed + turn, fraction=_FRACTIONS[name]))
        except (NoDataError, SpecError) as error:
            reason = str(error)
    return found, reason


def _configs(table: Table) -> int:
    columns = [np.nan_to_num(column(table, c), nan=-1.0) for c in CONFIG_COLUMNS if c in table]
    return int(codes_of(columns).max()) + 1 if columns else 0


def _leak(splits: Sequence[Split], table: Table) -> float:
    """Share of the test rows whose very point is in training too."""
    codes = point_codes(table)
    leaked = [np.isin(codes[s.test], codes[s.train]) for s in splits]
    return round(float(np.concatenate(leaked).mean()), 5)


def _predict_held_out(
    splits: Sequence[Split], table: Table, known: _Known, model: str, seed: int
) -> tuple[list[Table], str]:
    """Held-out rows of each split with what the model, fitted to the rest, says of them."""
    parts: list[Table] = []
    reason = ""
    for turn, split in enumerate(splits):
        if parts and time.monotonic() > known.deadline:
            break
        test = select(table, split.test)
        try:
            fitted = MODELS[model].fit(select(table, split.train), known.hardware, seed)
            found = fitted.predict(test)
        except RidgecastError as error:
            if isinstance(error, ImportError):
                raise
            reason = str(error)
            continue
        nothing = np.full(length(test), np.nan)
        part = {**test, "seed": np.full(length(test), turn)}
        for target in TARGETS:
            unit = TARGETS[target].rpartition("_")[2]
            part[f"predicted_{unit}"] = found.get(target, nothing)
            part[f"low_{unit}"] = found.get(f"{target}_low", nothing)
            part[f"high_{unit}"] = found.get(f"{target}_high", nothing)
        parts.append(part)
    return parts, reason


def _none(quantity: str, reason: str) -> dict[str, Any]:
    return {"target": quantity, "rows": 0, "status": "no_data", "reason": reason}


def _score(held: Table, quantity: str, no_power: str) -> dict[str, Any]:
    """Errors of one quantity; a rate's are those of its time, turned over."""
    target = "time" if quantity == "rate" else quantity
    truth, unit = target_values(held, target), TARGETS[target].rpartition("_")[2]
    predicted, low, high = (held[f"{name}_{unit}"] for name in ("predicted", "low", "high"))
    rows = np.isfinite(truth) & np.isfinite(predicted)
    if rows.sum() < 3:
        lacking = target != "time" and not np.isfinite(truth).any()
        why = no_power if lacking and no_power else f"{int(rows.sum())} held-out rows with {target}"
        return _none(quantity, why or f"no row has {target}")
    truth, predicted, low, high = (x[rows] for x in (truth, predicted, low, high))
    if quantity == "rate":
        work = _flops(select(held, rows))
        truth, predicted, low, high = work / truth, work / predicted, work / high, work / low
    known = bool(np.isfinite(low).all())
    found = score(truth, predicted, low, high) if known else score(truth, predicted)
    r2 = 1.0 - float(((predicted - truth) ** 2).sum()) / max(
        float(((truth - truth.mean()) ** 2).sum()), 1e-300
    )
    return {"target": quantity, **found, "r2_raw": round(r2, 5), "status": "ok", "reason": ""}


def with_published(result: StudyResult, published: Mapping[str, Any]) -> StudyResult:
    """Put figures that others published for the same data beside the study's own."""
    return replace(result, published=dict(published))
