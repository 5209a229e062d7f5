"""The model planner's inverse questions: how many requests fit, how long they may be, and in time.

Numbers are of `scenario.largest_batch`, `longest_context`, `largest_batch_within` and
`solve_points`; the documents are those of `llm --batch max` and `llm --isl max`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RidgecastError
from ..hardware import resolve
from ..scenario import Points, Scenario, largest_batch, longest_context, memory_at, solve_points
from ..scenario.advice import need_text
from ..scenario.case import Made
from ..scenario.inverse import LONGEST
from ..scenario.solve import machine_of
from .figures import Axis, Figure, Panel, Series
from .llm_view import DASH, answered, scenario_from, text_of
from .questions_llm import LimitsQuestion
from .scaled import scaled
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = ["limits_view"]

_CONTEXTS = 12  # lengths of the curve of batches
_BATCHES = 16  # sizes of the curves of times
_SHORTEST = 256  # tokens where the curve begins
_TIMES = (("tpot", "TPOT"), ("ttft", "TTFT"))


def limits_view(q: LimitsQuestion, *, model: str | Path | None = None) -> View:
    """Find the largest batch, the longest context, and the largest batch within time limits.

    What cannot be found is said and stops nothing else. Raises SpecError for what cannot be read,
    InfeasibleError for a layout or format that cannot be, UnsupportedError for a network that
    writes no text.
    """
    base = scenario_from(q, batch="max", request_rate=None, trained=model)
    made = base.made()
    need_text(made.network)
    answers: dict[str, Any] = {}
    failed: list[str] = []
    for name, part in q.parts().items():
        try:
            answers[name] = answered(q, trained=model, **part)
        except RidgecastError as error:
            answers[name] = {"model": q.model, "on": q.place, "status": "no_answer",
                             "reason": str(error)}  # fmt: skip
            failed.append(str(error))
    contexts = _contexts(made, base)
    most = answers["largest_batch"].get("max_batch", 0)
    batches = _batches(made, base, most)
    blocks: list[Block] = [Words((_sentence(q, answers),), tone="lead")]
    told = failed + [r for a in answers.values() if a.get("fits") is False for r in a["reasons"]]
    if told:
        blocks.append(Words(tuple(dict.fromkeys(told)), title="What cannot be", tone="warning",
                            listed=True))  # fmt: skip
    longest = int(getattr(made.network, "max_positions", 0) or 0)
    blocks += [
        _facts(q, answers, longest),
        _context_figure(q, contexts, longest),
        _time_figure(q, batches),
        Rows("context_rows", "Largest batch by context", contexts,
             headings={"isl": "prompt tokens", "max_batch": "largest batch"}),
        Rows("batch_rows", "Times by requests in flight", batches,
             headings={"batch": "in flight"}, open=False),
    ]  # fmt: skip
    return View(
        q.page, f"Limits of {q.model} on {q.devices} × {resolve(q.on).title}",
        tuple(b for b in blocks if not isinstance(b, Rows) or b.rows),
        lead="How many requests fit, how long they may be, and how many keep the time.",
        answer=answers, command=q.command(), python=q.python(), address=q.address(),
    )  # fmt: skip


def _known(answers: Mapping[str, Any], name: str, key: str) -> Any:
    """Value of an answer that fits; None otherwise."""
    found = answers.get(name, {})
    return found[key] if found.get("fits") else None


def _sentence(q: LimitsQuestion, answers: Mapping[str, Any]) -> str:
    batch = _known(answers, "largest_batch", "batch")
    if batch is None:
        return f"{q.model} does not fit with even one request of {q.isl} + {q.osl} tokens."
    text = f"{batch} requests of {q.isl} + {q.osl} tokens fit on a replica"
    within = _known(answers, "largest_batch_within", "batch")
    if within is not None:
        text += f", {within} of them within the time limits"
    isl = _known(answers, "longest_context", "isl")
    if isl is not None:
        text += f"; with {q.in_flight} in flight prompts may have {_tokens(isl)} tokens"
    return text + "."


def _tokens(isl: int) -> str:
    return f"{isl:,}" if isl < LONGEST else f"{LONGEST:,} or more"


def _facts(q: LimitsQuestion, answers: Mapping[str, Any], longest: int) -> Facts:
    """Show the answers with what they cost in time."""
    limits = " and ".join(f"{label} of {text_of('_s', q.limits[name])}" for name, label in _TIMES
                          if name in q.limits)  # fmt: skip
    titles = {"largest_batch": "largest batch", "largest_batch_within": f"largest within {limits}",
              "longest_context": f"longest prompt, {q.in_flight} in flight"}  # fmt: skip
    items = []
    for name in answers:
        value = _known(answers, name, "isl" if name == "longest_context" else "batch")
        text = DASH if value is None else _tokens(value) if name == "longest_context" else value
        note = "none"
        if value is not None:
            tpot, ttft = (text_of("_s", _known(answers, name, f"{k}_s")) for k in ("tpot", "ttft"))
            note = f"then TPOT {tpot}, TTFT {ttft}"
        term = "isl" if name == "longest_context" else "max_batch"
        items.append(Fact(titles[name], str(text), note, term))
    made_for = f"{longest:,}" if longest else DASH
    items.append(Fact("made for", made_for, "tokens that the network was trained to reach"))
    return Facts(tuple(items))


# ------------------------------------------------------------------------------------- curves


def _contexts(made: Made, s: Scenario) -> list[dict[str, Any]]:
    """Find the largest batch at prompts from short to the longest that one request may have."""
    one = replace(s, traffic=replace(s.traffic, batch=1))
    longest = longest_context(made, one)
    if not longest:
        return []
    grid = np.geomspace(min(_SHORTEST, longest), longest, _CONTEXTS)
    rows = []
    for isl in dict.fromkeys([*(int(v) for v in np.round(grid[:-1])), longest]):
        at = replace(s, traffic=replace(s.traffic, isl=isl))
        batch = largest_batch(made, at, machine_of(made, at).pinned)
        rows.append({"isl": isl, "max_batch": batch,
                     "tokens": batch * (isl + s.traffic.osl)})  # fmt: skip
    return rows


def _batches(made: Made, s: Scenario, most: int) -> list[dict[str, Any]]:
    """Solve times, throughput, power and memory at batches up to the largest that fits."""
    if most < 1:
        return []
    grid = np.unique(np.round(np.geomspace(1, most, _BATCHES)))
    try:
        found = solve_points(s, Points.of(grid, s.traffic.isl, s.traffic.osl), made)
    except RidgecastError:
        return []  # the answer at the largest batch has failed too, and says why
    pinned, devices = machine_of(made, s).pinned, made.layout.devices
    names = ("ttft", "ttft_low", "ttft_high", "tpot", "tpot_low", "tpot_high")
    return [
        plain({
            "batch": int(batch), **{f"{name}_s": float(found[name][i]) for name in names},
            "output_tokens_per_s_per_gpu": float(found["output_tokens_per_s"][i]) / devices,
            "power_w": float(found["power"][i]) / devices,
            "memory_bytes": memory_at(made, s, int(batch), pinned).total,
        })
        for i, batch in enumerate(grid)
    ]  # fmt: skip


def _context_figure(q: LimitsQuestion, rows: Sequence[Mapping[str, Any]], longest: int) -> Figure:
    """Draw the largest batch against context."""
    x, y = Axis("prompt", "tokens", "log"), Axis("largest batch", "", "log")
    known = [r for r in rows if r["max_batch"] > 0]
    caption = (
        f"Each prompt with {q.osl} output tokens. The last point is the longest prompt that one "
        "request may have."
    )
    if not known:
        panel = Panel("Largest batch", reason="not even one request fits")
        return Figure("contexts", "Batch against context", caption, (panel,))
    sizes = [r["max_batch"] for r in known]
    hover = [f"{r['isl']:,} tokens: {r['max_batch']:,} requests" for r in known]
    series = [Series("fits", [r["isl"] for r in known], sizes, "both", hover=hover)]
    ends = [min(sizes), max(sizes)] if len(set(sizes)) > 1 else [sizes[0], sizes[0] * 2]
    series.append(Series("this prompt", [q.isl, q.isl], ends, "guide"))
    if longest:
        series.append(Series(f"made for {longest:,}", [longest, longest], ends, "guide"))
    return Figure("contexts", "Batch against context", caption,
                  (Panel("Largest batch", x, y, tuple(series)),))  # fmt: skip


def _time_figure(q: LimitsQuestion, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw times per token and to the first one against requests in flight, with limits."""
    panels = []
    for name, label in _TIMES:
        if not rows:
            panels.append(Panel(label, reason="not even one request fits"))
            continue
        limit = q.limits.get(name)
        values = [[r[f"{name}{end}_s"] for r in rows] for end in ("", "_low", "_high")]
        flat, unit = scaled([*values[0], *values[1], *values[2], limit or 0.0], "time")
        size = len(rows)
        middle, low, high = (flat[i * size : (i + 1) * size] for i in range(3))
        batch = [r["batch"] for r in rows]
        hover = [f"{b} in flight: {text_of('_s', v)}" for b, v in zip(batch, values[0],
                                                                     strict=True)]  # fmt: skip
        series = [Series(label, batch, middle, "both", low, high, hover=hover)]
        if limit is not None:
            series.append(Series(f"limit, {text_of('_s', limit)}", [batch[0], batch[-1]],
                                 [flat[-1]] * 2, "guide"))  # fmt: skip
        panels.append(Panel(label, Axis("requests in flight", "", "log"), Axis(label, unit, "log"),
                            tuple(series)))  # fmt: skip
    caption = (
        f"At {q.isl} prompt and {q.osl} output tokens, up to the largest batch that fits; whiskers "
        "are 90 % intervals. Limits are held by the medians."
    )
    return Figure("batches", "Times against requests in flight", caption, tuple(panels))
