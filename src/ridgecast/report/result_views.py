"""Views of results at hand: what the command line has just answered, for a picture or a page.

The pages of the web start from a question and answer it; these start from the answer, so that
nothing is computed twice and a result of any model folder or device file can be drawn. Figures are
the pages' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..accuracy.report import AccuracyReport
from ..predict.explain import Explanation
from ..predict.tune import TuneResult
from ..scenario import Answer, Scenario, document_of, engine
from ..search.serving_plan import ServingPlan
from ..units import format_quantity
from .figures import Axis, Figure, Panel, Series
from .scaled import scaled
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = ["accuracy_report_view", "answer_view", "explanation_view", "plan_result_view",
           "tuned_view"]  # fmt: skip

_UNITS = (("time", "s"), ("power", "w"), ("energy", "j"))
_RANKED = 12  # configurations with a bar of their own


def explanation_view(
    told: Explanation, *, row: Mapping[str, Any] | None = None, command: str = ""
) -> View:
    """Where time and energy go, the place under each roof, and each what-if.

    `row` is a prediction of the same work under other conditions (a cold cache): the rate that the
    roofline shows is then its rate.
    """
    from .gemm_view import _parts, _tables

    p = told.prediction
    blocks: list[Block] = [Words((told.sentence,), tone="lead"), _predicted(told, row)]
    if told.roofline:
        blocks.append(_roofline(told, row))
    blocks.append(_parts(told))
    if told.what_if:
        blocks += [_what_if(told), Rows("what_if", "Each change alone", told.what_if)]
    blocks += _tables(told)
    blocks.append(Words(told.notes, title="What else to know", listed=True))
    return View(
        p.op.name, f"{_work(told)} on {p.hardware.title}", tuple(blocks), answer=told.to_dict(),
        lead=f"basis {p.basis}: {p.reason}", command=command,
    )  # fmt: skip


def _work(told: Explanation) -> str:
    op = told.prediction.op
    sizes = [str(getattr(op, n)) for n in ("m", "n", "k") if hasattr(op, n)]
    shape = " × ".join(sizes) if op.name == "gemm" else op.name
    return " ".join([shape, str(getattr(op, "dtype", ""))]).strip()


def _roofline(told: Explanation, row: Mapping[str, Any] | None) -> Figure:
    """Roof of each memory level, and the work under it; sharp at the ridge points."""
    p, rows = told.prediction, told.roofline
    at = [r["arithmetic_intensity"] for r in rows] + [r["ridge_point"] for r in rows]
    ends = (min(at) / 8.0, max(at) * 8.0)
    series = []
    for level in rows:
        if level["level"] == "unique bytes" and any(r["level"] == "memory" for r in rows):
            continue  # they cross the same memory
        x = [ends[0], level["ridge_point"], ends[1]]
        under = min(level["arithmetic_intensity"], level["ridge_point"])
        bandwidth = level["attainable_flops_per_s"] / under
        y = [min(v, level["ridge_point"]) * bandwidth / 1e12 for v in x]
        name = f"{level['level']}, {format_quantity(bandwidth, 'bytes_per_s')}"
        series.append(Series(name, x, y, "line"))
    factor = p.time / float(row["time_s"]) if row and row.get("time_s") else 1.0
    rates = [r["achieved_flops_per_s"] * factor / 1e12 for r in rows]
    work = Series("this work", [r["arithmetic_intensity"] for r in rows], rates, "points",
                  labels=[str(r["level"]) for r in rows])  # fmt: skip
    panel = Panel("", Axis("arithmetic intensity", "flop/B", "log"),
                  Axis("rate", "Tflop/s", "log"), (*series, work))  # fmt: skip
    caption = ("A point a memory level: operations per byte that cross it, at the predicted rate. "
               f"Roofs: {p.hardware.title}.")  # fmt: skip
    return Figure("roofline", "Roofline per memory level", caption, (panel,))


def _predicted(told: Explanation, row: Mapping[str, Any] | None) -> Facts:
    p = told.prediction
    items = []
    for name, unit in _UNITS:
        ends = p.intervals[name] or (None, None)
        value, low, high = getattr(p, name), *ends
        if row is not None:
            value, low, high = (row.get(f"{name}{e}_{unit}") for e in ("", "_low", "_high"))
        known = low is not None and high is not None
        note = f"{format_quantity(low, name)} to {format_quantity(high, name)}" if known else ""
        items.append(Fact(name, format_quantity(value, name), note or "unknown"))
    items += [Fact("bound", format_quantity(p.bound, "time"), "the speed of light: physics only"),
              Fact("limiter", p.limiter, "what holds the time up"),
              Fact("basis", p.basis, "rung of the ladder of trust")]  # fmt: skip
    return Facts(tuple(items))


def _what_if(told: Explanation) -> Figure:
    """Time as it is and with each change, with intervals."""
    p = told.prediction
    good = [r for r in told.what_if if r["time_s"] is not None]
    low, high = p.interval("time")
    times = [p.time, *(r["time_s"] for r in good)]
    values, unit = scaled(times, "time")
    factor = values[0] / p.time
    lows = [v * factor for v in (low, *(r["time_low_s"] for r in good))]
    highs = [v * factor for v in (high, *(r["time_high_s"] for r in good))]
    names = ("as it is", *(str(r["change"]) for r in good))
    bars = Series("", range(len(values)), values, "bars", lows, highs)
    panel = Panel("Time", Axis("time", unit), Axis("", "", "category", names), (bars,),
                  horizontal=True)  # fmt: skip
    return Figure("what_if", "What if", "Each change is predicted again; whiskers are intervals.",
                  (panel,))  # fmt: skip


def tuned_view(found: TuneResult, *, top: int = 20, command: str = "") -> View:
    """Ranking of configurations: the best ones, and time against energy of all."""
    from .gemm_view import _fastest_cheapest

    rows = found.top(top)
    best = found.top(_RANKED)
    values, unit = scaled([r["time_s"] for r in best], "time")
    factor = values[0] / best[0]["time_s"]
    lows, highs = ([r[f"time_{end}_s"] * factor for r in best] for end in ("low", "high"))
    names = tuple(f"{r['rank']}: {_told_apart(r, best)}" for r in best)
    bars = Series("", range(len(best)), values, "bars", lows, highs)
    panel = Panel(f"the best {len(best)} by {found.objective}", Axis("time", unit),
                  Axis("", "", "category", names), (bars,), horizontal=True)  # fmt: skip
    caption = (f"{found.ties} of {len(found)} configurations cannot be told from the best; "
               "whiskers are intervals.")  # fmt: skip
    ranking = Figure("ranking", "Ranking", caption, (panel,))
    blocks = (ranking, _fastest_cheapest(found), Rows("rows", f"The best {len(rows)}", rows),
              Words(found.notes, title="What the ranking is worth", listed=True))  # fmt: skip
    title = f"Configurations of {found.kernel} on {found.hardware.title}"
    return View("tune", title, blocks, answer={**found.to_dict(), "rows": rows}, command=command)


def _told_apart(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Parameters in which a configuration differs from others of the ranking."""
    from ..store import CONFIG_COLUMNS

    names = [n for n in row if n in CONFIG_COLUMNS and len({r[n] for r in rows}) > 1]
    return ", ".join(f"{n.replace('_', ' ')} {row[n]}" for n in names) or "the only one"


