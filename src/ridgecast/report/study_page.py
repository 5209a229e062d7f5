"""The report of a study: one static page, and its data beside it.

    report.html              the page, self-contained: no script, no network
    data/study.json          scores, conclusions, ranking, settings
    data/figures/*.json      the numbers of every figure
    data/rows.parquet        every measured row, refused ones too
    figures/*.svg            the figures as files

Owns the page's order and words around numbers; every number comes from the `StudyResult`.
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
from .figures import Figure
from .html import Column, Page, Section, callout, cell, details, facts, items, paragraph, table
from .html import figure as figure_block
from .render import inline_svg, save_svg
from .study_figures import study_figures

__all__ = ["study_page", "write_study"]

_SPLIT_WORDS = {
    "random": "single rows at random, whatever they share with others: the easiest",
    "unseen_shape": "whole (n, k) pairs: shapes that were never seen, at any m",
    "off_grid": "neither the n nor the k of a test row was ever seen",
    "unseen_config": "whole configurations: tile sides that were never seen",
    "frontier": "the largest tenth by operations: beyond anything seen",
}
_SCORE_COLUMNS = (
    Column("split", "split"), Column("model", "model"), Column("rows", "test rows", "count"),
    Column("mape", "mean error", "share"), Column("median", "median", "share"),
    Column("p90", "90th pct", "share"), Column("bias", "bias", "share"),
    Column("r2_log", "R² of logs", "fixed"), Column("r2_raw", "R² raw", "fixed"),
    Column("coverage", "90 % interval holds", "share"), Column("floor", "repeat floor", "share"),
    Column("leak", "test points in training", "share"), Column("worst", "worst five", "share"),
    Column("reason", "note"),
)  # fmt: skip
_SHAPE_COLUMNS = (
    Column("size", "m × n × k"), Column("best", "fastest"), Column("best_time_s", "time", "time"),
    Column("best_rate_flops_per_s", "rate", "flops_per_s"), Column("runner_up", "runner-up"),
    Column("margin", "behind by", "share"), Column("verdict", "verdict"),
    Column("gain_over_worst", "over worst, ×", "number"),
    Column("gain_over_default", "over default, ×", "number"),
    Column("power_saved_w", "power saved", "power"),
    Column("energy_saved_share", "energy saved", "share"),
    Column("cheapest", "cheapest in joules"), Column("limiter", "limited by"),
)  # fmt: skip
_MOST_SHAPES = 14


def write_study(
    result: StudyResult,
    out: Path,
    *,
    hardware: Hardware | None = None,
    every_row: Table | None = None,
) -> Path:
    """Write the page and its data into a folder; return the page's path."""
    figures = study_figures(result, hardware)
    (out / "data" / "figures").mkdir(parents=True, exist_ok=True)
    (out / "figures").mkdir(exist_ok=True)
    for figure in figures:
        _write_json(out / "data" / "figures" / f"{figure.name}.json", figure.to_dict())
        if not figure.reason:
            save_svg(figure, out / "figures" / f"{figure.name}.svg")
    _write_json(out / "data" / "study.json", result.to_dict())
    write_table(out / "data" / "rows.parquet", every_row if every_row is not None else result.rows)
    page = out / "report.html"
    draft = page.with_name(f".{page.name}.{os.getpid()}")
    draft.write_text(study_page(result, figures).to_html(), encoding="utf-8")
    draft.replace(page)
    return page


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def study_page(result: StudyResult, figures: Sequence[Figure]) -> Page:
    """Page of a study, from its result and its figures."""
    drawn = {figure.name: figure for figure in figures}

    def show(*names: str) -> list[str]:
        return [_figure(drawn[name]) for name in names]

    meta = result.meta
    device = meta.get("device") or meta.get("hardware") or "an unnamed device"
    created = meta.get("created") or datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes")
    lead = (
        f"{length(result.rows):,} measured rows, {length(result.points):,} points of "
        f"{_kernels(result)}; {meta.get('source', 'measured')}."
    )
    sections = [
        Section("Conclusions", _conclusions(result)),
        Section("The sweep in pictures", show(
            "tile_curves", "occupancy", "roofline", "fastest_cheapest")),
        Section("How well it can be predicted", [
            *_predictability(result), *show("error_by_split", "predicted_measured",
                                            "error_by_size", "feature_importance", "correlation"),
        ]),
        Section("Published figures beside honest splits", _published(result)),
        Section("Every score", _every_score(result)),
        Section("What these data cannot tell", _limits(result)),
        Section("How it was done", _method(result)),
    ]  # fmt: skip
    return Page(
        f"GEMM tile study: {device}", lead, sections, [_headline(result)],
        f"ridgecast {meta.get('ridgecast', '')} · {created} · seed {meta.get('seed')}",
    )  # fmt: skip


