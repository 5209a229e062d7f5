"""One measured point: what `measure` answers, beside the prediction of the same point.

Owns the figures of one row; sweeps are `campaign_view`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..measure.shards import table_of
from ..units import format_quantity
from .campaign_figures import configuration_text, shape_text
from .campaign_rows import predictions
from .figures import Axis, Figure, Panel, Series
from .scaled import scaled
from .view import Block, Fact, Facts, Rows, View, Words, plain

__all__ = ["measured_view"]

_QUANTILES = (("least", "time_low_s"), ("10 %", "time_p10_s"), ("median", "time_s"),
              ("90 %", "time_p90_s"), ("most", "time_high_s"))  # fmt: skip
# quantity -> column, its unit's ending, and the ends of its spread where samples give one
_QUANTITIES = (("time", "s", ("time_p10_s", "time_p90_s")), ("power", "w", ()),
               ("energy", "j", ()))  # fmt: skip


def measured_view(row: Mapping[str, Any], *, command: str = "") -> View:
    """Show a measured row, as `measure --json` prints it: its samples, and what was predicted."""
    table = table_of([dict(row)])
    guess = {name: plain(values[0]) for name, values in predictions(table).items()}
    work = " ".join(filter(None, (shape_text(table, 0), str(row["dtype"]), str(row["kernel"]),
                                  configuration_text(table, 0))))  # fmt: skip
    blocks: list[Block] = []
    if row["status"] != "ok" or not row["valid"]:
        told = row["reason"] or "no reason was given"
        blocks.append(Words((f"{row['status']}, not valid: {told}",), tone="warning"))
    blocks.append(_facts(row, guess))
    if row.get("time_s") is not None:
        blocks += [_beside(row, guess), _samples(row)]
    held = [{"column": k, "value": str(v)} for k, v in row.items() if v is not None and v != ""]
    blocks.append(Rows("row", "The row", held, open=False))
    return View("measured", f"{work} on {row['device']}", tuple(blocks),
                lead=f"measured with {row['provider']}, environment {row['environment']}",
                answer=row, command=command)  # fmt: skip


def _unpredicted(guess: Mapping[str, Any]) -> str:
    """Why there is no prediction; "" where there is one."""
    if guess.get("status") == "ok" and guess.get("time_s") is not None:
        return ""
    return str(guess.get("reason") or "no reason was given").rstrip(".")


def _unmeasured(row: Mapping[str, Any], name: str) -> str:
    """Why a quantity was not measured."""
    if name == "time" or row.get("energy"):
        return str(row.get("reason") or "no valid reading")
    return "not asked for, see --energy"


def _facts(row: Mapping[str, Any], guess: Mapping[str, Any]) -> Facts:
    samples = row.get("samples")
    noted = f"median of {samples:.0f}" if samples else _unmeasured(row, "time")
    items = [
        Fact("time", format_quantity(row.get("time_s"), "time"), noted),
        Fact("rate", format_quantity(row.get("flops_per_s"), "flops_per_s"), "at the median"),
    ]
    for name, unit, _ in _QUANTITIES[1:]:
        value = row.get(f"{name}_{unit}")
        note = "of sustained runs" if value is not None else _unmeasured(row, name)
        items.append(Fact(name, format_quantity(value, name), note))
    items.append(Fact("predicted", format_quantity(guess.get("time_s"), "time"),
                      _unpredicted(guess) or f"basis {guess.get('basis')}"))  # fmt: skip
    return Facts(tuple(items))


def _samples(row: Mapping[str, Any]) -> Figure:
    """Quantiles of the samples."""
    title = "Samples"
    known = [(name, row[key]) for name, key in _QUANTILES if row.get(key) is not None]
    values, unit = scaled([value for _, value in known], "time")
    panel = Panel("Quantiles of the time", Axis("time", unit),
                  Axis("", "", "category", tuple(name for name, _ in known)),
                  (Series("", range(len(known)), values, "bars",
                          labels=[format_quantity(v, "time") for _, v in known]),),
                  horizontal=True)  # fmt: skip
    told = [f"{row[key]:.0f} {text}" for key, text in (("samples", "samples"), (
        "throttled_samples", "dropped as throttled")) if row.get(key) is not None]  # fmt: skip
    told += [f"ended by {row['stopped_by']}"] if row.get("stopped_by") else []
    return Figure("samples", title, ", ".join(told), (panel,))


def _beside(row: Mapping[str, Any], guess: Mapping[str, Any]) -> Figure:
    """Each measured quantity beside its prediction and, of the time, the speed of light."""
    panels = tuple(_panel(row, guess, name, unit, ends) for name, unit, ends in _QUANTITIES)
    caption = ("Measured: the median, its whiskers the samples from 10 to 90 %. Predicted: "
               "whiskers are 90 % intervals.")  # fmt: skip
    why = _unpredicted(guess)
    if why:
        caption = f"The median, its whiskers the samples from 10 to 90 %. Not predicted: {why}."
    for reason in dict.fromkeys(p.reason for p in panels if p.reason):
        lost = ", ".join(p.title for p in panels if p.reason == reason)
        caption += f" Not shown ({reason}): {lost}."
    return Figure("beside", "Measured" + ("" if why else " beside predicted"), caption, panels)


def _panel(
    row: Mapping[str, Any], guess: Mapping[str, Any], name: str, unit: str, ends: tuple[str, ...]
) -> Panel:
    key, title = f"{name}_{unit}", name.capitalize()
    if row.get(key) is None:
        return Panel(title, reason=_unmeasured(row, name))
    bars = [("measured", row[key], *((row.get(e) for e in ends) if ends else (None, None)))]
    if guess.get(key) is not None and not _unpredicted(guess):
        bars.append(("predicted", guess[key], *(guess.get(f"{name}_{e}_{unit}")
                                                for e in ("low", "high"))))  # fmt: skip
        if name == "time" and guess.get("bound_s") is not None:
            bars.append(("speed of light", guess["bound_s"], None, None))
    flat, shown = scaled([v for _, *three in bars for v in three], name)
    values, low, high = (flat[i::3] for i in range(3))
    texts = [format_quantity(v, name) for _, v, *_ in bars]
    if len(bars) > 1:
        texts[1] += f", × {bars[1][1] / bars[0][1]:.3g}"
    spread = any(map(math.isfinite, high))
    series = Series("", range(len(bars)), values, "bars", low if spread else (),
                    high if spread else (), labels=texts)  # fmt: skip
    return Panel(title, Axis("", shown), Axis("", "", "category", tuple(b[0] for b in bars)),
                 (series,), horizontal=True)  # fmt: skip
