"""Pages as HTML: the form of a question, its first answer, and room for the other sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from .. import __version__
from ..errors import RidgecastError
from ..report.page import embedded, template
from .desk import Desk
from .errors import problems_of, problems_of_fields
from .forms import fields_of, groups_of
from .sections import Page, Section, pages
from .uploads import MOST_COLUMNS, MOST_ROWS

__all__ = ["page_html"]

Pairs = Sequence[tuple[str, str]]


def page_html(page: Page, query: Pairs, desk: Desk) -> tuple[str, int]:
    """HTML of a page and its status: 422 where the question has no answer, which it then says."""
    found = [_section(page, s, query, desk, first=s is page.sections[0]) for s in page.sections]
    known = {name for s in page.sections for name in s.question.model_fields}
    odd = [name for name, _ in query if name not in known]
    if odd and found:
        error = {"type": "extra_forbidden", "loc": (odd[0],), "input": None, "msg": ""}
        found[0] |= {"view": None, "problems": problems_of_fields([error], sorted(known))["errors"]}
    asked = _lists(query)
    main = page.sections[0].question if page.sections else None
    hidden = [name for s in page.sections for name in s.controls]
    status = 422 if any(s["problems"] for s in found) else 200
    html = template("app.html").render(
        page=page,
        pages=list(pages().values()),
        groups=groups_of(main, hidden, _values(main, asked)) if main and page.form else [],
        sections=found,
        version=__version__,
        title=page.title,
        rows=MOST_ROWS,
        columns=MOST_COLUMNS,
    )
    return html, status


def _section(
    page: Page, section: Section, query: Pairs, desk: Desk, *, first: bool
) -> dict[str, Any]:
    """Gather what a template needs of a section; the first one of a page is answered at once."""
    asked = _lists(query)
    fields = section.question.model_fields
    values = _values(section.question, asked)
    found: dict[str, Any] = {
        "name": section.name, "title": section.title, "endpoint": section.endpoint,
        "what": section.what, "fields": list(fields), "view": None, "data": "", "problems": [],
        "controls": fields_of(section.question, section.controls, values),
    }  # fmt: skip
    if not first:
        return found
    try:
        question = section.question.model_validate({k: v for k, v in values.items() if k in fields})
        view = desk.view(section, question).to_dict()
    except ValidationError as error:
        return found | {"problems": problems_of_fields(error.errors(), list(fields))["errors"]}  # type: ignore[arg-type]
    except RidgecastError as error:
        return found | {"problems": problems_of(error, list(fields))["errors"]}
    shown = [b for b in view["blocks"] if b["kind"] in ("figure", "table")]
    small = [b | {"cells": [], "links": []} if b["kind"] == "table" else b for b in shown]
    data = {"blocks": small, **{k: view.get(k, 0) for k in _AGAIN}}
    return found | {"view": view, "data": embedded(data)}


_AGAIN = ("title", "command", "python", "address", "pending")


def _lists(query: Pairs) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in query:
        found.setdefault(name, []).append(value)
    return found


def _values(question: type[Any] | None, asked: dict[str, list[str]]) -> dict[str, Any]:
    """Values of a query under the fields of a question: lists where the field is one."""
    if question is None:
        return {}
    out: dict[str, Any] = {}
    for name, info in question.model_fields.items():
        if name in asked:
            default = info.get_default(call_default_factory=True)
            if isinstance(default, list):
                out[name] = asked[name]
            elif asked[name][-1] or default == "":  # a form sends fields that were left empty
                out[name] = asked[name][-1]
    return out
