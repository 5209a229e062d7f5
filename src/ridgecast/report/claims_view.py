"""What the literature claims beside what the models make of it: all works, or one in detail.

Verdicts and numbers are those of the room `claims`; nothing is recomputed here but by `claim_view`,
which runs one recipe and tells what it asks of the models, with the pages that answer the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..claims import Checked, Line, check_all
from ..claims.asked import Recorded, record
from ..claims.verdict import CONTRADICTED, NOT_MODELLED, VERDICTS
from ..errors import SpecError
from ..units import format_number
from .claims_asked import page_of
from .figures import Axis, Figure, Panel, Series
from .questions_claims import ClaimsQuestion, works_asked
from .view import Block, Fact, Facts, Heading, Rows, View, Words

__all__ = ["claim_view", "claims_page", "claims_view"]

_LIMITS = (
    "Recipes were written with the published figures in view, and where a work leaves sizes, "
    "devices or baselines open, so was the range that is swept: reproduced says that the models "
    "reach a figure under stated, plausible conditions, not that they foretold it."
)
_MEANINGS = {
    "reproduced": "the published value lies in what was recomputed, within the tolerance",
    "direction only": "a gain where a gain was published, of another size",
    "contradicted": "neither; the reason is given",
    "not modelled": "cannot be recomputed here; the reason is given",
}


def claims_view(checked: Sequence[Checked], *, q: ClaimsQuestion) -> View:
    """Show recomputed works: those that the question is about, with its verdict.

    `checked` may be some of the ledger while others are still being recomputed; the answer is then
    of those. Raises SpecError for a domain that the ledger does not have.
    """
    asked = {entry.id for entry in works_asked(q)}
    here = [one for one in checked if one.id in asked]
    chosen = [one for one in here if q.verdict in ("", one.verdict)]
    modelled = [one for one in chosen if one.verdict != NOT_MODELLED]
    others = [one for one in chosen if one.verdict == NOT_MODELLED]
    blocks: list[Block] = [_counts(here)]
    if len(here) < len(asked):
        left = len(asked) - len(here)
        blocks.append(Words((f"{left} more works are not recomputed yet.",), tone="warning"))
    blocks += [_agreement(chosen), _domains(chosen)]
    told = (
        ("works", "Published beside recomputed", modelled, True),
        ("not_modelled", "Not modelled", others, q.verdict == NOT_MODELLED),
    )
    blocks += [Rows(name, title, _rows(ones), links={"work": "address"}, headings=_HEADINGS,
                    open=unfolded) for name, title, ones, unfolded in told if ones]  # fmt: skip
    blocks.append(Words((_LIMITS,), title="What this does not show"))
    return View(
        "claims", _title(q), tuple(blocks),
        lead=f"{len(here)} published works, every figure recomputed by the models that answer any "
             "other question; no constant is set for a claim.",
        answer=[one.to_dict() for one in chosen], command=q.command(), python=q.python(),
        address=q.address(), pending=len(asked) - len(here),
    )  # fmt: skip


def claims_page(q: ClaimsQuestion, *, model: object = None) -> View:
    """Recompute one work, or all that a question is about; works do not take another `model`.

    Raises SpecError for a work or a domain that the ledger does not have, or for a model folder.
    """
    if model is not None:
        raise SpecError("model: claims are recomputed with the shipped models; leave --model out")
    if q.work:
        return claim_view(q.work)
    return claims_view(check_all([entry.id for entry in works_asked(q)]), q=q)


def _title(q: ClaimsQuestion) -> str:
    said = [q.verdict, f"in {q.domain}" if q.domain else "", f"“{q.text}”" if q.text else ""]
    return ": ".join(["What the literature claims, recomputed", " ".join(filter(None, said))]
                     if any(said) else ["What the literature claims, recomputed"])  # fmt: skip


def claim_view(name: str) -> View:
    """Recompute one work and show every figure, how it is recomputed, and what that asks.

    Raises SpecError for an id that the ledger does not have, with the nearest three.
    """
    found = record(name)
    one, entry = found.checked, found.checked.work
    q = ClaimsQuestion(work=entry.id)
    rows = [_line(line) | {"where": line.at, "range": line.range, "why": line.why,
                           "baseline": line.baseline, "workload": line.workload,
                           "tolerance_share": line.tolerance}
            for line in one.figures]  # fmt: skip
    blocks: list[Block] = [_standing(one), Words((entry.mechanism,), title="What it changes")]
    if one.why:
        contradicted = one.verdict == CONTRADICTED
        blocks.append(Words((one.why,), tone="warning" if contradicted else "plain"))
    blocks.append(Rows("figures", "Its figures", rows, headings=_HEADINGS))
    if any(_drawn(line) for line in one.figures):
        blocks.append(_agreement([one]))
    blocks += _recipe(found)
    return View(
        "claims", entry.title, tuple(blocks), lead=entry.shows, answer=[one.to_dict()],
        command=q.command(), python=q.python(), address=q.address(),
    )  # fmt: skip


# --------------------------------------------------------------------------------- facts, tables

_HEADINGS = {"where": "where it is reached", "why": "why", "range": "swept",
             "tolerance_share": "tolerance"}  # fmt: skip


def _value(value: Any, unit: str) -> str:
    """Text of a number, of two ends, or of whether a property holds, with its unit."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "holds" if value else "does not hold"
    if isinstance(value, tuple):
        low, high = (format_number(end) for end in value)
        text = low if low == high else f"{low} to {high}"
    else:
        text = format_number(value)
    return f"{text} {unit}".strip()


