"""The kinds of views that can be asked for: their questions and the functions that answer them.

One literal table; what it names is loaded on first use. The command `report` and the web page are
made of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import SpecError, unknown_name
from .view import View

__all__ = ["KINDS", "Kind", "kind"]

# name -> (question, view, what it shows)
KINDS: dict[str, tuple[str, str, str]] = {
    "gemm": ("questions:GemmQuestion", "gemm_view:gemm_view",
             "Predict and explain one multiplication, beside other devices and what-ifs."),
    "advice": ("questions:AdviceQuestion", "gemm_view:advice_view",
               "Changes of the work that would gain time, predicted again."),
    "heat": ("questions:HeatQuestion", "heat_view:heat_view",
             "Map it over two knobs: sizes, tiles, numbers of the device."),
    "tune": ("questions:TuneQuestion", "gemm_view:tune_view",
             "Rank the configurations of a kernel: fastest against cheapest."),
    "llm": ("questions:LlmQuestion", "llm_view:llm_view",
            "Memory, latency, throughput, power, energy and cost of a model in service."),
    "waterfall": ("questions_llm:WaterfallQuestion", "llm_waterfall:waterfall_view",
                  "What each technique changes, one after another."),
    "limits": ("questions_llm:LimitsQuestion", "llm_limits:limits_view",
               "Largest batch, longest context, largest batch within latency limits."),
    "plan": ("questions_llm:PlanQuestion", "llm_plan:plan_view",
             "Search devices, layouts, formats and batches; Pareto set and reasons."),
    "claims": ("questions_claims:ClaimsQuestion", "claims_view:claims_page",
               "Published figures beside recomputed ones."),
    "accuracy": ("questions_accuracy:AccuracyQuestion", "accuracy_view:accuracy_view",
                 "Scores by split, parity plots, coverage, label floor."),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of view: the type of its question, and `view(question, model=FOLDER or None)`."""

    name: str
    question: type[Any]
    view: Callable[..., View]
    what: str


def kind(name: str) -> Kind:
    """Look up a kind. Raises SpecError with the nearest three names."""
    if name not in KINDS:
        raise SpecError(unknown_name("report", name, KINDS, f"Allowed: {', '.join(KINDS)}."))
    question, view, what = KINDS[name]
    return Kind(name, _load(question), _load(view), what)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)
