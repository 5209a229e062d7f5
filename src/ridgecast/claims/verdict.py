"""What a recipe may say, and the rules that turn it into a verdict: the same for every work.

A figure:

    reproduced      the published value lies in the recomputed range widened by the tolerance (15 %
                    unless the recipe says more, never above 30 %, and of a ratio never more than
                    half of the gain); "up to" figures: the largest recomputed value reaches it, the
                    smallest does not exceed it; "at least" figures: the smallest does. A range
                    that would hold almost any value (five times as wide as the published one, fifty
                    points of a percentage) reproduces nothing
    direction only  the change has the right sign, not the size (and is more than a hundredth of it)
    contradicted    neither; the recipe's note says why
    not modelled    the recipe says why it cannot be recomputed

A work: reproduced if at least half of its modelled figures are and none is contradicted;
contradicted if any is and fewer than half are reproduced; direction only otherwise; not modelled
where no figure is.

Owns these rules. Computes no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SpecError, nearest
from .ledger import Figure, Work

__all__ = [
    "CONTRADICTED",
    "DIRECTION",
    "NOT_MODELLED",
    "REPRODUCED",
    "VERDICTS",
    "Finding",
    "Found",
    "NotModelled",
    "Property",
    "index_of",
    "verdict_of_figure",
    "verdict_of_work",
]

REPRODUCED, DIRECTION = "reproduced", "direction only"
CONTRADICTED, NOT_MODELLED = "contradicted", "not modelled"
VERDICTS = (REPRODUCED, DIRECTION, CONTRADICTED, NOT_MODELLED)
DEFAULT_TOLERANCE, LARGEST_TOLERANCE = 0.15, 0.30
WIDEST, BEYOND, WIDEST_POINTS = 5.0, 5.0, 50.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure recomputed.

    `figure` is its place in the work's claims (from 0) or its metric where only one has that name.
    `recomputed` is a number, or the (low, high) that the parameter range gives, in the unit of the
    published figure. `at` says in words and numbers where the published value is reached, or where
    the recomputed one comes nearest; `range` which parameters were swept. `tolerance` is relative.
    `ceiling`: the published "up to" (or "at least") is a limit that the amount keeps, such as a
    latency below 40 ms, not an extreme that it reaches. `note` is needed where the verdict is
    `contradicted`: it says why.

    Raises SpecError for a tolerance beyond 30 %, or a number that is not finite.
    """

    figure: int | str
    recomputed: float | tuple[float, float]
    at: str
    tolerance: float = DEFAULT_TOLERANCE
    range: str = ""
    note: str = ""
    ceiling: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.tolerance <= LARGEST_TOLERANCE:
            raise SpecError(
                f"finding {self.figure!r}: tolerance {self.tolerance}, need 0 to "
                f"{LARGEST_TOLERANCE}"
            )
        low, high = self.ends
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise SpecError(
                f"finding {self.figure!r}: recomputed {self.recomputed}, need a finite number or "
                "(low, high)"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high end of what was recomputed."""
        value = self.recomputed
        low, high = value if isinstance(value, tuple) else (value, value)
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class NotModelled:
    """A figure that cannot be recomputed here, and why."""

    figure: int | str
    why: str


@dataclass(frozen=True, slots=True)
class Property:
    """A statement without a published number: whether it holds, and what shows it."""

    name: str
    holds: bool
    shown: str


Found = Finding | NotModelled | Property


def index_of(entry: Work, figure: int | str) -> int:
    """Place of a figure in a work's claims. Raises SpecError for one that it does not have."""
    metrics = [claim.metric for claim in entry.claims]
    if isinstance(figure, int):
        if not 0 <= figure < len(metrics):
            raise SpecError(f"{entry.id}: figure {figure}, need 0 to {len(metrics) - 1}")
        return figure
    count = metrics.count(figure)
    if count != 1:
        close = ", ".join(nearest(figure, metrics)) if count == 0 else "several have that name"
        raise SpecError(f"{entry.id}: figure {figure!r}, need a place or a metric; {close}")
    return metrics.index(figure)


def _room(figure: Figure, value: float, tolerance: float) -> float:
    """How far a recomputed value may lie from a published one.

    Of a ratio never more than half of the gain: 1.16 times is not reproduced by 1.0 times.
    """
    room = abs(value) * tolerance
    return min(room, 0.5 * abs(value - 1.0)) if figure.no_change == 1.0 else room


def _reached(figure: Figure, found: Finding) -> bool:
    """Whether the published value agrees with what was recomputed."""
    low, high = found.ends
    first, last = figure.ends
    near = _room(figure, first, found.tolerance)
    far = _room(figure, last, found.tolerance)
    if found.ceiling:
        return low >= first - near if figure.bound == "min" else high <= last + far
    if figure.bound == "min":
        return low >= first - near
    if figure.bound == "max":
        return low <= last + far and high >= last - far
    if low == high:
        return first - near <= low <= last + far
    return low <= first + near and high >= last - far


def _too_wide(figure: Figure, found: Finding) -> bool:
    """Whether the recomputed range would hold almost any published value.

    Ratios and amounts: more than WIDEST times as wide as the published range (of "up to" figures:
    its upper end more than BEYOND times the published one). Percentages: more than WIDEST_POINTS
    wider; those of "up to" figures end at 100 anyway.
    """
    low, high = found.ends
    first, last = figure.ends
    if low == high or found.ceiling or figure.bound == "min":
        return False
    if figure.unit.startswith("%"):
        return figure.bound != "max" and (high - low) - (last - first) > WIDEST_POINTS
    if figure.bound == "max":
        return high > BEYOND * last
    return low <= 0 or high / low > WIDEST * (last / first if first > 0 else 1.0)


def _same_way(figure: Figure, found: Finding) -> bool:
    """Whether both are gains, or both losses, at the best place; False for amounts.

    A hundredth of the published change is none.
    """
    neutral = figure.no_change
    if neutral is None:
        return False
    published = sum(figure.ends) / 2.0 - neutral
    best = max((end - neutral for end in found.ends), key=lambda change: change * published)
    return best * published > 0.01 * published**2


def verdict_of_figure(figure: Figure, found: Finding | NotModelled | None) -> str:
    """Verdict of one figure; None stands for a figure that the recipe does not mention.

    Raises SpecError where a contradicted figure comes without a note.

    >>> up_to = Figure("speedup_max", 3.0, "x")
    >>> verdict_of_figure(up_to, Finding(0, (1.2, 2.9), at="batch 64"))
    'reproduced'
    >>> verdict_of_figure(up_to, Finding(0, (1.2, 1.9), at="batch 64"))
    'direction only'
    """
    if found is None or isinstance(found, NotModelled):
        return NOT_MODELLED
    if _reached(figure, found):
        return DIRECTION if _too_wide(figure, found) else REPRODUCED
    if _same_way(figure, found):
        return DIRECTION
    if not found.note.strip():
        raise SpecError(f"{figure.metric}: contradicted ({found.recomputed}) without a note")
    return CONTRADICTED


def verdict_of_work(verdicts: Sequence[str]) -> str:
    """Verdict of a work from those of its figures.

    >>> verdict_of_work(["reproduced", "direction only", "not modelled"])
    'reproduced'
    """
    modelled = [verdict for verdict in verdicts if verdict != NOT_MODELLED]
    if not modelled:
        return NOT_MODELLED
    enough = 2 * modelled.count(REPRODUCED) >= len(modelled)
    against = CONTRADICTED in modelled
    if enough and not against:
        return REPRODUCED
    return CONTRADICTED if against and not enough else DIRECTION
