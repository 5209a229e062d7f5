"""A technique: a published method as a transform of a `Treatment`, with its parameters and source.

Owns the record `Technique`, the application of several in order, and what excludes what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InfeasibleError, SpecError, unknown_name
from .treatment import Treatment

__all__ = ["Parameter", "Technique", "apply_all", "parse"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number that a technique leaves open: its default, its range and what it means."""

    default: float
    low: float
    high: float
    what: str


@dataclass(frozen=True, slots=True)
class Technique:
    """One published method. `change(treatment, values)` returns the treatment with it applied.

    `sets` names the fields of the treatment that it owns ("weights", "kv.storage" ...): two
    techniques that own one field exclude each other. `needs` says in one line when it applies.
    """

    id: str
    title: str
    what: str
    source: str
    change: Callable[[Treatment, Mapping[str, float]], Treatment]
    sets: tuple[str, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])
    needs: str = ""

    def values(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return all parameters, defaults filled in. Raises SpecError for unknown or bad ones."""
        out = {name: p.default for name, p in self.parameters.items()}
        for name, value in given.items():
            if name not in self.parameters:
                raise SpecError(unknown_name(f"{self.id} parameter", name, tuple(self.parameters)))
            p = self.parameters[name]
            if not p.low <= value <= p.high:
                raise SpecError(
                    f"{self.id}.{name}: got {value:g}, need {p.low:g} to {p.high:g} ({p.what})"
                )
            out[name] = float(value)
        return out

    def apply(self, treatment: Treatment, **given: float) -> Treatment:
        """Apply it on top of `treatment`."""
        done = self.change(treatment, self.values(given))
        return replace(done, techniques=(*treatment.techniques, self.id))


def apply_all(
    chosen: Sequence[tuple[Technique, Mapping[str, float]]], start: Treatment | None = None
) -> Treatment:
    """Apply techniques in order. Raises InfeasibleError where two set the same field."""
    owner: dict[str, str] = {}
    treatment = start or Treatment()
    for technique, given in chosen:
        for name in technique.sets:
            if name in owner:
                raise InfeasibleError(
                    f"techniques: {owner[name]} and {technique.id} exclude each other, both set "
                    f"{name}; keep one of them"
                )
            owner[name] = technique.id
        treatment = technique.apply(treatment, **given)
    return treatment


def parse(text: str) -> list[tuple[str, dict[str, float]]]:
    """Read "kivi:bits=2,marlin" into names and parameters.

    >>> parse("kivi:bits=4:group=64,sarathi")
    [('kivi', {'bits': 4.0, 'group': 64.0}), ('sarathi', {})]
    """
    out: list[tuple[str, dict[str, float]]] = []
    for word in (w.strip() for w in text.split(",")):
        if not word:
            continue
        name, *rest = word.split(":")
        given: dict[str, Any] = {}
        for pair in rest:
            key, sign, value = pair.partition("=")
            try:
                given[key.strip()] = float(value)
            except ValueError:
                sign = ""
            if not sign:
                raise SpecError(f"technique {name}: got {pair!r}, need parameter=number")
        out.append((name.strip(), given))
    return out