def answer_view(s: Scenario, answer: Answer, *, model: str, on: str, command: str = "") -> View:
    """Show a scenario's answer: what memory holds, where a pass spends its time."""
    from . import llm_view as of

    doc = plain(document_of(model, on, s, answer))
    made = engine(s.engine) if isinstance(s.engine, str) else s.engine
    usable = made.memory_share * doc["memory_capacity_bytes"]
    blocks: list[Block] = [*of._warnings(doc), of._facts(doc, usable),
                           of._memory(doc, usable, made.name), of._phases(doc),
                           of._components(doc)]  # fmt: skip
    blocks += [b for b in (of._passes(doc), of._basis(doc)) if b.rows]
    blocks.append(Words(tuple(doc["reasons"]), title="What else to know", listed=True))
    return View("llm", f"{model} on {on}", tuple(blocks), answer=doc, command=command)


def plan_result_view(found: ServingPlan, *, model: str, tpot: float | None = None,
                     command: str = "") -> View:  # fmt: skip
    """Show a plan: the best, those that none beats, why others fail; `tpot` is its limit [s]."""
    from . import llm_plan as of

    doc = plain(found.to_dict())
    asked: Any = of.PlanQuestion.model_construct(across="tpot", tpot=tpot)
    blocks: list[Block] = [of._facts(doc["best"])] if doc["best"] else []
    blocks.append(of._pareto(asked, found))
    blocks.append(Rows("front", "Configurations that none beats",
                       [of._row(r) for r in doc["front"]], of._COLUMNS, of._HEADINGS))  # fmt: skip
    rejected = [{"option": of.option_name(r), "reason": r["reason"]} for r in doc["rejected"]]
    blocks.append(Rows("rejected", f"{len(rejected)} options that fail", rejected, open=False))
    lead = f"{doc['searched']} configurations searched; best by {found.objective}"
    return View("plan", f"Serving plan of {model}", tuple(b for b in blocks if _holds(b)),
                lead=lead, answer=doc, command=command)  # fmt: skip


def accuracy_report_view(report: AccuracyReport, *, command: str = "") -> View:
    """Scores of a report by split, for scores that no card holds (computed again from data)."""
    from .accuracy_figures import accuracy_figures

    whole = [r for r in report.rows if r["bucket"] == "all"]
    blocks: list[Block] = []
    for target in dict.fromkeys(r["target"] for r in whole):
        own = [r for r in whole if r["target"] == target]
        blocks += accuracy_figures(target, target.replace("_", " "), own, lambda _: None)
    blocks.append(Rows("scores", "Every score", report.compact()))
    return View("accuracy", "Accuracy on held-out rows", tuple(blocks), answer=report.to_dict(),
                command=command)  # fmt: skip


def _holds(block: Block) -> bool:
    return not isinstance(block, Rows) or bool(block.rows)
