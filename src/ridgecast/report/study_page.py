"""The report of a study: a view, written as one static page with its data beside it.

    report.html              the page, self-contained: it loads nothing
    data/view.json           the view in its plain form: what the page shows
    data/study.json          scores, conclusions, ranking, settings
    data/figures/*.json      the numbers of every figure
    data/rows.parquet        every measured row, refused ones too
    figures/*.svg            the figures as files

Owns the view's order and words around numbers; every number comes from the `StudyResult`.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..accuracy.study import StudyResult
from ..accuracy.study_models import MODELS
from ..hardware import Hardware
from ..store.tables import Table, length, write_table
from ..units import format_field
from .figures import Figure
from .render import save_svg
from .study_figures import study_figures
from .view import Block, Fact, Facts, Heading, Rows, View, Words

__all__ = ["study_view", "write_study"]

_SPLIT_WORDS = {
    "random": "single rows at random, whatever they share with others: the easiest",
    "unseen_shape": "whole (n, k) pairs: shapes that were never seen, at any m",
    "off_grid": "neither the n nor the k of a test row was ever seen",
    "unseen_config": "whole configurations: tile sides that were never seen",
    "frontier": "the largest tenth by operations: beyond anything seen",
}
# score of a result -> key of a row, whose end says how it reads
_SCORE_KEYS = {
    "split": "split", "model": "model", "rows": "rows", "mape": "mape", "median": "median_error",
    "p90": "p90_error", "bias": "bias_share", "r2_log": "r2_log", "r2_raw": "r2_raw",
    "coverage": "coverage", "floor": "floor_error", "leak": "leak_share", "worst": "worst_error",
    "reason": "note",
}  # fmt: skip
_HEADINGS = {
    "rows": "test rows", "mape": "mean error", "median_error": "median", "p90_error": "90th pct",
    "bias_share": "bias", "r2_log": "R² of logs", "r2_raw": "R² raw",
    "coverage": "90 % interval holds", "floor_error": "repeat floor",
    "leak_share": "test points in training", "worst_error": "worst five",
}  # fmt: skip
_BRIEF = [key for key in _SCORE_KEYS.values()
          if key not in ("worst_error", "leak_share", "r2_raw")]  # fmt: skip
_SHAPE_HEADINGS = {
    "size": "m × n × k", "best": "fastest", "best_time_s": "time", "best_rate_flops_per_s": "rate",
    "runner_up": "runner-up", "margin_share": "behind by", "verdict": "verdict",
    "gain_over_worst": "over worst, ×", "gain_over_default": "over default, ×",
    "power_saved_w": "power saved", "energy_saved_share": "energy saved",
    "cheapest": "cheapest in joules", "limiter": "limited by",
}  # fmt: skip
_RANKING_HEADINGS = {
    "shapes": "unseen shapes", "within_share": "pick within 5 % of best",
    "mean_loss_share": "mean loss of the pick", "worst_loss_share": "worst",
    "always": "best fixed choice", "always_within_share": "within 5 %",
}  # fmt: skip
_MOST_SHAPES = 14


def write_study(
    result: StudyResult,
    out: Path,
    *,
    hardware: Hardware | None = None,
    every_row: Table | None = None,
) -> Path:
    """Write the page and its data into a folder; return the page's path."""
    from .page import static_page

    figures = study_figures(result, hardware)
    (out / "data" / "figures").mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    for figure in figures:
        _write_json(out / "data" / "figures" / f"{figure.name}.json", figure.to_dict())
        if not figure.reason:
            save_svg(figure, out / "figures" / f"{figure.name}.svg")
    _write_json(out / "data" / "study.json", result.to_dict())
    write_table(out / "data" / "rows.parquet", every_row if every_row is not None else result.rows)
    view = study_view(result, figures)
    _write_json(out / "data" / "view.json", view.to_dict())
    page = out / "report.html"
    draft = page.with_name(f".{page.name}.{os.getpid()}")
    draft.write_text(static_page([view]), encoding="utf-8")
    draft.replace(page)
    return page


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def study_view(result: StudyResult, figures: Sequence[Figure]) -> View:
    """View of a study, from its result and its figures."""
    drawn = {figure.name: figure for figure in figures}
    meta = result.meta
    device = meta.get("device") or meta.get("hardware") or "an unnamed device"
    created = meta.get("created") or datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes")
    blocks: list[Block] = [
        _headline(result),
        Heading("Conclusions"), *_conclusions(result),
        Heading("The sweep in pictures"),
        *(drawn[n] for n in ("tile_curves", "occupancy", "roofline", "fastest_cheapest")),
        Heading("How well it can be predicted"), *_predictability(result),
        *(drawn[n] for n in ("error_by_split", "predicted_measured", "error_by_size",
                             "feature_importance", "correlation")),
        *_published(result),
        Heading("Every score"), *_every_score(result),
        Heading("What these data cannot tell"), *_limits(result),
        Heading("How it was done"), *_method(result),
    ]  # fmt: skip
    lead = (
        f"{length(result.rows):,} measured rows, {length(result.points):,} points of "
        f"{_kernels(result)}; {meta.get('source', 'measured')}."
    )
    command = str(meta.get("command", ""))
    return View(
        "study", f"GEMM tile study: {device}", tuple(blocks), lead=lead, answer=result.to_dict(),
        command=command if command.startswith("ridgecast ") else "",
        footer=f"ridgecast {meta.get('ridgecast', '')} · {created} · seed {meta.get('seed')}",
    )  # fmt: skip


