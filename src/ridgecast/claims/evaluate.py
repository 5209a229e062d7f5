"""Running recipes: each work of the ledger gets a verdict, whatever its recipe does.

Owns what leaves the room: `Checked` with its lines, and their JSON form. A recipe that refuses
(any RidgecastError) leaves its work `not modelled` with the message. Nothing is kept on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import RidgecastError, SpecError
from .ledger import Figure, Published, Work, work, works
from .recipes import RECIPES
from .verdict import (
    CONTRADICTED,
    NOT_MODELLED,
    REPRODUCED,
    Finding,
    Found,
    NotModelled,
    Property,
    index_of,
    verdict_of_figure,
    verdict_of_work,
)

__all__ = ["Checked", "Line", "check", "check_all"]

FAILED = "its recipe failed"
_NO_RECIPE = {
    "core": "no recipe yet",
    "catalog": "a workload, machine or benchmark to describe, without a claim to recompute",
    "weak": "too little is stated to recompute a claim",
    "out": "no resource content",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One figure or property of a work: as published, as recomputed, and what follows.

    `published` and `recomputed` are numbers or (low, high) in `unit`; of a property, None and
    whether it holds. `at` says where the published value is reached, `range` what was swept.
    """

    metric: str
    verdict: str
    published: Published | None = None
    recomputed: float | tuple[float, float] | bool | None = None
    unit: str = ""
    at: str = ""
    range: str = ""
    why: str = ""
    tolerance: float | None = None
    baseline: str = ""
    workload: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """A work with its verdict and a line for each figure; `headline` is the line that decides."""

    work: Work
    verdict: str
    why: str
    figures: tuple[Line, ...]

    @property
    def id(self) -> str:
        """Id of the work."""
        return self.work.id

    @property
    def headline(self) -> Line | None:
        """First line with the verdict of the work, else the first modelled one, else the first."""
        same = (line for line in self.figures if line.verdict == self.verdict)
        modelled = (line for line in self.figures if line.verdict != NOT_MODELLED)
        return next(same, None) or next(modelled, None) or next(iter(self.figures), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `id verdict published recomputed` of the headline, and every figure."""
        top, entry = self.headline or Line("", self.verdict), self.work
        return {
            "id": entry.id, "title": entry.title, "domain": entry.domain, "fit": entry.fit,
            "source": entry.source or None, "verdict": self.verdict, "why": self.why or None,
            "metric": top.metric or None, "published": top.published,
            "recomputed": top.recomputed, "unit": top.unit or None, "at": top.at or None,
            "figures": [_line_dict(line) for line in self.figures],
        }  # fmt: skip


def _line_dict(line: Line) -> dict[str, Any]:
    values = {name: getattr(line, name) for name in Line.__slots__}
    return {name: None if value == "" else value for name, value in values.items()}


def _why(found: Finding | NotModelled | None, verdict: str) -> str:
    if found is None:
        return "its recipe does not treat it"
    if isinstance(found, NotModelled):
        return found.why
    return found.note if verdict != REPRODUCED or found.note else ""


def _line(figure: Figure, found: Finding | NotModelled | None) -> Line:
    verdict = verdict_of_figure(figure, found)
    why = "; ".join(part for part in (_why(found, verdict), figure.caution) if part)
    line = Line(figure.metric, verdict, figure.value, unit=figure.unit, why=why,
                baseline=figure.baseline, workload=figure.workload)  # fmt: skip
    if not isinstance(found, Finding):
        return line
    return Line(figure.metric, verdict, figure.value, found.recomputed, figure.unit, found.at,
                found.range, why, found.tolerance, figure.baseline, figure.workload)  # fmt: skip


def _property(found: Property) -> Line:
    verdict = REPRODUCED if found.holds else CONTRADICTED
    why = "" if found.holds else f"does not hold: {found.shown}"
    return Line(found.name, verdict, recomputed=found.holds, at=found.shown, why=why)


def judge(entry: Work, found: Sequence[Found]) -> Checked:
    """Judge what a recipe found.

    Properties decide where a work has no modelled figure; elsewhere they are shown.
    Raises SpecError for a figure that the work does not have, or that is found twice.
    """
    of_figure: dict[int, Finding | NotModelled] = {}
    for item in found:
        if isinstance(item, Property):
            continue
        place = index_of(entry, item.figure)
        if place in of_figure:
            raise SpecError(f"{entry.id}: figure {item.figure!r} is found twice")
        of_figure[place] = item
    lines = [_line(figure, of_figure.get(i)) for i, figure in enumerate(entry.claims)]
    extra = [_property(item) for item in found if isinstance(item, Property)]
    modelled = any(line.verdict != NOT_MODELLED for line in lines)
    verdict = verdict_of_work([line.verdict for line in (lines if modelled else extra)])
    reasons = (line.why for line in [*lines, *extra] if line.verdict == verdict and line.why)
    why = "" if verdict == REPRODUCED else next(reasons, "")
    return Checked(entry, verdict, why, (*lines, *extra))


def _not_modelled(entry: Work, why: str) -> Checked:
    lines = tuple(
        Line(f.metric, NOT_MODELLED, f.value, unit=f.unit, why=f.caution, baseline=f.baseline,
             workload=f.workload) for f in entry.claims
    )  # fmt: skip
    return Checked(entry, NOT_MODELLED, why, lines)


def recipe_of(name: str) -> Any:
    """Load the function that recomputes a work. Raises SpecError for a work without one."""
    if name not in RECIPES:
        raise SpecError(f"{work(name).id}: no recipe; those with one: {', '.join(RECIPES)}")
    module, _, function = RECIPES[name].partition(":")
    return getattr(import_module(f".recipes.{module}", __package__), function)


def check(name: str) -> Checked:
    """Recompute one work.

    Raises SpecError for an id that the ledger does not have, with the nearest three. A recipe that
    refuses, or fails, does not raise: its work is then `not modelled`, with the message.
    """
    entry = work(name)
    if name not in RECIPES:
        return _not_modelled(entry, entry.caution or _NO_RECIPE[entry.fit])
    try:
        return judge(entry, recipe_of(name)())
    except RidgecastError as error:
        return _not_modelled(entry, str(error))
    except Exception as error:
        return _not_modelled(entry, f"{FAILED}, please report it: {error!r}")


def check_all(names: Iterable[str] | None = None) -> list[Checked]:
    """Recompute these works, by default all of the ledger in its order."""
    wanted = [entry.id for entry in works()] if names is None else list(names)
    return [check(name) for name in wanted]
