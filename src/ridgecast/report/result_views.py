"""Views of results at hand: what the command line has just answered, for a picture or a page.

The pages of the web start from a question and answer it; these start from the answer, so that
nothing is computed twice and a result of any model folder or device file can be drawn. Figures are
the pages' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..accuracy.report import AccuracyReport
from ..predict.explain import Explanation
from ..predict.tune import TuneResult
from ..scenario import Answer, Scenario, document_of, engine
from ..search.serving_plan import ServingPlan
from ..units import format_quantity
from .gemm_figures import (
    UNITS,
    explanation_tables,
    fastest_cheapest_figure,
    parts_figure,
    ranking_figure,
    roofline_figure,
    what_if_figure,
)
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = ["accuracy_report_view", "answer_view", "explanation_view", "plan_result_view",
           "tuned_view"]  # fmt: skip


def explanation_view(
    told: Explanation, *, row: Mapping[str, Any] | None = None, command: str = ""
) -> View:
    """Where time and energy go, the place under each roof, and each what-if.

    `row` is a prediction of the same work under other conditions (a cold cache): the rate that the
    roofline shows is then its rate.
    """
    p = told.prediction
    blocks: list[Block] = [Words((told.sentence,), tone="lead"), _predicted(told, row)]
    if told.roofline:
        blocks.append(roofline_figure(told, row))
    blocks.append(parts_figure(told))
    if told.what_if:
        blocks += [what_if_figure(told), Rows("what_if", "Each change alone", told.what_if)]
    blocks += explanation_tables(told)
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


def _predicted(told: Explanation, row: Mapping[str, Any] | None) -> Facts:
    p = told.prediction
    items = []
    for name, unit in UNITS:
        ends = p.intervals[name] or (None, None)
        value, low, high = getattr(p, name), *ends
        if row is not None:
            value, low, high = (row.get(f"{name}{e}_{unit}") for e in ("", "_low", "_high"))
        known = low is not None and high is not None
        note = f"{format_quantity(low, name)} to {format_quantity(high, name)}" if known else ""
        items.append(Fact(name, format_quantity(value, name), note or "unknown"))
    items += [Fact("bound", format_quantity(p.bound, "time"), "the speed of light: physics only"),
              Fact("limiter", p.limiter, "what the bound waits for"),
              Fact("basis", p.basis, "rung of the ladder of trust")]  # fmt: skip
    return Facts(tuple(items))


def tuned_view(found: TuneResult, *, top: int = 20, command: str = "") -> View:
    """Ranking of configurations: the best ones, and time against energy of all."""
    rows = found.top(top)
    blocks = (ranking_figure(found), fastest_cheapest_figure(found),
              Rows("rows", f"The best {len(rows)}", rows),
              Words(found.notes, title="What the ranking is worth", listed=True))  # fmt: skip
    title = f"Configurations of {found.kernel} on {found.hardware.title}"
    return View("tune", title, blocks, answer={**found.to_dict(), "rows": rows}, command=command)


def answer_view(s: Scenario, answer: Answer, *, model: str, on: str, command: str = "") -> View:
    """Show a scenario's answer: what memory holds, where a pass spends its time."""
    from .llm_view import answer_blocks

    doc = plain(document_of(model, on, s, answer))
    made = engine(s.engine) if isinstance(s.engine, str) else s.engine
    usable = made.memory_share * doc["memory_capacity_bytes"]
    blocks = answer_blocks(doc, usable, made.name)
    return View("llm", f"{model} on {on}", tuple(blocks), answer=doc, command=command)


def plan_result_view(found: ServingPlan, *, model: str, tpot: float | None = None,
                     command: str = "") -> View:  # fmt: skip
    """Show a plan: the best, those that none beats, why others fail; `tpot` is its limit [s]."""
    from .llm_plan import plan_blocks

    doc = plain(found.to_dict())
    blocks = plan_blocks(found, doc, tpot=tpot)
    lead = f"{doc['searched']} configurations searched; best by {found.objective}"
    return View("plan", f"Serving plan of {model}", tuple(blocks),
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
