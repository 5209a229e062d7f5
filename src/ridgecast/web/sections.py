"""The pages and their sections: which question stands where, and which view answers it.

One table of everything that the web shows; routes, forms and pages are made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..report.kinds import kind
from ..report.view import View

if TYPE_CHECKING:
    from .desk import Desk

__all__ = ["Page", "Section", "pages", "sections"]


@dataclass(frozen=True, slots=True)
class Section:
    """One view of a page: the type of its question and the function that answers it.

    `controls` are fields of the question that stand at the section itself and not in the page's
    form. `slow` questions have a lane of their own; answers that change in time are not `kept`.
    `instant` ones take milliseconds: less than a thread of their own would cost under load.
    """

    name: str
    title: str
    endpoint: str
    question: type[Any]
    view: Callable[[Any, Desk], View]
    what: str
    controls: tuple[str, ...] = ()
    slow: bool = False
    kept: bool = True
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its place in the navigation and its sections, the first of which comes rendered."""

    name: str
    title: str
    sections: tuple[Section, ...] = ()
    form: bool = True

    @property
    def slow(self) -> bool:
        """Whether its first answer is a slow one."""
        return bool(self.sections) and self.sections[0].slow


def _of(
    name: str, title: str, endpoint: str, *, controls: tuple[str, ...] = (), **pace: bool
) -> Section:
    """Section of a kind of view."""
    found = kind(name)

    def view(q: Any, desk: Desk) -> View:
        return found.view(q, model=desk.settings.model)

    return Section(name, title, endpoint, found.question, view, found.what, controls, **pace)


def _claims(q: Any, desk: Desk) -> View:
    from ..report.claims_view import claim_view, claims_view

    return claim_view(q.work) if q.work else claims_view(desk.claims.checked(), q=q)


def _reports(q: Any, desk: Desk) -> View:
    from .reports import report_view

    return report_view(q, desk.settings.reports)


@lru_cache(maxsize=1)
def pages() -> Mapping[str, Page]:
    """Every page by name, in the order of the navigation."""
    from .reports import ReportQuestion

    claims = kind("claims")
    every = (
        Page("gemm", "GEMM", (
            _of("gemm", "GEMM bench", "/api/gemm", instant=True),
            _of("advice", "What would make it better", "/api/gemm/advice"),
            _of("heat", "Heat map", "/api/gemm/heat", controls=("y", "x", "show")),
            _of("tune", "Configurations", "/api/gemm/tune", controls=("objective", "top")),
        )),
        Page("llm", "Models", (
            _of("llm", "Model planner", "/api/llm"),
            _of("waterfall", "Technique by technique", "/api/llm/waterfall",
                controls=("quantity",), slow=True),
            _of("limits", "How far it goes", "/api/llm/limits", controls=("tpot", "ttft"),
                slow=True),
        )),
        Page("plan", "Plan", (
            _of("plan", "Cheapest service within limits", "/api/plan", slow=True),
        )),
        Page("claims", "Claims", (
            Section("claims", "What the literature claims", "/api/claims", claims.question, _claims,
                    claims.what + " What is still being recomputed is counted, and comes later.",
                    kept=False),
        )),
        Page("accuracy", "Accuracy", (
            _of("accuracy", "Accuracy on held-out rows", "/api/accuracy"),
        )),
        Page("reports", "Reports", (
            Section("reports", "Studies and campaigns", "/api/reports", ReportQuestion, _reports,
                    "Reports in the folders that the server was started with.", kept=False),
        ), form=False),
        Page("table", "Table", form=False),
    )  # fmt: skip
    return {page.name: page for page in every}


def sections() -> list[Section]:
    """Sections of all pages."""
    return [section for page in pages().values() for section in page.sections]
