"""Tables and lines in HTML for notebooks: what values show of themselves, without the report room.

Owns escaping and the little style that reads in light and dark notebooks. Values bring plain rows
under keys that carry their unit; knows nothing of what they mean. Imports only `units`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .units import format_field, heading_of

__all__ = ["block", "is_number", "line", "picture", "table", "text_of"]

_MOST = 30  # rows of a table; a notebook is no place for thousands
# half transparent greys: they part rows on white and on black
_RULE = "border-bottom:1px solid rgba(128,128,128,.35)"
_CELL = f"padding:.2em .9em .2em 0;{_RULE};vertical-align:top"


def line(text: str, *, strong: bool = False) -> str:
    """Return one line of text.

    >>> line("a < b")
    '<div>a &lt; b</div>'
    """
    inner = f"<b>{escape(text)}</b>" if strong else escape(text)
    return f"<div>{inner}</div>"


def picture(svg: str, title: str) -> str:
    """Return an SVG document as an image: its styles and ids stay its own."""
    from base64 import b64encode

    data = b64encode(svg.encode("utf-8")).decode("ascii")
    return (f'<img alt="{escape(title)}" style="max-width:100%" '
            f'src="data:image/svg+xml;base64,{data}">')  # fmt: skip


def block(*parts: str) -> str:
    """Return finished lines and tables as one piece; empty ones are left out."""
    inner = "".join(part for part in parts if part)
    return f'<div style="font-variant-numeric:tabular-nums;overflow-x:auto">{inner}</div>'


def table(
    rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = (), *, caption: str = ""
) -> str:
    """Return rows as a table, values formatted by the unit in their key; "" without rows.

    `columns` chooses and orders the keys, by default all that hold something.

    >>> "150 µs" in table([{"what": "time", "value_s": 1.5e-4}])
    True
    """
    wanted = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    names = [n for n in wanted if any(text_of(n, row.get(n)) for row in rows)]
    if not names:
        return ""
    sides = {n: "right" if any(is_number(row.get(n)) for row in rows) else "left" for n in names}
    head = "".join(
        f'<th style="text-align:{sides[n]};{_CELL}">{escape(heading_of(n).replace("_", " "))}</th>'
        for n in names
    )
    body = "".join(
        "<tr>" + "".join(_cell(text_of(n, row.get(n)), sides[n]) for n in names) + "</tr>"
        for row in rows[:_MOST]
    )
    more = f"{len(rows) - _MOST} more rows" if len(rows) > _MOST else ""
    named = (
        f'<caption style="text-align:left;white-space:nowrap">{escape(caption)}</caption>'
        if caption
        else ""
    )
    return (
        f'<table style="border-collapse:collapse;margin:.4em 0">{named}<thead><tr>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table>{line(more) if more else ''}"
    )


def _cell(text: str, side: str) -> str:
    kept = ";white-space:nowrap" if side == "right" else ""
    return f'<td style="text-align:{side};{_CELL}{kept}">{escape(text)}</td>'


def is_number(value: Any) -> bool:
    """Whether a value is shown as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def text_of(key: str, value: Any) -> str:
    """Text of a cell for eyes, by the unit that its key carries; "" where nothing is known."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text_of(key, item) for item in value)
    value = value.item() if hasattr(value, "item") else value
    return format_field(key, value)