def _kernels(result: StudyResult) -> str:
    if "kernel" not in result.points:
        return "one kernel"
    names = sorted(set(map(str, result.points["kernel"].tolist())))
    return f"the {' and '.join(names)} kernel{'s' if len(names) > 1 else ''}"


def _figure(figure: Figure) -> str:
    if figure.reason:
        return f"<h3>{figure.title}</h3>" + paragraph(f"Not shown: {figure.reason}.")
    return figure_block(inline_svg(figure), figure.title, figure.caption)


def _of(result: StudyResult, split: str, model: str = "ridgecast", target: str = "time") -> Any:
    for s in result.scores:
        if (s["split"], s["model"], s["target"]) == (split, model, target):
            return s if s["status"] == "ok" else None
    return None


def _headline(result: StudyResult) -> str:
    pairs: list[tuple[str, str]] = []
    honest = _of(result, "unseen_shape")
    if honest:
        pairs.append((cell(honest["mape"], "share"), "mean error of time on shapes never seen "
                      f"(median {cell(honest['median'], 'share')}; unseen_shape)"))  # fmt: skip
        pairs.append((cell(honest["coverage"], "share"), "of those times lie inside the 90 % "
                      "interval"))  # fmt: skip
    floor = result.floor
    told = (f"how far two independent labels of one point differ ({floor['points']:,} points in "
            f"{floor['pairs'] + floor['points']:,} measurements): the noise in what is learned "
            "from and in what is scored against")  # fmt: skip
    pairs.append((cell(floor["mean"], "share"), told if floor["pairs"] else "no point repeated"))
    picks = result.ranking.get("ridgecast", {})
    if picks.get("shapes"):
        pairs.append((cell(picks["within"], "share"), f"of {picks['shapes']} unseen shapes: the "
                      "pick costs at most 5 % more than the measured best"))  # fmt: skip
    return facts(pairs)


