"""The model planner's search: which devices, how many, in which layout and format, at what cost.

Every number is of `search.plan_serving`, as `plan serve` prints it; this module owns which of them
stand on the page and in the figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import SpecError
from ..scenario import Traffic
from ..search.pareto import non_dominated
from ..search.plan_words import option_name, prices_of
from ..search.serving_plan import Limits, ServingPlan, Space, plan_serving
from ..units import format_number
from .figures import Axis, Figure, Panel, Series
from .llm_view import text_of
from .questions_llm import PlanQuestion
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = ["plan_view"]

_SHOWN = 40  # rows of the front in its table
_COLUMNS = ("option", "replicas", "devices", "batch", "ttft_s", "tpot_s",
            "output_tokens_per_s_per_gpu", "service_power_w", "cost_usd_per_h",
            "cost_per_million_tokens_usd")  # fmt: skip
_HEADINGS = {"batch": "in flight", "output_tokens_per_s_per_gpu": "tokens/s per GPU",
             "service_power_w": "power", "cost_usd_per_h": "USD/h",
             "cost_per_million_tokens_usd": "USD per million tokens"}  # fmt: skip
_LIMITS = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end", "power": "power", "cost": "cost"}
_UNITS = {"ttft": "_s", "tpot": "_s", "e2e": "_s", "power": "_w"}


def plan_view(q: PlanQuestion, *, model: object = None) -> View:
    """Search the options of a question: the best, those that none beats, and why others fail.

    A plan in which nothing keeps the limits is answered too. Raises what `plan_serving` raises:
    SpecError for unknown names or a `model` folder, InfeasibleError where no option can be at all.
    """
    if model is not None:
        raise SpecError("model: plans are searched with the shipped models; leave --model out")
    plan = plan_serving(
        q.model,
        Space(q.on, q.engine, q.dtype, q.kv_dtype, q.technique, q.tp, q.pp,
              prices=prices_of(q.price)),
        Traffic(q.isl, q.osl, request_rate=q.request_rate),
        Limits(q.ttft, q.tpot, q.e2e, q.power, q.cost, q.devices, q.strict),
        objective=q.objective,
    )  # fmt: skip
    doc = plain(plan.to_dict())
    blocks = plan_blocks(plan, doc, across=q.across, tpot=q.tpot)
    return View(
        q.page, f"Serving plan of {q.model}", tuple(blocks), lead=_lead(q, doc), answer=doc,
        command=q.command(), python=q.python(), address=q.address(),
    )  # fmt: skip


def plan_blocks(
    plan: ServingPlan, doc: Mapping[str, Any], *, across: str = "tpot", tpot: float | None = None
) -> list[Block]:
    """Blocks of a plan and its document: the best, those that none beats, why others fail.

    `across` is what the figure shows across (tpot or interactivity), `tpot` the limit on it [s].
    """
    best, front = doc["best"], doc["front"]
    blocks: list[Block] = []
    if best is None:
        blocks.append(Words(("None of the options keeps the limits: relax one, or try more devices "
                             "and formats. The table says how near each came.",),
                            tone="warning"))  # fmt: skip
    else:
        blocks += [Words((_sentence(best),), tone="lead"), _facts(best)]
    blocks.append(_pareto(plan, across=across, limit=tpot))
    if front:
        step = -(-len(front) // _SHOWN)
        rows = [_row(r) for r in front[::step]]
        caption = "" if step == 1 else f"One row in {step}; all of them are in the answer."
        if best is not None and _row(best) not in rows:
            rows.insert(0, _row(best))
        blocks.append(Rows("front", f"The {len(front)} configurations that none beats", rows,
                           _COLUMNS, _HEADINGS, caption=caption))  # fmt: skip
    if doc["rejected"]:
        rejected = [{"option": option_name(r), "engine": r["engine"], "reason": r["reason"]}
                    for r in doc["rejected"]]  # fmt: skip
        blocks.append(Rows("rejected", f"{len(rejected)} options that fail", rejected,
                           open=best is None))  # fmt: skip
    return blocks


def _lead(q: PlanQuestion, doc: Mapping[str, Any]) -> str:
    given = {name: getattr(q, name) for name in _LIMITS if getattr(q, name) is not None}
    limits = ", ".join(
        f"{_LIMITS[n]} {text_of(_UNITS[n], v) if n in _UNITS else f'{v:g} USD/h'}"
        for n, v in given.items()
    )
    rate = f" at {q.request_rate:g} requests/s" if q.request_rate is not None else ""
    return (f"{doc['searched']} configurations searched, {doc['kept']} keep the limits "
            f"({limits + ', ' if limits else ''}{q.devices} devices); {q.isl} in / {q.osl} out"
            f"{rate}; best by {_goal(q.objective, doc['best'])}")  # fmt: skip


def _goal(objective: str, best: Mapping[str, Any] | None) -> str:
    """Say what the best is by: without a price, cost is counted in devices."""
    cost = None if best is None else best["cost_usd_per_h"]
    unknown = best is not None and (cost is None or cost != cost)  # noqa: PLR0124 - NaN
    return "devices, for want of a price" if objective == "cost" and unknown else objective


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['replicas']:.0f} × {option_name(row)}"


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    whole = {name: int(row[name]) for name in ("replicas", "devices", "batch")}
    return {"option": option_name(row), "engine": row["engine"], **row, **whole}


def _sentence(best: Mapping[str, Any]) -> str:
    cost = best["cost_usd_per_h"]
    paid = f" for {format_number(cost)} USD/h" if cost is not None else ""
    many = "s" if best["devices"] != 1 else ""
    return (f"{_name(best)} ({best['devices']:.0f} device{many}){paid}, "
            f"{best['batch']:.0f} requests in flight on each replica.")  # fmt: skip


def _facts(best: Mapping[str, Any]) -> Facts:
    """Show the best configuration as numbers."""
    cost = text_of("cost_usd", best["cost_usd_per_h"])
    return Facts((
        Fact("best", option_name(best), f"{best['replicas']:.0f} × {best['devices_each']} devices, "
             f"{best['engine']}", "replica"),
        Fact("TPOT", text_of("tpot_s", best["tpot_s"]),
             f"its interval ends at {text_of('tpot_s', best['tpot_high_s'])}", "tpot"),
        Fact("TTFT", text_of("ttft_s", best["ttft_s"]),
             f"its interval ends at {text_of('ttft_s', best['ttft_high_s'])}", "ttft"),
        Fact("end to end", text_of("e2e_s", best["e2e_s"]), "", "e2e_latency"),
        Fact("output tokens/s per GPU",
             text_of("tokens", best["output_tokens_per_s_per_gpu"]), "",
             "output_tokens_per_s_per_gpu"),
        Fact("power", text_of("power_w", best["service_power_w"]), "of all devices"),
        Fact("cost", cost, "an hour, all devices", "price_per_h"),
        Fact("cost per million tokens", text_of("cost_usd", best["cost_per_million_tokens_usd"]),
             "", "cost_per_million_tokens"),
    ))  # fmt: skip


def _pareto(plan: ServingPlan, *, across: str, limit: float | None) -> Figure:
    """Draw throughput per GPU against time per token: what was kept, its front, the best."""
    fast = across == "interactivity"
    label, unit = ("tokens/s of a request", "") if fast else ("TPOT", "ms")
    title = "Throughput against " + ("interactivity" if fast else "TPOT")
    caption = (
        "A point a configuration that keeps the limits; the line joins those that no other beats "
        "in both. The table also weighs cost and TTFT, so it holds more."
    )
    rows = np.flatnonzero(plan.kept)
    if not len(rows):
        panel = Panel(title, reason="no configuration keeps the limits")
        return Figure("pareto", title, caption, (panel,))
    t = plan.table
    tpot, rate = t["tpot_s"], t["output_tokens_per_s_per_gpu"]
    x = np.round(1.0 / tpot if fast else tpot * 1e3, 6)
    y = np.round(rate, 3)
    names = [option_name({k: t[k][i] for k in _KEYS}) for i in rows]
    sizes = t["batch"][rows].astype(int)
    hover = np.array([f"{n}, {b} in flight" for n, b in zip(names, sizes, strict=True)], object)
    kinds = t["hardware"][rows]
    series = [
        Series(str(kind), x[rows[kinds == kind]], y[rows[kinds == kind]], "points",
               hover=hover[kinds == kind].tolist())
        for kind in dict.fromkeys(kinds.tolist())
    ]  # fmt: skip
    front = non_dominated(np.stack([tpot[rows], -rate[rows]], axis=1))
    line = np.unique(np.stack([x, y], axis=1)[rows[front]], axis=0)  # equal ones once
    series.append(Series("front", line[:, 0], line[:, 1], "line"))
    if plan.best is not None:
        told = hover[rows == plan.best].tolist()
        named = f"best by {_goal(plan.objective, plan.row(plan.best))}"
        series.append(Series("best", x[[plan.best]], y[[plan.best]], "points", hover=told,
                             labels=[named]))  # fmt: skip
    if limit is not None:
        at = 1.0 / limit if fast else limit * 1e3
        series.append(Series("limit", [at, at], [y[rows].min(), y[rows].max()], "guide"))
    panel = Panel(title, Axis(label, unit, "log"), Axis("output tokens/s per GPU", "", "log"),
                  tuple(series))  # fmt: skip
    return Figure("pareto", title, caption, (panel,))


_KEYS = ("hardware", "tp", "pp", "dp", "ep", "dtype", "kv_dtype", "technique")
