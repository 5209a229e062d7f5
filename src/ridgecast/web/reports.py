"""Studies and campaigns of the folders that the server was started with.

A request names a report by its number in the list; no path comes from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ..errors import NoDataError
from ..report.questions import Question
from ..report.view import Rows, View, Words

__all__ = ["ReportQuestion", "report_view"]


class ReportQuestion(Question):
    """The list of reports, or one of them by its number."""

    page: ClassVar[str] = "reports"

    number: int | None = Field(None, ge=0, le=100_000, title="Report",
                               description="Number of a report in the list; without, the list.",
                               json_schema_extra={"control": "number",
                                                  "section": "Report"})  # fmt: skip

    def command(self) -> str:
        """`report`, which lists and shows the same."""
        return "ridgecast web --reports FOLDER"

    def python(self) -> str:
        """Nothing: a report is a file."""
        return ""


def report_view(q: ReportQuestion, folders: Sequence[Path]) -> Any:
    """View of one report, or the list of all.

    Raises NoDataError for a number that no report has.
    """
    from ..report.reports import reports_in
    from ..report.stored import StoredView, stored_view

    found = reports_in(folders)
    if q.number is None:
        return _listed(found, q)
    if q.number >= len(found):
        raise NoDataError(f"number: got {q.number}, there are {len(found)} reports; the list has "
                          "their numbers")  # fmt: skip
    view = stored_view(found[q.number][2])
    if isinstance(view, StoredView):
        return StoredView(view.document | {"address": q.address()})
    return replace(view, address=q.address())


def _listed(found: Sequence[tuple[str, str, Path]], q: ReportQuestion) -> View:
    rows = [{"report": title, "kind": kind, "folder": folder.name,
             "address": ReportQuestion(number=i).address()}
            for i, (title, kind, folder) in enumerate(found)]  # fmt: skip
    told = (
        "Start the server with folders to see their reports: ridgecast web --reports FOLDER",
        "`ridgecast study --out FOLDER` writes a study, `ridgecast measure` a campaign.",
    )
    blocks = (Rows("reports", "Reports", rows, links={"report": "address"}),) if rows else ()
    return View("reports", "Studies and campaigns", (*blocks, *(() if rows else (Words(told),))),
                answer=[{k: v for k, v in r.items() if k != "address"} for r in rows],
                command=q.command(), address=q.address())  # fmt: skip
