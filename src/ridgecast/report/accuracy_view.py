"""The accuracy page: scores of every model by split, parity of held-out points, what was measured.

Every number is a card's, a kept held-out point's, or a count of them; none is computed from
predictions here. Owns which of them stand on the page; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..accuracy import run
from ..accuracy.chosen import choose, names_of, own_name
from ..accuracy.measured import measured_collections
from ..predict.bundle import SHIPPED
from .accuracy_figures import accuracy_figures, middle, model_of, parity_reader, place, scored
from .questions_accuracy import AccuracyQuestion
from .view import Block, Fact, Facts, Heading, Rows, View, Words, plain

__all__ = ["accuracy_options", "accuracy_view"]

Row = Mapping[str, Any]
_TITLES = {
    "time": "Time of library GEMMs", "time_operator": "Time of other operations",
    "time_config": "Time of CLBlast SGEMM configurations", "power": "Board power",
    "energy": "Energy",
}  # fmt: skip
_MEANS = {
    "random": "single rows",
    "unseen_shape": "whole (n, k) pairs, at every m",
    "unseen_group": "whole groups: heads and lengths, experts, or GPUs and bytes",
    "off_grid": "n values and k values: neither was ever seen",
    "unseen_structure": "whole (kind, GPUs) of a collective",
    "frontier": "the largest tenth by operations",
    "unseen_config": "whole compiled kernels, on every device",
    "unseen_device": "all rows of a device, and of its chip family for GEMMs",
    "unseen_device (family known)": "all rows of a device; relatives of its chip family are known",
    "held_out": "rows that the model was not trained on",
}


def accuracy_view(q: AccuracyQuestion, *, model: str | Path | None = None) -> View:
    """Show the scores that a folder's cards hold, by default the shipped one, filtered.

    `answer` is the document of `ridgecast accuracy --json` with the rows that the question asks
    for. `model` is a folder made by `ridgecast train`.
    Raises SpecError for a name that no score has, or a folder that is no model.
    """
    report = run(model=model)
    q = q.model_copy(update={n: own_name(report.rows, n, v) for n, v in q.filters.items()
                             if n != "target"})  # fmt: skip
    # a folder may have no score of a target that the page offers
    filters = {name: value for name, value in q.filters.items() if name != "target"}
    rows = [r for r in choose(report.rows, filters) if q.target in ("", r["target"])]
    whole = [r for r in rows if r["bucket"] == "all"]
    blocks: list[Block] = []
    if rows:
        blocks += [_facts(whole), _by_split(whole)]
    else:
        asked = ", ".join(f"{name} {value}" for name, value in q.filters.items())
        blocks.append(Words((f"No score has {asked}: leave one out.",), tone="warning"))
    kept = parity_reader(model)
    for target, title in _TITLES.items():
        own = [r for r in whole if r["target"] == target]
        if own:
            blocks += [Heading(title), *accuracy_figures(target, title, own, kept)]
    if rows:
        blocks += _score_tables(rows)
    blocks.append(_collections(q, model))
    notes = [*report.meta["notes"], *_unscored(whole)]
    blocks.append(Words(tuple(notes), title="What else to know", listed=True))
    answer = plain({**report.to_dict(), "rows": [dict(r) for r in rows]})
    return View(
        "accuracy", "Accuracy on held-out rows", tuple(blocks), lead=_lead(report.meta),
        answer=answer, command=_command(q, model), python=q.python(), address=q.address(),
    )  # fmt: skip


def accuracy_options(*, model: str | Path | None = None) -> dict[str, list[str]]:
    """Values that the question's fields may take besides "", by the name of their options."""
    rows = run(model=model).rows
    found = {f"scored_{name}s": names_of(rows, name) for name in ("target", "dtype", "op", "split")}
    found["scored_splits"].sort(key=place)
    for name in ("scored_dtypes", "scored_ops"):
        found[name].sort()
    return found | {"scored_devices": sorted(names_of(rows, "hardware"))}


# ------------------------------------------------------------------------------------- numbers


def _lead(meta: Mapping[str, Any]) -> str:
    trained = meta.get("trained", {})
    made = f", trained {trained['created'][:10]}" if "created" in trained else ""
    folder = (
        "the shipped models" if meta["model"] == "shipped" else f"the models in {meta['model']}"
    )
    return (f"{folder}{made}: errors are |predicted / measured - 1| on rows that no fit has seen, "
            "each with the name of its split")  # fmt: skip


def _command(q: AccuracyQuestion, model: str | Path | None) -> str:
    return q.command() if model is None else f"{q.command()} --model {model}"


def _facts(rows: Sequence[Row]) -> Facts:
    models = {_trained_model(r) for r in rows}
    held = int(sum(scored(rows, "rows")))
    covered = scored(rows, "coverage")
    inside = sum(0.87 <= c <= 0.93 for c in covered)
    floors = scored(rows, "error_over_floor")
    items = [
        Fact("models", f"{len(models):,}", f"with {len(rows):,} scores by device and split"),
    ]
    if held:
        items.append(Fact("held-out rows", f"{held:,}",
                          "scored; one row may be held out in several splits"))  # fmt: skip
    if covered:
        items.append(Fact("coverage", f"{inside} of {len(covered)}",
                          "scores whose 90 % interval holds 87 to 93 % of the truths"))  # fmt: skip
    if floors:
        near = sum(f <= 1.0 for f in floors)
        items.append(Fact("label floor", f"{near} of {len(floors)}",
                          "scores no farther off than two collections differ"))  # fmt: skip
    return Facts(tuple(items))


