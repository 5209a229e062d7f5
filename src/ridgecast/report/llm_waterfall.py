"""The model planner: what each technique does on top of those before it, and what then fits.

Numbers are of `scenario.evaluate` and, at the largest batch that fits, of `solve_points`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RidgecastError
from ..hardware import resolve
from ..scenario import Points, document_of, evaluate, largest_batch, memory_at, solve_points
from ..scenario.solve import machine_of
from ..techniques import get, names
from .figures import Axis, Figure, Panel, Series
from .llm_view import DASH, scenario_from, text_of
from .questions_llm import WaterfallQuestion
from .scaled import scaled
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = ["waterfall_view"]

# quantity -> key of the document, label, dimension of its axis
_QUANTITIES = {
    "tpot": ("tpot_s", "TPOT", "time"),
    "ttft": ("ttft_s", "TTFT", "time"),
    "throughput": ("output_tokens_per_s_per_gpu", "output tokens/s per GPU", ""),
    "memory": ("memory_bytes", "memory of the fullest device", "bytes"),
    "energy": ("energy_per_token_j", "energy per token", "energy"),
}
# field of the treatment that a technique sets first -> kind for eyes
_KINDS = {
    "weights": "weights", "experts": "weights", "kv": "cache", "placement": "placement and offload",
    "exchange": "exchange of experts", "speculation": "speculation", "batching": "batching",
    "reduction": "less work", "tuning": "fine-tuning", "trainable": "fine-tuning",
    "adapters": "batching",
}  # fmt: skip
_START, _END = "none", "all"


@dataclass(frozen=True, slots=True)
class _Step:
    """One technique on top of those before it: documents at both batches, or why there is none."""

    name: str
    stack: tuple[str, ...]
    doc: Mapping[str, Any]
    most: Mapping[str, Any]
    reason: str = ""


def waterfall_view(q: WaterfallQuestion, *, model: str | Path | None = None) -> View:
    """Answer a case with no technique, then with one after another, at its batch and the largest.

    A technique that cannot be applied is a row with its reason and is left out of the steps after.
    Raises what the case without techniques raises.
    """
    steps = [_solved(q, (), _START, model)]
    for name in q.names():
        stack = next(step.stack for step in reversed(steps) if not step.reason)
        try:
            steps.append(_solved(q, (*stack, name), name, model))
        except RidgecastError as error:
            steps.append(_Step(name, (*stack, name), {}, {}, str(error)))
    key, label, dimension = _QUANTITIES[q.quantity]
    rows = _rows(q, steps, key)
    blocks: list[Block] = []
    if len(steps) == 1:
        blocks += _none_asked()
    failed = tuple(f"{s.name}: {s.reason}" for s in steps if s.reason)
    if failed:
        blocks.append(Words(failed, title="What cannot be applied", tone="warning", listed=True))
    blocks.append(_facts(rows, key, label))
    panels = tuple(
        _bars(title, rows, column, (label, dimension), higher=q.quantity == "throughput")
        for title, column in ((f"At {steps[0].doc['batch']} in flight", key),
                              ("At the largest batch that fits", f"largest_{key}"))
    )  # fmt: skip
    caption = (
        "Each bar starts where the one before it ends. On the right each step runs as many "
        "requests as it makes room for: what a smaller cache or smaller weights are worth."
    )
    blocks.append(Figure("waterfall", "Technique by technique", caption, panels))
    headings = {key: label, f"largest_{key}": f"{label} at the largest batch",
                "change_share": "change", "largest_change_share": "change at the largest batch",
                "max_batch": "largest batch"}  # fmt: skip
    blocks.append(Rows("steps", "Technique by technique", rows, headings=headings))
    applied = next(list(s.stack) for s in reversed(steps) if not s.reason)
    again = q.model_copy(update={"technique": applied})
    return View(
        q.page, f"Techniques for {q.model} on {steps[0].doc['devices']} × {resolve(q.on).title}",
        tuple(blocks), lead=" → ".join(s.name for s in steps),
        answer={"steps": [s.doc or _refused(q, s) for s in steps]},
        command=again.command(), python=again.python(), address=q.address(),
    )  # fmt: skip


def _solved(
    q: WaterfallQuestion, stack: Sequence[str], name: str, model: str | Path | None
) -> _Step:
    """Answer the case with techniques, and what it does at the largest batch that fits."""
    s = scenario_from(q, technique=",".join(stack), trained=model)
    doc = plain(document_of(q.model, q.place, s, evaluate(s)))
    full = replace(s, traffic=replace(s.traffic, batch="max", request_rate=None))
    made = full.made()
    pinned = machine_of(made, full).pinned
    most = largest_batch(made, full, pinned)
    if most < 1:
        return _Step(name, tuple(stack), doc, {"batch": 0})
    found = solve_points(full, Points.of(most, q.isl, q.osl), made)
    at = {k: float(v[0]) for k, v in found.items()}
    rate, power = at["output_tokens_per_s"], at["power"]
    return _Step(name, tuple(stack), doc, plain({
        "batch": most, "ttft_s": at["ttft"], "tpot_s": at["tpot"],
        "output_tokens_per_s_per_gpu": rate / made.layout.devices,
        "memory_bytes": memory_at(made, full, most, pinned).total,
        "energy_per_token_j": power / rate,
    }))  # fmt: skip


def _refused(q: WaterfallQuestion, step: _Step) -> dict[str, Any]:
    return {"model": q.model, "on": q.place, "techniques": list(step.stack),
            "status": "no_answer", "reason": step.reason}  # fmt: skip


def _rows(q: WaterfallQuestion, steps: Sequence[_Step], key: str) -> list[dict[str, Any]]:
    """One row a step; changes are against the step before it that has a value."""
    rows: list[dict[str, Any]] = []
    last: dict[str, float | None] = {key: None, f"largest_{key}": None}
    for step in steps:
        row: dict[str, Any] = {"technique": step.name, "applied": " + ".join(step.stack) or _START}
        found = {key: step.doc.get(key) if step.doc.get("fits") else None,
                 f"largest_{key}": step.most.get(key)}  # fmt: skip
        if key == "memory_bytes" and step.doc:
            found[key] = step.doc[key]  # known even where it does not fit
        for name, value in found.items():
            before = last[name]
            prefix = "largest_" if name != key else ""
            row[name] = value
            row[f"{prefix}change_share"] = value / before - 1.0 if value and before else None
            last[name] = before if value is None else value
        row["max_batch"] = step.most.get("batch")
        row["status"] = "no_answer" if step.reason else "ok" if step.doc["fits"] else "does not fit"
        row["reason"] = step.reason or ("; ".join(step.doc["reasons"]) if not step.doc["fits"]
                                        else "")  # fmt: skip
        rows.append(row)
    return rows


def _facts(rows: Sequence[Mapping[str, Any]], key: str, label: str) -> Facts:
    """Show what all techniques do together, at both batches."""
    items = []
    for title, column in ((label, key), (f"{label} at the largest batch", f"largest_{key}")):
        known = [r[column] for r in rows if r[column] is not None]
        if not known:
            items.append(Fact(title, DASH, "it does not fit", key))
            continue
        note = f"× {known[-1] / known[0]:.3g} of {text_of(key, known[0])}" if known[0] else ""
        items.append(Fact(title, text_of(key, known[-1]), note, key))
    sizes = [r["max_batch"] for r in rows if r["max_batch"] is not None]
    items.append(Fact("largest batch", str(sizes[-1]), f"{sizes[0]} without", "max_batch"))
    return Facts(tuple(items))


def _bars(
    title: str, rows: Sequence[Mapping[str, Any]], column: str, axis: tuple[str, str], *,
    higher: bool,
) -> Panel:  # fmt: skip
    """Floating bars: the start and the end from 0, each technique from where the last one ended."""
    label, dimension = axis
    known = [r for r in rows if r[column] is not None]
    if not known:
        return Panel(title, reason="it does not fit")
    values, unit = scaled([r[column] for r in known], dimension)
    names = [str(r["technique"]) for r in known]
    ends = [names[0], _END] if len(known) > 1 else names
    series = [Series("whole", [0, len(known)][: len(ends)], [values[0], values[-1]][: len(ends)],
                     "stack", base=[0.0] * len(ends),
                     hover=[f"{n}: {v:.4g} {unit}".strip() for n, v in
                            zip(ends, (values[0], values[-1]), strict=False)])]  # fmt: skip
    moves = [(i, values[i - 1], values[i]) for i in range(1, len(known))]
    hover = [f"{names[i]}: {a:.4g} to {b:.4g} {unit}".strip() for i, a, b in moves]
    for word in ("better", "worse") if moves else ():  # both, so that colours mean one thing
        mine = [((b > a) == higher) == (word == "better") for _, a, b in moves]
        sizes = [b - a if own else None for (_, a, b), own in zip(moves, mine, strict=True)]
        series.append(Series(word, [i for i, _, _ in moves], sizes, "stack",
                             base=[a for _, a, _ in moves], hover=hover))  # fmt: skip
    categories = (*names, _END) if len(known) > 1 else tuple(names)
    return Panel(title, Axis("", "", "category", categories), Axis(label, unit), tuple(series))


def _none_asked() -> list[Block]:
    """Say that no technique was asked for, and which there are."""
    by: dict[str, list[str]] = {}
    for name in names():
        first = get(name).sets[0].partition(".")[0]
        by.setdefault(_KINDS.get(first, first), []).append(name)
    texts = tuple(f"{kind}: {', '.join(found)}" for kind, found in sorted(by.items()))
    return [
        Words(("No technique was asked for: choose some, and they are applied one after another.",),
              tone="lead"),
        Words(texts, title="Techniques that there are", listed=True),
    ]  # fmt: skip