def _line(line: Line) -> dict[str, Any]:
    return {
        "figure": line.metric.replace("_", " "),
        "published": _value(line.published, line.unit),
        "recomputed": _value(line.recomputed, line.unit),
        "verdict": line.verdict,
    }


def _rows(checked: Iterable[Checked]) -> list[dict[str, Any]]:
    """One row a work: the figure that decides."""
    rows: list[dict[str, Any]] = []
    for one in checked:
        top = one.headline
        told = {} if top is None else _line(top) | {"where": top.at}
        why = one.why.splitlines()[0] if one.why else ""
        rows.append({"work": one.id, "title": one.work.title, "domain": one.work.domain, **told,
                     "verdict": one.verdict, "why": why,
                     "address": ClaimsQuestion(work=one.id).address()})  # fmt: skip
    return rows


def _counts(checked: Sequence[Checked]) -> Facts:
    counts = {name: sum(one.verdict == name for one in checked) for name in VERDICTS}
    items = [Fact(name, f"{n:,}", _MEANINGS[name]) for name, n in counts.items()]
    return Facts(tuple(items))


def _standing(one: Checked) -> Facts:
    entry = one.work
    items = [Fact("verdict", one.verdict, _MEANINGS[one.verdict]),
             Fact("domain", entry.domain), Fact("kind", entry.kind),
             Fact("source", entry.source or "not certain"),
             Fact("figures", f"{len(entry.claims):,}", "that it publishes")]  # fmt: skip
    return Facts(tuple(items))


def _recipe(found: Recorded) -> list[Block]:
    """How a work is recomputed, and what that asks of the models."""
    if not found.function:
        return []
    blocks: list[Block] = [Heading("How it is recomputed")]
    words = [" ".join(part.split()) for part in found.words.split("\n\n")]
    blocks.append(Words((*words, f"The recipe is {found.function}.")))
    if not found.asked:
        told = ("It asks the models for no time, memory or energy: catalogue figures of devices "
                "and counts of operations and bytes are enough.")  # fmt: skip
        return [*blocks, Words((told,))]
    rows = [_asked_row(one) for one in found.asked]
    more = f" {found.left_out} more are left out." if found.left_out else ""
    caption = "Each row is one question, with what was swept in it; the page asks it again." + more
    blocks.append(Rows("asked", "What was asked of the models", rows, caption=caption,
                       links={"of": "address"}, headings=_ASKED))  # fmt: skip
    return blocks


_ASKED = {"of": "model or operation", "note": "on its page"}


def _asked_row(one: Any) -> dict[str, Any]:
    page = page_of(one)
    return {"asked": one.what, "of": one.of, "on": one.on, "how": one.how, "sizes": one.sizes,
            "batch": one.batch, "note": _note(page.address, page.note),
            "address": page.address or None}  # fmt: skip