def _conclusions(result: StudyResult) -> list[str]:
    said = result.conclusions
    rows = [
        {**s, "size": "\u202f×\u202f".join(str(s[x]) for x in "mnk"), "verdict": _verdict(s)}
        for s in said["shapes"]
    ]
    cubes = [r for r in rows if r["m"] == r["n"] == r["k"]]
    others = [r for r in rows if r not in cubes]
    step = max(1, len(others) // max(1, _MOST_SHAPES - len(cubes)))
    shown = cubes + others[::step][: max(0, _MOST_SHAPES - len(cubes))]
    blocks = [paragraph("Computed from the measured rows; nothing here is predicted.")]
    blocks.append(items(said["sentences"]))
    if rows:
        caption = f"{len(shown)} of {len(rows)} sizes; all of them are in data/study.json"
        blocks.append(table(shown, _SHAPE_COLUMNS, caption=caption))
    return blocks


def _verdict(shape: Mapping[str, Any]) -> str:
    if shape["tie"] is None:
        return "unknown"
    return "tie" if shape["tie"] else "clear"


def _predictability(result: StudyResult) -> list[str]:
    rows = [s for s in result.scores if s["target"] == "time"]
    columns = [c for c in _SCORE_COLUMNS if c.key not in ("worst", "leak", "r2_raw")]
    words = [f"{name}: {_SPLIT_WORDS[name]}" for name in dict.fromkeys(s["split"] for s in rows)
             if name in _SPLIT_WORDS]  # fmt: skip
    blocks = [
        paragraph("Errors are |predicted / measured - 1| of rows that the fit never saw. What was "
                  "held out decides what an error means:"),
        items(words),
        table(rows, columns, caption="Time, by split", group="split", lead=("model", "ridgecast")),
    ]  # fmt: skip
    ranked = [{"model": name, **r, "always": (r.get("always") or {}).get("config"),
               "always_within": (r.get("always") or {}).get("within")}
              for name, r in result.ranking.items() if r.get("shapes")]  # fmt: skip
    if ranked:
        blocks.append(table(ranked, (
            Column("model", "model"), Column("shapes", "unseen shapes", "count"),
            Column("within", "pick within 5 % of best", "share"),
            Column("mean_loss", "mean loss of the pick", "share"),
            Column("worst_loss", "worst", "share"), Column("always", "best fixed choice"),
            Column("always_within", "within 5 %", "share"),
        ), caption="Picking the configuration for a shape that was never seen"))  # fmt: skip
    return blocks


def _published(result: StudyResult) -> list[str]:
    found = result.published
    if not found:
        return []
    rows = [dict(row) for row in found["rows"]]
    columns = (
        Column("what", "what"),
        Column("split", "split"),
        Column("r2", "R² raw", "fixed"),
        Column("mape", "mean error", "share"),
        Column("median", "median", "share"),
        Column("leak", "test points in training", "share"),
    )
    return [paragraph(found["text"]), table(rows, columns, lead=("lead", True))]


def _every_score(result: StudyResult) -> list[str]:
    blocks = [paragraph("A score without its split says nothing; each stands with it here.")]
    for target in dict.fromkeys(s["target"] for s in result.scores):
        rows = [s for s in result.scores if s["target"] == target]
        shown = table(rows, _SCORE_COLUMNS, group="split", lead=("model", "ridgecast"))
        blocks.append(details(f"{target.capitalize()}, {len(rows)} scores", [shown]))
    return blocks


def _limits(result: StudyResult) -> list[str]:
    notes = [str(note) for note in result.meta.get("notes", ())]
    blocks = [callout(str(warning)) for warning in result.meta.get("warnings", ())]
    if result.meta.get("no_power"):
        notes.append(f"Power and energy: null in every row. {result.meta['no_power']}.")
    if result.floor["mean"] is None:
        notes.append("No point was measured twice, so the noise is not known.")
    if result.meta.get("rows_refused"):
        notes.append(f"{result.meta['rows_refused']} rows are not used: they failed, were refused "
                     "or broke a rule of the protocol (data/rows.parquet says which).")  # fmt: skip
    notes.append("One device, one software environment: nothing here says how another would do.")
    return [*blocks, items(notes)]


def _method(result: StudyResult) -> list[str]:
    meta = result.meta
    models = [f"{name}: {MODELS[name].what}; {_settings(f.settings)}"
              for name, f in result.fitted.items()]  # fmt: skip
    rows = [{"what": key.replace("_", " "), "value": _text(value)}
            for key, value in _flat(meta) if _text(value)]  # fmt: skip
    return [
        items(models),
        paragraph("A split is drawn several times with seeds of its own and the test rows are "
                  "pooled; repeats of one point count as one row, their median. The floor is the "
                  "mean of |a / b - 1| over successive repeats."),
        details("Provenance", [table(rows, (Column("what", "what"), Column("value", "value")))]),
        paragraph("Beside this page: data/study.json (all scores and conclusions), "
                  "data/figures/*.json (the numbers of each figure), data/rows.parquet (all rows), "
                  "figures/*.svg, model/ (ridgecast's fitted model)."),
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