def _kernels(result: StudyResult) -> str:
    if "kernel" not in result.points:
        return "one kernel"
    names = sorted(set(map(str, result.points["kernel"].tolist())))
    return f"the {' and '.join(names)} kernel{'s' if len(names) > 1 else ''}"


def _of(result: StudyResult, split: str, model: str = "ridgecast", target: str = "time") -> Any:
    for s in result.scores:
        if (s["split"], s["model"], s["target"]) == (split, model, target):
            return s if s["status"] == "ok" else None
    return None


def _headline(result: StudyResult) -> Facts:
    told: list[Fact] = []
    honest = _of(result, "unseen_shape")
    if honest:
        told.append(_share("mean error", honest["mape"], "of time on shapes never seen (median "
                           f"{_percent(honest['median'])}; unseen_shape)"))  # fmt: skip
        told.append(_share("coverage", honest["coverage"], "of those times lie inside the 90 % "
                           "interval"))  # fmt: skip
    floor = result.floor
    words = (f"how far two independent labels of one point differ ({floor['points']:,} points in "
             f"{floor['pairs'] + floor['points']:,} measurements): the noise in what is learned "
             "from and in what is scored against")  # fmt: skip
    told.append(_share("repeat floor", floor["mean"],
                       words if floor["pairs"] else "no point repeated"))  # fmt: skip
    picks = result.ranking.get("ridgecast", {})
    if picks.get("shapes"):
        told.append(_share("good picks", picks["within"], f"of {picks['shapes']} unseen shapes: "
                           "the pick costs at most 5 % more than the measured best"))  # fmt: skip
    return Facts(tuple(told))


def _percent(value: float | None) -> str:
    return format_field("share", value) or "–"


def _share(label: str, value: float | None, note: str) -> Fact:
    return Fact(label, _percent(value), note)