def _note(address: str, note: str) -> str:
    return note if address or not note else f"none: {note}"


# -------------------------------------------------------------------------------------- figures


def _drawn(line: Line) -> bool:
    """Whether a figure is a ratio that was recomputed: what one pair of axes can hold."""
    return (
        (line.unit == "x" or line.unit.startswith("x ("))
        and line.published is not None
        and line.recomputed is not None
        and not isinstance(line.recomputed, bool)
        and min(*_ends(line.published), *_ends(line.recomputed)) > 0
    )


def _ends(value: Any) -> tuple[float, float]:
    low, high = value if isinstance(value, tuple) else (value, value)
    return float(low), float(high)


def _middle(value: Any) -> float:
    low, high = _ends(value)
    return (low * high) ** 0.5


def _agreement(checked: Iterable[Checked]) -> Figure:
    """Recomputed over published ratios on log axes, coloured by verdict."""
    lines = [(one, line) for one in checked for line in one.figures if _drawn(line)]
    title, name = "Ratios: recomputed against published", "agreement"
    if not lines:
        reason = "no ratio was recomputed"
        return Figure(name, title, "", (Panel(title, reason=reason),))
    series = []
    for verdict in VERDICTS:
        own = [(one, line) for one, line in lines if line.verdict == verdict]
        if not own and verdict == NOT_MODELLED:
            continue  # the others keep their place, and with it their colour
        ends = [_ends(line.recomputed) for _, line in own]
        hover = [f"{one.id}: {line.metric.replace('_', ' ')}; published "
                 f"{_value(line.published, line.unit)}, recomputed "
                 f"{_value(line.recomputed, line.unit)}" for one, line in own]  # fmt: skip
        series.append(Series(
            verdict, [_middle(line.published) for _, line in own],
            [_middle(line.recomputed) for _, line in own], low=[low for low, _ in ends],
            high=[high for _, high in ends], hover=hover,
        ))  # fmt: skip
    values = [_middle(line.published) for _, line in lines]
    values += [end for _, line in lines for end in _ends(line.recomputed)]
    reach = [min(values), max(values)]
    series.append(Series("equal", reach, reach, style="guide"))
    panel = Panel("ratios", Axis("published", "×", "log"), Axis("recomputed", "×", "log"),
                  tuple(series))  # fmt: skip
    caption = ("Every figure in × that was recomputed; bars reach from end to end of the swept "
               "range, ranges are drawn at their geometric middle.")  # fmt: skip
    return Figure(name, title, caption, (panel,))


def _domains(checked: Sequence[Checked]) -> Figure:
    """Works by domain, each bar parted by verdict."""
    counts: dict[str, dict[str, int]] = {}
    for one in checked:
        own = counts.setdefault(one.work.domain, dict.fromkeys(VERDICTS, 0))
        own[one.verdict] += 1
    order = sorted(counts, key=lambda name: (-sum(counts[name].values()), name))
    title, name = "Works by domain and verdict", "domains"
    if not order:
        return Figure(name, title, "", (Panel(title, reason="no work is chosen"),))
    base = [0] * len(order)
    series = []
    for verdict in VERDICTS:
        found = [counts[domain][verdict] for domain in order]
        if any(found):
            series.append(_stacked(verdict, found, base, counts, order))
        base = [a + b for a, b in zip(base, found, strict=True)]
    panel = Panel("works", Axis("works"), Axis("", "", "category", tuple(order)), tuple(series),
                  horizontal=True)  # fmt: skip
    return Figure(name, title, "", (panel,))


def _stacked(
    verdict: str, found: Sequence[int], base: Sequence[int],
    counts: Mapping[str, Mapping[str, int]], order: Sequence[str],
) -> Series:  # fmt: skip
    hover = [f"{domain}: {n} of {sum(counts[domain].values())} {verdict}"
             for domain, n in zip(order, found, strict=True)]  # fmt: skip
    return Series(verdict, range(len(order)), found, "stack", base=list(base), hover=hover)