def _trained_model(row: Row) -> tuple[Any, ...]:
    """Tell trained models apart: one of power, one an operation for devices without labels."""
    if row["target"] in ("power", "energy"):
        return ("power",)
    if row["collection"] or row["target"] == "time_config":
        return model_of(row)
    return (row["target"], row["op"])


def _by_split(rows: Sequence[Row]) -> Rows:
    """Middle of the models for each target and split."""
    lines: list[dict[str, Any]] = []
    for target in _TITLES:
        own = [r for r in rows if r["target"] == target and r["status"] == "ok"]
        for split in sorted({r["split"] for r in own}, key=place):
            part = [r for r in own if r["split"] == split]
            values = {key: middle(scored(part, name)) for key, name in (
                ("median_error", "median"), ("mean_error", "mape"), ("p90_error", "p90"),
                ("coverage", "coverage"), ("derated_error", "derated_mape"),
                ("floor_error", "floor"),
            )}  # fmt: skip
            lines.append({"target": target, "split": split, "held_out": _MEANS.get(split, ""),
                          "models": len({model_of(r) for r in part}),
                          "rows": int(sum(scored(part, "rows"))) or None, **values})  # fmt: skip
    return Rows(
        "splits", "The middle model of each split", lines, group="target",
        headings=_HEADINGS | {"held_out": "what is held out"},
        caption="Each number is the median over the models that have it: of their median errors, "
        "mean errors and so on. Splits of different targets hold out different things.",
    )  # fmt: skip


_HEADINGS = {
    "median_error": "median", "mean_error": "MAPE", "p90_error": "p90",
    "coverage": "90 % interval holds", "width": "high / low", "derated_error": "derated roofline",
    "floor_error": "label floor", "error_over_floor": "MAPE / floor", "hardware": "device",
}  # fmt: skip
_SHOWN = {
    "target": "target", "hardware": "hardware", "op": "op", "dtype": "dtype",
    "collection": "collection", "split": "split", "bucket": "bucket", "rows": "rows",
    "mape": "mean_error", "median": "median_error", "p90": "p90_error", "coverage": "coverage",
    "width": "width", "derated_mape": "derated_error", "floor": "floor_error",
    "error_over_floor": "error_over_floor", "reason": "reason",
}  # fmt: skip


def _score_tables(rows: Sequence[Row]) -> list[Rows]:
    """Scores over all sizes, and folded those of one size each."""

    def key(r: Row) -> tuple[Any, ...]:
        names = (str(r[n] or "") for n in ("op", "hardware", "dtype", "collection"))
        return (list(_TITLES).index(r["target"]), *names, place(r["split"]), r["split"])

    lines = [{new: r[old] for old, new in _SHOWN.items()} for r in sorted(rows, key=key)]
    whole = [{k: v for k, v in r.items() if k != "bucket"} for r in lines if r["bucket"] == "all"]
    sizes = [r for r in lines if r["bucket"] != "all"]
    tables = [Rows("scores", "Every score", whole, headings=_HEADINGS, group="target",
                   caption="The derated roofline has one factor fitted on the same training rows. "
                   "The label floor is how far two collections of the same points differ; it is "
                   "empty where nobody measured it.")]  # fmt: skip
    if sizes:
        tables.append(Rows("sizes", "The same by size", sizes, headings=_HEADINGS, group="target",
                           caption="By predicted time of a call.", open=False))  # fmt: skip
    return tables


def _unscored(rows: Sequence[Row]) -> list[str]:
    return [f"not scored: {r['hardware']} {r['dtype'] or r['op'] or ''} {r['split']}: {r['reason']}"
            for r in rows if r["status"] != "ok"]  # fmt: skip


def _collections(q: AccuracyQuestion, model: str | Path | None) -> Rows:
    """Where the labels come from; what the cards do not record is empty, with the reason."""
    rows = measured_collections(SHIPPED if model is None else model)
    wanted = {k: v for k, v in q.filters.items() if k in ("hardware", "dtype", "op")}
    own = [r for r in rows if all(_taught(r, name, value) for name, value in wanted.items())]
    return Rows(
        "collections", "What was measured", own, group="source",
        headings={"hardware": "device", "measured_on": "date"},
        caption="Collections that the models learned from, as their cards record them. A dash is "
        "what a card does not say.",
    )  # fmt: skip


def _taught(row: Row, name: str, value: str) -> bool:
    """Whether a collection meets a filter; one of operations does not say its formats."""
    if name == "op":
        return value in (row["op"], row["op"].partition(", ")[0], row["op"].partition(" ")[0])
    return row[name] is None or row[name] == value
