"""Reports that stand in folders: which there are, and each as a view in its plain form.

Knows what `ridgecast study --out` and `ridgecast measure --out` leave; opens nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import SpecError
from .campaign_rows import devices_of, is_campaign, records_of

__all__ = ["Report", "is_campaign", "is_study", "report_in", "reports_in"]


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
        return Report(str(_study(folder).get("title") or folder.name), "study", folder)
    if is_campaign(folder):
        return Report(
            f"{folder.name}: {', '.join(devices_of(records_of(folder)))}", "campaign", folder
        )
    return None


def report_in(folder: Path) -> dict[str, Any]:
    """Return a folder's report as a view in its plain form: a study's as written, else made anew.

    Raises NoDataError for a folder that holds neither, SpecError for a study that cannot be read.
    """
    if is_study(folder):
        return _study(folder)
    from .campaign_view import campaign_view

    return campaign_view(folder).to_dict()


def _study(folder: Path) -> dict[str, Any]:
    path = folder / "data" / "view.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise SpecError(f"{path}: no JSON ({error})") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != 1 or not isinstance(found.get("blocks"), list):
        raise SpecError(f"{path}: schema_version {version}, this version reads 1")
    return found
