"""Reports that lie in folders: a study as it was written, a campaign read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import NoDataError, SpecError
from .campaign_rows import is_campaign
from .campaign_view import campaign_view
from .reports import is_study
from .view import Rows, View

__all__ = ["StoredView", "stored_view"]


_LATER: dict[str, Any] = {"strong": [], "links": []}  # of tables, which older files do not hold


class StoredView:
    """A view that was written to a file, shown as it stands there."""

    def __init__(self, document: dict[str, Any]) -> None:
        blocks = [_LATER | b if b["kind"] == "table" else b for b in document["blocks"]]
        self.document = document | {"blocks": blocks}
        self.title = str(document.get("title", "report"))

    @property
    def tables(self) -> dict[str, Rows]:
        """Tables by name."""
        return {b["name"]: Rows(b["name"], b["title"], b["rows"])
                for b in self.document["blocks"] if b["kind"] == "table"}  # fmt: skip

    def table(self, name: str) -> Rows:
        """Return a table. Raises SpecError with the nearest three names."""
        return View("reports", self.title, tuple(self.tables.values())).table(name)

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return self.document


def stored_view(folder: Path) -> View | StoredView:
    """View of a folder that a study or a campaign left.

    Raises NoDataError for a folder that holds neither, SpecError for a view that cannot be read.
    """
    if is_study(folder):
        path = folder / "data" / "view.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            blocks = document["blocks"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"{path}: is no view of a study ({error}); run the study again"
            ) from None
        if document.get("schema_version") != 1 or not isinstance(blocks, list):
            raise SpecError(f"{path}: written by a newer ridgecast; update, or run the study again")
        return StoredView({"pending": 0, **document})
    if is_campaign(folder):
        return campaign_view(folder)
    raise NoDataError(
        f"{folder}: holds neither a study nor a campaign; `ridgecast study --out FOLDER` and "
        "`ridgecast measure` leave such folders"
    )
