"""Static pages: text, tables and figures in one HTML file that needs no network.

Owns the page's look (light and dark by the reader's setting, print) and the escaping of
everything that is put in. Knows nothing of what a page says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

__all__ = [
    "Column",
    "Page",
    "Section",
    "callout",
    "cell",
    "details",
    "facts",
    "figure",
    "items",
    "paragraph",
    "table",
]

_STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#20242b;--muted:#5d6673;--rule:#dde1e7;
--soft:#f5f7f9;--accent:#1c66b8;--good:#14795a;--warn:#9a5b06}
@media (prefers-color-scheme:dark){:root{--paper:#14171c;--ink:#e6e9ee;--muted:#9aa4b2;
--rule:#2d333d;--soft:#1b1f26;--accent:#76b0ee;--good:#5cc9a0;--warn:#e2aa52}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:70rem;margin:0 auto;padding:3rem 1.5rem 5rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .4rem;letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.3rem;line-height:1.3;margin:3.2rem 0 .7rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:2rem 0 .4rem}
p,ul,ol{max-width:46rem;margin:.5rem 0 1rem}
li{margin:.25rem 0}
p.lead{color:var(--muted);font-size:1.05rem}
nav{margin:1.6rem 0 0;padding:.6rem 0;border-top:1px solid var(--rule);
border-bottom:1px solid var(--rule);font-size:.875rem;display:flex;flex-wrap:wrap;gap:.3rem 1.3rem}
a{color:var(--accent);text-decoration-thickness:1px;text-underline-offset:2px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1px;
background:var(--rule);border:1px solid var(--rule);border-radius:6px;overflow:hidden;
margin:1.6rem 0}
.facts div{background:var(--paper);padding:.9rem 1rem}
.facts b{display:block;font-size:1.45rem;line-height:1.25;font-weight:650;
font-variant-numeric:tabular-nums}
.facts span{color:var(--muted);font-size:.83rem;line-height:1.4;display:block}
.scroll{overflow-x:auto;margin:.8rem 0 1.4rem}
table{border-collapse:collapse;font-size:.875rem;line-height:1.45;min-width:100%}
caption{text-align:left;color:var(--muted);padding:0 0 .4rem;font-size:.875rem}
th,td{padding:.38rem .8rem .38rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--muted);border-bottom-color:var(--muted);vertical-align:bottom}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.strong td{font-weight:650}
tr.cut td{border-top:1px solid var(--muted)}
figure{margin:1.6rem 0 2.2rem}
figure svg{display:block;font-family:inherit}
figcaption{color:var(--muted);font-size:.875rem;max-width:46rem;margin-top:.5rem}
figcaption b{color:var(--ink)}
.callout{border-left:3px solid var(--warn);background:var(--soft);padding:.7rem 1rem;
max-width:46rem;margin:1rem 0}
.callout p{margin:0}
details{margin:1rem 0}summary{cursor:pointer;font-weight:600}
code{font:.875em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{margin-top:4rem;color:var(--muted);font-size:.83rem;border-top:1px solid var(--rule);
padding-top:1rem}
@media print{main{max-width:none;padding:0}details{display:block}nav{display:none}}
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: key of the rows, heading, and how its cells read.

    `kind`: text, share (0.03 -> 3.0 %), number (three significant digits), fixed (three decimals),
    count, or any unit
    that `units.format_quantity` knows (time, energy, power, flops_per_s, bytes).
    """

    key: str
    heading: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with blocks of finished HTML under it, made by this module's functions."""

    title: str
    blocks: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        """Id for links to this section."""
        kept = "".join(c if c.isalnum() else "-" for c in self.title.lower())
        return "-".join(part for part in kept.split("-") if part)


@dataclass(frozen=True, slots=True)
class Page:
    """A page: title, one line under it, blocks before the first heading, sections, a footer."""

    title: str
    lead: str
    sections: Sequence[Section]
    blocks: Sequence[str] = ()
    footer: str = ""
    language: str = field(default="en")

    def to_html(self) -> str:
        """Return the whole document: no script, no link to anything outside it."""
        links = "".join(
            f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in self.sections if s.blocks
        )
        body = "".join(
            f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{"".join(s.blocks)}</section>\n'
            for s in self.sections
            if s.blocks
        )
        return (
            f'<!doctype html>\n<html lang="{self.language}">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<main>\n<header><h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>'
            f"</header>\n{''.join(self.blocks)}\n<nav>{links}</nav>\n{body}"
            f"<footer>{escape(self.footer)}</footer>\n</main>\n</body>\n</html>\n"
        )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def callout(text: str) -> str:
    """Return a paragraph that must not be overlooked."""
    return f'<div class="callout"><p>{escape(text)}</p></div>'


def items(texts: Sequence[str]) -> str:
    """Return a list."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a row of figures, each a value and what it is."""
    cells = "".join(
        f"<div><b>{escape(v)}</b><span>{escape(what)}</span></div>" for v, what in pairs
    )
    return f'<div class="facts">{cells}</div>'


def figure(svg: str, title: str, caption: str) -> str:
    """Return an inline SVG with its title and caption."""
    text = f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption>"
    labelled = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)
    return f"<figure>{labelled}{text}</figure>"


def details(summary: str, blocks: Sequence[str]) -> str:
    """Return blocks that unfold on a click."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(blocks)}</details>"


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    caption: str = "",
    group: str = "",
    lead: tuple[str, Any] | None = None,
) -> str:
    """Return a table; a rule parts rows whose `group` differs, rows where `lead` holds are bold.

    Columns that hold nothing in any row are left out.
    """
    shown = [c for c in columns if any(not _empty(row.get(c.key)) for row in rows)]
    head = "".join(f"<th{_side(c)}>{escape(c.heading)}</th>" for c in shown)
    body: list[str] = []
    before: Any = None
    for i, row in enumerate(rows):
        marks = []
        if group and i and row.get(group) != before:
            marks.append("cut")
        if lead and row.get(lead[0]) == lead[1]:
            marks.append("strong")
        before = row.get(group) if group else None
        cells = "".join(f"<td{_side(c)}>{escape(cell(row.get(c.key), c.kind))}</td>" for c in shown)
        attribute = f' class="{" ".join(marks)}"' if marks else ""
        body.append(f"<tr{attribute}>{cells}</tr>")
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{named}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _side(column: Column) -> str:
    return "" if column.kind == "text" else ' class="n"'


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def cell(value: Any, kind: str) -> str:
    """Text of a cell.

    >>> cell(0.0312, "share"), cell(None, "share"), cell(1234, "count"), cell(2.5e-5, "time")
    ('3.1 %', '–', '1,234', '25.0 µs')
    """
    if _empty(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item, kind) for item in value)
    if isinstance(value, str) or kind == "text":
        return str(value)
    return _number(float(value), kind)


_FORMS = {"share": "{:.1f} %", "count": "{:,.0f}", "number": "{:.3g}", "fixed": "{:.3f}"}


def _number(value: float, kind: str) -> str:
    from ..units import format_quantity

    if kind not in _FORMS:
        return format_quantity(value, kind)
    scaled = 100.0 * value if kind == "share" else value
    return _FORMS[kind].format(scaled).replace("-", "\u2212")
