"""Reports that stand in folders: which there are, and of what kind.

Knows what `ridgecast study --out` and `ridgecast measure --out` leave; opens nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import SpecError
from .campaign_rows import devices_of, is_campaign, records_of

__all__ = ["Report", "is_study", "reports_in"]


class Report(NamedTuple):
    """A report that a folder holds: its title, `study` or `campaign`, and the folder."""

    title: str
    kind: str
    folder: Path


def is_study(folder: Path) -> bool:
    """Whether a folder is what `ridgecast study --out` wrote."""
    return (folder / "data" / "view.json").is_file()


def reports_in(folders: Iterable[Path]) -> list[Report]:
    """List the reports that folders are, or that their direct children are, in order of names.

    Raises SpecError for a folder that does not exist.
    """
    found: list[Report] = []
    for folder in folders:
        if not folder.is_dir():
            raise SpecError(f"report: {folder} is no folder")
        own = _report(folder)
        inside = (one for path in sorted(folder.iterdir()) if path.is_dir()
                  and (one := _report(path)))  # fmt: skip
        found += [own] if own else inside
    return list({one.folder.resolve(): one for one in found}.values())


def _report(folder: Path) -> Report | None:
    if is_study(folder):
        return Report(_title(folder), "study", folder)
    if is_campaign(folder):
        devices = ", ".join(devices_of(records_of(folder)))
        return Report(f"{folder.name}: {devices}", "campaign", folder)
    return None


def _title(folder: Path) -> str:
    """Title of a study; the folder's name where its view cannot be read."""
    try:
        return str(json.loads((folder / "data" / "view.json").read_text("utf-8"))["title"])
    except (ValueError, KeyError, TypeError):
        return folder.name
