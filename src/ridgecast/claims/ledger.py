"""The ledger: published works and the figures that they claim, as data.

Reads `ledger.jsonl`, one work a line. Knows no verdict and computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import SpecError, unknown_name

__all__ = ["Figure", "Published", "Work", "work", "works"]

Published = float | tuple[float, float]
"""A number, or the two ends of a range, as published."""
_CHANGES = ("reduction", "gain", "saving", "increase", "decrease", "improvement", "speedup")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as published.

    The suffix of `metric` says how to read `value`: _max "up to", _min "at least", _mean an
    average, _approx about, _before the baseline's own value. `baseline` marked "(implied)" is not
    spelled out by the source. `caution` says why a figure should not be relied on.
    """

    metric: str
    value: Published
    unit: str
    baseline: str = ""
    hardware: str = ""
    workload: str = ""
    caution: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high end; the same number twice where one was published."""
        return self.value if isinstance(self.value, tuple) else (self.value, self.value)

    @property
    def no_change(self) -> float | None:
        """The value that would mean "nothing gained": 1 of a ratio, 0 of a change in per cent.

        None where the figure is an amount (GB, tokens/s, a share), which has no direction.
        """
        if self.unit == "x" or self.unit.startswith("x ("):
            return 1.0
        changes = any(word in self.metric for word in _CHANGES) or "lower" in self.unit
        return 0.0 if self.unit.startswith("%") and changes else None

    @property
    def bound(self) -> str:
        """Reading of the value: "max" (up to), "min" (at least) or ""."""
        return next((end for end in ("max", "min") if self.metric.endswith(f"_{end}")), "")


@dataclass(frozen=True, slots=True)
class Work:
    """A published work.

    `kind` is what it is (technique, kernel, predictor ...), `levers` what it saves, `mechanism`
    what changes in a cost model, `shows` what a model would have to show. `fit` is core (a claim
    can be recomputed), catalog (a workload or machine to describe), weak, or out (no resource
    content). `source` is an arXiv id or a venue where one is certain.
    """

    id: str
    title: str
    kind: str
    domain: str
    fit: str
    levers: tuple[str, ...]
    mechanism: str
    shows: str
    claims: tuple[Figure, ...]
    source: str = ""
    caution: str = ""

    def says(self, words: str) -> bool:
        """Whether id, title, mechanism, kind, source, domain or levers hold all of the words."""
        told = " ".join([self.id, self.title, self.mechanism, self.kind, self.source, self.domain,
                         *self.levers]).lower()  # fmt: skip
        return all(word in told for word in words.lower().split())


def _figure(row: Mapping[str, Any]) -> Figure:
    value = row["value"]
    ends = (float(value[0]), float(value[1])) if isinstance(value, list) else float(value)
    return Figure(**{**row, "value": ends})


def _work(row: dict[str, Any]) -> Work:
    claims = tuple(_figure(claim) for claim in row["claims"])
    return Work(**{**row, "levers": tuple(row["levers"]), "claims": claims})


@lru_cache(maxsize=1)
def _ledger() -> Mapping[str, Work]:
    text = Path(__file__).with_name("ledger.jsonl").read_text(encoding="utf-8")
    found = (_work(json.loads(line)) for line in text.splitlines())
    return {entry.id: entry for entry in found}


def works() -> tuple[Work, ...]:
    """Return all published works, in the order of the ledger.

    >>> len(works())
    346
    """
    return tuple(_ledger().values())


def work(name: str) -> Work:
    """Return one work by its id. Raises SpecError with the nearest three.

    >>> work("kivi").source
    'arXiv:2402.02750'
    """
    ledger = _ledger()
    if name not in ledger:
        listed = "`ridgecast claims` lists those that are recomputed."
        raise SpecError(unknown_name("work", name, ledger, listed))
    return ledger[name]