def _conclusions(result: StudyResult) -> list[Block]:
    said = result.conclusions
    rows = [
        {**s, "size": "\u202f×\u202f".join(str(s[x]) for x in "mnk"), "verdict": _verdict(s),
         "margin_share": s.get("margin")}
        for s in said["shapes"]
    ]  # fmt: skip
    cubes = [r for r in rows if r["m"] == r["n"] == r["k"]]
    others = [r for r in rows if r not in cubes]
    step = max(1, len(others) // max(1, _MOST_SHAPES - len(cubes)))
    shown = cubes + others[::step][: max(0, _MOST_SHAPES - len(cubes))]
    blocks: list[Block] = [
        Words(("Computed from the measured rows; nothing here is predicted.",)),
        Words(tuple(said["sentences"]), listed=True, tone="lead"),
    ]
    if rows:
        caption = f"{len(shown)} of {len(rows)} sizes; all of them are in data/study.json"
        blocks.append(Rows("shapes", "Fastest configuration by size", shown, list(_SHAPE_HEADINGS),
                           _SHAPE_HEADINGS, caption=caption))  # fmt: skip
    return blocks


def _verdict(shape: Mapping[str, Any]) -> str:
    if shape["tie"] is None:
        return "unknown"
    return "tie" if shape["tie"] else "clear"


def _score_row(score: Mapping[str, Any]) -> dict[str, Any]:
    return {key: score.get(name) for name, key in _SCORE_KEYS.items()}


def _predictability(result: StudyResult) -> list[Block]:
    rows = [_score_row(s) for s in result.scores if s["target"] == "time"]
    words = [f"{name}: {_SPLIT_WORDS[name]}" for name in dict.fromkeys(r["split"] for r in rows)
             if name in _SPLIT_WORDS]  # fmt: skip
    blocks: list[Block] = [
        Words(("Errors are |predicted / measured - 1| of rows that the fit never saw. What was "
               "held out decides what an error means:",)),
        Words(tuple(words), listed=True),
        Rows("splits", "Time, by split", rows, _BRIEF, _HEADINGS, group="split",
             strong=("model", "ridgecast")),
    ]  # fmt: skip
    ranked = [_ranking_row(name, r) for name, r in result.ranking.items() if r.get("shapes")]
    if ranked:
        title = "Picking the configuration for a shape that was never seen"
        blocks.append(Rows("ranking", title, ranked, headings=_RANKING_HEADINGS))
    return blocks


def _ranking_row(model: str, found: Mapping[str, Any]) -> dict[str, Any]:
    always = found.get("always") or {}
    return {
        "model": model, "shapes": found["shapes"], "within_share": found["within"],
        "mean_loss_share": found["mean_loss"], "worst_loss_share": found["worst_loss"],
        "always": always.get("config"), "always_within_share": always.get("within"),
    }  # fmt: skip


def _published(result: StudyResult) -> list[Block]:
    found = result.published
    if not found:
        return []
    rows = [
        {"what": row.get("what"), "split": row.get("split"), "r2_raw": row.get("r2"),
         "mape": row.get("mape"), "median_error": row.get("median"),
         "leak_share": row.get("leak")}
        for row in found["rows"]
    ]  # fmt: skip
    title = "Published figures beside honest splits"
    return [Heading(title), Words((found["text"],)),
            Rows("published", "By split", rows, headings=_HEADINGS)]  # fmt: skip


def _every_score(result: StudyResult) -> list[Block]:
    blocks: list[Block] = [
        Words(("A score without its split says nothing; each stands with it here.",))
    ]
    for target in dict.fromkeys(s["target"] for s in result.scores):
        rows = [_score_row(s) for s in result.scores if s["target"] == target]
        title = f"{target.capitalize()}, {len(rows)} scores"
        blocks.append(Rows(f"scores_{target}", title, rows, headings=_HEADINGS, group="split",
                           strong=("model", "ridgecast"),
                           open=False))  # fmt: skip
    return blocks


def _limits(result: StudyResult) -> list[Block]:
    notes = [str(note) for note in result.meta.get("notes", ())]
    warnings = tuple(str(warning) for warning in result.meta.get("warnings", ()))
    if result.meta.get("no_power"):
        notes.append(f"Power and energy: null in every row. {result.meta['no_power']}.")
    if result.floor["mean"] is None:
        notes.append("No point was measured twice, so the noise is not known.")
    if result.meta.get("rows_refused"):
        notes.append(f"{result.meta['rows_refused']} rows are not used: they failed, were refused "
                     "or broke a rule of the protocol (data/rows.parquet says which).")  # fmt: skip
    notes.append("One device, one software environment: nothing here says how another would do.")
    told = Words(tuple(notes), listed=True)
    return [Words(warnings, tone="warning"), told] if warnings else [told]


def _method(result: StudyResult) -> list[Block]:
    meta = result.meta
    models = [f"{name}: {MODELS[name].what}; {_settings(f.settings)}"
              for name, f in result.fitted.items()]  # fmt: skip
    rows = [{"what": key.replace("_", " "), "value": _text(value)}
            for key, value in _flat(meta) if _text(value)]  # fmt: skip
    return [
        Words(tuple(models), listed=True),
        Words(("A split is drawn several times with seeds of its own and the test rows are "
               "pooled; repeats of one point count as one row, their median. The floor is the "
               "mean of |a / b - 1| over successive repeats.",
               "Beside this page: data/study.json (all scores and conclusions), data/view.json "
               "(what this page shows), data/figures/*.json (the numbers of each figure), "
               "data/rows.parquet (all rows), figures/*.svg, model/ (ridgecast's fitted model).")),
        Rows("provenance", "Provenance", rows, open=False),
    ]  # fmt: skip


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in settings.items())


def _flat(meta: Mapping[str, Any]) -> list[tuple[str, Any]]:
    hidden = ("notes", "warnings", "no_power")
    plain = [(k, v) for k, v in meta.items() if k not in hidden and not isinstance(v, dict)]
    nested = [(f"{k}: {name}", item) for k, v in meta.items() if isinstance(v, dict)
              for name, item in v.items()]  # fmt: skip
    return plain + nested


def _text(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
