"""Views: what a page shows, as pure data; drawn by the web page, a static page or a notebook.

A view answers one question: the answer itself (the very document that the command line prints with
`--json`), blocks for eyes (facts, tables, figures, words), and how to ask again: the command, the
Python, the address. Owns the values and their plain form; knows no HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ..errors import SpecError, unknown_name
from ..richtext import is_number, text_of
from ..units import dimension_of, format_field, heading_of
from .figures import Figure
from .glossary import definition

__all__ = ["Block", "Fact", "Facts", "Heading", "Rows", "View", "Words", "plain"]

TONES = ("plain", "warning", "lead")


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; NaN and infinities become None.

    >>> plain({"time_s": float("nan"), "shape": (1, 2)})
    {'time_s': None, 'shape': [1, 2]}
    """
    if value is None or type(value) in (str, bool, int):  # most of them
        return value
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


@dataclass(frozen=True, slots=True)
class Fact:
    """One number for eyes: what it is, its text, a line under it, and its glossary term."""

    label: str
    text: str
    note: str = ""
    term: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """A row of numbers."""

    items: tuple[Fact, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        items = [{"label": f.label, "text": f.text, "note": f.note,
                  "definition": definition(f.term or f.label)} for f in self.items]  # fmt: skip
        return {"kind": "facts", "items": items}


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A table: rows of plain values under keys that carry their unit, as in files.

    `columns` chooses and orders the keys (by default all that hold something); `headings` renames
    them. `links` maps a key to the key of rows that holds the address behind its cells; that key is
    not shown. `group` is a key: a rule parts rows that differ in it. Rows that hold the value of
    `strong`, a key and a value, stand out. `open` False folds the table.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str] = ()
    headings: Mapping[str, str] = field(default_factory=dict[str, str])
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    caption: str = ""
    group: str = ""
    strong: tuple[str, Any] | None = None
    open: bool = True

    @property
    def shown(self) -> list[str]:
        """Keys of the columns that hold something, in order."""
        hidden = set(self.links.values())
        names = list(self.columns) or list(dict.fromkeys(k for row in self.rows for k in row))
        return [n for n in names if n not in hidden
                and any(format_field(n, row.get(n)) for row in self.rows)]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: `rows` as they are, `cells` as text for eyes."""
        names = self.shown
        numeric = {n for n in names if any(is_number(row.get(n)) for row in self.rows)}
        columns = [
            {"key": n, "heading": self.headings.get(n, heading_of(n).replace("_", " ")),
             "definition": definition(n), "numeric": n in numeric, "dimension": dimension_of(n)}
            for n in names
        ]  # fmt: skip
        return {
            "kind": "table", "name": self.name, "title": self.title, "caption": self.caption,
            "columns": columns, "group": self.group, "open": self.open,
            "strong": [i for i, row in enumerate(self.rows)
                       if self.strong and row.get(self.strong[0]) == self.strong[1]],
            "rows": [plain(dict(row)) for row in self.rows],
            "cells": [[text_of(n, row.get(n)) or "–" for n in names] for row in self.rows],
            "links": [[row.get(self.links[n]) if n in self.links else None for n in names]
                      for row in self.rows] if self.links else [],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Words:
    """Paragraphs, or a list of points. `tone`: plain, warning, or lead (what matters most)."""

    texts: tuple[str, ...]
    title: str = ""
    tone: str = "plain"
    listed: bool = False

    def __post_init__(self) -> None:
        if self.tone not in TONES:
            raise SpecError(f"words.tone: got {self.tone!r}, allowed: {', '.join(TONES)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": "words", "title": self.title, "tone": self.tone, "listed": self.listed,
                "texts": list(self.texts)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading above the blocks that follow it."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": "heading", "text": self.text}


Block = Facts | Rows | Words | Heading | Figure


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One question answered for eyes.

    `name` is the page it stands on, `answer` the document of the command line's `--json`,
    `command`, `python` and `address` ask the same again, `pending` counts what is still being
    worked out. Names of blocks are unique.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""
    answer: Any = None
    command: str = ""
    python: str = ""
    address: str = ""
    footer: str = ""
    pending: int = 0

    @property
    def tables(self) -> dict[str, Rows]:
        """Tables by name."""
        return {b.name: b for b in self.blocks if isinstance(b, Rows)}

    @property
    def figures(self) -> dict[str, Figure]:
        """Figures by name."""
        return {b.name: b for b in self.blocks if isinstance(b, Figure)}

    def table(self, name: str) -> Rows:
        """Return a table. Raises SpecError with the nearest three names."""
        known = self.tables
        if name not in known:
            raise SpecError(f"table: {unknown_name('table', name, known)}")
        return known[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: one JSON document."""
        return {
            "schema_version": 1, "view": self.name, "title": self.title, "lead": self.lead,
            "command": self.command, "python": self.python, "address": self.address,
            "footer": self.footer, "pending": self.pending, "answer": plain(self.answer),
            "blocks": [_block(b) for b in self.blocks],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """Rich display in a notebook."""
        from .page import fragment

        return fragment(self)


def _block(block: Block) -> dict[str, Any]:
    found = block.to_dict()
    return {"kind": "figure", **found} if isinstance(block, Figure) else found
