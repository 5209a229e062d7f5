"""What the models of a folder were measured on: collections, as their cards record them.

Owns the reading of provenance from cards. What a card does not say stays None, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import SpecError
from ..hardware import get
from ..predict.bundle import SHIPPED, open_bundle
from ..predict.time_model import read_card

__all__ = ["measured_collections"]

_STACK = re.compile(r"^(?P<framework>[A-Za-z][\w.]*?)-(?P<version>\d.*)$")
_ENVIRONMENT = ("driver", "measured_on")


def measured_collections(model: str | Path | None = None) -> list[dict[str, Any]]:
    """Return the collections of a model folder, by default the shipped one: a dict for each model.

    Keys: collection, source (the project that published it), framework, version, hardware, op,
    dtype, rows, launch, licence, files, driver, measured_on (a date) and reason, which says what
    the card does not record. `rows` are distinct points after repeats became their median, of
    power all rows with a label.
    Raises SpecError for a folder that is no model.
    """
    folder = SHIPPED if model is None else Path(model)
    found: list[dict[str, Any]] = []
    if (folder / "card.json").exists():
        card = open_bundle(folder).card
        found += [_time(line) for line in card["models"]]
        found += _operators(card, folder)
    for name, read in _READERS.items():
        path = folder / name / "card.json"
        if path.exists():
            found += read(read_card(path))
    return found


def _row(collection: str, card: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """Build a collection's row; its name is source/framework-version/device/variant."""
    parts = collection.split("/")
    stack = _STACK.match(parts[1]) if len(parts) > 1 else None
    row: dict[str, Any] = {"collection": collection, "source": parts[0]}
    row |= {name: stack[name] if stack else None for name in ("framework", "version")}
    row |= dict.fromkeys(("hardware", "op", "dtype", "rows", "launch", "licence", "files"))
    row |= known | {name: card.get(name) for name in _ENVIRONMENT}
    missing = [text for name, text in (("driver", "driver"), ("measured_on", "date"))
               if row[name] is None]  # fmt: skip
    told = [f"the card records no {' and no '.join(missing)}"] if missing else []
    row["reason"] = "; ".join([*told, *([known["reason"]] if known.get("reason") else [])])
    return row


def _time(line: Mapping[str, Any]) -> dict[str, Any]:
    launch = " sustained".join([line["launch"], ""]) if line["sustained"] else line["launch"]
    return _row(
        line["collection"], line, hardware=line["hardware"], op="gemm", dtype=line["dtype"],
        rows=line["rows"], launch=launch.strip() or None, licence=line.get("licence") or None,
        files=list(line.get("files", ())),
    )  # fmt: skip


def _operators(card: Mapping[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Read collections of operations; a model lent to another device was measured on its own."""
    for line in card.get("operators", ()):
        if not line["rows"]:
            continue
        own = read_card(folder / line["folder"] / "card.json")
        kind = f", {line['kind']}" if line.get("kind") else ""
        launch = next((w for w in ("graph", "eager") if line["collection"].endswith(f"/{w}")), None)
        yield _row(
            line["collection"], own, hardware=line["hardware"], op=f"{line['op']}{kind}",
            rows=line["rows"], launch=launch, licence=own.get("licence") or None,
            files=list(own.get("sources", ())),
        )  # fmt: skip


def _clblast(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    names = card.get("collections", ())
    whole = "" if len(names) == 1 else f"{card['rows']} rows in all collections, not told apart"
    for name in names:
        yield _row(
            name, card, hardware=_device(name), op="gemm", dtype="fp32",
            rows=None if whole else card["rows"], reason=whole,
            licence=", ".join(card.get("licence", ())) or None,
        )  # fmt: skip


def _power(card: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in card.get("data", ()):
        counts = {key.partition("/")[::2]: sum(n.values())
                  for key, n in card.get("counts", {}).items()}  # fmt: skip
        for (device, dtype), rows in counts.items():
            if f"/{device}" in name:
                yield _row(name, card, hardware=device, op="gemm power", dtype=dtype, rows=rows,
                           licence=", ".join(card.get("licence", ())) or None)  # fmt: skip


def _device(collection: str) -> str | None:
    try:
        return get(collection.rsplit("/", 1)[-1]).name
    except SpecError:
        return None


_READERS = {"clblast_sgemm": _clblast, "power": _power}
