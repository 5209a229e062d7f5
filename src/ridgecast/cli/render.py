"""Terminal rendering: cards and tables, with units for eyes.

Owns how results look in a terminal. Rich is imported by the functions that draw. Must not compute
anything but a ratio of two given numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..units import format_field as cell
from ..units import heading_of

__all__ = ["print_card", "print_result", "print_rows", "print_text"]

_QUANTITIES = (("time", "_s"), ("power", "_w"), ("energy", "_j"))


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def print_text(text: str) -> None:
    """Print a line."""
    _console().print(text, highlight=False, markup=False)


def print_card(row: Mapping[str, Any], *, title: str, level: float) -> None:
    """Print one prediction: a row of the batch table as a card."""
    from rich.panel import Panel
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for name, text, extra in _card_lines(row, level):
        grid.add_row(_dim(name), _plain_text(text), _dim(extra))
    _console().print(Panel(grid, title=title, title_align="left", expand=False))


def _card_lines(row: Mapping[str, Any], level: float) -> list[tuple[str, str, str]]:
    lines: list[tuple[str, str, str]] = []
    for name, unit in _QUANTITIES:
        low, high = row.get(f"{name}_low{unit}"), row.get(f"{name}_high{unit}")
        extra = ""
        if not _missing(low) and not _missing(high):
            extra = f"{cell(unit, low)} to {cell(unit, high)} in {100 * level:g} % of cases"
        lines.append((name, cell(unit, row.get(f"{name}{unit}")) or "n/a", extra))
    lines.append(("memory", cell("_bytes", row.get("memory_bytes")) or "n/a", ""))
    time, bound = row.get("time_s"), row.get("bound_s")
    known = not _missing(time) and not _missing(bound)
    share = f"utilisation {100 * float(bound) / float(time):.1f} %" if known else ""  # type: ignore[arg-type]
    lines.append(("bound", cell("_s", bound) or "n/a", share))
    for key in ("limiter", "basis", "status", "reason", "notes"):
        value = row.get(key)
        if not _missing(value) and value != "ok":
            lines.append((key, cell(key, value), ""))
    return lines


def print_rows(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] = (), title: str = ""
) -> None:
    """Print rows as a table; by default the columns of the first row that hold anything."""
    from rich import box
    from rich.table import Table

    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    names.sort(key=lambda name: name == "why")  # the longest text last
    names = [name for name in names if any(not _missing(row.get(name)) for row in rows)]
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
                  collapse_padding=True)  # fmt: skip
    for name in names:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(heading_of(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_plain_text(cell(name, row.get(name))) for name in names))
    _console().print(table)


def print_result(result: Any, rows: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Print an explanation or a ranking: its sentences, its rows, further tables, its notes."""
    prediction, sentence = getattr(result, "prediction", None), getattr(result, "sentence", "")
    if prediction is not None:
        print_text(f"{title}: {prediction}")
    if sentence:
        print_text(sentence)
    print_rows(rows, title="" if prediction is not None else title)
    for name, table in getattr(result, "sections", {}).items():
        print_rows(table, title=name)
    fixed = getattr(result, "fixed", None)
    if fixed:
        print_text("the same in every row: " + ", ".join(f"{k} {v}" for k, v in fixed.items()))
    for note in getattr(result, "notes", ()):
        print_text(f"- {note}")


def _console() -> Any:
    from rich.console import Console

    return Console()


def _plain_text(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _dim(text: str) -> Any:
    from rich.text import Text

    return Text(text, style="dim")
